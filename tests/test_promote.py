"""Promotions with real servers: refused, moved under load, killed half way, failed on one server,
taken back.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from rollover import Traffic, requests_of, right_answers, two_runs
from tiny import ROOT, tiny_run

from recsys.core.params import RecsysError
from recsys.core.runs import read_json, sha256_file, write_json
from recsys.operate import promote
from recsys.operate.bundle_store import (
    after_promotion,
    bundle_path,
    keep_bundle,
    read_anchor,
    read_live,
    stored_versions,
)
from recsys.operate.live_server import served_live
from recsys.operate.promote import (
    answered_by,
    fill_online,
    load_beside,
    move,
    roll_back,
    run_promote,
    status,
    status_text,
)
from recsys.recommend.bundle import Bundle, check_bundle
from recsys.recommend.new_items import add_items
from recsys.serve.server import Client
from recsys.serve.serving import run_params

pytestmark = pytest.mark.xdist_group("promote")  # one server for all, in this order


FEW = ("--set", "GATE_CASES=600", "--set", "BOOTSTRAP=100")


def cli(*args, **env):
    code = "import sys; sys.argv[0] = 'recsys'; from recsys.operate.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        timeout=400,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Two runs, the second with broken models; the first one is live."
    home = tiny_run(tmp_path_factory.mktemp("promote") / "outputs")
    for left in ("live.json", "bundles", "live"):
        assert not (home / left).exists()  # the tiny run never is what is live
    two_runs(home)
    done = cli("promote", "--run", home / "first", "--json", *FEW)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        json.loads(done.stdout)["replicas"] == []
        and "no server runs, start one with: recsys serve --live" in done.stderr
    )
    return home


@pytest.fixture(scope="module")
def server(home):
    with served_live(home, HTTP_PORT=0, GRPC_PORT=0, METRICS_PORT=0) as one:
        yield one


@pytest.fixture(scope="module")
def asked(home, server):
    "Requests, and the right answers of both bundles."
    requests = requests_of(home / "first")
    if not bundle_path(home, "broken000000").is_dir():
        keep_bundle(
            home,
            home / "second/bundle",
            run="second",
            online=read_json(home / "second/triton/online.json"),
            metrics={},
        )
    return requests, right_answers(
        home, server.url, [read_live(home)["version"], "broken000000"], requests
    )


def test_a_worse_bundle_is_refused(home, server):
    before = read_live(home)
    done = cli("promote", "--run", home / "second", *FEW)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert (
        "the gate refuses bundle broken000000" in done.stdout
        and "wanted the whole interval above 0" in done.stdout
        and "--force REASON" in done.stdout
    )
    decision = read_json(home / "second/promote/gate.json")
    assert (
        not decision["passed"]
        and {r["rule"] for r in decision["rules"] if not r["passed"]}
        == {"popularity", "live", "segment"}
        and decision["live"] == before["version"]
    )
    assert (
        "| NO | live | all |" in (home / "second/promote/gate.md").read_text()
        and not (home / "second/promote/stage.json").exists()
    )
    assert read_live(home) == before and answered_by(server.server) == before["version"]


def test_promotions_under_load(home, server, asked):
    """3,000 requests across two promotions: none fails, each is answered by the bundle that it
    names.
    """
    good = read_live(home)["version"]
    with Traffic([server.server.grpc], *asked, threads=2) as traffic:
        traffic.wait(600)
        done = cli("promote", "--run", home / "second", "--force", "a drill", *FEW)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (
            answered_by(server.server) == "broken000000"
            and read_live(home)["reason"] == "forced: a drill"
        )
        assert "forced" in read_json(home / "second/promote/gate.json")
        traffic.wait(traffic.answers.total() + 300)
        report = run_promote(
            run_params(home / "first", GATE_CASES=600, BOOTSTRAP=100)
        )  # against the broken one it passes
        assert (
            report["replicas"][0]["bundle"] == good
            and report["pointer"]["metrics"]["above live"] > 0
        )
        traffic.wait(3000)
    assert (
        traffic.failed == []
        and traffic.mixed == []
        and set(traffic.answers) == {good, "broken000000"}
    ), (len(traffic.failed), traffic.failed[:3], len(traffic.mixed), traffic.mixed[:2])
    print(dict(traffic.answers), report["seconds"])


def test_rollback_serves_the_version_before_and_no_request_fails(home, server, asked):
    move(home, "broken000000", after_promotion(read_live(home), "broken000000"))
    live = read_live(home)
    with Traffic([server.server.grpc], *asked, threads=1) as traffic:
        traffic.wait(20)
        done = cli("rollback", "--reason", "only socks", "--set", f"OUTPUTS={home}")
        assert done.returncode == 0, done.stderr
        traffic.wait(traffic.answers.total() + 20)
    assert traffic.failed == []
    assert set(traffic.answers) == {"broken000000", live["predecessor"]}
    assert (
        answered_by(server.server) == live["predecessor"] == read_live(home)["version"]
        and read_live(home)["reason"] == "only socks"
    )
    assert re.search(r"is live again after \S+ s", done.stdout)
    shown = json.loads(cli("status", "--json", "--set", f"OUTPUTS={home}").stdout)
    assert shown["live"] == read_live(home) and shown["replicas"] == [
        dict(replica="1", address=server.server.http, ready=True, bundle=live["predecessor"])
    ]


KILLED = """
import os, signal, sys
from recsys.operate.bundle_store import after_promotion, read_live
from recsys.operate.promote import move
home, version, at = sys.argv[1:]
def kill_at(step):
    if step == at:
        os.kill(os.getpid(), signal.SIGKILL)
