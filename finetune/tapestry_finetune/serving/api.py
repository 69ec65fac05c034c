"""The endpoint: `/v1/models`, `/v1/chat/completions`, `/health`, as OpenAI's clients speak.

What the charter's guard has said is in the field `tapestry.guard` of an answer and in the header
`x-tapestry-guard`; programs that know neither read `finish_reason`, which is `content_filter`.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from tapestry.errors import RejectedError, TapestryError, UnavailableError
from tapestry_finetune.serving.requests import (
    CONSENSUS,
    ChatRequest,
    Refused,
    read_chat_request,
)
from tapestry_finetune.serving.speaker import Answer, Speaker
from tapestry_finetune.speaking import Told, TooLongError

_LOOK_SECONDS = 0.5
"""How often a caller who waits is asked whether it is still there."""


def add_api(app: FastAPI, speaker: Speaker, *, clock: Callable[[], float]) -> None:
    """Let `app` answer programs.

    Args:
        app: The application.
        speaker: Who answers.
        clock: Unix seconds.
    """
    started = int(clock())

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = [CONSENSUS, *speaker.assistant.names]
        return {"object": "list", "data": [_model(name, started) for name in names]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        _require_model(speaker, name)
        return _model(name, started)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        wanted = read_chat_request(await request.body())
        _require_model(speaker, wanted.model)
        name = f"chatcmpl-{secrets.token_hex(12)}"
        head = {"id": name, "created": int(clock()), "model": wanted.model}
        return await _answered(speaker.ask(wanted.asked()), request, head, wanted)

    @app.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def elsewhere(request: Request, rest: str) -> Response:
        raise Refused(404, f"there is no {request.method} /v1/{rest[:80]} here")

    _refuse_in_openai_words(app)


async def _answered(
    answer: Answer, request: Request, head: dict[str, Any], wanted: ChatRequest
) -> Response:
    """Return the answer, whole or as a stream; what cannot be answered has a status of its own."""
    try:
        piece = await _next_piece(answer, request)
        if wanted.stream:
            events = _events(answer, piece, head, wanted)
            return StreamingResponse(events, media_type="text/event-stream")
        text = ""
        while piece is not None:
            text += piece
            piece = await _next_piece(answer, request)
    except BaseException:
        answer.leave()
        raise
    return _whole(text, answer.told, head)


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "tapestry"}


def _require_model(speaker: Speaker, name: str) -> None:
    names = [CONSENSUS, *speaker.assistant.names]
    if name not in names:
        raise Refused(
            404,
            f"no model {name[:80]!r} here; there are: {', '.join(names)}",
            param="model",
            code="model_not_found",
        )


async def _next_piece(answer: Answer, request: Request) -> str | None:
    """Return the next piece; stop the model if the caller has gone."""
    waiting = asyncio.ensure_future(answer.next_piece())
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=_LOOK_SECONDS)
            if done:
                return waiting.result()
            if await request.is_disconnected():
                raise Refused(499, "the caller has gone")
    finally:
        waiting.cancel()


async def _events(
    answer: Answer, first: str | None, head: dict[str, Any], wanted: ChatRequest
) -> AsyncIterator[bytes]:
    """Yield the answer as server-sent events."""
    head = head | {"object": "chat.completion.chunk"}

    def event(delta: dict[str, str], **more: object) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return _line(head | {"choices": [choice | more]})

    try:
        yield event({"role": "assistant", "content": ""})
        piece = first
        while piece is not None:
            yield event({"content": piece})
            piece = await answer.next_piece()
        told = answer.told
        ended = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": told.reason}
        yield _line(head | {"choices": [ended]} | _guarded(told))
        if wanted.stream_options is not None and wanted.stream_options.include_usage:
            yield _line(head | {"choices": [], "usage": _usage(told)})
        yield b"data: [DONE]\n\n"
    except TapestryError as error:
        yield _line(refusal_of(error).as_json())
    finally:
        answer.leave()


def _line(table: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(table, ensure_ascii=False)}\n\n".encode()


def _whole(text: str, told: Told, head: dict[str, Any]) -> JSONResponse:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": told.reason}
    body = head | {"object": "chat.completion", "choices": [choice], "usage": _usage(told)}
    spoke = told.reason == "content_filter"
    return JSONResponse(
        body | _guarded(told), headers={"x-tapestry-guard": "refused"} if spoke else {}
    )


def _guarded(told: Told) -> dict[str, Any]:
    if told.reason != "content_filter":
        return {}
    return {"tapestry": {"guard": {"topic": told.guard_topic, "reason": told.guard_reason}}}


def _usage(told: Told) -> dict[str, int]:
    return {
        "prompt_tokens": told.prompt_tokens,
        "completion_tokens": told.answer_tokens,
        "total_tokens": told.prompt_tokens + told.answer_tokens,
    }


def refusal_of(error: TapestryError) -> Refused:
    """Return an error of ours as OpenAI words it."""
    if isinstance(error, TooLongError):
        return Refused(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, UnavailableError):
        return Refused(429, str(error), code="rate_limit_exceeded")
    return Refused(400 if isinstance(error, RejectedError) else 500, str(error))


def _refuse_in_openai_words(app: FastAPI) -> None:
    """Answer every error of a request with OpenAI's table."""

    async def refused(_request: Request, error: Exception) -> Response:
        if isinstance(error, TapestryError):
            error = refusal_of(error)
        if isinstance(error, HTTPException):  # no such path, another method
            error = Refused(error.status_code, str(error.detail))
        if not isinstance(error, Refused):
            error = Refused(500, "a bug here; the log has it")
        headers = {"retry-after": "1"} if error.status == 429 else {}
        return JSONResponse(error.as_json(), error.status, headers)

    handler: Callable[[Request, Exception], Awaitable[Response]] = refused
    for kind in (Refused, TapestryError, HTTPException, Exception):
        app.add_exception_handler(kind, handler)
