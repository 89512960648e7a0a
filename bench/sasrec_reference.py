"""A transformer beside our systems on the same cases: eSASRec of RecTools, in an environment apart.

RecTools and torch need other versions of numpy than this project, so they are no dependency. Make
an environment for them once, then name a finished run and that environment's Python:

    python -m venv rectools && rectools/bin/pip install "rectools[torch]"
    .venv/bin/python bench/sasrec_reference.py run=outputs/quickstart python=rectools/bin/python

Three steps: the run's training sequences and test cases are exported to a folder, the other
environment trains there and writes its lists, and the lists are scored like those of the run's own
systems. `cases=5000 epochs=20 folder=...` are further arguments. The model is the recipe of
eSASRec (Tikhonovich et al., 2025): SASRec's next-item task (Kang and McAuley, 2018) with a sampled
softmax loss and LiGR layers. It sees ids and order only: no content, context or clock, so an item
that training did not see is never on its lists, and a visitor without a history gets none. It is
not tuned, unlike the baselines of a run.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ARRAYS = "cases.npz"  # written by `export`
LISTS = "lists.npy"  # written by `rank`
DEPTH = 100  # items of a list
SEED = 42
MODEL = dict(
    n_blocks=2,
    n_heads=2,
    n_factors=64,
    dropout_rate=0.2,
    session_max_len=50,
    loss="sampled_softmax",
    n_negatives=256,
    lr=0.001,
    batch_size=128,
)


def export(run: Path, folder: Path, cases: int) -> None:
    "Write a run's training sequences and a sample of its test cases as arrays of item rows."
    from recsys.data.asof import history_at
    from recsys.data.prepared import open_prepared
    from recsys.evaluate.saved_ranks import load_ranks

    prep = open_prepared(run / "data_prep", run / "embeddings")
    events, saved = prep.events, load_ranks(run / "evaluate")
    sample = np.random.default_rng(SEED).permutation(len(saved.positions))[:cases]
    sample.sort()
    positions = saved.positions[sample]
    is_known = events["case"] & (events["split"] < 2) & (events["user"] >= 0)
    training = np.flatnonzero(is_known)  # sorted by user and order
    bounds = events["hist_first"][positions], events["hist_cut"][positions]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / ARRAYS,
        user=np.asarray(events["user"][training]),
        item=np.asarray(events["item"][training]),
        hist=history_at(prep.hist_items, *bounds, 200).astype(np.int32),
        sample=sample,
        relevant=np.asarray(events["item"][positions]),
        masked=saved.masked,
    )


def interactions(user: np.ndarray, item: np.ndarray):  # rows in their order -> rectools Dataset
    "Return a data set whose times are the rows' numbers."
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset

    times = pd.to_datetime(np.arange(len(user)), unit="s")
    columns = {Columns.User: user, Columns.Item: item, Columns.Weight: 1.0, Columns.Datetime: times}
    return Dataset.construct(pd.DataFrame(columns))


def rank(folder: Path, epochs: int) -> None:
    "Train on the exported sequences and write a list for each case; runs where RecTools is."
    import pytorch_lightning
    import torch
    from rectools import Columns
    from rectools.models import SASRecModel
    from rectools.models.nn.transformers.ligr import LiGRLayers

    arrays = np.load(folder / ARRAYS)
    pytorch_lightning.seed_everything(SEED)
    torch.set_num_threads(1)  # sums in the same order on any machine
    model = SASRecModel(
        **MODEL, epochs=epochs, deterministic=True, transformer_layers_type=LiGRLayers
    )
    start = time.time()
    model.fit(interactions(arrays["user"], arrays["item"]))
    print(f"trained {epochs} epochs in {time.time() - start:.0f} s")
    lists = np.full((len(arrays["hist"]), DEPTH), -1)
    known = np.isin(arrays["hist"], arrays["item"])  # of items that training saw
    for part in np.array_split(np.arange(len(lists)), len(lists) // 5000 + 1):
        case, place = np.nonzero(known[part])
        if not len(case):
            continue
        table = model.recommend(
            users=np.unique(case),
            dataset=interactions(case, arrays["hist"][part][case, place]),
            k=DEPTH,
            filter_viewed=bool(arrays["masked"]),
        )
        at = part[table[Columns.User].to_numpy()], table[Columns.Rank].to_numpy() - 1
        lists[at] = table[Columns.Item].to_numpy()
    np.save(folder / LISTS, lists)


def score(run: Path, folder: Path) -> dict:  # system -> metrics
    "Print NDCG@10 and recall@10 of the transformer and of the run's systems on the same cases."
    from recsys.core.means import paired_bootstrap, per_user_mean
    from recsys.evaluate.metrics import case_metrics, rank_of_relevant
    from recsys.evaluate.saved_ranks import load_ranks

    arrays, saved = np.load(folder / ARRAYS), load_ranks(run / "evaluate")
    sample = arrays["sample"]
    ranks = {name: values[sample] for name, values in saved.ranks.items()}
    ranks["sasrec"] = rank_of_relevant(np.load(folder / LISTS), arrays["relevant"])
    with_history = (arrays["hist"] >= 0).any(1)
    users, rows = saved.users[sample], {}
    for name, values in ranks.items():
        metrics = case_metrics(values)
        rows[name] = {
            "ndcg@10": per_user_mean(metrics["ndcg@10"], users),
            "recall@10": per_user_mean(metrics["recall@10"], users),
            "ndcg@10 with history": per_user_mean(
                metrics["ndcg@10"][with_history], users[with_history]
            ),
        }
    print(f"{len(sample):,} test cases of {run}, {with_history.sum():,} of them with a history")
    for name, row in sorted(rows.items(), key=lambda pair: -pair[1]["ndcg@10"]):
        print(f"{name:>20}", "  ".join(f"{metric} {value:.4f}" for metric, value in row.items()))
    full, sasrec = (case_metrics(ranks[name])["ndcg@10"] for name in ("full", "sasrec"))
    difference = paired_bootstrap(full, sasrec, users)
    print("full path minus sasrec, NDCG@10, 95 % interval of users:", difference)
    (folder / "scores.json").write_text(json.dumps(rows, indent=1))
    return rows


def main() -> None:
    "Export, rank in the other environment, score."
    arguments = dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a)
    run = Path(arguments.get("run", "outputs/quickstart"))
    folder = Path(arguments.get("folder", run.parent / "sasrec" / run.name))
    epochs = arguments.get("epochs", "20")
    if sys.argv[1:2] == ["rank"]:  # this process is the one in the other environment
        rank(folder, int(epochs))
        return
    if "python" not in arguments:
        sys.exit("python=... names the Python of an environment with rectools[torch]; see above")
    export(run, folder, int(arguments.get("cases", "100000")))
    command = [arguments["python"], __file__, "rank", f"folder={folder}", f"epochs={epochs}"]
    subprocess.run(command, check=True)
    score(run, folder)


if __name__ == "__main__":
    main()
