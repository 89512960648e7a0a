"""Packages from npm that tests ask: installed once below outputs/, by the lock in tests/node."""

import subprocess

from filelock import FileLock
from tiny import ROOT


def node_packages():
    "Return the folder with node_modules, installed unless it is there by the same lock."
    home = ROOT / "outputs/.node"
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):
        wanted = (ROOT / "tests/node/package-lock.json").read_text()
        if not (home / "done").is_file() or (home / "done").read_text() != wanted:
            for file in ("package.json", "package-lock.json"):
                (home / file).write_text((ROOT / "tests/node" / file).read_text())
            done = subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=home,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr[-2000:]
            (home / "done").write_text(wanted)
    return home
