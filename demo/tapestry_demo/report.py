"""The demonstration's results: a table, a plot, and the section of the model card."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from tapestry_demo.federation import Institution, Scale

ALONE = "alone"
CONSENSUS = "consensus"
FINISHED = "consensus, local finish"
CENTRAL = "central"

KINDS = (ALONE, CONSENSUS, FINISHED, CENTRAL)

_COLOURS = {ALONE: "#b0b0b0", CONSENSUS: "#2a6fbb", FINISHED: "#7db7e8", CENTRAL: "#444444"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Held-out bits per byte of every model on every institution's text."""

    institutions: Sequence[Institution]
    scale: Scale
    tokens_per_step: int
    alone: Mapping[str, Mapping[str, float]]
    """By the member that trained it, then by the member whose text it is measured on."""
    finished: Mapping[str, Mapping[str, float]]
    """Likewise."""
    consensus: Mapping[str, float]
    central: Mapping[str, float]
    history: Mapping[str, Mapping[int, float]]
    """By member, then by round."""

    def own(self, kind: str, member_id: str) -> float:
        """Return what `kind` scores on a member's own text."""
        return self._scores(kind, member_id)[member_id]

    def everywhere(self, kind: str, member_id: str) -> float:
        """Return the mean over all texts of the model that `kind` gives a member."""
        scores = self._scores(kind, member_id)
        return sum(scores.values()) / len(scores)

    def _scores(self, kind: str, member_id: str) -> Mapping[str, float]:
        if kind == ALONE:
            return self.alone[member_id]
        if kind == FINISHED:
            return self.finished[member_id]
        return self.consensus if kind == CONSENSUS else self.central

    def mean(self, kind: str, *, own: bool) -> float:
        """Return the mean over the institutions."""
        one = self.own if own else self.everywhere
        values = [one(kind, institution.member_id) for institution in self.institutions]
        return sum(values) / len(values)


def rows(results: Results) -> list[list[str]]:
    """Return the table's rows: kind, each own language, mean own, mean of all languages."""
    table = []
    for kind in KINDS:
        own = [f"{results.own(kind, i.member_id):.3f}" for i in results.institutions]
        means = [f"{results.mean(kind, own=True):.3f}", f"{results.mean(kind, own=False):.3f}"]
        table.append([kind, *own, *means])
    return table


def header(results: Results) -> list[str]:
    """Return the table's column names."""
    return ["model", *(i.language for i in results.institutions), "own", "all languages"]


def rich_table(results: Results) -> Table:
    """Return the table for a terminal."""
    table = Table(title="held-out bits per byte (lower is better)", title_justify="left")
    for index, name in enumerate(header(results)):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows(results):
        table.add_row(*row, style="bold" if row[0] == CONSENSUS else None)
    return table


def explanation(results: Results) -> str:
    """Return what the table's rows are, in words."""
    scale, count = results.scale, len(results.institutions)
    tokens = scale.steps * results.tokens_per_step
    return (
        f"alone: each institution's own model, {scale.steps} steps on its own text only. "
        f"consensus: the federation's checkpoint after {scale.rounds} rounds of "
        f"{scale.inner_steps} steps. local finish: {scale.inner_steps} more steps on one's own "
        f"text. central: one model on all texts, {scale.steps} steps with the batches of all "
        f"{count} institutions, the same {count * tokens:,} tokens. Columns with a language: the "
        "model that this institution would use, on that language's held-out text; own: their "
        "mean; all languages: the mean over every language of every such model. One seed, "
        "learning rates untuned."
    )


def markdown(results: Results, plot_name: str) -> str:
    """Return the section for the model card."""
    head = header(results)
    lines = ["## Comparison", "", "Held-out bits per byte (lower is better):", ""]
    lines += ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(results)]
    lines += ["", explanation(results), "", f"![Comparison]({plot_name})", ""]
    return "\n".join(lines)


def plot(results: Results) -> bytes:
    """Return a PNG: the consensus by round, and the comparison on own and on all languages."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    with mpl.rc_context({"font.size": 10}):
        left, middle, right = figure.subplots(1, 3, width_ratios=[1.2, 1.6, 0.8])
        for institution in results.institutions:
            points = sorted(results.history[institution.member_id].items())
            left.plot(*zip(*points, strict=True), marker=".", label=institution.language)
        left.set(title="consensus by round", xlabel="round", ylabel="held-out bits per byte")
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.grid(alpha=0.3)
        left.legend(frameon=False)
        width = 0.8 / len(KINDS)
        for index, kind in enumerate(KINDS):
            places = [n + (index - 1.5) * width for n in range(len(results.institutions))]
            heights = [results.own(kind, i.member_id) for i in results.institutions]
            middle.bar(places, heights, width, label=kind, color=_COLOURS[kind])
            value = results.mean(kind, own=False)
            bar = right.bar([index], [value], 0.8, color=_COLOURS[kind])
            right.bar_label(bar, fmt="%.2f")
        languages = [i.language for i in results.institutions]
        middle.set_xticks(range(len(languages)), languages)
        middle.set(title="on one's own language")
        middle.margins(y=0.2)
        middle.legend(frameon=False, fontsize=8, loc="upper center", ncols=len(KINDS))
        names = [kind.replace(", ", ",\n") for kind in KINDS]
        right.set_xticks(range(len(KINDS)), names, rotation=45, ha="right", rotation_mode="anchor")
        right.set(title="mean over all languages")
        right.margins(y=0.12)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
