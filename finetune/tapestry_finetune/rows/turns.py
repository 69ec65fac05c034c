"""Turns of a conversation out of what a row holds, with everything that is wrong with them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tapestry.config import nearest
from tapestry_finetune.rows.faults import named_type, quoted
from tapestry_finetune.rows.kinds import ROLES, Message

Complaints = list[str]
"""What is wrong with a row; added to by every function that is given it."""

_USUAL = {"human": "user", "gpt": "assistant"}
"""ShareGPT's own names, taken where the role is in `from`."""
_MEANT = {
    "assistant": ("bot", "gpt", "chatgpt", "model", "ai", "agent", "llm", "answer", "response"),
    "user": ("human", "person", "customer", "prompter", "question", "me", "student"),
    "system": ("developer", "instruction", "context"),
    "tool": ("function", "observation", "function_response", "ipython"),
}
_NOT_TRAINED = ("tool_calls", "function_call")


def text_of(value: object, where: str, wrong: Complaints) -> str | None:
    """Return a field's text, or None after a complaint."""
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        wrong.append(f"{where} is {named_type(value)}; expected text")
        return None
    if not value.strip():
        wrong.append(f"{where} is empty: write it, or remove the row")
        return None
    if (at := value.find("\0")) >= 0:
        wrong.append(f"{where} has a NUL after letter {at:,}: remove it (binary data?)")
        return None
    try:
        value.encode()
    except UnicodeEncodeError as error:
        wrong.append(
            f"{where} has half a surrogate pair after letter {error.start:,}: "
            "write the letter itself, in UTF-8"
        )
        return None
    return value


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part["text"], str)


def optional_text(
    fields: Mapping[str, Any], field: str, wrong: Complaints, *, default: str = ""
) -> str:
    """Return a field's text; `default` where it is missing or empty."""
    value = fields.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        return default
    return text_of(value, field, wrong) or default


def turns_of(
    value: object, where: str, roles: Mapping[str, str], wrong: Complaints
) -> tuple[Message, ...] | None:
    """Return the turns in a list of messages, or None after complaints; their order is not judged.

    Args:
        value: What the row holds; in a table it may be JSON in a cell.
        where: The field, for complaints.
        roles: Names of roles that the file has for ours.
        wrong: Complaints.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            wrong.append(f"{where} is text that begins like a JSON list and is none")
            return None
    if not isinstance(value, list):
        wrong.append(f"{where} is {named_type(value)}; expected a list of messages")
        return None
    if not value:
        wrong.append(f"{where} is an empty list: add the turns, or remove the row")
        return None
    turns = [_turn(one, f"{where}[{n}]", roles, wrong) for n, one in enumerate(value)]
    return None if None in turns else tuple(turn for turn in turns if turn is not None)


def _turn(value: object, where: str, roles: Mapping[str, str], wrong: Complaints) -> Message | None:
    if not isinstance(value, dict):
        wrong.append(f"{where} is {named_type(value)}; expected an object with role and content")
        return None
    is_sharegpt = "from" in value and "role" not in value
    role_key, content_key = ("from", "value") if is_sharegpt else ("role", "content")
    if any(value.get(key) for key in _NOT_TRAINED):
        wrong.append(f"{where} calls a tool, which is not trained: remove the row, or the call")
        return None
    missing = [key for key in (role_key, content_key) if key not in value]
    if missing:
        has = ", ".join(map(quoted, sorted(map(str, value))[:6]))
        wrong.append(f"{where} has no {' and no '.join(missing)} (it has: {has or 'nothing'})")
        return None
    usual = _USUAL if is_sharegpt else {}
    role = _role(value[role_key], f"{where}.{role_key}", usual | dict(roles), wrong)
    content = text_of(value[content_key], f"{where}.{content_key}", wrong)
    return None if role is None or content is None else {"role": role, "content": content}


def _role(value: object, where: str, roles: Mapping[str, str], wrong: Complaints) -> str | None:
    if not isinstance(value, str):
        wrong.append(f"{where} is {named_type(value)}; allowed: {', '.join(ROLES)}")
        return None
    role = roles.get(value, value)
    if role in ROLES:
        return role
    key = value if value.isascii() and value.replace("_", "").isalnum() else quoted(value)
    meant = meant_role(value)
    wrong.append(
        f"{where} is {quoted(value)}; allowed: {', '.join(ROLES)}. "
        f'Rename it, or map it: roles = {{ {key} = "{meant}" }} '
        f"(as an option: --role {key}={meant})"
    )
    return None


def meant_role(name: str) -> str:
    """Return the role that somebody means by `name`, at a guess."""
    name = name.strip().lower()
    for role, names in _MEANT.items():
        if name in names:
            return role
    return nearest(name, ROLES)


def are_in_order(
    turns: Sequence[Message], where: str, wrong: Complaints, *, last: str = "assistant"
) -> bool:
    """Whether turns are a conversation that ends with a turn of `last`; else with a complaint."""
    if last == "assistant" and all(turn["role"] != "assistant" for turn in turns):
        wrong.append(f"{where} has no turn of the assistant: nothing can be learnt; add its answer")
        return False
    complaint = next(_disorders(turns, where), "")
    if not complaint and turns[-1]["role"] != last:
        complaint = (
            f"{where} ends with a turn of the {turns[-1]['role']}; expected one of the {last}: "
            f"{'add the answer' if last == 'assistant' else 'leave the answer out'}, "
            "or remove that turn"
        )
    if complaint:
        wrong.append(complaint)
    return not complaint


_BEFORE = {
    "system": ("",),
    "user": ("", "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""What each role's turn may follow; "" is the beginning."""


def _disorders(turns: Sequence[Message], where: str) -> Iterator[str]:
    before = ""
    for number, turn in enumerate(turns):
        role = turn["role"]
        if before not in _BEFORE[role]:
            if role == "system":
                advice = "the system prompt comes first, and once"
            elif role == before:
                advice = "join the two into one turn"
            else:
                advice = "a user begins, and user and assistant take turns"
            came = f"after {quoted(before)}" if before else "at the beginning"
            yield f"{where}[{number}].role is {quoted(role)} {came}: {advice}"
        before = role
