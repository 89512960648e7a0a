import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from tiny import tiny_run
from traitlets.config import PyFileConfigLoader

from recsys.online.valkey import free_port

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "nbs/guide.ipynb"
CONFIGURATION = ROOT / "nbs/jupyter_server_config.py"
NOTEBOOKS = [GUIDE, *sorted((ROOT / "nbs").glob("[0-9]*/*.ipynb"))]


class NotebookServer:
    "Runs notebooks one after the other; see `notebook_server.py`."

    def __init__(self):
        command = [sys.executable, str(ROOT / "tests/notebook_server.py")]
        env = {**os.environ, "MPLBACKEND": "agg"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, text=True
        )

    def run(self, notebook, log, environment):
        "Run a notebook with additional environment variables; return its exit code."
        order = {"notebook": str(notebook), "log": str(log), "environment": environment}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture(scope="module")
def notebook_server():
    server = NotebookServer()
    yield server
    server.close()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_notebook_runs(notebook, notebook_server, tmp_path):
    "Run every cell of a notebook in order, as `nbdev_test` does."
    environment = {}
    if (
        "ensure(" in notebook.read_text()
        and "default_exp core.pipeline" not in notebook.read_text()
    ):
        environment["RECSYS_OUTPUTS"] = str(tiny_run(tmp_path / "outputs"))
    log = tmp_path / "log"
    code = notebook_server.run(notebook, log, environment)
    printed = log.read_text(errors="replace")
    assert code == 0, f"{notebook.name} ended with exit code {code}:\n{printed[-8000:]}"
    assert "Success" in printed, f"nbdev_test ran nothing of {notebook.name}:\n{printed}"


def test_a_notebook_that_fails_is_told_from_one_that_runs(notebook_server, tmp_path):
    good, bad = tmp_path / "good.ipynb", tmp_path / "bad.ipynb"
    for path, source in ((good, "assert 1 + 1 == 2"), (bad, "assert 1 + 1 == 3")):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, path)
    assert notebook_server.run(bad, tmp_path / "log", {}) == 1
    assert "AssertionError" in (tmp_path / "log").read_text()
    assert notebook_server.run(good, tmp_path / "log", {}) == 0


@pytest.fixture
def jupyter_server(tmp_path):
    "JupyterLab with the settings of `make lab` on copies of a notebook and the guide: its address."
    notebook = ROOT / "nbs/3_recommend/03_rerank.ipynb"
    shutil.copy(notebook, tmp_path / "rerank.ipynb")
    for file in (GUIDE, CONFIGURATION):
        shutil.copy(file, tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--config", str(tmp_path / CONFIGURATION.name)]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--no-browser"]
    command += [f"--ServerApp.root_dir={tmp_path}", "--allow-root", "--IdentityProvider.token="]
    command += ["--ServerApp.disable_check_xsrf=True"]
    url = f"http://127.0.0.1:{port}"
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            wait_for(f"{url}/api", process)
            yield url, tmp_path / "rerank.ipynb", notebook
        finally:
            process.terminate()
            process.wait(60)


def wait_for(url, process, seconds=180):
    "Wait until a server answers."
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"{url} did not answer (exit code {process.poll()})")


def as_jupyterlab_saves(content):
    "Add what JupyterLab adds when a person has run a notebook and saves it."
    content["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    content["metadata"]["language_info"] = {"name": "python", "version": "3.11.9"}
    for i, cell in enumerate(content["cells"]):
        cell["metadata"]["editable"] = True
        if cell["cell_type"] == "code":
            cell["execution_count"] = i
            cell["metadata"]["execution"] = {"shell.execute_reply": "2026-01-01T00:00:00Z"}
    return content


def test_saving_in_jupyterlab_changes_no_metadata(jupyter_server):
    url, saved, original = jupyter_server
    address = f"{url}/api/contents/{saved.name}"
    content = json.load(urllib.request.urlopen(address))["content"]
    body = {"type": "notebook", "format": "json", "content": as_jupyterlab_saves(content)}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="PUT")
    assert urllib.request.urlopen(request).status == 200
    assert saved.stat().st_mtime > original.stat().st_mtime
    assert saved.read_bytes() == original.read_bytes()


def links_of(notebook):
    "Return the targets of the links in a notebook's prose."
    cells = nbformat.read(notebook, 4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.findall(r"\]\(([^)]+)\)", prose)


def test_jupyterlab_opens_with_the_guide(jupyter_server):
    url = jupyter_server[0]
    opened = urllib.request.urlopen(url)
    assert opened.url == f"{url}/lab/tree/{GUIDE.name}"
    assert f'"treePath": "{GUIDE.name}"' in opened.read().decode()
    content = json.load(urllib.request.urlopen(f"{url}/api/contents/{GUIDE.name}"))
    assert content["content"]["cells"][0]["source"].startswith("# Guide to the notebooks")


@pytest.mark.parametrize(
    "root, opened",
    [
        ("nbs", "/lab/tree/guide.ipynb"),  # of `make lab`
        (".", "/lab/tree/nbs/guide.ipynb"),  # of the server on a cluster, below its base URL
        ("tests", None),  # the guide lies outside
    ],
)
def test_the_guide_s_address_counts_from_the_server_s_root(root, opened, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["jupyter-lab", f"--ServerApp.root_dir={root}"])
    settings = PyFileConfigLoader(CONFIGURATION.name, str(CONFIGURATION.parent)).load_config()
    assert settings.get("LabApp", {}).get("default_url") == opened


def test_the_guide_leads_to_notebooks_of_every_room():
    links = links_of(GUIDE)
    missing = [link for link in links if not (GUIDE.parent / link).is_file()]
    assert missing == []
    rooms = {path.name for path in GUIDE.parent.glob("[0-9]_*")}
    assert {link.partition("/")[0] for link in links} == rooms
