"""The order of events: by time, then by `order` or row; what a sequence shows, the clock may hide.

A shop's log is written twice: with the date of each event, and with seconds that keep its order.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from recsys.core.params import default_params
from recsys.core.runs import run_dir, write_json
from recsys.data.asof import mark_cases
from recsys.data.features import FIRST, Contract, Encoder, as_bytes, make_contract
from recsys.data.prep import encode_tables
from recsys.data.prepared import open_prepared, past_items
from recsys.evaluate.baselines import baseline_lists, settings_grid
from recsys.evaluate.cases import test_cases as cases_of_split
from recsys.evaluate.leaks import at_moment
from recsys.evaluate.metrics import case_metrics, rank_of_relevant
from recsys.evaluate.raw_tables import RawRun
from recsys.evaluate.recomputed_features import check_features
from recsys.evaluate.recomputed_tables import check_neighbours
from recsys.models.neighbours import TABLE_PREFIXES, history_votes, make_table
from recsys.online.feature_history import HistoryRules, history_state
from recsys.online.live_features import RecentHistory

DAY = 86400
START = 20_000 * DAY
ITEMS = [f"i{number:02}" for number in range(30)]


def day_stamped_log(n_users: int = 40, n_days: int = 6, a_day: int = 5) -> pd.DataFrame:
    "Return a log in which each user chooses five different items a day, in no order of their ids."
    rng = np.random.default_rng(0)
    rows = []
    for user in range(n_users):
        for day in sorted(rng.choice(20, n_days, replace=False)):
            begin = rng.integers(len(ITEMS))
            chosen = (begin + 7 * np.arange(a_day)) % len(ITEMS)  # what follows what can be learned
            rows += [(f"u{user}", ITEMS[item], START + int(day) * DAY) for item in chosen]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])


def in_seconds(log: pd.DataFrame) -> pd.DataFrame:
    "Return a log with different seconds for the events of a user's day, in the order of the rows."
    return log.assign(timestamp=log.timestamp + log.groupby(["user_id", "timestamp"]).cumcount())


def prepare(folder, log: pd.DataFrame, **given):
    "Return the prepared data of a log and its parameters; the encoder is made, not fitted."
    items, users = (
        pd.DataFrame(dict(item_id=ITEMS)),
        pd.DataFrame(dict(user_id=log.user_id.unique())),
    )
    params = default_params(
        **dict(OUTPUTS=str(folder), RUN="r", SPLIT="leave_one_out", HISTORY=20) | given
    )
    source, prepared = run_dir(params) / "ingest", run_dir(params) / "data_prep"
    for new in (source, prepared):
        new.mkdir(parents=True)
    for name, table in (("interactions", log), ("items", items), ("users", users)):
        table.to_parquet(source / f"{name}.parquet", index=False)
    contract, _ = make_contract(users, items, False, False, False, params)
    known = dict(item_id=ITEMS, hour=range(24), weekday=range(7))
    vocabularies = {name: as_bytes(sorted(map(str, values))) for name, values in known.items()}
    sized = [
        replace(f, cardinality=FIRST + len(vocabularies[f.vocabulary]))
        if f.kind in ("categorical", "list")
        else f
        for f in contract
    ]
    ids = {name: (values, FIRST + np.arange(len(values))) for name, values in vocabularies.items()}
    encoder = Encoder(Contract(sized), ids, {})
    encode_tables(SimpleNamespace(dir=prepared, rows={}), source, items, encoder, params, [])
    write_json(prepared / "stage.json", dict(parameters=dict(params)))
    return open_prepared(prepared, prepared), params


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    "Return the prepared data of the day-stamped log and of its copy in seconds, each with params."
    folder, log = tmp_path_factory.mktemp("order"), day_stamped_log()
    return prepare(folder / "days", log), prepare(folder / "seconds", in_seconds(log))


def test_day_stamped_and_ordered_copies_give_equal_cases_and_histories(both):
    (days, _), (seconds, _) = both
    for name in ("user", "item", "case", "split", "first", "cut", "hist_first", "hist_cut"):
        np.testing.assert_array_equal(days.events[name], seconds.events[name], err_msg=name)
    for split in ("train", "valid", "test"):
        rows = days.positions(split)
        np.testing.assert_array_equal(rows, seconds.positions(split))
        np.testing.assert_array_equal(days.history_rows(rows), seconds.history_rows(rows))
        for mine, other in zip(past_items(days, rows), past_items(seconds, rows)):
            np.testing.assert_array_equal(mine, other)
    known = days.history_rows(days.positions("test"))
    assert (known >= 0).all()  # 29 choices before the last one, of which HISTORY keeps 20


@pytest.mark.parametrize("name", ["popularity", "repeat", "item_knn", "ease"])
def test_day_stamped_and_ordered_copies_give_equal_metrics_of_baselines(both, name):
    ndcg = []
    for prep, params in both:
        rows = cases_of_split(prep, 1000, 0)
        settings = {setting: values[0] for setting, values in settings_grid(name, params).items()}
        ranks = rank_of_relevant(
            baseline_lists(name, settings, prep, rows, params), prep.events["item"][rows]
        )
        ndcg.append(case_metrics(ranks)["ndcg@10"])
    np.testing.assert_array_equal(*ndcg)
    assert np.mean(ndcg) > 0


def test_day_stamped_and_ordered_copies_give_equal_neighbours_and_followers(both):
    votes = []
    for prep, _ in both:
        table = make_table(prep, prep.positions("train"), 20)
        past = prep.history_rows(prep.positions("test"))
        votes.append([history_votes(table, past, prefix) for prefix in TABLE_PREFIXES])
    np.testing.assert_array_equal(*votes)
    following = votes[0][1]
    test_items = both[0][0].events["item"][both[0][0].positions("test")]
    rank = (following > np.take_along_axis(following, test_items[:, None], 1)).sum(1)
    assert np.median(rank) == 0  # within a day an item is followed by the one seven places on


def test_the_raw_tables_give_the_same_features_for_both_copies(both):
    "The leak detector's plain twin agrees with data preparation about order, pasts and followers."
    for prep, params in both:
        raw = RawRun(params, prep.encoder)
        checks = check_features(params, prep, raw, 60)
        table = make_table(prep, prep.positions("train"), 20)
        checks += check_neighbours(table, raw, pd.Series(ITEMS))
        assert {row["verdict"] for row in checks} == {"ok"}, checks


def test_shifted_time_finds_the_prepared_features_in_both_copies(both):
    for prep, _ in both:
        rows = prep.positions("test")
        as_of_event = at_moment(prep, rows, 0, 24).history_rows(rows)
        np.testing.assert_array_equal(as_of_event, prep.history_rows(rows))
        own_event = at_moment(prep, rows, 1, 24).history_rows(rows)
        np.testing.assert_array_equal(own_event[:, -1], prep.events["item"][rows])
        np.testing.assert_array_equal(own_event[:, :-1], as_of_event[:, 1:])


def one_day(**more) -> pd.DataFrame:
    "Return five reviews of one user on one day, and of another user on five days."
    items = [ITEMS[number] for number in (4, 1, 3, 0, 2)]
    days = START + DAY * np.r_[np.zeros(5, int), np.arange(5)]
    log = dict(user_id=["a"] * 5 + ["b"] * 5, item_id=items * 2, timestamp=days)
    return pd.DataFrame(log | more)


def test_five_reviews_on_one_day_have_four_visible_items_and_the_last_row_as_test_case(tmp_path):
    prep, _ = prepare(tmp_path, one_day())
    of_a, of_b = prep.positions("test")
    history = prep.history_rows(np.array([of_a, of_b]))
    assert prep.events["item"][[of_a, of_b]].tolist() == [2, 2]
    assert history[:, -4:].tolist() == [[4, 1, 3, 0]] * 2
    assert (history[:, :-4] == -1).all()
    assert prep.query_inputs(np.array([of_a]))["hist_items"][0, -1] == FIRST


def test_the_column_order_decides_where_times_are_equal(tmp_path):
    order = [5, 4, 3, 2, 1]
    prep, _ = prepare(tmp_path, one_day(order=order + order))
    of_a, of_b = prep.positions("test")
    assert prep.events["item"][[of_a, of_b]].tolist() == [4, 2]  # b's days come before the order
    assert prep.history_rows(np.array([of_a]))[0, -4:].tolist() == [2, 0, 3, 1]


def test_with_a_time_split_events_of_one_second_dont_see_each_other(tmp_path):
    log = pd.concat([day_stamped_log(), one_day().assign(user_id="z")])
    prep, _ = prepare(tmp_path, log, SPLIT="time")
    user = np.asarray(prep.events["user"])
    time = np.asarray(prep.events["timestamp"])
    before = [(time[user == u] < t).sum() for u, t in zip(user, time)]
    np.testing.assert_array_equal(prep.events["cut"] - prep.events["first"], before)


def test_the_same_row_twice_counts_once_unless_their_order_differs(tmp_path):
    log = pd.concat([one_day(), one_day()])
    prep, _ = prepare(tmp_path / "twice", log)
    assert len(prep.events["item"]) == 10
    in_order, _ = prepare(tmp_path / "order", log.assign(order=np.arange(20)))
    assert len(in_order.events["item"]) == 20


def test_the_funnel_of_one_second_is_one_choice_by_the_clock_and_two_steps_in_a_sequence():
    bought_then_viewed = dict(
        user=np.zeros(2, int),
        item=np.zeros(2, int),
        timestamp=np.full(2, START),
        type=np.array([1, 0]),
    )
    assert mark_cases(bought_then_viewed, [0, 1], "time").tolist() == [False, True]
    assert mark_cases(bought_then_viewed, [0, 1], "leave_one_out").tolist() == [True, True]


def test_the_online_history_has_the_order_of_arrival():
    "What the worker computes from the recent list is what the next data preparation will compute."
    items = [4, 1, 3, 0, 2]
    ids = ITEMS[:5]
    for split in ("time", "leave_one_out"):
        rules = HistoryRules(ids, np.zeros(5, int), [""], [], 20, 24, split)
        expected = [ids[row] for row in items]
        state = history_state([START] * 5, [""] * 5, items, rules)
        assert state["hist_items"] == expected
        newest_first = [f"{START}||{item}".encode() for item in reversed(expected)]
        live = RecentHistory(newest_first, rules, {item: row for row, item in enumerate(ids)})
        assert live.state(START)["hist_items"] == expected
