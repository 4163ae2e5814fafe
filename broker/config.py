"""broker.toml: what an operator decides. Read once at start; every mistake names file and key."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from broker.learning_policy import LearningPolicy
from models.access.credentials import Login, login
from models.access.tls_files import TlsFiles
from models.errors import UsageError
from models.host.settings_file import expanded, read_settings
from models.host.settings_mistakes import mistake
from models.protocol.manifest import MAX_ARTIFACT_BYTES, MAX_PATCHES, CodecPlan, TrainingPlan
from models.protocol.names import checked_name

__all__ = [
    "RULE_NAMES",
    "Config",
    "DownlinkPlan",
    "EvaluationPolicy",
    "FleetConfig",
    "FoldPolicy",
    "ReportPolicy",
    "StorageConfig",
    "TaskConfig",
    "is_fixed",
    "load_config",
]

Megabytes = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
# Of `broker.folding.aggregation_rules`.
RULE_NAMES = ("mean", "trimmed_mean", "clipped_mean", "median", "multi_krum", "mix")
MOST_EPOCHS = 1000.0
MOST_COMPARED = 1000  # updates in one fold of multi_krum, which looks at all pairs: 8 MB


class FleetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section ``[fleet]``: which MQTT broker, and below which name."""

    name: str
    broker: str  # mqtt://host:port or mqtts://host:port
    username: str | None = None
    password: str | None = None
    password_file: str | None = None  # its first line is the password
    ca: str | None = None  # the three PEM files of mqtts://; no ca: the system's authorities
    certificate: str | None = None
    key: str | None = None
    client_id: str | None = None  # of the persistent session; None: `session_id` says which
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    chunk_kib: Annotated[int, msgspec.Meta(ge=8, le=120)] = 32  # of artifacts; 28 s at 9.6 kbit/s

    @property
    def session_id(self) -> str:
        """The client id of this fleet's server: another fleet on the same broker has another."""
        return self.client_id or f"edgefold-broker-{self.name}"

    def __repr__(self) -> str:  # not the password
        return f"FleetConfig(name={self.name!r})"


class StorageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section ``[storage]``: where everything is, and how much of it there may be."""

    directory: str
    keep_releases: Annotated[int, msgspec.Meta(ge=0)] = 100  # with parameters; 0: all
    max_waiting_mb: Megabytes = 1024  # of stored updates that no release has yet
    max_partial_mb: Megabytes = 256  # of chunks of unfinished updates
    max_update_mb: Megabytes = 64  # of one update
    max_devices: Annotated[int, msgspec.Meta(ge=1)] = 100_000


class TrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section ``[task.training]``: how devices train."""

    epochs: Annotated[float, msgspec.Meta(gt=0, le=MOST_EPOCHS)] = 1.0
    batch: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 16
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=100)] = 0.05
    mu: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 0.0
    max_steps: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000


class FoldPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section ``[task.aggregation]``: when and how waiting updates become a release."""

    # Fold when so many wait ("all": one of each device with a memory that was heard of), or
    updates: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | Literal["all"] = 10
    seconds: Annotated[float, msgspec.Meta(gt=0)] = 3600.0  # so long after the first of them
    min_seconds: Annotated[float, msgspec.Meta(ge=0, le=31_536_000)] = 3600.0  # between folds
    patience: Annotated[int, msgspec.Meta(ge=0, le=100)] = 5  # rounds without a gain; 0: any
    min_gain: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.005  # of accuracy; else relative
    rule: str = "mean"  # one of `RULE_NAMES`
    optimizer: Literal["sgd", "momentum", "adam", "yogi"] = "sgd"  # of the server
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.5
    learning_rate: Positive | Literal["auto"] = "auto"  # of the server
    staleness: Literal["half_life", "polynomial", "hinge", "constant"] = "half_life"
    half_life: Positive = 4.0  # releases after which an update counts half
    staleness_exponent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.5  # polynomial
    staleness_slope: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 10.0  # hinge: how steep
    staleness_after: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 4  # hinge: releases
    max_staleness: Annotated[int, msgspec.Meta(ge=0)] = 0  # releases; 0: however old, it is folded
    max_weight: Annotated[float, msgspec.Meta(ge=1)] = 10.0  # times the median weight of a fold
    max_norm: Positive = 10.0  # times the norm of the parameters themselves

    def __post_init__(self) -> None:
        if self.rule not in RULE_NAMES:
            raise ValueError(f"rule {self.rule!r} is none of {', '.join(RULE_NAMES)}")
        if self.rule == "mix":
            self._check_mix()
        if self.rule == "multi_krum" and self.at_once > MOST_COMPARED:
            raise ValueError(
                f"rule = multi_krum compares each update with each: updates = {self.updates}, at "
                f"most {MOST_COMPARED} are folded at once"
            )

    def _check_mix(self) -> None:
        """Refuse what is not FedAsync."""
        if self.updates != 1:
            raise ValueError(f"rule = mix is FedAsync: updates = 1, not {self.updates}")
        if self.optimizer != "sgd":
            raise ValueError(f"rule = mix is FedAsync: optimizer = sgd, not {self.optimizer}")
        if self.learning_rate != "auto" and self.learning_rate > 1:
            raise ValueError(
                f"rule = mix is FedAsync: learning_rate is its alpha, at most 1, "
                f"not {self.learning_rate:g}"
            )

    @property
    def at_once(self) -> int:
        """How many updates make a fold due; of "all" one, with which the wait for others begins."""
        return 1 if self.updates == "all" else self.updates


class DownlinkPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section ``[task.downlink]``: how devices get from release to release."""

    method: Literal["patch", "full"] = "patch"
    nmse: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1  # squared error over squared length
    bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_ARTIFACT_BYTES)] = 0  # 0: as ``nmse`` says
    chain: Annotated[int, msgspec.Meta(ge=1, le=MAX_PATCHES)] = 16  # patches, for who was away


class EvaluationPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section ``[task.evaluation]``: hold-out data, and the gate that it allows."""

    data: str  # an npz with x and y, and maybe test: then only its rows with test > 0
    max_drop: float | None = None  # of accuracy against the parent; None: publish whatever comes
    batch: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1


class ReportPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section ``[task.report]``: what devices measure beside what they need themselves."""

    alone: bool = False  # they also train a model on their own data alone, to compare with


class TaskConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[[task]]``: a bundle, and how it is to be learned."""

    bundle: str
    releases: Annotated[int, msgspec.Meta(ge=0)] = 0  # this one closes training; 0: never
    aggregation: FoldPolicy = FoldPolicy()
    training: TrainingConfig = TrainingConfig()
    codec: CodecPlan = CodecPlan()
    downlink: DownlinkPlan = DownlinkPlan()
    evaluation: EvaluationPolicy | None = None
    learning: LearningPolicy = LearningPolicy()
    report: ReportPolicy = ReportPolicy()

    def training_plan(self, release: int, *, repeat: bool) -> TrainingPlan:
        """Return what the manifest of ``release`` tells the devices."""
        epochs, most = self.training.epochs, self.training.max_steps
        if isinstance(self.learning.steps, int):  # so many, however few samples there are
            epochs, most = MOST_EPOCHS, self.learning.steps
        return TrainingPlan(
            open=not self.releases or release < self.releases,
            epochs=epochs,
            batch=self.training.batch,
            learning_rate=self.training.learning_rate,
            mu=self.training.mu,
            max_steps=most,
            repeat=repeat,
        )


def is_fixed(plan: TrainingPlan) -> bool:
    """Whether ``plan`` is of a number of steps, whatever samples there are."""
    return plan.epochs == MOST_EPOCHS


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of broker.toml. Paths in it are relative to ``origin``, the directory it lies in."""

    fleet: FleetConfig
    storage: StorageConfig
    task: Annotated[tuple[TaskConfig, ...], msgspec.Meta(min_length=1, max_length=100)]
    origin: str = "."
    log_level: str = "info"

    @property
    def doubts(self) -> list[str]:
        """Return a sentence for each setting that is allowed and hardly meant so."""
        found = []
        for task in self.task:
            policy, where = task.aggregation, f"[task.aggregation] of {task.bundle}"
            if policy.min_seconds == 0:
                found.append(
                    f"{where}: min_seconds = 0 makes releases as fast as updates come, which is "
                    "for trials: in a fleet every release costs each device a download"
                )
            elif policy.seconds < policy.min_seconds:
                found.append(
                    f"{where}: seconds = {policy.seconds:g} is shorter than min_seconds = "
                    f"{policy.min_seconds:g}, which counts: set min_seconds too for faster releases"
                )
        return found

    def path(self, text: str) -> Path:
        """Return ``text`` as a path, relative to the directory of broker.toml.

        Raises:
            UsageError: a home directory of nobody.
        """
        return Path(self.origin) / expanded(text)

    def file(self, text: str | None) -> Path | None:
        """Return ``text`` as a path where there is one."""
        return None if text is None else self.path(text)

    def login(self, written_in: Path) -> Login:
        """Return how to log in to the MQTT broker, as the file ``written_in`` says.

        Raises:
            UsageError: settings that contradict each other.
        """
        fleet = self.fleet
        return login(
            broker=fleet.broker,
            username=fleet.username,
            password=fleet.password,
            password_file=self.file(fleet.password_file),
            tls=TlsFiles(*map(self.file, (fleet.ca, fleet.certificate, fleet.key))),
            written_in=written_in,
        )


def load_config(path: Path) -> Config:
    """Read and check ``path``.

    Raises:
        NoPermissionError: it may not be read by us.
        UsageError: no such file, no TOML, or a key that is missing, unknown or out of range.
    """
    values = read_settings(path, example="a broker.toml there (docs/server.md has one to copy)")
    if "origin" in values:
        raise UsageError(f"{path}: `origin` is not a key; docs/server.md lists them all")
    try:
        config = msgspec.convert(values | {"origin": str(path.parent)}, Config)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {_explain(error, values)}; see docs/server.md") from None
    checked_name(f"{path}: [fleet] name", config.fleet.name)
    if config.fleet.client_id is not None:
        checked_name(f"{path}: [fleet] client_id", config.fleet.client_id)
    try:
        config.login(path)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if config.log_level.lower() not in ("debug", "info", "warning", "error"):
        raise UsageError(f"{path}: log_level is debug, info, warning or error")
    return config


def _explain(error: msgspec.ValidationError, values: dict[str, Any]) -> str:
    """Return what ``error`` says, with the key where TOML has it: ``[task.codec] keep``."""
    found = mistake(
        error,
        values,
        Config,
        elsewhere=dict.fromkeys(("device", "samples", "training", "inference"), "agent.toml"),
        hidden=("origin",),
    )
    which = f" (number {found.number})" if found.number else ""
    *section, key = found.place or ("",)
    if not key:
        return found.reason
    if found.reason.startswith(("lacks", "there is no")):  # the place is that of the section
        return f"[{'.'.join(found.place)}]{which}: {found.reason}"
    where = f"[{'.'.join(section)}]{which} " if section else ""
    return f"{where}{key}: {found.reason}"
