"""A record of a known shape as a row, or everything that is wrong with it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from tapestry_finetune.rows.faults import named_type, quoted
from tapestry_finetune.rows.kinds import ChatRow, Message, Origin, PairRow, Row, TextRow, ThumbRow
from tapestry_finetune.rows.shapes import Shape, completed, shape_of, thumb_of
from tapestry_finetune.rows.turns import (
    Complaints,
    are_in_order,
    optional_text,
    text_of,
    turns_of,
)

_Fields = Mapping[str, Any]
_Roles = Mapping[str, str]
_Turns = tuple[Message, ...]

_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def to_row(fields: dict[str, Any], shape: Shape, roles: _Roles, origin: Origin) -> Row | Complaints:
    """Return a record as a row, or what is wrong with it."""
    full = completed(fields, shape)
    missing = [field for field in shape.needs if field not in full]
    if missing:
        return [_missing(full, shape, missing)]
    wrong: Complaints = []
    row = _CONVERTERS[shape.name](full, roles, origin, wrong)
    return wrong if row is None or wrong else row


def _missing(fields: dict[str, Any], shape: Shape, missing: list[str]) -> str:
    other = shape_of(fields)
    has = ", ".join(quoted(str(key)) for key in list(fields)[:8])
    what = f"no field {' and no field '.join(map(quoted, missing))} (it has: {has or 'nothing'})"
    if other is not None and other.name != shape.name:
        return (
            f"this row looks like {other.label}, the file like {shape.label}: "
            "put it into a file of its own"
        )
    return f"{what}; the file was read as {shape.label}"


def _text(fields: _Fields, _roles: _Roles, origin: Origin, wrong: Complaints) -> Row | None:
    text = text_of(fields["text"], "text", wrong)
    return None if text is None else TextRow(text, origin)


def _messages(fields: _Fields, roles: _Roles, origin: Origin, wrong: Complaints) -> Row | None:
    return _conversation(fields, "messages", roles, origin, wrong)


def _sharegpt(fields: _Fields, roles: _Roles, origin: Origin, wrong: Complaints) -> Row | None:
    return _conversation(fields, "conversations", roles, origin, wrong)


def _conversation(
    fields: _Fields, field: str, roles: _Roles, origin: Origin, wrong: Complaints
) -> Row | None:
    turns = turns_of(fields[field], field, roles, wrong)
    if turns is None or not are_in_order(turns, field, wrong):
        return None
    if turns[0]["role"] != "system":
        turns = (*_system(fields, wrong), *turns)
    return ChatRow(turns, origin)


def _system(fields: _Fields, wrong: Complaints) -> _Turns:
    content = optional_text(fields, "system", wrong)
    return ({"role": "system", "content": content},) if content else ()


def _alpaca(fields: _Fields, _roles: _Roles, origin: Origin, wrong: Complaints) -> Row | None:
    instruction = text_of(fields["instruction"], "instruction", wrong)
    answer = text_of(fields["output"], "output", wrong)
    given = optional_text(fields, "input", wrong)
    earlier = _history(fields.get("history"), wrong)
    if instruction is None or answer is None:
        return None
    asked = f"{instruction}\n\n{given}" if given else instruction
    return ChatRow((*_system(fields, wrong), *earlier, *_exchange(asked, answer)), origin)


def _exchange(asked: str, answer: str) -> _Turns:
    return {"role": "user", "content": asked}, {"role": "assistant", "content": answer}


def _history(value: object, wrong: Complaints) -> _Turns:
    """Return the exchanges before an Alpaca row's own: pairs of question and answer."""
    if not value:
        return ()
    turns: _Turns = ()
    for number, pair in enumerate(value if isinstance(value, list) else [value]):
        where = f"history[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            wrong.append(f"{where} is {named_type(pair)}; expected a list of question and answer")
            continue
        asked = text_of(pair[0], f"{where}[0]", wrong)
        answer = text_of(pair[1], f"{where}[1]", wrong)
        if asked is not None and answer is not None:
            turns += _exchange(asked, answer)
    return turns


def _completion(fields: _Fields, roles: _Roles, origin: Origin, wrong: Complaints) -> Row | None:
    prompt = _prompt(fields, roles, wrong)
    answer = _answer(fields["completion"], "completion", prompt, roles, wrong)
    if prompt is None or answer is None:
        return None
    return ChatRow((*prompt, {"role": "assistant", "content": answer}), origin)


