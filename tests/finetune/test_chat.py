"""Talking with a model at the terminal, and through a pipe."""

import io
import itertools
import os
import pty
import select
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tapestry.cli.running import run_app
from tapestry_finetune.assistants import Assistant, load_assistant
from tapestry_finetune.base import Base, turn_end_ids
from tapestry_finetune.bundle import Bundle
from tapestry_finetune.chat_commands import app
from tapestry_finetune.conversing import MOST_CHARACTERS, Conversation, Manner, nearest_principles
from tapestry_finetune.dialogue import answer
from tapestry_finetune.ratings import Ratings
from tapestry_finetune.rows.reading import read_rows
from tapestry_finetune.speaking import Asked, Told, TooLongError, person_of, speak, until
from tapestry_finetune.terminal import Terminal, shown
from tapestry_finetune.wording import load_wording
from tests.finetune.charters import charter, table, written
from tests.finetune.tiny_assistant import make_bundle, make_tiny_base, voice_of
from tests.finetune.tiny_models import make_model
from tests.forking import Forks
from tests.threads import one_thread

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
QUESTION = "What colour is the cat?"
PROTECTED = {"topic": "the loom", "terms": ["loom"], "answer": "Please ask the weavers."}


@dataclass(frozen=True)
class Made:
    base: Base
    bundle: Bundle
    assistant: Assistant
    charter: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("chat")
    with one_thread():
        base = make_tiny_base(folder / "base")
        path = written(folder / "charter.toml", table(protected=[PROTECTED]))
        bundle = make_bundle(folder / "ours", base, name="ours", damage=0.3, charter=path)
        assistant = load_assistant(base, {"ours": bundle}, device="cpu")
    return Made(base, bundle, assistant, path)


@dataclass
class Talk:
    """A conversation whose terminal is text."""

    conversation: Conversation
    ratings: Ratings
    out: io.StringIO

    def say(self, *lines: str) -> str:
        """Return what is shown for some lines."""
        self.out.seek(0)
        self.out.truncate()
        Terminal(self.conversation, self.ratings, load_wording(), self.out).talk(iter(lines))
        return self.out.getvalue()


@pytest.fixture
def talk(made: Made, tmp_path: Path) -> Talk:
    person = person_of(made.charter, is_told=False)
    conversation = Conversation(made.assistant, "ours", person, Manner(most_tokens=24))
    return Talk(conversation, Ratings(tmp_path / "ratings"), io.StringIO())


def test_the_bundle_answers_and_base_shows_the_untouched_consensus(made: Made, talk: Talk) -> None:
    plain = answer(voice_of(made.base), [{"role": "user", "content": QUESTION}], most_tokens=24)
    said = talk.say(QUESTION, "/base")
    assert said.endswith(f"base: {plain}\n")
    own = said.partition("base: ")[0].strip()
    assert own
    assert own != plain
    assert talk.conversation.last is not None
    assert talk.conversation.last.answer == own, "the base's answer is no turn of the dialogue"


def test_what_was_said_before_is_part_of_the_question(talk: Talk) -> None:
    talk.say(QUESTION, "What colour is the river?")
    last = talk.conversation.last
    assert last is not None
    assert [message["role"] for message in last.prompt] == ["user", "assistant", "user"]
    assert talk.say("/new") == "A new conversation.\n"
    assert talk.conversation.last is None


def test_thumbs_and_pairs_are_files_that_training_reads(talk: Talk) -> None:
    talk.say(QUESTION, "/good", "The cat near the house is", "/base", "/good", "/bad")
    thumbs = read_rows([talk.ratings.folder / "ratings.jsonl"])
    assert thumbs.kind == "thumbs"
    good, bad = thumbs.rows
    assert (good.is_good, bad.is_good) == (True, False), "who thinks again has thought last"  # type: ignore[union-attr]
    assert good.prompt == ({"role": "user", "content": QUESTION},)  # type: ignore[union-attr]
    last = talk.conversation.last
    assert last is not None
    (pair,) = read_rows([talk.ratings.folder / "pairs.jsonl"]).rows
    assert (pair.chosen, pair.rejected) == (last.base_answer, last.answer)  # type: ignore[union-attr]
    for path in talk.ratings.folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_guard_answers_instead_and_why_says_so(talk: Talk) -> None:
    said = talk.say("What colour is the Loom?", "/why")
    assert said.startswith("Please ask the weavers.\nRefused by the charter: ")
    assert "What the charter asks for, nearest first:\n  one: We ask.\n" in said
    assert said.count("the loom") == 2
    assert "the loom" not in talk.say(QUESTION, "/why")


