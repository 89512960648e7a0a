import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tiny import tiny_run

from recsys.online.valkey import free_port

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*/*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_notebook_runs(notebook, tmp_path):
    "Run every cell of a notebook in order, as `nbdev_test` does."
    command = [
        str(Path(sys.executable).with_name("nbdev_test")),
        "--path",
        str(notebook),
        "--n_workers",
        "0",
    ]
    env = {**os.environ, "MPLBACKEND": "agg"}
    if (
        "ensure(" in notebook.read_text()
        and "default_exp core.pipeline" not in notebook.read_text()
    ):
        env["RECSYS_OUTPUTS"] = str(tiny_run(tmp_path / "outputs"))
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, (
        f"{notebook.name} failed:\n{run.stdout[-2000:]}\n{run.stderr[-6000:]}"
    )
    assert "Success" in run.stdout, f"nbdev_test ran nothing of {notebook.name}:\n{run.stdout}"


@pytest.fixture
def jupyter_server(tmp_path):
    "A Jupyter server with the settings of `make lab` on a copy of one notebook: its address."
    notebook = ROOT / "nbs/3_recommend/02_rerank.ipynb"
    shutil.copy(notebook, tmp_path / "rerank.ipynb")
    port = free_port()
    command = [sys.executable, "-m", "jupyter_server", "--config", "nbs/jupyter_server_config.py"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--no-browser"]
    command += [f"--ServerApp.root_dir={tmp_path}", "--allow-root", "--IdentityProvider.token="]
    command += ["--ServerApp.disable_check_xsrf=True"]
    url = f"http://127.0.0.1:{port}/api"
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            wait_for(url, process)
            yield url, tmp_path / "rerank.ipynb", notebook
        finally:
            process.terminate()
            process.wait(20)


def wait_for(url, process, seconds=60):
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
    address = f"{url}/contents/{saved.name}"
    content = json.load(urllib.request.urlopen(address))["content"]
    body = {"type": "notebook", "format": "json", "content": as_jupyterlab_saves(content)}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="PUT")
    assert urllib.request.urlopen(request).status == 200
    assert saved.stat().st_mtime > original.stat().st_mtime
    assert saved.read_bytes() == original.read_bytes()
