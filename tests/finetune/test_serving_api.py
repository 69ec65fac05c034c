"""The endpoint as OpenAI's own client meets it, and what it does with requests that are wrong."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tapestry.cli.running import run_app
from tapestry.errors import ConfigError
from tapestry_finetune.dialogue import answer, answer_ids
from tapestry_finetune.serving.commands import app
from tapestry_finetune.serving.door import is_loopback, token_from
from tests.finetune.charters import table, written
from tests.finetune.serving_process import serving
from tests.finetune.tiny_assistant import make_bundle, make_tiny_base, voice_of
from tests.forking import Forks
from tests.threads import one_thread

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
CAT = [{"role": "user", "content": "What colour is the cat?"}]
LONG = [{"role": "user", "content": "The cat near the house is"}]
ANSWERED = [{"role": "assistant", "content": "Red."}]
PROTECTED = {"topic": "the loom", "terms": ["loom"], "answer": "Please ask the weavers."}


@dataclass(frozen=True)
class Served:
    """A server with two bundles on one base."""

    url: str
    base_says: str
    base_tokens: int
    """In what it says, with the one that ends the turn."""
    folder: Path
    clients: list[openai.OpenAI]

    def client(self, **more: Any) -> openai.OpenAI:
        settings = {"max_retries": 0, "timeout": 60} | more
        made = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", **settings)
        self.clients.append(made)
        return made

    def raw(self, body: bytes, **headers: str) -> tuple[int, Any]:
        """Send a body as it is; return status and the error's table."""
        return self.call("POST", "/v1/chat/completions", body, **headers)

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        host = self.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Content-Type": "application/json"} | named)
        response = connection.getresponse()
        answered = (response.status, json.loads(response.read()))
        connection.close()
        return answered


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serving")
    with one_thread():
        base = make_tiny_base(folder / "base")
        charter = written(folder / "charter.toml", table(protected=[PROTECTED]))
        kept = make_bundle(folder / "same", base, name="same", charter=charter)
        other = make_bundle(folder / "other", base, name="other", damage=0.5)
        voice = voice_of(base)
        said, tokens = answer(voice, CAT), len(answer_ids(voice.tokenizer, answer(voice, CAT)))
        assert said.count(" ") > 1, "it has learnt to say something"
    log = folder / "log"
    more = ("--waiting", 1, "--ratings", folder / "ratings")
    with serving(forks, base.folder, [kept.folder, other.folder], log, *more) as url:
        made = Served(url, said, tokens, folder, [])
        yield made
        for client in made.clients:
            client.close()


def test_the_models_are_the_base_and_its_bundles(served: Served) -> None:
    client = served.client()
    assert [model.id for model in client.models.list()] == ["consensus", "same", "other"]
    assert client.models.retrieve("other").id == "other"
    assert served.call("GET", "/health") == (200, {"status": "ok"})


def test_an_answer_is_that_of_the_model_that_was_named(served: Served) -> None:
    client = served.client()

    def said(model: str) -> Any:
        return client.chat.completions.create(model=model, messages=CAT, temperature=0)

    done = said("consensus")
    choice = done.choices[0]
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert choice.message.content == served.base_says
    assert done.usage.completion_tokens == served.base_tokens
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert said("same").choices[0].message.content == served.base_says
    assert said("other").choices[0].message.content != served.base_says
    assert said("consensus").choices[0].message.content == served.base_says


