"""Speed and memory of what runs exist: `make bench` writes outputs/bench.json and a plot.

The same figures go to bench/results.json with machine, load and commit; commit it when the machine
was quiet, for the docs site shows it where nothing was measured.

The stages' own records give rates and peaks; requests are timed here, interleaved, in one process.
`make bench ARGS=sequences` times own tables of 200,000 interactions instead (bench_sequences.py).
"""

import json
import os
import sys
import time

import numpy as np
from machine import describe_machine

from recsys.core.runs import find_root, read_json, write_json
from recsys.recommend.fallbacks import REQUEST_STEPS
from recsys.recommend.recommender import load_run

OUT = find_root() / "outputs"
COMMITTED = find_root() / "bench" / "results.json"


def stage_figures(run):
    rows = {}
    for file in sorted(run.glob("*/stage.json")):
        r = read_json(file)
        rate = {k: v for k, v in r["metrics"].items() if k in ("rows_per_s", "positives_a_second")}
        rows[r["stage"]] = dict(
            seconds=r["timings"]["total"], peak_memory_mib=r["peak_memory_mib"], **rate
        )
    return rows


def training_rates(run, rows=100_000):
    """Rows a second of one epoch of the Two-Tower, with and without history, one after the other
    in this process.
    """
    import copy

    from recsys.core.params import Params
    from recsys.data.prepared import load_prepared
    from recsys.models.towers import build_towers, content_by_id
    from recsys.models.two_tower import fit

    p = Params(
        {**read_json(run / "two_tower/stage.json")["parameters"], "TT_EPOCHS": 1, "RUN": run.name}
    )
    prep = load_prepared(p)
    few = copy.copy(prep)
    few.positions = lambda split, cases=True: prep.positions(split, cases)[
        -(rows if split == "train" else 500) :
    ]
    rate = {}
    for name, combiner in (
        ("history", "decay"),
        ("no history", "none"),
    ) * 2:  # twice, interleaved: the first pass warms up
        q = Params({**p, "TT_COMBINER": combiner})
        rate[name] = fit(build_towers(prep.contract, q, content_by_id(prep)), few, q)[-1][
            "rows_per_s"
        ]
    return rate


def request_figures(run, n=400):
    "One request at a time and batches of 32, alternating, known users at the end of training."
    rec = load_run(run)
    rng, ids = np.random.default_rng(0), rec.users.ids[:20_000]
    one, batch = [], []
    for i in range(n + 20):
        users = [u.decode() for u in rng.choice(ids, 32)]
        t = time.perf_counter()
        a = rec.recommend(dict(user_id=users[:1]))
        one.append((time.perf_counter() - t, a["stage_ms"]))
        if i % 8 == 0:
            t = time.perf_counter()
            rec.recommend(dict(user_id=users))
            batch.append(time.perf_counter() - t)
    total = np.array([t for t, _ in one[20:]]) * 1e3
    return dict(
        p50_ms=float(np.median(total)),
        p99_ms=float(np.quantile(total, 0.99)),
        users_a_second_in_batches_of_32=float(32 / np.median(batch[3:])),
        stages_p50_ms={s: float(np.median([m[s] for _, m in one[20:]])) for s in REQUEST_STEPS},
    )


