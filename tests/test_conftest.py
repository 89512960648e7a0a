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
    result.stdout.fnmatch_lines(["no-such-tool is not installed: 2 tests not run", "other-tool is not installed: 1 test not run"])
    result.stdout.no_fnmatch_line("reason is not installed*")
