"""An optional history feature: trained, served from memory and served online alike."""

import shutil

import numpy as np
import pytest
from tiny import tiny_run

from recsys.core.params import default_params
from recsys.core.runs import stage_dir


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    "Return parameters of a run with days_idle, and a bundle that has the feature in its contract."
    from recsys.data.prep import run_data_prep
    from recsys.recommend.bundle import Bundle

    outputs = tiny_run(tmp_path_factory.mktemp("runs") / "outputs")
    tiny = default_params(OUTPUTS=str(outputs))
    params = default_params(
        OUTPUTS=str(outputs),
        RUN="idle",
        HISTORY_FEATURES="days_idle",
        TEXT_ENCODER="none",
        IMAGE_ENCODER="none",
    )
    shutil.copytree(stage_dir(tiny, "ingest"), stage_dir(params, "ingest"), dirs_exist_ok=True)
    prep = run_data_prep(params)
    bundle = Bundle(stage_dir(tiny, "bundle"))
    bundle.contract = prep.contract
    return params, prep, bundle


def test_training_and_memory_agree_on_days_idle(idle):
    from recsys.recommend.users import UserMemory

    _, prep, bundle = idle
    memory, rng = UserMemory(prep, bundle), np.random.default_rng(0)
    known = np.flatnonzero(prep.events["user"] >= 0)
    rows = rng.choice(known, 300, replace=False)
    users = [memory.ids[user].decode() for user in prep.events["user"][rows]]
    now = np.asarray(prep.events["timestamp"][rows])
    trained = prep.query_inputs(rows)["days_idle"]
    served = memory.state(users, now)["inputs"]["days_idle"]
    assert trained.dtype == served.dtype == np.float32
    np.testing.assert_array_equal(trained, served)
    assert len(np.unique(trained)) > 100


def test_online_store_agrees_on_days_idle(idle, tmp_path):
    from recsys.online.feature_store import materialise
    from recsys.online.online_store import OnlineUsers, load_settings
    from recsys.online.seen import SeenStore
    from recsys.online.valkey import Breaker, EmbeddedValkey, connect
    from recsys.recommend.users import UserMemory

    params, prep, bundle = idle
    end = prep.meta["span"][1] + 1
    with EmbeddedValkey(tmp_path / "valkey") as server:
        materialise(params, server.url, bundle, end, tmp_path / "store")
        client = connect(server.url, 2000)
        settings = load_settings(tmp_path / "store")
        online = OnlineUsers(bundle, client, SeenStore(client), Breaker("valkey"), settings)
        memory = UserMemory(prep, bundle)
        users = [user.decode() for user in memory.ids] + ["", "a stranger"]
        for later in (0, 3600, 40 * 86400, 800 * 86400):
            now = np.full(len(users), end + later)
            read, truth = online.state(users, now)["inputs"], memory.state(users, now)["inputs"]
            assert list(read) == list(truth)
            np.testing.assert_array_equal(read["days_idle"], truth["days_idle"])
        assert (truth["days_idle"] == 1).all()  # more than a year later


def test_days_idle_knows_only_what_lies_before(idle):
    from recsys.evaluate.raw_tables import RawRun
    from recsys.evaluate.recomputed_features import check_features

    params, prep, _ = idle
    rows = check_features(params, prep, RawRun(params, prep.encoder), n=120)
    [row] = [row for row in rows if row["check"] == "days_idle"]
    assert row["verdict"] == "ok" and row["checked"] > 100, row


def test_days_idle_is_off_by_default(idle):
    from recsys.data.prepared import load_prepared

    params, prep, _ = idle
    tiny = load_prepared(default_params(OUTPUTS=params.OUTPUTS))
    assert tiny.contract["days_idle"] is None
    assert prep.contract["days_idle"].side == "history"
