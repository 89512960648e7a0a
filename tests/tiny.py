"""The tiny run that tests share: built once, handed out as copies."""

import os
import shutil
from pathlib import Path

from filelock import FileLock

from recsys.operate.docs_notebooks import build_tiny_run

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