def _prompt(fields: _Fields, roles: _Roles, wrong: Complaints) -> _Turns | None:
    value = fields["prompt"]
    if isinstance(value, str):
        asked = text_of(value, "prompt", wrong)
        turns: _Turns | None = None if asked is None else ({"role": "user", "content": asked},)
    else:
        turns = turns_of(value, "prompt", roles, wrong)
        if turns is not None and not are_in_order(turns, "prompt", wrong, last="user"):
            return None
    if turns is None or turns[0]["role"] == "system":
        return turns
    return (*_system(fields, wrong), *turns)


def _answer(
    value: object, where: str, prompt: _Turns | None, roles: _Roles, wrong: Complaints
) -> str | None:
    """Return an answer: text, or messages that end with it, perhaps after the prompt's own."""
    if not isinstance(value, list):
        return text_of(value, where, wrong)
    turns = turns_of(value, where, roles, wrong)
    if turns is None:
        return None
    if turns[-1]["role"] != "assistant":
        wrong.append(
            f"{where} ends with a turn of the {turns[-1]['role']}; expected the assistant's answer"
        )
        return None
    before = _without_system(turns[:-1])
    if before and prompt is not None and before != _without_system(prompt):
        wrong.append(f"{where} answers something else than the prompt: give both the same turns")
        return None
    return turns[-1]["content"]


def _without_system(turns: _Turns) -> _Turns:
    return tuple(turn for turn in turns if turn["role"] != "system")


def _pairs(fields: _Fields, roles: _Roles, origin: Origin, wrong: Complaints) -> Row | None:
    if fields.get("prompt") is not None:
        prompt = _prompt(fields, roles, wrong)
        answers = [_answer(fields[name], name, prompt, roles, wrong) for name in _TWO]
    else:
        prompt, answers = _shared_prompt(fields, roles, wrong)
    chosen, rejected = answers
    if prompt is None or chosen is None or rejected is None:
        return None
    if chosen.strip() == rejected.strip():
        wrong.append("chosen and rejected are the same: nothing can be preferred; change one")
        return None
    return PairRow(prompt, chosen, rejected, origin)


_TWO = ("chosen", "rejected")


def _shared_prompt(
    fields: _Fields, roles: _Roles, wrong: Complaints
) -> tuple[_Turns | None, list[str | None]]:
    """Return the prompt that stands in both answers, and the answers without it."""
    both: list[_Turns] = []
    for name in _TWO:
        value = fields[name]
        if isinstance(value, str) and not value.lstrip().startswith("["):
            text = text_of(value, name, wrong)
            turns = None if text is None else _transcript(text)
            if text is not None and turns is None:
                wrong.append(
                    f'no field "prompt", and {name} has no turns before the answer: '
                    "add what was asked as prompt"
                )
        else:
            turns = turns_of(value, name, roles, wrong)
        if turns is not None and are_in_order(turns, name, wrong):
            both.append(turns)
    if len(both) < 2:
        return None, [None, None]
    chosen, rejected = both
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        wrong.append(
            "chosen and rejected differ before the last answer: both must answer the same turns"
        )
        return None, [None, None]
    return chosen[:-1], [chosen[-1]["content"], rejected[-1]["content"]]


def _transcript(text: str) -> _Turns | None:
    """Return the turns of a transcript, `Human:` and `Assistant:` after blank lines; else None."""
    before, *parts = _TRANSCRIPT.split(text)
    if before.strip() or len(parts) < 4:
        return None
    roles = ["user" if name == "Human" else "assistant" for name in parts[::2]]
    contents = [part.strip() for part in parts[1::2]]
    if not all(contents):
        return None
    return tuple(
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=True)
    )


def _thumbs(fields: _Fields, roles: _Roles, origin: Origin, wrong: Complaints) -> Row | None:
    prompt = _prompt(fields, roles, wrong)
    answer = _answer(fields["completion"], "completion", prompt, roles, wrong)
    is_good = thumb_of(fields["label"])
    if is_good is None:
        wrong.append(
            f"label is {quoted(fields['label'])}; expected true or false "
            "(or good and bad, 1 and 0, up and down)"
        )
        return None
    if prompt is None or answer is None:
        return None
    return ThumbRow(prompt, answer, is_good, origin)


_CONVERTERS: dict[str, Callable[[_Fields, _Roles, Origin, Complaints], Row | None]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt": _completion,
    "pairs": _pairs,
    "thumbs": _thumbs,
    "text": _text,
}
