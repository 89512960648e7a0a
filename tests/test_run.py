"""The command line and the runner as a user meets them: real notebooks, real papermill, real exit
codes.
"""

import html
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys.core.keys import PROOF, notebook_parameters
from recsys.core.pipeline import bundle_warning
from recsys.core.stages import DAILY, STAGES, select_stages
from recsys.online.popularity import write_rows

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("run")  # one worker, so that the run is made once
SMALL = (
    "SHOP_USERS: 400\nSHOP_EVENTS: 12000\nSHOP_ITEMS: 300\nTT_EPOCHS: 3\nDLRM_EPOCHS: 1\n"
    "BOOTSTRAP: 50\nABLATION_CASES: 300\nSEEN_DAYS: 3\n"
)


def recsys(*args, cwd=ROOT, **env):
    code = "import sys; sys.argv[0] = 'recsys'; from recsys.operate.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        timeout=1200,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "One run from the command line, and its folder."
    folder = tmp_path_factory.mktemp("outputs")
    params = folder / "small.yaml"
    params.write_text(SMALL + f"OUTPUTS: {folder}\n")
    run = recsys("run", "--params", params)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / "small", params, run.stdout


def stages(folder):
    return {f.parent.name: json.loads(f.read_text()) for f in folder.glob("*/stage.json")}


def test_a_run_leaves_its_record(done):
    folder, _, out = done
    names = [stage.name for stage in select_stages()]
    assert {"ingest", "two_tower", "dlrm", "bundle", "evaluate"} <= set(names)
    assert set(names) <= set(stages(folder))
    assert [line.split()[1] for line in out.splitlines() if line.startswith("[")] == names
    for record in stages(folder).values():
        assert {"parameters", "rows", "timings", "outputs", "key", "peak_memory_mib"} <= set(record)
    executed = sorted(f.relative_to(folder / "notebooks") for f in folder.rglob("*.ipynb"))
    assert [str(f.with_suffix("")) for f in executed] == sorted(STAGES[n].notebook for n in names)
    page = (folder / "report.html").read_text()
    assert page.count("<figure>") >= 5 and "report.html" in out
    assert str(ROOT) not in page


def test_a_run_ends_with_its_result_and_the_report_begins_with_it(done):
    folder, _, out = done
    rows = json.loads((folder / "evaluate/metrics.json").read_text())
    full = {r["metric"]: r["value"] for r in rows if (r["system"], r["segment"]) == ("full", "all")}
    assert f"NDCG@10: full path {full['ndcg@10']:.4f}, best baseline" in out
    assert f"recall@10: full path {full['recall@10']:.4f}, best baseline" in out
    assert "95 % interval" in out and "SEEN_DAYS is 3" in out and "What fell away" in out
    example = json.loads((folder / "evaluate/example.json").read_text())
    run = f"--run {folder}"
    assert f"recsys recommend {run} --user {example['user_id']}" in out
    assert f"--item {example['item_id']}" in out
    page = html.unescape((folder / "report.html").read_text())
    first_screen = page[: page.index('id="ingest"')]
    summary = out[out.index("Result on") : out.index(f"run {folder.name}:")]
    assert all(line.strip() in first_screen for line in summary.splitlines())


def test_metrics_are_rows_of_the_contract(done):
    rows = json.loads((done[0] / "evaluate/metrics.json").read_text())
    intervals = {"value", "low", "high", "over_cases", "over_cases_low", "over_cases_high"}
    assert all(set(r) == {"system", "segment", "metric", "n", "users"} | intervals for r in rows)
    systems = {r["system"] for r in rows}
    assert systems == {
        "retrieval",
        "full",
        "full_unfiltered",
        "popularity",
        "recent_popularity",
        "category_popularity",
        "repeat",
        "item_knn",
        "ease",
        "als",
        "bpr",
        "followers",
        "context_ease",
        "oracle",
    }
    fitted = json.loads((done[0] / "evaluate/fitted_on.json").read_text())
    assert (
        set(fitted) == systems
        and fitted["ease"] == "train and validation"
        and fitted["full"].startswith("train")
    )
    assert any(
        "ease: own" in note and "NDCG@10 on validation" in note
        for note in stages(done[0])["baselines"]["notes"]
    )
    ndcg = {
        r["system"]: r["value"] for r in rows if r["segment"] == "all" and r["metric"] == "ndcg@10"
    }
    assert max(ndcg, key=ndcg.get) == "oracle"
    assert {"recall@10", "ndcg@10", "mrr@10", "coverage@10", "recall@300"} <= {
        r["metric"] for r in rows
    }


