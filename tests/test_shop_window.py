"""The shop window in a real Chromium: every control, the click and what it changes, servers that
go away, a phone.
"""

import os
import re
import signal
import time

import pytest
from node_packages import node_packages
from tiny import ROOT, tiny_run

from recsys.core.pipeline import run_here
from recsys.core.runs import read_json, run_dir
from recsys.core.stages import STAGES
from recsys.operate.monitor import run_monitor
from recsys.serve.serving import run_params
from recsys.serve.triton_process import session_processes
from recsys.serve.window import shop_window

pytestmark = [pytest.mark.xdist_group("shop_window"), pytest.mark.needs("chromium")]
SHOTS = ROOT / "outputs/screenshots"  # for the docs
WAIT = 40_000  # milliseconds
MATCHES = ("strong match", "good match", "possible match", "long shot")
WIDTHS = (360, 768, 1280)


@pytest.fixture(scope="module")
def p(tmp_path_factory):
    folder = tiny_run(tmp_path_factory.mktemp("shop") / "outputs")
    # the browser and other tests run beside the servers: a pause of theirs must not make a page
    # popular or anonymous
    run_here(STAGES["triton"], run_params(folder / "tiny", VALKEY_TIMEOUT_MS=400))
    ports = dict(HTTP_PORT=0, GRPC_PORT=0, METRICS_PORT=0, GATEWAY_PORT=0)
    return run_params(folder / "tiny", **ports, GATEWAY_SILENCE_MS=60_000)


@pytest.fixture(scope="module")
def stack(p):
    with shop_window(p) as (address, server, gateway):
        yield address, server


