"""A training that was killed goes on from its checkpoint, with the result of an undisturbed one."""

import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny import ROOT, tiny_run

pytestmark = pytest.mark.xdist_group("checkpoints")  # one run for all


def progress(file):
    "What a checkpoint says beside its arrays."
    with np.load(file) as archive:
        return json.loads(str(archive["progress"])), len(archive["losses"])


def attempt(outputs, folder, name, kill_in=None):
    """Run a process that trains; kill it after a checkpoint of the second epoch's sixth step or a
    later one.
    """
    command = [sys.executable, "-W", "ignore", ROOT / "tests/killed_training.py", outputs]
    with open(folder / f"{name}.log", "wb") as log:
        process = subprocess.Popen([*command, folder / f"{name}.npz"], stdout=log, stderr=log)
        while process.poll() is None:
            if kill_in is not None and kill_in.is_file():
                content, n_steps = progress(kill_in)
                if content["progress"]["epoch"] == 2 and n_steps >= 6:
                    process.kill()
            time.sleep(0.02)
    assert process.returncode == (-9 if kill_in else 0), (folder / f"{name}.log").read_text()


def of_other_parameters(file):
    "Change a checkpoint to one of other parameters."
    content, _ = progress(file)
    content["hashes"]["parameters"] = "other"
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(file, **arrays | dict(progress=np.array(json.dumps(content))))


@pytest.fixture(scope="module")
def attempts(tmp_path_factory):
    "The folder with logs and weights of all attempts, and the run's folder."
    folder = tmp_path_factory.mktemp("attempts")
    outputs = tiny_run(tmp_path_factory.mktemp("killed") / "outputs")
    kept = outputs / "tiny/checkpoints/two_tower"
    attempt(outputs, folder, "first", kill_in=kept / "towers.npz")
    attempt(outputs, folder, "second", kill_in=kept / "ranker.npz")
    copy = shutil.copytree(kept, folder / "copy")
    attempt(outputs, folder, "third")
    shutil.copytree(copy, kept)
    (kept / "towers.npz").write_bytes((copy / "towers.npz").read_bytes()[:-1000])
    of_other_parameters(kept / "ranker.npz")
    attempt(outputs, folder, "afresh")
    return folder, outputs / "tiny"


def log(attempts, name):
    "What an attempt has printed."
    return (attempts[0] / f"{name}.log").read_text()


def test_a_killed_training_goes_on_in_the_epoch_and_step_where_it_was(attempts):
    towers = re.search(r"towers resumes at epoch (\d+), step (\d+)", log(attempts, "second"))
    ranker = re.search(r"ranker resumes at epoch (\d+), step (\d+)", log(attempts, "third"))
    assert int(towers[1]) == int(ranker[1]) == 2
    assert 7 <= int(towers[2]) <= 24 and 7 <= int(ranker[2]) <= 24
    assert "epoch 1 loss" in log(attempts, "first")
    assert "epoch 1 loss" not in log(attempts, "second")
    assert "towers was finished by an earlier attempt" in log(attempts, "third")


def test_resumed_weights_and_losses_are_those_of_an_undisturbed_training(attempts):
    names = ("third", "afresh")
    resumed, undisturbed = (np.load(attempts[0] / f"{name}.npz") for name in names)
    assert len(undisturbed.files) > 20 and resumed.files == undisturbed.files
    different = [n for n in resumed.files if resumed[n].tobytes() != undisturbed[n].tobytes()]
    assert different == []


def test_a_damaged_checkpoint_is_refused_and_the_training_starts_over(attempts):
    reason = r"towers.npz: removed, it can't be read \(BadZipFile.*; the training starts over"
    assert re.search(reason, log(attempts, "afresh"))
    assert "epoch 1 loss" in log(attempts, "afresh")


def test_a_checkpoint_of_other_parameters_is_refused(attempts):
    reason = "ranker.npz: removed, it was made with other parameters; the training starts over"
    assert reason in log(attempts, "afresh")
    assert "ranker, epoch 1" in log(attempts, "afresh")


def test_no_checkpoint_is_left_after_a_success(attempts):
    assert not (attempts[1] / "checkpoints").exists()
