"""The params files for public data sets read tables of the shape that these sets have."""

import json
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from recsys.core.params import Params, load_params
from recsys.core.runs import read_json, run_dir
from recsys.data.sources import run_ingest

PARAMS = Path(__file__).resolve().parent.parent / "params"
START = 1_500_000_000
LETTERS = "abcdefghij"


def movielens(folder: Path) -> None:
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n"
        + "".join(f"{i % 3},{i % 5},{i % 5 + 0.5},{START + i}\n" for i in range(60))
    )
    titles = "".join(f'{i},"Film, The ({i})",Drama|War\n' for i in range(5))
    (folder / "movies.csv").write_text("movieId,title,genres\n" + titles)


def movielens_100k(folder: Path) -> None:
    rows = "".join(f"{i % 3}\t{i % 5}\t{i % 5 + 1}\t{START + i}\n" for i in range(30))
    (folder / "u.data").write_text(rows)
    films = "".join(f"{i}|Café {i} (1995)|01-Jan-1995||http://x|0|1|0\n" for i in range(5))
    (folder / "u.item").write_text(films, encoding="latin-1")


def amazon_reviews(folder: Path) -> None:
    rows = [
        dict(
            reviewerID=f"A{i % 3}",
            asin=f"000{i % 5}",
            overall=float(i % 5 + 1),
            unixReviewTime=START + i,
            helpful=[0, i],
            style={"Format:": "Paperback"},
        )
        for i in range(30)
    ]
    pd.Series(list(map(json.dumps, rows))).to_csv(
        folder / "reviews.json.gz", index=False, header=False, quoting=3, sep="\x01"
    )


def retailrocket(folder: Path) -> None:
    kinds = ["view", "addtocart", "transaction"]
    lines = [
        f"{(START + i) * 1000},{i % 4},{kinds[i % 3]},{i % 5},{i if i % 3 == 2 else ''}\n"
        for i in range(60)
    ]
    (folder / "events.csv").write_text("timestamp,visitorid,event,itemid,transactionid\n")
    with (folder / "events.csv").open("a") as file:
        file.writelines(lines)


def diginetica(folder: Path) -> None:
    views = "".join(f"{i % 4};NA;{i % 5};{15 * i}000;2016-05-09\n" for i in range(60))
    (folder / "train-item-views.csv").write_text(
        "sessionId;userId;itemId;timeframe;eventdate\n" + views
    )
    (folder / "train-purchases.csv").write_text(
        "sessionId;userId;timeframe;eventdate;ordernumber;itemId\n1;7;900000;2016-05-09;10;2\n"
    )
    products = "".join(f"{i};{i};12,{i}\n" for i in range(5))
    (folder / "products.csv").write_text("itemId;pricelog2;product.name.tokens\n" + products)
    kinds = "".join(f"{i};{i % 2}\n" for i in range(5))
    (folder / "product-categories.csv").write_text("itemId;categoryId\n" + kinds)


def instacart(folder: Path) -> None:
    orders = "".join(
        f"{u * 10 + n},{u},prior,{n},2,08,{'' if n == 1 else '15.0'}\n"
        for u in range(3)
        for n in (1, 2, 3)
    )
    (folder / "orders.csv").write_text(
        "order_id,user_id,eval_set,order_number,order_dow,order_hour_of_day,"
        "days_since_prior_order\n" + orders
    )
    baskets = "".join(
        f"{u * 10 + n},{p},{p},1\n" for u in range(3) for n in (1, 2, 3) for p in (1, 2)
    )
    (folder / "order_products__prior.csv").write_text(
        "order_id,product_id,add_to_cart_order,reordered\n" + baskets
    )
    (folder / "products.csv").write_text(
        'product_id,product_name,aisle_id,department_id\n1,"Milk, 1 l",1,4\n2,Bread,2,4\n'
    )
    (folder / "aisles.csv").write_text("aisle_id,aisle\n1,milk\n2,bakery\n")
    (folder / "departments.csv").write_text("department_id,department\n4,food\n")


