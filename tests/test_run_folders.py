"""What is live stays as it was promoted while its run is executed again with other items."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from redis.exceptions import ResponseError
from tiny import tiny_run

from recsys.core.params import Params, RecsysError
from recsys.core.pipeline import run_here
from recsys.core.runs import read_json
from recsys.core.stages import STAGES
from recsys.data.prepared import load_prepared
from recsys.online import feature_store
from recsys.online.feature_history import event_types
from recsys.online.valkey import EmbeddedValkey, connect
from recsys.online.worker import open_worker
from recsys.operate.bundle_store import (
    after_promotion,
    bundle_path,
    checked_run,
    prune_bundles,
    read_live,
    set_live,
    stored_versions,
)
from recsys.operate.judge import PromotionRefused
from recsys.operate.monitor import watched_run
from recsys.operate.pods import live_params, run_materialise_pod
from recsys.operate.promote import fill_online, move, roll_back, run_promote
from recsys.recommend.bundle import Bundle
from recsys.serve.backends import example_users, open_bundle_parts, served_bundle
from recsys.serve.serving import run_params

pytestmark = pytest.mark.xdist_group("run_folders")  # one store for all, in this order
SMALL_GATE = dict(GATE_CASES=100, BOOTSTRAP=100)
STAGES_AFTER_TRAINING = ("ingest", "data_prep", "bundle", "feature_store", "triton")
HALF_LIFE = 1.5  # days, of the popularity in the second execution


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    "A Valkey of its own, which the containers of a cluster would share."
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        pod = dict(VALKEY_PASSWORD=server.password, RECSYS_VALKEY_URL=server.url)
        with mock.patch.dict(os.environ, pod | dict(PUSHGATEWAY_URL="")):
            yield server.url


@pytest.fixture(scope="module")
def home(url, tmp_path_factory):
    "A store whose live bundle is that of the run `first`, and its online values."
    home = tiny_run(tmp_path_factory.mktemp("run_folders") / "outputs")
    (home / "tiny").rename(home / "first")
    params = run_params(home / "first", VALKEY_URL=without_password(url), **SMALL_GATE)
    for stage in ("feature_store", "triton"):
        run_here(STAGES[stage], params)
    run_promote(params, force="too few cases to judge by")
    run_materialise_pod(home)
    shutil.copytree(home / "first/ingest", home / "tables")
    return home


@pytest.fixture(scope="module")
def first_values(home, url):
    "The online values of the bundle that was promoted first."
    what_servers_load(home, url)  # the first server notes when the shop's clock began
    return online_values(url)


def without_password(url):
    "Return a URL as parameters hold it."
    return url.replace(os.environ["VALKEY_PASSWORD"], "${VALKEY_PASSWORD}")


def online_values(url):
    "Return everything that is in Valkey, by key."
    client = connect(url, 5000)
    readers = dict(
        hash=client.hgetall,
        string=client.get,
        list=lambda key: client.lrange(key, 0, -1),
        zset=lambda key: client.zrange(key, 0, -1, withscores=True),
    )
    return {
        key: readers.get(client.type(key).decode(), client.dump)(key) for key in client.scan_iter()
    }


def what_servers_load(home, url):
    "Return what gateway, worker and monitor have in memory after a start."
    params = live_params(home)
    parts = open_bundle_parts(params, url, served_bundle(params))
    catalogue, bundle = parts.catalogue, parts.recommender.bundle
    columns = bundle.columns.gather(np.arange(len(bundle.ids)), ["i_ints", "i_floats"])
    online = live_params(home, "online_run")
    worker = open_worker(online, url, Bundle(bundle_path(home, read_live(home)["version"])))
    made, stored = watched_run(online)
    return dict(
        version=bundle.version,
        items=list(zip(catalogue.ids, catalogue.titles, catalogue.categories, catalogue.prices)),
        columns={name: array.tobytes() for name, array in columns.items()},
        popularity=bundle.popularity.tobytes(),
        users=example_users(params),
        half_life=worker.work.p.POPULARITY_HALF_LIFE,
        layout={name: part for name, part in vars(worker.work.push).items() if name != "client"},
        judged=[Bundle(stored).version, *event_types(made)],
        judged_data=[
            (file.name, file.read_bytes())
            for file in sorted(load_prepared(made).folder.glob("*.npz"))
        ],
    )


def different(before, after):
    "Return the keys of two dictionaries under which they differ."
    return sorted(k for k in {*before, *after} if before.get(k) != after.get(k))


def changed_tables(home, one_more):
    "Write a run's tables with other prices, categories and users, and with one item more."
    folder = home / "tables"
    items = pd.read_parquet(folder / "items.parquet")
    items["price"] = items.price * 3 + 1
    items["category_l1"] = items.category_l1.to_numpy()[::-1]
    if one_more:
        items = pd.concat([items, items.tail(1).assign(item_id="one more")])
    items.to_parquet(folder / "changed.parquet")
    users = pd.read_parquet(folder / "users.parquet")
    users.assign(user_id=users.user_id.to_numpy()[::-1]).to_parquet(folder / "others.parquet")
    return dict(
        INTERACTIONS=str(folder / "interactions.parquet"),
        ITEMS=str(folder / "changed.parquet"),
        USERS=str(folder / "others.parquet"),
    )


def run_again(home, url, stages, one_more=False):
    "Execute stages of the run that is live once more, with changed items."
    params = run_params(home / "first", VALKEY_URL=without_password(url), **SMALL_GATE)
    changes = dict(SOURCE="tables", POPULARITY_HALF_LIFE=HALF_LIFE)
    params = Params({**params, **changes, **changed_tables(home, one_more)}, source="run again")
    for stage in stages:
        run_here(STAGES[stage], params)
    return params


def test_the_same_again_changes_nothing(home, url, first_values):
    "The job of the next hour: what differs in the tests below is not the job's own doing."
    run_materialise_pod(home)
    assert len(first_values) > 1000 and different(first_values, online_values(url)) == []


def test_a_refused_run_leaves_the_online_values(home, url, first_values):
    "The run with the models of before, its refused promotion, and the hourly job after it."
    loaded = what_servers_load(home, url)
    params = run_again(home, url, STAGES_AFTER_TRAINING)
    with pytest.raises(PromotionRefused):
        run_promote(params)
    assert Bundle(home / "first/bundle").version != read_live(home)["version"]
    assert different(first_values, online_values(url)) == []
    run_materialise_pod(home)
    assert different(first_values, online_values(url)) == []
    assert different(loaded, what_servers_load(home, url)) == []


def of_items(values):
    "Return the online values of items."
    return {key: value for key, value in values.items() if b"item_id" in key}


def test_a_fill_that_fails_is_made_good_by_the_next_promotion_or_rollback(home, url, first_values):
    "The pointer has moved already, and half of the values are those of the bundle before."
    before, params = of_items(first_values), run_params(home / "first", **SMALL_GATE)
    version = Bundle(home / "first/bundle").version

    def promote_in_vain():
        error = ResponseError("OOM command not allowed")
        with (
            mock.patch.object(feature_store, "fill_popularity", side_effect=error),
            pytest.raises(RecsysError, match="is live, but the online store could not be filled"),
        ):
            run_promote(params, force="a drill")
        assert read_live(home)["version"] == version
        assert different(before, of_items(online_values(url))) != []

    promote_in_vain()
    assert roll_back(home, valkey=url)["notes"] == []
    assert different(before, of_items(online_values(url))) == []
    promote_in_vain()
    run_promote(params, force="a drill")
    assert connect(url, 5000).get(feature_store.FILLED) == version.encode()
    roll_back(home, valkey=url)
    assert different(before, of_items(online_values(url))) == []


def test_a_promotion_without_servers_fills_the_store(home, url, first_values):
    before = of_items(first_values)
    run_promote(run_params(home / "first", **SMALL_GATE), force="a drill")
    assert len(different(before, of_items(online_values(url)))) == len(before)
    assert live_params(home, "online_run").POPULARITY_HALF_LIFE == HALF_LIFE


def test_a_run_that_is_at_work_leaves_the_online_values(home, url):
    "One item more than the live bundle knows; the training has not ended yet."
    values, loaded = online_values(url), what_servers_load(home, url)
    run_again(home, url, ("ingest", "data_prep"), one_more=True)
    run_materialise_pod(home)
    assert different(values, online_values(url)) == []
    assert different(loaded, what_servers_load(home, url)) == []


def test_a_rollback_brings_the_old_values_back(home, url, first_values):
    "Wrong data may be what a rollback is made for, so it does not wait for the hourly job."
    assert roll_back(home, valkey=url)["notes"] == []
    before = of_items(first_values)
    assert different(before, of_items(online_values(url))) == []


def test_a_rollback_stays_where_the_store_can_not_be_asked(home):
    "The address has no scheme. The note says so; a second rollback would go one bundle too far."
    before = read_live(home)
    other = next(x for x in stored_versions(home) if x != before["version"])
    move(home, other, after_promotion(before, other))
    (note,) = roll_back(home, valkey="127.0.0.1:6379")["notes"]
    assert "VALKEY_URL is '127.0.0.1:6379'" in note
    assert read_live(home)["version"] == before["version"]


def test_the_hourly_job_leaves_the_listed_files_alone(home):
    "Later checks compare them with the hashes of the promotion; servers have read the layout."
    folder = bundle_path(home, read_live(home)["version"]) / "run"
    listed = [folder / name for name in read_json(folder / "files.json")["files"]]
    written_at = {file: file.stat().st_mtime_ns for file in listed}
    run_materialise_pod(home)
    assert {file: file.stat().st_mtime_ns for file in listed} == written_at
    with (
        mock.patch.object(feature_store, "online_layout", return_value=dict(fields=[])),
        pytest.raises(RecsysError, match="online.json has another layout of the online store"),
    ):
        run_materialise_pod(home)
    assert checked_run(home, read_live(home)["version"]) == folder
    run_materialise_pod(home)  # what was broken off is made good


def test_an_hourly_job_that_is_slower_than_a_rollback_leaves_what_is_live(home, url, monkeypatch):
    """The job is held before its last step until the rollback is done, or waits for the job."""
    before, values = read_live(home), online_values(url)
    other = next(x for x in stored_versions(home) if x != before["version"])
    move(home, other, after_promotion(before, other))
    fill_online(home, other, url)
    began, ended, fill = threading.Event(), threading.Event(), feature_store.fill_popularity

    def slow_fill(*given):
        began.set()
        ended.wait(15)
        monkeypatch.setattr(feature_store, "fill_popularity", fill)
        return fill(*given)

    monkeypatch.setattr(feature_store, "fill_popularity", slow_fill)

    def take_back():
        assert roll_back(home, valkey=url)["notes"] == []
        ended.set()

    with ThreadPoolExecutor() as pool:
        job = pool.submit(run_materialise_pod, home)
        assert began.wait(60)
        monkeypatch.setattr(feature_store, "fill_popularity", fill)
        taken_back = pool.submit(take_back)
        assert job.result()["users"] and taken_back.result() is None
    assert read_live(home)["version"] == before["version"]
    assert connect(url, 5000).get(feature_store.FILLED) == before["version"].encode()
    assert different(of_items(values), of_items(online_values(url))) == []


def test_a_bundle_without_the_data_of_its_run_is_served_until_they_change(home, capsys):
    "As an older version stored it: the run's folder is read, and refused once it is newer."
    version = read_live(home)["version"]
    kept = bundle_path(home, version) / "run"
    kept.rename(home / "kept")
    try:
        with pytest.raises(RecsysError, match="data_prep has been executed again since bundle"):
            run_materialise_pod(home)
        for stage in ("ingest", "data_prep", "embeddings"):
            shutil.copytree(home / "kept" / stage, home / "first" / stage, dirs_exist_ok=True)
        assert live_params(home).RUN == "first"
        assert "stored without the data of its run" in capsys.readouterr().err
    finally:
        (home / "kept").rename(kept)


def test_a_changed_file_of_the_data_is_named(home):
    file = bundle_path(home, read_live(home)["version"]) / "run/ingest/users.parquet"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-1])
    with pytest.raises(RecsysError, match="users.parquet differs from its sha256 in files.json"):
        run_materialise_pod(home)
    file.write_bytes(content)
    assert run_materialise_pod(home)["users"] > 0


def test_the_data_go_with_their_bundle(home):
    stored = [path.name for path in (home / "bundles").iterdir() if (path / "run").is_dir()]
    assert len(stored) == 2
    (home / "anchor.json").unlink()
    set_live(home, read_live(home)["version"], [])
    prune_bundles(home, 1)
    left = [path.name for path in (home / "bundles").iterdir() if path.is_dir()]
    assert left == [read_live(home)["version"]]
