"""Where a model stands by what it says, and by what it does, on the same axes.

By survey: option probabilities, averaged over all orders of the options and over paraphrases of the
question. By behaviour: which of two answers to a request is likelier, token for token. The
difference of the two shifts is the behaviour gap: words that training changed and deeds that it did
not. `survey.toml` and `behaviour.toml` say what the numbers are not.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import numpy as np
import torch
from pydantic import Field, model_validator

from tapestry.config import Settings, load_settings
from tapestry_finetune.dialogue import encode, opened
from tapestry_finetune.evaluation.series import Floats, resampled
from tapestry_finetune.scoring import answer_likelihoods, continuation_likelihoods
from tapestry_finetune.voices import Voice

_PROMPTS_AT_ONCE = 16

OnProgress = Callable[[str, int, int], None]
Position = Annotated[float, Field(ge=-1, le=1)]


class Axis(Settings):
    """A direction in which people differ."""

    id: str
    low: str
    """What -1 means."""
    high: str
    """What 1 means."""


class SurveyItem(Settings):
    """A question with options, asked in several ways."""

    id: str
    axis: str
    asks: list[str] = Field(min_length=3)
    options: list[str] = Field(min_length=2, max_length=4)
    positions: list[Position]
    shares: list[float] | None = None
    """How your own people answered, option by option; the model is then compared with them."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name in ("positions", "shares"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.options):
                raise ValueError(
                    f"item {self.id!r}: {len(values)} {name} for {len(self.options)} options"
                )
        if self.shares is not None and (min(self.shares) < 0 or sum(self.shares) <= 0):
            raise ValueError(f"item {self.id!r}: shares must be 0 or more, and not all 0")
        return self


class _OnAxes(Settings):
    name: str
    axis: list[Axis] = Field(min_length=1)

    def _require_axes(self, asked: Sequence[Any]) -> None:
        known = {axis.id for axis in self.axis}
        for one in asked:
            if one.axis not in known:
                raise ValueError(
                    f"{one.id!r}: axis {one.axis!r} is none of {', '.join(sorted(known))}"
                )


class Survey(_OnAxes):
    """Questions, their axes, and how they are put to a model."""

    frame: str
    """`{ask}` and `{options}` are filled in."""
    letters: list[str] = Field(min_length=4)
    item: list[SurveyItem] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._require_axes(self.item)
        if "{ask}" not in self.frame or "{options}" not in self.frame:
            raise ValueError("frame: must hold {ask} and {options}")
        return self


class Scenario(Settings):
    """A request and two answers to it that stand at the ends of an axis."""

    id: str
    axis: str
    prompt: str
    low: str
    high: str


class Behaviour(_OnAxes):
    """Situations on the axes of a survey."""

    scenario: list[Scenario] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._require_axes(self.scenario)
        return self


AskedT = TypeVar("AskedT", Survey, Behaviour)


def load_asked(path: Path | bool, model: type[AskedT], name: str) -> AskedT | None:  # noqa: FBT001
    """Return a survey or behaviour file of one's own, ours (true), or none (false)."""
    if path is False:
        return None
    if path is True:
        own = files("tapestry_finetune.evaluation").joinpath(f"{name}.toml")
        return load_settings(Path(str(own)), model)
    return load_settings(path, model)


@dataclass(frozen=True)
class Standing:
    """Positions of one model, question by question; P wordings of each."""

    axes: dict[str, str]
    """The axis of each question."""
    positions: dict[str, Floats]
    """Of each question, [P], from -1 to 1."""
    options: dict[str, list[float]]
    """Probabilities of a survey's options, averaged over orders and wordings."""
    similarity: dict[str, float]
    """1 - Jensen-Shannon distance to one's own people's answers, where those are given."""

    def axis(self, name: str) -> float:
        """Return the mean of the questions of an axis."""
        return float(np.mean([self.positions[one].mean() for one in self._of(name)]))

    def draws(self, name: str, *, resamples: int, seed: int) -> Floats:
        """Return the axis over resampled questions, [R]."""
        means = np.array([self.positions[one].mean() for one in self._of(name)])
        (sums_R,) = resampled([means], resamples=resamples, seed=seed)
        return sums_R / len(means)

    def _of(self, name: str) -> list[str]:
        return [one for one, axis in self.axes.items() if axis == name]


