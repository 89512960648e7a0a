"""What the command line prints fits a terminal of 80 columns, and no value is lost for it.

The rows are as wide as real ones get: long names of runs and systems, ids of 36 characters,
sentences. A value may be folded at its spaces, so its words are looked for.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import typer
from typer.testing import CliRunner

from recsys.core.params import PARAMS, default_params
from recsys.evaluate.page import VISITORS
from recsys.evaluate.seed_runs import difference_table, systems_over_seeds
from recsys.operate import cli_judge, judge_tables, kubeflow
from recsys.operate.cli import app
from recsys.operate.cli_ask import print_answer, print_list
from recsys.operate.terminal_tables import TABLE_WIDTH, print_rows
from recsys.recommend.explain import GROUPS, explained_rows

ROOT = Path(__file__).parents[1]
LONG_RUN = "daily-2026-11-30-of-the-spring-campaign-with-new-photos-and-prices"
UUID = "6579c22f-be2b-444c-a52b-0116dd82df6c"
SENTENCE = (
    "expected 3 views of the category within a day, found 2, since the third came a second late"
)
TITLE = "Ergonomic leather tote bag in midnight blue, with a pocket for a notebook"
SYSTEMS = "oracle full_unfiltered full context_ease retrieval ease category_popularity als".split()
INTERVAL = dict(low=-0.0327, high=0.2399)
OVER_CASES = dict(over_cases=0.0201, over_cases_low=-0.0175, over_cases_high=0.0226)


def words_of(text):
    "Return the words of a text without the punctuation around them."
    return [word.strip(",;:()") for word in text.split()]


def read(capsys, *values):
    "Return what was printed; fail where a line is too long or a value is missing."
    out = capsys.readouterr().out
    too_long = [line for line in out.splitlines() if len(line) > TABLE_WIDTH]
    assert not too_long, too_long
    words = set(words_of(out))
    missing = [word for value in values for word in words_of(str(value)) if word not in words]
    assert not missing, (missing, out)
    return out


def compared_rows():
    "Return paired differences of all systems, and of the full path by segment."
    row = dict(metric="ndcg@10", first=0.2363, second=0.2187, difference=0.0176, n=1_234_567)
    row |= INTERVAL | OVER_CASES
    segments = ("warm_user", "new_user", "anonymous", "history over 20", "device desktop")
    return [row | dict(system=system, segment="all") for system in SYSTEMS] + [
        row | dict(system="full", segment=segment) for segment in segments
    ]


def test_systems_of_an_evaluation(capsys):
    figures = {"value": 0.2363, **INTERVAL, "over cases": 0.2304, "recall@10": 0.39}
    figures |= {"mrr@10": 0.189, "coverage@10": 0.4795, "fitted_on": "train, stopped on validation"}
    judge_tables.print_systems(f"Run {LONG_RUN}", [dict(system=s) | figures for s in SYSTEMS])
    shown = read(capsys, *SYSTEMS, "0.2363 -0.0327 0.2399 0.2304 0.3900 0.1890 0.4795", LONG_RUN)
    assert "fitted on: train, stopped on validation" in shown
    by_visitor = [dict(system=s) | dict.fromkeys(VISITORS.values(), "0.1234") for s in SYSTEMS]
    print_rows("NDCG@10 by what is known of the visitor", by_visitor)
    read(capsys, *SYSTEMS, "0.1234")


def test_comparison_of_two_runs(capsys):
    judge_tables.print_comparison(compared_rows(), (LONG_RUN, "quickstart"))
    figures = "0.2363 0.2187 +0.0176 -0.0327 +0.2399 1,234,567 +0.0201 -0.0175 +0.0226"
    read(capsys, *SYSTEMS, LONG_RUN, "history over 20", "device desktop", figures)


@pytest.mark.parametrize("std", [None, 0.0012])
def test_comparison_over_seeds(capsys, std):
    rows = [row | dict(std=std, metric=m) for row in compared_rows() for m in ("mrr@10", "ndcg@10")]
    for label in ("system", "segment"):
        judge_tables.print_differences(LONG_RUN, difference_table(rows, label))
        figures = f"ndcg@10 mrr@10 +0.0176 -0.0327 +0.2399 {std or '-'} 0.2187 1,234,567"
        read(capsys, *(row[label] for row in rows), figures)
    seeds = [row | dict(value=0.2363, min=0.2301, max=0.2402) for row in rows]
    shown = [judge_tables.four_digits(row) for row in systems_over_seeds(seeds)]
    print_rows(LONG_RUN, shown)
    read(capsys, *SYSTEMS, "0.2363 0.2301 0.2402")


def test_checks_for_leaks(capsys):
    names = ("fill, mean, std of category_l2_of_the_candidate", "as of an hour later", "hour")
    rows = [dict(part="features", check=name, checked=12_345_678, wrong=0) for name in names]
    judge_tables.print_leaks("Leaks", [row | dict(verdict="ok", detail=SENTENCE) for row in rows])
    read(capsys, *names, SENTENCE, "features 12,345,678 0 ok")


def test_policies_of_a_simulation(capsys):
    policy = dict(clicks_a_page=0.1234, **INTERVAL, share_of_oracle=0.512, regret=123456.0)
    policy |= dict(coverage=1.0, new_clicks=123456, promoted=12, refused=18)
    names = ("oracle", "learning", "greedy", "popularity")
    paired = [dict(policy="learning", other=n, difference=0.01, **INTERVAL) for n in names]
    found = dict(policies=[dict(policy=name) | policy for name in names], paired=paired)
    judge_tables.print_loop("30 days", found)
    figures = "0.1234 -0.0327 0.2399 51.2% 123,456 100% 12 of 30 +0.0100"
    read(capsys, *names, figures)


def test_estimates_of_other_policies(capsys):
    row = dict(value=0.5, gain=0.01, gain_low=-0.1, gain_high=0.2, ess=123456.0, **INTERVAL)
    logged = row | dict(estimator="logged", requests=123456, users=98765)
    rows = [logged, *(row | dict(estimator=name) for name in ("ips", "snips", "dr"))]
    judge_tables.print_estimates({"T=0.25": rows, "T=1": rows})
    read(capsys, "logged T=0.25 T=1 IPS SNIPS DR 0.5000 +0.0100 -0.1000 +0.2000 123,456")


def test_checks_of_a_day(capsys):
    checks = [
        dict(check=name, alarm=True, value=16.543, limit=0.25, adjusted=7.79e-32, says=SENTENCE)
        for name in ("input device_type", "input category_l2", "click-through", "latency")
    ]
    judge_tables.print_day(
        default_params(OUTPUTS="outputs"), dict(day="day", alarms=[], checks=checks)
    )
    read(capsys, *(check["check"] for check in checks), SENTENCE, "16.543 0.25 7.8e-32 ALARM")


@pytest.mark.parametrize("item_id", ["p00017", UUID, "an id of many words " * 4])
def test_page_of_products(capsys, item_id):
    item = dict(item_id=item_id, title=TITLE, category="home and garden", price=1234.5, score=-1.25)
    items = [item | dict(source="two_tower #12, trending #3"), item | dict(source="trending #1")]
    bare = dict(item_id="p2", score=0.5, source="popularity #1")
    print_answer(dict(title=LONG_RUN, items=[*items, bare], reasons={}))
    read(
        capsys, item_id, TITLE, "home and garden 1234.50 -1.250 two_tower #12 trending #3", "0.500"
    )


def test_list_of_products(capsys):
    item = dict(item_id=UUID, title=TITLE, category_l1="home and garden", price=1234.5)
    bundle = SimpleNamespace(shown=pa.Table.from_pylist([item, item | dict(item_id="p1")]))
    found = SimpleNamespace(rows=[0, 1], scores=[0.75, None], notes=[])
    print_list("Items like it", SimpleNamespace(bundle=bundle), found, as_json=False)
    read(capsys, UUID, "p1", TITLE, "home and garden 1234.50 0.750")


def test_explanation(capsys):
    found = dict(
        retrieved=dict(rank=12, retrieved=True, score=0.123, cut=0.456),
        filtered=dict(by=SENTENCE),
        ranked=dict(
            rank=3,
            logit=-1.25,
            difference=-0.125,
            item_at_k=UUID,
            groups=dict.fromkeys(GROUPS, 0.1),
        ),
        reranked=dict(probability=0.5, low=0.4, high=0.6),
        k=10,
    )
    print_rows(f"Item {UUID}", explained_rows(found))
    read(capsys, UUID, SENTENCE, "-1.250 -0.125 50.0% +0.100", *GROUPS.values())


def run(*arguments):
    "Return what a command prints."
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result
    return result.stdout


def test_list_of_runs(capsys, monkeypatch, tmp_path):
    row = {"run": LONG_RUN, "made": "2026-11-30", "data": "completejourney", "cases": "12"}
    row |= {"ndcg@10": "0.1234", "lead": "+0.0099*", "bundle": "20261130-201533", "fault": ""}
    rows = [row, row | dict(run="quickstart", bundle="", lead="")]
    monkeypatch.setattr(cli_judge, "list_runs", lambda home: rows)
    print(run("runs", "--outputs", tmp_path))
    read(capsys, LONG_RUN, "quickstart 2026-11-30 completejourney 0.1234 +0.0099* 20261130-201533")


def test_runs_of_a_pipeline(capsys, monkeypatch):
    row = dict(run="recsys-daily-20261130-201533", state="SUCCEEDED", started="2026-11-30 12:00")
    row |= dict(ended="2026-11-30 12:40", error=SENTENCE, id=UUID)
    rows = [row, row | dict(run="recsys-full", error="", state="RUNNING", ended="", id="none")]
    monkeypatch.setattr(kubeflow, "pipeline_runs", lambda host, last: rows)
    print(run("pipeline", "status", "--host", "http://127.0.0.1:1"))
    read(capsys, *row.values(), "recsys-full RUNNING none")


@pytest.mark.parametrize("command", ["cluster costs", "params", "params serve"])
def test_commands_that_need_no_run(capsys, command):
    print(run(*command.split()))
    read(
        capsys,
        *(["SERVE_INSTANCES"] if command == "params" and "SERVE_INSTANCES" in PARAMS else []),
    )


def test_tables_are_drawn_in_one_place():
    "A table that another module draws would not be held to the width."
    modules = [p.name for p in (ROOT / "recsys").rglob("*.py") if "rich.table" in p.read_text()]
    assert modules == ["terminal_tables.py"]


def commands_of(group, words=()):
    "Return the words and the command of each command, subcommands included."
    for name, command in group.commands.items():
        if command.hidden:
            continue
        yield (*words, name), command
        if hasattr(command, "commands"):
            yield from commands_of(command, (*words, name))


@pytest.mark.parametrize(
    "words", [(), *(words for words, _ in commands_of(typer.main.get_command(app)))], ids=" ".join
)
def test_help_fits_and_has_an_example(words, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    shown = run(*words, "--help")
    assert [line for line in shown.splitlines() if len(line) > TABLE_WIDTH] == []
    command = " ".join(("recsys", *words))
    assert not words or re.search(rf"^    {command}\b", shown.partition("Example")[2], re.M), shown
