"""Tables as people have them: each ends in the right values, or in an error that names the place.

A test names the kind of fault; the tables are tiny, and only `ingest` runs.
"""

import decimal
import gzip
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.core.params import RecsysError, default_params
from recsys.core.runs import read_json, run_dir
from recsys.data.sources import run_ingest

START = 1_780_272_000  # 1 June 2026


def events(n: int = 12, **more) -> pd.DataFrame:
    "Return a small log of two users and three items; keywords are further columns."
    return pd.DataFrame(
        dict(
            user_id=[f"u{i % 2}" for i in range(n)],
            item_id=[f"i{i % 3}" for i in range(n)],
            timestamp=[START + 60 * i for i in range(n)],
            **more,
        )
    )


def items(**more) -> pd.DataFrame:
    "Return a catalogue of three items; keywords are further columns."
    columns = dict(item_id=["i0", "i1", "i2"], price=[5.5, 6.5, 7.5], category_l1=["a", "b", "a"])
    return pd.DataFrame(columns | more)


class Ingested:
    "The tables and the record of a finished ingest."

    def __init__(self, folder: Path):
        self.log = pd.read_parquet(folder / "interactions.parquet")
        self.items = pd.read_parquet(folder / "items.parquet")
        self.notes = " ".join(read_json(folder / "stage.json")["notes"])
        records = read_json(folder / "columns.json")
        self.columns = {(record["table"], record["column"]): record for record in records}


@pytest.fixture
def ingest(tmp_path):
    "Return a function that ingests tables of a folder; its keywords are parameters."
    (tmp_path / "in").mkdir()

    def run(log: str, catalogue: str = "", **given) -> Ingested:
        paths = dict(INTERACTIONS=str(tmp_path / "in" / log))
        if catalogue:
            paths["ITEMS"] = str(tmp_path / "in" / catalogue)
        params = default_params(SOURCE="tables", OUTPUTS=str(tmp_path / "out"), **paths, **given)
        run_ingest(params)
        return Ingested(run_dir(params) / "ingest")

    run.folder = tmp_path / "in"
    return run


def test_the_first_file_lacks_a_column_that_later_ones_have(ingest):
    events().to_csv(ingest.folder / "1.csv", index=False)
    events(event_type="purchase").to_parquet(ingest.folder / "2.parquet")
    found = ingest("")
    assert found.log.event_type.isna().sum() == 12 and len(found.log) == 24
    assert "1 of 2 files have no column event_type, the first is" in found.notes


def test_a_file_without_a_needed_column_is_named(ingest):
    events().to_csv(ingest.folder / "1.csv", index=False)
    events().drop(columns="item_id").to_csv(ingest.folder / "2.csv", index=False)
    with pytest.raises(RecsysError, match=r"2.csv: no column item_id; found user_id"):
        ingest("")


def test_ids_of_different_types_in_files_are_one_text(ingest):
    events().assign(user_id=range(12)).to_parquet(ingest.folder / "1.parquet")
    with_gap = events().assign(user_id=[None, *map(float, range(1, 12))])
    with_gap.to_parquet(ingest.folder / "2.parquet")
    events().assign(user_id="007").to_csv(ingest.folder / "3.csv", index=False)
    found = ingest("")
    assert set(found.log.user_id.dropna()) == {*map(str, range(12)), "007"}


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.csv", dict(sep=";")),
        ("a.tsv", dict(sep="\t")),
        ("a.csv", dict(sep="|")),
        ("a.csv.gz", {}),
        ("a.csv", dict(encoding="utf-8-sig")),
        ("a.csv", dict(encoding="utf-16")),
        ("a.csv", dict(quoting=1)),
        ("log", {}),
    ],
)
def test_dialects_of_csv_give_the_same_rows(ingest, name, options):
    log = events(device_type='a "big",\nold; one')
    log.to_csv(ingest.folder / name, index=False, **options)
    found = ingest(name).log.sort_values("timestamp").reset_index(drop=True)
    assert found[list(log)].equals(log)


def test_a_delimiter_of_two_characters_and_no_header(ingest):
    log = events()
    lines = [f"{u[1:]}::{i[1:]}::5::{t}" for u, i, t in log.itertuples(index=False)]
    (ingest.folder / "ratings.dat").write_text("\n".join(lines))
    with pytest.raises(RecsysError, match="a file without a header takes numbers"):
        ingest("ratings.dat")
    names = dict(user_id=1, item_id=2, stars=3, timestamp=4)
    rating = dict(column="stars", at_least=4)
    found = ingest("ratings.dat", COLUMNS=names, DELIMITER="::", RATING=rating)
    assert set(found.log.user_id) == {"0", "1"} and set(found.log.event_type) == {"liked"}


