import collections
import shutil

import pytest


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
