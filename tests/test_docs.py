"""The docs site as a reader gets it: a site of some notebooks built once, the Markdown of all of
them, nothing asked of any network.
"""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from lighthouse import lighthouse_faults

import recsys.operate.docs as docs
import recsys.operate.docs_notebooks as docs_notebooks
import recsys.operate.docs_pages as docs_pages
from recsys.core.params import PARAMS, RecsysError, default_params
from recsys.core.stages import DAILY, FULL
from recsys.operate.cli import app
from recsys.operate.docs_api import api_names
from recsys.operate.docs_notebooks import modules, notebook_name, notebooks
from recsys.recommend.fallbacks import REQUEST_STEPS
from recsys.recommend.request import REQUEST_RULES

ROOT = Path(__file__).parents[1]
EXECUTED = "0_core/00_params"  # the notebook that the site shows with results
pytestmark = pytest.mark.xdist_group("docs")  # one worker, so that the site is built once


def named_notebooks():
    "Return the notebooks that diagrams and written pages link to, and the executed one."
    text = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    text += docs.fallback_page() + docs.alarm_page()
    linked = re.findall(r"nb/(\d_\w+/\d\d_\w+)\.md", docs.as_site_links(text))
    return {EXECUTED, *linked, *(stage.notebook for stage in (*FULL, *DAILY))}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A site of a few notebooks, of a run with one executed notebook, a record and a benchmark."
    outputs = tmp_path_factory.mktemp("outputs")
    write_results(outputs)
    shown = [path for path in notebooks() if notebook_name(path) in named_notebooks()]
    assert 10 < len(shown) < 80
    said = []
    with pytest.MonkeyPatch.context() as patch:
        for module in (docs_notebooks, docs_pages):
            patch.setattr(module, "notebooks", lambda: shown)
        for function in (modules, api_names):
            function.cache_clear()
        docs.build_docs(
            default_params(OUTPUTS=str(outputs)), outputs / "site", app, 0, said.append
        )  # mkdocs --strict and check_site are part of it
    for function in (modules, api_names):
        function.cache_clear()
    assert said[-1].startswith(f"1 of {len(shown)} notebooks with results")
    return outputs / "site"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    "The Markdown of all pages."
    outputs = tmp_path_factory.mktemp("written")
    params = default_params(OUTPUTS=str(outputs))
    docs.write_pages(params, outputs / "pages", docs_notebooks.collect(params), app)
    return outputs / "pages"


def write_results(outputs):
    "Write what a run and a benchmark leave: an executed notebook, metrics, a record, times."
    run = outputs / "tiny"
    notebook = json.loads((ROOT / f"nbs/{EXECUTED}.ipynb").read_text())
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    data = {"image/png": PICTURE, "text/plain": ["<Figure>"]}
    cell["outputs"] = [
        dict(output_type="stream", name="stdout", text=["a printed result\n"]),
        dict(output_type="display_data", data=data, metadata={}),
        dict(output_type="display_data", data={"text/markdown": DIAGRAM}, metadata={}),
    ]
    file = run / f"notebooks/{EXECUTED}.ipynb"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(notebook))
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


DIAGRAM = "```mermaid\nflowchart LR\n  shown --> drawn\n```"
PICTURE = "".join(  # one pixel, PNG
    [
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4",
        "DwABAQEAG7buVgAAAABJRU5ErkJggg==",
    ]
)


def read(site, name):
    return (site / name).read_text(encoding="utf-8")


def test_every_notebook_and_module_has_its_page_and_source(pages):
    menu = json.dumps(docs.menu())
    for f in notebooks():
        name = notebook_name(f)
        assert f"[{name}.ipynb]({f.stem}.ipynb){{ download }}" in read(pages, f"nb/{name}.md")
        assert (pages / f"nb/{name}.ipynb").read_bytes() == f.read_bytes()
        assert f'"nb/{name}.md"' in menu
    for module in modules():
        assert f"\n::: recsys.{module}\n" in read(pages, f"api/{module}.md")
        source = ROOT / "recsys" / f"{module.replace('.', '/')}.py"
        assert (pages / f"api/{module}.py").read_bytes() == source.read_bytes()
        assert f'"api/{module}.md"' in menu
    exported = [f for f in (ROOT / "recsys").rglob("*.py") if not f.name.startswith("_")]
    assert len(modules()) == len(exported)