def test_again_everything_is_skipped(done):
    folder, params, _ = done
    before = stages(folder)
    run = recsys("run", "--params", params)
    assert run.returncode == 0 and run.stdout.count("unchanged, skipped") == len(select_stages())
    assert stages(folder) == before


def test_the_model_card_says_what_the_evaluation_found(done):
    folder = done[0] / "model_card"
    card = json.loads((folder / "model_card.json").read_text())
    page = (folder / "model_card.md").read_text()
    assert card["version"] == json.loads((done[0] / "bundle/manifest.json").read_text())["version"]
    rows = json.loads((done[0] / "evaluate/metrics.json").read_text())
    served = {(r["segment"], r["metric"]): r for r in rows if r["system"] == "full"}
    for row in card["quality"]:
        assert row["ndcg@10"] == served[row["segment"], "ndcg@10"]["value"]
        assert f"| {row['segment']} | {row['cases']:,} |" in page
    anonymous = served["anonymous", "ndcg@10"]["n"] if ("anonymous", "ndcg@10") in served else 0
    for column in card["fairness"].values():
        known = sum(group["cases"] for group in column["groups"])
        assert known + anonymous == served["all", "ndcg@10"]["n"]
    assert card["limits"] and all(limit in page for limit in card["limits"])


def test_a_changed_parameter_runs_what_depends_on_it(done):
    from recsys.core.params import load_params
    from recsys.core.pipeline import is_done

    def changed(*sets):
        return [s.name for s in select_stages() if not is_done(s, load_params(done[1], sets))]

    assert changed() == []
    assert changed("BOOTSTRAP=60") == ["evaluate"]
    assert changed("BASELINES=repeat") == ["baselines"]
    assert changed("DLRM_LR=0.01") == ["dlrm"]  # the rest follows once its files have changed
    assert changed("TRAIN_SEED=1") == ["two_tower", "dlrm", "baselines"]  # data and cases stay
    random = [s.name for s in select_stages() if "SEED" in notebook_parameters(s.notebook)]
    assert changed("SEED=1") == random and {"ingest", "two_tower", "dlrm"} <= set(random)


def test_a_run_leaves_proofs_out(done):
    "Cells tagged proof stand in the executed notebook without having been executed."
    notebook = done[0] / "notebooks" / f"{STAGES['data_prep'].notebook}.ipynb"
    cells = json.loads(notebook.read_text())["cells"]
    proofs = [cell for cell in cells if PROOF in cell["metadata"]["tags"]]
    assert proofs and all(cell["execution_count"] is None for cell in proofs)
    others = [c for c in cells if c["cell_type"] == "code" and c not in proofs]
    assert all(cell["execution_count"] for cell in others)


def test_a_variant_takes_over_what_its_parameters_leave_unchanged(done):
    args = ("run", "--params", done[1], "--as", "wide", "--set", "TT_LR=0.003")
    run = recsys(*args, "--to", "embeddings")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("unchanged, skipped") == 3
    assert not (done[0].parent / "wide/two_tower").exists()
    assert stages(done[0].parent / "wide").keys() >= {"ingest", "data_prep", "embeddings"}
    assert "--as" in recsys(*args[:4], "../x").stderr


def test_a_run_without_validation_trains(done):
    "Messages name VALID: 0 as a way out, so no cell of a stage may need what validation measures."
    args = ("run", "--params", done[1], "--as", "unvalidated", "--set", "VALID=0")
    run = recsys(*args, "--set", "TT_EPOCHS=1", "--to", "two_tower")
    assert run.returncode == 0, run.stdout + run.stderr
    metrics = stages(done[0].parent / "unvalidated")["two_tower"]["metrics"]
    assert metrics["epochs"] == 1 and "recall@10" not in metrics


