"""Trains towers and ranker of the tiny run, with a checkpoint after each step: a process to kill.

Usage: killed_training.py OUTPUTS FILE: the folder of a tiny run, and the file that gets the trained
weights and the losses of the epochs.
"""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np

from recsys.core.checkpoints import stage_checkpoints
from recsys.core.params import default_params
from recsys.core.stages import STAGES
from recsys.data.prepared import load_prepared
from recsys.models.dlrm import fit_ranker
from recsys.models.towers import build_towers, content_by_id
from recsys.models.two_tower import fit

SHORT = dict(TT_EPOCHS=3, TT_PATIENCE=9, TT_BATCH=64, DLRM_EPOCHS=3, DLRM_PATIENCE=9)
SHORT |= dict(DLRM_BATCH=64, TT_LOSS="sampled", TT_NEGATIVES=64, CHECKPOINT_MINUTES=1e-6)


def train(outputs):
    "Train both models; return all weights and the losses of the epochs."
    params = default_params(OUTPUTS=outputs, **SHORT)
    prep = load_prepared(params)
    train, valid = prep.positions("train")[-1500:], prep.positions("valid")[:200]
    towers = build_towers(prep.contract, params, content_by_id(prep))
    with stage_checkpoints(STAGES["two_tower"], params) as kept:
        curve = fit(towers, prep, params, train, valid, checkpoint=kept.file_of("towers"))
        checkpoint = kept.file_of("ranker")
        ranker, rows = fit_ranker(prep, params, train=train, judged=False, checkpoint=checkpoint)
    found = {f"towers {i}": weight for i, weight in enumerate(towers.get_weights())}
    found |= {f"ranker {i}": weight for i, weight in enumerate(ranker.get_weights())}
    found["towers, losses"] = np.array([row["loss"] for row in curve])
    found["ranker, losses"] = np.array([row["train_loss"] for row in rows])
    return found


if __name__ == "__main__":
    np.savez(sys.argv[2], **train(sys.argv[1]))
