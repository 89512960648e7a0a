"""The big counts: `make prove` checks them and writes outputs/prove.json, where the results of
proofs that were not asked for stay; the exit code is 1 where one fails.
"""

import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from recsys.core.means import paired_bootstrap
from recsys.core.params import RecsysError, default_params
from recsys.core.runs import find_root, progress, read_json, write_json


def encoder_equals_nvtabular(n=10_000):
    "Generated users, items and contexts: known, unknown, missing, extreme."
    from recsys.data.features import make_contract
    from recsys.data.workflows import encoder_difference, fit_features

    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(50)]
    users = pd.DataFrame(
        dict(
            user_id="u",
            gender=rng.choice(["F", "M", None], 300),
            age=np.where(rng.random(300) < 0.1, np.nan, rng.integers(16, 90, 300)),
        )
    )
    items = pd.DataFrame(
        dict(
            item_id=[f"i{k}" for k in range(300)],
            category_l1=rng.choice(words, 300),
            price=rng.lognormal(3, 2, 300),
        )
    )
    context = pd.DataFrame(
        dict(
            hour=[str(i % 24) for i in range(48)],
            weekday=[str(i % 7) for i in range(48)],
            device_type=["a", "b"] * 24,
        )
    )
    contract, _ = make_contract(users, items, True, False, False, default_params())
    encoder, flows = fit_features(
        contract, dict(user=users, context=context, item=items), "UTC", Path(tempfile.mkdtemp())
    )

    def text(m, known):
        return [
            None
            if r < 0.1
            else str(rng.choice(known))
            if r < 0.7
            else "".join(chr(rng.integers(33, 0x2FFF)) for _ in range(rng.integers(1, 9)))
            for r in rng.random(m)
        ]

    def number(m):
        return np.where(rng.random(m) < 0.1, np.nan, np.exp(rng.uniform(-60, 60, m)))

    worst = 0.0
    for _ in progress(range(n // 100), "encoder against NVTabular"):
        worst = max(
            worst,
            encoder_difference(
                flows["user"],
                encoder,
                "user",
                pd.DataFrame(dict(gender=text(100, ["F", "M"]), age=number(100))),
            ),
            encoder_difference(
                flows["item"],
                encoder,
                "item",
                pd.DataFrame(
                    dict(
                        item_id=text(100, list(items.item_id)),
                        category_l1=text(100, words),
                        price=number(100),
                    )
                ),
            ),
            encoder_difference(
                flows["context"],
                encoder,
                "context",
                pd.DataFrame(
                    dict(
                        hour=text(100, list("0123456789")),
                        weekday=text(100, list("0123456")),
                        device_type=text(100, ["a", "b"]),
                    )
                ),
            ),
        )
    return worst < 1e-5, dict(rows=n, largest_relative_difference=worst)


def bloom_keeps_its_bound(n=1_000_000):
    "False positives of full filters over the whole window, at the stated error."
    from recsys.recommend.bloom import SeenItems

    share = {}
    for days, capacity, error in progress(
        [(3, 1000, 0.01), (7, 1000, 0.01), (3, 100, 0.001)], "Bloom filters"
    ):
        f = SeenItems(days=days, capacity=capacity, error=error, last=1)
        now = 20_000 * 86400
        for d in range(days + 1):
            f.add("u", [f"seen {d} {i}" for i in range(capacity)], now - d * 86400, now=now)
        share[f"{days} days, {capacity} items, error {error}"] = (
            float(np.mean(f.seen("u", [f"new {i}" for i in range(n)], now))) / error
        )
    return max(share.values()) <= 1.05, dict(tests=n, share_of_the_bound=share)


def seen_stores_behave_alike(n=10_000, tests=200_000):
    """Random events over days, late ones too: memory, bitmap and BF.* hide the window, nothing
    else, within the stated error.
    """
    from recsys.core.clock import DAY, day_of
    from recsys.online.seen import SeenStore
    from recsys.online.valkey import EmbeddedValkey, connect
    from recsys.recommend.bloom import SeenItems, hash_ids, window

    rng, start, wrong, share = np.random.default_rng(0), 20_000 * DAY, 0, {}
    with tempfile.TemporaryDirectory() as d, EmbeddedValkey(Path(d) / "bf", modules=True) as server:
        client = connect(server.url, 20_000)
        for u in progress(range(n // 40), "seen stores"):
            days, capacity, clock, taken = (
                int(rng.integers(1, 6)),
                int(rng.integers(10, 60)),
                start,
                {},
            )
            memory, *stores = (
                SeenItems(days, capacity, 0.01, last=5),
                *(
                    SeenStore(client, days, capacity, 0.01, kind, recent=5)
                    for kind in ("bitmap", "bf")
                ),
            )
            for i, step, late in zip(
                rng.integers(0, 60, 40), rng.integers(0, DAY // 2, 40), rng.integers(0, 3 * DAY, 40)
            ):
                clock += int(step)
                old = {
                    s.add(f"u{u}.{k}", f"i{i}", clock - int(late), clock)
                    for k, s in (("m", memory), ("bitmap", stores[0]), ("bf", stores[1]))
                }
                if old == {0}:
                    taken.setdefault(f"i{i}", []).append(clock - int(late))
                wrong += len(old) != 1
            ids = [f"i{i}" for i in range(60)]
            h = hash_ids(ids)
            for at in (clock, clock + DAY, clock + (days + 1) * DAY):
                exact = np.array(
                    [any(day_of(t) in window(at, days) for t in taken.get(i, ())) for i in ids]
                )
                got = [
                    memory.seen(f"u{u}.m", h, at),
                    *(s.seen([f"u{u}.{s.kind}"], [h], [ids], at)[0] for s in stores),
                ]
                wrong += int((got[0] != got[1]).sum()) + sum(
                    int((exact & ~g).sum()) + max(0, int((g & ~exact).sum()) - 2) for g in got
                )
        unseen = [f"n{i}" for i in range(tests)]
        h = hash_ids(unseen)
        now = start + 40 * DAY
        for kind in ("bitmap", "bf"):
            for days, capacity, error, fill in (
                (3, 1000, 0.01, 1),
                (7, 1000, 0.01, 3),
                (3, 100, 0.001, 15),
            ):
                s, user = (
                    SeenStore(client, days, capacity, error, kind),
                    f"{kind}.{days}.{capacity}",
                )
                for d in range(days + 1):
                    s.add(
                        user,
                        [f"seen {d} {i}" for i in range(capacity * fill)],
                        now - d * DAY,
                        now,
                        event_type="",
                    )
                share[
                    f"{kind}, {days} days, {capacity} items filled {fill} times, error {error}"
                ] = float(np.mean(s.seen([user], [h], [unseen], now)[0])) / error
    return wrong == 0 and max(share.values()) <= 1.05, dict(
        events=n, wrong=wrong, tests=tests, share_of_the_bound=share
    )


def served_alike(n=10_000):
    """Notebook function, batches and Triton give the same ids, propensities and reasons for
    generated requests.
    """
    from sameness import compare
    from tiny import tiny_run

    from recsys.serve.server import Client
    from recsys.serve.serving import run_params, served

    with tempfile.TemporaryDirectory() as d:
        p = run_params(
            tiny_run(Path(d) / "outputs") / "tiny", HTTP_PORT=0, GRPC_PORT=0, METRICS_PORT=0
        )
        with served(p, worker=False) as (server, url, _), Client(server.grpc, timeout=10) as client:
            ties = compare(
                p, url, client, n, progress=lambda x: progress(x, "requests, three ways")
            )
    return True, dict(requests=n, places_that_differ_by_a_tie=ties)  # a difference is an error


def offpolicy_covers_the_truth(n=100):
    """95 % intervals of IPS, SNIPS and DR cover the shop's true value in at least 93 of 100 runs
    of other users, pages and clicks, for every policy near enough not to be warned of; the one
    too far is.
    """
    from recsys.data.catalog import make_catalog
    from recsys.data.shop import Shop
    from recsys.evaluate.offpolicy import interval_coverage, shop_requests, true_clicks
    from recsys.evaluate.page_chances import policy_on

    requests = shop_requests(Shop(make_catalog(600, seed=42), n_users=2000, seed=42))
    policies = {
        "temperature 0.6": lambda x: policy_on(x, temperature=0.6),
        "temperature 1.5": lambda x: policy_on(x, temperature=1.5),
        "the ideal ranker": lambda x: policy_on(x, scores=x["ideal"]),
    }
    truth = {name: true_clicks(requests, make(requests), 200) for name, make in policies.items()}
    cases = [(name, weights) for name in policies for weights in ("prefix", "place")]
    counts = {
        f"{name}, {weights}": interval_coverage(
            requests, policies[name], weights, n, truth=truth[name]
        )
        for name, weights in progress(cases, "off-policy intervals")
    }
    near = {name: c for name, c in counts.items() if c["trusted"] > n / 2}
    far = set(counts) - set(near)
    return far == {"the ideal ranker, prefix"} and min(
        c[e] for c in near.values() for e in ("ips", "snips", "dr")
    ) >= 0.93 * n, dict(
        runs=n, truth=truth, logged=true_clicks(requests, policy_on(requests), 200), covered=counts
    )


def explanations_add_up(n=5_000):
    "Shapley values of random items, users and moments sum to the ranker's difference to place k."
    from tiny import tiny_run

    from recsys.recommend.explain import explain
    from recsys.recommend.recommender import load_run

    with tempfile.TemporaryDirectory() as d:
        rec = load_run(str(tiny_run(Path(d) / "outputs") / "tiny"))
        rng, e, ids, worst, out = (
            np.random.default_rng(0),
            rec.users.prep.events,
            [i.decode() for i in rec.bundle.ids],
            0.0,
            0,
        )
        for c in progress(rng.integers(0, len(e["user"]), n), "explanations"):
            user = rec.users.ids[e["user"][c]].decode() if e["user"][c] >= 0 else ""
            found = explain(
                rec,
                dict(user_id=user, timestamp=int(e["timestamp"][c])),
                ids[rng.integers(len(ids))],
                k=int(rng.integers(1, 50)),
            )
            worst = max(
                worst, abs(sum(found["ranked"]["groups"].values()) - found["ranked"]["difference"])
            )
            out += not found["retrieved"]["retrieved"]
    return worst < 1e-4, dict(pairs=n, not_retrieved=out, largest_gap=worst)


def gateway_never_breaks(n=10_000):
    """Malformed bodies never give a 500, nor anything but a sentence; what is hardly HTTP never
    does either, names nothing of the server, and leaves no memory behind.
    """
    from malformed import send_all, send_raw, warm_up
    from tiny import tiny_run

    from recsys.serve.serving import run_params
    from recsys.serve.window import shop_window

    with tempfile.TemporaryDirectory() as d:
        p = run_params(
            tiny_run(Path(d) / "outputs") / "tiny",
            HTTP_PORT=0,
            GRPC_PORT=0,
            METRICS_PORT=0,
            GATEWAY_PORT=0,
        )
        with shop_window(p) as (address, server, gateway):
            port, key = int(address.split(":")[2].split("/")[0]), address.partition("#key=")[2]
            counts = send_all(port, key, n)
            warm_up(port)
            before = resident_kib(gateway.pid)
            raw_counts = send_raw(port, n)
            grown = resident_kib(gateway.pid) - before
            alive = gateway.running() and server.running()
            figures = dict(bodies=n, statuses=counts, raw=n, raw_statuses=raw_counts)
            return alive and grown < 30_000, figures | dict(grown_kib=grown)


def triton_never_breaks(n=10_000, seeds=(0, 1)):
    """Generated requests to Triton's gRPC, most of them broken: no answer names internals, each
    one comes, and the server's memory returns.
    """
    from grpc_fuzz import fuzz_grpc, memory_after
    from tiny import tiny_run

    from recsys.serve.canary import StubWatch
    from recsys.serve.serving import run_params, served

    with tempfile.TemporaryDirectory() as d:
        run = tiny_run(Path(d) / "outputs") / "tiny"
        p = run_params(run, HTTP_PORT=0, GRPC_PORT=0, METRICS_PORT=0)
        with served(p, worker=False) as (server, _, canary):
            fuzz_grpc(server, 2_000, seed=99)  # what stays after the first large requests
            before = server.memory()["pss"]
            counts = {seed: fuzz_grpc(server, n // len(seeds), seed) for seed in seeds}
            most = before + StubWatch.most_memory / 2**20
            after = memory_after(server, most)
            alive = server.ready() and server.running()
            figures = dict(requests=n, statuses=counts, mib_before=before, mib_after=after)
            figures |= dict(probes=canary.probes, failed_probes=canary.failures)
    return alive and after <= most, figures


def resident_kib(pid):
    "Return the resident memory of a process, KiB."
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def promotions_are_whole(n=100_000, moves=5):
    """Requests under load across promotions: none fails, and each page is that of the bundle
    which it names.
    """
    from rollover import Traffic, requests_of, right_answers, two_runs
    from tiny import tiny_run

    from recsys.operate.bundle_store import after_promotion, keep_bundle, read_live, set_live
    from recsys.operate.live_server import served_live
    from recsys.operate.promote import move, roll_back

    with tempfile.TemporaryDirectory() as d:
        home = two_runs(tiny_run(Path(d) / "outputs"))
        versions = [
            keep_bundle(
                home,
                home / run / "bundle",
                run=run,
                online=read_json(home / run / "triton/online.json"),
                data="the same",
                metrics={},
            )
            for run in ("first", "second")
        ]
        set_live(home, versions[0], [])
        with served_live(home, HTTP_PORT=0, GRPC_PORT=0, METRICS_PORT=0) as one:
            requests = requests_of(home / "first")
            with Traffic(
                [one.server.grpc], requests, right_answers(home, one.url, versions, requests)
            ) as traffic:
                seconds = []
                for i in progress(range(moves), "promotions"):
                    traffic.wait(n * (i + 1) // (moves + 1), 7200)
                    version = versions[(i + 1) % 2]
                    seconds.append(
                        move(home, version, after_promotion(read_live(home), version))["seconds"]
                    )
                traffic.wait(n, 7200)
            back = roll_back(home)["seconds"]
    figures = dict(
        requests=traffic.answers.total(),
        failed=len(traffic.failed),
        mixed=len(traffic.mixed),
        answers=dict(traffic.answers),
        promotion_seconds=seconds,
        rollback_seconds=back,
    )
    return not traffic.failed and not traffic.mixed and len(
        traffic.answers
    ) == 2 and back < 5, figures


def replicas_move_together(moves=50, n=3000):
    """Three servers behind one name: no promotion is refused and no request fails, each page is
    that of the bundle which it names, and no server's share is 10 % off a third.
    """
    from replica_stack import HOSTS, NameServer, PageTraffic, replica_stack
    from tiny import tiny_run

    refused, left_out, seconds = [], [], []
    with tempfile.TemporaryDirectory() as d, replica_stack(tiny_run(Path(d) / "outputs")) as stack:
        stack.start(*HOSTS)
        stack.addresses[:] = HOSTS
        with (
            NameServer(stack.addresses) as names,
            PageTraffic(names.target(stack.ports.GRPC_PORT), stack.requests, stack.right) as pages,
        ):
            pages.wait(30)
            for _ in progress(range(moves), "promotions"):
                try:
                    report, version = stack.move_on()
                except RecsysError as error:
                    refused.append(str(error))
                    continue
                seconds.append(report["seconds"])
                moved = [row for row in report["replicas"] if row["ready"] and not row["error"]]
                if [row["bundle"] for row in moved] != [version] * len(HOSTS):
                    left_out.append(report["replicas"])
                pages.wait(30)
            shares = stack.shares(pages, HOSTS, n)
    figures = dict(
        promotions=len(seconds),
        refused=refused,
        servers_left_out=left_out,
        median_promotion_seconds=float(np.median(seconds)) if seconds else None,
        requests=pages.answers.total(),
        failed=len(pages.failed),
        mixed=len(pages.mixed),
        answers=dict(pages.answers),
        second_attempts=pages.pages.seconds_sent,
        shares={host: round(share, 4) for host, share in shares.items()},
    )
    faults = refused or left_out or pages.failed or pages.mixed
    even = all(abs(share - 1 / 3) <= 0.1 / 3 for share in shares.values())
    return not faults and even and len(pages.answers) == 2, figures


def shift_devices(inputs):
    """Return a day's counts of devices with half of each moved to the first bin."""
    counts = np.array(inputs["device_type"])
    half = counts // 2
    half[0] += counts.sum() - half.sum()
    return dict(device_type=half.tolist())


def encode_users(later, bundle, files):
    """Encode the users of a longer run as the bundle of an earlier one would."""
    from recsys.online.day_log import user_ids

    ids = [*(user.decode() for user in user_ids(later)), None]
    users = pd.read_parquet(files / "users.parquet").set_index("user_id").reindex(ids)
    columns = {name: users[name].to_numpy() for name in users.columns}
    later.user_columns = bundle.encoder.encode("user", columns, len(users))


def keep_largest_drifts(largest, checks):
    """Keep the largest value of each drift among a day's checks and those of earlier days."""
    for check in checks:
        name = check["check"]
        if name.startswith(("input", "scores")):
            largest[name] = max(largest.get(name, 0), check["value"])


def run_stages(params, end):
    """Run the stages of a run up to one of them in this process."""
    from recsys.core.pipeline import run_here
    from recsys.core.stages import select_stages

    for stage in select_stages(end=end):
        run_here(stage, params)


def quiet_days_stay_quiet(days=20, trained=14):
    """Days of the shop after training, one by one against training and the days before: at most 1
    alarm; another mix of devices is found on every one of them.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from recsys.core.clock import DAY
    from recsys.core.runs import run_dir, stage_dir
    from recsys.data.prepared import load_prepared
    from recsys.data.sources import make_shop
    from recsys.online import day_log
    from recsys.online.feature_history import event_types
    from recsys.online.popularity import day_name
    from recsys.operate import monitor, shop_days
    from recsys.recommend.bundle import Bundle
    from recsys.recommend.recommender import Recommender
    from recsys.recommend.users import UserMemory

    with tempfile.TemporaryDirectory() as d:
        small = dict(OUTPUTS=d, SHOP_IMAGES=False, IMAGE_ENCODER="none", TT_EPOCHS=3, DLRM_EPOCHS=2)
        whole = default_params(
            RUN="whole",
            SHOP_DAYS=trained + days,
            SHOP_EVENTS=60_000 * (trained + days) // trained,
            **small,
        )
        run_stages(whole, "data_prep")
        shop, files = make_shop(whole), run_dir(whole) / "ingest"
        t, end = pq.read_table(files / "interactions.parquet"), shop.start + trained * DAY
        pq.write_table(t.filter(pc.less(t["timestamp"], end)), f"{d}/past.parquet")
        past = default_params(
            RUN="past",
            SOURCE="parquet",
            INTERACTIONS=f"{d}/past.parquet",
            ITEMS=str(files / "items.parquet"),
            USERS=str(files / "users.parquet"),
            **small,
        )
        run_stages(past, "bundle")
        bundle, prep, later = (
            Bundle(stage_dir(past, "bundle")),
            load_prepared(past),
            load_prepared(whole),
        )
        assert pq.read_table(stage_dir(whole, "data_prep") / "items.parquet")[
            "item_id"
        ].to_pylist() == [i.decode() for i in bundle.ids]
        encode_users(later, bundle, files)
        types = event_types(past)
        folders = {k: Path(d) / "log" / k for k in ("impressions", "events", "features")}
        live, first = Recommender(bundle, UserMemory(later, bundle)), end // DAY
        reference = day_log.make_reference(
            Recommender(bundle, UserMemory(prep, bundle)), prep, types, past
        )
        monitored = day_log.MonitoredBundle(live, prep, types, reference)
        log_days = range(first - past.MONITOR_DAYS, first + days)
        for day in progress(log_days, "days of the shop"):
            shop_days.shop_day(live, shop, later, event_types(whole), day, folders)
        shop_days.shop_states(live, later, log_days, folders)
        measured, alarms, found, moved = [], {}, 0, {}
        for day in log_days:
            today = day_log.measure_day(folders, day_name(day * DAY), monitored, past)
            if day >= first:
                verdict = monitor.judge_day(today, measured[-past.MONITOR_DAYS :], reference, past)
                if verdict["alarms"]:
                    alarms[today["day"]] = verdict["alarms"]
                keep_largest_drifts(moved, verdict["checks"])
                shifted = today | dict(inputs=today["inputs"] | shift_devices(today["inputs"]))
                again = monitor.judge_day(shifted, measured[-past.MONITOR_DAYS :], reference, past)
                found += again["alarms"].count("input device_type")
            measured.append(today)
    return sum(map(len, alarms.values())) <= 1 and found == days, dict(
        days=days,
        alarms=alarms,
        device_mix_found=found,
        largest_drift=dict(sorted(moved.items(), key=lambda x: -x[1])),
        checks=len(verdict["checks"]),
    )


def notebooks_run_in_a_kernel():
    """Every notebook, executed cell by cell in a real Jupyter kernel on the tiny run; what it
    prints to stderr is progress only. NOTEBOOKS, an expression, chooses some of them by name.
    """
    import os

    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from tiny import tiny_run

    from recsys.core.pipeline import KERNEL_ENVIRONMENT

    failed, noisy, seconds = {}, {}, {}
    os.environ |= KERNEL_ENVIRONMENT
    chosen = re.compile(os.environ.get("NOTEBOOKS", ""))
    notebooks = sorted((find_root() / "nbs").glob("[0-9]_*/*.ipynb"))
    notebooks = [path for path in notebooks if chosen.search(f"{path.parent.name}/{path.stem}")]
    for path in progress(notebooks, "notebooks in a kernel"):
        name, started = f"{path.parent.name}/{path.stem}", time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            os.environ["RECSYS_OUTPUTS"] = str(tiny_run(Path(folder) / "outputs"))
            notebook = nbformat.read(path, 4)
            for cell in notebook.cells:  # as nbdev_test does
                if cell.cell_type == "code" and "eval: false" in cell.source.split("\n")[0]:
                    cell.metadata["tags"] = ["skip-execution"]
            client = NotebookClient(
                notebook,
                timeout=900,
                kernel_name="python3",
                resources={"metadata": {"path": str(path.parent)}},
            )
            try:
                client.execute()
            except CellExecutionError as error:
                failed[name] = f"{error.ename}: {error.evalue}"[:300]
        seconds[name] = round(time.perf_counter() - started, 1)
        outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
        errors = "".join(o.text for o in outputs if o.get("name") == "stderr")
        lines = [x for x in errors.replace("\r", "\n").splitlines() if "it/s" not in x]
        warnings = [x for x in lines if "Warning" in x or "tensorflow" in x.lower()]
        if warnings:
            noisy[name] = warnings[:3]
    return not failed and not noisy, dict(failed=failed, noisy=noisy, seconds_by_notebook=seconds)


def any_table_ends_in_a_result_or_in_a_message(n=2_000, seeds=(1, 2, 3)):
    "Generated tables of all kinds: no traceback, no row or column lost without a line."
    from any_table import fault_of, shops
    from hypothesis import HealthCheck, Phase, given, seed, settings

    faults = {}
    for number in seeds:

        @seed(number)
        @settings(
            max_examples=n,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(shop=shops())
        def try_one(shop):
            try:
                fault = fault_of(shop)
            except Exception as error:
                fault = f"{type(error).__name__}: {error}"
            if fault:
                faults.setdefault(fault[:200], repr(shop)[:500])

        try_one()
    return not faults, dict(seeds=list(seeds), tables_a_seed=n, faults=faults)


def failure_matrix():
    "Every dependency in every way: pages always come, nothing is lost or doubled, all heals."
    from failure_matrix import failure_matrix as run_matrix

    return run_matrix()


def soak():
    "Half the capacity for SOAK_MINUTES with kills, promotions and additions: all stays flat."
    from soak import soak as run_soak

    return run_soak()


def seed_intervals_cover(n=2000):
    "Intervals over users and seeds hold the truth in 95 of 100 comparisons without a difference."
    from recsys.evaluate.seeds import interval_over_seeds

    users, share = 300, {}
    settings = [(seeds, spread) for seeds in (2, 3, 5) for spread in (0.0, 0.5, 1.0, 3.0)]
    for seeds, spread in progress(settings, "intervals over seeds"):
        rng, held = np.random.default_rng(seeds), 0
        for i in range(n):
            by_seed = rng.normal(0, users**0.5, users) + rng.normal(0, spread, (seeds, 1))
            by_seed = by_seed + rng.normal(0, 0.5 * users**0.5, (seeds, users))
            found = interval_over_seeds(by_seed, 200, i)
            held += found["low"] <= 0 <= found["high"]
        share[f"{seeds} seeds, spread {spread:g} standard errors of users"] = held / n
    return min(share.values()) >= 0.93, dict(comparisons=n, covered=share)


def inputs_are_left_out_end_to_end():
    "A small run is trained over two seeds and without each input; all rank the same cases."
    from recsys.core.pipeline import run_here
    from recsys.core.stages import select_stages
    from recsys.evaluate.retrained import INPUT_CHANGES, ablate_by_training, main_rows
    from recsys.evaluate.seed_runs import Variant, compare_variants, train_variant

    def execute(params):
        "Run the stages in this process."
        for stage in select_stages(end="evaluate"):
            run_here(stage, params)

    def train(variants, seeds):
        "Train all seeds of some variants."
        return [train_variant(variant, seeds, execute) for variant in variants]

    small = dict(SHOP_USERS=300, SHOP_ITEMS=150, SHOP_EVENTS=8000, EMBEDDING_DIM=16, BOOTSTRAP=200)
    small |= dict(TT_EPOCHS=2, TT_DIM=16, TT_HIDDEN="16", ABLATION_CASES=100)
    small |= dict(DLRM_EPOCHS=1, DLRM_DIM=8, DLRM_TOP="16", DLRM_BOTTOM="8")
    with tempfile.TemporaryDirectory() as folder:
        base = Variant("base", default_params(RUN="base", OUTPUTS=folder, **small))
        over_seeds = compare_variants([base], train([base], 2))
        spread = {row["system"]: row["std"] for row in over_seeds["systems"][0]}
        found = ablate_by_training(base, [], 1, train)
    rows = {row["without"]: row for row in main_rows(found["rows"])}
    changed = [name for name, row in rows.items() if row["low"] < row["high"]]
    figures = dict(
        cases=found["cases"],
        difference={name: round(row["difference"], 4) for name, row in rows.items()},
        spread_of_full=round(spread["full"], 4),
    )
    trained = spread["full"] > 0 and spread["popularity"] == 0
    return trained and changed == list(INPUT_CHANGES), figures


def closed_loop_learns(days=30, pages=6000):
    "In a loop of 30 days daily runs earn more clicks than a frozen bundle, and than popularity."
    import shutil

    from recsys.core.params import load_params
    from recsys.core.runs import run_dir
    from recsys.data.loop_world import LoopWorld
    from recsys.operate.closed_loop import read_days, run_simulation

    params = load_params("params/simulate.yaml", ("RUN=prove-loop",))
    home = run_dir(params)
    shutil.rmtree(home, ignore_errors=True)
    world = LoopWorld(params, days, pages)
    found = run_simulation(params, world)
    users, greedy = read_days(home / "greedy", days)[1:]
    figures = dict(policies=found["policies"], paired=found["paired"])
    ok = True
    for other in ("frozen", "popularity"):
        expected = read_days(home / other, days)[2]
        mean, low, high = paired_bootstrap(greedy, expected, users)
        figures[f"greedy less {other}"] = dict(mean=mean, low=low, high=high)
        ok &= low > 0
    return ok, figures


def compiled_pipelines_run():
    """The compiled full pipeline runs here on the tiny run's data, and the daily one continues it;
    exit handlers included. In each, the ranker's training is killed when it has written a
    checkpoint, and the next try goes on within an epoch.
    """
    from compiled_run import CompiledRun

    from recsys.operate.kubeflow import task_arguments

    figures, ok = {}, True
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder) / "outputs"
        env = {"RECSYS_OUTPUTS": str(outputs), "MPLBACKEND": "agg"}
        daily = dict(RUN="daily", BASE_RUN="tiny", SHOP_DAYS=15, END_DATE="2026-07-01", TEST=1.0)
        for name, changes, task in (("full", {}, "dlrm"), ("daily", daily, "finetune")):
            began = time.perf_counter()
            file = find_root() / f"k8s/pipelines/{name}.yaml"
            arguments = task_arguments(name, default_params()) | changes
            arguments |= dict(CHECKPOINT_MINUTES=OFTEN)
            target = outputs / arguments["RUN"]
            kill = {task: target / "checkpoints" / task / TRAININGS[task]}
            run = CompiledRun(file, arguments, Path(folder) / name, env, f"job-{name}", kill)
            states = run.run()
            starts = {task: [a.code for a in run.attempts if a.task == task] for task in states}
            resumed = resumptions(run, target, task)
            seconds = round(time.perf_counter() - began)
            figures[name] = dict(states=states, exit_codes=starts, resumed=resumed, seconds=seconds)
            figures[name]["end"] = run.attempts[-1].output
            ok &= set(states.values()) == {"succeeded"} and starts[task] == [-9, 0]
            ok &= any(resumed_at > (1, 1) for resumed_at in resumed)
    return ok, figures


OFTEN = 0.001  # minutes between two checkpoints
TRAININGS = dict(dlrm="fit.npz", finetune="dlrm.npz")  # task -> checkpoint of its ranker


def resumptions(run, target, task):
    "Return the epoch and the step at which a task's second try went on, by its log and notebook."
    texts = [a.output for a in run.attempts if a.task == task]
    texts += [file.read_text() for file in (target / "notebooks").rglob(f"*{task}.ipynb")]
    found = re.findall(r"resumes at epoch (\d+), step (\d+)", "\n".join(texts))
    return sorted({(int(epoch), int(step)) for epoch, step in found})


PROOFS = [
    any_table_ends_in_a_result_or_in_a_message,
    notebooks_run_in_a_kernel,
    encoder_equals_nvtabular,
    bloom_keeps_its_bound,
    seen_stores_behave_alike,
    served_alike,
    offpolicy_covers_the_truth,
    seed_intervals_cover,
    closed_loop_learns,
    inputs_are_left_out_end_to_end,
    explanations_add_up,
    gateway_never_breaks,
    triton_never_breaks,
    promotions_are_whole,
    replicas_move_together,
    quiet_days_stay_quiet,
    compiled_pipelines_run,
    failure_matrix,
    soak,
]


def main():
    results, wanted = {}, sys.argv[1:]
    for proof in (f for f in PROOFS if not wanted or f.__name__ in wanted):
        t = time.perf_counter()
        ok, figures = proof()
        results[proof.__name__] = dict(
            ok=bool(ok), seconds=round(time.perf_counter() - t, 1), **figures
        )
        print(f"{'proved' if ok else 'FAILED'} {proof.__name__}: {figures}")
    file = find_root() / "outputs/prove.json"
    write_json(file, (read_json(file) if file.is_file() else {}) | results)
    sys.exit(not all(r["ok"] for r in results.values()))


if __name__ == "__main__":
    main()