def test_commands_say_when_the_bundle_is_older_than_its_stages(done, tmp_path):
    copy = shutil.copytree(done[0], tmp_path / "old", ignore=shutil.ignore_patterns("*.lock"))
    assert bundle_warning(copy) == ""
    record = copy / "dlrm/stage.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | dict(key="another")))
    page = recsys("recommend", "--run", copy, "--json")
    item = json.loads(page.stdout)["items"][0]["item_id"]
    explained = recsys("explain", "--run", copy, "--item", item, "--json")
    evaluated = recsys("evaluate", "--run", copy, "--compare", done[0], "--json")
    for command in (page, explained, evaluated):
        assert command.returncode == 0, command.stderr
        assert "older than its stages dlrm" in command.stderr and "--from dlrm" in command.stderr
        json.loads(command.stdout)  # the note does not mix with the result


def test_demo_says_that_the_bundle_is_old(tmp_path, monkeypatch):
    "Without servers: their start is replaced, and what is printed before it is looked at."
    from typer.testing import CliRunner

    from recsys.operate import cli, cli_serve
    from recsys.serve import window

    def start_servers(params, show):
        raise RuntimeError("the servers would start now")

    monkeypatch.setattr(window, "shop_window", start_servers)
    monkeypatch.setattr(cli_serve, "stop_on_signals", lambda: None)
    monkeypatch.setattr(cli_serve, "open_run", lambda run, sets, stages: None)
    for file, content in (
        ("bundle/manifest.json", dict(stages=dict(dlrm="one"))),
        ("dlrm/stage.json", dict(key="another")),
    ):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(json.dumps(content))
    result = CliRunner().invoke(cli.app, ["demo", "--run", str(tmp_path)])
    assert "older than its stages dlrm" in result.stderr, result.stderr
    assert "would start" in str(result.exception)


def test_part_of_a_run(done):
    run = recsys("run", "--params", done[1], "--from", "index", "--to", "index", "--force")
    assert run.returncode == 0 and "[1/1] index" in run.stdout and "skipped" not in run.stdout
    assert "no stage indx" in recsys("run", "--params", done[1], "--from", "indx").stderr


def test_the_online_stages_run_as_notebooks_too(done):
    run = recsys("run", "--params", done[1], "--from", "feature_store", "--to", "triton")
    assert run.returncode == 0 and "[2/2] triton" in run.stdout, run.stdout + run.stderr
    assert (
        stages(done[0])["triton"]["metrics"]["bundle"]
        == json.loads((done[0] / "bundle/manifest.json").read_text())["version"]
    )
    for name in ("feature_store", "triton"):
        assert (done[0] / "notebooks" / f"{STAGES[name].notebook}.ipynb").is_file()
    assert not (
        done[0] / "valkey/valkey.json"
    ).exists()  # the server that the stage started is gone


def test_recommend_prints_what_it_says(done):
    table = recsys("recommend", "--run", done[0], "-k", "3")
    assert (
        table.returncode == 0
        and "anonymous visitor" in table.stdout
        and "two_tower #" in table.stdout
    )
    user = pd.read_parquet(done[0] / "ingest/interactions.parquet").user_id.dropna().iloc[0]

    def ask(*more):
        return json.loads(
            recsys("recommend", "--run", done[0], "--user", user, "--json", *more).stdout
        )

    one = ask("-k", "5", "--device", "mobile", "--at", "2026-06-30T18:00")
    assert (
        len({i["item_id"] for i in one["items"]}) == 5
        and one["reasons"]["user"] == "known"
        and one["reasons"]["fallbacks"] == []
    )
    scores = [i["score"] for i in one["items"]]
    assert scores == sorted(scores, reverse=True)
    assert one["items"][0]["title"] and one["items"][0]["price"] > 0
    without = ask(
        "-k",
        "5",
        "--device",
        "mobile",
        "--at",
        "2026-06-30T18:00",
        "--exclude",
        one["items"][0]["item_id"],
    )
    assert one["items"][0]["item_id"] not in [i["item_id"] for i in without["items"]]