def test_every_link_of_every_page_leads_to_a_page(pages):
    "The strict build follows the links of the pages that it builds; this looks at all pages."
    symbols = set(api_names().values())
    for page in pages.rglob("*.md"):
        text = re.sub(r"(?ms)^ *(```+).*?^ *\1 *$", "", page.read_text())
        text = re.sub(r"`[^`\n]*`", "code", text)
        for target in re.findall(r"\]\(([^()\s]+)\)", text):
            if not re.match(r"[a-z]+:|#", target):
                assert (page.parent / target.partition("#")[0]).is_file(), f"{page}: {target}"
        names = re.findall(r"\]\[(recsys[\w.]+)\]", text)
        assert set(names) <= symbols, page
    assert sum("][recsys." in page.read_text() for page in pages.rglob("*.md")) > 20


def test_built_pages_have_their_sources(site):
    for name in named_notebooks():
        stem = name.rpartition("/")[2]
        page = read(site, f"nb/{name}.html")
        assert re.search(rf'<a[^>]* href="{stem}\.ipynb"[^>]*>', page)
        assert "download" in re.search(rf'<a[^>]* href="{stem}\.ipynb"[^>]*>', page)[0]
        assert (site / f"nb/{name}.ipynb").is_file()
    assert 'href="core.params.py"' in read(site, "api/core.params.html")


def test_results_stand_where_they_were_made_and_nowhere_else(site):
    shown = read(site, f"nb/{EXECUTED}.html")
    assert "Executed by run tiny" in shown and "a printed result" in shown
    (picture,) = re.findall(r'src="(figures/[^"]+\.png)"', shown)
    assert (site / "nb/0_core" / picture).is_file() and "&lt;Figure" not in shown
    diagrams = re.findall(r'<pre class="mermaid">(.*?)</pre>', shown, flags=re.S)
    assert any("shown --&gt; drawn" in diagram for diagram in diagrams)
    other = read(site, f"nb/{FULL[0].notebook}.html")
    assert "Without results: not executed for this site." in other and 'src="figures/' not in other


@pytest.mark.needs("chromium")
def test_code_stands_with_the_file_it_goes_into_and_fits_the_column(site, chromium):
    page = read(site, f"nb/{EXECUTED}.html")
    assert '<span class="filename">recsys/core/params.py</span>' in page
    assert "default_exp" not in page
    tab = chromium.new_page()
    for width in (1280, 1600):
        tab.set_viewport_size(dict(width=width, height=900))
        for name in (f"nb/{EXECUTED}", "api/core.params"):
            tab.goto(f"file://{site}/{name}.html")
            widths = tab.eval_on_selector_all(
                ".md-content pre > code", "blocks => blocks.map(b => b.scrollWidth - b.clientWidth)"
            )
            assert len(widths) > 5 and max(widths) <= 1, f"{name} at {width} px"
    tab.close()


def test_formulas_of_all_notebooks_are_mathml(pages):
    n_formulas = 0
    for page in (pages / "nb").rglob("*.md"):
        prose = "".join(docs_pages.CODE.split(page.read_text())[::2])
        n_formulas += prose.count("<math ")
        assert not docs_pages.FORMULA.search(prose), page
        assert not re.search(r"<m\w+[^<>]*>[^<>]*\\", prose), f"{page}: a command is left as text"
    assert n_formulas > 300


@pytest.mark.needs("chromium")
def test_formulas_are_drawn_in_their_lines_and_on_lines_of_their_own(site, chromium):
    "Each sentence stays one paragraph, a fraction is higher than a line, and no TeX is shown."
    tab = chromium.new_page()
    tab.goto(f"file://{site}/nb/3_recommend/03_rerank.html")
    found = tab.evaluate(
        """[...document.querySelectorAll(".md-content math")].map(m => {
            const box = m.getBoundingClientRect(), around = m.closest("p, li, td, blockquote");
            return {display: m.getAttribute("display"), width: box.width, height: box.height,
                    raw: m.closest("pre, code") !== null, sentence: around && around.innerText,
                    fraction: m.querySelector("mfrac") !== null};
        })"""
    )
    text = tab.inner_text(".md-content")
    tab.close()
    assert len(found) > 10 and {formula["display"] for formula in found} == {"inline", "block"}
    for formula in found:
        assert formula["width"] > 2 and formula["height"] > 5 and not formula["raw"], formula
        assert formula["sentence"], "a formula outside of its paragraph"
    assert min(f["height"] for f in found if f["fraction"] and f["display"] == "block") > 25
    assert "\\frac" not in text and "$$" not in text


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
    assert 'id="recsys.core.params.load_params"' in core
    assert "KEY=VALUE texts that win over the file" in core  # a comment on a parameter
    assert "Attributes:" in core


def test_names_in_prose_lead_to_their_entries(site):
    page = read(site, f"nb/{EXECUTED}.html")
    assert 'href="../../api/core.params.html#recsys.core.params.' in page


