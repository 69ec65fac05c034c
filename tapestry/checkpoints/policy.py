"""`policy.toml`: what a federation has agreed upon, as values that anyone can read.

Every version has a number; its digest stands in every plan and manifest made under it, and the
whole text lies in the published checkpoint. A change takes effect when the next round opens.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, ValidationError, model_validator

from tapestry.aggregation.outer import OptimizerName, OuterOptimizer, default_learning_rate
from tapestry.aggregation.rules import MergeName, Rule, RuleName, known_rule
from tapestry.config import Settings, commented_toml, load_settings
from tapestry.data.categories import Category
from tapestry.errors import ConfigError, UntrustedError
from tapestry.identity.envelopes import canonical_json
from tapestry.params.downlink import DownlinkName
from tapestry.storage.atomic import write_atomic

POLICY_FILE = "policy.toml"

NotNegative = Annotated[FiniteFloat, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Url = Annotated[str, Field(pattern=r"^(https?://[!-~]+)?$", max_length=2000)]


def _known_rule(name: object) -> RuleName:
    try:
        return known_rule(str(name))
    except ConfigError as error:
        raise ValueError(str(error)) from error


class AggregationPolicy(Settings):
    """How contributions become an update."""

    codec: Literal["float32", "bfloat16", "int8", "int4", "topk"] = "int8"
    """How pseudo-gradients travel; `topk` (SparseLoCo) goes with optimizer `sgd`, learning_rate 1,
    and more rounds of fewer steps."""
    downlink: DownlinkName = "float32"
    """How checkpoints travel: whole in float32 or bfloat16, or as a quantised step from the one
    before (delta-int8, delta-int4), which newcomers take whole. The exact vector stays here; what
    is published is what everybody starts from."""
    gamma: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.5
    """Weights are proportional to tokens**gamma: 0 equal, 1 proportional."""
    influence_cap: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.0
    """Upper bound of a weight; 0 chooses a quarter, or an equal share below four members."""
    clip: Annotated[FiniteFloat, Field(ge=0)] = 1.5
    """Norms are clipped to this multiple of the median; 0 turns it off."""
    max_element: Annotated[FiniteFloat, Field(gt=0)] = 10.0
    """A contribution with a larger absolute element is refused on arrival."""
    rule: Annotated[RuleName, BeforeValidator(_known_rule)] = "mean"
    """mean, trimmed-mean, median, multi-krum, geometric-median or centred-clipping. Robust is not
    fair: all but the mean give every member one vote, and the trimmed mean, the median and
    multi-Krum drop what a single institution brings, such as a language of its own."""
    byzantine: Annotated[int, Field(ge=0)] = 1
    """Members that may send anything: of trimmed-mean, multi-krum and mixing; less than half."""
    mixing: bool = False
    """Replace each contribution by the mean of those nearest to it before the rule sees it."""
    merge: MergeName = "mean"
    """mean, or rda: average directions and lengths apart, tensor by tensor, so that nearly
    orthogonal contributions do not shrink each other; not with trimmed-mean and median."""
    radius: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    """Of centred-clipping, in median norms."""
    optimizer: OptimizerName = "nesterov"
    """nesterov, sgd, adam, or delayed-nesterov, which goes with [pace] mode asynchronous."""
    learning_rate: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    """Of the outer step; 0 chooses by the number of contributions."""
    momentum: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.9
    """Of both kinds of nesterov, and of adam."""
    beta2: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.99
    """Of adam."""
    epsilon: Annotated[FiniteFloat, Field(gt=0)] = 1e-3
    """Of adam; smaller ones make it unstable."""

    def aggregation_rule(self) -> Rule:
        """Return the rule with its parameters.

        Raises:
            ConfigError: They do not go together.
        """
        return Rule(
            name=self.rule,
            byzantine=self.byzantine,
            mixing=self.mixing,
            merge=self.merge,
            radius=self.radius,
        )

    def outer_optimizer(
        self, members: int, *, period: int = 1, position: int = 1
    ) -> OuterOptimizer:
        """Return the outer optimizer for a round with contributions of so many members.

        Args:
            members: Whose contributions are used until all have had their turn.
            period: Rounds until then; of delayed-nesterov.
            position: Which of them this one is, from 1.
        """
        return OuterOptimizer(
            name=self.optimizer,
            learning_rate=self.learning_rate or default_learning_rate(self.optimizer, members),
            momentum=0.0 if self.optimizer == "sgd" else self.momentum,
            beta2=self.beta2,
            epsilon=self.epsilon,
            period=period,
            position=position,
        )


class InfluencePolicy(Settings):
    """Who may move the consensus, and how far, beside the cap of each member."""

    groups: Mapping[str, tuple[str, ...]] = {}
    """Members that answer to one authority, such as those of a country:
    { france = ["fr-bnf", "fr-inria"] }."""
    group_cap: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.0
    """Upper bound of the weights of a group together; 0: none. Of the mean only."""
    newcomer_rounds: Count = 0
    """A member's first so many contributions are recorded and have no weight."""

    @model_validator(mode="after")
    def _one_group_each(self) -> Self:
        seen: dict[str, str] = {}
        for group, members in self.groups.items():
            for member in members:
                if seen.setdefault(member, group) != group:
                    raise ValueError(f"{member} is in the groups {seen[member]} and {group}")
        return self

    def group_of(self, member_id: str) -> str | None:
        """Return the group of a member, None if it stands alone."""
        for group, members in self.groups.items():
            if member_id in members:
                return group
        return None


