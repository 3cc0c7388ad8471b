"""A real Chromium for tests of pages, watched: nothing may be complained of, and nothing asked of the network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"
READY = "html[data-ready='1']"
WAIT_MS = 60_000  # on a machine that does other things
HOSTILE = (
    "<script>window.bad=1</script>\"><img src=x onerror='window.bad=1'></script><!-- \u202egnihton\u202c \u2066a "
    "\x00\x08\x1b[31m \u2028 {{7*7}} javascript:alert(1) &lt;b&gt; " + "x" * 100_000
)


@pytest.fixture(scope="module")  # Playwright keeps an event loop running while it is started
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright's Python package is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Open a page and watch it: at the end nothing may have been complained of, and nothing asked of the network."""
    contexts, complaints, requests = [], [], []

    def opened(url, *, allowed="file://", **options):
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda sent: sent.url.startswith((allowed, "data:")) or requests.append(sent.url))
        page.goto(url)
        page.wait_for_selector(READY)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == [] and requests == []


def shot(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
