"""JupyterLab's settings for this project: `make lab` starts it with them."""

from nbdev.clean import clean_nb

c = get_config()  # noqa: F821 (Jupyter gives this name to a configuration file)


def clean_before_saving(model, **_):
    """Write a notebook as `nbdev_clean` does, so that saving it changes no metadata in git.

    JupyterLab would write another display name of the kernel, the version of Python and the
    execution counts. Outputs stay until `make export`.
    """
    if model["type"] == "notebook":
        clean_nb(model["content"], allowed_cell_metadata_keys=["tags"])


c.ContentsManager.pre_save_hook = clean_before_saving
