import shutil
from pathlib import Path

pytest_plugins = "pytester"


def test_missing_tools_are_counted(pytester):
    shutil.copy(Path(__file__).with_name("conftest.py"), pytester.path)
    pytester.makeini("[pytest]\nmarkers = needs(*tools): system tools")
    pytester.makepyfile("""
        import pytest
        @pytest.mark.needs("no-such-tool")
        @pytest.mark.parametrize("n", range(2))
        def test_one(n): raise AssertionError("ran without its tool")
        @pytest.mark.needs("sh", "other-tool")
        def test_two(): raise AssertionError("ran without its tool")
        @pytest.mark.needs("sh")
        def test_three(): pass
        @pytest.mark.skip(reason="for another reason")
        def test_four(): pass
    """)
    result = pytester.runpytest_subprocess("-n", "2")
    result.assert_outcomes(passed=1, skipped=4)
    result.stdout.fnmatch_lines(
        [
            "no-such-tool is not installed: 2 tests not run",
            "other-tool is not installed: 1 test not run",
        ]
    )
    result.stdout.no_fnmatch_line("reason is not installed*")


def test_a_group_stays_on_one_worker(pytester):
    """Tests of a group share what is built once; pytest 9.2.0 with pytest-xdist 3.8.0 spread them
    without a word.
    """
    pytester.makepyfile("""
        import os, time
        import pytest
        @pytest.mark.xdist_group("together")
        @pytest.mark.parametrize("n", range(6))
        def test_one(n):
            time.sleep(.1)
            open("workers", "a").write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")
        @pytest.mark.parametrize("n", range(6))
        def test_other(n): time.sleep(.1)
    """)
    pytester.runpytest_subprocess("-n", "2", "--dist", "loadgroup").assert_outcomes(passed=12)
    workers = (pytester.path / "workers").read_text().split()
    assert len(workers) == 6 and len(set(workers)) == 1


def test_long_groups_are_started_first_in_their_own_order(pytester):
    shutil.copy(Path(__file__).with_name("conftest.py"), pytester.path)
    pytester.makeini("[pytest]\nmarkers = needs(*tools): system tools")
    pytester.makepyfile("""
        import pytest
        def test_short(): pass
        @pytest.mark.xdist_group("run")
        def test_run(): pass
        @pytest.mark.xdist_group("gateway")
        @pytest.mark.parametrize("n", [2, 1])
        def test_gateway(n): pass
        @pytest.mark.parametrize("notebook", ["0_core/00_params", "2_models/15_dlrm"])
        def test_notebook(notebook): pass
    """)
    result = pytester.runpytest_subprocess("-v", "-p", "xdist")
    started = [line.split("::")[1].split(" ")[0] for line in result.outlines if " PASSED" in line]
    assert started == [
        "test_gateway[2]",
        "test_gateway[1]",
        "test_run",
        "test_notebook[2_models/15_dlrm]",
        "test_short",
        "test_notebook[0_core/00_params]",
    ]
