"""The tiny run that tests share: built once, handed out as copies."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]


def tiny_run(folder):
    "Copy the tiny run into a folder, so that those who use it don't meet."
    source = ROOT / "outputs/.tests"
    source.mkdir(parents=True, exist_ok=True)
    code = (
        "from recsys.core.params import default_params\nfrom recsys.core.pipeline import "
        "run_here\nfrom recsys.core.stages import FULL\n"
        "for s in FULL: run_here(s, default_params())"
    )
    with FileLock(source / ".building"):
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "RECSYS_OUTPUTS": str(source), "MPLBACKEND": "agg"},
        )
        assert run.returncode == 0, (
            f"the tiny run failed:\n{run.stdout[-2000:]}\n{run.stderr[-6000:]}"
        )
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".building", "*.lock"))
    return folder
