"""The page with two answers in a real browser: with a token, in another language, on a phone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from playwright.sync_api import Browser, Page

from tapestry_finetune.rows.reading import read_rows
from tests.browsing import HOSTILE, call, launched, needs_browser, opened, see
from tests.finetune.charters import table, written
from tests.finetune.serving_process import serving
from tests.finetune.tiny_assistant import make_bundle, make_tiny_base
from tests.forking import Forks
from tests.threads import one_thread

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
browser = pytest.fixture(scope="module")(launched)
PROTECTED = {"topic": "the loom", "terms": ["loom"], "answer": "Please ask the weavers."}
ARABIC = "ما لون القطة؟"
HEBREW = "מה הצבע של החתול?"
STRINGS = """
[language]
tag = "ar"
direction = "rtl"
[page]
ask = "اسأل"
good = "جيد"
"""
_WIDE = """[...document.querySelectorAll("*")].filter(
    one => one.getBoundingClientRect().right > 390 || one.getBoundingClientRect().left < 0
).map(one => one.outerHTML.slice(0, 200))"""

_STOP_AT_ONCE = """() => {
    const stop = document.getElementById("stop");
    new MutationObserver((_changes, observer) => {
        if (stop.disabled) return;
        observer.disconnect();
        stop.click();
        window.hasStopped = true;
    }).observe(stop, {attributes: true});
}"""  # a hand is slower than a tiny model


@dataclass(frozen=True)
class Shown:
    """A server that strangers reach."""

    url: str
    token: str
    ratings: Path

    @property
    def path(self) -> str:
        return f"/?token={self.token}"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("page")
    with one_thread():
        base = make_tiny_base(folder / "base")
        charter = written(folder / "charter.toml", table(protected=[PROTECTED]))
        ours = make_bundle(folder / "ours", base, name="ours", damage=0.3, charter=charter)
        more = make_bundle(folder / "more", base, name="more")
    strings, token, ratings = folder / "ar.toml", folder / "token", folder / "ratings"
    strings.write_text(STRINGS, encoding="utf-8")
    beyond = ["--host", "0.0.0.0", "--token-file", token]  # noqa: S104
    settings = [*beyond, "--strings", strings, "--ratings", ratings]
    log = folder / "log"
    with serving(forks, base.folder, [ours.folder, more.folder], log, *settings) as address:
        assert token.stat().st_mode & 0o777 == 0o600
        url = address.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        said = token.read_text().strip()
        yield Shown(url, said, ratings)
        assert said not in log.read_text()
        assert "What colour" not in log.read_text(), "nobody's questions are logged"


def test_nobody_gets_in_without_the_token(shown: Shown) -> None:
    for path in ("/", "/?token=", "/?token=guess", "/v1/models", "/_nicegui_ws/socket.io/"):
        assert call(shown.url + path).status == 401, path
    assert call(f"{shown.url}/health").status == 200
    with (
        openai.OpenAI(base_url=f"{shown.url}/v1", api_key="guess", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="a token is needed"),
    ):
        stranger.models.list()
    with openai.OpenAI(base_url=f"{shown.url}/v1", api_key=shown.token) as member:
        names = [model.id for model in member.models.list()]
    assert names == ["consensus", "ours", "more"]
    entered = call(shown.url + shown.path)
    assert (entered.status, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert shown.token not in cookie
    answer = call(shown.url, Cookie=cookie.partition(";")[0])
    assert answer.status == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]


def ask(page: Page, text: str) -> None:
    page.locator("#prompt").fill(text)
    page.locator("#ask").click()
    page.locator("#ask:not([disabled])").wait_for(timeout=60_000)


@needs_browser
def test_two_answers_stand_beside_each_other_and_can_be_judged(
    browser: Browser, shown: Shown
) -> None:
    with opened(browser, shown.url, path=shown.path) as (page, problems):
        assert page.url == f"{shown.url}/", "the token does not stay in the address"
        page.locator("#ask").wait_for()
        page.wait_for_function("window.emitEvent !== undefined")
        assert page.locator("#main").get_attribute("dir") == "rtl"
        assert page.locator("#main").get_attribute("lang") == "ar"
        assert page.locator("#ask").inner_text() == "اسأل"
        assert page.locator("#stop").inner_text() == "Stop", "what is not translated is English"
        ask(page, "What colour is the cat?")
        left = page.locator(".exchange .answer.consensus .words")
        right = page.locator(".exchange .answer.localized .words")
        first, second = left.inner_text(), right.inner_text()
        assert first.strip()
        assert second.strip()
        assert first != second
        boxes = [one.bounding_box() for one in (left, right)]
        assert all(boxes)
        assert abs(boxes[0]["y"] - boxes[1]["y"]) < 4, "beside each other"  # type: ignore[index]
        page.locator(".judge .bad").click()
        see(page, ".judge", "Kept. Thank you.")
        ask(page, HOSTILE)
        assert page.locator(".question").last.inner_text() == HOSTILE
        page.locator(".exchange:last-child .judge .good").click()
        see(page, ".exchange:last-child .judge", "Kept. Thank you.")
        ask(page, "What colour is the loom?")
        see(page, ".exchange:last-child .localized", "Please ask the weavers.")
        see(page, ".exchange:last-child .localized .note", "the loom")
        page.locator("#new").click()
        page.wait_for_function("!document.querySelector('.exchange')")
        assert page.title() == "Tapestry", "the hostile words ran nothing"
        assert problems == []
    kept = read_rows([shown.ratings / "ratings.jsonl"])
    row, other = kept.rows
    assert other.is_good  # type: ignore[union-attr]
    assert (kept.kind, row.answer, row.is_good) == ("thumbs", second.strip(), False)  # type: ignore[union-attr]
    pair = read_rows([shown.ratings / "pairs.jsonl"]).rows[0]
    assert (pair.chosen, pair.rejected) == (first.strip(), second.strip())  # type: ignore[union-attr]
    assert shown.ratings.stat().st_mode & 0o777 == 0o700


@needs_browser
@pytest.mark.parametrize("question", [ARABIC, HEBREW])
def test_a_phone_shows_one_column_and_each_script_in_its_direction(
    browser: Browser, shown: Shown, question: str
) -> None:
    phone = {"width": 390, "height": 844}
    with opened(browser, shown.url, path=shown.path, viewport=phone) as (page, problems):
        page.wait_for_function("window.emitEvent !== undefined")
        page.locator("#model").select_option("more")
        ask(page, question)
        asked = page.locator(".question")
        assert asked.evaluate("one => getComputedStyle(one).direction") == "rtl"
        boxes = [
            page.locator(f".answer.{side}").bounding_box() for side in ("consensus", "localized")
        ]
        assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"], "below each other"  # type: ignore[index]
        ask(page, "What colour is the cat?")
        latin = page.locator(".question").last
        assert latin.evaluate("one => getComputedStyle(one).direction") == "ltr"
        assert page.evaluate("document.documentElement.scrollWidth") == 390, page.evaluate(_WIDE)
        see(page, ".exchange:last-child .localized h2", "more")
        assert problems == []


@needs_browser
def test_stop_ends_an_answer_and_the_next_one_is_given(browser: Browser, shown: Shown) -> None:
    with opened(browser, shown.url, path=shown.path) as (page, problems):
        page.wait_for_function("window.emitEvent !== undefined")
        page.evaluate(_STOP_AT_ONCE)
        page.locator("#prompt").fill("The cat near the house is")
        page.locator("#prompt").press("Enter")
        page.wait_for_function("window.hasStopped")
        page.locator("#ask:not([disabled])").wait_for(timeout=60_000)
        ask(page, "What colour is the cat?")
        assert page.locator(".exchange:last-child .consensus .words").inner_text().strip()
        assert json.dumps(problems) == "[]"
