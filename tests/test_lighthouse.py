"""Both views of the shop window as Lighthouse judges them, and whether they jump while loading."""

import pytest
from lighthouse import lighthouse_faults
from test_shop_window import WIDTHS, chromium, p, stack  # noqa: F401

pytestmark = [pytest.mark.xdist_group("shop_window"), pytest.mark.needs("chromium")]
VIEWS = pytest.mark.parametrize("view", ("", "operations"))
LARGEST_SHIFT = 0.1  # a sum of layout shifts that Web Vitals calls good
COUNT_SHIFTS = """
    window.shifts = [];
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) window.shifts.push(entry.value);
    }).observe({ type: "layout-shift", buffered: true });
"""
PUSH_DOWN = """() => {
    const wall = document.createElement("div");
    wall.style.height = "300px";
    document.body.prepend(wall);
}"""


def address_of(view, address):
    "Return the address of a view, with the key."
    page, _, key = address.partition("#")
    return f"{page}{view}#{key}"


@pytest.mark.needs("node", "npm")
@VIEWS
def test_lighthouse_finds_nothing(stack, view, tmp_path):  # noqa: F811
    assert lighthouse_faults(address_of(view, stack[0]), tmp_path) == {}


@VIEWS
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_jumps_while_a_view_loads(stack, chromium, view, width):  # noqa: F811
    context = chromium.new_context(viewport=dict(width=width, height=900))
    page = context.new_page()
    page.add_init_script(COUNT_SHIFTS)
    page.goto(address_of(view, stack[0]))
    page.wait_for_selector("#live-body > *" if view else "#cards .card")
    page.wait_for_selector("#servers .chip:not(.wait)")
    if not view:
        page.wait_for_selector("#known:not(:text-is('…'))")
    page.wait_for_timeout(300)  # what comes with the last answer is drawn
    shifts, warned = page.evaluate("[window.shifts, document.querySelector('#alert').textContent]")
    page.evaluate(PUSH_DOWN)
    page.wait_for_timeout(300)
    pushed = page.evaluate("window.shifts")
    context.close()
    assert warned == ""  # a warning may move the page
    assert sum(shifts) < LARGEST_SHIFT
    assert sum(pushed) > sum(shifts) + LARGEST_SHIFT  # the browser counts


@pytest.mark.parametrize("broken", ["**/v1/options", "**/v1/recommendations"])
def test_a_shop_that_cannot_start_says_so(stack, chromium, broken):  # noqa: F811
    context = chromium.new_context(viewport=dict(width=360, height=900))
    page = context.new_page()
    page.route(broken, lambda route: route.fulfill(status=503, json=dict(error="away for now")))
    page.goto(stack[0])
    page.wait_for_selector("#alert:has-text('away for now')")
    assert page.inner_text("#page-note") == "There is no page."
    assert page.locator("#cards > *").count() == 0
    assert page.get_attribute("#cards", "aria-busy") == "false"
    page.click("#tune summary")
    assert page.is_visible("#k")
    context.close()
