"""The coordinate-wise median (Yin et al., 2018, arXiv 1803.01498).

Withstands any minority of liars, and is the hardest rule on minorities that are no liars: what
fewer than half of the institutions want of a coordinate has no effect on it. In a small run it
raised the loss of the only Armenian node from 1.77 to 2.17.

Shapes: K contributions, n elements.
"""

from tapestry.aggregation.trimmed_mean import trimmed_mean
from tapestry.params.codecs import Float32Array


def median(rows: list[Float32Array], *, out: Float32Array, spare: Float32Array) -> None:
    """Put into `out` each coordinate's middle value, or the mean of its two middle values.

    It is the trimmed mean that drops the most; arguments as there.
    """
    trimmed_mean(rows, trim=most_trimmed(len(rows)), out=out, spare=spare)


def most_trimmed(contributions: int) -> int:
    """Return how many values can be dropped at either end so that one or two are left."""
    return (contributions - 1) // 2