class QualityPolicy(Settings):
    """The floor below which a contribution is excluded, with the reason on record."""

    min_tokens: Count = 0
    """Fewest tokens that the inner steps must have seen."""
    max_loss_ratio: NotNegative = 0.0
    """Largest loss at the end of the inner steps over that at their begin; 0: not looked at."""


class PrivacyPolicy(Settings):
    """The least that hides single texts in an update; a node's own policy may ask for more."""

    min_inner_steps: Annotated[int, Field(ge=1)] = 1
    """Fewest inner steps of a contribution; with fewer it is refused."""
    min_inner_tokens: Count = 0
    """Fewest tokens of a contribution; with fewer it is refused."""
    min_quorum: Annotated[int, Field(ge=1)] = 1
    """Fewest contributions that an update may be made of, whatever [rounds] quorum says."""


class NoHarmPolicy(Settings):
    """What happens when a new consensus is worse for a member's own held-out text."""

    max_worse: NotNegative = 0.02
    """Bits per byte by which it may be worse than the checkpoint before."""
    action: Literal["publish", "hold", "revert"] = "publish"
    """publish: at once, with the dissent on record. hold, revert: members measure first; if one
    dissents the candidate waits for the operator, or the consensus stays as it was."""
    evaluation_seconds: Annotated[FiniteFloat, Field(gt=0)] = 600.0
    """With hold and revert: how long to wait for measurements; who is silent agrees."""


class LatenessPolicy(Settings):
    """What becomes of contributions whose round has closed."""

    max_staleness: Annotated[int, Field(ge=0, le=15)] = 0
    """Rounds that may lie between a contribution's base and its use; 0: late ones are refused."""
    discount: NotNegative = 0.25
    """A contribution s rounds late has 1 / (1 + discount s) of its weight."""


class PacePolicy(Settings):
    """How members of different speed go together."""

    mode: Literal["synchronous", "asynchronous"] = "synchronous"
    """asynchronous: a round closes after so many arrivals, whatever round they began in."""
    round_seconds: NotNegative = 0.0
    """Time that each member trains in a round: its inner steps follow from its speed. 0: everybody
    takes [inner] steps."""
    min_steps: Annotated[int, Field(ge=1)] = 10
    """Fewest inner steps that follow from a speed."""
    max_ratio: Annotated[FiniteFloat, Field(ge=1)] = 8.0
    """Most steps of a member over the fewest of another."""
    buffer: Count = 0
    """Of asynchronous: arrivals that close a round before its deadline, never fewer than the
    quorum. 0: half of the active members, at most four."""


class ActivityPolicy(Settings):
    """When a member is waited for no more."""

    inactive_after: Count = 3
    """Rounds missed in a row; one contribution makes it active again. 0: never."""


