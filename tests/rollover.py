"""Traffic across promotions: every answer must be, item by item, that of the bundle it names."""

import shutil
import threading
import time
from collections import Counter

import onnx
from onnx import helper

from recsys.core.params import RecsysError
from recsys.core.pipeline import run_here
from recsys.core.runs import read_json, sha256_file, write_json
from recsys.core.stages import STAGES
from recsys.data.features import load_arrays
from recsys.operate.bundle_store import bundle_path
from recsys.operate.promote import live_folder
from recsys.recommend.bundle import Bundle
from recsys.recommend.recommender import Recommender
from recsys.serve.server import Client
from recsys.serve.serving import run_params
from recsys.serve.step_members import online_users


def turn_round(bundle, version):
    """Make a bundle whose query tower and ranker give the negative of what they gave: a broken
    model, with pages of other items.
    """
    for name in ("query_tower.onnx", "dlrm.onnx"):
        m = onnx.load(bundle / name)
        out = m.graph.output[0].name
        for node in m.graph.node:
            for names in (node.input, node.output):
                for i, n in enumerate(names):
                    if n == out:
                        names[i] = out + "_before"
        m.graph.node.append(helper.make_node("Neg", [out + "_before"], [out]))
        (bundle / name).unlink()  # it may be the same file as its copy
        onnx.save(m, bundle / name)
    manifest = read_json(bundle / "manifest.json")
    files = {n: sha256_file(bundle / n) for n in manifest["files"]}
    write_json(bundle / "manifest.json", manifest | dict(version=version, files=files))


def with_other_models(run, target, version):
    "Copy a run, and turn its models round."
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("valkey", "*.lock"))
    turn_round(target / "bundle", version)
    return target


def two_runs(home):
    "Make two runs of the tiny one: `first`, and `second` with its models turned round."
    (home / "tiny").rename(home / "first")
    run_here(
        STAGES["triton"], run_params(home / "first", VALKEY_TIMEOUT_MS=5000)
    )  # a busy machine is no reason for a page of other items
    with_other_models(home / "first", home / "second", "broken000000")
    return home


def requests_of(run, n=12):
    "Greedy requests with one right answer: known users, new ones, anonymous visitors."
    users = [u.decode() for u in load_arrays(run / "data_prep/users.npz")["user_id"][:n]]
    now = read_json(run / "bundle/manifest.json")["data"]["train"][1] + 1  # the clock's start
    return [
        dict(
            user_id=u if i % 3 else "" if i % 2 else f"new {i}",
            k=10,
            timestamp=now + 60 * i,
            request_id="canary",
        )
        for i, u in enumerate(users)
    ]


def right_answers(home, url, versions, requests):
    "Answer the requests in this process with each bundle."
    out = {}
    for v in versions:
        b = Bundle(bundle_path(home, v))
        rec = Recommender(b, online_users(b, url, read_json(live_folder(home) / "online.json")))
        for i, r in enumerate(requests):
            a = rec.recommend(
                {n: r[n] if n == "k" else [r[n]] for n in ("user_id", "k", "timestamp")}
            )
            assert not a["reasons"][0]["fallbacks"], a["reasons"]
            out[v, i] = a["item_ids"][0].tolist()
    assert all(
        out[a, i] != out[b, i]
        for a in versions
        for b in versions
        if a != b
        for i in range(len(requests))
    )  # else nothing could be told from them
    return out


class Traffic:
    "Ask servers from several threads without a pause while the block lasts."

    def __init__(self, addresses, requests, right, threads=3):
        self.addresses, self.requests, self.right = addresses, requests, right
        self.answers, self.failed, self.mixed, self.done = Counter(), [], [], threading.Event()
        self.threads = [threading.Thread(target=self.ask, args=(t,)) for t in range(threads)]

    def ask(self, t):
        i = t
        with Client(self.addresses[t % len(self.addresses)], timeout=20) as client:
            while not self.done.is_set() and not self.connected(client):
                time.sleep(0.1)
            while not self.done.is_set():
                n = i % len(self.requests)
                i += 1
                try:
                    a = client.recommend(**self.requests[n])
                except RecsysError as e:
                    self.failed.append(str(e))
                    continue
                self.answers[a["bundle_version"]] += 1
                if (
                    a["item_ids"].tolist() != self.right.get((a["bundle_version"], n))
                    or a["reasons"]["fallbacks"]
                ):
                    self.mixed.append(
                        (n, a["bundle_version"], a["item_ids"].tolist(), a["reasons"]["fallbacks"])
                    )

    @staticmethod
    def connected(client):
        """Tell whether the connection stands: on a starved machine that takes gRPC several
        attempts, which are no requests.
        """
        try:
            client.recommend(k=1, request_id="canary")
            return True
        except RecsysError:
            return False

    def wait(self, n, seconds=400):
        "Wait for so many answers."
        end = time.monotonic() + seconds
        while self.answers.total() < n:
            assert time.monotonic() < end, (
                f"{self.answers.total()} of {n} answers in {seconds} s, {self.failed[:3]}"
            )
            time.sleep(0.05)

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        for t in self.threads:
            t.join()