def test_a_stream_says_the_same_piece_by_piece(served: Served) -> None:
    stream = served.client().chat.completions.create(
        model="same",
        messages=CAT,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == served.base_says
    assert len([piece for piece in pieces if piece]) > 2
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3


def test_limits_stops_and_seeds_are_kept(served: Served) -> None:
    create = served.client().chat.completions.create
    short = create(model="consensus", messages=CAT, temperature=0, max_tokens=2)
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 2
    stop = served.base_says[5:8]
    stopped = create(model="consensus", messages=CAT, temperature=0, stop=[stop, "zzz"])
    assert stopped.choices[0].message.content == served.base_says.partition(stop)[0]
    assert stopped.choices[0].finish_reason == "stop"
    drawn = [
        create(model="other", messages=LONG, temperature=2, seed=seed, max_tokens=20)
        for seed in (1, 1, 2)
    ]
    first, again, another = (one.choices[0].message.content for one in drawn)
    assert first == again != another


def test_a_protected_topic_neither_goes_in_nor_comes_out(served: Served) -> None:
    asked = [{"role": "user", "content": "What colour is the Loom?"}]
    done = served.client().chat.completions.with_raw_response.create(model="same", messages=asked)
    assert done.headers["x-tapestry-guard"] == "refused"
    parsed = done.parse()
    assert parsed.choices[0].finish_reason == "content_filter"
    assert parsed.choices[0].message.content == "Please ask the weavers."
    guard = parsed.model_dump()["tapestry"]["guard"]
    assert guard["topic"] == "the loom"
    assert "the loom" in guard["reason"]
    stream = served.client().chat.completions.create(model="same", messages=asked, stream=True)
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Please ask the weavers."
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    plain = served.client().chat.completions.create(model="consensus", messages=asked)
    assert plain.choices[0].finish_reason != "content_filter", "the base has no charter"


# Requests that are wrong


_GOOD = {"model": "consensus", "messages": CAT}


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (b"", None, "the body is not JSON"),
        (b"{", None, "the body is not JSON"),
        (b"\xff\xfe", None, "the body is not JSON"),
        (b"[" * 100_000, None, "the body is not JSON"),
        (b'{"model": "\\ud800"}', None, "surrogates not allowed"),
        (b"[1]", None, "the body is a JSON list, expected an object"),
        ({}, "model", "model: Field required"),
        ({"model": "consensus"}, "messages", "messages: Field required"),
        (_GOOD | {"model": 3}, "model", "model: Input should be a valid string"),
        (_GOOD | {"messages": []}, "messages", "at least 1 item"),
        (_GOOD | {"messages": ["hi"]}, "messages.0", "messages.0: Input should be"),
        (_GOOD | {"messages": [{"role": "bot", "content": "a"}]}, "messages.0.role", "'system'"),
        (_GOOD | {"messages": [{"role": "user"}]}, "messages.0.content", "Field required"),
        (
            _GOOD | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
            "'text'",
        ),
        (_GOOD | {"messages": [*CAT, *ANSWERED]}, "messages.1.role", "must be the user's"),
        (_GOOD | {"temperature": 3}, "temperature", "less than or equal to 2"),
        (_GOOD | {"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        (_GOOD | {"max_tokens": "many"}, "max_tokens", "valid integer"),
        (_GOOD | {"n": 2}, "n", "1"),
        (_GOOD | {"stop": ["a"] * 5}, "stop", "at most four"),
        (_GOOD | {"tools": [{"type": "function"}]}, "tools", "calling tools is not done here"),
        (_GOOD | {"response_format": {"type": "json_object"}}, "response_format.type", "'text'"),
    ],
)  # fmt: skip
def test_a_malformed_request_is_refused_as_openai_does(
    served: Served, body: Any, param: str | None, says: str
) -> None:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, table = served.raw(sent)
    assert status == 400
    assert table["error"]["type"] == "invalid_request_error"
    assert table["error"]["param"] == param
    assert says in table["error"]["message"]


def test_the_client_raises_its_own_errors(served: Served) -> None:
    create = served.client().chat.completions.create
    with pytest.raises(openai.NotFoundError, match="there are: consensus, same, other") as missing:
        create(model="gpt-4o", messages=CAT)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="and the model reads 255") as long:
        create(model="consensus", messages=[{"role": "user", "content": "cat " * 500}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.APIStatusError) as large:
        create(model="consensus", messages=[{"role": "user", "content": "x" * 1_100_000}])
    assert large.value.status_code == 413
    with pytest.raises(openai.NotFoundError):
        served.client().embeddings.create(model="consensus", input="a")
    status, table = served.call("GET", "/v1/chat/completions")
    assert (status, table["error"]["message"]) == (404, "there is no GET /v1/chat/completions here")


def test_a_body_without_a_length_is_cut_off_too(served: Served) -> None:
    host, _, port = served.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        line.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        try:
            for _ in range(20):
                line.sendall(piece)
        except OSError:
            pass  # it no longer listens
        answered = line.recv(4096)
    assert b" 413 " in answered.splitlines()[0]


def test_other_sites_and_other_names_are_refused(served: Served) -> None:
    body = json.dumps(_GOOD).encode()
    assert served.raw(body, Origin="http://stranger.example")[0] == 403
    assert served.raw(body, Host="stranger.example")[0] == 421


# Many who ask at once, and who go away


def test_who_finds_the_line_full_is_asked_to_come_back(served: Served) -> None:
    statuses: list[int] = []

    def ask() -> None:
        body = _GOOD | {"messages": LONG, "model": "other", "max_tokens": 200, "temperature": 2}
        statuses.append(served.raw(json.dumps(body).encode())[0])

    asking = [threading.Thread(target=ask) for _ in range(6)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    assert set(statuses) == {200, 429}
    patient = served.client(max_retries=10)
    done = patient.chat.completions.create(model="consensus", messages=CAT, temperature=0)
    assert done.choices[0].message.content == served.base_says


@pytest.mark.parametrize("streams", [True, False])
def test_who_goes_away_stops_the_model(served: Served, streams: bool) -> None:  # noqa: FBT001
    host = served.url.removeprefix("http://")
    body = _GOOD | {"messages": LONG, "model": "other", "max_tokens": 240, "temperature": 2}
    for _ in range(5):  # were they not stopped, one waits and the others find the line full
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request("POST", "/v1/chat/completions", json.dumps(body | {"stream": streams}))
        if streams:
            response = connection.getresponse()
            assert response.status == 200
            response.read(60)
        else:
            time.sleep(0.1)
        connection.close()
        time.sleep(0.6)
    done = served.client(max_retries=0).chat.completions.create(
        model="consensus", messages=CAT, temperature=0
    )
    assert done.choices[0].message.content == served.base_says


# Beyond this machine


def test_beyond_loopback_a_token_is_asked_for(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(served.folder / "base")
    arguments = ["--base", base, "--unverified", "--host", "0.0.0.0", "--port", "0"]  # noqa: S104
    assert run_app(app, ["serve", *arguments]) == 1
    assert "add --token-file FILE" in capsys.readouterr().err


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("x" * 32)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        token_from(path, host="127.0.0.1")
    path.chmod(0o600)
    assert token_from(path, host="127.0.0.1") == "x" * 32
    path.write_text("short")
    with pytest.raises(ConfigError, match="expected a token of 16"):
        token_from(path, host="127.0.0.1")


def test_loopback_is_what_only_this_machine_reaches() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "localhost", "::1"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "10.0.0.1"):  # noqa: S104
        assert not is_loopback(host)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--strings", "nowhere.toml"], "neither a file"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_a_wrong_setting_is_one_line(
    served: Served, more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(served.folder / "base")
    assert run_app(app, ["serve", "--base", base, "--unverified", *more]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
