"""Any column name works, and what is named a category is one, from the table to the arrays."""

import numpy as np
import pandas as pd
import pytest

from recsys.core.params import RecsysError, default_params
from recsys.data.checks import check_table
from recsys.data.features import (
    FIRST,
    Contract,
    Encoder,
    as_bytes,
    load_arrays,
    load_encoder,
    make_contract,
    pack,
    save_arrays,
    save_encoder,
    unpack,
)
from recsys.data.names import NAMESPACE, RESERVED_NAMES, internal_names

ODD_NAMES = [
    "brand name",
    "price/kg",
    "a.b",
    "Größe",
    "size (EU)",
    "2nd_hand",
    "known_id",
    "popularity",
    "text",
    "order",
    "class",
    "hour",
    "age",
    "item_age",
    "x__values",
    "recsys_known",
    "Country",
    "country",
    "日本",
    "🎈",
    " ",
    "n" * 300,
]


def tables(n=60):
    "Return users and items that share a column, with an odd column of words and one of numbers."
    rng = np.random.default_rng(0)
    users = pd.DataFrame(dict(user_id=[f"u{i}" for i in range(n)]))
    users["country"] = [["DE", "AT", "CH"][i % 3] for i in range(n)]
    users["item_id"] = [f"favourite {i % 4}" for i in range(n)]
    items = pd.DataFrame(dict(item_id=[f"i{i}" for i in range(n)]))
    for place, name in enumerate(ODD_NAMES):
        words = [f"{name[:5]} {i % 3}" for i in range(n)]
        items[name] = words if place % 2 else rng.random(n)
    items["category_l1"] = [float(i % 4) if i % 7 else np.nan for i in range(n)]
    items["maker_id"] = [i % 5 for i in range(n)]
    return check_table(users, "users", "user_id"), check_table(items, "items", "item_id")


def contract_of(users, items) -> Contract:
    "Return the contract of two tables without texts, images and devices."
    return make_contract(users, items, False, False, False, default_params(HISTORY=3))[0]


def test_every_column_is_a_feature_with_a_name_of_its_own():
    users, items = tables()
    contract = contract_of(users, items)
    names = contract.names()
    assert len({name.lower() for name in names}) == len(names)
    assert set(ODD_NAMES) <= {feature.source for feature in contract.item}
    assert [f.label for f in contract.side("user")] == ["country", "item_id"]
    for feature in contract.side("user", "item"):
        assert feature.name.isascii() and feature.name.isidentifier() and "__" not in feature.name
        if feature.name != feature.source:
            assert feature.name.startswith(NAMESPACE)
        elif feature.source != "item_id":
            assert feature.name.lower() not in RESERVED_NAMES


def test_names_depend_on_the_column_alone_and_safe_ones_stay():
    assert internal_names(["brand", "Brand_2"], "item") == dict(brand="brand", Brand_2="Brand_2")
    alone = internal_names(["price/kg"], "item")["price/kg"]
    assert internal_names([*ODD_NAMES, "price kg"], "item")["price/kg"] == alone
    assert internal_names(["price kg"], "item")["price kg"] != alone
    assert internal_names(["price/kg"], "user")["price/kg"] != alone


def test_categories_of_numbers_are_the_same_as_of_text():
    _, items = tables()
    assert set(items.category_l1.dropna()) == {"0", "1", "2", "3"}
    assert items.category_l1.isna().sum() == 9
    assert set(items.maker_id) == {"0", "1", "2", "3", "4"}
    contract = contract_of(*tables())
    assert contract["category_l1"].kind == contract["maker_id"].kind == "categorical"
    assert contract["top_category"].vocabulary == "category_l1"


def learned_encoder(contract, frames):
    "Return an encoder that knows every value of some frames, as a fitted one would."
    vocab, stats = {}, {}
    for feature in contract.side("user", "item"):
        column = frames[feature.side][feature.source]
        if feature.kind == "categorical":
            values = np.unique(as_bytes(column.dropna().to_numpy()))
            vocab[feature.vocabulary] = values, np.arange(len(values)) + FIRST
        else:
            stats[feature.name] = dict(fill=0.0, log=False, mean=0.0, std=1.0)
    return Encoder(contract, vocab, stats)


def test_odd_names_survive_files_and_arrays(tmp_path):
    "The encoder reads columns by their own names, and packing and unpacking keep each value."
    users, items = tables()
    contract = contract_of(users, items)
    save_encoder(learned_encoder(contract, dict(user=users, item=items)), tmp_path)
    encoder = load_encoder(tmp_path)
    assert encoder.contract == contract
    encoded = encoder.encode("item", {name: items[name].to_numpy() for name in items}, len(items))
    for feature in contract.item.kind("categorical"):
        assert (encoded[feature.name][items[feature.source].notna()] >= FIRST).all()
    for feature in contract.item.kind("continuous"):
        np.testing.assert_array_equal(
            encoded[feature.name], items[feature.source].to_numpy(np.float32)
        )
    values = unpack(contract.item, pack(contract.item, encoded, "i_"), "i_")
    for feature in contract.item:
        np.testing.assert_array_equal(values[feature.name], encoded[feature.name])
    save_arrays(tmp_path / "columns.npz", encoded)
    assert set(load_arrays(tmp_path / "columns.npz")) == set(encoded)


def test_a_category_is_one_whatever_the_type_of_its_numbers():
    users, items = tables()
    encoder = learned_encoder(contract_of(users, items), dict(user=users, item=items))
    for column in ([3.0, np.nan], [3, None], ["3", ""], np.array([3, 99])):
        codes = encoder.encode("item", dict(maker_id=column), 2)["maker_id"]
        assert codes[0] == encoder.encode("item", dict(maker_id=["3"]), 1)["maker_id"][0] >= FIRST
        assert codes[1] < FIRST


def test_users_and_items_with_one_column_name_have_their_own_vocabularies():
    users, items = tables()
    contract = contract_of(users, items)
    encoder = learned_encoder(contract, dict(user=users, item=items))
    (own,) = (f for f in contract.side("user") if f.source == "country")
    assert encoder.vocab[own.vocabulary][0].tolist() == [b"AT", b"CH", b"DE"]


def test_an_id_longer_than_a_request_may_hold_is_refused_with_its_row():
    items = pd.DataFrame(dict(item_id=["a", "x" * 256]))
    assert len(check_table(items, "items.csv", "item_id")) == 2
    with pytest.raises(RecsysError, match=r"items.csv: item_id 'x+'\.\.\. \(row 1\) has 257"):
        check_table(items.assign(item_id=["a", "x" * 257]), "items.csv", "item_id")
