import collections
import re
import shutil

import pytest

# Long groups first, so that no worker is left with one at the end. The gateway's builds the tiny
# run that others copy; the group behind it, which the second worker takes, needs no copy.
FIRST_GROUPS = (
    "gateway",
    "run",
    "serving",
    "promote",
    "replicas",
    "docs",
    "pods",
    "shop_window",
    "k8s",
    "checkpoints",
)
LONG_NOTEBOOKS = ("dlrm", "tune", "finetune", "two_tower", "online_store")


def place_in_run(item):
    "Return the sort key of a test: a lower one is started earlier."
    marker = item.get_closest_marker("xdist_group")
    group = marker.args[0] if marker else ""
    if group in FIRST_GROUPS:
        return FIRST_GROUPS.index(group)
    notebook = re.search(r"/[0-9]+_(\w+)]$", item.nodeid)
    is_long = bool(notebook) and notebook[1] in LONG_NOTEBOOKS
    return len(FIRST_GROUPS) + (not is_long)


def pytest_collection_modifyitems(items):
    "Start the long tests first; the order within a group stays."
    items.sort(key=place_in_run)


def pytest_runtest_setup(item):
    "Skip a test marked `needs(...)` where one of its system tools is not on PATH."
    tools = [tool for mark in item.iter_markers("needs") for tool in mark.args]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {' '.join(missing)}")


def pytest_terminal_summary(terminalreporter):
    "Print one line for every missing tool with the number of tests that were not run."
    counts = collections.Counter()
    for report in terminalreporter.stats.get("skipped", []):
        _, needs, tools = str(report.longrepr[2]).partition("needs ")
        counts.update(tools.split() if needs else [])
    for tool, n in sorted(counts.items()):
        terminalreporter.write_line(f"{tool} is not installed: {n} test{'s' * (n > 1)} not run")
