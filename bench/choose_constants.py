"""Choose constants of the code anew, on validation only, on data that the README doesn't report.

    .venv/bin/python bench/choose_constants.py --minutes 60

The sets are generated: small shops and sequences with seeds and sizes of their own. Of each, the
test split (SPLIT, VALID and TEST at their defaults) is taken out before a table is written, and a
guard compares what the first stage has read with what was taken out. What is left is divided once
more: the models train on its `train`, stop and tune on its `valid`, and are judged on its `test`,
which consists of validation cases of the whole set. So nothing is fitted to the cases that decide,
and no test case exists in any file.

The rule, written down before the first figure of these sets was known:

1. Each grid value gets a figure on each set, relative to that of the value in the code.
2. The best value is the one with the highest mean over the sets, of equal ones the smallest.
3. The value in the code stays where the mean difference to the best is at most one standard error
   of that difference over the sets (the one-standard-error rule, Breiman et al., 1984).

What a figure is:

| constant | figure |
|---|---|
| `DEFAULT_LEARNING_RATES[split]` | NDCG of the towers over the whole catalogue |
| `RANKER_RATES[split]` | NDCG@10 of the full path that the code would serve, no seen filter |
| `MIN_VOTES_NDCG[split]` | the same, with or without a table's votes, as the bound decides |
| `MAX_SEEN_COST` | two figures: share of right decisions, and NDCG@10 of what is decided |

A table that adds candidates is kept whatever its votes are worth. `MIN_VOTES_NDCG` is asked about
the others, so its figure is that of a table whose votes are read and that adds no candidate.

Logs can't show what hiding seen items is good for, and NDCG on them rewards showing them. So
`MAX_SEEN_COST` has a second figure, from what is known of generated shops: hiding is right where
visitors avoid what they saw in the last three days (`Truth.again` .04) and wrong where they don't
(`again` 1). A bound replaces the one in the code only where it is better by more than one standard
error in one of the two figures and worse by at most one in the other. A decision is drawn by
resampling blocks of about as many cases as the pipeline looks at (`SEEN_CASES`).

The program was tried on two sets with seeds 91 and 92, which count nowhere; on the first, hiding
cost 3.9 % where visitors avoid seen items. That is why `MAX_SEEN_COST` has two figures.

Results are kept in a JSON file after each training, and a second call goes on where the first one
ended. `--minutes` bounds when the last training begins. A constant is chosen on the sets that have
all its figures, three at least; what the two bounds need comes first, then the rates.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
from bench_sequences import sequences

from recsys.core.params import Params, RecsysError, default_params
from recsys.core.pipeline import run_here
from recsys.core.runs import find_root, read_json, stage_dir, write_json
from recsys.core.stages import FULL
from recsys.data.catalog import make_catalog
from recsys.data.shop import Shop
from recsys.data.shop_world import Truth
from recsys.data.splits import leave_one_out, split_edges

OUT = find_root() / "outputs" / "bench" / "choose"
JUDGED_CASES = 4000  # that decide, at most; as many as `SEEN_CASES`
BLOCK = 20  # cases that are resampled together
DRAWS = 1000  # resamples of the blocks
LEAST_SETS = 3  # with fewer a standard error means nothing, and nothing is chosen
CANDIDATES = 100  # of 500 to 1,000 items; 300 would be nearly all

TOWER_RATES = dict(
    time=(0.001, 0.002, 0.004, 0.008), leave_one_out=(0.002, 0.004, 0.008, 0.016)
)  # grid
RANKER_GRID = dict(
    time=(0.0005, 0.001, 0.002, 0.004), leave_one_out=(0.00035, 0.0007, 0.0014, 0.0028)
)  # grid
VOTE_BOUNDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.3, 99.0)  # grid; 99: no table
VOTES_AND_SEEN = ["table", "no table", "votes alone"]  # figures of the two bounds
SEEN_BOUNDS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)  # grid


@dataclass(frozen=True)
class GeneratedSet:
    "What a set is generated from; none of them is reported in the README."

    name: str
    split: str  # SPLIT
    seed: int
    users: int
    items: int
    events: int = 40_000  # of a shop
    again: float = 0.04  # of a shop, see `Truth`
    follow: float = 0.2  # of sequences


SETS = (  # of both kinds in turn, so that a run that is cut short has some of each
    GeneratedSet("shop101", "time", 101, users=2000, items=600),
    GeneratedSet("shop104", "time", 104, users=2000, items=600, again=1.0),
    GeneratedSet("sequences101", "leave_one_out", 101, users=4000, items=1000),
    GeneratedSet("sequences102", "leave_one_out", 102, users=4000, items=800, follow=0.0),
    GeneratedSet("shop102", "time", 102, users=3000, items=1000, events=50_000),
    GeneratedSet("shop105", "time", 105, users=3000, items=1000, events=50_000, again=1.0),
    GeneratedSet("sequences103", "leave_one_out", 103, users=3000, items=600, follow=0.4),
    GeneratedSet("shop103", "time", 103, users=1500, items=500, events=25_000),
    GeneratedSet("shop106", "time", 106, users=1500, items=500, events=25_000, again=1.0),
    GeneratedSet("sequences104", "leave_one_out", 104, users=2500, items=1000, follow=0.2),
)


def generate(spec: GeneratedSet) -> tuple:  # interactions, items, users; None where there are none
    "Generate a set with all its events."
    if spec.split == "leave_one_out":
        groups = spec.items // 25
        table = sequences(spec.users, spec.items, groups, spec.follow, spec.seed)
        return table.astype(dict(user_id=str, item_id=str)), None, None
    catalog = make_catalog(spec.items, spec.seed)
    truth = Truth(again=spec.again)
    shop = Shop(catalog, spec.users, n_days=14, seed=spec.seed, truth=truth)
    days = [day.astype(dict(user_id=object, item_id=object)) for day in shop.stream(spec.events)]
    return pd.concat(days, ignore_index=True), catalog, shop.users


def is_test(table: pd.DataFrame, split: str) -> np.ndarray:  # bool, a row of the table each
    "Mark the events that the project's own split, with default parameters, holds out for testing."
    params = default_params()
    timestamp = table.timestamp.to_numpy()
    if split == "time":
        return timestamp >= split_edges(timestamp, params.VALID, params.TEST)[1]
    user = pd.factorize(table.user_id)[0]
    order = np.lexsort((np.arange(len(table)), timestamp, user))
    marked = np.zeros(len(table), bool)
    marked[order] = leave_one_out(user[order], np.ones(len(table), bool)) == 2
    return marked


def before_test(table: pd.DataFrame, split: str) -> pd.DataFrame:
    "Return the events that a choice may read."
    return table[~is_test(table, split)]


def refuse_test_events(read: pd.DataFrame, table: pd.DataFrame, split: str) -> None:
    "Raise `RecsysError` where events that were read belong to the test split of the whole table."
    held_out = table[is_test(table, split)]
    if split == "time":
        n = int((read.timestamp >= held_out.timestamp.min()).sum())
    else:
        columns = ["user_id", "item_id", "timestamp"]
        n = len(read[columns].merge(held_out[columns].drop_duplicates(), on=columns))
    if n:
        raise RecsysError(f"{n:,} events of the test split were read; nothing is chosen with them")


def params_of(spec: GeneratedSet, folder: Path) -> Params:
    "Return the parameters of a set's run."
    tables = folder / "tables" / spec.name
    shop = dict(ITEMS=f"{tables}/items.parquet", USERS=f"{tables}/users.parquet")
    return default_params(
        SOURCE="tables",
        INTERACTIONS=f"{tables}/interactions.parquet",
        **(shop if spec.split == "time" else {}),
        SPLIT=spec.split,
        SEED=spec.seed,
        HISTORY=20,
        CANDIDATES=CANDIDATES,
        REFIT="false",
        RUN=spec.name,
        OUTPUTS=str(folder),
    )


def prepare(
    spec: GeneratedSet,
    folder: Path,  # of all sets
    until: str = "two_tower",  # last stage
) -> Params:
    "Write a set's tables without its test split and run the first stages on them."
    table, items, users = generate(spec)
    tables = folder / "tables" / spec.name
    tables.mkdir(parents=True, exist_ok=True)
    choosable = before_test(table, spec.split)
    choosable.to_parquet(tables / "interactions.parquet", index=False)
    if items is not None:
        items.to_parquet(tables / "items.parquet", index=False)
        users.to_parquet(tables / "users.parquet", index=False)
    params = params_of(spec, folder)
    for stage in FULL:
        run_here(stage, params)
        if stage.name == "ingest":
            read = pd.read_parquet(stage_dir(params, "ingest") / "interactions.parquet")
            read = read.astype(dict(user_id=object, item_id=object))
            refuse_test_events(read, table, spec.split)
        if stage.name == until:
            break
    return params


class Results:
    "Figures of all sets in a JSON file, written after each of them; and the time that is left."

    def __init__(self, file: Path, minutes: float):
        self.file, self.started, self.minutes = file, time.perf_counter(), minutes
        self.sets = read_json(file)["sets"] if file.is_file() else {}
        file.parent.mkdir(parents=True, exist_ok=True)

    def open_set(self, spec: GeneratedSet) -> None:
        "Begin a set, anew where it was generated from something else."
        if self.sets.get(spec.name, {}).get("spec") != asdict(spec):
            self.sets[spec.name] = dict(spec=asdict(spec), figures={})

    def figure(self, spec: GeneratedSet, name: str, compute: Callable):
        "Return a figure, computed now unless the file has it; `TimeoutError` where time is over."
        figures = self.sets[spec.name]["figures"]
        if name not in figures:
            passed = time.perf_counter() - self.started
            if passed > 60 * self.minutes:
                raise TimeoutError
            with (
                open(self.file.parent / "trainings.log", "a") as log,
                redirect_stdout(log),
                redirect_stderr(log),
            ):
                figures[name] = compute()
            seconds = time.perf_counter() - self.started - passed
            shown = f"{figures[name]:.4f}" if isinstance(figures[name], float) else ""
            print(
                f"{passed / 60:5.1f} min  {spec.name:<13} {name:<28} {seconds:5.1f} s  {shown}",
                flush=True,
            )
            self.write()
        return figures[name]

    def write(self, **more) -> None:
        "Write everything that is known so far."
        write_json(self.file, dict(sets=self.sets) | more)


def judged_cases(prep, seed: int) -> np.ndarray:
    "Return the cases that decide, of validation of the whole set, ascending."
    cases = np.random.default_rng(seed).permutation(prep.positions("test"))
    return np.sort(cases[:JUDGED_CASES])


def towers_ndcg(params: Params, rate: float) -> float:
    "Return NDCG over the whole catalogue of towers that are trained with a rate."
    from recsys.data.prepared import load_prepared
    from recsys.models.towers import build_towers, content_by_id
    from recsys.models.two_tower import Scorer, fit, validate

    prep, params = load_prepared(params), Params({**params, "TT_LR": rate})
    model = build_towers(prep.contract, params, content_by_id(prep))
    fit(model, prep, params)
    cases = judged_cases(prep, params.SEED)
    return float(validate(prep, Scorer(model), cases, params.CANDIDATES)["ndcg"])


def fit_neighbours(params: Params) -> dict:
    "Run the stage neighbours so that the table is always written; return what a bound decides by."
    from recsys.models import neighbours

    split, found = params.SPLIT, dict(neighbours.MIN_VOTES_NDCG)
    neighbours.MIN_VOTES_NDCG[split] = 0.0
    try:
        run_here(next(stage for stage in FULL if stage.name == "neighbours"), params)
    finally:
        neighbours.MIN_VOTES_NDCG[split] = found[split]
    metrics = read_json(stage_dir(params, "neighbours") / "stage.json")["metrics"]
    recall = f"recall@{params.CANDIDATES}, {{}} related"
    gain = metrics[recall.format(metrics["related"])] / metrics[recall.format(0)]
    return dict(
        related=int(metrics["related"]),
        ratio=metrics["votes' ndcg@10"] / metrics["towers' ndcg@10"],
        recall_gain=gain,
        adds_candidates=bool(gain >= neighbours.MIN_TABLE_GAIN),
    )


def full_path(
    params: Params,
    rate: float,  # DLRM_LR
    with_table: bool,
    related: int,  # candidates that the table adds
) -> dict:
    "Train a ranker; return the NDCG@10 of blocks of cases, without the seen filter and with it."
    from recsys.data.prepared import load_prepared
    from recsys.models.case_retrieval import CaseRetriever
    from recsys.models.dlrm import fit_blend, fit_ranker
    from recsys.models.neighbours import load_table
    from recsys.models.scoring import RankerScorer
    from recsys.models.seen_days import ndcg_by_days, settings_to_try

    prep, params = load_prepared(params), Params({**params, "DLRM_LR": rate})
    table = None
    if with_table:
        table = load_table(stage_dir(params, "neighbours")) | dict(related=np.int64(related))
    model, _ = fit_ranker(prep, params, table=table)
    fit_blend(model, prep, params, table)
    retriever, score = CaseRetriever(prep, params, table), RankerScorer(model, prep, table)
    cases = np.random.default_rng(0).permutation(judged_cases(prep, params.SEED))
    settings = settings_to_try(params)
    blocks = [
        ndcg_by_days(score, retriever, np.sort(cases[start : start + BLOCK]), settings)
        for start in range(0, len(cases) - BLOCK + 1, BLOCK)
    ]
    hidden = max(settings)
    return dict(
        shown=[round(block[0], 6) for block in blocks],
        hidden=[round(block[hidden], 6) for block in blocks],
    )


class SetMeasurement:
    "Computes the figures of one set in three parts, each of them for all sets before the next."

    def __init__(self, spec: GeneratedSet, folder: Path, results: Results, present: dict):
        self.spec, self.folder, self.results = spec, folder, results
        self.params = params_of(spec, folder)
        self.bound, self.rate = present["votes"][spec.split], present["ranker"][spec.split]

    def _figure(self, name: str, compute: Callable):
        "Return a figure of this set."
        return self.results.figure(self.spec, name, compute)

    def _served(self, rate: float) -> Callable:
        "Return what measures the path that the constants in the code give, with one rate."
        table = self.results.sets[self.spec.name]["figures"]["table"]
        kept = table["adds_candidates"] or table["ratio"] >= self.bound
        return lambda: full_path(self.params, rate, kept, table["related"])

    def votes_and_seen(self) -> None:
        "Compute what `MIN_VOTES_NDCG` and `MAX_SEEN_COST` are chosen by."
        self._figure("prepared", lambda: bool(prepare(self.spec, self.folder)))
        table = self._figure("table", lambda: fit_neighbours(self.params))
        kept = table["adds_candidates"] or table["ratio"] >= self.bound
        first = self._figure(f"path, rate {self.rate:g}", self._served(self.rate))
        is_known = {"no table": not kept, "votes alone": kept and not table["related"]}
        for name, with_table in (("no table", False), ("votes alone", True)):
            if is_known[name]:
                self._figure(name, lambda: first)
            else:
                self._figure(name, lambda: full_path(self.params, self.rate, with_table, 0))

    def ranker_rates(self) -> None:
        "Compute what `RANKER_RATES` is chosen by."
        for rate in RANKER_GRID[self.spec.split]:
            self._figure(f"path, rate {rate:g}", self._served(rate))

    def tower_rates(self) -> None:
        "Compute what `DEFAULT_LEARNING_RATES` is chosen by."
        for rate in TOWER_RATES[self.spec.split]:
            self._figure(f"towers, rate {rate:g}", lambda: towers_ndcg(self.params, rate))


def measure(specs: list, folder: Path, results: Results, present: dict) -> None:
    "Compute the figures of all sets, until the time is over."
    for spec in specs:
        results.open_set(spec)
    sets = [SetMeasurement(spec, folder, results, present) for spec in specs]
    by_split = sorted(sets, key=lambda measured: measured.spec.split)
    try:
        for measured in sets:
            measured.votes_and_seen()
        for measured in by_split:
            measured.ranker_rates()
        for measured in by_split:
            measured.tower_rates()
    except TimeoutError:
        print("time is over; constants are chosen on the sets that have all their figures")


def choose(
    figures: np.ndarray,  # [sets, grid], larger is better
    grid: tuple,
    today: float,  # value in the code, in the grid
) -> dict:  # chosen, best, difference, error
    "Return the best mean over sets, or today's value where the two differ by one standard error."
    at = grid.index(today)
    means = figures.mean(0)
    best = at if np.isclose(means.max(), means[at], rtol=0, atol=1e-12) else int(means.argmax())
    difference = figures[:, best] - figures[:, at]
    error = float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else 0.0
    is_better = len(difference) > 1 and difference.mean() > error
    return dict(
        grid=list(grid),
        means=[float(mean) for mean in means],
        today=today,
        best=grid[best],
        difference=float(difference.mean()),
        error=error,
        chosen=grid[best] if is_better else today,
        sets=len(figures),
    )


def choose_of_two(
    figures: tuple,  # two arrays [sets, grid], larger is better
    grid: tuple,
    today: float,  # value in the code, in the grid
) -> dict:  # as `choose`, and the means of the second figure
    "Return the best value that is better in one figure and no worse in the other, or today's."
    at, n_sets = grid.index(today), len(figures[0])
    difference = [values - values[:, [at]] for values in figures]
    mean = np.array([values.mean(0) for values in difference])
    error = np.array([values.std(0, ddof=1) / np.sqrt(n_sets) for values in difference])
    is_better, is_as_good = mean > error, mean >= -error
    allowed = np.flatnonzero((is_better[0] & is_as_good[1]) | (is_better[1] & is_as_good[0]))
    chosen = grid[max(allowed, key=lambda i: (*mean[:, i], -i))] if len(allowed) else today
    best = int(mean[0].argmax())
    return dict(
        grid=list(grid),
        means=figures[0].mean(0).tolist(),
        second=figures[1].mean(0).tolist(),
        today=today,
        best=grid[best],
        difference=float(mean[0, best]),
        error=float(error[0, best]),
        second_difference=float(mean[1, best]),
        second_error=float(error[1, best]),
        chosen=chosen,
        sets=n_sets,
    )


def relative(figures: np.ndarray, at: int) -> np.ndarray:  # percent
    "Return figures as differences to one column, in percent of it."
    return 100 * (figures / figures[:, [at]] - 1)


def shown_ndcg(figures: dict, name: str) -> float:
    "Return NDCG@10 of a path without the seen filter."
    return float(np.mean(figures[name]["shown"]))


def tower_figures(sets: list, grid: tuple, today: float) -> np.ndarray:
    "Return what the towers of each set reached with each rate, relative to today's."
    rows = [[known["figures"][f"towers, rate {rate:g}"] for rate in grid] for known in sets]
    return relative(np.array(rows), grid.index(today))


def path_figures(sets: list, grid: tuple, today: float) -> np.ndarray:
    "Return what the path of each set reached with each rate of the ranker, relative to today's."
    rows = [[shown_ndcg(known["figures"], f"path, rate {r:g}") for r in grid] for known in sets]
    return relative(np.array(rows), grid.index(today))


def vote_figures(sets: list, today: float) -> np.ndarray:
    "Return what each set reaches with each bound, relative to today's."
    rows = []
    for known in sets:
        figures = known["figures"]
        reached = [shown_ndcg(figures, name) for name in ("no table", "votes alone")]
        rows.append([reached[int(figures["table"]["ratio"] >= bound)] for bound in VOTE_BOUNDS])
    return relative(np.array(rows), VOTE_BOUNDS.index(today))


def drawn_costs(figures: dict, rate: float) -> np.ndarray:  # [DRAWS]
    "Return the share of NDCG@10 that hiding costs in resamples of the blocks of cases."
    blocks = figures[f"path, rate {rate:g}"]
    shown, hidden = (np.array(blocks[key]) for key in ("shown", "hidden"))
    rows = np.random.default_rng(0).integers(len(shown), size=(DRAWS, len(shown)))
    return 1 - hidden[rows].mean(1) / shown[rows].mean(1)


def seen_figures(sets: list, rate: float, today: float) -> tuple:  # two arrays [sets, grid]
    "Return right decisions of each bound in percent, and NDCG@10 of what it decides."
    right, reached = [], []
    for known in sets:
        figures = known["figures"]
        gives_up = drawn_costs(figures, rate)[:, None] > np.array(SEEN_BOUNDS)
        right.append(100 * (gives_up == (known["spec"]["again"] == 1)).mean(0))
        blocks, share = figures[f"path, rate {rate:g}"], gives_up.mean(0)
        shown, hidden = np.mean(blocks["shown"]), np.mean(blocks["hidden"])
        reached.append(share * shown + (1 - share) * hidden)
    return np.array(right), relative(np.array(reached), SEEN_BOUNDS.index(today))


def present_values() -> dict:
    "Return the values in the code."
    from recsys.models.dlrm import RANKER_RATES
    from recsys.models.neighbours import MIN_VOTES_NDCG
    from recsys.models.seen_days import MAX_SEEN_COST
    from recsys.models.two_tower import DEFAULT_LEARNING_RATES

    return dict(
        votes=dict(MIN_VOTES_NDCG),
        seen=MAX_SEEN_COST,
        towers=dict(DEFAULT_LEARNING_RATES),
        ranker=dict(RANKER_RATES),
    )


def with_figures(sets: list, split: str, names: list) -> list:
    "Return the sets of a split that have all figures of these names; none below `LEAST_SETS`."
    found = [
        known
        for known in sets
        if known["spec"]["split"] == split and set(names) <= set(known["figures"])
    ]
    return found if len(found) >= LEAST_SETS else []


def rate_choices(sets: list, split: str, present: dict) -> dict:  # constant -> of `choose`
    "Apply the rule to the learning rates of a split."
    choices, today = {}, {key: present[key][split] for key in ("towers", "ranker")}
    grid = TOWER_RATES[split]
    found = with_figures(sets, split, [f"towers, rate {rate:g}" for rate in grid])
    if found:
        figures = tower_figures(found, grid, today["towers"])
        choices[f"DEFAULT_LEARNING_RATES[{split}]"] = choose(figures, grid, today["towers"])
    grid = RANKER_GRID[split]
    found = with_figures(sets, split, [f"path, rate {rate:g}" for rate in grid])
    if found:
        figures = path_figures(found, grid, today["ranker"])
        choices[f"RANKER_RATES[{split}]"] = choose(figures, grid, today["ranker"])
    return choices


def choices_of(sets: list, present: dict) -> dict:  # constant -> of `choose`
    "Apply the rule to each constant that enough sets were measured for."
    choices: dict = {}
    for split in TOWER_RATES:
        choices |= rate_choices(sets, split, present)
        ranker, bound = present["ranker"][split], present["votes"][split]
        found = with_figures(sets, split, VOTES_AND_SEEN)
        if not found:
            continue
        figures = vote_figures(found, bound)
        choices[f"MIN_VOTES_NDCG[{split}]"] = choose(figures, VOTE_BOUNDS, bound)
        if split == "time":
            seen, today = seen_figures(found, ranker, present["seen"]), present["seen"]
            choices["MAX_SEEN_COST"] = choose_of_two(seen, SEEN_BOUNDS, today)
    return choices


def print_choice(name: str, choice: dict) -> None:
    "Print one constant's curve and what the rule chose."
    second = choice.get("second")
    unit = (
        "% of decisions right, NDCG in % beside today's" if second else "NDCG in % beside today's"
    )
    print(f"\n{name}, mean over {choice['sets']} sets: {unit}")
    for i, (value, mean) in enumerate(zip(choice["grid"], choice["means"])):
        marks = [mark for mark in ("today", "best", "chosen") if choice[mark] == value]
        more = f"  {second[i]:+7.2f}" if second else ""
        print(f"  {value:>8g}  {mean:+8.2f}{more}  {', '.join(marks)}")
    print(
        f"  best {choice['best']:g} differs from today's by {choice['difference']:+.2f}, standard "
        f"error {choice['error']:.2f}; the rule says {choice['chosen']:g}"
    )


def print_sets(sets: list, present: dict) -> None:
    "Print what was found on each set."
    print("\nset           votes/towers  recall gain  no table  votes alone  cost of hiding")
    for known in sets:
        spec, figures = known["spec"], known["figures"]
        if not set(VOTES_AND_SEEN) <= set(figures):
            continue
        costs = drawn_costs(figures, present["ranker"][spec["split"]])
        table = figures["table"]
        without, votes = (shown_ndcg(figures, name) for name in ("no table", "votes alone"))
        print(
            f"{spec['name']:<13} {table['ratio']:12.2f} {table['recall_gain']:12.3f}"
            f" {without:9.4f} {votes:12.4f}   {costs.mean():+.3f} (s.e. {costs.std():.3f})"
        )


def main() -> None:
    "Measure what is missing, then choose."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="no training begins later")
    parser.add_argument("--folder", type=Path, default=OUT, help="of tables, runs and the result")
    parser.add_argument("--sets", default="", help="names, separated by commas; default: all")
    arguments = parser.parse_args()
    wanted = [name for name in arguments.sets.split(",") if name]
    unknown = set(wanted) - {spec.name for spec in SETS}
    if unknown:
        parser.error(f"no set {', '.join(sorted(unknown))}")
    results = Results(arguments.folder / "choices.json", arguments.minutes)
    present = present_values()
    specs = [spec for spec in SETS if not wanted or spec.name in wanted]
    measure(specs, arguments.folder, results, present)
    sets = [results.sets[spec.name] for spec in specs]
    choices = choices_of(sets, present)
    print_sets(sets, present)
    for name, choice in choices.items():
        print_choice(name, choice)
    results.write(choices=choices, present=present)
    print(json.dumps({name: choice["chosen"] for name, choice in choices.items()}))


if __name__ == "__main__":
    main()
