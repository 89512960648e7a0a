"""The tiny run that tests share: built once, handed out as copies."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]


# The same in all processes of one test run, so that the run is checked once and not by each test
TEST_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))


def tiny_run(folder):
    "Copy the tiny run into a folder, so that those who use it don't meet."
    source = ROOT / "outputs/.tests"
    source.mkdir(parents=True, exist_ok=True)
    checked = source / ".checked"  # by which test run
    with FileLock(source / ".building"):
        if not checked.is_file() or checked.read_text() != TEST_RUN:
            build_tiny_run(source)
            checked.write_text(TEST_RUN)
        hidden = shutil.ignore_patterns(".building", ".checked", "*.lock")
        shutil.copytree(source, folder, ignore=hidden)
    return folder


def build_tiny_run(source):
    """Run the stages of the tiny run that are not there yet, or that the code has changed since.

    What an earlier build has made live goes first: the tiny run has too few cases to show that a
    new bundle loses no more than the gate allows.
    """
    for name in ("live.json", "anchor.json", "looks.json"):
        (source / "tiny" / name).unlink(missing_ok=True)
    code = (
        "from recsys.core.params import default_params\nfrom recsys.core.pipeline import "
        "run_here\nfrom recsys.core.stages import FULL\n"
        "for s in FULL: run_here(s, default_params())"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "RECSYS_OUTPUTS": str(source), "MPLBACKEND": "agg"},
    )
    assert run.returncode == 0, f"the tiny run failed:\n{run.stdout[-2000:]}\n{run.stderr[-6000:]}"
