"""Own tables with nothing but interactions, at the size of those in papers.

`make bench ARGS=sequences` generates 200,000 interactions, runs every stage on them and writes
outputs/bench_sequences.json. Users have one to three tastes among 300 groups of items; one choice
in five follows from the one before. `follow=0` makes a set in which nothing follows.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from recsys.core.runs import find_root, read_json, write_json

OUT = find_root() / "outputs"
LIMIT = 15 * 60  # seconds, from the table to the full path's metrics with popularity and item-kNN


def sequences(users=22_000, items=12_000, groups=300, follow=0.2, seed=0):
    "A table user_id, item_id, timestamp: 5 to 50 events a user over three years, no item twice."
    rng, size = np.random.default_rng(seed), items // groups
    popular = rng.permutation(1 / (np.arange(groups) + 5.0))
    popular /= popular.sum()
    inside = 1 / (np.arange(size) + 3.0) ** 0.8
    inside /= inside.sum()
    after = np.where(
        rng.random((items, 3)) < 0.7,
        np.arange(items)[:, None] // size * size + rng.integers(0, size, (items, 3)),
        rng.integers(0, items, (items, 3)),
    )
    rows = []
    for user in range(users):
        n = int(np.clip(5 + rng.geometric(0.2) - 1, 5, 50))
        tastes = rng.choice(groups, rng.integers(1, 4), p=popular)
        chosen = []
        while len(chosen) < n:
            how = rng.random()
            if chosen and how < follow:
                item = int(after[chosen[-1], rng.integers(3)])
            else:
                item = int(
                    (rng.choice(groups, p=popular) if how > 0.9 else rng.choice(tastes)) * size
                    + rng.choice(size, p=inside)
                )
            if item not in chosen:
                chosen.append(item)
        at = (
            1_600_000_000
            + rng.integers(0, 800 * 86400)
            + np.cumsum(rng.lognormal(11, 2, n)).astype(np.int64) % (300 * 86400)
        )
        rows.append(np.stack([np.full(n, user), chosen, np.sort(at)], 1))
    return pd.DataFrame(np.concatenate(rows), columns=["user_id", "item_id", "timestamp"])


def main():
    arguments = dict(a.split("=") for a in sys.argv[1:] if "=" in a)
    follow, baselines = (
        float(arguments.get("follow", 0.2)),
        arguments.get("baselines", "popularity,item_knn"),
    )
    name = f"sequences{round(follow * 100):02d}"
    folder = OUT / "bench" / name
    folder.mkdir(parents=True, exist_ok=True)
    table = sequences(follow=follow)
    table.to_parquet(folder / "interactions.parquet")
    (folder / "params.yaml").write_text(
        f"SOURCE: parquet\nINTERACTIONS: {folder}/interactions.parquet\nSPLIT: "
        f"leave_one_out\nOUTPUTS: {OUT / 'bench'}\nRUN: {name}\nBASELINES: {baselines}\n"
    )
    load, start = os.getloadavg()[0], time.time()
    subprocess.run(
        [
            str(Path(sys.executable).parent / "recsys"),
            "run",
            "--force",
            "--params",
            str(folder / "params.yaml"),
        ],
        check=True,
    )
    total = round(
        time.time() - start
    )  # as a user waits: notebooks' start and their demonstrations included
    stages = {r["stage"]: r for r in map(read_json, sorted(folder.glob("*/stage.json")))}
    seconds = {s: round(r["timings"]["total"]) for s, r in stages.items()}
    rows = [
        r
        for r in read_json(folder / "evaluate/metrics.json")
        if r["segment"] == "all" and r["metric"] in ("ndcg@10", "recall@10")
    ]
    compared = [
        r
        for r in read_json(folder / "evaluate/comparisons.json")
        if r["segment"] == "all" and r["metric"] in ("ndcg@10", "recall@10")
    ]
    figures = dict(
        load=load,
        interactions=len(table),
        items=int(table.item_id.nunique()),
        users=int(table.user_id.nunique()),
        seconds=seconds,
        total=total,
        limit=LIMIT,
        peak_memory_mib=max(r["peak_memory_mib"] for r in stages.values()),
        metrics=rows,
        compared=compared,
    )
    write_json(
        OUT / "bench_sequences.json",
        (read_json(OUT / "bench_sequences.json") if (OUT / "bench_sequences.json").exists() else {})
        | {name: figures},
    )
    print(json.dumps({k: v for k, v in figures.items() if k not in ("metrics", "compared")}))
    for r in rows:
        print(f"{r['system']:<15} {r['metric']:<10} {r['value']:.4f}")
    for r in compared:
        print(
            f"full minus {r['other']:<15} {r['metric']:<10} {r['difference']:+.4f} "
            f"({r['low']:+.4f} to {r['high']:+.4f})"
        )


if __name__ == "__main__":
    main()
