"""Generated tables for `ingest`: names, types, encodings, files, missing and odd values.

`tests/test_any_table.py` tries a few of them, `tests/prove.py` thousands.
"""

import datetime
import decimal
import gzip
import io
import json
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from recsys.core.params import Params, RecsysError
from recsys.core.runs import read_json
from recsys.data.sources import run_ingest

START = 1_700_000_000  # second of the first event
KEYS = ("user_id", "item_id", "timestamp")
ODD_NAMES = ("popularity", "brand name", "price/kg", "Größe", "a,b", 'q"q', "index", "0", "SELECT")
TEXTS = ("x", "Ä ö", "a,b", 'say "hi"', "two\nlines", " blank ", "007", "1e5", "NA", "", "✓", "\t")


@dataclass
class Table:
    "One generated table: columns by name, and how its files are written."

    columns: dict  # name -> list of values
    kind: str  # csv, parquet or jsonl
    files: int = 1
    encoding: str = "utf-8"
    delimiter: str = ","
    packed: bool = False  # gzip, for text files
    written: list = field(default_factory=list)  # paths

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))


def ids(prefix):
    "Return strategies of columns of ids: as people have them, and as they should not."
    few = st.integers(0, 6)
    return {
        "integers": few,
        "text": few.map(lambda i: f"{prefix}{i}"),
        "zeros in front": few.map(lambda i: f"{i:04d}"),
        "floats": st.one_of(few.map(float), st.just(float("nan"))),
        "missing": st.one_of(st.none(), few.map(lambda i: f"{prefix}{i}")),
        "blanks": few.flatmap(lambda i: st.sampled_from((f"{prefix}{i}", f"{prefix}{i} "))),
        "odd text": st.sampled_from(TEXTS),
        "large": st.integers(2**60, 2**60 + 3),
        "fractions": st.sampled_from((1.5, 2.25)),
        "mixed": st.one_of(few, few.map(lambda i: f"{prefix}{i}")),
        "decimals": few.map(decimal.Decimal),
        "too long": st.just(prefix * 300),
        "booleans": st.booleans(),
        "dates": st.just(datetime.date(2024, 1, 2)),
        "lists": st.just(["a", "b"]),
        "all missing": st.none(),
    }


def times():
    "Return strategies of columns of times: the three that are accepted, and others."
    second = st.integers(START, START + 30 * 86400)
    moment = second.map(lambda s: datetime.datetime.fromtimestamp(s, datetime.timezone.utc))
    return {
        "seconds": second,
        "moments": moment,
        "texts": moment.map(lambda t: t.strftime("%Y-%m-%d %H:%M:%S")),
        "days": moment.map(lambda t: t.strftime("%Y-%m-%d")),
        "zero sometimes": st.one_of(st.just(0), second),
        "missing sometimes": st.one_of(st.none(), second),
        "milliseconds": second.map(lambda s: s * 1000),
        "floats": second.map(lambda s: s + 0.5),
        "negative": second.map(lambda s: -s),
        "words": st.sampled_from(("yesterday", "2024-13-45")),
        "one far ahead": st.one_of(second, st.just(4_000_000_000)),
    }


EXTRA = {
    "numbers": st.one_of(st.none(), st.floats(-1e6, 1e6)),
    "texts": st.sampled_from(TEXTS),
    "truths": st.sampled_from(("true", "no", "1", "maybe", "")),
    "decimals": st.sampled_from((decimal.Decimal("1.25"), decimal.Decimal("3"))),
    "lists": st.sampled_from(([1, 2], [])),
    "records": st.just({"a": 1}),
    "infinite": st.sampled_from((1.0, float("inf"))),
    "negative": st.just(-1.0),
    "one value": st.just("all"),
    "missing": st.none(),
    "large": st.just(2**62),
}
EXTRA_NAMES = ("price", "in_stock", "title", "category_l1", "event_type", "device_type", *ODD_NAMES)


@st.composite
def columns_of(draw, keys: dict, n: int):
    "Draw the columns of a table: its keys, mostly under their names, and some others."
    chosen = {}
    for name, kinds in keys.items():
        usual = list(kinds)[:3]  # most tables are as they should be
        kind = draw(st.sampled_from(usual * 8 + list(kinds)))
        column = draw(st.lists(kinds[kind], min_size=n, max_size=n))
        wrong_name = draw(st.integers(0, 39)) == 23  # generators prefer the ends
        chosen[name.upper() if wrong_name else name] = column
    for name in draw(st.lists(st.sampled_from(EXTRA_NAMES), max_size=4, unique=True)):
        value = EXTRA[draw(st.sampled_from(list(EXTRA)))]
        chosen[name] = draw(st.lists(value, min_size=n, max_size=n))
    order = draw(st.permutations(list(chosen)))
    return {name: chosen[name] for name in order}


@st.composite
def tables(draw, keys: dict, n: int):
    "Draw a table and the form of its files."
    return Table(
        columns=draw(columns_of(keys, n)),
        kind=draw(st.sampled_from(("csv", "parquet", "jsonl"))),
        files=draw(st.integers(1, 3)),
        encoding=draw(st.sampled_from(("utf-8",) * 4 + ("utf-8-sig", "utf-16", "latin-1"))),
        delimiter=draw(st.sampled_from((",", ",", ";", "\t", "|"))),
        packed=draw(st.integers(0, 4)) == 0,
    )