@pytest.fixture(scope="module")
def chromium():
    import shutil

    from playwright.sync_api import sync_playwright

    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(stack, chromium):
    "Open the page; nothing may fail in its console, and nothing may be asked of another host."
    contexts, wrong = [], []

    def open_page(address=stack[0], tolerate="", **how):
        context = chromium.new_context(
            **{"viewport": dict(width=1280, height=900), "reduced_motion": "reduce", **how}
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on(
            "console",
            lambda m: wrong.append(m.text)
            if m.type == "error" and not (tolerate and tolerate in m.text)
            else None,
        )
        page.on(
            "request",
            lambda r: wrong.append(r.url)
            if not r.url.startswith((stack[0].split("#")[0], "data:"))
            else None,
        )
        page.goto(address)
        page.wait_for_selector("#cards .card")
        page.wait_for_selector("#items .card")
        until(page, "document.querySelector('#cards').ariaBusy === 'false'")
        if not tolerate:  # a page that a slow moment spoiled is asked again by the window itself
            until(page, "document.querySelector('#alert').hidden")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def until(page, script):
    """Wait for an expression to become true; Playwright's own way needs an eval that the page's
    policy forbids.
    """
    end = time.monotonic() + WAIT / 1000
    while not page.evaluate(script):
        assert time.monotonic() < end, script
        page.wait_for_timeout(50)


@pytest.fixture(scope="module")
def axe():
    "Return a function that gives what axe-core finds wrong with a page."
    source = (node_packages() / "node_modules/axe-core/axe.min.js").read_text()

    def faults(page):
        page.evaluate(source)
        found = page.evaluate("axe.run()")
        assert len(found["passes"]) > 15  # it has looked
        return [(f["id"], [n["html"][:200] for n in f["nodes"]]) for f in found["violations"]]

    return faults


def open_operations(page):
    "Follow the link to the view for operators, and wait until it is drawn."
    page.click("nav >> text=Operations")
    until(page, "document.querySelectorAll('#minutes-chart circle').length > 0")
    until(page, "document.querySelector('#drift-body').childElementCount > 0")
    return page


def judge_day(p):
    "Let the monitor judge the day, once the worker has written a page of it."
    end = time.monotonic() + WAIT / 1000
    while not any((run_dir(p) / "impressions").rglob("*.parquet")):
        assert time.monotonic() < end, "the worker has written no page"
        time.sleep(0.1)
    return run_monitor(p)


def fits(page):
    "Tell whether nothing of a page is wider than the window."
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def ids(page):
    return page.eval_on_selector_all("#cards .card", "cards => cards.map(c => c.dataset.item)")


def asked(page, act):
    "Do something that asks for a page, and give the request and the answer."
    with page.expect_request(lambda r: r.url.endswith("/v1/recommendations")) as found:
        act()
    until(page, "document.querySelector('#cards').ariaBusy === 'false'")
    return found.value.post_data_json, found.value.response().json()


def test_a_card_says_in_words_how_likely_and_from_where(visit):
    page = visit()
    first = page.locator("#cards .card").first
    assert (
        first.locator("img").evaluate("async i => { await i.decode(); return i.naturalWidth > 0; }")
        and first.locator(".match").inner_text() in MATCHES
        and re.fullmatch(r"\d+\.\d % likely .*", first.locator(".match").get_attribute("title"))
    )
    chips = page.locator("#cards .sources li").all_inner_texts()
    assert all(re.fullmatch(r"\w+ #\d+", chip) for chip in chips)
    assert any(chip.startswith("two_tower #") for chip in chips)
    assert re.fullmatch(r"\d+\.\d ms", page.inner_text("#latency"))


def test_each_control_asks_for_another_page(visit):
    page = visit()
    assert (
        "key" not in page.url
        and page.locator("#user option").count() == 42
        and page.locator("#cards .card").count() == 8
    )
    assert "known visitor" in page.inner_text("#page-note")
    until(page, "document.querySelectorAll('#history img').length >= 5")
    sent, _ = asked(page, lambda: page.select_option("#user", index=5))
    assert sent["user_id"] == page.input_value("#user")
    sent, _ = asked(page, lambda: page.select_option("#device", "mobile"))
    assert sent["device_type"] == "mobile"
    now = sent["timestamp"]
    sent, _ = asked(page, lambda: page.select_option("#hour", "3"))
    assert sent["timestamp"] % 86400 == 3 * 3600 and now <= sent["timestamp"] < now + 86401
    sent, _ = asked(page, lambda: page.locator("#k").fill("12"))
    assert (
        sent["k"] == 12
        and page.locator("#cards .card").count() == 12
        and page.inner_text("#k-shown") == "12"
    )
    assert page.is_disabled("#temperature")
    sent, _ = asked(page, lambda: page.check("[value=sample]"))
    assert sent["temperature"] == 1 and page.is_enabled("#temperature")
    before = ids(page)
    sent, _ = asked(page, lambda: page.locator("#temperature").fill("3"))
    assert sent["temperature"] == 3
    drawn, _ = asked(page, lambda: page.click("#ask [type=submit]"))
    assert drawn["seed"] == sent["seed"] + 1 and ids(page) != before
    sent, _ = asked(page, lambda: page.check("[value=greedy]"))
    assert sent["temperature"] == 0
    before = ids(page)
    sent, _ = asked(page, lambda: page.locator("#diversity").fill("1"))
    assert sent["diversity"] == 1 and ids(page) != before
    asked(page, lambda: page.locator("#diversity").fill("0"))
    sent, capped = asked(page, lambda: page.locator("#max_per_category").fill("1"))
    categories = [item["category"] for item in capped["items"]]
    assert sent["max_per_category"] == 1 and len(set(categories)) == len(categories)
    asked(page, lambda: page.locator("#max_per_category").fill("0"))
    sent, _ = asked(page, lambda: page.select_option("#rule-category", categories[-1]))
    assert sent["rules"] == [dict(category=categories[-1], factor=5)]
    sent, _ = asked(page, lambda: page.select_option("#rule-effect", "pin"))
    assert sent["rules"] == [dict(category=categories[-1], place=1)]
    sent, pinned = asked(page, lambda: page.locator("#rule-place").press("ArrowRight"))
    assert sent["rules"][0]["place"] == 2 and pinned["items"][1]["category"] == categories[-1]
    sent, _ = asked(page, lambda: page.select_option("#rule-category", ""))
    assert sent["rules"] == []
    asked(page, lambda: page.select_option("#user", ""))
    assert "anonymous" in page.inner_text("#page-note") and page.is_disabled("#reset")
    assert (
        page.locator("#bar i").count() == 8
        and "milliseconds" in page.get_attribute("#bar", "aria-label")
        and "rank" in page.inner_text("#legend")
    )


def test_a_click_changes_the_page_and_is_undone(visit):
    page = visit()
    asked(page, lambda: page.select_option("#user", "new"))
    until(page, "document.querySelector('#known').textContent.includes('nothing yet')")
    first, before = page.locator("#cards .card").first, ids(page)
    clicked = page.locator("#items .card").nth(3)
    for card, item in ((first, before[0]), (clicked, clicked.get_attribute("data-item"))):
        title = card.locator("b").inner_text()
        card.locator(".pick").click()
        page.wait_for_selector(f"#history li:first-child[title='{title}']")
        until(page, f"document.querySelector('#facts').textContent.includes({title!r})")
        until(
            page,
            f"![...document.querySelectorAll('#cards .card')].some(c => c.dataset.item === "
            f"{item!r}) && !document.querySelector('#facts').textContent.includes('worker')",
        )
        assert page.is_visible("#changed") and title in page.inner_text("#facts")
        shown = page.eval_on_selector_all("#after li span", "x => x.map(e => e.textContent)")
        assert (
            shown == page.eval_on_selector_all("#cards .card b", "x => x.map(e => e.textContent)")
            and page.locator("#before li").count() == 8
        )
        assert page.evaluate(
            "document.activeElement.id"
        ) == "changed-title" and "left the page" in page.inner_text("#said")
    assert (
        page.locator("#before .gone").count() == page.locator("#after .new").count() > 0
        and page.inner_text("#top") != "–"
    )
    page.screenshot(path=SHOTS / "click.png")
    with page.expect_response(lambda r: r.request.method == "DELETE") as erased:
        page.click("#reset")
    assert erased.value.json()["erased"] >= 3
    until(page, "document.querySelector('#history').childElementCount === 0")
    until(page, f"document.querySelector('#cards .card').dataset.item === {before[0]!r}")
    assert not page.is_visible("#changed") and page.inner_text("#top") == "–"
    page.select_option("#user", "")
    until(page, "document.querySelector('#known').textContent.includes('leave no trace')")
    page.locator("#cards .pick").first.click()
    page.wait_for_selector("#toast:not([hidden])")
    assert "choose a visitor" in page.inner_text("#toast")


def test_the_catalogue_and_why(visit):
    page = visit()
    assert page.locator("#items .card").count() == 12
    page.click("#more")
    until(page, "document.querySelector('#items').childElementCount === 24")
    page.click("[data-category=garden]")
    until(
        page,
        "document.querySelectorAll('#items small').length === 12 && "
        "document.querySelector('[data-category=garden]').ariaPressed === 'true'",
    )
    until(
        page,
        "[...document.querySelectorAll('#items .pick')].every(b => b.textContent.includes('garden'))",
    )
    word = page.locator("#items b").first.inner_text().split()[0]
    page.fill("#text", word)
    until(
        page,
        f"[...document.querySelectorAll('#items b')].every(b => b.textContent.includes({word!r}))",
    )
    page.click("[data-category='']")
    page.locator("#cards .foot button").nth(2).click()
    page.wait_for_selector(".shares li")
    text = page.inner_text("#why-body")
    assert "was answered by" not in text, text
    assert (
        "On this page" in text
        and "No. 3" in text
        and 3 <= page.locator(".shares li").count() <= 8
        and page.locator("#cards b").nth(2).inner_text() in page.inner_text("#why-title")
    )
    page.screenshot(path=SHOTS / "why.png")
    page.keyboard.press("Escape")
    assert (
        not page.is_visible("#why")
        and page.evaluate("document.activeElement.textContent") == "Why?"
    )
    page.locator("#items .foot button").last.click()
    page.wait_for_selector(".shares li")
    assert "Found?" in page.inner_text("#why-body")


def test_an_item_of_ones_own_appears(visit):
    page = visit()
    page.click("#add summary")
    page.fill("#add-title", "Quokka Glass Kettle")
    page.fill("#add-text", "A minimalist kettle in silver, made of glass.")
    page.select_option("#add-category", "kitchen")
    page.fill("#add-kind", "kettle")
    page.fill("#add-price", "24.5")
    page.click("#add-form button")
    page.wait_for_selector("#items .mine")
    page.wait_for_selector("#toast:not([hidden])")
    assert (
        "Quokka Glass Kettle is in the catalogue: for this visitor no. "
        in page.inner_text("#toast")
        and page.locator("#items .card").count() == 1
        and "24.50" in page.inner_text("#items")
    )
    assert page.locator("#items img").evaluate(
        "async i => { await i.decode(); return i.naturalWidth > 0 && i.src.endsWith('/image?size=large'); }"
    )
    page.screenshot(path=SHOTS / "added.png")
    asked(page, lambda: page.select_option("#user", "new"))
    page.locator("#items .mine .pick").click()
    page.wait_for_selector("#history li[title='Quokka Glass Kettle']")


def test_by_keyboard_alone_and_named_for_a_screen_reader(visit):
    page = visit()
    nameless = """() => [...document.querySelectorAll('button, input, select, a, summary')].filter(e => !(e.ariaLabel || e.labels?.length || e.textContent.trim())).map(e => e.outerHTML)"""
    assert page.evaluate(nameless) == [] and page.evaluate(
        "[...document.images].every(i => i.hasAttribute('alt'))"
    )
    assert page.evaluate(
        "[...document.querySelectorAll('[aria-labelledby]')].every(e => "
        "document.getElementById(e.getAttribute('aria-labelledby')))"
    )
    assert page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1]).every((x, i, "
        "a) => !i || x <= a[i - 1] + 1)"
    )
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert (
        page.evaluate("document.activeElement.className") == "pick"
        and page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    )
    label = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    page.wait_for_selector("#changed:not([hidden])")
    assert page.inner_text("#facts li").split("looked at ")[1].split(";")[0].rstrip(".") in label
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert not page.is_visible("#changed")


CONTRAST = """() => {
  const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number), light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > .9) return c.slice(0, 3); } return [255, 255, 255]; };
  return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.disabled && !e.closest('.hidden, .skip') && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
    .map(e => { const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x); return [(a + .05) / (b + .05), e.tagName, e.textContent.slice(0, 30)]; }).filter(x => x[0] < 4.5); }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_colours(visit, scheme):
    page = visit(color_scheme=scheme)
    page.screenshot(path=SHOTS / f"{scheme}.png")
    assert page.evaluate(CONTRAST) == []
    page.click("#theme")
    other = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (other == "rgb(16, 18, 28)") == (scheme == "light") and page.evaluate(CONTRAST) == []
    page.reload()
    page.wait_for_selector("#cards .card")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == other


def test_on_a_phone(visit):
    page = visit(
        viewport=dict(width=360, height=740), has_touch=True, is_mobile=True, device_scale_factor=2
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 360 and not page.is_visible(
        "#k"
    )
    assert page.evaluate(
        "[...document.querySelectorAll('button, select, "
        "input:not([type=radio])')].filter(e => e.checkVisibility()).every(e => "
        "e.getBoundingClientRect().height >= 24)"
    )
    page.screenshot(path=SHOTS / "phone.png")
    page.tap("summary >> nth=0")
    asked(page, lambda: page.locator("#k").fill("4"))
    page.locator("#cards .pick").first.tap()
    page.wait_for_selector("#changed:not([hidden])")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.screenshot(path=SHOTS / "phone-click.png")


def test_without_the_key_one_can_still_look(visit, stack):
    page = visit(stack[0].split("#")[0], tolerate="401")
    assert page.locator("#user option").count() == 2 and page.locator("#cards .card").count() == 8
    page.locator("#cards .pick").first.click()
    page.wait_for_selector("#toast:not([hidden])")
    assert "needs the API key" in page.inner_text("#toast") and page.is_visible("#key")
    page.fill("#key", stack[0].partition("#key=")[2])
    page.click("#key-form button")
    until(page, "document.querySelectorAll('#user option').length === 42")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("density", [1, 2])
def test_a_card_s_picture_has_the_pixels_it_is_shown_at_and_few_bytes(visit, width, density):
    page = visit(viewport=dict(width=width, height=900), device_scale_factor=density)
    pictures = page.evaluate(
        """async () => Promise.all([...document.querySelectorAll('.card img')].map(async image => {
          await image.decode();
          const answer = await fetch(image.src);
          return {has: image.naturalWidth, shown: image.getBoundingClientRect().width,
                  bytes: (await answer.arrayBuffer()).byteLength};
        }))"""
    )
    assert len(pictures) == 20
    for picture in pictures:
        assert picture["has"] >= density * picture["shown"] > 60
        assert picture["bytes"] < 25_000
    page.screenshot(path=SHOTS / f"pictures-{width}-{density}.png")


@pytest.mark.needs("npm")
@pytest.mark.parametrize("width", WIDTHS)
def test_cards_can_be_read_at_every_width(visit, axe, width):
    page = visit(viewport=dict(width=width, height=900))
    assert fits(page)
    cards = page.evaluate(
        """() => [...document.querySelectorAll('#cards .card')].map(card => {
          const image = card.querySelector('img').getBoundingClientRect();
          const texts = [...card.querySelectorAll('b, small, .price, .match, .sources li')];
          return {width: image.width, height: image.height,
                  cut: texts.filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth).length,
                  outside: texts.filter(e => e.getBoundingClientRect().right >
                    card.getBoundingClientRect().right).length,
                  small: texts.filter(e => parseFloat(getComputedStyle(e).fontSize) < 11).length};
        })"""
    )
    assert len(cards) == 8
    for card in cards:
        assert card["width"] >= 128 and abs(card["width"] - card["height"]) < 1
        assert (card["cut"], card["outside"], card["small"]) == (0, 0, 0)
    assert axe(page) == []
    page.screenshot(path=SHOTS / f"shop-{width}.png")
    asked(page, lambda: page.select_option("#user", "new"))
    page.locator("#cards .pick").first.click()
    page.wait_for_selector("#changed:not([hidden])")
    assert fits(page) and axe(page) == []
    page.screenshot(path=SHOTS / f"shop-click-{width}.png")
    page.locator("#cards .foot button").first.click()
    page.wait_for_selector(".shares li")
    assert fits(page) and axe(page) == []


def test_keyboard_goes_through_the_views_and_cards(visit):
    page = visit()
    asked(page, lambda: page.select_option("#user", "new"))
    first = page.locator("#cards .card").first
    page.focus("#page")
    names = []
    for _ in range(4):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent"))
        style = page.evaluate(
            "(({outlineStyle, outlineWidth}) => [outlineStyle, outlineWidth])"
            "(getComputedStyle(document.activeElement))"
        )
        assert style == ["solid", "3px"]
    title = first.locator("b").inner_text()
    assert names[0].startswith(title) and names[1] == names[3] == "Why?"
    assert first.locator(".match").inner_text() in names[0] and " % likely" in names[0]
    first.locator(".pick").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#changed:not([hidden])")
    page.focus("nav a >> nth=1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#live-body > *")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "live"


def test_operators_see_what_is_missing_and_what_the_monitor_wrote(visit, p):
    page = open_operations(visit())
    assert "no monitor day yet: recsys monitor" in page.inner_text("#drift-body")
    assert "p50" in page.inner_text("#minutes-chart")
    assert page.inner_text("#remembered").split()[0].isdigit()
    gate = read_json(run_dir(p) / "promote/gate.json")
    assert gate["candidate"] in page.inner_text("#gate-body")
    assert ("passed" if gate["passed"] else "refused") in page.inner_text("#gate-body")
    verdict = judge_day(p)
    until(page, "document.querySelectorAll('#drift-body tbody tr').length > 5")
    assert page.locator("#drift-body tbody tr").count() == len(verdict["checks"])
    unjudged = [check for check in verdict["checks"] if not check["judged"]]
    assert unjudged and page.inner_text("#drift-body").count("not judged") == len(unjudged)
    assert verdict["day"] in page.inner_text("#days-body")


@pytest.mark.needs("npm")
@pytest.mark.parametrize("width", WIDTHS)
def test_the_view_for_operators_fits_and_axe_finds_nothing(visit, axe, p, width):
    page = visit(viewport=dict(width=width, height=900))
    if not (run_dir(p) / "monitor").is_dir():
        judge_day(p)
    open_operations(page)
    page.click("#gate-more summary")
    page.click("#minutes-more summary")
    page.evaluate("scrollTo(0, 0)")
    cut_labels = page.evaluate(
        """() => [...document.querySelectorAll('.chart text')].filter(label => {
          const [inner, outer] = [label, label.ownerSVGElement].map(e => e.getBoundingClientRect());
          return inner.left < outer.left || inner.right > outer.right + 1;
        }).map(label => label.textContent)"""
    )
    rows = page.locator("#drift-body tbody tr")
    heights = rows.evaluate_all("rows => rows.map(row => row.getBoundingClientRect().height)")
    assert cut_labels == [] and max(heights) < 64  # two lines of text
    assert fits(page) and axe(page) == [] and page.evaluate(CONTRAST) == []
    page.screenshot(path=SHOTS / f"operations-{width}.png", full_page=True)
    page.click("#theme")
    assert axe(page) == [] and page.evaluate(CONTRAST) == []


def test_the_view_for_operators_needs_the_key(visit, stack):
    page = visit(stack[0].split("#")[0], tolerate="401")
    page.click("nav >> text=Operations")
    until(page, "document.querySelector('#alert').textContent.includes('needs the API key')")
    assert page.inner_text("#live-body") == "" and page.is_visible("#key")
    page.fill("#key", stack[0].partition("#key=")[2])
    page.click("#key-form button")
    until(page, "document.querySelector('#live-body').childElementCount > 0")
    assert not page.is_visible("#alert")


def test_valkey_is_killed(visit, p):
    """The page says so and still shows items, also where its first request after the fault failed
    for another reason: it is asked for again.
    """
    page = visit(tolerate="503")
    page.route(
        "**/v1/recommendations",
        lambda route: route.fulfill(status=503, json={"error": "a slow moment"}),
        times=1,
    )
    pid = read_json(run_dir(p) / "valkey/valkey.json")["pid"]
    os.kill(pid, signal.SIGSTOP)  # one that ends is started again
    page.wait_for_selector("#servers .gone")
    until(page, "document.querySelector('#alert').textContent.includes('Valkey does not answer')")
    until(page, "document.querySelector('#servers').textContent.includes('Valkey is gone')")
    assert page.locator("#cards .card").count() == 8
    page.screenshot(path=SHOTS / "valkey-gone.png")
    page.locator("#cards .pick").first.click()
    until(page, "document.querySelector('#toast').textContent.includes('was not recorded')")
    assert page.locator("#cards .card").count() == 8
    os.kill(pid, signal.SIGCONT)


def test_triton_is_gone(visit, stack):
    page = visit(tolerate="503")
    hanging = session_processes(stack[1].pid)
    for pid in hanging:
        os.kill(pid, signal.SIGSTOP)  # one that ends is started again
    until(page, "document.querySelector('#alert').textContent.includes('these are popular items')")
    until(page, "document.querySelector('#servers').textContent.includes('Triton is gone')")
    assert page.locator("#cards .card").count() == 8
    assert "popular with everyone" in page.inner_text("#cards")
    page.screenshot(path=SHOTS / "triton-gone.png")
    for pid in hanging:
        os.kill(pid, signal.SIGCONT)
