"""Generated requests answered three ways: the notebook's function, a batch in process with
Valkey, and Triton.
"""

import time

import numpy as np

from recsys.core.runs import stage_dir
from recsys.data.prepared import load_prepared
from recsys.online.feature_store import materialise_until
from recsys.recommend.bundle import Bundle
from recsys.recommend.recommender import Recommender
from recsys.recommend.users import UserMemory
from recsys.serve.serving import online_parts


def offline(p):
    """The function on users in memory, who know nothing after the moment up to which the online
    store is filled.
    """
    bundle, prep = Bundle(stage_dir(p, "bundle")), load_prepared(p)
    past = np.asarray(prep.events["timestamp"]) < materialise_until(bundle)
    prep.events = {
        n: np.asarray(prep.events[n])[past] for n in ("user", "timestamp", "item", "case")
    }
    return Recommender(bundle, UserMemory(prep, bundle))


def requests(rec, n, seed=0):
    "Known, new and anonymous users, idle for up to a day; every field at odd values."
    rng, ids, items = (
        np.random.default_rng(seed),
        rec.users.ids,
        [i.decode() for i in rec.bundle.ids],
    )
    start = materialise_until(rec.bundle)
    for _ in range(n):
        user = rng.choice(
            [
                str(rng.choice(ids).decode()),
                str(rng.choice(ids).decode()),
                "",
                f"new {rng.integers(9)}",
                "ünknown",
            ]
        )
        yield dict(
            user_id=str(user),
            device_type=str(rng.choice(["mobile", "desktop", "tv set", ""])),
            timestamp=int(start + rng.integers(0, 86400) * (rng.random() < 2 / 3)),
            k=int(rng.choice([1, 5, 10, 24])),
            exclude=[str(x) for x in rng.choice([*items, "no such item"], rng.integers(0, 6))],
            temperature=float(np.float32(rng.choice([0, 0, 0.5, 2]))),
            diversity=float(np.float32(rng.choice([0, 0, 0, 0.3]))),
            seed=int(rng.integers(2**53)),
            max_per_category=int(rng.choice([0, 0, 2])),
            rules=random_rules(rng, rec, items),
        )


def random_rules(rng, rec, items):
    "Three of four requests have no rules, the others some of each kind, also in vain."
    if rng.random() < 0.75:
        return []
    categories = [*rec.bundle.category_names.values(), "no such category"]
    return [
        dict(item_id=str(rng.choice([*items, "no such item"])), place=int(rng.integers(1, 8))),
        dict(category=str(rng.choice(categories)), factor=float(rng.choice([0.1, 5]))),
        dict(category=str(rng.choice(categories)), place=int(rng.integers(1, 8))),
        dict(item_id=str(rng.choice(items)), factor=3.0),
    ]


def same(a, b, where):
    "Ids are the same; they may differ only where scores differ by less than 1e-5."
    ids, others = (np.asarray(x["item_ids"]).tolist() for x in (a, b))
    scores, theirs = (np.asarray(x["scores"], float) for x in (a, b))
    wrong, own = [i for i, (x, y) in enumerate(zip(ids, others)) if x != y], dict(zip(ids, scores))
    # a tie is judged by the items' own scores: a wrong item beside the right number is no tie
    tied = [
        abs(scores[i] - theirs[i]) < 1e-5 and abs(own.get(others[i], scores[-1]) - theirs[i]) < 1e-5
        for i in wrong
    ]
    assert len(ids) == len(others) and all(tied), (
        f"{where}: {ids} {others}, scores {scores} {theirs}"
    )
    assert len(wrong) or np.allclose(a["propensities"], b["propensities"], rtol=1e-3, atol=1e-6), (
        f"{where}: propensities {a['propensities']} {b['propensities']}"
    )
    return len(wrong)


def same_sources(a, b, where, request):
    """Each item that is on both pages was found by the same sources, at the same ranks; each has a
    source, unless a rule of the request names it: such an item need not have been found.
    """
    found, others = (
        {
            item: sorted((source["source"], source["rank"], source["score"]) for source in sources)
            for item, sources in zip(np.asarray(page["item_ids"]).tolist(), page["sources"])
            if item
        }
        for page in (a, b)
    )
    named = {rule["item_id"] for rule in request.get("rules", ()) if "item_id" in rule}
    without = [item for item, sources in found.items() if not sources and item not in named]
    assert found and not without, f"{where}: no source of {without}"
    for item in found.keys() & others.keys():
        own, theirs = found[item], others[item]
        ranks = [[source[:2] for source in sources] for sources in (own, theirs)]
        scores = [[source[2] for source in sources] for sources in (own, theirs)]
        assert ranks[0] == ranks[1], f"{where}: {item}: {own} {theirs}"
        assert np.allclose(*scores, rtol=1e-4, atol=1e-5), f"{where}: {item}: {own} {theirs}"


FROM_VALKEY = {"user_features_failed", "seen_filter_failed", "popularity_failed"}


def patient(ask):
    """Ask again where a busy machine let Valkey's time-out pass: that is a fallback with its
    reason, and no difference.
    """
    for _ in range(5):
        answer = ask()
        reasons = answer["reasons"] if isinstance(answer["reasons"], list) else [answer["reasons"]]
        if not {f["code"] for r in reasons for f in r["fallbacks"]} & FROM_VALKEY:
            break
        time.sleep(0.7)  # the breaker lets nobody through for half a second
    return answer


def compare(p, url, client, n, seed=0, progress=lambda x: x):
    """Answer n requests three ways; raise where they differ, return how many places differed by a
    tie.
    """
    rec, online, ties = offline(p), online_parts(p, url)[0], 0
    asked = list(requests(rec, n, seed))

    def one(r, q):
        return {
            f: v[0]
            for f, v in r.recommend({f: v if f == "k" else [v] for f, v in q.items()}).items()
            if f in ("item_ids", "scores", "propensities", "reasons", "sources")
        }

    for q in progress(asked):
        a, t = one(rec, q), patient(lambda: client.recommend(**q, request_id="canary"))
        ties += same(a, t, f"Triton, {q}")
        assert a["reasons"] == t["reasons"], f"{q}: {a['reasons']} {t['reasons']}"
        same_sources(a, t, f"Triton, {q}", q)
        with_valkey = patient(lambda: one(online, q))
        ties += same(a, with_valkey, f"in process with Valkey, {q}")
        same_sources(a, with_valkey, f"in process with Valkey, {q}", q)
    for k in sorted(
        {q["k"] for q in asked}
    ):  # batches: requests of one page size together, as they come
        group = [q for q in asked if q["k"] == k]
        for i in range(0, len(group), 32):
            part = group[i : i + 32]
            together = patient(
                lambda: client.recommend(
                    k=k,
                    request_id=["canary"] * len(part),
                    **{f: [q[f] for q in part] for f in part[0] if f != "k"},
                )
            )
            batch = rec.recommend(
                dict(k=k, **{f: [q[f] for q in part] for f in part[0] if f != "k"})
            )
            for j, q in enumerate(part):
                a = one(rec, q)
                for name, pages in (("Triton's batch", together), ("batch", batch)):
                    page = {f: pages[f][j] for f in ("item_ids", "sources")}
                    same_sources(a, page, f"{name}, {q}", q)
                ties += same(
                    a,
                    {f: together[f][j] for f in ("item_ids", "scores", "propensities")},
                    f"Triton's batch, {q}",
                )
                ties += same(
                    a,
                    {f: batch[f][j] for f in ("item_ids", "scores", "propensities")},
                    f"batch, {q}",
                )
    return ties
