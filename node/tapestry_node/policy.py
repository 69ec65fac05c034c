"""`node.toml`: what this institution's node does, and what it lets out.

The node's own policy wins over the federation's plan: a plan that it refuses is declined with the
reason, and nothing is computed.
"""

import hashlib
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from tapestry.checkpoints.statements import RoundPlan
from tapestry.config import Settings
from tapestry.data.categories import Category
from tapestry.errors import RejectedError
from tapestry.identity.envelopes import canonical_json

SETTINGS_FILE = "node.toml"


class NodeTable(Settings):
    """How this machine trains."""

    language: str = ""
    """What the held-out results are called: a language tag such as `fra`, or a few words."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 chooses by the size of the model."""
    processes: Annotated[int, Field(ge=1, le=1024)] = 1
    """How many processes train the model together; with GPUs, one for each. `--nproc` too."""
    launch: Literal["own", "external"] = "own"
    """Who starts the trainer's processes; `external`: a launcher (torchrun, srun) on one or several
    hosts, as `tapestry node trainer FOLDER`, `processes` of them in all."""
    sharding: Literal["auto", "on", "off"] = "auto"
    """Whether each of several processes keeps a part of the model only (FSDP); `auto`: from half a
    billion parameters on."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """What is multiplied in; `auto`: bf16 on GPUs that have it, fp16 on others, fp32 on CPUs."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: longer sequences fit, a third slower."""
    compile: bool = False
    """Whether layers are compiled (torch.compile): often faster on GPUs; needs a C++ compiler."""
    save_every_minutes: Annotated[FiniteFloat, Field(ge=0)] = 10.0
    """How often a round that is being trained is kept on the disk; 0: never."""
    keep_last_contribution: bool = False
    """Whether the last contribution stays here after it was sent, as large as the model in its
    codec, so that `tapestry node audit --leakage` looks at the very bytes that left."""
    held_out_fraction: Annotated[FiniteFloat, Field(gt=0, lt=0.5)] = 0.05
    """Share of the documents that is never trained on, to measure with."""
    held_out_bytes: Annotated[int, Field(ge=1024)] = 262_144
    """At most this much text is measured with."""