move(home, version, after_promotion(read_live(home), version), fault=kill_at)
"""


@pytest.mark.parametrize("step", ["loaded", "pointed", "settled"])
def test_killed_half_way(home, server, asked, step):
    """Before the pointer everything stays, after it the server follows by itself; no request
    fails and none is mixed.
    """
    old = read_live(home)["version"]
    new = next(
        v for v in ("broken000000", check_bundle(home / "first/bundle")["version"]) if v != old
    )
    with Traffic([server.server.grpc], *asked, threads=1) as traffic:
        traffic.wait(1)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, home, new, step],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        live = read_live(home)["version"]
        assert live == (old if step == "loaded" else new) and check_bundle(bundle_path(home, live))
        assert answered_by(server.server) == (
            new if step == "settled" else old
        )  # a whole one in any case
        server.follow()
        assert answered_by(server.server) == live
        move(home, new, after_promotion(read_live(home), new))  # the next promotion works
        assert answered_by(server.server) == new
    assert traffic.failed == [] and traffic.mixed == [] and traffic.answers.total() > 0, (
        traffic.failed[:3],
        traffic.mixed[:2],
    )


def variant(home, version, **serving):
    "Keep a copy of the live bundle with other defaults of a request."
    folder = home / f"{version}.bundle"
    shutil.copytree(home / "first/bundle", folder, copy_function=shutil.copy)
    manifest = read_json(folder / "manifest.json")
    write_json(
        folder / "manifest.json",
        manifest | dict(version=version, serving=manifest["serving"] | serving),
    )
    return folder


def keep(home, folder):
    return keep_bundle(
        home, folder, run="first", online=read_json(home / "first/triton/online.json"), metrics={}
    )


def test_a_bundle_that_no_server_can_load_changes_nothing(home, server):
    folder, before = variant(home, "garbage"), read_live(home)
    (folder / "items.npz").write_bytes(b"no archive")
    manifest = read_json(folder / "manifest.json")
    write_json(
        folder / "manifest.json",
        manifest | dict(files=manifest["files"] | {"items.npz": sha256_file(folder / "items.npz")}),
    )
    keep(home, folder)
    with pytest.raises(
        RecsysError, match="no server could load the new bundle, nothing has changed: 1: .*page"
    ):
        move(home, "garbage", after_promotion(before, "garbage"))
    assert (
        read_live(home) == before
        and answered_by(server.server) == before["version"]
        and server.server.ready()
    )


def test_other_rules_wait_for_a_stop(home, server):
    keep(home, variant(home, "longer", SEEN_DAYS=5))
    with pytest.raises(
        RecsysError, match="longer can't follow .* while servers run: SEEN_DAYS was 3, is 5"
    ):
        move(home, "longer", after_promotion(read_live(home), "longer"))


def test_a_server_that_fails_leaves_readiness(home, server, monkeypatch, tmp_path):
    """Two servers; the second does not find the new bundle. It says no to the load balancer, the
    first one serves, a rollback brings both together.
    """
    keep(home, variant(home, "sorted", MAX_PER_CATEGORY=1))
    for n in (home / "live/bundles").iterdir():
        (tmp_path / n.name).symlink_to(n)
    monkeypatch.setenv("RECSYS_BUNDLES", str(tmp_path))
    before = read_live(home)["version"]
    with (
        served_live(home, HTTP_PORT=0, GRPC_PORT=0, METRICS_PORT=0) as second,
        Client(second.server.grpc, timeout=10) as client,
    ):
        assert [(r["replica"], r["ready"], r["bundle"]) for r in status(home)["replicas"]] == [
            ("1", True, before),
            ("2", True, before),
        ]
        assert (server.worker is None) != (second.worker is None)  # one of them learns from events
        report = move(home, "sorted", after_promotion(read_live(home), "sorted"))
        first, failed = report["replicas"]
        assert (
            (first["ready"], first["bundle"], first["error"]) == (True, "sorted", "")
            and (failed["ready"], failed["bundle"]) == (False, "")
            and "page" in failed["error"]
        )
        assert not second.server.ready() and answered_by(server.server) == "sorted"
        with pytest.raises(RecsysError, match="UNAVAILABLE|NOT_FOUND"):
            client.recommend(k=3)  # what a client sees that doesn't ask whether it is ready
        assert "server 2" in status_text(status(home)) and "NOT READY" in status_text(status(home))
        assert (
            second.follow().startswith(
                "bundle sorted can't be loaded, this server is not ready any more"
            )
            and second.follow() == ""
        )
        report = roll_back(home)
        assert [(r["ready"], r["bundle"]) for r in report["replicas"]] == [
            (True, before)
        ] * 2 and client.recommend(k=3)["bundle_version"] == before
        print(report["replicas"])


def test_the_store_is_filled_for_other_data_only(home, server):
    from recsys.online.feature_store import FILLED
    from recsys.online.valkey import connect

    live, client = read_live(home), connect(server.url, 5000)
    assert client.get(FILLED) == live["version"].encode() and not fill_online(
        home, live["version"], server.url
    )
    client.set(FILLED, "another")
    assert (
        fill_online(home, live["version"], server.url)
        and client.get(FILLED) == live["version"].encode()
    )


def test_a_materialise_job_between_fill_and_switch_is_made_good(home, server, monkeypatch):
    "It read the pointer before the switch, and so it fills the store for the bundle before."
    from recsys.online.feature_store import FILLED
    from recsys.online.valkey import connect

    client, old = connect(server.url, 5000), read_live(home)["version"]

    def load_while_the_job_fills(*given):
        load_beside(*given)
        client.set(FILLED, old)

    monkeypatch.setattr(promote, "load_beside", load_while_the_job_fills)
    monkeypatch.setattr(promote, "has_data_of", lambda home, version, filled: False)
    other = "first" if old == "broken000000" else "second"
    params = run_params(home / other, GATE_CASES=600, BOOTSTRAP=100)
    report = run_promote(params, force="a drill")
    assert report["pointer"]["version"] != old
    assert client.get(FILLED) == report["pointer"]["version"].encode()
    monkeypatch.undo()
    assert roll_back(home, valkey=server.url)["pointer"]["version"] == old
    assert client.get(FILLED) == old.encode()


def test_old_bundles_go_and_the_anchor_stays(home, server):
    anchor = read_anchor(home)["version"]
    for n in (1, 2):
        move(
            home,
            keep(home, variant(home, f"day {n}", K=11 + n)),
            after_promotion(read_live(home), f"day {n}"),
            keep=2,
        )
    assert (
        sorted(stored_versions(home)) == sorted([anchor, "day 1", "day 2"])
        and read_live(home)["predecessor"] == "day 1"
        and answered_by(server.server) == "day 2"
    )
    assert sorted(
        read_json(f)["version"] for f in (home / "live/bundles").glob("*/manifest.json")
    ) == sorted([anchor, "day 1", "day 2"])


def test_added_items_stay_through_a_promotion(home, server):
    "A bundle with added items is the live one as before; the next one has them, too."
    server.follow()  # it knows of the moves before
    live, first = read_live(home)["version"], check_bundle(home / "first/bundle")["version"]
    bundle = Bundle(bundle_path(home, live))
    table = bundle.shown.slice(0, 1).to_pandas().assign(item_id="just in", description="")
    assert add_items(bundle, table, home / "first/embeddings") == 1
    with Client(server.server.grpc, timeout=10) as client:
        page = client.recommend(k=1000)
        assert "just in" in page["item_ids"] and page["bundle_version"] == f"{live}+1"
        assert (
            answered_by(server.server) == live and server.follow() == "" and server.server.ready()
        )
        run_promote(run_params(home / "first", GATE_CASES=600, BOOTSTRAP=100), force="a drill")
        page = client.recommend(k=1000)
        assert "just in" in page["item_ids"] and page["bundle_version"] == f"{first}+1"
        assert status(home)["replicas"][0]["bundle"] == first and server.server.ready()
