"""What Lighthouse, from npm, says of a page."""

import json
import os
import shutil
import subprocess

from node_packages import node_packages

PASSED = 25  # audits at least, of those that count
JUDGED = ("accessibility", "best-practices", "seo")  # not performance: a timed test judges the load


def lighthouse_faults(address, folder):
    "Return the audits that a page fails, by name: title and the first three places in the page."
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
    # Lighthouse keeps its settings in the home folder
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
    audits = {name: found["audits"][name] for name in weighed}
    assert [name for name, audit in audits.items() if audit["scoreDisplayMode"] == "error"] == []
    assert sum(audit["score"] == 1 for audit in audits.values()) >= PASSED  # it has looked
    return {
        name: (audit["title"], str(audit.get("details", {}).get("items", [])[:3])[:900])
        for name, audit in audits.items()
        if audit["score"] is not None and audit["score"] < 1
    }
