"""A real browser for tests: Debian's Chromium, watched for what a page must not do."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

# Machines that run other tests beside these are slow.
_PATIENCE_S = 60.0
expect.set_options(timeout=1000 * _PATIENCE_S)
# Chrome reports every answer with an error status, which tests of errors ask for.
_REPORTED = "Failed to load resource"
_NOTE_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`);
});
"""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium without a window; skips where there is none."""
    path = os.environ.get("CARDIORAY_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium (apt install chromium, or set CARDIORAY_CHROMIUM)")
    with sync_playwright() as playwright:
        # Root, as which CI runs, cannot use the sandbox.
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """A page and what it did.

    Attributes:
        page: in the browser.
        origin: of the server, the only one that it may contact.
        hosts: that it contacted.
        errors: of its scripts and on its console.
    """

    page: Page
    origin: str
    hosts: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    def check(self) -> None:
        """It contacted its own server alone, violated no policy and made no error."""
        assert self.hosts <= {self.origin}
        assert self.errors == []
        assert self.page.evaluate("window.violations") == []

    def wide(self) -> float:
        """How far the page is scrolled sideways at most, in px."""
        root = "document.documentElement"
        return float(self.page.evaluate(f"{root}.scrollWidth - {root}.clientWidth"))


@contextlib.contextmanager
def watched(browser: Browser, url: str, **options: Any) -> Iterator[Watched]:
    """A fresh context at an address; what it did is checked at the end.

    Args:
        browser: that of the tests.
        url: of the page.
        **options: of the context, such as `viewport`.
    """
    defaults = {"viewport": {"width": 1280, "height": 900}, "locale": "en-GB"}
    context = browser.new_context(**{**defaults, **options})
    context.set_default_timeout(1000 * _PATIENCE_S)
    try:
        yield from _watch(context, url)
    finally:
        context.close()


def _watch(context: BrowserContext, url: str) -> Iterator[Watched]:
    parts = urlsplit(url)
    seen = Watched(context.new_page(), f"{parts.scheme}://{parts.netloc}")

    def on_request(request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("blob", "data"):
            seen.hosts.add(f"{address.scheme}://{address.netloc}")

    seen.page.on("request", on_request)
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.on(
        "console",
        lambda message: (
            seen.errors.append(message.text)
            if message.type in ("error", "warning") and _REPORTED not in message.text
            else None
        ),
    )
    seen.page.add_init_script(_NOTE_VIOLATIONS)
    seen.page.goto(url)
    yield seen
    seen.check()


def until(holds: Callable[[], bool]) -> None:
    """Wait for what no element shows; the policy of the page forbids Playwright to poll there."""
    end = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def serious_faults(page: Page) -> list[str]:
    """What axe calls serious or critical, with the elements at fault."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {node['html']} {node['failureSummary']}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
