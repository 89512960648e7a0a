"""The docs site as a reader gets it: built once from a small outputs folder, nothing asked of any
network.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.core.params import PARAMS, default_params
from recsys.core.stages import DAILY, FULL
from recsys.operate.cli import app
from recsys.operate.docs import build_docs, execute, modules, notebook_name, notebooks
from recsys.recommend.fallbacks import REQUEST_STEPS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("docs")  # one worker, so that the site is built once


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A site of a run with one executed notebook, a record, metrics and a benchmark."
    outputs = tmp_path_factory.mktemp("outputs")
    run = outputs / "tiny"
    drawn = next(f for f in notebooks() if "def request_drawing" in f.read_text())
    assert execute(drawn, run / "notebooks" / f"{notebook_name(drawn)}.ipynb", 120) == ""
    rows = [
        dict(system=s, segment="all", metric="ndcg@10", value=v, low=v - 0.01, high=v + 0.01, n=500)
        for s, v in (("popularity", 0.0815), ("full", 0.2112))
    ]
    record = dict(
        timings=dict(total=12.5),
        peak_memory_mib=321,
        notes=["a note of the run"],
        rows=dict(cases=500),
        metrics={},
        figures=[],
    )
    (run / "evaluate").mkdir(parents=True)
    (run / "evaluate/metrics.json").write_text(json.dumps(rows))
    (run / "evaluate/stage.json").write_text(json.dumps(record))
    (outputs / "bench.json").write_text(
        json.dumps(
            {
                "one client": {
                    "stages_p50_ms": {"in_process": dict.fromkeys(REQUEST_STEPS, 0.125)}
                },
                "memory, MiB": {"worker": 239},
            }
        )
    )
    said = []
    build_docs(
        default_params(OUTPUTS=str(outputs)), outputs / "site", app, 0, said.append
    )  # mkdocs --strict and check_site are part of it
    assert said[-1].startswith(f"1 of {len(notebooks())} notebooks with results")
    return outputs / "site"


def read(site, name):
    return (site / name).read_text(encoding="utf-8")


def test_every_notebook_and_module_has_its_page_and_source(site):
    for f in notebooks():
        name = notebook_name(f)
        assert f'href="{f.stem}.ipynb" download' in read(site, f"nb/{name}.html")
        assert (site / f"nb/{name}.ipynb").read_bytes() == f.read_bytes()
    for module in modules():
        assert f"recsys.{module}" in read(site, f"api/{module}.html")
        source = ROOT / "recsys" / f"{module.replace('.', '/')}.py"
        assert (site / f"api/{module}.py").read_bytes() == source.read_bytes()
    exported = [f for f in (ROOT / "recsys").rglob("*.py") if not f.name.startswith("_")]
    assert len(modules()) == len(exported)


def test_results_stand_where_they_were_made_and_nowhere_else(site):
    executed = next(notebook_name(f) for f in notebooks() if "def request_drawing" in f.read_text())
    shown = read(site, f"nb/{executed}.html")
    assert "Executed by run tiny." in shown and 'src="figures/' in shown
    other = read(site, f"nb/{notebook_name(notebooks()[0])}.html")
    assert "Without results: not executed for this site." in other and 'src="figures/' not in other


def test_tables_come_from_the_files(site):
    evaluation = read(site, "evaluation.html")
    assert "0.2112 (0.2012 to 0.2212)" in evaluation and evaluation.index(
        ">full<"
    ) < evaluation.index(">popularity<")
    assert "239" in read(site, "benchmarks.html") and "There is no measurement yet" in read(
        site, "benchmarks.html"
    )  # no prove.json
    assert "a note of the run" in read(site, "run.html") and "321" in read(site, "run.html")


def test_reference_is_whole(site):
    parameters, commands = read(site, "parameters.html"), read(site, "commands.html")
    assert all(f"<code>{name}</code>" in parameters for name in PARAMS)
    import typer

    assert all(f'id="{name}"' in commands for name in typer.main.get_command(app).commands)
    core = read(site, "api/core.params.html")
    assert 'id="load_params"' in core and "KEY=VALUE texts that win over the file" in core


def test_drawings_show_every_stage(site):
    page = read(site, "how-it-works.html")
    assert all(
        page.count(f">{s.name}</text>") >= 1 and f'href="nb/{s.notebook}.html"' in page
        for s in (*FULL, *DAILY)
    )
    rows = re.findall(r"<tr>.*?</tr>", page, flags=re.S)
    assert all(any(f"<td>{s.name}</td>" in row for row in rows) for s in FULL)
    assert "item_features + dlrm, 0.25 ms" in page


def test_nothing_is_asked_of_another_host_and_no_page_is_big(site):
    """Every link was followed by the build itself; this looks with other eyes at what a browser
    would load.
    """
    for f in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text, page = f.read_text(encoding="utf-8"), f.suffix == ".html"
        tags = re.findall(r"<[a-z][^<>]*>|<style.*?</style>", text, flags=re.S) if page else [text]
        loaded = [
            u
            for tag in tags
            if not tag.startswith("<a ")
            for u in re.findall(
                r"""(?:\bsrc=|\bhref=|url\(|@import )["']?((?:https?:)?//[^"')\s>]+)""", tag
            )
        ]
        assert loaded == [], f"{f.name} asks {loaded}"
        assert not any(
            'class="mermaid"' in tag or 'data-md-component="source"' in tag for tag in tags if page
        )  # what the theme would ask other hosts for
        size = (
            f.stat().st_size
            + sum(
                (f.parent / u).stat().st_size
                for tag in tags
                for u in re.findall(r'<img[^>]* src="([^":]+)"', tag)
            )
            if page
            else 0
        )
        assert size <= 10**6, f"{f.name} has {size:,} bytes"
        assert str(ROOT) not in text