def test_the_request_has_one_table(site):
    page = read(site, "request.html")
    rows = re.findall(r"<tr>.*?</tr>", page, flags=re.S)
    for name, rule in REQUEST_RULES.items():
        (row,) = [row for row in rows if f"<td><code>{name}</code></td>" in row]
        words = re.sub(r"&\w+;|[^\w ]", "", rule.expected).split()
        assert set(words) <= set(re.sub(r"<[^>]*>|&\w+;|[^\w ]", " ", row).split()), name
    assert f"<code>K</code> of the run ({PARAMS['K'].default})" in page


def test_diagrams_show_every_stage(site):
    page = read(site, "how-it-works.html")
    blocks = re.findall(r'<pre class="mermaid">(.*?)</pre>', page, flags=re.S)
    assert len(blocks) == 3
    for stages, block in zip((FULL, DAILY), blocks[1:]):
        for stage in stages:
            assert f"<b>{stage.name}</b>" in unescape(block)
            assert f'click {stage.name} "nb/{stage.notebook}.html"' in unescape(block)
    rows = re.findall(r"<tr>.*?</tr>", page, flags=re.S)
    assert all(any(f"<td>{s.name}</td>" in row for row in rows) for s in FULL)
    assert "item_features + dlrm, 0.25 ms" in blocks[0]


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def site_address(site):
    "Serve the site on this machine; yield its address."
    handler = partial(SilentHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class SilentHandler(SimpleHTTPRequestHandler):
    "Serves files of a folder and prints nothing."

    def log_message(self, *ignored):
        pass


@pytest.mark.needs("chromium", "node", "npm")
@pytest.mark.parametrize("page", ["index.html", f"nb/{EXECUTED}.html", "commands.html"])
def test_lighthouse_finds_nothing(site_address, page, tmp_path):
    assert lighthouse_faults(site_address + page, tmp_path) == {}


OPEN_SHADOWS = """
const attach = Element.prototype.attachShadow;
Element.prototype.attachShadow = function () { return attach.call(this, {mode: "open"}); };
"""  # the theme hides what it draws in closed ones


@pytest.mark.needs("chromium")
def test_diagrams_are_drawn_without_a_network(site, chromium):
    "Every diagram of every page is drawn from the site's own files, and a box leads to its page."
    page, asked = chromium.new_page(), []
    page.add_init_script(OPEN_SHADOWS)
    page.on("request", lambda request: asked.append(request.url))
    with_diagrams = [f for f in site.rglob("*.html") if '<pre class="mermaid">' in f.read_text()]
    assert len(with_diagrams) > 3
    for file in with_diagrams:
        n_diagrams = file.read_text().count('<pre class="mermaid">')
        page.goto(f"file://{file}")
        drawn = "document.querySelectorAll('div.mermaid').length"
        page.wait_for_function(f"{drawn} === {n_diagrams}", timeout=60_000)
        text = page.evaluate(
            "[...document.querySelectorAll('div.mermaid')].map(d => d.shadowRoot.textContent)"
        )
        assert all(len(part) > 20 for part in text) and "Syntax error" not in str(text), file
        if file.name == "how-it-works.html":
            assert all(stage.name in text[1] for stage in FULL)
            links = page.evaluate(
                "[...document.querySelectorAll('div.mermaid')[1].shadowRoot.querySelectorAll('a')]"
                ".map(a => a.getAttribute('xlink:href') || a.getAttribute('href'))"
            )
            assert sorted(links) == sorted(f"nb/{stage.notebook}.html" for stage in FULL)
    page.close()
    assert [url for url in asked if not url.startswith((f"file://{site}/", "data:"))] == []


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
        if page and '<pre class="mermaid">' in text:  # the theme loads none where this one is
            assert re.search(r'<script src="[./]*javascripts/mermaid\.min\.js"></script>', text)
        assert not any('data-md-component="source"' in tag for tag in tags if page)
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
    for phrase, page in {
        "cold start": "concepts/cold-start.html",
        "add a stage": "howto/add-a-stage.html",
        "contribute": "howto/contribute.html",
    }.items():
        assert page in found(phrase), phrase
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
    def write_one_page(params, folder, found, command_line):
        folder.mkdir()
        (folder / "index.md").write_text("[x](gone.md)")

    def small_config(site, source):
        theme = dict(name="material", font=False)
        return json.dumps(
            dict(site_name="x", theme=theme, docs_dir=str(source), site_dir=str(site))
        )

    monkeypatch.setattr(docs, "write_pages", write_one_page)
    monkeypatch.setattr(docs, "site_config", small_config)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/old.html").write_text("old")
    with pytest.raises(RecsysError, match="gone.md"):
        docs.build_docs(default_params(OUTPUTS=str(tmp_path)), tmp_path / "site", app, 0, print)
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
