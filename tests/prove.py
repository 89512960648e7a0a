"""The big counts: `make prove` checks them and writes outputs/prove.json; the exit code is 1 where one fails."""
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from recsys.core import default_params, find_root, progress, write_json


def encoder_equals_nvtabular(n=10_000):
    "Generated users, items and contexts: known, unknown, missing, extreme."
    from recsys.data_prep import encoder_difference, fit_features
    from recsys.features import make_contract
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(50)]
    users = pd.DataFrame(dict(user_id="u", gender=rng.choice(["F", "M", None], 300), age=np.where(rng.random(300) < 0.1, np.nan, rng.integers(16, 90, 300))))
    items = pd.DataFrame(dict(item_id=[f"i{k}" for k in range(300)], category_l1=rng.choice(words, 300), price=rng.lognormal(3, 2, 300)))
    context = pd.DataFrame(dict(hour=[str(i % 24) for i in range(48)], weekday=[str(i % 7) for i in range(48)], device_type=["a", "b"] * 24))
    contract, _ = make_contract(users, items, True, False, False, default_params())
    encoder, flows = fit_features(contract, dict(user=users, context=context, item=items), "UTC", Path(tempfile.mkdtemp()))
    text = lambda m, known: [None if r < 0.1 else str(rng.choice(known)) if r < 0.7 else "".join(chr(rng.integers(33, 0x2FFF)) for _ in range(rng.integers(1, 9))) for r in rng.random(m)]
    number = lambda m: np.where(rng.random(m) < 0.1, np.nan, np.exp(rng.uniform(-60, 60, m)))
    worst = 0.0
    for _ in progress(range(n // 100), "encoder against NVTabular"):
        worst = max(worst, encoder_difference(flows["user"], encoder, "user", pd.DataFrame(dict(gender=text(100, ["F", "M"]), age=number(100)))),
                    encoder_difference(flows["item"], encoder, "item", pd.DataFrame(dict(item_id=text(100, list(items.item_id)), category_l1=text(100, words), price=number(100)))),
                    encoder_difference(flows["context"], encoder, "context", pd.DataFrame(dict(hour=text(100, list("0123456789")), weekday=text(100, list("0123456")), device_type=text(100, ["a", "b"])))))
    return worst < 1e-5, dict(rows=n, largest_relative_difference=worst)


def bloom_keeps_its_bound(n=1_000_000):
    "False positives of full filters over the whole window, at the stated error."
    from recsys.bloom import SeenItems
    share = {}
    for days, capacity, error in progress([(3, 1000, 0.01), (7, 1000, 0.01), (3, 100, 0.001)], "Bloom filters"):
        f = SeenItems(days=days, capacity=capacity, error=error, last=1)
        now = 20_000 * 86400
        for d in range(days + 1): f.add("u", [f"seen {d} {i}" for i in range(capacity)], now - d * 86400, now=now)
        share[f"{days} days, {capacity} items, error {error}"] = float(np.mean(f.seen("u", [f"new {i}" for i in range(n)], now))) / error
    return max(share.values()) <= 1.05, dict(tests=n, share_of_the_bound=share)


PROOFS = [encoder_equals_nvtabular, bloom_keeps_its_bound]


def main():
    results = {}
    for proof in PROOFS:
        t = time.perf_counter()
        ok, figures = proof()
        results[proof.__name__] = dict(ok=bool(ok), seconds=round(time.perf_counter() - t, 1), **figures)
        print(f"{'proved' if ok else 'FAILED'} {proof.__name__}: {figures}")
    write_json(find_root() / "outputs/prove.json", results)
    sys.exit(not all(r["ok"] for r in results.values()))


if __name__ == "__main__":
    main()