def test_search_knows_the_words(site):
    index = json.loads(read(site, "search/search_index.json"))

    def found(word):
        return {
            d["location"].split("#")[0]
            for d in index["docs"]
            if word in (d["title"] + d["text"]).lower()
        }

    assert (
        "glossary.html" in found("propensity")
        and "parameters.html" in found("ablation_cases")
        and "api/core.params.html" in found("load_params")
    )
    assert read(site, "search/search_index.js").startswith(
        "var __index = "
    )  # search works from disk, too


def test_written_pages_name_only_commands_that_are_there(site):
    import typer

    known = set(typer.main.get_command(app).commands)
    for f in [site / "index.html", site / "glossary.html", *(site / "howto").glob("*.html")]:
        named = set(
            re.findall(
                r"(?m)(?:<code>|^|<span></span><code>)recsys ([a-z][\w-]*)",
                re.sub(r"<a id=\"__codelineno[^>]*></a>", "", f.read_text()),
            )
        )
        if f.stem != "deployment":
            assert named <= known, f"{f.name} names {named - known}"


def test_a_broken_link_stops_the_build_and_keeps_the_old_site(tmp_path, monkeypatch):
    import recsys.operate.docs as docs
    from recsys.core.params import RecsysError

    monkeypatch.setattr(
        docs,
        "write_pages",
        lambda params, folder, found, command_line: [
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            or (folder / name).write_text(text)
            for name, text in (
                ("index.md", "[x](gone.md)"),
                ("javascripts/iframe-worker.js", ""),
                ("stylesheets/extra.css", ""),
            )
        ],
    )
    monkeypatch.setattr(
        docs,
        "site_config",
        lambda site, source: dict(
            site_name="x",
            theme=dict(name="material", font=False),
            docs_dir=str(source),
            site_dir=str(site),
        ),
    )
    (tmp_path / "site").mkdir()
    (tmp_path / "site/old.html").write_text("old")
    with pytest.raises(RecsysError, match="gone.md"):
        build_docs(default_params(OUTPUTS=str(tmp_path)), tmp_path / "site", app, 0, print)
    assert [f.name for f in tmp_path.rglob("*.html")] == ["old.html"]


@pytest.mark.parametrize(
    "args, message", [(["--run", "never-ran"], "no such run"), (["--minutes", "-1"], "--minutes")]
)
def test_mistakes_end_with_one_message(args, message, tmp_path):
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from recsys.operate.cli import main; main()",
            "docs",
            *args,
            "--site",
            str(tmp_path / "site"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (
        run.returncode == 2
        and message in run.stderr
        and "Traceback" not in run.stderr
        and not (tmp_path / "site").exists()
    )
