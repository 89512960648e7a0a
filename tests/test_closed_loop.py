"""The closed loop with a trained recommender: served policies, daily runs, and going on."""

import json

import numpy as np
import pandas as pd
import pytest

from recsys.core.params import load_params
from recsys.core.pipeline import run_here
from recsys.core.runs import read_json, run_dir
from recsys.core.stages import select_stages
from recsys.data.loop_world import LoopWorld
from recsys.operate.bundle_store import read_live
from recsys.operate.closed_loop import (
    base_history,
    base_params,
    begin_policy,
    run_day,
    run_policy,
    write_loop_day,
)
from recsys.operate.loop_policies import ServedPolicy
from recsys.recommend.bundle import Bundle

pytestmark = pytest.mark.xdist_group("closed_loop")  # one training for all
SMALL = """
RUN: loop
OUTPUTS: {folder}
SHOP_USERS: 300
SHOP_ITEMS: 400
SHOP_EVENTS: 9000
SHOP_DAYS: 7
SHOP_IMAGES: false
SEEN_DAYS: 3
TT_EPOCHS: 1
DLRM_EPOCHS: 1
TT_DIM: 16
GATE_MIN_GAIN: -1.0
GATE_MAX_DROP: 1.0
GATE_ANCHOR_DROP: 1.0
GATE_POPULARITY: false
"""
DAYS = 2


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    "A small world, the parameters of its base run, and the folder."
    folder = tmp_path_factory.mktemp("loop")
    file = folder / "loop.yaml"
    file.write_text(SMALL.format(folder=folder))
    params = load_params(file, ())
    world = LoopWorld(params, DAYS, pages=400)
    base = base_params(params, world, run_dir(params))
    for stage in select_stages(end="bundle"):
        run_here(stage, base)
    return world, base, run_dir(params)


@pytest.fixture(scope="module")
def greedy(loop):
    "The records of a greedy policy's two days."
    world, base, _ = loop
    return run_policy(world, base, "greedy", show=lambda line: None)


def test_a_daily_run_that_passes_the_gate_answers_the_next_day(loop, greedy):
    world, _, home = loop
    assert [day["verdict"] for day in greedy] == ["promoted", "promoted"], greedy
    live = read_live(home / "greedy")
    assert live["run"] == "day-02"
    assert sorted(p.name for p in (home / "greedy").glob("day-*")) == ["day-02"]
    assert Bundle(home / "greedy" / "day-02" / "bundle").version == live["version"]


def test_the_daily_run_was_trained_on_the_clicks_of_the_loop(loop, greedy):
    world, _, home = loop
    ingested = pd.read_parquet(home / "greedy" / "day-02" / "ingest" / "interactions.parquet")
    of_loop = ingested[ingested.timestamp >= world.begin]
    assert len(of_loop) == sum(day["clicks"] for day in greedy) > 100
    log = pd.concat(pd.read_parquet(f) for f in sorted((home / "greedy" / "log").glob("*.parquet")))
    assert sorted(of_loop.timestamp) == sorted(log.timestamp)


def test_items_that_come_on_sale_are_in_the_bundle_that_was_trained_later(loop, greedy):
    world, _, home = loop
    bundle = Bundle(home / "greedy" / "day-02" / "bundle")
    launched = np.concatenate([world.launched(day) for day in range(DAYS)])
    assert len(launched)
    assert all(item in bundle.row_of for item in world.shop.items.item_id[launched])


def test_a_refused_run_changes_nothing_that_is_served(loop, tmp_path):
    world, base, home = loop
    strict = type(base)({**base, "GATE_MIN_GAIN": 5.0}, source="strict")
    start = begin_policy(strict, "strict")
    policy = ServedPolicy("strict", world, start)
    version = policy.recommender.bundle.version
    day = run_day(world, policy, base_history(world), 0)
    write_loop_day(home / "strict", day)
    evening = policy.end_day(0, day.log)
    assert evening["verdict"] == "refused" and evening["reasons"]
    assert policy.params.RUN == "day-00" and read_live(home / "strict")["run"] == "day-00"
    assert policy.recommender.bundle.version.partition("+")[0] == version.partition("+")[0]
    assert [p.name for p in (home / "strict").glob("day-*")] == ["day-00"]


def test_clicks_of_the_day_are_known_on_the_next_page(loop):
    world, base, _ = loop
    policy = ServedPolicy("frozen", world, begin_policy(base, "frozen"), learns=False)
    policy.begin_day(0)
    visits = world.visits(0)
    user = np.bincount(visits.users[visits.users >= 0]).argmax()
    first, second = np.flatnonzero(visits.users == user)[:2]
    before = policy.pages(visits, np.array([first]))[0]
    clicked = before[:3]
    item_ids = world.shop.items.item_id.to_numpy(object)[clicked]
    for item in item_ids:
        policy.recommender.users.observe(
            world.shop.users.user_id[user], item, int(visits.timestamps[first]) + 1
        )
    after = policy.pages(visits, np.array([second]))[0]
    assert not set(clicked) & set(after), "what was just clicked is shown again"


def test_an_interrupted_served_policy_goes_on_as_it_would_have(loop):
    world, base, home = loop
    run_policy(world, base, "frozen", show=lambda line: None)
    whole = {f.name: json.loads(f.read_text()) for f in (home / "frozen/days").glob("*.json")}
    (home / "frozen/days/02.json").unlink()
    again = run_policy(world, base, "frozen", show=lambda line: None)
    assert again == [whole["01.json"], whole["02.json"]]
    assert read_json(home / "frozen/days/02.json") == whole["02.json"]


def test_a_policy_that_was_stopped_in_the_evening_goes_on(loop, greedy):
    world, base, home = loop
    file = home / "greedy/days/02.json"
    whole = read_json(file)
    unlearned = {
        name: whole[name] for name in whole if name not in ("verdict", "reasons", "learned")
    }
    file.write_text(json.dumps(unlearned))  # the pointer has moved, the record does not say so
    assert run_policy(world, base, "greedy", show=lambda line: None) == greedy
    assert read_live(home / "greedy")["run"] == "day-02"