def test_evaluate_compares_two_runs_on_one_page(done, tmp_path):
    from recsys.core.params import load_params
    from recsys.core.pipeline import run_here
    from recsys.core.runs import sha256_file
    from recsys.data.features import load_arrays, save_arrays

    other = shutil.copytree(
        done[0], tmp_path / "other", ignore=shutil.ignore_patterns("*.lock", "valkey", "evaluate")
    )
    run_here(
        STAGES["bundle"], load_params(done[1], (f"OUTPUTS={tmp_path}", "RUN=other", "SEEN_DAYS=0"))
    )  # the same models, nothing hidden
    told = recsys(
        "evaluate", "--run", done[0], "--compare", other, "--json"
    )  # evaluates the other one first
    assert told.returncode == 0, told.stdout + told.stderr
    told = json.loads(told.stdout)
    rows = {(r["system"], r["segment"], r["metric"]): r for r in told["compared"]}
    full, retrieval = rows["full", "all", "ndcg@10"], rows["retrieval", "all", "ndcg@10"]
    assert (
        full["low"] <= full["difference"] <= full["high"]
        and full["difference"] != 0
        and full["first"] - full["second"] == pytest.approx(full["difference"])
    )
    assert retrieval["low"] == retrieval["high"] == 0 and full["second"] == pytest.approx(
        rows["full_unfiltered", "all", "ndcg@10"]["second"]
    )
    assert {s["system"]: s["value"] for s in told["systems"]}["full"] == pytest.approx(
        full["first"]
    )
    page = Path(told["page"]).read_text()
    assert (
        "small less other" in page
        and "without text" in page
        and "Right: place" in page
        and "http" not in page
    )
    table = recsys("evaluate", "--run", done[0], "--out", tmp_path / "mine.html")
    assert (
        table.returncode == 0 and "oracle" in table.stdout and (tmp_path / "mine.html").is_file()
    ), table.stderr
    file, record = other / "evaluate/ranks.npz", other / "evaluate/stage.json"
    kept = load_arrays(file)
    save_arrays(file, kept | dict(key=kept["key"] + np.uint64(1)))
    known = json.loads(record.read_text())
    known["outputs"]["ranks.npz"] = dict(
        sha256=sha256_file(file), bytes=file.stat().st_size, mtime_ns=file.stat().st_mtime_ns
    )
    record.write_text(json.dumps(known))
    refused = recsys("evaluate", "--run", done[0], "--compare", other)
    assert (
        refused.returncode == 2
        and "small and other rank different test cases" in refused.stderr
        and "Traceback" not in refused.stderr
    )


def test_leaks_is_green_on_a_run_and_red_on_a_planted_one(done, tmp_path):
    few = ("--events", "90", "--cases", "300")
    clean = recsys("leaks", "--run", done[0], *few)
    assert clean.returncode == 0 and "no leak found" in clean.stdout, clean.stdout + clean.stderr
    told = json.loads((done[0] / "leaks/leaks.json").read_text())
    assert told["leaks"] == [] and (done[0] / "leaks/decay.png").is_file()
    assert {
        "top_category",
        "hist_items",
        "vocabulary of item_id",
        "popularity",
        "shuffled labels",
        "its own event",
    } <= {r["check"] for r in told["rows"]}
    copy = shutil.copytree(
        done[0], tmp_path / "planted", ignore=shutil.ignore_patterns("*.lock", "valkey")
    )

    def load(name):
        return np.load(copy / "data_prep/events" / f"{name}.npy")

    user, top = load("user"), load("top_category")
    last = (
        np.searchsorted(user, user, side="right") - 1
    )  # the newest event of the user says it for all earlier ones
    np.save(copy / "data_prep/events/top_category.npy", np.where(user < 0, top, top[last]))
    planted = recsys("leaks", "--run", copy, *few, "--json")
    rows = {r["check"]: r for r in json.loads(planted.stdout)}
    assert (
        planted.returncode == 1
        and rows["top_category"]["verdict"] == "leak"
        and "expected" in rows["top_category"]["detail"]
    )
    assert [
        r["check"] for r in rows.values() if r["verdict"] == "leak" and r["part"] == "features"
    ] == ["top_category"]


