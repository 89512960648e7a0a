"""Every command that the written pages show is one that the command line understands, and every
link leads somewhere, in the repository too.
"""

import re
import shlex
from pathlib import Path

import pytest
import typer

from recsys.core.params import PARAMS, Params
from recsys.operate.cli import app
from recsys.operate.cli_app import parse_sets

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path for room in ("tutorials", "howto", "concepts") for path in (DOCS / room).rglob("*.md")
)
BLOCK = re.compile(r"^( *)```+ *(\w*)\n(.*?)^\1```+ *$", re.S | re.M)
WRITTEN_BY_READERS = ("mine.yaml", "FILE")  # params files that a page tells its reader to write
LINE_WIDTH = 80  # columns of a code block


def name_of(page):
    return str(page.relative_to(DOCS))


def code_lines(page):
    "Return the lines of a page's code blocks, those that end with a backslash joined."
    for block in BLOCK.finditer(page.read_text()):
        yield from block[3].replace("\\\n", " ").splitlines()


def command_words(text):
    "Return the words behind `recsys` of a line that is a command, None for any other line."
    words = shlex.split(re.sub(r"^\$ ", "", text.strip()), comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # a variable of the environment
        words = words[1:]
    return words[1:] if words and words[0] == "recsys" else None


def is_command(text):
    "Tell whether a line of code or a piece of code in a sentence begins with the command."
    return re.match(r"(\$ )?([A-Z_]+=\S* )*recsys [a-z-]", text.strip()) is not None


def parse(words, whole):
    "Let the command line parse words; raise where it refuses them."
    command, context, words = typer.main.get_command(app), None, list(words)
    while hasattr(command, "commands"):
        context = command.make_context("recsys", [], parent=context, resilient_parsing=True)
        name = words.pop(0)
        assert name in command.commands, f"no command {name}"
        command = command.commands[name]
        if not words and hasattr(command, "commands"):
            return
    if whole:
        found = command.make_context(command.name, words, parent=context).params
    else:  # in a sentence an option may be left out
        bare = command.context_class(command, parent=context, info_name=command.name)
        found = command.make_parser(bare).parse_args(words)[0]
    given = [*(found.get("sets") or ()), *(found.get("change") or ())]
    if whole:
        Params(parse_sets(given), source="--set")
    names = [assignment.partition("=")[0] for assignment in given]
    assert set(names) <= set(PARAMS), f"no parameter among {names}"
    file = found.get("params")
    if file and Path(file).name not in WRITTEN_BY_READERS:
        assert (ROOT / file).is_file(), f"no file {file}"


def refusal(words, whole=True):
    "Return why the command line refuses words; empty where it takes them."
    try:
        parse(words, whole)
    except Exception as error:  # click's errors, and the assertions above
        return getattr(error, "message", "") or str(error) or repr(error)
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_code_blocks_are_understood(page):
    wrong = {}
    for line in code_lines(page):
        if is_command(line) and (why := refusal(command_words(line))):
            wrong[line] = why
    assert wrong == {}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_sentences_are_understood(page):
    text = BLOCK.sub("", page.read_text())
    wrong = {}
    for code in re.findall(r"`([^`\n]+)`", text):
        if is_command(code) and (why := refusal(command_words(code), whole=False)):
            wrong[code] = why
    assert wrong == {}


def test_a_wrong_command_is_noticed():
    "The check itself: an option, a command, a parameter and a file that do not exist."
    assert refusal(["run", "--params", "params/small.yaml", "--set", "DLRM_DIM=8"]) == ""
    assert "--parameters" in refusal(["run", "--parameters", "params/small.yaml"])
    assert "--parameters" in refusal(["run", "--parameters", "x"], whole=False)
    assert "no command train" in refusal(["train"])
    assert "DLRM_SIZE" in refusal(["run", "--params", "params/small.yaml", "--set", "DLRM_SIZE=8"])
    assert "DLRM_DIM" in refusal(["run", "--params", "params/small.yaml", "--set", "DLRM_DIM=x"])
    assert "no file" in refusal(["run", "--params", "params/none.yaml"])
    assert "params" in refusal(["run"]) and refusal(["run"], whole=False) == ""
    assert "--run" in refusal(["serve", "--run"])


def test_tutorials_show_commands():
    for page in PAGES:
        if page.parent.name == "tutorials":
            assert sum(map(is_command, code_lines(page))) >= 3, page.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_blocks_fit_the_column(page):
    blocks = [match[3] for match in BLOCK.finditer(page.read_text()) if match[2] != "mermaid"]
    lines = "".join(blocks).splitlines()
    assert [line for line in lines if len(line) > LINE_WIDTH] == []


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.M))
        assert named <= targets, page.name


GENERATED = (
    "alarms benchmarks commands evaluation failures fallbacks parameters request run".split()
)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def test_links_lead_somewhere_in_the_repository():
    "Pages that the docs site generates have no file here; all other targets are files."
    dead, links = [], 0
    for page in sorted(DOCS.rglob("*.md")):
        for target in LINK.findall(page.read_text()):
            links += 1
            to_other_host = re.match(r"[a-z]+:", target)
            is_generated = Path(target).parent in (Path("."), Path("..")) and (
                Path(target).stem in GENERATED
            )
            if not (to_other_host or is_generated or (page.parent / target).exists()):
                dead.append(f"{name_of(page)}: {target}")
    assert dead == [] and links > 100
