"""A transformer beside our systems on the same cases: eSASRec of RecTools, in an environment apart.

RecTools and torch need other versions of numpy than this project, so they are no dependency. Make
an environment for them once, then name a finished run and that environment's Python:

    python -m venv rectools && rectools/bin/pip install "rectools[torch]"
    .venv/bin/python bench/sasrec_reference.py run=outputs/quickstart python=rectools/bin/python

Three steps: the run's training sequences and cases are exported to a folder, the other environment
trains there and writes its lists, and the lists are scored like those of the run's own systems.
`cases=5000 folder=...` are further arguments. The model is the recipe of eSASRec (Tikhonovich et
al., 2025): SASRec's next-item task (Kang and McAuley, 2018) with a sampled softmax loss and LiGR
layers. It sees ids and order only: no content, context or clock, so an item that training did not
see is never on its lists, and a visitor without a history gets none.

Like the baselines of a run it is tuned on validation: each setting of `SETTINGS` trains on the
training split alone and is asked for the validation cases every few epochs, until NDCG@10 has
stopped growing. The best setting then trains for its best number of epochs on training and
validation together, and the test cases are asked once.
"""

import itertools
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
    session_max_len=50,
    loss="sampled_softmax",
    n_negatives=256,
    batch_size=128,
)
SETTINGS = dict(n_factors=(64, 128), dropout_rate=(0.2, 0.5), lr=(0.001,))
EPOCHS_A_LOOK = 5  # between two looks at validation
MOST_EPOCHS = 100
PATIENCE = 2  # looks without a gain after which a setting is left
MOST_VALID_CASES = 3000


def export(run: Path, folder: Path, cases: int) -> None:
    "Write a run's sequences and samples of its validation and test cases as arrays of item rows."
    from recsys.data.prepared import open_prepared
    from recsys.evaluate.saved_ranks import load_ranks

    prep = open_prepared(run / "data_prep", run / "embeddings")
    events, saved = prep.events, load_ranks(run / "evaluate")
    sample = drawn(len(saved.positions), cases)
    positions, valid = saved.positions[sample], prep.positions("valid")
    valid = valid[drawn(len(valid), MOST_VALID_CASES)]
    is_known = events["case"] & (events["split"] < 2) & (events["user"] >= 0)
    training = np.flatnonzero(is_known)  # sorted by user and order
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / ARRAYS,
        user=np.asarray(events["user"][training]),
        item=np.asarray(events["item"][training]),
        is_valid=np.asarray(events["split"][training] == 1),
        hist=last_items(prep, positions),
        sample=sample,
        relevant=np.asarray(events["item"][positions]),
        valid_hist=last_items(prep, valid),
        valid_relevant=np.asarray(events["item"][valid]),
        masked=saved.masked,
    )


def drawn(count: int, most: int) -> np.ndarray:
    "Return at most so many of the numbers below `count`, the same ones each time, in order."
    return np.sort(np.random.default_rng(SEED).permutation(count)[:most])


def last_items(prep, positions: np.ndarray) -> np.ndarray:  # [B, 200], -1 padded
    "Return what each case's user had before it as item rows."
    from recsys.data.asof import history_at

    bounds = prep.events["hist_first"][positions], prep.events["hist_cut"][positions]
    return history_at(prep.hist_items, *bounds, 200).astype(np.int32)


def interactions(user: np.ndarray, item: np.ndarray):  # rows in their order -> rectools Dataset
    "Return a data set whose times are the rows' numbers."
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset

    times = pd.to_datetime(np.arange(len(user)), unit="s")
    columns = {Columns.User: user, Columns.Item: item, Columns.Weight: 1.0, Columns.Datetime: times}
    return Dataset.construct(pd.DataFrame(columns))