@pytest.mark.parametrize(
    "args, message",
    [
        (["run", "--params", "no.yaml"], "no.yaml: no such params file"),
        (
            ["run", "--params", "params/quickstart.yaml", "--set", "K=0"],
            "--set K: K is 0, expected 1 to 1000",
        ),
        (
            ["run", "--params", "params/quickstart.yaml", "--set", "KK=1"],
            "unknown parameter KK; did you mean K",
        ),
        (
            ["run", "--params", "params/retail.yaml"],
            "CATALOG is 'FILE': no such file; give it in the params file or with --set "
            "CATALOG=FILE",
        ),
        (
            ["run", "--params", "params/quickstart.yaml", "--set", "SOURCE=parquet"],
            "INTERACTIONS is empty",
        ),
        (["recommend", "--run", "never-ran"], "no bundle; make it with: recsys run"),
        (["recommend", "--run", "quickstart", "--at", "noon"], "--at noon: expected"),
        (["leaks", "--run", "never-ran"], "no bundle; make it with: recsys run"),
        (["evaluate", "--run", "never-ran"], "no bundle; make it with: recsys run"),
        (["catalog", "no.yaml"], "no.yaml"),
    ],
)
def test_mistakes_end_with_one_message(args, message, tmp_path):
    run = recsys(*args, RECSYS_OUTPUTS=str(tmp_path))
    assert run.returncode == 2 and message in run.stderr and "Traceback" not in run.stderr, (
        run.stderr
    )
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_a_failing_cell_stops_the_run_and_keeps_its_notebook(tmp_path):
    params = tmp_path / "broken.yaml"
    pd.DataFrame(dict(user_id=["u"], timestamp=[1_700_000_000])).to_parquet(tmp_path / "t.parquet")
    params.write_text(f"SOURCE: parquet\nINTERACTIONS: {tmp_path}/t.parquet\nOUTPUTS: {tmp_path}\n")
    run = recsys("run", "--params", params)
    notebook = tmp_path / f"broken/notebooks/{STAGES['ingest'].notebook}.ipynb"
    assert run.returncode == 1
    assert (
        "stage ingest failed" in run.stderr
        and "no column item_id" in run.stderr
        and str(notebook) in run.stderr
    )
    assert "Traceback" not in run.stderr
    assert notebook.is_file() and not (tmp_path / "broken/ingest/stage.json").exists()
    assert not (tmp_path / "broken/data_prep").exists()


def test_own_tables_with_nothing_but_interactions(tmp_path):
    "Leave-one-out on a bare table: every feature that it lacks falls away, and says so."
    rng = np.random.default_rng(0)
    taste, n = rng.integers(0, 6, 300), rng.integers(4, 25, 300)
    user = np.repeat(np.arange(300), n)
    item = taste[user] * 40 + rng.integers(0, 40, len(user)) ** 2 // 40
    pd.DataFrame(
        dict(
            user_id=user, item_id=item, timestamp=1_600_000_000 + rng.integers(0, 10**8, len(user))
        )
    ).drop_duplicates(["user_id", "item_id"]).to_parquet(
        tmp_path / "t.parquet"
        # three years, each item once a user, as public sets have them: with fewer items than
        # CANDIDATES some places stay empty
    )
    params = tmp_path / "own.yaml"
    params.write_text(
        f"SOURCE: parquet\nINTERACTIONS: {tmp_path}/t.parquet\nOUTPUTS: {tmp_path}\nSPLIT: "
        f"leave_one_out\nTT_EPOCHS: 4\nDLRM_EPOCHS: 2\nBOOTSTRAP: 50\nABLATION_CASES: 100\n"
    )
    run = recsys("run", "--params", params)
    assert run.returncode == 0, run.stdout + run.stderr
    notes = " ".join(stages(tmp_path / "own")["data_prep"]["notes"])
    for name in ("device_type", "top_category", "text", "image"):
        assert f"no feature {name}" in notes
    assert (
        "category_popularity is left out: the source has no category"
        in stages(tmp_path / "own")["baselines"]["notes"]
    )
    assert all(
        "validation" in stages(tmp_path / "own")[s]["metrics"]["fitted on"]
        for s in ("two_tower", "dlrm")
    )
    rows = json.loads((tmp_path / "own/evaluate/metrics.json").read_text())
    value = {
        r["system"]: r["value"]
        for r in rows
        if r["segment"] == "all" and r["metric"] == "recall@10"
    }
    assert value["full"] > value["popularity"] and "oracle" not in value
    assert (
        value["repeat"] <= value["popularity"] + 0.05
    )  # the history is hidden: nothing can be repeated
    answer = json.loads(
        recsys("recommend", "--run", tmp_path / "own", "--user", "7", "-k", "4", "--json").stdout
    )
    assert len(answer["items"]) == 4 and answer["reasons"]["user"] == "known"
    clean = recsys("leaks", "--run", tmp_path / "own", "--cases", "200")
    assert clean.returncode == 0, clean.stdout + clean.stderr


