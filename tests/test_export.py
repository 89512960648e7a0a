import ast
import configparser
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import tomllib
import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted([*(ROOT / "nbs").glob("*.ipynb"), *(ROOT / "nbs").glob("*/*.ipynb")])
# what a request passes through, and what starts and watches it
SERVING = [
    "core.params",
    "core.runs",
    "core.clock",
    "data.features",
    "data.asof",
    "data.interaction",
    "data.additions",
    "models.index",
    "recommend.request",
    "recommend.bloom",
    "recommend.rerank",
    "recommend.snapshot",
    "recommend.bundle",
    "recommend.users",
    "recommend.fallbacks",
    "recommend.candidates",
    "recommend.recommender",
    "recommend.explain",
    "evaluate.metrics",
    "online.valkey",
    "online.seen",
    "online.online_store",
    "online.events",
    "online.popularity",
    "online.worker",
    "serve.repository",
    "serve.triton_process",
    "serve.server",
    "serve.member",
    "serve.tensors",
    "serve.step_members",
    "serve.response_members",
    "serve.ensemble",
    "serve.serving",
    "serve.api",
    "serve.catalogue",
    "serve.triton_client",
    "serve.backends",
    "serve.transport",
    "serve.page_routes",
    "serve.shop_routes",
    "serve.gateway",
    "serve.window",
    "serve.replicas",
    "operate.bundle_store",
    "operate.promote",
    "operate.live_server",
]
TRAINING = {"tensorflow", "merlin", "nvtabular", "feast", "pandas", "pyarrow"}


def copy_of_tree(to):
    "Copy what nbdev reads, without the generated modules, into folder `to`."
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, to)
    shutil.copytree(ROOT / "nbs", to / "nbs", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    (to / "recsys").mkdir()


def modules(folder):
    package = folder / "recsys"
    files = sorted(package.rglob("*.py"))
    return {str(path.relative_to(package)): path.read_text() for path in files}


def test_exporting_again_changes_nothing(tmp_path):
    copy_of_tree(tmp_path)
    shutil.copy(ROOT / "recsys/__init__.py", tmp_path / "recsys")
    subprocess.run([BIN / "nbdev_export"], cwd=tmp_path, check=True, capture_output=True)
    fresh, committed = modules(tmp_path), modules(ROOT)
    assert sorted(fresh) == sorted(committed), (
        "recsys/ has modules without a notebook, or lacks some: run `make export`"
    )
    assert [name for name in fresh if fresh[name] != committed[name]] == [], (
        "differ from their notebooks: run `make export`"
    )
    assert (tmp_path / "pyproject.toml").read_text() == (ROOT / "pyproject.toml").read_text()


def test_cleaning_again_changes_nothing(tmp_path):
    copy_of_tree(tmp_path)
    subprocess.run([BIN / "nbdev_clean"], cwd=tmp_path, check=True, capture_output=True)
    changed = [
        path.name
        for path in NOTEBOOKS
        if (tmp_path / path.relative_to(ROOT)).read_bytes() != path.read_bytes()
    ]
    assert changed == [], "not clean: run `make export`"


def test_cleaning_keeps_the_parameters_tag_and_drops_the_rest(tmp_path):
    copy_of_tree(tmp_path)
    cell = dict(
        cell_type="code",
        id="a",
        source=["K = 10"],
        outputs=[],
        execution_count=7,
        metadata={"tags": ["parameters"], "collapsed": True},
    )
    notebook = dict(
        cells=[cell],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "mine", "language": "python"},
            "x": 1,
        },
        nbformat=4,
        nbformat_minor=5,
    )
    path = tmp_path / "nbs/99_try.ipynb"
    path.write_text(json.dumps(notebook))
    subprocess.run(
        [BIN / "nbdev_clean", "--fname", path], cwd=tmp_path, check=True, capture_output=True
    )
    cleaned = json.loads(path.read_text())
    assert cleaned["cells"][0]["metadata"] == {"tags": ["parameters"]}
    assert cleaned["cells"][0]["execution_count"] is None
    assert set(cleaned["metadata"]) == {"kernelspec"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs(path):
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    dirty = [
        i for i, cell in enumerate(code) if cell["outputs"] or cell["execution_count"] is not None
    ]
    assert dirty == [], f"code cells {dirty} of {path.name} carry outputs: run `make export`"


@pytest.mark.skipif(not (ROOT / "nbs/index.ipynb").exists(), reason="no index notebook")
def test_readme_is_the_index_notebook(tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "jupyter",
            "nbconvert",
            "--to",
            "markdown",
            "--output-dir",
            tmp_path,
            "--output",
            "README",
            ROOT / "nbs/index.ipynb",
        ],
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text(), (
        "run `make export`"
    )


@pytest.mark.parametrize("name", SERVING)
def test_serving_starts_without_the_training_libraries(name):
    code = f"import sys, recsys.{name}; print(*sorted({TRAINING!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [], f"recsys.{name} imports {run.stdout}"


def test_versions_agree():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    exported = re.search(r'__version__ = "(.+)"', (ROOT / "recsys/__init__.py").read_text())[1]
    assert settings["DEFAULT"]["version"] == project["version"] == exported
    assert project["requires-python"].startswith(f">={settings['DEFAULT']['min_python']},")


def test_what_is_said_of_the_project_agrees():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    stated = settings["DEFAULT"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    notice = (ROOT / "NOTICE").read_text()
    assert [author["name"] for author in project["authors"]] == [stated["author"]]
    assert [author["name"] for author in citation["authors"]] == [stated["author"]]
    assert stated["copyright"] in notice and stated["title"] == citation["title"]
    assert stated["license"] == "apache2" and "Apache License, Version 2.0" in notice
    assert project["license"] == citation["license"] == "Apache-2.0"
    assert project["version"] == str(citation["version"])
    assert project["description"] == stated["description"]
    assert citation["abstract"].startswith(stated["description"])
    assert set(project["keywords"]) == set(stated["keywords"].split())
    addresses = [*project.get("urls", {}).values(), *re.findall(r"https?://\S+", notice)]
    assert not any("example" in address for address in addresses)


def test_no_machine_path_or_secret_is_committed():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    # a home or work folder, this checkout's own path, a registry's host, keys of AWS and GitHub,
    # private keys
    wrong = re.compile(
        r"/(?:root|home|Users)/[\w.]+/|/work/(?:main|shared)\b|\bfile:///\w|pypi\.org|pythonhosted|registry\.npmjs|"
        r"\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{30,}|BEGIN [A-Z ]*PRIVATE KEY"
        + ("|" + re.escape(str(ROOT)) + r"\b" if len(ROOT.parts) > 3 else "")
    )
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path != Path(__file__) and path.is_file():
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                found += [f"{name}:{number}: {match[0]}" for match in wrong.finditer(line)]
    assert found == []


def test_every_import_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[<=>; ]", line)[0].lower() for line in project["dependencies"]}
    extras = {
        name: {re.split("[<=>]", line)[0] for line in lines}
        for name, lines in project["optional-dependencies"].items()
    }
    distributions = packages_distributions()
    known = set(sys.stdlib_module_names) | {"recsys"}
    undeclared = set()
    for path in (ROOT / "recsys").rglob("*.py"):
        own = dict(docs="docs", explore="dev", tracking="mlflow").get(path.stem.partition("_")[0])
        allowed = declared | extras.get(own, set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.split(".")[0] for name in names} - known:
                owners = {owner.lower().replace("_", "-") for owner in distributions.get(name, [])}
                undeclared |= (
                    set() if owners & allowed else {f"{path.name}: {name} of {sorted(owners)}"}
                )
    assert undeclared == set()
