"""The built-in shop's products look, are called and cost like what they are."""

import hashlib
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from recsys.data.catalog import (
    CATEGORIES,
    MADE_OF,
    draw_item,
    infer_look,
    label_prices,
    make_catalog,
)
from recsys.data.hard_catalog import draw_pictures
from recsys.data.outlines import OUTLINES
from recsys.data.pictures import _layers
from recsys.serve.large_pictures import LARGE_SIDE, large_picture

HASH_OF_PICTURES = """
import hashlib
from recsys.data.catalog import make_catalog
print(hashlib.sha256(b"".join(make_catalog(40, seed=5, images=True).image_bytes)).hexdigest())
"""

PIXELS = "7f2647d47ff443c1ad8e81d85795ea8911cb3d993ff50dae33abec7fae558e1b"  # of the same catalogue


def picture(l1, l2, style, colour=7):
    "Return the pixels of a picture, placed as all others of this test."
    png = draw_item(l1, l2, style, colour, np.random.default_rng(0))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), float)


@pytest.fixture(scope="module")
def catalog():
    return make_catalog(3000, seed=42)


def test_every_subcategory_has_a_silhouette_of_its_own():
    solids = np.stack([_layers(OUTLINES[kind], 64).solid for kind in CATEGORIES.category_l2])
    flat = solids.reshape(len(solids), -1) > 0.5
    both = (flat[:, None] & flat).sum(-1) / np.maximum((flat[:, None] | flat).sum(-1), 1)
    np.fill_diagonal(both, 0)
    assert both.max() < 0.95
    assert (both > 0.85).sum() <= 10


def test_styles_of_one_product_differ_on_its_body_and_only_faintly_behind_it():
    layers = _layers(OUTLINES["suitcase"], 128)
    window = np.s_[8:-8, 8:-8]
    body, ground = layers.share[window] > 0.99, layers.solid[window] < 0.01
    for first in range(8):
        for second in range(first):
            gap = np.abs(picture(19, 0, first) - picture(19, 0, second)).mean(-1)
            assert gap[body].mean() > 4, (first, second)
            assert gap[ground].mean() < 12, (first, second)


def test_a_colour_shows_on_the_body():
    assert picture(19, 0, 0, 3)[64, 60].argmax() == 0  # red
    assert picture(19, 0, 0, 7)[64, 60].argmax() == 2  # blue


def test_pictures_are_the_same_bytes_in_another_process():
    command = [sys.executable, "-c", HASH_OF_PICTURES]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    here = b"".join(make_catalog(40, seed=5, images=True).image_bytes)
    assert hashlib.sha256(here).hexdigest() == there


def hash_of_pixels(catalog):
    digest = hashlib.sha256()
    for png in catalog.image_bytes:
        digest.update(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).tobytes())
    return digest.hexdigest()


def test_the_encoder_gets_the_pixels_that_figures_were_measured_with():
    "Also after pictures were drawn for showing, which share code and caches with the stored ones."
    catalog = make_catalog(40, seed=5, images=True)
    assert hash_of_pixels(catalog) == PIXELS
    larger = [large_picture(x.image_bytes, x.category_l2) for x in catalog[:6].itertuples()]
    assert {Image.open(io.BytesIO(x)).size for x in larger} == {(LARGE_SIDE, LARGE_SIDE)}
    assert hash_of_pixels(make_catalog(40, seed=5, images=True)) == PIXELS


def test_an_own_picture_is_not_drawn_again():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8))
    for mode, form in (("RGB", "PNG"), ("P", "PNG"), ("RGB", "JPEG")):
        out = io.BytesIO()
        photo.convert(mode).save(out, form)
        assert large_picture(out.getvalue(), "sofa") is None


def test_no_two_products_of_one_look_are_the_same_picture():
    same = np.zeros(20, int)
    assert len(set(draw_pictures(same, same, same, np.random.default_rng(0)))) == 20


def test_prices_end_as_on_labels_and_lie_around_the_typical_one(catalog):
    cents = (catalog.price * 100).round().astype(int) % 100
    assert set(cents) == {0, 50, 90, 95}
    typical = catalog.category_l2.map(CATEGORIES.set_index("category_l2").price)
    ratio = np.log(catalog.price / typical)
    assert abs(ratio.mean()) < 0.05 and abs(ratio.std() - 0.45) < 0.05
    assert catalog.price.min() >= 0.5


def test_labels_keep_the_order_of_prices():
    prices = np.sort(np.random.default_rng(0).lognormal(4, 1.5, 5000))
    labels = label_prices(prices)
    assert (np.diff(labels) >= 0).all()
    assert (np.abs(labels - prices) <= np.maximum(2.5, 0.3)).all()


def test_titles_name_a_fitting_material_and_neither_style_nor_colour(catalog):
    for item in catalog.itertuples():
        title = item.title.lower()
        (material,) = [m for m in MADE_OF[item.category_l2] if f" {m} {item.category_l2}" in title]
        assert f" {material}. " in item.description
    seen = {infer_look("", title.replace("Olive Oil", "")) for title in catalog.title}
    assert len(seen) == 1  # what the id's hash says
