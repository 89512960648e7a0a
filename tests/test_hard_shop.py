"""The hard shop differs from the models where it says that it does."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from recsys.core.params import default_params, load_params
from recsys.core.ranking import ndcg_of_rank
from recsys.data import hard_shop
from recsys.data.hard_catalog import make_hard_catalog
from recsys.data.hard_shop import HardShop
from recsys.data.hard_world import HardTruth
from recsys.data.prep import chosen_again
from recsys.data.shop import recent_views

pytestmark = pytest.mark.xdist_group("hard_shop")  # one worker, so that the log is made once


@pytest.fixture(scope="module")
def shop():
    return HardShop(make_hard_catalog(1500, seed=7), n_users=1500, n_days=14, seed=7)


@pytest.fixture(scope="module")
def log(shop):
    return pd.concat(shop.stream(30_000), ignore_index=True)


@pytest.fixture(scope="module")
def views(log):
    return log[log.event_type == "view"]


def test_texts_tell_the_material_and_nothing_of_the_style():
    catalog = make_hard_catalog(3000, seed=7)
    texts = catalog.items.title + " " + catalog.items.description
    words = CountVectorizer().fit_transform(texts)

    def accuracy(labels):
        model = MultinomialNB().fit(words[:2000], labels[:2000])
        return model.score(words[2000:], labels[2000:])

    assert accuracy(catalog.material) > 0.95
    assert accuracy(catalog.style) < 1 / 8 + 4 * np.sqrt(1 / 8 * 7 / 8 / 1000)


def test_no_column_follows_style_or_material():
    catalog = make_hard_catalog(3000, seed=7)
    columns = catalog.items.drop(columns=["item_id", "title", "description"])
    for name, column in columns.items():
        values = pd.qcut(column, 8, duplicates="drop") if column.dtype.kind == "f" else column
        for hidden in (catalog.style, catalog.material):
            table = pd.crosstab(values, hidden).to_numpy()
            expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
            chi2 = ((table - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
            freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
            assert chi2 < freedom + 5 * np.sqrt(2 * freedom), name


def test_the_same_seed_gives_the_same_tables(shop, log):
    again = HardShop(make_hard_catalog(1500, seed=7), n_users=1500, n_days=14, seed=7)
    pd.testing.assert_frame_equal(log, pd.concat(again.stream(30_000), ignore_index=True))
    pd.testing.assert_frame_equal(shop.items, again.items)
    pd.testing.assert_frame_equal(shop.users, again.users)


def test_users_return_to_items_they_saw_within_the_days_that_the_filter_hides(views):
    known = views.dropna(subset="user_id").sort_values(["user_id", "timestamp"])
    since = known.groupby(["user_id", "item_id"], observed=True).timestamp.diff()
    assert (since < 3 * 86400).mean() > 0.15


def test_most_items_have_few_events(views, shop):
    counts = views.item_id.value_counts().reindex(shop.items.item_id).fillna(0).sort_values()
    assert (counts < counts.mean() / 2).mean() > 0.5
    assert counts[-75:].sum() > 0.25 * counts.sum()


def test_anonymous_visits_have_several_events_and_some_end_with_a_login(log, views):
    anonymous = views[views.user_id.isna()]
    assert anonymous.groupby("visitor_id").size().mean() > 2
    user = log.user_id.astype(object)
    names = user.groupby(log.visitor_id).agg(["size", "count", "nunique"])
    assert ((names["count"] > 0) & (names["count"] < names["size"])).mean() > 0.03
    assert names["nunique"].max() == 1  # a cookie is one person's


def test_prices_change_and_demand_follows(shop, log):
    assert (log.groupby("item_id", observed=True).price.nunique() > 1).mean() > 0.05
    ratio = shop.ratios[0] < 1
    assert (shop.worth[0][ratio] > 0).any()
    twin = HardShop(
        make_hard_catalog(1500, seed=7),
        n_users=1500,
        n_days=14,
        seed=7,
        truth=replace(HardTruth(), view_elasticity=0.0),
    )
    lift = shop.worth[0] / np.maximum(twin.worth[0], 1e-20)
    sold = twin.worth[0] > 0
    np.testing.assert_allclose(lift[sold], 1 / shop.ratios[0][sold], rtol=1e-4)


def test_partners_are_viewed_after_each_other(shop, views):
    known = views.dropna(subset="user_id").sort_values(["user_id", "timestamp"])
    item = shop.place[shop.item_rows(known.item_id.astype(object))]
    same = known.user_id.to_numpy()[1:] == known.user_id.to_numpy()[:-1]
    is_partner = (shop.partner[item[:-1]] == item[1:, None]).any(1)
    by_chance = shop.partner[np.random.default_rng(0).permutation(item)[:-1]] == item[1:, None]
    assert is_partner[same].mean() > 5 * by_chance.any(1).mean()


def test_clicks_on_shuffled_pages_follow_the_frozen_examination():
    truth = replace(HardTruth(), shuffled=1.0)
    catalog = make_hard_catalog(1500, seed=7)
    shop = HardShop(catalog, n_users=1500, n_days=14, seed=7, truth=truth)
    position = pd.concat(shop.stream(30_000), ignore_index=True).position
    clicks = np.bincount(position[position > 0], minlength=truth.page + 1)[1:]
    exponents = np.linspace(0, 2, 401)
    curve = np.arange(1, truth.page + 1)[:, None] ** -exponents
    fitted = exponents[(clicks @ np.log(curve / curve.sum(0))).argmax()]
    assert abs(fitted - HardTruth().examine) < 0.12


def test_the_constants_are_those_that_were_frozen():
    assert asdict(HardTruth()) == dict(
        zipf=0.871,
        group_category=0.8,
        group_subcategory=0.8,
        favourite=3.0,
        favourite_sibling=1.0,
        style=0.9,
        material=0.7,
        price=0.3,
        hour=0.8,
        device=0.5,
        weekday=0.3,
        apart=0.5,
        launched=0.12,
        promoted=0.01,
        discount=(0.1, 0.5),
        promotion_days=(3, 8),
        elasticity=-2.62,
        view_elasticity=-1.0,
        interest=6.0,
        short_hours=0.5,
        long_hours=168.0,
        long_share=0.15,
        sibling=0.25,
        again=0.14,
        again_power=1.0,
        together=0.04,
        partners=3,
        memory=32,
        settle=30,
        navigate=0.25,
        page=20,
        examine=1.0,
        attract=0.06,
        shuffled=0.1,
        context_boost=20.0,
        page_error=0.5,
        pause_minutes=30.0,
        session_steps=5.0,
        activity=1.0,
        joined=0.2,
        strangers=0.6,
        logged_in=0.6,
        logs_in=0.4,
        new_cookie=0.1,
        cart=0.026,
        cart_taste=0.35,
        purchase=0.324,
        partner_cart=2.0,
    )


def test_interest_does_not_fade_as_the_feature_of_the_models_does():
    params = load_params("params/hardshop.yaml")
    assert params.TOP_CATEGORY_HOURS not in (HardTruth().short_hours, HardTruth().long_hours)


def test_repetitions_are_found_by_the_preparation(shop, views):
    known = views.dropna(subset="user_id").sort_values(["user_id", "timestamp"])
    events = dict(
        user=shop.user_rows(known.user_id.astype(object)),
        item=shop.item_rows(known.item_id.astype(object)),
        timestamp=known.timestamp.to_numpy(),
        case=np.ones(len(known), bool),
    )
    assert chosen_again(events).mean() > 0.15


def test_nothing_is_clicked_that_is_not_on_sale(shop):
    day = 3
    worth = shop.worth[day][shop.place]  # in catalogue order
    off_sale, on_sale = np.flatnonzero(worth == 0)[:5], np.flatnonzero(worth > 0)[:5]
    assert len(off_sale) == 5
    noon = np.array([shop.start + day * 86_400 + 43_200])
    shown = np.concatenate([on_sale, off_sale])[None]
    clicks = shop.click_probabilities(np.array([0]), noon, np.array([1]), shown)
    assert (clicks[0, :5] > 0).all() and (clicks[0, 5:] == 0).all()


def as_cases(shop, views, is_case):
    "Return views as the ceilings take them: columns of all, and those of the cases with a past."
    columns = dict(
        user=shop.user_rows(views.user_id.astype(object)),
        item=shop.item_rows(views.item_id.astype(object)),
        timestamp=views.timestamp.to_numpy(),
        device=views.device_type.cat.codes.to_numpy().astype(np.int64),
    )
    order = np.lexsort((columns["timestamp"], columns["user"]))
    columns = {name: column[order] for name, column in columns.items()}
    rows = np.flatnonzero(is_case(columns))
    past = recent_views(columns["user"], columns["item"], columns["timestamp"], rows)
    asked = {name: column[rows] for name, column in columns.items()}
    return columns, asked | dict(past_items=past[0], past_times=past[1])


def judge(probabilities, chosen):
    "Return log likelihood, NDCG@10, and chosen minus expected probability, of every case."
    p = probabilities.astype(float)
    own = p[np.arange(len(chosen)), chosen]
    ndcg = ndcg_of_rank((p > own[:, None]).sum(1), 10)
    return np.log(own), ndcg, own - (p**2).sum(1)


def standard_errors(values):
    return values.mean() / (values.std() / np.sqrt(len(values)))


@pytest.fixture(scope="module")
def anonymous(shop, views):
    "Return views, and the cases without a name of the last three days."
    begin = shop.start + 11 * 86_400
    return as_cases(shop, views, lambda c: (c["user"] < 0) & (c["timestamp"] >= begin))


@pytest.fixture(scope="module")
def ceiling(shop, anonymous):
    "Return the oracle's probabilities of the cases without a name, with fewer draws than a run."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hard_shop, "ROUNDS", 6)
        return shop.oracle_rule(anonymous[1], 30_000)(slice(None))


def test_choices_without_a_name_follow_the_ceiling(anonymous, ceiling):
    chosen = anonymous[1]["item"]
    assert len(chosen) > 2000
    assert abs(standard_errors(judge(ceiling, chosen)[2])) < 4


def test_the_ceiling_without_a_name_beats_taking_an_unknown_past_for_none(shop, anonymous, ceiling):
    asked = anonymous[1]
    request = (asked["user"], asked["timestamp"], asked["device"])
    likelihood, ndcg, _ = judge(ceiling, asked["item"])
    likelihood_without, ndcg_without, gap = judge(
        shop.choice_probabilities(*request), asked["item"]
    )
    assert standard_errors(gap) < -4  # too sure of itself
    assert standard_errors(likelihood - likelihood_without) > 2
    assert standard_errors(ndcg - ndcg_without) > -2


def test_the_ceiling_without_a_name_beats_popularity_by_hour_and_device(shop, anonymous, ceiling):
    columns, asked = anonymous
    early = columns["timestamp"] < asked["timestamp"].min()
    moment = (columns["timestamp"] % 86_400 // 3600 * 3 + columns["device"])[early]
    counts = np.zeros((72, len(shop.items)))
    np.add.at(counts, (moment, columns["item"][early]), 1)
    smooth = counts + 50 * (counts.sum(0) + 0.5) / (counts.sum() + 0.5 * len(shop.items))
    by_moment = smooth / smooth.sum(1, keepdims=True)
    popular = by_moment[asked["timestamp"] % 86_400 // 3600 * 3 + asked["device"]]
    better = [
        own - other
        for own, other in zip(judge(ceiling, asked["item"]), judge(popular, asked["item"]))
    ]
    assert standard_errors(better[0]) > 4 and standard_errors(better[1]) > 2


def test_a_view_teaches_the_ceiling_for_cases_after_it_in_any_part_of_the_log(shop, views):
    columns, asked = as_cases(
        shop, views, lambda c: (c["user"] >= 0) & (c["timestamp"] >= shop.start + 12 * 86_400)
    )
    known = {name: column[columns["user"] >= 0] for name, column in columns.items()}
    early = known["timestamp"] < shop.start + 10 * 86_400
    training = {name: column[early] for name, column in known.items()}
    likelihood = {
        name: judge(shop.learned_rule(asked, 30_000, log)(slice(None)), asked["item"])[0]
        for name, log in (("all", known), ("training", training))
    }
    assert standard_errors(likelihood["all"] - likelihood["training"]) > 2
    last = known["timestamp"].max()
    end = {name: column[known["timestamp"] < last] for name, column in known.items()}
    before = {name: column[asked["timestamp"] == last] for name, column in asked.items()}
    with_own = shop.learned_rule(before, 30_000, known)(slice(None))
    np.testing.assert_array_equal(with_own, shop.learned_rule(before, 30_000, end)(slice(None)))


def test_lists_of_the_ceilings_rank_a_run_between_its_popularity_and_the_oracle(
    tmp_path, monkeypatch
):
    from recsys.data.prep import run_data_prep
    from recsys.data.sources import run_ingest
    from recsys.evaluate.cases import test_cases
    from recsys.evaluate.metrics import case_metrics, rank_of_relevant
    from recsys.evaluate.systems import learnable_lists, oracle_lists

    monkeypatch.setattr(hard_shop, "ROUNDS", 1)  # enough here, and quick
    params = default_params(
        SOURCE="hardshop",
        SHOP_USERS=800,
        SHOP_ITEMS=600,
        SHOP_EVENTS=20_000,
        SHOP_DAYS=14,
        SHOP_IMAGES=False,
        OUTPUTS=str(tmp_path),
        TEXT_ENCODER="none",
        IMAGE_ENCODER="none",
    )
    run_ingest(params)
    prep = run_data_prep(params)
    cases = test_cases(prep, 2000, 0)
    item, user = (np.asarray(prep.events[name][cases]) for name in ("item", "user"))
    lists = {
        "oracle": oracle_lists(prep, params, cases, False),
        "learnable": learnable_lists(prep, params, cases, False),
        "popular": np.tile(np.argsort(-prep.item_counts)[:100], (len(cases), 1)),
    }
    ndcg = {
        name: case_metrics(rank_of_relevant(rows, item))["ndcg@10"] for name, rows in lists.items()
    }
    known = user >= 0
    mean = {name: values[known].mean() for name, values in ndcg.items()}
    assert mean["oracle"] > mean["learnable"] > 1.5 * mean["popular"], mean
    np.testing.assert_array_equal(lists["oracle"][~known], lists["learnable"][~known])
    hidden = learnable_lists(prep, params, cases[:50], True)
    for case, row in zip(cases[:50], hidden):
        past = prep.events["item"][prep.events["first"][case] : prep.events["cut"][case]]
        assert not np.isin(row, past).any() or user[cases == case] < 0