def online_retail(folder: Path) -> None:
    lines = [
        f'{536365 + i},8512{i % 2}A,"T-LIGHT, {i % 2}",6,12/{i + 1}/2010 8:26,'
        f"{2.55 if i < 6 else 9.0},{17850 + i % 3}.0,France\n"
        for i in range(28)
    ]
    cancelled = "C536379,85120A,Gone,-1,12/1/2010 9:41,27.5,14527,UK\n"
    header = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
    (folder / "online-retail.csv").write_text(header + "".join(lines) + cancelled)


def hm(folder: Path) -> None:
    log = "".join(
        f"2020-09-{i % 20 + 1:02d},{LETTERS[i % 4]},010877501{i % 3},0.05,{i % 2 + 1}\n"
        for i in range(60)
    )
    header = "t_dat,customer_id,article_id,price,sales_channel_id\n"
    (folder / "transactions_train.csv").write_text(header + log)
    articles = "".join(
        f'010877501{i},Strap top,Vest top,{i},Ladieswear,"Jersey top, narrow"\n' for i in range(3)
    )
    (folder / "articles.csv").write_text(
        "article_id,prod_name,product_type_name,colour_group_code,index_group_name,detail_desc\n"
        + articles
    )
    people = "".join(f"{letter},1.0,,{20 + at}\n" for at, letter in enumerate("abcd"))
    (folder / "customers.csv").write_text("customer_id,FN,Active,age\n" + people)


DATASETS = {  # params file -> its folder below data/, what writes tables of that shape, choices
    "movielens": ("movielens", movielens, {"liked"}),
    "movielens-100k": ("ml-100k", movielens_100k, {"liked"}),
    "amazon-reviews": ("amazon", amazon_reviews, {"liked"}),
    "retailrocket": ("retailrocket", retailrocket, {"view", "transaction"}),
    "diginetica": ("diginetica", diginetica, {"view", "purchase"}),
    "instacart": ("instacart", instacart, {"purchase"}),
    "online-retail": ("online-retail", online_retail, {"purchase"}),
    "hm": ("hm", hm, set()),
}


@pytest.mark.parametrize("name", DATASETS)
def test_a_public_data_set_is_read_as_its_params_file_says(name, tmp_path, monkeypatch):
    folder, write, choices = DATASETS[name]
    (tmp_path / "data" / folder).mkdir(parents=True)
    write(tmp_path / "data" / folder)
    if (PARAMS / f"{name}.sql").is_file():
        monkeypatch.chdir(tmp_path)
        duckdb.execute((PARAMS / f"{name}.sql").read_text())
    params = load_params(PARAMS / f"{name}.yaml")
    paths = {
        key: str(tmp_path / params[key])
        for key in ("INTERACTIONS", "ITEMS", "USERS")
        if params[key]
    }
    small = dict(OUTPUTS=str(tmp_path), MIN_ITEM_EVENTS=0)
    params = Params({**params, **paths, **small})
    run_ingest(params)
    folder = run_dir(params) / "ingest"
    log = pd.read_parquet(folder / "interactions.parquet")
    notes = " ".join(read_json(folder / "stage.json")["notes"])
    assert len(log) >= 18 and log.user_id.notna().all()
    assert pd.to_datetime(log.timestamp, unit="s").dt.year.between(2010, 2020).all()
    for kind in choices:
        assert kind in notes.split("choices are")[1]
    if params.ITEMS:
        items = pd.read_parquet(folder / "items.parquet")
        assert set(log.item_id) <= set(items.item_id)
        assert items.filter(regex="title|price").notna().all().all()
    if name == "online-retail":
        assert items.price.tolist() == [2.55, 2.55] and len(log) == 28
    if name == "hm":
        assert items.item_id[0] == "0108775010"
