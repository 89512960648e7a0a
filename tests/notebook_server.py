"""Runs notebooks as `nbdev_test` does, each in a process of its own that is forked from this one.

Importing pandas, scikit-learn and TensorFlow costs more than many notebooks do, so this process
imports them once. It imports nothing of the library, which a notebook meets as in a fresh process,
and not Merlin, whose import starts TensorFlow's threads: no fork has those, so that a matrix
product would wait for ever.

Each line of standard input is a JSON object with `notebook`, `log` (paths) and `environment`; each
line of standard output is the exit code of that notebook's process.
"""

import json
import os
import signal
import sys

import IPython  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import numpy  # noqa: F401
import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
import scipy.sparse  # noqa: F401
import sklearn.metrics  # noqa: F401
import tensorflow  # noqa: F401
from nbdev.test import nbdev_test

LONGEST_SECONDS = 1200


def run(notebook, log, environment):
    "Run a notebook in this process; standard output and error go to the log."
    signal.alarm(LONGEST_SECONDS)  # ends the process
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    os.setpgid(0, 0)  # a signal that a notebook sends to its group doesn't reach this server
    nbdev_test(notebook, n_workers=0)


def main():
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            run(**json.loads(line))
            return  # the interpreter ends as usual, exit handlers included
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
