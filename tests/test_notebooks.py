import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook):
    "Run every cell of a notebook in order, as `nbdev_test` does."
    command = [str(Path(sys.executable).with_name("nbdev_test")), "--path", str(notebook), "--n_workers", "0"]
    env = {**os.environ, "MPLBACKEND": "agg"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, f"{notebook.name} failed:\n{run.stdout[-2000:]}\n{run.stderr[-6000:]}"
    assert "Success" in run.stdout, f"nbdev_test ran nothing of {notebook.name}:\n{run.stdout}"
