"""The page on which people choose, in a real browser, served by its own process."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tapestry_demo.federation import tapestry_command
from tapestry_finetune.charter.choices import log_of
from tests.browsing import HOSTILE, call, launched, needs_browser, opened, see
from tests.finetune.charters import EXAMPLE, case, table, written

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]
browser = pytest.fixture(scope="module")(launched)
ARABIC = "\u0645\u0627 \u0647\u064a \u0627\u0644\u0623\u063a\u0646\u064a\u0629\u061f"
PHONE = {"width": 390, "height": 844}
ANSWERS = [
    {"prompt": f"Is <b>this</b> {HOSTILE}?", "answers": [HOSTILE, "No, " + "very " * 60 + "long."]},
    {"prompt": ARABIC, "answers": [ARABIC * 2, ARABIC * 3]},
    {"prompt": "And the third?", "answers": ["One.", "Two."]},
]


@dataclass
class Collecting:
    """A running `charter collect`."""

    url: str
    token: str
    out: Path

    def kept(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in log_of(self.out).read_text().splitlines()]


@pytest.fixture
def collecting(tmp_path: Path) -> Iterator[Collecting]:
    with collected(tmp_path, EXAMPLE) as running:
        yield running


@contextmanager
def collected(tmp_path: Path, charter: Path) -> Iterator[Collecting]:
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(one) + "\n" for one in ANSWERS), encoding="utf-8")
    out = tmp_path / "choices.jsonl"
    arguments = ["collect", str(charter), "--answers", str(answers), "--out", str(out)]
    command = tapestry_command("finetune", "charter", *arguments)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            address = re.search(r"(http://127\.0\.0\.1:\d+)/\?token=(\S+)", said)
            assert address, said + process.stderr.read()
            yield Collecting(address[1], address[2], out)
        finally:
            process.send_signal(signal.SIGINT)
            told, err = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in err) == (0, False), err
    assert f"{out}: " in told


def begin(page: Page, name: str) -> None:
    page.locator("input[name=who]").wait_for()
    page.wait_for_function("window.emitEvent !== undefined && window.socket?.connected")
    page.fill("input[name=who]", name)
    page.click("form button")


@needs_browser
def test_people_choose_and_it_is_kept(browser: Browser, collecting: Collecting) -> None:
    start = f"/?token={collecting.token}"
    with opened(browser, collecting.url, path=start, viewport=PHONE) as (page, problems):
        assert page.url == f"{collecting.url}/", "the token does not stay in the address"
        begin(page, "Ana")
        see(page, ".asked", f"Is <b>this</b> {HOSTILE}?")
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        first = page.locator(".answer p").first.inner_text()
        page.locator(".answer button").first.click()
        see(page, "h1", "Because of which principle?")
        assert len(collecting.kept()) == 1, "kept before anything else is asked"
        page.get_by_role("button", name="Knowledge has keepers").click()
        see(page, ".asked", ARABIC)
        directions = (
            "[...document.querySelectorAll('.asked, .answer p')].map(one => "
            "getComputedStyle(one).direction)"
        )
        assert page.evaluate(directions) == ["rtl"] * 3
        page.get_by_role("button", name="Both are bad").click()
        see(page, ".note", "2 of 3")
        page.get_by_role("button", name="Change my last choice").click()
        see(page, ".asked", ARABIC)
        page.get_by_role("button", name="Both are equally good").click()
        see(page, ".asked", "And the third?")
        assert page.title().startswith("the Veyan speakers"), "the hostile words ran nothing"
        assert problems == []
    kept = collecting.kept()
    assert [one["who"] for one in kept] == ["Ana"] * 4
    assert [one["chosen"] for one in kept[2:]] == ["both_bad", "neither"]
    assert [one["principle"] for one in kept[:2]] == ["", "sources"]
    (row,) = [json.loads(line) for line in collecting.out.read_text().splitlines()]
    assert row["chosen"].split() == first.split()
    with opened(browser, collecting.url, path=start) as (page, problems):
        begin(page, "Ana")
        see(page, ".asked", "And the third?")
        left, right = (box["x"] for box in map(_box, page.locator(".answer").all()))
        assert left < right, "beside each other where there is room"
        page.locator(".answer button").last.click()
        page.get_by_role("button", name="None in particular").click()
        see(page, "h1", "That was all.")
        page.reload()
        begin(page, "  ")
        see(page, ".problem", "Please write a name of at most 40 letters.")
        begin(page, "Bo")
        see(page, ".note", "0 of 3")
        assert problems == []


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_a_charter_written_from_the_right_has_its_page_from_the_right(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    labels = {
        "your_name": "اسمك أو اسم مستعار",
        "begin": "ابدأ",
        "which": "أي جواب أفضل؟",
        "left": "هذا",
        "right": "هذا",
        "name_wrong": "اكتب اسما من {most} حرفا على الأكثر.",
        "progress": "{done} من {all}",
    }
    words = table(*(case(number) for number in range(6)), labels=labels)
    arabic = written(tmp_path / "charter.toml", words)
    size = {"width": width, "height": 844}
    with (
        collected(tmp_path, arabic) as running,
        opened(browser, running.url, path=f"/?token={running.token}", viewport=size) as (
            page,
            problems,
        ),
    ):
        begin(page, "  ")
        see(page, ".problem", "اكتب اسما من 40 حرفا على الأكثر.")
        form, whole = (_box(page.locator(name)) for name in ("form", "#main"))
        gap = whole["x"] + whole["width"] - form["x"] - form["width"]
        assert 0 <= gap < 60, "the form stands at the right"
        begin(page, "منى")
        see(page, ".note", "0 من 3")
        assert page.locator("#main").get_attribute("dir") == "rtl"
        assert page.evaluate("document.documentElement.scrollWidth") == width
        first, second = (_box(one) for one in page.locator(".answer").all())
        assert first["x"] > second["x"] if width == 1200 else first["x"] == second["x"]
        assert problems == []


def _box(article: object) -> dict[str, float]:
    return article.bounding_box()  # type: ignore[attr-defined,no-any-return]


def test_strangers_stay_outside(collecting: Collecting) -> None:
    assert call(collecting.url).status == 401
    assert b"charter collect" in call(collecting.url).body
    assert call(f"{collecting.url}/?token=wrong").status == 401
    address = f"{collecting.url}/?token={collecting.token}"
    assert call(address, Host="evil.example").status == 421
    entered = call(address)
    assert (entered.status, entered.headers["location"]) == (303, "/")
    cookie = str(entered.headers["set-cookie"]).split(";")[0]
    page = call(collecting.url, Cookie=cookie)
    assert page.status == 200
    assert "default-src 'self'" in str(page.headers["content-security-policy"])
    assert call(collecting.url, Cookie=cookie, Origin="http://evil.example").status == 403
