"""What figures are means of, what a baseline and a component may learn from, whose looks add up."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_event_order import DAY, ITEMS, START, day_stamped_log, in_seconds, prepare

from recsys.core.params import default_params
from recsys.core.runs import run_dir
from recsys.evaluate import baselines
from recsys.evaluate.cases import Cases, known_of, tune_settings
from recsys.evaluate.evidence import Evidence, Look, evidence_so_far
from recsys.evaluate.saved_ranks import SavedRanks
from recsys.evaluate.seeds import paired_row, seed_rows
from recsys.evaluate.segments import fine_segments, segments
from recsys.models import embeddings
from recsys.operate.gate import compare_candidate, recipe_of

TOKYO = 9 * 3600  # seconds ahead of UTC, the whole year
HEAVY_USER = np.array([0] * 8 + [1, 2])  # eight cases of one user, one of each of two others


@pytest.fixture(scope="module")
def by_time(tmp_path_factory):
    "Return prepared data in Tokyo's time, split by time, and their parameters."
    log = in_seconds(day_stamped_log()).assign(timestamp=lambda x: x.timestamp + 5 * 3600)
    new_users = [f"u{number}" for number in range(30, 40)]
    is_new = log.item_id.eq(ITEMS[3]) | log.user_id.isin(new_users)  # from the last days on
    log = log[~is_new | (log.timestamp >= START + 16 * DAY)]
    log = log.assign(
        user_id=log.user_id.where(~log.user_id.isin([f"u{n}" for n in range(8)]), None)
    )  # anonymous
    given = dict(SPLIT="time", TIMEZONE="Asia/Tokyo", VALID=2.0, TEST=2.0)
    return prepare(tmp_path_factory.mktemp("measured"), log, **given)


def test_settings_are_chosen_by_the_mean_over_users():
    def make(item):
        return lambda cases: np.tile(np.float32(np.arange(2) == item), (len(cases), 1))

    cases = Cases.of_histories([[-1]] * 10)
    grid, relevant = dict(item=(0, 1)), np.array([0] * 8 + [1, 1])
    best, tried = tune_settings(make, grid, cases, relevant, HEAVY_USER)
    assert best == dict(item=1)
    assert dict(item=0) == tune_settings(make, grid, cases, relevant, np.arange(10))[0]


def test_baselines_know_the_local_hour_the_device_and_the_top_category(by_time):
    prep = copy.copy(by_time[0])
    number = np.arange(len(prep.events["user"]))
    prep.events = dict(prep.events) | dict(device_type=number % 5, top_category=number % 7)
    rows = prep.positions("test")
    hours = (np.asarray(prep.events["timestamp"]) + TOKYO) // 3600 % 24
    known, data = known_of(prep, rows, 5), baselines.fit_data(prep, rows, 0)
    np.testing.assert_array_equal(known.hour, hours[rows])
    np.testing.assert_array_equal(known.device, rows % 5)
    np.testing.assert_array_equal(known.category, rows % 7)
    np.testing.assert_array_equal(data.hours, hours[rows])
    np.testing.assert_array_equal(data.devices, rows % 5)


@pytest.mark.parametrize("name", ["popularity", "item_knn", "followers"])
def test_settings_are_chosen_on_training_and_lists_are_fitted_on_no_test_case(
    by_time, name, monkeypatch
):
    (prep, params), fitted = by_time, []

    def spy(prep, positions, seed, fit_data=baselines.fit_data):
        "Return the data of a fit; remember of which splits they are."
        fitted.append(set(prep.events["split"][positions].tolist()))
        return fit_data(prep, positions, seed)

    monkeypatch.setattr(baselines, "fit_data", spy)
    settings, _ = baselines.tune_baseline(name, prep, params, 50)
    baselines.baseline_lists(name, settings, prep, prep.positions("test")[:20], params)
    assert fitted == [{0}, {0, 1}]


def test_segments_tell_what_training_knew_of_user_and_item(by_time):
    prep, _ = by_time
    rows = np.sort(np.concatenate([prep.positions("valid"), prep.positions("test")]))
    user, item, split = (np.asarray(prep.events[name]) for name in ("user", "item", "split"))
    known_users = set(user[(split == 0) & (user >= 0)].tolist())
    known_items = set(item[split == 0].tolist())
    cuts = segments(prep, rows)
    is_known = np.array([number in known_users for number in user[rows].tolist()])
    np.testing.assert_array_equal(cuts["warm_user"], is_known)
    np.testing.assert_array_equal(cuts["new_user"], ~is_known & (user[rows] >= 0))
    np.testing.assert_array_equal(cuts["anonymous"], user[rows] < 0)
    np.testing.assert_array_equal(cuts["new_item"], [i not in known_items for i in item[rows]])
    assert all(mask.any() for mask in cuts.values()), cuts


def test_segments_of_time_are_local(by_time):
    prep, _ = by_time
    rows = np.flatnonzero(prep.events["case"])
    local = pd.to_datetime(prep.events["timestamp"][rows] + TOKYO, unit="s")
    cuts = fine_segments(prep, rows)
    for first in (0, 6, 12, 18):
        expected = (local.hour >= first) & (local.hour < first + 6)
        np.testing.assert_array_equal(cuts[f"hour {first} to {first + 5}"], expected)
    np.testing.assert_array_equal(cuts["weekend"], local.dayofweek >= 5)
    np.testing.assert_array_equal(cuts["working day"], local.dayofweek < 5)


def ranks_of(is_found) -> SavedRanks:
    "Return a run whose full path finds the item of some cases."
    return SavedRanks(
        positions=np.arange(10),
        users=HEAVY_USER,
        keys=np.arange(10).astype(np.uint64),
        ranks=dict(full=np.where(is_found, 0.0, np.inf)),
        cuts=dict(all=np.ones(10, bool)),
        items=50,
        masked=False,
        candidates=30,
        catalogue=1,
    )


def test_seeds_are_compared_by_the_mean_over_users():
    of_heavy, of_others = ranks_of(HEAVY_USER == 0), ranks_of(HEAVY_USER > 0)
    rows = seed_rows([of_heavy] * 2, ["a", "b"], draws=20)
    assert {round(row["value"], 9) for row in rows} == {round(1 / 3, 9)}
    row = paired_row([of_heavy] * 2, [of_others] * 2, ("full", "full"), "recall@10", draws=20)
    np.testing.assert_allclose(
        [row["first"], row["second"], row["difference"]], [1 / 3, 2 / 3, -1 / 3]
    )


def test_the_gate_shows_means_over_users():
    values = dict(candidate=1.0 * (HEAVY_USER == 0), live=1.0 * (HEAVY_USER > 0))
    row = compare_candidate(
        values, "live", "all", np.ones(10, bool), HEAVY_USER, default_params(BOOTSTRAP=100)
    )
    np.testing.assert_allclose(
        [row["candidate"], row["value"], row["difference"]], [1 / 3, 2 / 3, -1 / 3]
    )


@pytest.mark.parametrize(
    "change", [dict(metric="recall@10"), dict(recipe="r2"), dict(live="l2"), dict(anchor="a2")]
)
def test_looks_of_another_question_are_not_put_together(change):
    key = ("anchor", "all")
    whole = {key: Evidence(100, 100, 0.0, 1.0, 1.0)}
    old = Look("day 1", "l", "a", "r", "ndcg@10", 100, 199, whole)
    today = replace(old, candidate="day 2", first=200, last=299)
    assert evidence_so_far([old], today, key, 7)[1] == 2
    assert evidence_so_far([replace(old, **change)], today, key, 7)[1] == 1


def test_a_recipe_is_the_same_on_every_day_and_another_for_a_full_training():
    def recipe(**given):
        "Return the recipe of a bundle with some parameters."
        parameters = dict(TT_LR=0.1, SEED=1, TRAIN_SEED=-1, BASE_RUN="day-1") | given
        return recipe_of(SimpleNamespace(manifest=dict(parameters=parameters)))

    assert recipe() == recipe(SEED=2) == recipe(TRAIN_SEED=3) == recipe(BASE_RUN="day-2")
    assert len({recipe(), recipe(BASE_RUN=""), recipe(TT_LR=0.2)}) == 3


def test_principal_components_are_those_of_items_with_a_training_event(by_time, monkeypatch):
    prep, params = by_time
    is_new = np.isin(np.arange(len(ITEMS)), np.flatnonzero(prep.item_counts == 0))
    assert is_new.any()
    pd.DataFrame(dict(item_id=ITEMS)).to_parquet(run_dir(params) / "data_prep" / "items.parquet")
    vectors = np.random.default_rng(0).normal(size=(len(ITEMS), 6)).astype(np.float32)

    def embedded(x):
        "Return what the stage makes of some encoded texts."
        rows = dict(text=SimpleNamespace(vectors=x, present=np.ones(len(x), bool)))
        monkeypatch.setattr(embeddings, "encode_items", lambda *_: rows)
        return embeddings.run_embeddings(default_params(**{**params, "EMBEDDING_DIM": 4}))["text"]

    monkeypatch.setattr(embeddings, "load_encoders", lambda params: {})
    for name in ("_write_embeddings", "report_embeddings", "draw_embeddings", "item_images"):
        monkeypatch.setattr(embeddings, name, lambda *_: None)
    before, after = embedded(vectors), embedded(np.where(is_new[:, None], 9 * vectors, vectors))
    np.testing.assert_allclose(after[~is_new], before[~is_new], rtol=1e-5)
    assert not np.allclose(after[is_new], before[is_new])
