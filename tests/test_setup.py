"setup.sh in a copy of the project with an empty lock and a stand-in for uv: nothing is downloaded."

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = os.path.realpath(sys.executable)
TOOLS = [
    "sh",
    "env",
    "dirname",
    "cat",
    "cksum",
    "mkdir",
    "rm",
    "sed",
    "tr",
    "printf",
    "sleep",
    "echo",
    "flock",
]


@pytest.fixture
def project(tmp_path):
    """Copy set-up into a folder with a space in its name; PATH holds a few system tools and no
    Python.
    """
    root = tmp_path / "a project"
    (root / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "setup.sh", root)
    for name in ("requirements-py311.lock", "requirements-nodeps.txt", "pyproject.toml"):
        (root / name).write_text("# empty\n")
    for tool in filter(shutil.which, TOOLS):
        (root / "bin" / tool).symlink_to(shutil.which(tool))
    uv = root / "bin/stand-in-uv"
    uv.write_text(
        '#!/bin/sh\necho "$*" >>uv.log\n[ ! -e slow ] || { : >started; sleep 30; }\n[ ! -e '
        "broken ]\n"
    )
    uv.chmod(0o755)
    return root


def environment(root, **extra):
    return {
        "PATH": str(root / "bin"),
        "HOME": str(root / "nobody"),
        "UV": str(root / "bin/stand-in-uv"),
        **extra,
    }


def setup(root, **extra):
    return subprocess.run(
        ["sh", root / "setup.sh"],
        env=environment(root, **extra),
        capture_output=True,
        text=True,
        cwd="/",
    )


def add_python(path, python=PYTHON):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    path.chmod(0o755)


def test_says_what_to_do_without_python_311(project):
    add_python(project / "bin/python3", "/bin/false")
    run = setup(project)
    assert run.returncode == 1 and not (project / ".venv").exists()
    for words in ("no Python 3.11 found", "pyenv install 3.11", "make setup PYTHON="):
        assert words in run.stderr
    run = setup(project, PYTHON="/bin/false")
    assert run.returncode == 1 and "PYTHON=/bin/false is not a Python 3.11" in run.stderr


@pytest.mark.parametrize(
    "where", ["bin/python3.11", "bin/python3", "nobody/.pyenv/versions/3.11.9/bin/python", "named"]
)
def test_finds_python(project, where):
    add_python(project / "bin/python3.11", "/bin/false")
    add_python(project / where)
    (project / "bin/mkdir").unlink()  # stop it before the slow part
    run = setup(project, **({"PYTHON": str(project / "named")} if where == "named" else {}))
    assert f"making .venv with {PYTHON};" in run.stderr


def test_second_run_is_silent_and_a_changed_lock_is_installed(project):
    add_python(project / "bin/python3.11")
    assert setup(project).returncode == 0
    assert os.path.realpath(project / ".venv/bin/python") == PYTHON
    log = (project / "uv.log").read_text()
    add_python(project / "bin/python3.11", "/bin/false")  # not looked for again
    again = setup(project)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    add_python(project / "bin/python3.11")
    assert (project / "uv.log").read_text() == log
    assert "-r requirements-py311.lock -r requirements-nodeps.txt" in log
    (project / "requirements-py311.lock").write_text("# changed\n")
    (project / ".venv/kept").touch()
    assert setup(project).returncode == 0
    assert (
        len((project / "uv.log").read_text()) == 2 * len(log) and (project / ".venv/kept").exists()
    )
    assert setup(project).stderr == ""


def test_interrupted_set_up_begins_again(project):
    add_python(project / "bin/python3.11")
    (project / "slow").touch()
    process = subprocess.Popen(
        ["sh", project / "setup.sh"],
        env=environment(project),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (project / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, 9)
    process.wait()
    (project / "slow").unlink()
    (project / ".venv/half").touch()
    run = setup(project)
    assert run.returncode == 0 and "interrupted" in run.stderr
    assert not (project / ".venv/half").exists()
    assert setup(project).stderr == ""


def test_failed_install_is_not_taken_for_a_finished_one(project):
    add_python(project / "bin/python3.11")
    (project / "broken").touch()
    (project / "requirements-py311.lock").write_text("this is not a requirement\n")
    run = setup(project)
    assert run.returncode == 1 and "could not be installed" in run.stderr
    assert not (project / ".venv/.stamp").exists() and (project / ".venv/.incomplete").exists()


def test_settings_of_the_caller_do_no_harm(project):
    add_python(project / "bin/python3.11")
    (project / "site").mkdir()
    (project / "site/venv.py").write_text("raise RuntimeError")
    run = setup(
        project,
        PYTHONPATH=str(project / "site"),
        PIP_USER="1",
        PIP_TARGET="/nowhere",
        VIRTUAL_ENV="/nowhere",
        CONDA_PREFIX="/nowhere",
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(not shutil.which("flock"), reason="needs flock")
def test_two_at_once_install_once(project):
    add_python(project / "bin/python3.11")

    def start():
        return subprocess.Popen(
            ["sh", project / "setup.sh"],
            env=environment(project),
            stderr=subprocess.PIPE,
            text=True,
        )

    pair = [start(), start()]
    errors = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert sorted(error.count("ready") for error in errors) == [0, 1]
    assert len((project / "uv.log").read_text().splitlines()) == 2
