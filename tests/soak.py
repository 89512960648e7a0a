"""Hours of service in minutes: half the capacity, promotions, additions, events and random kills.

`make prove ARGS=soak` runs it for SOAK_MINUTES (30) and writes outputs/soak.json.

What flat means. Each promotion is one of a new bundle. With the first, a second version's
processes stand beside the live one's for good (a rollback needs them); the store and the live
repository grow until they hold KEEP_BUNDLES (5), the first one and four more; the first added
item loads the encoders' libraries. So the first third of the run is the warm-up, and it must hold
`WARM_UP_PROMOTIONS` of them, which takes a run of ten minutes. Then the median of the last third
may exceed the median of the middle third by 5 %, for descriptors, processes, files, and the memory
of a process of each kind. Memory is judged a process, because a sample that meets a killed stub
holds one stub less: sums would follow the number of stubs that stand, which is judged apart. A
kind below `SMALL_MIB` is not judged by shares.

Files are counted without the logs of traffic, see `LOGS`, and without the items that people added:
each bundle's stay beside its run, also when the bundle has left the store. `files_by_folder` says
where the others lie.

Memory is what processes have for themselves or share with each other (anonymous and shared
memory). Pages of program files are left out: how many of them are counted depends on what else
runs on the machine, and the system can drop them at any time. Zombies are counted apart: Triton
keeps the entry of each stub that was killed while a request was in it, see `serve.canary`.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from live_stack import NORMAL, LiveStack, Traffic, command_line, count_events, until

from recsys.core.params import RecsysError
from recsys.core.runs import find_root, read_json, write_json
from recsys.operate.bundle_store import after_promotion, keep_bundle, read_live
from recsys.operate.promote import move

CAPACITY_SECONDS = 10
SAMPLE_SECONDS = 5
ACTION_SECONDS = 12  # between two kills, promotions or additions
FLAT = 0.05  # change of a figure that counts as flat
SMALL_MIB = 20  # memory of a process, below which its change is not judged
WARM_UP_PROMOTIONS = 4  # in the first third of a run
ADDED = ".added.jsonl"  # in the name of a file of added items, and of its lock
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
    "Return the anonymous and shared memory of a process in MiB, 0 where it is gone."
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    wanted = ("Pss_Anon:", "Pss_Shmem:")
    sizes = [int(line.split()[1]) for line in lines if line.startswith(wanted)]
    return sum(sizes) / 1024


def kind_of(stack, pid):
    "Return what a process of the stack is: server, gateway, triton, valkey, worker, stub, other."
    known = {
        stack.server.pid: "server",
        stack.gateway.pid: "gateway",
        stack.triton(): "triton",
        stack.valkey(): "valkey",
    }
    words = command_line(pid)
    if pid not in known and "python_backend_stub" in words:
        return "stub"
    return known.get(pid, "worker" if "worker --run" in words else "other")


def descriptors_of(pid):
    "Return the number of open descriptors of a process, 0 where it is gone."
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def folder_of(stack, file):
    "Return the first folders of a file's path, without the numbers of versions."
    parts = file.relative_to(stack.home).parent.parts[:3]
    return re.sub(r"[0-9]+", "#", "/".join(parts))


def sample(stack):
    "Return what must stay flat: memory, descriptors, processes and files outside of the logs."
    pids = stack.children()
    files = [
        file
        for file in stack.home.rglob("*")
        if not set(file.parts) & set(LOGS) and ADDED not in file.name
    ]
    logs = [file for name in LOGS for file in (stack.run / name).rglob("*.parquet")]
    memory, number = Counter(), Counter()
    living = [pid for pid in pids if command_line(pid)]
    for pid in living:
        kind = kind_of(stack, pid)
        number[kind] += 1
        memory[kind] += memory_of(pid)
    return dict(
        memory_mib=round(sum(memory.values()), 1),
        memory_by_kind={kind: round(memory[kind] / number[kind], 1) for kind in sorted(number)},
        files_by_folder=dict(sorted(Counter(folder_of(stack, file) for file in files).items())),
        descriptors=sum(map(descriptors_of, pids)),
        processes=len(living),
        zombies=len(pids) - len(living),
        files=len(files),
        log_files=len(logs),
        log_bytes=sum(file.stat().st_size for file in stack.home.rglob("*.log")),
    )


def keep_variant(stack, number):
    "Keep a variant of the live bundle with another default, and return its version."
    version = f"variant{number}"
    folder = stack.home / "second/bundle"  # of the run that makes all variants, as daily runs do
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(stack.run / "bundle", folder, copy_function=shutil.copy)
    manifest = read_json(folder / "manifest.json")
    serving = manifest["serving"] | dict(K=11 + number % 9)
    write_json(folder / "manifest.json", manifest | dict(version=version, serving=serving))
    online = read_json(stack.run / "triton/online.json")
    keep_bundle(stack.home, folder, run="first", online=online, metrics={})
    return version


class Disturber(threading.Thread):
    "Kills children, promotes bundles and adds items until it is stopped."

    def __init__(self, stack, seed=0):
        super().__init__(daemon=True)
        self.stack, self.done = stack, threading.Event()
        self.random, self.counts, self.errors = random.Random(seed), Counter(), []
        self.began, self.moments = time.monotonic(), []  # of promotions, in seconds since then

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
        "Make a new variant live."
        until(lambda: not self.stack.alarms(), 10)
        version = keep_variant(self.stack, number)
        move(self.stack.home, version, after_promotion(read_live(self.stack.home), version))
        self.counts["promotions"] += 1
        self.moments.append(time.monotonic() - self.began)

    def add(self, number):
        "Add an item."
        new = dict(title=f"item {number}", price=5, category="garden", item_id=f"soak{number}")
        status, said = self.stack.ask("POST", "/v1/items", new, 60)
        assert status == 200, said
        self.counts["additions"] += 1


def change(values):
    "Return by what share the median of the last third exceeds the median of the middle third."
    third = len(values) // 3
    middle, last = statistics.median(values[third : 2 * third]), statistics.median(values[-third:])
    return (last - middle) / max(middle, 1)


def medians_by(name, samples):
    "Return the medians of each entry of a figure in the thirds of a run; entries by their name."
    third = len(samples) // 3
    parts = (samples[:third], samples[third : 2 * third], samples[-third:])
    entries = sorted({entry for sample in samples for entry in sample[name]})
    medians = {entry: [] for entry in entries}
    for entry in entries:
        for part in parts:
            values = [sample[name][entry] for sample in part if entry in sample[name]]
            medians[entry].append(round(statistics.median(values), 1) if values else 0.0)
    return medians


def memory_changes(memory_by_kind):
    "Return by what share the memory of a process grew from the middle third to the last."
    return {
        f"memory of a {kind}": round((last - middle) / middle, 4)
        for kind, (_, middle, last) in memory_by_kind.items()
        if middle >= SMALL_MIB
    }


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
                with contextlib.suppress(RecsysError):  # a killed child has no address just now
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
        name: round(change([s[name] for s in samples]), 4)
        for name in ("descriptors", "processes", "files")
    }
    memory_by_kind = medians_by("memory_by_kind", samples)
    changes |= memory_changes(memory_by_kind)
    folders = medians_by("files_by_folder", samples)
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
        warm_up_promotions=sum(moment < minutes * 20 for moment in disturber.moments),
        change_after_warm_up=changes,
        memory_mib_of_a_process=memory_by_kind,
        folders_that_grew={name: row for name, row in folders.items() if row[2] > row[1]},
        first=samples[len(samples) // 3],
        last=samples[-1],
        **counts,
    )
    write_json(find_root() / "outputs/soak.json", figures | dict(samples=samples))
    always = all(outcome.startswith("200") for outcome in outcomes)
    exact = counts["lost"] == counts["put_aside"] == counts["doubled"] == 0
    is_warm = figures["warm_up_promotions"] >= WARM_UP_PROMOTIONS
    flat = is_warm and max(changes.values()) <= FLAT
    return always and exact and bool(normal) and flat, figures