class Policy(Settings):
    """What this node refuses, whatever the federation plans."""

    objectives: tuple[str, ...] = ("causal-lm",)
    """What may be trained here."""
    codecs: tuple[str, ...] = ("float32", "bfloat16", "int8", "int4", "topk")
    """How pseudo-gradients may be coded."""
    categories: tuple[Category, ...] = tuple(Category)
    """Which sources of `corpus.toml` may be trained on; others are left out."""
    min_quorum: Annotated[int, Field(ge=1)] = 2
    """A round that would publish an update made of fewer contributions is refused."""
    min_inner_steps: Annotated[int, Field(ge=1)] = 1
    """Fewer steps show more of single texts: raise it for sensitive data."""
    max_inner_steps: Annotated[int, Field(ge=1)] = 10_000
    """A bound on what one round may cost."""
    max_tokens: Annotated[int, Field(ge=1)] = 10_000_000_000
    """The same in tokens."""
    max_shared_fraction: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.5
    """Largest share of a batch that may come from the federation's open pool."""
    max_pool_bytes: Annotated[int, Field(ge=0)] = 50_000_000_000
    """Largest pool that is downloaded."""
    min_tokens: Annotated[int, Field(ge=1)] = 1
    """A contribution made of fewer tokens does not leave: a million hide single texts better."""
    min_documents: Annotated[int, Field(ge=1)] = 1
    """The same in different documents that were trained on, whole or in part."""
    max_norm: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    """A pseudo-gradient that is longer does not leave; 0: any length."""
    metrics: tuple[Literal["loss_first", "loss_last", "seconds"], ...] = (
        "loss_first",
        "loss_last",
        "seconds",
    )
    """What is told beside a contribution, rounded to three digits."""
    statistics: tuple[str, ...] = ()
    """Names of an objective's statistics of the text that may leave; `causal-lm` has none."""
    approval: Literal["automatic", "manual"] = "automatic"
    """`manual`: every contribution waits for `tapestry node approve`."""
    late_contributions: bool = True
    """Whether training goes on, and its result is sent, when the round has closed and the plan says
    that a later one uses it."""
    report_progress: bool = True
    """Whether step, loss and speed are told to the coordinator while training."""
    report_evaluation: bool = True
    """Whether held-out bits per byte are told to the coordinator."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        for least, most in (("min_inner_steps", "max_inner_steps"), ("min_tokens", "max_tokens")):
            low, high = getattr(self, least), getattr(self, most)
            if low > high:
                raise ValueError(
                    f"{least} = {low:,} and {most} = {high:,} contradict each other: no plan can "
                    "satisfy both"
                )
        for name in ("objectives", "codecs"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: no plan could be accepted")
        return self

    def digest(self) -> str:
        """Return the hex SHA-256 of these rules, by which the egress ledger names them."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()

    def lateness(self, plan: RoundPlan) -> int:
        """Return by how many rounds an answer to `plan` may be late."""
        return plan.max_staleness if self.late_contributions else 0

    def asked(self, plan: RoundPlan, member_id: str) -> RoundPlan:
        """Return `plan` with the inner steps that this member takes.

        Where they follow from its speed there are fewer than that if this policy asks for fewer:
        the round then takes what it gets. Steps that all members take are for `require` to refuse.
        """
        own = plan.of(member_id)
        if member_id not in plan.steps_by_member:
            return own
        step_tokens = own.inner.tokens // own.inner.steps
        most = min(self.max_inner_steps, self.max_tokens // step_tokens)
        steps = max(1, min(own.inner.steps, most))
        return own.model_copy(update={"inner": own.inner.model_copy(update={"steps": steps})})

    def require(self, plan: RoundPlan) -> None:
        """Refuse a plan.

        Raises:
            RejectedError: The plan is outside this policy; the message names the setting.
        """
        checks: list[tuple[bool, str]] = [
            (plan.objective in self.objectives, f"objectives: {plan.objective!r} is not listed"),
            (plan.codec in self.codecs, f"codecs: {plan.codec!r} is not listed"),
            (plan.quorum >= self.min_quorum, _limit("min_quorum", plan.quorum, self.min_quorum)),
            (
                plan.inner.steps >= self.min_inner_steps,
                _limit("min_inner_steps", plan.inner.steps, self.min_inner_steps),
            ),
            (
                plan.inner.steps <= self.max_inner_steps,
                _limit("max_inner_steps", plan.inner.steps, self.max_inner_steps),
            ),
            (
                plan.inner.tokens <= self.max_tokens,
                _limit("max_tokens", plan.inner.tokens, self.max_tokens),
            ),
            (
                plan.inner.tokens >= self.min_tokens,
                _limit("min_tokens", plan.inner.tokens, self.min_tokens),
            ),
        ]
        if plan.shared is not None:
            fraction, size = plan.shared.fraction, plan.shared.pool_bytes
            checks += [
                (
                    fraction <= self.max_shared_fraction,
                    _limit("max_shared_fraction", fraction, self.max_shared_fraction),
                ),
                (
                    size <= self.max_pool_bytes,
                    _limit("max_pool_bytes", size, self.max_pool_bytes),
                ),
            ]
        for holds, message in checks:
            if not holds:
                raise RejectedError(f"this node's policy refuses round {plan.round}: {message}")


class NodeSettings(Settings):
    """The whole file."""

    node: NodeTable = NodeTable()
    policy: Policy = Policy()

    def with_processes(self, processes: int | None) -> "NodeSettings":
        """Return settings with another number of processes, if one is given."""
        if processes is None:
            return self
        node = self.node.model_copy(update={"processes": processes})
        return self.model_copy(update={"node": node})


def _limit(name: str, planned: float, limit: float) -> str:
    return f"{name} = {limit:,}, the plan has {planned:,}"