def test_json_lines_with_numbers_lists_and_late_columns(ingest):
    rows = events().to_dict("records")
    rows[0]["user_id"], rows[1]["tags"] = 7, ["x"]
    for row in (4, 9, 11):
        rows[row]["event_type"] = "view"
    text = "\n".join(map(json.dumps, rows))
    (ingest.folder / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    found = ingest("a.jsonl.gz")
    assert set(found.log.user_id) == {"7", "u0", "u1"}
    assert found.log.event_type.notna().sum() == 3
    assert "lists" in found.columns["interactions", "tags"]["reason"] and "tags" in found.notes


def test_a_folder_of_partitions_with_hidden_and_empty_files(ingest):
    root = ingest.folder / "log [new]"
    log = events(event_type=["view", "purchase"] * 6)
    table = pa.Table.from_pandas(log, preserve_index=False)
    pq.write_to_dataset(table, str(root), partition_cols=["event_type"])
    (root / "_SUCCESS").touch()
    (root / "._part-0.parquet").write_bytes(b"\0\5\26\7" * 9)
    (root / "event_type=view" / "empty.parquet").touch()
    found = ingest("log [new]")
    assert found.log.event_type.value_counts().to_dict() == dict(view=6, purchase=6)
    assert "1 file(s) passed over, empty" in found.notes
    assert len(ingest("log [new]/*/*.parquet").log) == 12


def test_dictionary_index_and_decimal_columns(ingest):
    log = events().astype(dict(user_id="category", item_id="category")).set_index("user_id")
    log.assign(__index_level_0__=1).reset_index().to_parquet(ingest.folder / "e.parquet")
    prices = [decimal.Decimal("5.50"), None, decimal.Decimal("7.25")]
    catalogue = items(price=prices).astype(dict(category_l1="category"))
    catalogue.index = [4, 5, 9]
    catalogue.to_parquet(ingest.folder / "i.parquet")
    found = ingest("e.parquet", "i.parquet")
    assert found.items.price.dropna().tolist() == [5.5, 7.25]
    assert found.items.category_l1.tolist() == ["a", "b", "a"]
    assert list(found.items) == ["item_id", "price", "category_l1"]
    assert found.columns["items", "__index_level_0__"]["reason"] == "a saved row number"


def test_numbers_are_decided_by_all_values_of_all_files(ingest):
    events().to_csv(ingest.folder / "e.csv", index=False)
    (ingest.folder / "i").mkdir()
    many = items(size=["1", "NA", ""], model=["501", "502", "503"], code=["1", "2", "3"])
    many.to_csv(ingest.folder / "i" / "1.csv", index=False)
    late = dict(item_id="j", price=9.99, size=2.5, model="jeans", code="04")
    pd.DataFrame([late]).to_csv(ingest.folder / "i" / "2.csv", index=False)
    found = ingest("e.csv", "i").items
    assert found["size"].dropna().tolist() == [1.0, 2.5]
    assert found.model.tolist() == ["501", "502", "503", "jeans"]
    assert found.code.tolist() == ["1", "2", "3", "04"]  # a leading zero is a name
    assert found.price.tolist() == [5.5, 6.5, 7.5, 9.99]


@pytest.mark.parametrize(
    "column, values, message",
    [
        ("price", ["5", "12,50", "7"], r"i.csv: price is '12,50' \(row 1\), expected a number"),
        ("in_stock", ["yes", "no", "perhaps"], r"i.csv: in_stock is 'perhaps' \(row 2\)"),
    ],
)
def test_values_with_a_meaning_are_refused_by_place(ingest, column, values, message):
    events().to_csv(ingest.folder / "e.csv", index=False)
    items(**{column: values}).to_csv(ingest.folder / "i.csv", index=False)
    with pytest.raises(RecsysError, match=message):
        ingest("e.csv", "i.csv")


@pytest.mark.parametrize(
    "values", [["yes", "No", ""], [1.0, 0.0, None], ["TRUE", "f", None], [17, 0, 3]]
)
def test_stock_is_read_by_its_words(ingest, values):
    events().to_csv(ingest.folder / "e.csv", index=False)
    items(in_stock=values).to_csv(ingest.folder / "i.csv", index=False)
    assert ingest("e.csv", "i.csv").items.in_stock.tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_ids_that_are_true_or_false_are_refused_by_name(ingest, name):
    log = events().assign(item_id=[True, False] * 6)
    if name.endswith("parquet"):
        log.to_parquet(ingest.folder / name)
    else:
        log.to_json(ingest.folder / name, orient="records", lines=True)
    with pytest.raises(RecsysError, match=f"{name}: item_id is true or false.*COLUMNS: .item_id"):
        ingest(name)


def test_words_for_truths_are_ids_in_a_file_without_types(ingest):
    events().assign(item_id=[True, False] * 6).to_csv(ingest.folder / "a.csv", index=False)
    assert set(ingest("a.csv").log.item_id) == {"True", "False"}


@pytest.mark.parametrize(
    "log, given, said",
    [
        (events().assign(timestamp=START), {}, "timestamp: the 6 choices have one time, 2026-06"),
        (
            events().assign(timestamp=[START] * 6 + [START + 60] * 6),
            {},
            "timestamp: .* 2 different times.*needs 3.*SPLIT: leave_one_out.*TIME_FORMAT.*COLUMNS",
        ),
        (
            events().assign(timestamp=[START + 600 * (i > 5) + i for i in range(12)]),
            {},
            "timestamp: the validation split is empty.*VALID: 0 goes without",
        ),
        (events(), dict(TEST=400), "timestamp: the training split is empty.*smaller TEST"),
        (
            events(event_type=["purchase"] * 10 + ["view"] * 2),
            dict(POSITIVE_EVENTS="purchase"),
            "timestamp: the test split is empty.*10 of them choices.*change TEST",
        ),
        (
            events(4),
            dict(SPLIT="leave_one_out"),
            "user_id: the validation split is empty.*no user has more than 2",
        ),
        (
            pd.concat([events(4)] * 2),  # each row twice
            dict(SPLIT="leave_one_out"),
            "user_id: .* no user has more than 2",
        ),
        (events().assign(user_id=""), dict(SPLIT="leave_one_out"), "user_id: .* more than 0"),
    ],
    ids=[
        "one time",
        "two times for three parts",
        "a gap where validation is",
        "a test longer than the log",
        "no choice at the end",
        "two choices a user",
        "repeated rows",
        "nobody",
    ],
)
def test_what_no_split_can_divide_is_refused_at_once(ingest, log, given, said):
    log.to_csv(ingest.folder / "a.csv", index=False)
    with pytest.raises(RecsysError, match=f"a.csv: column {said}"):
        ingest("a.csv", **given)


def test_a_column_of_event_types_without_values_leaves_every_row_a_choice(ingest):
    events(event_type=None).to_csv(ingest.folder / "a.csv", index=False)
    assert len(ingest("a.csv").log) == 12


def test_what_one_split_cannot_divide_another_may(ingest):
    log = events().assign(timestamp=START, item_id=[f"i{i}" for i in range(12)])
    log.to_csv(ingest.folder / "a.csv", index=False)
    found = ingest("a.csv", SPLIT="leave_one_out")
    assert len(found.log) == 12 and "all events have the time 2026-06-01" in found.notes


def test_lists_are_left_out_by_name_or_refused_where_they_matter(ingest):
    events().to_csv(ingest.folder / "e.csv", index=False)
    items(tags=[["a"], [], ["b"]], size=[dict(x=1)] * 3).to_parquet(ingest.folder / "i.parquet")
    found = ingest("e.csv", "i.parquet")
    assert "tags" in found.notes and "size" in found.notes and "tags" not in found.items
    items(price=[[1.0]] * 3).to_parquet(ingest.folder / "i.parquet")
    with pytest.raises(RecsysError, match="column price: its values are lists"):
        ingest("e.csv", "i.parquet")


def test_a_name_that_appears_twice_is_never_chosen(ingest):
    events().to_csv(ingest.folder / "e.csv", index=False)
    (ingest.folder / "i.csv").write_text("item_id,size,size\ni0,1,2\ni1,3,4\ni2,5,6\n")
    assert "size (appears twice in the header" in ingest("e.csv", "i.csv").notes
    (ingest.folder / "i.csv").write_text("item_id,item_id\ni0,i1\n")
    with pytest.raises(RecsysError, match="item_id: appears twice in the header"):
        ingest("e.csv", "i.csv")


def test_a_file_in_another_encoding_is_named_with_its_line(ingest):
    events().to_csv(ingest.folder / "e.csv", index=False)
    items(title=["Tee", "Café", "x"]).to_csv(
        ingest.folder / "i.csv", encoding="cp1252", index=False
    )
    with pytest.raises(RecsysError, match=r"i.csv: line 3 is not in utf-8: .*ENCODING: latin-1"):
        ingest("e.csv", "i.csv")
    assert ingest("e.csv", "i.csv", ENCODING="latin-1").items.title[1] == "Café"


def test_a_row_with_too_many_values_is_an_error_of_the_file(ingest):
    (ingest.folder / "e.csv").write_text("user_id,item_id,timestamp\na,b,1780272000\na,b,1,2\n")
    with pytest.raises(RecsysError, match="e.csv: can't be read: .*Expected 3 columns, got 4"):
        ingest("e.csv")


def test_times_in_other_units_and_formats_need_a_name(ingest):
    log = events()
    log.assign(timestamp=log.timestamp * 1000).to_csv(ingest.folder / "ms.csv", index=False)
    with pytest.raises(RecsysError, match="milliseconds"):
        ingest("ms.csv")
    assert ingest("ms.csv", TIME_FORMAT="ms").log.timestamp.tolist() == log.timestamp.tolist()
    texts = pd.to_datetime(log.timestamp, unit="s").dt.strftime("%d/%m/%Y %H:%M")
    log.assign(timestamp=texts).to_csv(ingest.folder / "text.csv", index=False)
    found = ingest("text.csv", TIME_FORMAT="%d/%m/%Y %H:%M")
    assert found.log.timestamp.tolist() == log.timestamp.tolist()


def test_every_column_has_a_line_with_its_use_or_the_reason(ingest):
    events(event_type="view", stars=5, note="x").to_csv(ingest.folder / "e.csv", index=False)
    items(shelf=1, in_stock=1, added=pd.Timestamp("2026-01-01")).to_parquet(
        ingest.folder / "i.parquet"
    )
    found = ingest("e.csv", "i.parquet", IGNORE=["note"])
    for record in found.columns.values():
        assert bool(record["used_for"]) != bool(record["reason"]), record
    assert found.columns["interactions", "note"]["reason"] == "IGNORE lists it"
    assert "RATING" in found.columns["interactions", "stars"]["reason"]
    assert found.columns["items", "shelf"]["reason"] == "the same value in every row"
    assert found.columns["items", "added"]["reason"] == "a time is no feature"
    assert found.columns["items", "price"]["used_for"] == "feature, a number"


def test_which_event_types_are_choices_is_said(ingest):
    kinds = ["view", "addtocart", "Transaction"] * 4
    events(event_type=kinds).to_csv(ingest.folder / "e.csv", index=False)
    assert "choices are view, Transaction" in ingest("e.csv").notes
    with pytest.raises(RecsysError, match="names buy; the interactions have view, Transaction"):
        ingest("e.csv", POSITIVE_EVENTS="buy")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("e.csv", b"user_id,item_id,timestamp\n", "e.csv: no usable interactions"),
        ("e.csv", events().to_csv(index=False).encode("utf-16-le"), "ENCODING: utf-16-le"),
        (
            "e.csv.gz",
            gzip.compress(b"user_id,item_id\n" * 99, mtime=0)[:-9],
            "e.csv.gz: can't be read",
        ),
        ("e.xlsx", b"PK" + bytes(99), "e.xlsx is a workbook"),
        ("e.jsonl", b"1\n2\n", "e.jsonl: expected JSON objects"),
        (
            "e.jsonl",
            b'{"user_id": 1, "item_id": 1, "timestamp": 1}\n{"user_id": {"id": 1}}',
            "column user_id: its values are lists or records",
        ),
        (
            "e.csv",
            b"user_id,item_id,timestamp\n" + b"a,b,1780272000\n" * 3 + b"a,b,soon\n",
            r"timestamp 'soon' \(row 3\)",
        ),
    ],
)
def test_what_is_no_table_ends_with_a_sentence(ingest, name, content, message):
    (ingest.folder / name).write_bytes(content)
    with pytest.raises(RecsysError, match=message):
        ingest(name)


def test_types_that_no_feature_can_have_are_left_out_by_name(ingest):
    events().to_csv(ingest.folder / "e.csv", index=False)
    far = pa.array([253402300799] * 3, pa.timestamp("s"))  # the year 9999
    more = dict(raw=pa.array([b"\xff", b"a", None]), far=far, none=pa.nulls(3))
    big = pa.array([2**63 + 1, 1, 2], pa.uint64())
    table = pa.table(dict(item_id=["i0", "i1", "i2"], big=big, **more))
    pq.write_table(table, ingest.folder / "i.parquet")
    found = ingest("e.csv", "i.parquet")
    assert "raw" not in found.items and "raw (bytes are no feature)" in found.notes
    assert found.columns["items", "none"]["reason"] == "empty"