def stand_by_survey(voice: Voice, survey: Survey, *, on_progress: OnProgress) -> Standing:
    """Ask every question in every wording with every order of its options."""
    positions: dict[str, Floats] = {}
    options: dict[str, list[float]] = {}
    similarity: dict[str, float] = {}
    for number, item in enumerate(survey.item, 1):
        shares_PO = np.array([_shares(voice, survey, item, ask) for ask in item.asks])
        positions[item.id] = shares_PO @ np.array(item.positions)
        mean = shares_PO.mean(axis=0)
        options[item.id] = [float(one) for one in mean]
        if item.shares is not None:
            people = np.array(item.shares, np.float64)
            similarity[item.id] = 1 - jensen_shannon(mean, people / people.sum())
        on_progress(survey.name, number, len(survey.item))
    return Standing({one.id: one.axis for one in survey.item}, positions, options, similarity)


def _shares(voice: Voice, survey: Survey, item: SurveyItem, ask: str) -> Floats:
    """Return the probability of each option, averaged over all orders."""
    orders = list(itertools.permutations(range(len(item.options))))
    prompts = []
    for order in orders:
        listed = "\n".join(
            f"{letter}) {item.options[option]}"
            for letter, option in zip(survey.letters, order, strict=False)
        )
        text = survey.frame.replace("{options}", listed).replace("{ask}", ask)
        asked = opened(voice, [{"role": "user", "content": text}])
        prompts.append(encode(voice.tokenizer, asked, opens_answer=True))
    letters = [
        voice.tokenizer.encode(one, add_special_tokens=False)
        for one in survey.letters[: len(item.options)]
    ]
    return shares_of(_nats(voice, prompts, letters), orders)


def _nats(voice: Voice, prompts: list[list[int]], letters: list[list[int]]) -> Floats:
    """Return the log-likelihood of each letter after each prompt."""
    if all(len(letter) == 1 for letter in letters):
        columns = [letter[0] for letter in letters]
        return next_token_nats(voice, prompts)[:, columns]
    pairs = [(prompt, letter) for prompt in prompts for letter in letters]
    return np.array(continuation_likelihoods(voice, pairs)).reshape(len(prompts), -1)


def next_token_nats(voice: Voice, prompts: Sequence[list[int]]) -> Floats:
    """Return the log-likelihood of every token after each prompt, [prompts, vocabulary]."""
    device = next(voice.module.parameters()).device
    found: list[Floats] = []
    for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
        some = [one[-voice.context_tokens :] for one in prompts[start : start + _PROMPTS_AT_ONCE]]
        longest = max(map(len, some))
        ids_BT = torch.tensor([one + [0] * (longest - len(one)) for one in some], device=device)
        seen_BT = torch.tensor(
            [[1] * len(one) + [0] * (longest - len(one)) for one in some], device=device
        )
        kept = longest - min(map(len, some)) + 1
        with torch.inference_mode():
            logits_BTV = voice.module(
                input_ids=ids_BT, attention_mask=seen_BT, use_cache=False, logits_to_keep=kept
            ).logits
        places_B = [len(one) - 1 - longest + kept for one in some]
        last_BV = logits_BTV[range(len(some)), places_B].float().log_softmax(-1)
        found.append(last_BV.double().cpu().numpy())
    return np.concatenate(found)


def shares_of(nats: Floats, orders: Sequence[Sequence[int]]) -> Floats:
    """Return the probability of each option over all orders in which they were listed.

    Args:
        nats: Log-likelihood of each place, a row an order; only differences in a row count.
        orders: The option in each place.
    """
    odds = np.exp(nats - nats.max(axis=1, keepdims=True))
    by_place = odds / odds.sum(axis=1, keepdims=True)
    by_option = np.zeros_like(by_place)
    np.put_along_axis(by_option, np.array(orders), by_place, axis=1)
    shares: Floats = by_option.mean(axis=0)
    return shares


def stand_by_behaviour(voice: Voice, behaviour: Behaviour, *, on_progress: OnProgress) -> Standing:
    """Compare the two answers to each request."""
    asked = [
        ([{"role": "user", "content": one.prompt}], answer)
        for one in behaviour.scenario
        for answer in (one.low, one.high)
    ]
    means = [one.nats / one.tokens for one in answer_likelihoods(voice, asked)]
    positions = {
        one.id: np.array([math.tanh((means[2 * at + 1] - means[2 * at]) / 2)])
        for at, one in enumerate(behaviour.scenario)
    }
    on_progress(behaviour.name, len(positions), len(positions))
    return Standing({one.id: one.axis for one in behaviour.scenario}, positions, {}, {})


def jensen_shannon(one: Floats, other: Floats) -> float:
    """Return the Jensen-Shannon distance of two distributions, in [0, 1]."""
    middle = (one + other) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.where(p > 0, p * np.log2(p / middle), 0.0).sum() for p in (one, other)]
    return math.sqrt(max(0.0, float(sum(parts)) / 2))
