"""Promotions with real servers: refused, moved under load, killed half way, failed on one server, taken back."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from rollover import Traffic, requests_of, right_answers, with_other_models
from tiny import ROOT, tiny_run

from recsys.bundles import after_promotion, bundle_path, read_live
from recsys.core import RecsysError, read_json
from recsys.promote import answered_by, fill_online, move, roll_back, run_promote, served_live, status
from recsys.recommender import check_bundle
from recsys.serving import Client
from recsys.triton import run_params

pytestmark = pytest.mark.xdist_group("promote")   # one server for all, in this order


def cli(*args, **env):
    code = "import sys; sys.argv[0] = 'recsys'; from recsys.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), **env}, timeout=120)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Two runs, the second with broken models; the first one is live."
    home = tiny_run(tmp_path_factory.mktemp("promote") / "outputs")
    for left in ("live.json", "bundles", "live"):
        assert not (home / left).exists()            # the tiny run never is what is live
    (home / "tiny").rename(home / "first")
    with_other_models(home / "first", home / "second", "broken000000")
    done = cli("promote", "--run", home / "first", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["replicas"] == [] and "no server runs, start one with: recsys serve --live" in done.stderr
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
        from recsys.bundles import keep_bundle
        keep_bundle(home, home / "second/bundle", run="second", online=read_json(home / "second/triton/online.json"), metrics={})
    return requests, right_answers(home, server.url, [read_live(home)["version"], "broken000000"], requests)


def test_a_worse_bundle_is_refused(home, server):
    before = read_live(home)
    done = cli("promote", "--run", home / "second")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "the gate refuses bundle broken000000" in done.stdout and "wanted the whole interval above 0" in done.stdout and "--force REASON" in done.stdout
    decision = read_json(home / "second/promote/gate.json")
    assert not decision["passed"] and {r["rule"] for r in decision["rules"] if not r["passed"]} == {"popularity", "gain", "segment"} and decision["live"] == before["version"]
    assert "| NO | gain | all |" in (home / "second/promote/gate.md").read_text() and not (home / "second/promote/stage.json").exists()
    assert read_live(home) == before and answered_by(server.server) == before["version"]


def test_promotions_under_load(home, server, asked):
    "3,000 requests across two promotions: none fails, each is answered by the bundle that it names."
    good = read_live(home)["version"]
    with Traffic([server.server.grpc], *asked) as traffic:
        traffic.wait(600)
        done = cli("promote", "--run", home / "second", "--force", "a drill")
        assert done.returncode == 0, done.stdout + done.stderr
        assert answered_by(server.server) == "broken000000" and read_live(home)["reason"] == "forced: a drill"
        assert "forced" in read_json(home / "second/promote/gate.json")
        traffic.wait(traffic.answers.total() + 300)
        report = run_promote(run_params(home / "first"))            # against the broken one it passes
        assert report["replicas"][0]["bundle"] == good and report["pointer"]["metrics"]["above live"] > 0
        traffic.wait(3000)
    assert traffic.failed == [] and traffic.mixed == [] and set(traffic.answers) == {good, "broken000000"}, (len(traffic.failed), traffic.failed[:3], len(traffic.mixed), traffic.mixed[:2])
    print(dict(traffic.answers), report["seconds"])


def test_rollback_takes_seconds(home, server):
    live, began = read_live(home), time.perf_counter()
    done = cli("rollback", "--reason", "only socks", "--set", f"OUTPUTS={home}")
    seconds = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    assert answered_by(server.server) == live["predecessor"] == read_live(home)["version"] and read_live(home)["reason"] == "only socks"
    print(done.stdout, seconds)
    assert seconds < 5
    move(home, live["version"], [live["predecessor"]])              # back, for the tests that follow
    shown = json.loads(cli("status", "--json", "--set", f"OUTPUTS={home}").stdout)
    assert shown["live"]["version"] == live["version"] and shown["replicas"] == [dict(replica="1", address=server.server.http, ready=True, bundle=live["version"])]


KILLED = """
import os, signal, sys
from recsys.bundles import after_promotion, read_live
from recsys.promote import move
home, version, at = sys.argv[1:]
move(home, version, after_promotion(read_live(home), version), fault=lambda step: step == at and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.parametrize("step", ["filled", "written", "loaded", "pointed", "settled"])
def test_killed_half_way(home, server, asked, step):
    "Before the pointer everything stays, after it the server follows by itself; no request fails and none is mixed."
    old = read_live(home)["version"]
    new = next(v for v in ("broken000000", check_bundle(home / "first/bundle")["version"]) if v != old)
    with Traffic([server.server.grpc], *asked, threads=1) as traffic:
        done = subprocess.run([sys.executable, "-c", KILLED, home, new, step], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == -signal.SIGKILL, done.stderr
        live = read_live(home)["version"]
        assert live == (old if step in ("filled", "written", "loaded") else new) and check_bundle(bundle_path(home, live))
        assert answered_by(server.server) == (new if step == "settled" else old)      # a whole one in any case
        server.follow()
        assert answered_by(server.server) == live
        move(home, new, after_promotion(read_live(home), new))                        # the next promotion works
        assert answered_by(server.server) == new
    assert traffic.failed == [] and traffic.mixed == [] and traffic.answers.total() > 0, (traffic.failed[:3], traffic.mixed[:2])
