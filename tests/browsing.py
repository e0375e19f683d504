"""A page in headless Chromium, as its reader has it: what goes wrong in it is an error of the test.

Needs playwright and axe-playwright-python (CI installs them before `-m system`), and Debian's
`chromium`, another Chrome on PATH, or the browser of `playwright install chromium`.
"""

import contextlib
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# No sandbox as root, no graphics card; and nothing of its own on the network.
_ARGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
READY = "html[data-ready]"  # the page has drawn, and read its tokens


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=found, args=list(_ARGS))
        yield started
        started.close()


@contextlib.contextmanager
def tab(
    started: Any, file: Path, link: str = "", *, width: int = 1440, ready: str = READY, **context
) -> Iterator[Any]:
    """The opened page. Console messages, dialogs and requests to anywhere fail the test."""
    made = started.new_context(viewport={"width": width, "height": 900}, **context)
    page, wrong = made.new_page(), []
    page.on("console", lambda m: m.type in ("error", "warning") and wrong.append(m.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda shown: (wrong.append(f"dialog {shown.message}"), shown.dismiss()))
    page.on("request", lambda r: r.url.startswith(("http", "ws")) and wrong.append(r.url))
    page.goto(f"file://{file}#{link}")
    page.wait_for_selector(ready, state="attached", timeout=60_000)
    yield page
    assert not wrong, wrong[:4]
    made.close()


def faults(page: Any) -> list[str]:
    """What axe-core says is a serious or critical fault of the page as it is now.

    The page must have been opened with `bypass_csp=True`: it lets no other script in.
    """
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{fault['impact']} {fault['id']}: {fault['nodes'][0]['html'][:200]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]


def overflow(page: Any) -> int:
    """Pixels by which the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def follow(page: Any, link: str) -> None:
    """Goes to a link within the page and waits until it is drawn."""
    page.evaluate("link => { location.hash = link }", link)
    page.evaluate("() => new Promise((d) => requestAnimationFrame(() => requestAnimationFrame(d)))")
