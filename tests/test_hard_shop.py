"""The hard shop differs from the models where it says that it does."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from recsys.core.params import load_params
from recsys.data.hard_catalog import make_hard_catalog
from recsys.data.hard_shop import HardShop
from recsys.data.hard_world import HardTruth
from recsys.data.prep import chosen_again

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
