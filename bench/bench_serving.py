"""The served side's figures: `make bench` adds them to outputs/bench.json; alone: `python
bench/bench_serving.py [RUN]`.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time

import numpy as np

from recsys.core.pipeline import run_here
from recsys.core.runs import find_root, read_json, run_dir, stage_dir, write_json
from recsys.core.stages import STAGES, stages_to_serve
from recsys.data.features import load_arrays
from recsys.online.valkey import answers, connect
from recsys.recommend.bundle import Bundle
from recsys.recommend.fallbacks import REQUEST_STEPS
from recsys.serve.ensemble import ensemble_from
from recsys.serve.repository import next_version, pinned_version
from recsys.serve.server import Client
from recsys.serve.serving import online_parts, run_params, served
from recsys.serve.triton_process import session_processes

QUIET = dict(request_id="canary")  # leaves no impression


def spread(seconds):
    ms = np.asarray(seconds) * 1e3
    return dict(
        p50_ms=round(float(np.median(ms)), 2),
        p99_ms=round(float(np.quantile(ms, 0.99)), 2),
        n=len(ms),
    )


def timed(work):
    t = time.perf_counter()
    answer = work()
    return time.perf_counter() - t, answer


def one_at_a_time(ways, users, n=400, seed=0):
    "Ask every way in turn, so that all meet the same machine; the first 30 don't count."
    rng, taken = np.random.default_rng(seed), {w: [] for w in ways}
    for i in range(n + 30):
        user = users[rng.integers(len(users))]
        for name, ask in ways.items():
            t, answer = timed(lambda: ask(user))
            if i >= 30:
                taken[name].append((t, answer))
    return {w: spread([t for t, _ in v]) for w, v in taken.items()} | dict(
        stages_p50_ms={
            w: dict(
                zip(
                    REQUEST_STEPS,
                    np.median(
                        [
                            list(a["stage_ms"].values())
                            if isinstance(a["stage_ms"], dict)
                            else a["stage_ms"]
                            for _, a in v
                        ],
                        axis=0,
                    )
                    .round(3)
                    .tolist(),
                )
            )
            for w, v in taken.items()
        }
    )


def client_loop(grpc, users, n, seed, gate, results):
    rng, taken = np.random.default_rng(seed), []
    with Client(grpc, timeout=10) if ":" in grpc else Gateway(grpc) as client:
        for _ in range(20):
            client.recommend(user_id=users[0], k=10, **QUIET)
        gate.wait()
        for _ in range(n):
            taken.append(
                timed(
                    lambda: client.recommend(user_id=users[rng.integers(len(users))], k=10, **QUIET)
                )[0]
            )
    results.put(taken)


class Gateway:
    "Ask a gateway over one connection that stays open, as `serving.Client` does Triton."

    def __init__(self, port, timeout=10):
        import http.client

        self.connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=timeout)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def recommend(self, **fields):
        self.connection.request(
            "POST", "/v1/recommendations", json.dumps(fields), {"Content-Type": "application/json"}
        )
        answer = json.loads(self.connection.getresponse().read())
        assert answer["source"] == "two-tower" and len(answer["items"]) == fields["k"], answer
        return answer


def through_gateway(p, url, server, users, tmp):
    """What the gateway adds to a direct gRPC call, and what it carries with eight clients,
    everything on this machine.
    """
    from recsys.online.valkey import OwnedProcess, free_port

    port = free_port()
    command = [
        sys.executable,
        "-c",
        "from recsys.operate.cli import main; main()",
        "gateway",
        "--run",
        run_dir(p),
        "--set",
        f"GATEWAY_PORT={port}",
        "--set",
        f"TRITON_URL={server.grpc}",
        "--set",
        "VALKEY_URL=${RECSYS_VALKEY_URL}",
    ]
    environment = os.environ | dict(RECSYS_VALKEY_URL=url)
    with (
        OwnedProcess(command, tmp / "gateway.log", "gateway", environment) as process,
        Client(server.grpc, timeout=10) as direct,
    ):
        process.wait_ready(lambda: "gateway: http" in process.tail(3))
        time.sleep(1)
        with Gateway(port) as gateway:
            ways = dict(
                direct=lambda u: direct.recommend(user_id=u, k=10, **QUIET),
                gateway=lambda u: gateway.recommend(user_id=u, k=10, **QUIET),
            )
            pair = {k: v for k, v in one_at_a_time(ways, users).items() if k in ways}
        return pair | dict(
            overhead_p50_ms=round(pair["gateway"]["p50_ms"] - pair["direct"]["p50_ms"], 2),
            eight_clients=eight_clients(str(port), users),
        )


def eight_clients(server, users, n=250):
    """Eight client processes at once, each as fast as it is answered; server: a TritonServer, or
    a gateway's port.
    """
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(9), context.Queue()
    processes = [
        context.Process(
            target=client_loop,
            args=(getattr(server, "grpc", server), users[:2000], n, i, gate, results),
        )
        for i in range(8)
    ]
    for q in processes:
        q.start()
    gate.wait()
    start = time.perf_counter()
    taken = np.concatenate([results.get() for _ in processes])
    seconds = time.perf_counter() - start
    for q in processes:
        q.join()
    return dict(requests_per_s=round(len(taken) / seconds), **spread(taken))


def new_version(p, server, tmp, seconds=4):
    "Load a second version of the bundle while four threads ask."
    other = tmp / "bundle"
    shutil.copytree(stage_dir(p, "bundle"), other, dirs_exist_ok=True)
    manifest = read_json(other / "manifest.json")
    write_json(other / "manifest.json", manifest | dict(version="another"))
    seen, failures, done = set(), [], threading.Event()
    count = [0]

    def traffic():
        with Client(server.grpc, timeout=10) as client:
            while not done.is_set():
                try:
                    seen.add(str(client.recommend(k=5, **QUIET)["bundle_version"]))
                    count[0] += 1
                except Exception as e:
                    failures.append(str(e))

    threads = [threading.Thread(target=traffic) for _ in range(4)]
    for t in threads:
        t.start()
    time.sleep(seconds / 2)
    for version, folder in (
        (next_version(server.repository), other),
        (pinned_version(server.repository), stage_dir(p, "bundle")),
    ):
        members, ensemble = ensemble_from(Bundle(folder))
        server.deploy(members, ensemble, version, folder if folder == other else None)
        time.sleep(seconds / 2)
    done.set()
    for t in threads:
        t.join()
    return dict(requests=count[0], failed=len(failures), versions=sorted(seen))


def valkey_fails(p, server, url, kind, seconds=3.0):
    "Eight threads ask while Valkey is stopped or killed, and after its return."
    pid, events, done = read_json(run_dir(p) / "valkey/valkey.json")["pid"], [], threading.Event()

    def traffic(user):
        with Client(server.grpc, timeout=10) as client:
            while not done.is_set():
                t, a = timed(lambda: client.recommend(user_id=user, k=10, **QUIET))
                events.append((time.perf_counter(), t, bool(a["reasons"]["fallbacks"])))
                time.sleep(
                    0.05
                )  # a client that thinks: what is measured is the wait, not the queue

    threads = [threading.Thread(target=traffic, args=(f"u{i:05d}",)) for i in range(8)]
    for t in threads:
        t.start()
    time.sleep(1)
    down = time.perf_counter()
    os.kill(pid, signal.SIGSTOP if kind == "stopped" else signal.SIGKILL)
    if kind == "stopped":
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)
    while not answers(url):  # where it was killed, the supervisor starts it again
        time.sleep(0.02)
    back = time.perf_counter()
    time.sleep(2.5)
    done.set()
    for t in threads:
        t.join()
    during = [(t, fell) for at, t, fell in events if down < at - t and at < back]
    after = [at - back for at, _, fell in events if at - 0.0 > back and fell]
    return dict(
        answers=len(during),
        with_reason=sum(f for _, f in during),
        longest_ms=round(max((t for t, _ in during), default=0.0) * 1e3, 1),
        longest_before_ms=round(max(t for at, t, _ in events if at < down) * 1e3, 1),
        normal_again_after_s=round(max(after, default=0.0), 2),
    )


def newest(rec, user, recorder):
    "The newest item of a user's history; a read that times out tells nothing yet."
    from redis.exceptions import RedisError

    try:
        return rec.users.state([user], np.array([recorder.clock.now() + 1]))["rows"][0, -1]
    except (RedisError, OSError):
        return -1


def worker_idle(url, seconds=120):
    "Wait until the worker has read all events; returns how long that took."
    client, start = connect(url, 5000), time.perf_counter()
    while time.perf_counter() - start < seconds and any(
        g["lag"] for g in client.xinfo_groups("events")
    ):
        time.sleep(0.05)
    return round(time.perf_counter() - start, 2)


def event_to_page(p, url, server, n=60):
    """From the event to the first answer that no longer shows the item, and to features that know
    it.
    """
    rec, recorder = online_parts(p, url)
    ids, rng, hidden, known = rec.bundle.ids, np.random.default_rng(5), [], []
    with Client(server.grpc, timeout=10) as client:
        for i in range(n):
            user = f"bench {i}"
            item = str(client.recommend(user_id=user, k=3, **QUIET)["item_ids"][rng.integers(3)])
            row, start = rec.bundle.row_of[item], time.perf_counter()
            recorder.record_event(
                dict(
                    event_id=f"bench {os.getpid()} {i}",
                    user_id=user,
                    item_id=item,
                    timestamp=recorder.clock.now(),
                    event_type="view",
                )
            )
            while item in client.recommend(user_id=user, k=3, **QUIET)["item_ids"]:
                pass
            hidden.append(time.perf_counter() - start)
            while newest(rec, user, recorder) != row and time.perf_counter() - start < 10:
                time.sleep(0.002)
            known.append(time.perf_counter() - start)
    assert len(ids)
    return dict(hidden=spread(hidden), history_known=spread(known))


def writer(folder, url, n, seed, gate, results):
    p = run_params(folder)
    rec, recorder = online_parts(p, url)
    rng, ids = np.random.default_rng(seed), [i.decode() for i in rec.bundle.ids]
    now = recorder.clock.now()
    events = [
        dict(
            event_id=f"{seed} {os.getpid()} {i}",
            user_id=f"u{rng.integers(20_000):05d}",
            item_id=ids[rng.integers(len(ids))],
            timestamp=now,
            event_type="view",
        )
        for i in range(n)
    ]
    gate.wait()
    start = time.perf_counter()
    for i in range(0, n, 25):
        recorder.record_events(events[i : i + 25])
    results.put((n, time.perf_counter() - start))


def four_writers(p, url, n=5000):
    "Four processes record events, 25 a call, as fast as they can."
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(5), context.Queue()
    processes = [
        context.Process(target=writer, args=(str(run_dir(p)), url, n, i, gate, results))
        for i in range(4)
    ]
    for q in processes:
        q.start()
    gate.wait()
    found = [results.get() for _ in processes]
    for q in processes:
        q.join()
    return dict(events_per_s=round(sum(n for n, _ in found) / max(t for _, t in found)))


def memory(p, server):
    "PSS of tritonserver and its stubs, Valkey and the worker."

    def pss(pid):
        return (
            sum(
                int(line.split()[1])
                for line in open(f"/proc/{pid}/smaps_rollup")
                if line.startswith("Pss:")
            )
            / 1024
        )

    valkey = read_json(run_dir(p) / "valkey/valkey.json")["pid"]
    workers = [
        int(d)
        for d in os.listdir("/proc")
        if d.isdigit()
        and "\0worker\0--run\0" in open(f"/proc/{d}/cmdline").read()
        and str(run_dir(p)) in open(f"/proc/{d}/cmdline").read()
    ]
    parts = dict(
        tritonserver_and_members=sum(pss(q) for q in session_processes(server.pid)),
        valkey=pss(valkey),
        worker=sum(map(pss, workers)),
    )
    return {k: round(v) for k, v in parts.items()} | dict(total_mib=round(sum(parts.values())))


class Shown(dict):
    "A dict that prints what it is given: the measurement takes minutes."

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        print(f"{key}: {value}", flush=True)


def seven(folder, tmp, server, users, ask):
    "The single member and the seven stages as members (LAYOUT ensemble) in turn."
    work = tmp / "seven" / "quickstart"
    shutil.copytree(folder, work, ignore=shutil.ignore_patterns("*.lock", "server.json", "valkey"))
    p = run_params(work, HTTP_PORT=0, GRPC_PORT=0, METRICS_PORT=0, LAYOUT="ensemble")
    run_here(STAGES["triton"], p)
    with served(p) as (other, url, _), Client(other.grpc, timeout=10) as client:
        pair = one_at_a_time(
            dict(single=ask, seven=lambda u: client.recommend(user_id=u, k=10, **QUIET)), users
        )
        return pair | {
            "eight clients": dict(
                single=eight_clients(server, users), seven=eight_clients(other, users)
            ),
            "memory, MiB": memory(p, other),
        }


def measure(folder, tmp):
    "Measure a run; returns the figures."
    p = run_params(folder, HTTP_PORT=0, GRPC_PORT=0, METRICS_PORT=0)
    for stage in stages_to_serve():
        run_here(STAGES[stage], p)
    from reference_layout import export_reference

    users = [u.decode() for u in load_arrays(stage_dir(p, "data_prep") / "users.npz")["user_id"]]
    found = Shown(load=[os.getloadavg()[0]])
    with served(p, lambda text: None) as (server, url, canary):
        rec = online_parts(p, url)[0]
        with Client(server.grpc, timeout=10) as client:
            ways = dict(
                in_process=lambda u: rec.recommend(dict(user_id=[u], k=10)),
                triton=lambda u: client.recommend(user_id=u, k=10, **QUIET),
            )
            found["one client"] = one_at_a_time(ways, users)
            batch = [users[i] for i in np.random.default_rng(1).integers(len(users), size=32)]
            found["batch of 32, users/s"] = {
                n: round(32 / np.median([timed(work)[0] for _ in range(40)]))
                for n, work in (
                    ("in process", lambda: rec.recommend(dict(user_id=batch, k=10))),
                    ("triton", lambda: client.recommend(user_id=batch, k=10, **QUIET)),
                )
            }
            found["eight clients"] = eight_clients(server, users)
            found["seven members"] = seven(folder, tmp, server, users, ways["triton"])
            found["gateway"] = through_gateway(p, url, server, users, tmp)
            found["events, four writers"] = four_writers(p, url)
            found["events, four writers"]["worker_done_after_s"] = worker_idle(url)
            found["event to page"] = event_to_page(p, url, server)
            found["memory, MiB"] = memory(p, server)
            for cache in (False, True):
                export_reference(p, cache)
                server.load("recommender_reference")
                with Client(server.grpc, "recommender_reference", timeout=30) as other:
                    pair = one_at_a_time(
                        dict(
                            triton=ways["triton"],
                            reference=lambda u: other.recommend(user_id=u, k=10, **QUIET),
                        ),
                        users,
                        n=100,
                    )
                pair["times lower"] = round(
                    pair["reference"]["p50_ms"] / pair["triton"]["p50_ms"], 1
                )
                found[f"reference {'with' if cache else 'without'} item cache"] = {
                    k: v for k, v in pair.items() if k != "stages_p50_ms"
                }
            found["new version under traffic"] = new_version(p, server, tmp)
            found["valkey stopped"] = valkey_fails(p, server, url, "stopped")
            found["valkey killed"] = valkey_fails(p, server, url, "killed")
    found["load"].append(os.getloadavg()[0])
    return found


def main():
    import tempfile
    from pathlib import Path

    folder = (
        find_root() / "outputs" / (sys.argv[1] if len(sys.argv) > 1 else "quickstart")
    )  # or a folder
    with tempfile.TemporaryDirectory() as tmp:
        work = Path(tmp) / "quickstart"  # killing Valkey is for a copy
        shutil.copytree(folder, work)
        figures = measure(work, Path(tmp))
    print(json.dumps(figures, indent=1))
    return figures


if __name__ == "__main__":
    main()
