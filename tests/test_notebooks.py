import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_run

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*/*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_notebook_runs(notebook, tmp_path):
    "Run every cell of a notebook in order, as `nbdev_test` does."
    command = [
        str(Path(sys.executable).with_name("nbdev_test")),
        "--path",
        str(notebook),
        "--n_workers",
        "0",
    ]
    env = {**os.environ, "MPLBACKEND": "agg"}
    if (
        "ensure(" in notebook.read_text()
        and "default_exp core.pipeline" not in notebook.read_text()
    ):
        env["RECSYS_OUTPUTS"] = str(tiny_run(tmp_path / "outputs"))
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, (
        f"{notebook.name} failed:\n{run.stdout[-2000:]}\n{run.stderr[-6000:]}"
    )
    assert "Success" in run.stdout, f"nbdev_test ran nothing of {notebook.name}:\n{run.stdout}"
