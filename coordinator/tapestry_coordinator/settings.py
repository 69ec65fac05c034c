"""`coordinator.toml`: what the coordinator's operator decides."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, model_validator

from tapestry.aggregation.outer import OptimizerName, OuterOptimizer, default_learning_rate
from tapestry.aggregation.rules import MergeName, Rule, RuleName, known_rule
from tapestry.checkpoints.statements import InnerSettings
from tapestry.config import Settings, commented_toml, load_settings
from tapestry.errors import ConfigError
from tapestry.params.downlink import DownlinkName
from tapestry.storage.atomic import write_atomic
from tapestry_coordinator.rounds import RoundRules
from tapestry_coordinator.web.settings import PageSettings

SETTINGS_FILE = "coordinator.toml"

Seconds = Annotated[FiniteFloat, Field(ge=0)]


class NetworkSettings(Settings):
    """Where the coordinator listens, and under which address nodes find it."""

    listen: str = "0.0.0.0:7443"
    """host:port for members, over mutual TLS."""
    enrolment_listen: str = "0.0.0.0:7444"
    """host:port for enrolment; may be closed by a firewall while no invitation is open."""
    address: str
    """host:port that members dial."""
    enrolment_address: str
    """host:port in invitations."""


class RoundsSettings(Settings):
    """How rounds open, wait, and close."""

    total: Annotated[int, Field(ge=0)] = 0
    """Rounds to run; 0 means without end."""
    quorum: Annotated[int, Field(ge=1)] = 2
    """Fewest contributions that make an update; with fewer the base stays as it is."""
    gather_seconds: Seconds = 10.0
    """Wait for further members once a quorum is connected, unless all are."""
    grace_seconds: Seconds = 300.0
    """Wait for the others once a quorum has contributed."""
    deadline_seconds: Annotated[FiniteFloat, Field(gt=0)] = 3600.0
    """A round closes this long after it opened, or is planned again if it has no quorum."""

    def rules(self) -> RoundRules:
        """Return these settings as the state machine takes them."""
        return RoundRules(**self.model_dump())


class InnerTable(Settings):
    """What nodes do between two contributions."""

    steps: int
    sequences: int
    accumulation: int = 1
    sequence_tokens: int
    learning_rate: float
    warmup_steps: int = 20
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    gradient_clip: float = 1.0

    def settings(self) -> InnerSettings:
        """Return these settings as a plan carries them."""
        return InnerSettings(**self.model_dump())

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        self.settings()
        return self


def _known_rule(name: object) -> RuleName:
    try:
        return known_rule(str(name))
    except ConfigError as error:
        raise ValueError(str(error)) from error


class AggregationSettings(Settings):
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
    """nesterov, sgd or adam."""
    learning_rate: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    """Of the outer step; 0 chooses by the number of contributions."""
    momentum: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.9
    """Of nesterov and adam."""
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

    def outer_optimizer(self, members: int) -> OuterOptimizer:
        """Return the outer optimizer for a round with contributions of so many members."""
        return OuterOptimizer(
            name=self.optimizer,
            learning_rate=self.learning_rate or default_learning_rate(self.optimizer, members),
            momentum=0.0 if self.optimizer == "sgd" else self.momentum,
            beta2=self.beta2,
            epsilon=self.epsilon,
        )


class SharedSettings(Settings):
    """The open pool of text."""

    fraction: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.25
    """Share of every batch that comes from the pool, if the federation has one."""


class MembershipSettings(Settings):
    """How long invitations and certificates live."""

    invitation_hours: Annotated[FiniteFloat, Field(gt=0)] = 72.0
    certificate_days: Annotated[int, Field(ge=1, le=398)] = 30


class KeepSettings(Settings):
    """How much history stays on the disk; 0 keeps everything."""

    checkpoints: Annotated[int, Field(ge=0)] = 0
    """The newest that many, and genesis, which always stays."""
    contribution_rounds: Annotated[int, Field(ge=0)] = 10
    """Contributions to the newest that many rounds, as they were received."""


class CoordinatorSettings(Settings):
    """The whole file."""

    network: NetworkSettings
    rounds: RoundsSettings = RoundsSettings()
    inner: InnerTable
    aggregation: AggregationSettings = AggregationSettings()
    shared: SharedSettings = SharedSettings()
    membership: MembershipSettings = MembershipSettings()
    keep: KeepSettings = KeepSettings()
    page: PageSettings = PageSettings()

    @model_validator(mode="after")
    def _rule_can_hold(self) -> Self:
        try:
            self.aggregation.aggregation_rule().require(self.rounds.quorum, what="(the quorum)")
        except ConfigError as error:
            raise ValueError(f"aggregation.{error}") from error
        return self

    @model_validator(mode="after")
    def _cap_can_hold(self) -> Self:
        cap, quorum = self.aggregation.influence_cap, self.rounds.quorum
        if cap and cap * quorum < 1 - 1e-9:
            fewest = int(-(-1 // cap))
            raise ValueError(
                f"aggregation.influence_cap = {cap:g} cannot hold with rounds.quorum = {quorum} "
                f"contributions, whose weights sum to 1: raise rounds.quorum to {fewest} or "
                f"influence_cap to {1 / quorum:.4g}"
            )
        return self


def load(folder: Path) -> CoordinatorSettings:
    """Read `coordinator.toml` in `folder`."""
    return load_settings(folder / SETTINGS_FILE, CoordinatorSettings)


def save(folder: Path, settings: CoordinatorSettings) -> None:
    """Write `coordinator.toml` with every key and what it means."""
    head = "Settings of this coordinator; read again at every start."
    write_atomic(folder / SETTINGS_FILE, commented_toml(settings, head=head))