def test_a_daily_run_goes_on_from_another(done):
    """The day that the worker logged, an item that was added since: query tower and ranker move,
    item vectors and encoder don't.
    """
    folder, params, _ = done
    new = pd.read_parquet(folder / "data_prep/items.parquet").iloc[[5]].assign(item_id="new")
    new.to_csv(folder.parent / "new.csv", index=False)
    added = recsys("add-items", folder.parent / "new.csv", "--run", folder)
    assert added.returncode == 0, added.stderr
    daily = folder.parent / "daily.yaml"
    past = pd.read_parquet(folder / "ingest/interactions.parquet")
    past = past[past.timestamp > past.timestamp.max() - 86400].fillna("")
    events = [
        dict(
            event_id=f"e{i}",
            at=e["timestamp"] + 86400,
            request_id="",
            **dict(e, timestamp=e["timestamp"] + 86400),
        )
        for i, e in enumerate(past.to_dict("records"))
    ]
    assert write_rows(folder / "events", "events", "1-0-9-0", events) >= 1
    daily.write_text(
        params.read_text()
        + (
            f"BASE_RUN: small\nSOURCE: parquet\nINTERACTIONS: {folder / 'events'}\nTEST: 1\n"
            f"BASELINES: popularity\n"
        )
    )
    run = recsys("run", "--params", daily)
    assert run.returncode == 0, run.stdout + run.stderr
    ran = [line.split()[1] for line in run.stdout.splitlines() if line.startswith("[")]
    assert ran == [stage.name for stage in select_stages(stages=DAILY)]
    assert ran[:2] == ["ingest", "finetune"] and "dlrm" not in ran
    day = folder.parent / "daily"

    def sha(run, name):
        return json.loads((run / "bundle/manifest.json").read_text())["files"][name]

    assert {
        n
        for n in (
            "encoder.json",
            "encoder.npz",
            "candidate_tower.onnx",
            "query_tower.onnx",
            "dlrm.onnx",
        )
        if sha(folder, n) == sha(day, n)
    } == {"encoder.json", "encoder.npz", "candidate_tower.onnx"}
    before, after = (np.load(f / "bundle/item_vectors.npy") for f in (folder, day))
    assert len(after) == len(before) + 1 and after[:-1].tobytes() == before.tobytes()
    assert (
        np.abs(after[-1] - before[5]).max() < 10
        and np.load(day / "bundle/items.npz")["item_ids"][-1] == b"new"
    )
    record = stages(day)["finetune"]
    assert 0 < record["rows"]["test cases"] <= len(events) and stages(day)["ingest"]["rows"][
        "interactions"
    ] == stages(folder)["ingest"]["rows"]["interactions"] + len(events)
    assert record["rows"]["new cases"] > 0 and any(
        "against base" in note for note in record["notes"]
    )
    last = json.loads((day / "train_state/state.json").read_text())["last_second"]
    meta = json.loads((day / "data_prep/meta.json").read_text())
    assert (
        json.loads((folder / "train_state/state.json").read_text())["last_second"]
        < last
        == meta["train"][1]
        < meta["test"][0]
    )
    again = recsys("run", "--params", daily)
    assert again.stdout.count("unchanged, skipped") == len(ran), again.stdout
    answer = json.loads(recsys("recommend", "--run", day, "-k", "300", "--json").stdout)
    assert "new" in [i["item_id"] for i in answer["items"]]
    same = recsys("run", "--params", daily, "--set", "BASE_RUN=daily")
    assert same.returncode == 2 and "a folder of its own" in same.stderr, same.stderr
