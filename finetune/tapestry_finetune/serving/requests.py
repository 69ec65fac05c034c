"""What an OpenAI client sends, validated; and the words with which it is refused.

Fields that would change the answer and that are not known here are refused; those that only steer
how a token is chosen (`top_p`, penalties) are taken and not used.
"""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tapestry_finetune.speaking import Asked

MOST_BODY_BYTES = 2**20
CONSENSUS = "consensus"
"""What the untouched base is called."""

_MOST_TOKENS = 512
_UNSUPPORTED = {
    "tools": "calling tools",
    "functions": "calling functions",
    "audio": "audio",
    "modalities": "other modalities than text",
    "logprobs": "log-probabilities",
    "logit_bias": "a bias on tokens",
    "prediction": "predicted output",
}


class Refused(Exception):  # noqa: N818 - it is an answer, as OpenAI words it
    """A request that is answered with an error."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        """With an HTTP status; `param` is the field that is wrong, `code` what programs read."""
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def as_json(self) -> dict[str, Any]:
        """Return the body."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": kinds.get(self.status, fallback),
                "param": self.param,
                "code": self.code,
            }
        }


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class TextPart(_Loose):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Turn(_Loose):
    """A message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def as_message(self) -> dict[str, str]:
        """Return it as our models take it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(_Loose):
    """What a stream says besides the answer."""

    include_usage: bool = False


class ResponseFormat(_Loose):
    """Only text."""

    type: Literal["text"]


class ChatRequest(_Loose):
    """The body of `/v1/chat/completions`."""

    model: str
    messages: list[Turn] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    response_format: ResponseFormat | None = None

    def asked(self) -> Asked:
        """Return the question.

        Raises:
            Refused: It asks nothing.
        """
        messages = [turn.as_message() for turn in self.messages]
        if messages[-1]["role"] != "user":
            last = f"messages.{len(messages) - 1}.role"
            raise Refused(400, "the last message must be the user's", param=last)
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > 4 or not all(stops):
            raise Refused(400, "stop: at most four texts, none of them empty", param="stop")
        limits = (self.max_completion_tokens, self.max_tokens, _MOST_TOKENS)
        return Asked(
            model=None if self.model == CONSENSUS else self.model,
            messages=messages,
            most_tokens=next(limit for limit in limits if limit is not None),
            temperature=1.0 if self.temperature is None else self.temperature,
            seed=(self.seed or 0) % 2**63,
            stop=tuple(stops),
        )


def read_chat_request(body: bytes) -> ChatRequest:
    """Return what a body asks for.

    Raises:
        Refused: It is not JSON, lacks something, or asks for what is not done here.
    """
    try:
        table = json.loads(body)
        json.dumps(table, ensure_ascii=False).encode()  # halves of a character are no text
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(table, dict):
        raise Refused(400, f"the body is a JSON {type(table).__name__}, expected an object")
    for name, what in _UNSUPPORTED.items():
        if table.get(name):
            raise Refused(
                400, f"{name}: {what} is not done here", param=name, code="unsupported_parameter"
            )
    try:
        return ChatRequest.model_validate(table)
    except ValidationError as error:
        first = _plainest(error)
        where = ".".join(str(part)[:80] for part in first["loc"] if part not in _BRANCHES)
        message = first["msg"].removeprefix("Value error, ")
        raise Refused(400, f"{where}: {message}"[:500], param=where) from error


_BRANCHES = {"str", "list[TextPart]", "list[str]"}
"""How pydantic calls the sides of a union, which stand in no request."""


def _plainest(error: ValidationError) -> Any:  # noqa: ANN401 - pydantic's table
    """Return the error that says most: of a union, the one on the side that was meant."""
    return max(error.errors(), key=lambda one: len(one["loc"]))
