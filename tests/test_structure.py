"""The plan of the package: rooms in their order, one owner for each public name, notebooks that a
pipeline can run.
"""

import ast
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from recsys.core.keys import PROOF, code_hash, imported, module_file, read_cells
from recsys.core.params import PARAMS
from recsys.core.stages import FINETUNE, FULL

ROOT = Path(__file__).parents[1]
ROOMS = [folder.name.partition("_")[2] for folder in sorted((ROOT / "nbs").glob("[0-9]_*"))]
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]_*/*.ipynb"))
MODULES = [f"{path.parent.name[2:]}.{path.stem[3:]}" for path in NOTEBOOKS]


def imports(module):
    path = module_file(module)
    return imported(str(path), path.stat().st_mtime_ns)


def defined_names(module):
    "Return the public names that a module defines at its top level."
    for node in ast.parse(module_file(module).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def test_every_notebook_makes_the_module_of_its_name():
    assert len(NOTEBOOKS) == len(set(MODULES)) > 50
    for path, module in zip(NOTEBOOKS, MODULES):
        cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
        assert f"# | default_exp {module}" in cells, path.name


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_own_room_and_from_earlier_ones(module):
    room = ROOMS.index(module.split(".")[0])
    upward = [name for name in imports(module) if ROOMS.index(name.split(".")[0]) > room]
    assert upward == []


def test_no_module_imports_itself_through_others():
    def reached(module):
        found, waiting = set(), list(imports(module))
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += imports(name)
        return found

    assert [module for module in MODULES if module in reached(module)] == []


def test_a_public_name_has_one_owner():
    owners = defaultdict(set)
    for module in MODULES:
        for name in defined_names(module):
            if not name.startswith("_"):
                owners[name].add(module)
    assert {name: sorted(where) for name, where in owners.items() if len(where) > 1} == {}


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "core"])
def test_a_room_declares_parameters_that_it_reads_and_imports_nothing_for_that(room):
    declared = ROOT / "recsys" / room / "params.py"
    tree = ast.parse(declared.read_text())
    assert not [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    modules = [path for path in declared.parent.glob("*.py") if path != declared]
    code = "\n".join(path.read_text() for path in modules)
    names = [param.name for param in PARAMS.values() if param.room == room]
    assert names and [name for name in names if not re.search(rf"\b{name}\b", code)] == []


def test_an_entry_of_the_list_of_stages_is_no_part_of_another_stages_key():
    """More memory for a stage, another artefact or one more stage must not run the others again."""
    source = module_file("core.stages").read_text()
    start = source.index("FULL = (") + len("FULL = (")
    edited = {
        "one more": source[:start] + 'Stage("first", "1_data/20_sources", "f"),' + source[start:],
        "resources": source.replace('cpu="4"', 'cpu="16"'),
        "artefact": source.replace('Artefact("baselines.json"), ', ""),
    }
    for what, text in edited.items():
        assert text != source and code_hash(text) == code_hash(source), what
    assert code_hash(source.replace("not stage.online", "stage.online")) != code_hash(source)


@pytest.mark.parametrize("stage", [*FULL, FINETUNE], ids=lambda stage: stage.name)
def test_a_stage_runs_without_its_proofs(stage):
    "What a run executes of a notebook uses no name that only a proof defines."
    import builtins

    known = set(dir(builtins))
    for cell in read_cells(stage.notebook):
        tags = cell["metadata"].get("tags", ())
        if cell["cell_type"] != "code" or PROOF in tags:
            continue
        tree = ast.parse("".join(cell["source"]))
        names = [n for n in ast.walk(tree) if isinstance(n, ast.Name)]
        known |= {n.id for n in names if isinstance(n.ctx, ast.Store)}
        known |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        known |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                known |= {(a.asname or a.name).split(".")[0] for a in node.names}
        top = [
            n.id
            for s in tree.body
            if not isinstance(s, (ast.FunctionDef, ast.ClassDef))
            for n in ast.walk(s)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
        ]
        assert set(top) <= known, set(top) - known


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_proofs_or_part_of_the_run(path):
    """Code that is neither exported nor needed by a run carries the tag that lets a run leave it
    out.
    """
    module = f"{path.parent.name[2:]}.{path.stem[3:]}"
    stages = [s for s in (*FULL, FINETUNE) if s.function.startswith(f"recsys.{module}:")]
    runs = [stage.function.split(":")[1] for stage in stages]
    wrong = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] != "code" or tags or source.startswith("# | "):
            continue
        statements = ast.parse(source).body
        is_import = all(isinstance(s, (ast.Import, ast.ImportFrom)) for s in statements)
        is_setup = "Params.of(globals())" in source
        is_run = any(re.search(rf"\b{run}\((p|params)\)", source) for run in runs)
        if not (is_import or is_setup or is_run):
            wrong.append(source[:60])
    assert wrong == [], f"tag these cells `{PROOF}`"


def fallback_codes(tree):
    "Return the codes that a module's code falls back with; each is written where it is used."
    code_at = dict(attempt=1, note=0, fallback_note=0)  # function -> place of its argument `code`
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).split(".")  # fallbacks.attempt, fallback_note
        if called[-1] in code_at and ("fallbacks" in called or len(called) == 1):
            yield ast.literal_eval(node.args[code_at[called[-1]]])


def test_every_fallback_is_in_the_table_and_every_entry_is_used():
    from recsys.recommend.fallbacks import FALLBACKS

    used = set()
    for module in MODULES:
        if module != "recommend.fallbacks":
            used |= set(fallback_codes(ast.parse(module_file(module).read_text())))
    assert used == set(FALLBACKS)


def words(tree):
    "Return the texts and the names of keyword arguments of a module's code."
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if isinstance(node, ast.keyword):
            yield node.arg


def test_every_alarm_is_raised_somewhere():
    "A code that is not in the table can't be raised; one that nobody raises must not be there."
    from recsys.serve.alarms import ALARMS

    used = set()
    for module in MODULES:
        if module != "serve.alarms":
            used |= set(words(ast.parse(module_file(module).read_text())))
    assert set(ALARMS) - used == set()


def test_only_the_clock_reads_the_wall_clock():
    wall = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today"}
    found = [
        f"{module}: {ast.unparse(node)}"
        for module in MODULES
        for node in ast.walk(ast.parse(module_file(module).read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in wall and module != "core.clock"
    ]
    assert found == [], "ask recsys.core.clock.Clock"
