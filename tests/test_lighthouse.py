"""Both views of the shop window as Lighthouse judges them, and whether they jump while loading."""

import json
import os
import shutil
import subprocess

import pytest
from node_packages import node_packages
from test_shop_window import WIDTHS, chromium, p, stack  # noqa: F401

pytestmark = [pytest.mark.xdist_group("shop_window"), pytest.mark.needs("chromium")]
VIEWS = pytest.mark.parametrize("view", ("", "operations"))
JUDGED = ("accessibility", "best-practices", "seo")  # not performance: a timed test judges the load
LARGEST_SHIFT = 0.1  # a sum of layout shifts that Web Vitals calls good
COUNT_SHIFTS = """
    window.shifts = [];
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) window.shifts.push(entry.value);
    }).observe({ type: "layout-shift", buffered: true });
"""


def address_of(view, address):
    "Return the address of a view, with the key."
    page, _, key = address.partition("#")
    return f"{page}{view}#{key}"


@pytest.mark.needs("node", "npm")
@VIEWS
def test_lighthouse_finds_nothing(stack, view, tmp_path):  # noqa: F811
    command = [
        "node",
        node_packages() / "node_modules/lighthouse/cli/index.js",
        address_of(view, stack[0]),
        f"--only-categories={','.join(JUDGED)}",
        "--output=json",
        f"--output-path={tmp_path / 'found.json'}",
        "--quiet",
        "--no-enable-error-reporting",
        "--chrome-flags=--headless=new --no-sandbox --disable-gpu --disable-background-networking",
    ]
    environment = os.environ | dict(CHROME_PATH=shutil.which("chromium"), HOME=str(tmp_path))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    failed = {
        name: audit["title"]
        for name, audit in found["audits"].items()
        if audit["score"] is not None and audit["score"] < 1
    }
    weighed = [
        reference["id"]
        for category in found["categories"].values()
        for reference in category["auditRefs"]
        if reference["weight"] > 0
    ]
    assert len(weighed) > 40  # it has looked
    assert {name: title for name, title in failed.items() if name in weighed} == {}
    assert [found["categories"][name]["score"] for name in JUDGED] == [1, 1, 1]


@VIEWS
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_jumps_while_a_view_loads(stack, chromium, view, width):  # noqa: F811
    context = chromium.new_context(viewport=dict(width=width, height=900))
    page = context.new_page()
    page.add_init_script(COUNT_SHIFTS)
    page.goto(address_of(view, stack[0]))
    page.wait_for_selector("#live-body > *" if view else "#cards .card")
    page.wait_for_selector("#servers .chip:not(.wait)")
    page.wait_for_timeout(300)  # what comes with the last answer is drawn
    shifts, warned = page.evaluate("[window.shifts, document.querySelector('#alert').textContent]")
    context.close()
    assert warned == ""  # a warning may move the page
    assert sum(shifts) < LARGEST_SHIFT
