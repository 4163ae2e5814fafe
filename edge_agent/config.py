"""The device's settings: ``agent.toml``, its defaults, and errors that say which key to change."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from models.access.credentials import Login, login
from models.access.tls_files import TlsFiles
from models.errors import CommandLineError, UsageError
from models.host.sentences import shown
from models.host.settings_file import (
    expanded,
    parsed_settings,
    read_settings,
    read_value,
    refuse_odd_values,
)
from models.host.settings_mistakes import Mistake, mistake
from models.protocol.names import checked_name

__all__ = ["DEFAULT_PATH", "Config", "parse_config", "read_config"]

DEFAULT_PATH = Path("/etc/edgefold/agent.toml")

Share = Annotated[float, msgspec.Meta(ge=0, le=0.9)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
SOCKET_MODES = ("0600", "0660", "0666")


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[table]`` of the file."""


class Device(Section, frozen=True, forbid_unknown_fields=True):
    id: str  # also the MQTT client id: never the same on two boards
    task: str  # what this device learns


class Fleet(Section, frozen=True, forbid_unknown_fields=True):
    name: str
    broker: Text  # mqtt://HOST:PORT or mqtts://HOST:PORT
    username: str | None = None
    password: str | None = None
    password_file: Path | None = None  # its first line is the password
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    ca: Path | None = None  # the three PEM files of mqtts://
    certificate: Path | None = None
    key: Path | None = None

    def login(self, written_in: Path) -> Login:
        """Return how to log in, as the file ``written_in`` says.

        Raises:
            UsageError: settings that contradict each other.
        """
        return login(
            broker=self.broker,
            username=self.username,
            password=self.password,
            password_file=self.password_file,
            tls=TlsFiles(self.ca, self.certificate, self.key),
            written_in=written_in,
        )

    def __repr__(self) -> str:  # not the password
        return f"Fleet(name={self.name!r})"


class Storage(Section, frozen=True, forbid_unknown_fields=True):
    directory: Path = Path("/var/lib/edge-agent")
    max_mb: AtLeastOne = 512  # everything below ``directory`` together


class Samples(Section, frozen=True, forbid_unknown_fields=True):
    inbox: Path | None = None  # None: <storage.directory>/inbox
    max_count: AtLeastOne = 5000  # the oldest go first
    holdout_share: Share = 0.2  # kept out of training, to measure with
    keep_rejected_mb: Annotated[int, msgspec.Meta(ge=0)] | None = None  # None: an eighth of max_mb
    keep_rejected_days: Positive = 30  # the only thing that deletes what was rejected


