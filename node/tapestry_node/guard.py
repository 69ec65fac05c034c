"""What may leave: every contribution is looked at here, in the process that holds the key.

The trainer's process has written the encoded pseudo-gradient and says how it came to be. The guard
reads every fragment, refuses what the plan, the codec or this institution's policy does not allow,
and signs what it has seen itself. Where the policy asks for a person, nothing is sent before
`tapestry node approve`.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapestry.checkpoints.statements import Contribution, RoundPlan
from tapestry.errors import RejectedError, UnavailableError
from tapestry.params.codecs import codec_named
from tapestry.params.deltas import norm, squared_norm
from tapestry.params.fragments import fragments_root
from tapestry.params.layout import ParameterLayout
from tapestry_node.corpus_history import record_contribution
from tapestry_node.home import NodeHome
from tapestry_node.messages import Made
from tapestry_node.policy import Policy
from tapestry_node.spool import FragmentWriter, Spooled, spooling

_DIGITS = 3
"""Significant digits of a metric that leaves."""

Write = Callable[[Path, Callable[[int], None]], Made]
"""Writes encoded fragments into a file, and calls back after each with its index."""


def sealed(
    home: NodeHome,
    plan: RoundPlan,
    write: Write,
    *,
    layout: ParameterLayout,
    policy: Policy,
    member_id: str,
    key: Ed25519PrivateKey,
    seconds: float,
) -> Spooled:
    """Take a contribution from whoever trained it, look at it, sign it and spool it.

    Fragments are looked at while the next ones are being encoded.

    Args:
        home: Of the node.
        plan: That the contribution answers, and that the policy allows.
        write: Has the fragments written.
        layout: Of the vector.
        policy: The institution's.
        member_id: Of this node.
        key: That it signs with.
        seconds: What training took.

    Raises:
        RejectedError: It may not leave; nothing of it is kept. The message says why.
    """
    folder = home.spool(plan.round)
    try:
        with spooling(folder, home.spare_spools) as fragments:
            look = _Look(fragments, plan, layout)
            made = write(fragments.path, look)
            look.require_all()
            size = norm(look.squared_norms)
            require_allowed(made, plan, policy, norm=size)
    except (RejectedError, UnavailableError):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    digests = fragments.digests
    contribution = Contribution(
        genesis=plan.genesis,
        round=plan.round,
        base=plan.base,
        member_id=member_id,
        codec=plan.codec,
        fragments=len(digests),
        root=fragments_root(digests).hex(),
        tokens=made.tokens,
        steps=made.steps,
        norm=size,
        metrics={
            name: rounded(value)
            for name, value in (
                ("loss_first", made.loss_first),
                ("loss_last", made.loss_last),
                ("seconds", seconds),
            )
            if name in policy.metrics
        },
        statistics=dict(made.statistics),
    )
    if made.use is not None:
        record_contribution(
            home.corpus, round_number=plan.round, root=contribution.root, use=made.use
        )
    return Spooled.completed(
        folder, contribution, contribution.signed(key), fragments=fragments, layout=layout
    )


class _Look:
    """Called after each fragment: structure, values, size."""

    def __init__(self, fragments: FragmentWriter, plan: RoundPlan, layout: ParameterLayout) -> None:
        self._fragments = fragments
        self._layout = layout
        self._codec = codec_named(plan.codec)
        self._round = plan.round
        first, last = layout.bounds(0)
        self._values = np.empty(last - first, np.float32)
        self.squared_norms: list[float] = []

    def __call__(self, index: int) -> None:
        """Look at the next fragment.

        Raises:
            RejectedError: It is not what the plan's codec writes, or holds NaN or infinity.
        """
        if index != len(self.squared_norms) or index >= self._layout.fragments:
            raise RejectedError(
                f"round {self._round}: the trainer has written fragment {index} where "
                f"{len(self.squared_norms)} of {self._layout.fragments} belongs; not sent"
            )
        start, stop = self._layout.bounds(index)
        data = self._fragments.take(self._codec.encoded_bytes(stop - start))
        values = self._values[: stop - start]
        self._codec.decode_into(data, values)
        self.squared_norms.append(squared_norm(values))

    def require_all(self) -> None:
        """Refuse a vector that is not whole."""
        count = len(self.squared_norms)
        if count != self._layout.fragments:
            raise RejectedError(
                f"round {self._round}: the trainer has written {count} of "
                f"{self._layout.fragments} fragments; not sent"
            )


def require_allowed(made: Made, plan: RoundPlan, policy: Policy, *, norm: float) -> None:
    """Refuse a contribution that this institution does not let out.

    Raises:
        RejectedError: The message names the setting.
    """
    foreign = sorted(set(made.statistics) - set(policy.statistics))
    most = plan.inner.tokens
    figures = [made.loss_first, made.loss_last, *(v for s in made.statistics.values() for v in s)]
    checks: list[tuple[bool, str]] = [
        (math.isfinite(norm), f"the update's norm is {norm:g}: training diverged"),
        (all(map(math.isfinite, figures)), "a loss or statistic is not finite: training diverged"),
        (made.tokens <= most, f"it claims {made.tokens:,} tokens, the plan has {most:,}"),
        (
            made.steps >= policy.min_inner_steps,
            f"min_inner_steps = {policy.min_inner_steps:,}, it has {made.steps:,}",
        ),
        (
            made.tokens >= policy.min_tokens,
            f"min_tokens = {policy.min_tokens:,}, it has {made.tokens:,}",
        ),
        (
            made.documents >= policy.min_documents,
            f"min_documents = {policy.min_documents:,}, it was made of {made.documents:,}",
        ),
        (
            policy.max_norm == 0 or norm <= policy.max_norm,
            f"max_norm = {policy.max_norm:g}, the update has {norm:g}",
        ),
        (not foreign, f"statistics: {', '.join(foreign)} not listed"),
    ]
    for holds, message in checks:
        if not holds:
            raise RejectedError(
                f"this node's guard does not let the contribution to round {plan.round} out: "
                f"{message}"
            )


def rounded(value: float) -> float:
    """Return a metric with as many digits as may leave."""
    return float(f"{value:.{_DIGITS}g}")
