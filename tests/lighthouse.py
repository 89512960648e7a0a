"""What Lighthouse, from npm, says of a page."""

import json
import os
import shutil
import subprocess

from node_packages import node_packages

JUDGED = ("accessibility", "best-practices", "seo")  # not performance: a timed test judges the load


def lighthouse_faults(address, folder):
    "Return the audits that a page fails, by name: title and the places that were named."
    command = [
        "node",
        node_packages() / "node_modules/lighthouse/cli/index.js",
        address,
        f"--only-categories={','.join(JUDGED)}",
        "--output=json",
        f"--output-path={folder / 'found.json'}",
        "--quiet",
        "--no-enable-error-reporting",
        "--chrome-flags=--headless=new --no-sandbox --disable-gpu --disable-background-networking",
    ]
    environment = os.environ | dict(CHROME_PATH=shutil.which("chromium"), HOME=str(folder))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((folder / "found.json").read_text())
    weighed = [
        reference["id"]
        for category in found["categories"].values()
        for reference in category["auditRefs"]
        if reference["weight"] > 0
    ]
    assert len(weighed) > 40  # it has looked
    return {
        name: (audit["title"], [str(item)[:300] for item in audit["details"]["items"][:3]])
        for name, audit in found["audits"].items()
        if name in weighed and audit["score"] is not None and audit["score"] < 1
    }