class Training(Section, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    min_samples: AtLeastOne = 16  # below, a delta is mostly noise
    min_new_samples: AtLeastOne = 16  # fewer are nothing new to learn
    min_minutes: Annotated[float, msgspec.Meta(ge=0, le=525_600)] = 60  # between two trainings
    max_waiting: AtLeastOne = 4  # updates without a final receipt; then the oldest is merged back
    max_minutes: Positive = 30  # of one training; then it is stopped
    max_batch: AtLeastOne = 64  # the lever on the trainer's memory
    max_celsius: Positive = 80  # stop here, go on 10 degrees below
    min_free_mb: Annotated[int, msgspec.Meta(ge=0)] = 120  # a trainer needs about 110
    max_load: Positive = 8.0  # runnable processes per core; training itself is niced
    check_seconds: Positive = 2.0  # between two looks at whether to train
    minutes_per_day: NotNegative = 0  # of training; 0: no limit, like the next two
    megabytes_per_day: NotNegative = 0  # over the network, both ways: beyond, no training
    joules_per_day: NotNegative = 0  # as the next two tell them
    watts: NotNegative = 2.0  # that training takes
    joules_per_byte: NotNegative = 0  # that the network takes

    def __post_init__(self) -> None:
        if self.joules_per_day and not (self.watts or self.joules_per_byte):
            raise ValueError(
                "joules_per_day limits nothing while watts and joules_per_byte are 0: say what "
                "training or the network takes"
            )


class Inference(Section, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    serve: Literal["auto", "released"] | None = None  # what answers; None: as the task says
    socket: Path | None = None  # where applications ask; None: application_socket.default_path
    group: Text | None = None  # whose members may ask; None: edgefold, if the agent is in it
    mode: str | None = None  # None: 0660 with a group, 0600 without

    def __post_init__(self) -> None:
        if self.mode not in (None, *SOCKET_MODES):
            raise ValueError(
                f'mode {self.mode!r}; "0600" lets in the agent\'s own user, "0660" its group too, '
                '"0666" everybody on this device'
            )
        if self.mode == "0600" and self.group is not None:
            raise ValueError(f'mode "0600" keeps the group {self.group!r} out: name only one')


class Limits(Section, frozen=True, forbid_unknown_fields=True):
    max_artifact_mb: AtLeastOne = 256  # no larger file is ever fetched
    chunk_kib: Annotated[int, msgspec.Meta(ge=8, le=120)] = 64  # of what we send


class Config(Section, frozen=True, forbid_unknown_fields=True):
    """All settings of one agent."""

    device: Device
    fleet: Fleet
    storage: Storage = Storage()
    samples: Samples = Samples()
    training: Training = Training()
    inference: Inference = Inference()
    limits: Limits = Limits()

    @property
    def inbox(self) -> Path:
        return self.samples.inbox or self.storage.directory / "inbox"

    @property
    def max_bytes(self) -> int:
        return self.storage.max_mb * 1_000_000

    @property
    def max_outbox_bytes(self) -> int:
        return self.max_bytes // 8

    @property
    def max_sample_bytes(self) -> int:
        return self.max_bytes // 4

    @property
    def max_rejected_bytes(self) -> int:
        kept_mb = self.samples.keep_rejected_mb
        return self.max_bytes // 8 if kept_mb is None else kept_mb * 1_000_000

    @property
    def max_release_bytes(self) -> int:
        """Of one release: two of them and one on its way fit into half of the storage."""
        return self.max_bytes // 6


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read ``path``; each of ``overrides`` is a line ``section.key=value`` in TOML.

    Raises:
        NoPermissionError: it may not be read by us.
        CommandLineError: one of ``overrides`` is wrong.
        UsageError: unreadable, not TOML, or a setting is wrong: which, and what to do.
    """
    values = read_settings(path, example="an agent.toml there (docs/agent.md has one to copy)")
    return _checked(values, source=path, overrides=overrides)


def parse_config(text: str, *, source: Path, overrides: Sequence[str] = ()) -> Config:
    """Read settings from ``text``; relative paths are relative to the directory of ``source``.

    Raises:
        UsageError: see `read_config`.
    """
    return _checked(parsed_settings(text, source=source), source=source, overrides=overrides)


def _checked(values: dict[str, Any], *, source: Path, overrides: Sequence[str]) -> Config:
    try:
        changed = [_override(values, line) for line in overrides]
    except UsageError as error:
        raise CommandLineError(str(error)) from None

    def hook(kind: type, value: Any) -> Any:
        if kind is Path and isinstance(value, str) and value:
            try:
                return source.parent.absolute() / expanded(value)
            except UsageError as error:
                raise ValueError(str(error)) from None
        raise TypeError(f"Expected a path, got {value!r}")

    try:
        config = msgspec.convert(values, Config, dec_hook=hook)
    except msgspec.ValidationError as error:
        found = mistake(
            error, values, Config, elsewhere=dict.fromkeys(("task", "log_level"), "broker.toml")
        )
        if any(found.is_of(setting) for setting in changed):
            raise CommandLineError(f"--set {'.'.join(found.keys)}: {found.reason}") from None
        raise UsageError(f"{source}: {_explain(found)}") from None
    for section, key, name in (
        ("device", "id", config.device.id),
        ("device", "task", config.device.task),
        ("fleet", "name", config.fleet.name),
    ):
        try:
            checked_name(f"{section}.{key}", name)
        except UsageError as error:
            if (section, key) in changed:
                raise CommandLineError(f"--set {error}") from None
            raise UsageError(f"{source}: {error}") from None
    try:
        config.fleet.login(source)
    except UsageError as error:
        if any(section == "fleet" for section, _ in changed):
            raise CommandLineError(f"{source} with --set: {error}") from None
        raise UsageError(f"{source}: {error}") from None
    return config


def _override(values: dict[str, Any], line: str) -> tuple[str, ...]:
    """Put the setting of ``line`` into ``values``; return its place there."""
    section, _, setting = line.partition(".")
    key, equals, value = setting.partition("=")
    section, key = section.strip(), key.strip()
    line = shown(line.partition("=")[0])[:100]  # no sentence shows a value: it may be a secret
    if not _is_text(setting):
        raise UsageError(f"--set {line}: holds bytes that are no UTF-8")
    if key.split()[:1] == ["password"]:
        raise UsageError(
            "--set fleet.password: everyone on this machine sees it in the list of processes; set "
            "fleet.password_file instead"
        )
    if not equals or not section or not key:
        raise UsageError(f"--set {line}: write it as section.key=value, as samples.max_count=1000")
    parsed = read_value(value)
    refuse_odd_values({section: {key: parsed}}, source="--set")
    table = values.setdefault(section, {})
    if not isinstance(table, dict):
        raise UsageError(f"--set {line}: {section} is not a section")
    table[key] = parsed
    return section, key


def _is_text(argument: str) -> bool:
    """Whether a word of the command line came as UTF-8: other bytes are surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


def _explain(found: Mistake) -> str:
    """Return ``found`` in the words of the file."""
    where = ".".join(found.place)
    if not where:
        return found.reason
    if found.reason.startswith("lacks"):
        return f"[{where}] {found.reason}"
    return f"{where}: {found.reason}"