@st.composite
def shops(draw):
    "Draw the tables of a shop: interactions, and often items and users."
    n, unique = draw(st.integers(0, 40)), draw(st.booleans())
    log = draw(tables(dict(user_id=ids("u"), item_id=ids("i"), timestamp=times()), n))
    items = draw(st.one_of(st.none(), tables(dict(item_id=ids("i")), draw(st.integers(0, 7)))))
    users = draw(st.one_of(st.none(), tables(dict(user_id=ids("u")), draw(st.integers(0, 7)))))
    for table, name, prefix in ((items, "item_id", "i"), (users, "user_id", "u")):
        if table is not None and unique and name in table.columns:
            table.columns[name] = [f"{prefix}{row}" for row in range(len(table))]
    return dict(INTERACTIONS=log, ITEMS=items, USERS=users)


def as_text(value):
    "Return a value as pandas and spreadsheets write it into a CSV file."
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return str(value)


def write_part(table: Table, part: dict, path: Path) -> None:
    "Write some rows of a table to one file."
    if table.kind == "parquet":
        frame = pa.table({name: as_arrow(values) for name, values in part.items()})
        pq.write_table(frame, path)
        return
    if table.kind == "csv":
        frame = pd.DataFrame({name: [as_text(v) for v in values] for name, values in part.items()})
        text = frame.to_csv(index=False, sep=table.delimiter)
    else:
        rows = [
            {name: None if value != value else value for name, value in zip(part, row)}
            for row in zip(*part.values())
        ]
        text = "".join(json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in rows)
    content = text.encode(table.encoding, errors="replace")
    path.write_bytes(gzip.compress(content) if table.packed else content)


def as_arrow(values: list) -> pa.Array:
    "Return a column for a parquet file; values of several types become text."
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])


def write_table(table: Table, folder: Path) -> str:  # what the parameter names
    "Write a table as one file, or as a folder of several."
    folder.mkdir()
    ending = table.kind + (".gz" if table.packed and table.kind != "parquet" else "")
    size = -(-len(table) // table.files) or 1
    starts = range(0, max(len(table), 1), size)
    for number, start in enumerate(starts):
        part = {name: values[start : start + size] for name, values in table.columns.items()}
        path = folder / f"part-{number}.{ending}"
        write_part(table, part, path)
        table.written.append(path)
    return str(table.written[0] if len(table.written) == 1 else folder)


WHOLE_FILE = (
    "ENCODING",
    "no usable interactions",
    "interactions are usable",
    "can't be read",
    "no rows",
    "is empty",
    "passed over",
    "no row",
)  # faults that are not of a single column


def fault_of(shop: dict) -> str:  # empty where all is right
    "Ingest a shop and return what is wrong with how it ended."
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = {
            key: write_table(table, folder / key.lower())
            for key, table in shop.items()
            if table is not None
        }
        # a small log has choices at the beginning and the end, but rarely in a tenth between
        params = Params(SOURCE="tables", OUTPUTS=temporary, RUN="any", VALID=0, **paths)
        quiet = io.StringIO()
        try:
            with redirect_stdout(quiet), redirect_stderr(quiet):
                rows = run_ingest(params)
        except RecsysError as error:
            return fault_of_message(str(error), shop, folder)
        return fault_of_result(rows, shop, folder / "any" / "ingest")


def fault_of_message(message: str, shop: dict, folder: Path) -> str:
    "Return what a refusal does not say: which file, and which column."
    names = {name for table in shop.values() if table is not None for name in table.columns}
    says_file = any(key in message for key in shop) or str(folder) in message
    says_column = any(name in message for name in (*names, *KEYS))
    says_column |= any(words in message for words in WHOLE_FILE)
    if says_file and says_column:
        return ""
    return f"a refusal that names no {'column' if says_file else 'file'}: {message}"


def forms_of(ids: list) -> set:
    "Return the texts that ids may become: as they are, and whole numbers without decimals."
    # booleans of parquet and JSON are refused; in CSV they are the text that pandas writes
    whole = [int(one) for one in ids if isinstance(one, float) and one == one]
    return {str(one) for one in [*ids, *whole]}


def fault_of_result(rows: dict, shop: dict, stage: Path) -> str:
    "Return which rows or columns were lost without a line."
    log = shop["INTERACTIONS"]
    notes = read_json(stage / "stage.json")["notes"]
    if rows["interactions"] + rows["dropped"] != len(log):
        return f"{len(log)} rows given, {rows['interactions']} kept, {rows['dropped']} dropped"
    for reason, n in rows.items():
        told = any(reason.removeprefix("dropped: ") in note for note in notes)
        if reason.startswith("dropped: ") and n and not told:
            return f"no line about {n} rows: {reason}"
    written = pq.read_table(stage / "interactions.parquet")
    if len(written) != rows["interactions"]:
        return f"{rows['interactions']} rows reported, {len(written)} written"
    for name in ("user_id", "item_id"):
        if log.kind != "csv" and any(isinstance(one, bool) for one in log.columns[name]):
            return f"{name}: true and false were taken for ids"
        found = set(written[name].to_pylist()) - {None}
        if log.encoding != "latin-1" and not found <= forms_of(log.columns[name]):
            return f"{name} has values that nobody gave: {found - forms_of(log.columns[name])}"
    records = read_json(stage / "columns.json")
    for key, table in shop.items():
        if table is None:
            continue
        told = {record["column"] for record in records if record["table"] == key.lower()}
        if len(table) and not set(table.columns) <= told:
            return f"{key}: no line about the columns {set(table.columns) - told}"
    unexplained = [r for r in records if not r["used_for"] and not r["reason"]]
    return f"neither use nor reason: {unexplained}" if unexplained else ""