def metric_figures(cases=100_000, items=2_465, draws=1000):
    """Seconds and peak memory of all metrics of one system: places and lists from scores over the
    whole catalogue, six segments, intervals over users.
    """
    import resource

    from recsys.core.means import paired_bootstrap
    from recsys.core.ranking import roc_auc
    from recsys.evaluate import metrics as m
    from recsys.evaluate.calibration import calibration_error, log_loss
    from recsys.evaluate.cases import blocks

    rng = np.random.default_rng(0)
    users, relevant, counts = (
        rng.integers(0, cases // 5, cases),
        rng.integers(0, items, cases),
        rng.integers(0, 500, items),
    )
    vectors, cuts = (
        rng.normal(size=(items, 64)).astype(np.float32),
        [rng.random(cases) < share for share in (1, 0.8, 0.5, 0.2, 0.1, 0.05)],
    )
    ranks, top, chance, drawing = np.empty(cases), np.empty((cases, 50), np.int64), [], np.zeros(2)

    def clock():
        return np.array(
            [time.perf_counter(), time.process_time()]
        )  # the second one is not lengthened by other work on the machine

    began = clock()
    for b in blocks(cases, items):
        t = clock()
        scores = rng.random((b.stop - b.start, items), np.float32)
        drawing += clock() - t
        ranks[b] = m.rank_in_scores(scores, relevant[b])
        best = np.argpartition(-scores, 50, axis=1)[:, :50]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        top[b] = np.take_along_axis(best, order, 1)
        chance.append(np.take_along_axis(scores, best, 1)[:, :10])
    ks = (10, 20, 50)
    each = m.case_metrics(ranks, ks)
    hits = m.hits_at(ranks, 10)
    each |= {
        "hit rate": m.hit_rate(hits),
        "map": m.average_precision(hits),
        "novelty": m.novelty(top[:, :10], counts),
        "popularity bias": m.popularity_bias(top[:, :10], counts),
        "diversity": np.concatenate(
            [
                m.intra_list_diversity(x, vectors)
                for x in np.array_split(top[:, :10], cases // 5000 + 1)
            ]
        ),
    }
    rows = [
        r
        for i, cut in enumerate(cuts)
        for r in m.metric_rows(
            "system", str(i), {k: v[cut] for k, v in each.items()}, users[cut], draws
        )
    ]
    m.coverage(top, items), m.gini(m.exposure(top[:, :10], items))
    for name in ("ndcg@10", "recall@10"):
        paired_bootstrap(each[name], each[name] * 0.9, users, draws)
    chance = np.concatenate(chance).ravel()
    label = rng.random(len(chance)) < chance
    roc_auc(label, chance), log_loss(label, chance), calibration_error(label, chance)
    (seconds, cpu), peak = (
        clock() - began - drawing,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )
    return dict(
        cases=cases,
        items=items,
        rows=len(rows),
        seconds=float(seconds),
        cpu_seconds=float(cpu),
        peak_memory_mib=peak / 1024,
    )


def apart(work):
    "Call a function of this file in a process of its own, so that its peak memory is its own."
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work)


def plot(figures, path):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(1, 2, figsize=(10, 3.5))
    for i, (run, f) in enumerate(figures["runs"].items()):
        left = 0
        for j, (_stage, r) in enumerate(f["stages"].items()):
            ax[0].barh(
                run,
                r["seconds"],
                left=left,
                color=str(0.25 + 0.6 * (j % 2)),
                edgecolor="black",
                lw=0.4,
            )
            left += r["seconds"]
        ms = f["request"]["stages_p50_ms"]
        ax[1].barh(
            np.arange(len(ms)) + i * 0.8 / len(figures["runs"]),
            list(ms.values()),
            0.8 / len(figures["runs"]),
            label=run,
            color=str(0.2 + 0.5 * i / len(figures["runs"])),
        )
    ax[0].set(xlabel="seconds, stage after stage", title="A run")
    ax[1].set_yticks(range(len(REQUEST_STEPS)), REQUEST_STEPS)
    ax[1].invert_yaxis()
    ax[1].legend()
    ax[1].set(xlabel="median milliseconds", title="A request in this process")
    fig.savefig(path, dpi=110, bbox_inches="tight")


def main():
    if "sequences" in sys.argv:
        import bench_sequences

        return bench_sequences.main()
    runs = sorted(
        f.parent.parent for f in OUT.glob("*/evaluate/stage.json") if f.parent.parent.name != "tiny"
    )
    if not runs:
        sys.exit("bench: no finished run in outputs/; `make run` makes one")
    figures = dict(
        taken=describe_machine(), load=os.getloadavg()[0], runs={}, metrics=apart(metric_figures)
    )
    print("metrics", json.dumps({k: round(v, 1) for k, v in figures["metrics"].items()}))
    for run in runs:
        figures["runs"][run.name] = dict(
            stages=stage_figures(run),
            request=request_figures(str(run)),
            two_tower_rows_a_second=training_rates(run),
        )
        f = figures["runs"][run.name]
        print(
            f"{run.name}: {sum(r['seconds'] for r in f['stages'].values()):.0f} s, peak "
            f"{max(r['peak_memory_mib'] for r in f['stages'].values()):,} MiB"
        )
        for stage, r in f["stages"].items():
            print(f"  {stage:<12}" + "  ".join(f"{k} {v:,.0f}" for k, v in r.items()))
        print("  two-tower rows/s", {k: round(v) for k, v in f["two_tower_rows_a_second"].items()})
        print(
            "  request",
            json.dumps({k: round(v, 2) for k, v in f["request"].items() if k != "stages_p50_ms"}),
        )
    if (OUT / "quickstart").is_dir() and "offline" not in sys.argv:
        import bench_serving

        sys.argv[1:] = []
        figures["serving"] = bench_serving.main()
    for file in (OUT / "bench.json", COMMITTED):
        write_json(file, figures)
    plot(figures, OUT / "bench.png")
    print(
        f"load {figures['load']:.1f} on {figures['taken']['cores']} cores; outputs/bench.json, "
        f"outputs/bench.png, bench/results.json"
    )
    return None


if __name__ == "__main__":
    main()