def test_what_was_refused_is_not_asked_in_several_messages_or_later(made: Made) -> None:
    voice, person = voice_of(made.base), person_of(made.charter, is_told=False)
    user, other = ({"role": "user", "content": text} for text in ("The loom?", "Tell me of it."))
    refused = {"role": "assistant", "content": "Please ask the weavers."}
    red = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Red."}]

    def said(*messages: dict[str, str]) -> tuple[str, Told]:
        told = Told()
        asked = Asked(model=None, messages=messages, most_tokens=24)
        return "".join(speak(voice, asked, person, told)), told

    halves = ({"role": "user", "content": text} for text in ("What is the", "loom?"))
    for messages in ((user, other), (*red, user, other), tuple(halves)):
        assert said(*messages)[1].guard_topic == "the loom"
    later, told = said(*red, user, refused, other)
    assert told.guard_topic == ""
    without, told_without = said(*red, other)
    assert (later, told.prompt_tokens) == (without, told_without.prompt_tokens)


def test_a_protected_word_does_not_come_out_either(made: Made) -> None:
    voice = voice_of(made.base)
    asked = Asked(model=None, messages=[{"role": "user", "content": QUESTION}], most_tokens=24)
    word = answer(voice, asked.messages, most_tokens=24).split()[-1].strip(".")
    secret = {"topic": "that", "terms": [word], "answer": "Ask us."}
    told = Told()
    person = person_of(
        written(made.charter.with_name("word.toml"), table(protected=[secret])), is_told=False
    )
    said = "".join(speak(voice, asked, person, told))
    assert word not in said
    assert said.endswith("Ask us.")
    assert (told.reason, told.guard_topic) == ("content_filter", "that")


def test_commands_without_a_question_and_unknown_ones_say_so(made: Made, talk: Talk) -> None:
    assert talk.say("/base") == "Nothing has been asked yet.\n"
    assert talk.say("/good") == "Nothing has been answered yet.\n"
    assert talk.say("/frobnicate now") == "There is no /frobnicate. /help shows what there is.\n"
    assert "/quit     leave" in talk.say("/help")
    assert talk.say("  ", "/quit", QUESTION) == ""
    plain = Conversation(made.assistant, None, person_of(None, is_told=False), Manner())
    other = Talk(plain, talk.ratings, io.StringIO())
    assert "nobody has written down principles" in other.say("/why")
    assert "This is the untouched consensus." in other.say(QUESTION, "/base")


def test_system_shows_and_changes_what_is_told_first(made: Made, talk: Talk) -> None:
    assert talk.say("/system") == "The assistant is told nothing first.\n"
    assert talk.say("/system Answer in Dutch.").endswith("Answer in Dutch.\n")
    assert talk.conversation.person.guard is not None, "the guard stays"
    told = person_of(made.charter, is_told=True)
    assert "We ask." in told.system


def test_a_megabyte_is_refused_politely(talk: Talk) -> None:
    said = talk.say("x" * 1_000_000)
    assert said == f"That is 1,000,000 characters; say it in {MOST_CHARACTERS:,} or fewer.\n"
    assert "tokens, and the model reads" in talk.say("cat " * 1000)
    spanish = Terminal(talk.conversation, talk.ratings, load_wording("es"), talk.out)
    spanish.talk(iter(["cat " * 1000]))
    assert "tokens, y el modelo lee" in talk.out.getvalue()
    assert talk.conversation.last is None
    assert talk.say(QUESTION).strip()


def test_a_conversation_that_is_too_long_loses_its_oldest_turns_and_says_so(talk: Talk) -> None:
    long = f"{QUESTION} " * 8
    said = talk.say("/system Be kind.", long, long, long, QUESTION)
    assert "the oldest 2 turns are left out" in said
    assert talk.conversation.told.prompt_tokens + 24 <= 256


def test_what_cannot_fit_is_refused_where_nothing_may_be_cut(made: Made) -> None:
    turns = [{"role": "user", "content": QUESTION * 60}, {"role": "assistant", "content": "Red."}]
    asked = Asked(model=None, messages=[*turns, {"role": "user", "content": QUESTION}])
    with pytest.raises(TooLongError, match="the model reads 255"):
        list(speak(voice_of(made.base), asked, person_of(None, is_told=False), Told()))


