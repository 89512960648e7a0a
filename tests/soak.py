"""Hours of service in minutes: half the capacity, promotions, additions, events and random kills.

`make prove ARGS=soak` runs it for SOAK_MINUTES (30) and writes outputs/soak.json.
"""

import os
import random
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from live_stack import NORMAL, LiveStack, Traffic, count_events, until

from recsys.core.runs import find_root, read_json, write_json
from recsys.operate.bundle_store import after_promotion, keep_bundle, read_live
from recsys.operate.promote import move

CAPACITY_SECONDS = 10
SAMPLE_SECONDS = 5
ACTION_SECONDS = 12  # between two kills, promotions or additions
FLAT = 0.05  # change of a figure that counts as flat
LOGS = ("events", "impressions", "features")  # folders that grow with traffic by design


def capacity(stack, threads=4):
    "Return how many pages a second the gateway answers when it is asked without a pause."
    counts, end = Counter(), time.monotonic() + CAPACITY_SECONDS

    def ask(number):
        while time.monotonic() < end:
            body = dict(user_id=f"u{number:04d}", k=5)
            counts[stack.ask("POST", "/v1/recommendations", body)[0]] += 1

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    return counts[200] / CAPACITY_SECONDS


def memory_of(pid):
    "Return the proportional memory of a process in MiB, 0 where it is gone."
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    sizes = [int(line.split()[1]) for line in lines if line.startswith("Pss:")]
    return sum(sizes) / 1024


def descriptors_of(pid):
    "Return the number of open descriptors of a process, 0 where it is gone."
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def sample(stack):
    "Return what must stay flat: memory, descriptors, processes and files outside of the logs."
    pids = stack.children()
    files = [file for file in stack.home.rglob("*") if not set(file.parts) & set(LOGS)]
    logs = [file for name in LOGS for file in (stack.run / name).rglob("*.parquet")]
    return dict(
        memory_mib=sum(map(memory_of, pids)),
        descriptors=sum(map(descriptors_of, pids)),
        processes=len(pids),
        files=len(files),
        log_files=len(logs),
        log_bytes=sum(file.stat().st_size for file in stack.home.rglob("*.log")),
    )


def keep_variants(stack):
    "Keep two variants of the live bundle with other defaults, and return their versions."
    online = read_json(stack.run / "triton/online.json")
    versions = []
    for length in (11, 12):
        folder = stack.home / f"variant{length}.bundle"
        shutil.copytree(stack.run / "bundle", folder, copy_function=shutil.copy)
        manifest = read_json(folder / "manifest.json")
        serving = manifest["serving"] | dict(K=length)
        content = manifest | dict(version=f"variant{length}", serving=serving)
        write_json(folder / "manifest.json", content)
        keep_bundle(stack.home, folder, run="first", online=online, metrics={})
        versions.append(f"variant{length}")
    return versions


class Disturber(threading.Thread):
    "Kills children, promotes bundles and adds items until it is stopped."

    def __init__(self, stack, seed=0):
        super().__init__(daemon=True)
        self.stack, self.done = stack, threading.Event()
        self.random, self.counts, self.errors = random.Random(seed), Counter(), []
        self.versions = keep_variants(stack)

    def run(self):
        number = 0
        while not self.done.wait(ACTION_SECONDS):
            action = (self.kill, self.promote, self.add)[number % 3]
            number += 1
            try:
                action(number)
            except Exception as error:  # an action that meets a killed server is tried later
                self.errors.append(f"{action.__name__}: {error!s:.200}")

    def kill(self, number):
        "Kill a child."
        name = self.random.choice(["valkey", "triton", "worker", "stub"])
        pid = self.stack.stubs()[0] if name == "stub" else getattr(self.stack, name)()
        assert pid, f"no {name} runs"
        self.stack.signal(pid, signal.SIGKILL)
        self.counts[f"kill {name}"] += 1

    def promote(self, number):
        "Make the other variant live."
        until(lambda: not self.stack.alarms(), 10)
        version = self.versions[number // 3 % 2]
        if read_live(self.stack.home)["version"] != version:
            move(self.stack.home, version, after_promotion(read_live(self.stack.home), version))
            self.counts["promotions"] += 1

    def add(self, number):
        "Add an item."
        new = dict(title=f"item {number}", price=5, category="garden", item_id=f"soak{number}")
        status, said = self.stack.ask("POST", "/v1/items", new, 60)
        assert status == 200, said
        self.counts["additions"] += 1


def is_flat(values):
    "Return the change between the middle and the end of a run after its warm-up."
    after = values[len(values) // 3 :]
    half = len(after) // 2
    first, last = statistics.median(after[:half]), statistics.median(after[half:])
    return (last - first) / max(first, 1)


def soak():
    "Half the capacity with kills, promotions and additions: nothing grows, is lost or doubled."
    minutes = float(os.environ.get("SOAK_MINUTES", "30"))
    samples = []
    with tempfile.TemporaryDirectory() as folder, LiveStack(folder) as stack:
        most = capacity(stack)
        disturber = Disturber(stack)
        began = time.monotonic()
        with Traffic(stack, pages=most / 2, events=most / 20 + 1, name="soak") as traffic:
            disturber.start()
            while time.monotonic() < began + minutes * 60:
                samples.append(sample(stack))
                time.sleep(SAMPLE_SECONDS)
            disturber.done.set()
            disturber.join()
            normal = until(lambda: traffic.is_normal(), 40)
        counts = count_events(stack, traffic.acknowledged, 120)
        pages = [row for row in traffic.rows if row[2] == "page"]
        outcomes = Counter(row[3] for row in pages)
        seconds = sorted(row[1] for row in pages)
    changes = {
        name: round(is_flat([s[name] for s in samples]), 4)
        for name in ("memory_mib", "descriptors", "processes", "files")
    }
    figures = dict(
        minutes=minutes,
        capacity_pages_a_second=round(most, 1),
        pages=dict(outcomes.most_common()),
        share_normal=round(outcomes[NORMAL] / len(pages), 4),
        p50_ms=round(seconds[len(seconds) // 2] * 1e3, 1),
        p99_ms=round(seconds[int(len(seconds) * 0.99)] * 1e3, 1),
        longest_ms=round(seconds[-1] * 1e3),
        actions=dict(disturber.counts),
        errors=disturber.errors,
        change_after_warm_up=changes,
        first=samples[len(samples) // 3],
        last=samples[-1],
        **counts,
    )
    write_json(find_root() / "outputs/soak.json", figures | dict(samples=samples))
    always = all(outcome.startswith("200") for outcome in outcomes)
    exact = counts["lost"] == counts["doubled"] == 0
    return always and exact and bool(normal) and max(changes.values()) <= FLAT, figures
