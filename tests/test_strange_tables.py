"""Small, one-sided and strange tables: the run goes through, or ingest says why it can't."""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.core.params import RecsysError, default_params, load_params
from recsys.core.runs import find_root, run_dir
from recsys.data.limits import LEAST_JUDGED
from recsys.data.prepared import Prepared, past_items
from recsys.data.sources import run_ingest
from recsys.data.splits import split_edges
from recsys.evaluate.baselines import LARGEST_EASE
from recsys.evaluate.calibration import ranker_quality
from recsys.models.batches import sample_negatives, sampling_distribution
from recsys.models.index import PLAIN_SEARCH_ITEMS
from recsys.models.neighbours import LARGEST_CATALOGUE
from recsys.recommend.bloom import LINKS, SeenItems, hash_ids

START = 1780272000  # 1 June 2026
DAY = 86400


def two_weeks(n=400, users=20):
    "Return a log of a small shop over two weeks."
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        dict(
            user_id=[f"u{user}" for user in rng.integers(0, users, n)],
            item_id=[f"i{item}" for item in rng.integers(0, 30, n)],
            timestamp=np.sort(rng.integers(START, START + 14 * DAY, n)),
        )
    )


class Ingest:
    "Ingests tables into a folder and reads what came out."

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, table, **params):
        "Ingest a frame (as CSV) or an arrow table (as parquet); return its seconds and notes."
        if isinstance(table, pd.DataFrame):
            file = self.folder / "log.csv"
            table.to_csv(file, index=False)
        else:
            file = self.folder / "log.parquet"
            pq.write_table(table, file)
        given = default_params(
            SOURCE="parquet", INTERACTIONS=str(file), OUTPUTS=str(self.folder), RUN="r", **params
        )
        run_ingest(given)
        stage = run_dir(given) / "ingest"
        seconds = pq.read_table(stage / "interactions.parquet")["timestamp"].to_pylist()
        return seconds, json.loads((stage / "stage.json").read_text())["notes"]


@pytest.fixture
def ingest(tmp_path):
    return Ingest(tmp_path)


def test_both_moments_of_the_hour_that_a_clock_shows_twice_are_read(ingest):
    seconds = 1761438600 + 60 * np.arange(-120, 120)
    zone = pa.timestamp("ms", "Europe/Berlin")
    log = two_weeks(240)
    moments = pa.array(seconds * 1000).cast(pa.timestamp("ms", "UTC")).cast(zone)
    table = pa.table(dict(user_id=log.user_id, item_id=log.item_id, timestamp=moments))
    assert sorted(ingest(table)[0]) == seconds.tolist()