def make_model(setting: dict, epochs: int):  # of SETTINGS -> SASRecModel
    "Return an untrained model."
    import pytorch_lightning
    import torch
    from rectools.models import SASRecModel
    from rectools.models.nn.transformers.ligr import LiGRLayers

    pytorch_lightning.seed_everything(SEED)
    torch.set_num_threads(1)  # sums in the same order on any machine
    return SASRecModel(
        **MODEL, **setting, epochs=epochs, deterministic=True, transformer_layers_type=LiGRLayers
    )


def lists_of(model, trained: np.ndarray, hist: np.ndarray, masked: bool) -> np.ndarray:
    "Return a list of item rows for each history, [B, DEPTH], -1 padded."
    from rectools import Columns

    lists = np.full((len(hist), DEPTH), -1)
    known = np.isin(hist, trained)  # items that training saw
    for part in np.array_split(np.arange(len(lists)), len(lists) // 5000 + 1):
        case, place = np.nonzero(known[part])
        if not len(case):
            continue
        table = model.recommend(
            users=np.unique(case),
            dataset=interactions(case, hist[part][case, place]),
            k=DEPTH,
            filter_viewed=masked,
        )
        at = part[table[Columns.User].to_numpy()], table[Columns.Rank].to_numpy() - 1
        lists[at] = table[Columns.Item].to_numpy()
    return lists


def ndcg_at_10(lists: np.ndarray, relevant: np.ndarray) -> float:
    "Return the mean over cases; each has one relevant item."
    found = lists[:, :10] == relevant[:, None]
    return float((found / np.log2(np.arange(2, 12))).sum(1).mean())


def tune(arrays: dict) -> tuple[dict, int]:  # setting, epochs
    "Return what has the best NDCG@10 on validation, of models that saw the training split alone."
    is_training = ~arrays["is_valid"]
    user, item = arrays["user"][is_training], arrays["item"][is_training]
    masked, best = bool(arrays["masked"]), (-1.0, {}, 0)
    for values in itertools.product(*SETTINGS.values()):
        setting = dict(zip(SETTINGS, values))
        model, start, data = make_model(setting, MOST_EPOCHS), time.time(), interactions(user, item)
        own, looks_without_gain = -1.0, 0
        for epochs in range(EPOCHS_A_LOOK, MOST_EPOCHS + 1, EPOCHS_A_LOOK):
            model.fit_partial(data, min_epochs=EPOCHS_A_LOOK, max_epochs=EPOCHS_A_LOOK)
            lists = lists_of(model, item, arrays["valid_hist"], masked)
            value = ndcg_at_10(lists, arrays["valid_relevant"])
            print(
                f"{setting} {epochs} epochs: {value:.4f}, {time.time() - start:.0f} s", flush=True
            )
            looks_without_gain = 0 if value > own else looks_without_gain + 1
            own = max(own, value)
            if value > best[0]:
                best = value, setting, epochs
            if looks_without_gain == PATIENCE:
                break
    print(f"chosen on validation: {best[1]}, {best[2]} epochs, NDCG@10 {best[0]:.4f}", flush=True)
    return best[1:]


def rank(folder: Path) -> None:
    "Tune, train on the exported sequences, write a list for each case; runs where RecTools is."
    arrays = dict(np.load(folder / ARRAYS))
    setting, epochs = tune(arrays)
    model = make_model(setting, epochs)
    model.fit(interactions(arrays["user"], arrays["item"]))
    np.save(folder / LISTS, lists_of(model, arrays["item"], arrays["hist"], bool(arrays["masked"])))


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
    if sys.argv[1:2] == ["rank"]:  # this process is the one in the other environment
        rank(folder)
        return
    if "python" not in arguments:
        sys.exit("python=... names the Python of an environment with rectools[torch]; see above")
    export(run, folder, int(arguments.get("cases", "100000")))
    command = [arguments["python"], __file__, "rank", f"folder={folder}"]
    subprocess.run(command, check=True)
    score(run, folder)


if __name__ == "__main__":
    main()
