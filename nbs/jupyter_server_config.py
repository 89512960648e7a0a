"""JupyterLab's settings for this project: `make lab` starts it with them."""

import sys
from pathlib import Path

from nbdev.clean import clean_nb

c = get_config()  # noqa: F821 (Jupyter gives this name to a configuration file)


def clean_before_saving(model, **_):
    """Write a notebook as `nbdev_clean` does, so that saving it changes no metadata in git.

    JupyterLab would write another display name of the kernel, the version of Python and the
    execution counts. Outputs stay until `make export`.
    """
    if model["type"] == "notebook":
        clean_nb(model["content"], allowed_cell_metadata_keys=["tags"])


def guide_address() -> str:  # empty where the server doesn't show the folder of the guide
    "Return the path under which JupyterLab opens the guide: it counts from the server's root."
    option = "--ServerApp.root_dir="
    roots = [word.removeprefix(option) for word in sys.argv if word.startswith(option)]
    guide, root = Path(__file__).resolve().with_name("guide.ipynb"), Path(*roots[-1:]).resolve()
    if not (guide.is_file() and guide.is_relative_to(root)):
        return ""
    return f"/lab/tree/{guide.relative_to(root).as_posix()}"


c.ContentsManager.pre_save_hook = clean_before_saving
if guide_address():
    c.LabApp.default_url = guide_address()  # the first page; tabs of an earlier session stay
