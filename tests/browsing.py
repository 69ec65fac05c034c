"""A page in a real browser, and single requests to it."""

import http.client
import shutil
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine: the page is not looked at"
)
HOSTILE = "<img src=x onerror=document.title='taken'>"


def launched() -> Iterator[Browser]:
    """Start a browser: what a fixture of that name is made of."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Answer:
    """Of one HTTP request; redirections are not followed."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def call(url: str, data: dict[str, str] | None = None, **headers: str) -> Answer:
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    body = None if data is None else urllib.parse.urlencode(data)
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    connection.request("GET" if body is None else "POST", path, body, headers)
    response = connection.getresponse()
    answer = Answer(response.status, response.headers, response.read())
    connection.close()
    return answer


@contextmanager
def opened(
    browser: Browser, url: str, *, path: str = "", **context: Any
) -> Iterator[tuple[Page, list[str]]]:
    """Open the page; yield it with everything that went wrong or was asked of strangers."""
    problems: list[str] = []
    made = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
    page = made.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda said: problems.append(said.text) if said.type == "error" else None,
    )
    page.on(
        "request",
        lambda asked: None if asked.url.startswith((url, "data:")) else problems.append(asked.url),
    )
    page.goto(url + path)
    yield page, problems
    made.close()


def see(page: Page, selector: str, text: str) -> None:
    """Wait until a part of the page shows `text`."""
    page.locator(selector).filter(has_text=text).first.wait_for(timeout=60_000)
