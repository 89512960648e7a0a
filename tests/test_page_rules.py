"""Pins, factors and caps on a page: the rerank step beside one that fills place after place."""

from types import SimpleNamespace

import numpy as np
import pytest

from recsys.recommend.rerank import order_pages

N_ITEMS, N_CATEGORIES = 30, 4


def small_shop(rng):
    "Return a bundle with nothing but what the rerank step reads."
    return SimpleNamespace(
        categories=rng.integers(0, N_CATEGORIES, N_ITEMS),
        category_names={code: f"c{code}" for code in range(N_CATEGORIES)},
        category_codes={f"c{code}": code for code in range(N_CATEGORIES)},
        ids=np.array([f"i{row}".encode() for row in range(N_ITEMS)]),
        row_of={f"i{row}": row for row in range(N_ITEMS)},
        in_stock=np.ones(N_ITEMS, bool),
    )


def random_rules(rng):
    rules = []
    for _ in range(rng.integers(0, 6)):
        which = (
            dict(item_id=f"i{rng.integers(N_ITEMS)}")
            if rng.random() < 0.6
            else dict(category=f"c{rng.integers(N_CATEGORIES + 1)}")
        )
        how = (
            dict(place=int(rng.integers(1, 9)))
            if rng.random() < 0.6
            else dict(factor=float(rng.choice([0.01, 0.5, 1, 3, 100])))
        )
        rules.append(which | how)
    return rules


def random_batch(rng, n_requests, n_candidates):
    rows = np.array([rng.permutation(N_ITEMS)[:n_candidates] for _ in range(n_requests)])
    rows[rng.random(rows.shape) < 0.1] = -1
    request = dict(
        user_id=[""] * n_requests,
        exclude=[[] for _ in range(n_requests)],
        rules=[random_rules(rng) for _ in range(n_requests)],
        k=rng.integers(1, 9, n_requests),
        temperature=np.zeros(n_requests),
        diversity=np.zeros(n_requests),
        seed=rng.integers(0, 100, n_requests),
        max_per_category=rng.choice([0, 1, 2], n_requests),
    )
    scores = rng.normal(size=rows.shape).round(1).astype(np.float32)
    return request, rows, scores


def pinned_by_rules(shop, rules, k, score):
    "Return place -> item row of the pins, each rule in its turn."
    pins = {}
    for rule in rules:
        if "place" not in rule:
            continue
        code = next(
            (c for c, name in shop.category_names.items() if name == rule.get("category")), -1
        )
        meant = [
            row
            for row in score
            if row not in pins.values()
            and (
                shop.categories[row] == code if "category" in rule else f"i{row}" == rule["item_id"]
            )
        ]
        free = [place for place in range(rule["place"], k + 1) if place not in pins]
        if meant and free:
            pins[free[0]] = min(meant, key=lambda row: (-score[row], row))
    return pins


def page_by_hand(shop, request, i, rows, scores):
    "Fill a page one place at a time."
    rules, k, cap = request["rules"][i], request["k"][i], request["max_per_category"][i]
    score = {int(row): value for row, value in zip(rows[i], scores[i]) if row >= 0}
    for rule in rules:
        for row in score:
            category = shop.category_names[shop.categories[row]]
            if "factor" in rule and rule.get("item_id", rule.get("category")) in (
                f"i{row}" if "item_id" in rule else category,
            ):
                score[row] += np.float32(np.log(rule["factor"]))
    pins = pinned_by_rules(shop, rules, k, score)
    page = []
    for place in range(1, k + 1):
        on_page = {*page, *pins.values()}
        n_shown = np.bincount([shop.categories[row] for row in on_page] or [0], minlength=4)
        n_shown = n_shown if on_page else n_shown * 0
        allowed = [
            row
            for row in score
            if row not in on_page and not 0 < cap <= n_shown[shop.categories[row]]
        ]
        if place in pins:
            page.append(pins[place])
        elif allowed:
            page.append(min(allowed, key=lambda row: (-score[row], row)))
    return page


@pytest.mark.parametrize("seed", range(60))
def test_pages_under_rules_are_those_filled_by_hand(seed):
    rng = np.random.default_rng(seed)
    shop = small_shop(rng)
    request, rows, scores = random_batch(rng, 8, int(rng.integers(1, 15)))
    found = order_pages(shop, request, rows, scores)
    for i in range(8):
        shown = [int(rows[i, at]) for at in found.positions[i] if at >= 0]
        assert shown == page_by_hand(shop, request, i, rows, scores), (seed, i, request["rules"][i])


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_request_with_rules_does_not_depend_on_its_batch(temperature):
    rng = np.random.default_rng(7)
    shop = small_shop(rng)
    request, rows, scores = random_batch(rng, 30, 12)
    request["temperature"] = np.full(30, temperature)
    together = order_pages(shop, request, rows, scores)
    for i in range(30):
        own = {name: values[i : i + 1] for name, values in request.items()}
        alone = order_pages(shop, own, rows[i : i + 1], scores[i : i + 1])
        k = request["k"][i]
        assert together.positions[i, :k].tolist() == alone.positions[0].tolist()
        np.testing.assert_allclose(together.propensities[i, :k], alone.propensities[0], rtol=1e-5)
        assert together.notes[i] == alone.notes[0]


def test_a_factor_of_one_changes_nothing_and_pinned_places_are_certain():
    rng = np.random.default_rng(3)
    shop = small_shop(rng)
    request, rows, scores = random_batch(rng, 20, 12)
    request |= dict(temperature=np.full(20, 1.0), k=np.full(20, 6), rules=[[]] * 20)
    plain = order_pages(shop, request, rows, scores)
    request["rules"] = [[dict(category="c1", factor=1)]] * 20
    same = order_pages(shop, request, rows, scores)
    assert (plain.positions == same.positions).all()
    assert (plain.propensities == same.propensities).all()
    pinned = [int(row) for row in rows.max(1)]
    request["rules"] = [[dict(item_id=f"i{row}", place=1)] for row in pinned]
    page = order_pages(shop, request, rows, scores)
    assert (rows[np.arange(20), page.positions[:, 0]] == pinned).all()
    assert (page.propensities[:, 0] == 1).all() and (page.propensities[:, 1] < 1).all()


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_propensities_under_a_factor_are_those_of_the_weights(factor):
    shop = small_shop(np.random.default_rng(0))
    rows, scores = np.tile([0, 1, 2], (20_000, 1)), np.tile([0.3, -0.4, 0.1], (20_000, 1))
    request = dict(
        user_id=[""] * 20_000,
        exclude=[[]] * 20_000,
        rules=[[dict(item_id="i1", factor=factor)]] * 20_000,
        k=np.ones(20_000, int),
        temperature=np.full(20_000, 2.0),
        diversity=np.zeros(20_000),
        seed=np.arange(20_000),
        max_per_category=np.zeros(20_000, int),
    )
    page = order_pages(shop, request, rows, scores)
    weights = np.exp(np.array([0.3, -0.4, 0.1]) / 2) * np.array([1, factor**0.5, 1])
    expected = weights / weights.sum()
    np.testing.assert_allclose(page.propensities[:, 0], expected[page.positions[:, 0]], rtol=1e-5)
    shares = np.bincount(page.positions[:, 0], minlength=3) / 20_000
    np.testing.assert_allclose(shares, expected, atol=0.02)
