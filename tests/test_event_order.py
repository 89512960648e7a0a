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
from recsys.evaluate.baselines import baseline_lists, choose_baselines, settings_grid
from recsys.evaluate.cases import test_cases as cases_of_split
from recsys.evaluate.leaks import at_moment
from recsys.evaluate.metrics import case_metrics, rank_of_relevant
from recsys.evaluate.raw_tables import RawRun
from recsys.evaluate.recomputed_features import check_features
from recsys.evaluate.recomputed_tables import _expected_counts as expected_counts
from recsys.evaluate.recomputed_tables import check_neighbours, compare_arrays
from recsys.evaluate.systems import load_user_ids
from recsys.models.batches import case_interactions, launched_before
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
        pd.DataFrame(dict(user_id=log.user_id.dropna().unique())),
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


def test_without_a_common_clock_no_feature_and_no_count_reads_it(tmp_path):
    "Two logs of one order, one of them with every user years apart from the others, are the same."
    log = in_seconds(day_stamped_log())
    apart = log.assign(timestamp=log.timestamp - 365 * DAY * (log.user_id.str[1:].astype(int) % 20))
    pairs = [prepare(tmp_path / name, table)[0] for name, table in (("a", log), ("b", apart))]
    names = pairs[0].contract.names("interaction")
    assert not {"item_age", "item_trend"} & set(names)
    for prep in pairs:
        assert not prep.has_clock
        assert not prep.trends.values.any()
        assert set(prep.item_columns["first_event"]) == {0}
        cases = prep.positions("train")
        np.testing.assert_array_equal(launched_before(prep, cases), cases)
        rows = np.arange(len(ITEMS))[None]
        past = prep.query_inputs(cases[:9])["hist_items"]
        features = case_interactions(prep, cases[:9], rows, past)
        assert features[:, :, names.index("is_candidate")].all()
        assert features.shape[-1] == len(names)
    np.testing.assert_array_equal(pairs[0].popularity, pairs[1].popularity)
    np.testing.assert_array_equal(pairs[0].popularity, pairs[0].item_counts)
    assert choose_baselines(pairs[0], "popularity,recent_popularity")[0] == ["popularity"]


@pytest.mark.parametrize("split", ["time", "leave_one_out"])
def test_the_common_clock_can_be_switched_in_each_split(tmp_path, split):
    log = in_seconds(day_stamped_log())
    for clock in ("true", "false"):
        prep, params = prepare(tmp_path / clock, log, SPLIT=split, COMMON_CLOCK=clock)
        assert prep.has_clock == (clock == "true")
        assert (prep.contract["item_trend"] is not None) == prep.has_clock
        assert prep.trends.values.any() == prep.has_clock
        checks = check_counts_of_items(prep, RawRun(params, prep.encoder))
        assert {row["verdict"] for row in checks} == {"ok"}, checks


def check_counts_of_items(prep, raw) -> list:
    "Return the leak detector's rows on counts, popularity and first events, without a bundle."
    expected, ids = expected_counts(raw, pd.Series(ITEMS)), pd.Series(ITEMS)
    found = dict(
        count=prep.item_counts,
        popularity=prep.popularity,
        launch=prep.item_columns["first_event"],
    )
    return [compare_arrays(name, expected[name], found[name], ids) for name in found]


@pytest.fixture(scope="module")
def last_by_time(tmp_path_factory):
    "Return the day-stamped log, prepared with a split by time and one case of each user."
    log = day_stamped_log()
    folder = tmp_path_factory.mktemp("time_last")
    return log, *prepare(folder / "run", log, SPLIT="time_last", VALID=3, TEST=4)


def test_time_last_trains_on_nothing_from_the_cut_on(last_by_time):
    _, prep, _ = last_by_time
    valid_from, test_from = prep.meta["edges"]
    time = np.asarray(prep.events["timestamp"])
    assert time[prep.positions("train")].max() < valid_from
    assert time[prep.positions("valid", judged=False)].max() < test_from
    table = make_table(prep, prep.positions("train"), 20)
    assert table["until"] < valid_from


def test_time_last_judges_the_last_choice_of_each_user_in_the_last_days(last_by_time):
    log, prep, _ = last_by_time
    valid_from, test_from = prep.meta["edges"]
    for split, first, end in (
        ("valid", valid_from, test_from),
        ("test", test_from, log.timestamp.max() + 1),
    ):
        inside = log[(log.timestamp >= first) & (log.timestamp < end)]
        expected = inside.groupby("user_id").item_id.last().sort_index()
        rows = prep.positions(split)
        users = load_user_ids(prep)[prep.events["user"][rows]].astype(str)
        found = pd.Series(np.array(ITEMS)[prep.events["item"][rows]], users).sort_index()
        assert found.to_dict() == expected.to_dict()
        assert len(rows) == inside.user_id.nunique() < len(prep.positions(split, judged=False))


def test_time_last_shows_a_test_case_all_that_its_user_did_before(last_by_time):
    log, prep, _ = last_by_time
    rows = prep.positions("test")
    users = load_user_ids(prep)[prep.events["user"][rows]].astype(str)
    for user, history in zip(users, prep.history_rows(rows)):
        choices = log[log.user_id == user].item_id.map(ITEMS.index).tolist()
        known = history[history >= 0].tolist()
        place = len(choices) - 1  # the last of all: the test days end the log
        assert known == choices[max(0, place - 20) : place]


def test_time_last_drops_what_lies_after_the_end(tmp_path):
    "UNTIL is the moment before which each user's last choice is the test case."
    log = day_stamped_log()
    end = START + 15 * DAY
    whole, _ = prepare(
        tmp_path / "cut", log[log.timestamp < end], SPLIT="time_last", TEST=4, VALID=3
    )
    rows = whole.positions("test")
    last = log[log.timestamp < end].groupby("user_id").item_id.last()
    users = load_user_ids(whole)[whole.events["user"][rows]].astype(str)
    assert np.array(ITEMS)[whole.events["item"][rows]].tolist() == last[users].tolist()


def test_the_raw_tables_give_the_same_split_and_targets_by_time(last_by_time):
    _, prep, params = last_by_time
    raw = RawRun(params, prep.encoder)
    rows = check_features(params, prep, raw, 90)
    assert {"case", "split", "target"} <= {row["check"] for row in rows}
    assert {row["verdict"] for row in rows} == {"ok"}, rows
    judged = np.flatnonzero(raw.events.target)
    expected = np.sort(np.concatenate([prep.positions("valid"), prep.positions("test")]))
    np.testing.assert_array_equal(judged, expected)
