"""README's picture of the shop window, from the run quickstart in a real Chromium.

    .venv/bin/python bench/shop_picture.py

It opens the window, clicks the second card as the first visitor, and writes
nbs/images/shop-window.png. `run=NAME` takes another run, `out=FILE` writes elsewhere.
"""

import shutil
import sys

from playwright.sync_api import sync_playwright

from recsys.core.runs import find_root
from recsys.serve.serving import run_params
from recsys.serve.window import shop_window

SIZE = dict(width=1280, height=1185)
SECONDS = 60  # to wait for what the page shows
IS_SHARP = (
    "[...document.querySelectorAll('#cards img')].every(i => i.complete && i.naturalWidth > 0)"
)


def take_picture(address: str, file: str) -> None:
    "Click the second card of the first visitor's page, and write what the window shows then."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport=SIZE, reduced_motion="reduce")
        page.set_default_timeout(1000 * SECONDS)
        page.goto(address)
        page.wait_for_selector("#cards .card")
        page.wait_for_timeout(3000)  # the page of popular items gives way to the visitor's own
        page.locator("#cards .pick").nth(1).click()
        page.wait_for_selector("#changed:not([hidden])")
        page.evaluate("window.scrollTo(0, 0)")
        for _ in range(4 * SECONDS):  # the large pictures are drawn one after the other
            page.wait_for_timeout(250)
            if page.evaluate(IS_SHARP):
                break
        page.wait_for_timeout(5000)
        page.screenshot(path=file)
        browser.close()


def main() -> None:
    "Serve the run on free ports for as long as the picture takes."
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    file = arguments.get("out", str(find_root() / "nbs/images/shop-window.png"))
    ports = dict(HTTP_PORT=0, GRPC_PORT=0, METRICS_PORT=0, GATEWAY_PORT=0)
    folder = find_root() / "outputs" / arguments.get("run", "quickstart")
    with shop_window(run_params(folder, **ports), print) as (address, _, _):
        take_picture(address, file)
    print(file)


if __name__ == "__main__":
    main()