def test_a_date_without_a_clock_time_is_the_beginning_of_its_day(ingest):
    log = two_weeks()
    dates = pd.to_datetime(log.timestamp, unit="s").dt.date.astype(str)
    assert ingest(log.assign(timestamp=dates))[0] == (log.timestamp // DAY * DAY).tolist()


def test_a_text_that_is_no_time_is_refused_with_its_row(ingest):
    log = two_weeks().astype(dict(timestamp=str))
    log.loc[7, "timestamp"] = "yesterday"
    with pytest.raises(RecsysError, match=r"'yesterday' \(row 7\)"):
        ingest(pa.Table.from_pandas(log))


def test_times_of_1970_count_as_missing_and_are_named(ingest):
    log = two_weeks()
    log.loc[:3, "timestamp"] = 0
    moments = log.assign(timestamp=pd.to_datetime(log.timestamp, unit="s"))
    seconds, notes = ingest(pa.Table.from_pandas(moments))
    assert len(seconds) == len(log) - 4
    assert any("1970-01-01" in note for note in notes)


def test_one_event_of_the_future_is_refused_with_row_and_date_and_until_leaves_it_out(ingest):
    log = two_weeks()
    log.loc[399, "timestamp"] = 4070908800
    with pytest.raises(RecsysError, match=r"\(row 399\) is 2099-01-01.*UNTIL: 2026-06-15"):
        ingest(log)
    assert len(ingest(log, UNTIL="2026-06-15")[0]) == 399


def test_one_early_event_is_named_and_does_not_move_the_split(ingest):
    log = two_weeks()
    log.loc[0, "timestamp"] = 1483228800
    seconds, notes = ingest(log)
    assert any("(row 0) is 2017-01-01" in note for note in notes)
    assert split_edges(np.array(seconds), 0.1, 0.1) == split_edges(np.array(seconds[1:]), 0.1, 0.1)


def test_a_robot_is_named_with_its_share_and_the_parameter_that_leaves_it_out(ingest):
    robot = two_weeks(4000).assign(user_id="robot")
    log = pd.concat([two_weeks(), robot]).sort_values("timestamp")
    _, notes = ingest(log)
    assert any("'robot' with 4,000 (91%)" in note and "MAX_USER_EVENTS" in note for note in notes)
    seconds, notes = ingest(log, MAX_USER_EVENTS=1000)
    assert len(seconds) == 400
    assert any("4,000 of 4,400 interactions: of users above" in note for note in notes)


def test_one_sided_tables_say_what_they_lack(ingest):
    for column, value, said in (
        ("user_id", "", "no event has a user_id"),
        ("user_id", "u1", "of user 'u1'"),
        ("item_id", "i1", "of item 'i1'"),
        ("timestamp", START, "all events have the time 2026-06-01 00:00:00 UTC"),
    ):
        split = "leave_one_out" if column == "timestamp" else "time"
        _, notes = ingest(two_weeks().assign(**{column: value}), SPLIT=split)
        assert any(said in note for note in notes), (column, notes)


def test_a_date_without_quotes_is_a_text_parameter(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("UNTIL: 2026-06-10\n")
    assert load_params(file).UNTIL == "2026-06-10"


def test_a_catalogue_of_one_item_has_itself_as_negative():
    drawn = sample_negatives(
        np.zeros(4, int), sampling_distribution([9]), 5, np.random.default_rng()
    )
    assert drawn.tolist() == [[0] * 5] * 4


def test_a_ranker_without_a_candidate_has_no_quality():
    quality = ranker_quality(np.zeros(0), np.zeros(0, bool), 12)
    assert quality["auc"] is None and quality["cases"] == 12


def test_the_past_of_a_robot_is_listed_by_item_not_by_event():
    n_events, n_items, n_cases = 100_000, 50, 1000
    rng = np.random.default_rng(0)
    events = dict(
        user=np.zeros(n_events, np.int32),
        item=rng.integers(0, n_items, n_events),
        timestamp=np.arange(n_events),
        first=np.zeros(n_events, np.int64),
        cut=np.arange(n_events),
    )
    robot = Prepared.__new__(Prepared)
    robot.events = events
    cases = np.arange(n_events - n_cases, n_events)
    case, item = past_items(robot, cases)
    assert set(Counter(case.tolist()).values()) == {n_items}
    recent_case, _ = past_items(robot, cases, cases - 10)
    assert set(Counter(recent_case.tolist()).values()) == {10}


def test_the_seen_filter_counts_what_it_loses_and_keeps_the_newest():
    capacity, most = 10, 10 * (2**LINKS - 1)
    store, items = SeenItems(3, capacity, 0.01, last=50), hash_ids(range(2 * most))
    for start in range(0, len(items), 10):
        store.add("u", items[start : start + 10], START + start)
    seen = store.seen("u", items, START + DAY // 2)
    assert seen[:most].all() and seen[-50:].all()
    assert abs(store.dropped - most) < 0.05 * most
    assert store.seen("u", hash_ids(f"other {i}" for i in range(5000)), START + 1).mean() < 0.015


def test_the_table_of_limits_has_the_numbers_of_the_code():
    [notebook] = (find_root() / "nbs" / "1_data").glob("*_limits.ipynb")
    rows = [line for line in notebook.read_text().splitlines() if '"| ' in line]
    for name, value in (
        ("LARGEST_CATALOGUE", LARGEST_CATALOGUE),
        ("PLAIN_SEARCH_ITEMS", PLAIN_SEARCH_ITEMS),
        ("LARGEST_EASE", LARGEST_EASE),
        ("time_bulk", LEAST_JUDGED),
        ("recsys.recommend.bloom", 2**LINKS - 1),
    ):
        [row] = [row for row in rows if f"`{name}`" in row]
        assert f" {value:,} " in row, row