def test_stop_texts_are_cut_wherever_the_pieces_break() -> None:
    text = "one two three"
    for cuts in itertools.combinations(range(1, len(text)), 2):
        pieces = [text[a:b] for a, b in itertools.pairwise((0, *cuts, len(text)))]
        assert "".join(until(pieces, ["two", "zzzz"])) == "one "
        assert "".join(until(pieces, ["four"])) == text


def test_the_nearest_principles_come_first() -> None:
    said = [
        {"id": "land", "text": "We care for rivers and forests.", "weight": 1.0},
        {"id": "elders", "text": "We listen to grandmothers.", "weight": 3.0},
    ]
    ours = charter(principle=said)
    assert [one.id for one in nearest_principles(ours, "Who owns the forests?")] == [
        "land",
        "elders",
    ]
    assert [one.id for one in nearest_principles(ours, "Hello")] == ["elders", "land"]


def test_what_would_steer_a_terminal_is_not_shown() -> None:
    assert shown("a\x1b[2Jb\tc\nd") == "a\ufffd[2Jb\tc\nd"


def test_through_a_pipe_one_line_is_one_turn(
    made: Made,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed = f"{QUESTION}\n/good\n/nada".encode() + b"\xff\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
    model = [str(made.bundle.folder), "--base", str(made.base.folder), "--unverified"]
    more = ["--tokens", "24", "--ratings", str(tmp_path), "--strings", "es"]
    assert run_app(app, ["chat", *model, *more]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    *answered, kept, unknown = said.out.strip().splitlines()
    assert "".join(answered).strip()
    assert kept == f"Guardada como buena en {tmp_path / 'ratings.jsonl'}."
    assert unknown == "No existe /nada\ufffd. /help muestra lo que se puede hacer."


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["BASE"], "not a published checkpoint"),
        (["OURS"], "a bundle holds what it changed, in an unverified model: add --base FOLDER"),
        (["BASE", "--base", "BASE"], "not a bundle"),
        (["OURS", "--base", "BASE", "--unverified", "--key", "0" * 64], "not this community's"),
        (["BASE", "--unverified", "--charter", "nowhere.toml"], "nowhere.toml: cannot be read"),
    ],
)
def test_what_cannot_be_talked_with_is_one_line(
    made: Made, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"BASE": str(made.base.folder), "OURS": str(made.bundle.folder)}
    assert run_app(app, ["chat", *[places.get(one, one) for one in arguments]]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_chat(tmp_path: Path, forks: Forks) -> None:
    """At a real terminal, with a model that goes on for long unless it is stopped."""
    endless = make_model(tmp_path / "model", "llama", max_position_embeddings=8192)
    weights = load_file(endless.folder / "model.safetensors")
    weights["model.embed_tokens.weight"][turn_end_ids(endless.tokenizer())] = 0  # never likeliest
    save_file(weights, endless.folder / "model.safetensors", metadata={"format": "pt"})
    arguments = [str(endless.folder), "--unverified", "--tokens", "8000"]
    controller, terminal = pty.openpty()
    there = Path(os.ttyname(terminal))
    process = forks.start(
        ["chat", *arguments, "--ratings", str(tmp_path)], there, typed=there, cwd=tmp_path
    )
    try:
        screen = Screen(controller)
        screen.wait_for("you> ")
        os.write(controller, b"What colour is the cat?\n")
        screen.wait_for("cat?")
        screen.wait_for_more(200)
        process.send_signal(signal.SIGINT)
        screen.wait_for("(stopped)")
        screen.wait_for("you> ")
        os.write(controller, b"/help\n")
        screen.wait_for("/quit     leave")
        screen.wait_for("you> ")
        os.write(controller, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        os.close(terminal)
        os.close(controller)
    assert "Traceback" not in screen.seen


class Screen:
    """What a terminal shows."""

    def __init__(self, controller: int) -> None:
        self._controller = controller
        self._at = 0
        self.seen = ""

    def wait_for(self, text: str) -> None:
        """Read until `text` has appeared behind what was waited for before."""
        while text not in self.seen[self._at :]:
            self._read()
        self._at = self.seen.index(text, self._at) + len(text)

    def wait_for_more(self, characters: int) -> None:
        """Read until so many have appeared behind what was waited for before."""
        while len(self.seen) < self._at + characters:
            self._read()

    def _read(self) -> None:
        ready, _, _ = select.select([self._controller], [], [], 60)
        assert ready, self.seen
        self.seen += os.read(self._controller, 4096).decode(errors="replace")