class DeclaredText(Settings):
    """What a member has said of its text, for everybody to read; nobody verifies it."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """What the member calls it."""
    member_id: str = ""
    """Who has it; empty: open to all, such as the pool."""
    licence: str = ""
    """An SPDX identifier, or in words."""
    category: Category | None = None
    """open, unique-open, controlled, sovereign or private."""
    language: Annotated[str, Field(pattern=r"^([a-z]{2,3}(-[A-Za-z0-9]{1,8})*)?$")] = ""
    """A language tag such as `fra` or `pt-BR`."""
    url: Url = ""
    """Where it is described."""


class PublicationPolicy(Settings):
    """What model card and bill of materials say that no measurement shows; empty: not said."""

    licence: str = ""
    """Of the published checkpoints: an SPDX identifier such as Apache-2.0, or in words."""
    licence_url: Url = ""
    """Where its text is."""
    base_model: Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]+/[A-Za-z0-9._-]+)?$")] = ""
    """The model that the federation adopted, by its name on the Hub: owner/name."""
    texts: tuple[DeclaredText, ...] = ()
    """What members have declared: [{ name = "Archive", member_id = "fr-bnf", language = "fra",
    licence = "CC0-1.0", category = "open" }]."""


class ArchivePolicy(Settings):
    """What the coordinator keeps of what members have sent, so that auditors can replay rounds."""

    keep: Literal["all", "last", "none"] = "last"
    """all; last: of the newest rounds; none: only until the checkpoint is on the disk. Whoever
    reads a contribution may learn something of its member's text."""
    rounds: Annotated[int, Field(ge=1)] = 10
    """Of last: how many."""

    def first_round(self, newest: int) -> int:
        """Return the first round of which something is kept once `newest` is published."""
        if self.keep == "all":
            return 1
        return newest + 1 if self.keep == "none" else max(1, newest - self.rounds + 1)

    def first_state(self, newest: int) -> int:
        """Return the round of the oldest outer state that is kept once `newest` is published.

        It is what the first round began with, and at least what the newest did.
        """
        return max(0, min(self.first_round(newest), newest) - 1)


class LedgerPolicy(Settings):
    """When members take the coordinator's word for what it has recorded."""

    witnesses: Count = 1
    """How many members must have seen the ledger grow up to a checkpoint, and have signed that,
    before anybody trains upon it; a node counts itself. 0: none, the coordinator's word is enough.
    More than are connected at a time keep everybody waiting."""


class FederationPolicy(Settings):
    """The whole file."""

    aggregation: AggregationPolicy = AggregationPolicy()
    influence: InfluencePolicy = InfluencePolicy()
    quality: QualityPolicy = QualityPolicy()
    privacy: PrivacyPolicy = PrivacyPolicy()
    no_harm: NoHarmPolicy = NoHarmPolicy()
    lateness: LatenessPolicy = LatenessPolicy()
    pace: PacePolicy = PacePolicy()
    activity: ActivityPolicy = ActivityPolicy()
    publication: PublicationPolicy = PublicationPolicy()
    archive: ArchivePolicy = ArchivePolicy()
    ledger: LedgerPolicy = LedgerPolicy()

    @model_validator(mode="after")
    def _asynchronous_needs_lateness(self) -> Self:
        if self.pace.mode == "asynchronous" and self.lateness.max_staleness == 0:
            raise ValueError(
                "pace.mode = asynchronous, where contributions are late as a rule, with "
                "lateness.max_staleness = 0, which refuses them: raise lateness.max_staleness to 4"
            )
        return self

    def canonical(self) -> bytes:
        """Return the policy as canonical JSON: what is hashed, recorded and published."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def require_quorum(self, quorum: int) -> None:
        """Refuse a policy that cannot hold with so few contributions.

        Raises:
            ConfigError: With the setting to change.
        """
        if quorum < self.privacy.min_quorum:
            raise ConfigError(
                f"privacy.min_quorum = {self.privacy.min_quorum}, but rounds.quorum = {quorum}: "
                "raise rounds.quorum in coordinator.toml"
            )
        try:
            self.aggregation.aggregation_rule().require(quorum, what="(the quorum)")
        except ConfigError as error:
            raise ConfigError(f"aggregation.{error}") from error
        cap = self.aggregation.influence_cap
        if cap and cap * quorum < 1 - 1e-9:
            fewest = int(-(-1 // cap))
            raise ConfigError(
                f"aggregation.influence_cap = {cap:g} cannot hold with rounds.quorum = {quorum} "
                f"contributions, whose weights sum to 1: raise rounds.quorum to {fewest} or "
                f"influence_cap to {1 / quorum:.4g}"
            )


def load_policy(path: Path) -> FederationPolicy:
    """Read a policy that people write.

    Raises:
        ConfigError: As `load_settings`.
    """
    return load_settings(path, FederationPolicy)


def published_policy(path: Path) -> FederationPolicy:
    """Read the policy in a published folder; without the file, as at genesis, the defaults.

    Raises:
        UntrustedError: It cannot be read, or is none that this version knows.
    """
    try:
        return FederationPolicy.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return FederationPolicy()
    except OSError as error:
        raise UntrustedError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:80] for part in first["loc"])
        raise UntrustedError(
            f"{path}: not a policy that this version reads: {where} {first['msg'][:200]}; restore "
            "the checkpoint from a copy, or use the version that made it"
        ) from error


def save_policy(path: Path, policy: FederationPolicy) -> None:
    """Write a policy with every key and what it means."""
    head = "What this federation has agreed upon; `tapestry coordinator policy --help`."
    write_atomic(path, commented_toml(policy, head=head))
