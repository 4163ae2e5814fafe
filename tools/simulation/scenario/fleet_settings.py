"""What a simulated fleet is like, and what came of it: plain values. Pure."""

from typing import Any, NamedTuple

from edge_agent.updates.outbox_facts import OutboxFacts
from tools.simulation.scenario.energy import PI_ZERO_2, Board
from tools.simulation.scenario.fault_plan import FaultPlan

__all__ = ["Milestone", "Outcome", "Settings", "Usage", "Violation", "varied"]

MEGABYTE = 50_000  # bytes that a small fleet's server takes for one
TIGHT_MB = 4000  # likewise: less than two updates of 4096 parameters
CODED_SIZE = 1200  # parameters: more than are always sent whole, few for a codec that takes time
LEARNINGS: dict[int, dict[str, Any]] = {  # of eight seeds: settings of ``[[task]]``
    1: {"learning.average": 0.9},
    2: {"learning.feedback": "memory", "learning.max_memory_mb": 5, "learning.average": 0.5},
    3: {"learning.feedback": "memory", "codec.context": "own"},
    4: {"learning.feedback": "gd-sec", "learning.threshold": 0.5, "learning.average": 0.9},
    5: {"aggregation.optimizer": "momentum", "learning.average": 0.5},
    6: {"learning.feedback": "memory"},
    7: {"aggregation.optimizer": "yogi", "aggregation.staleness": "polynomial"},
}


class Settings(NamedTuple):
    """What a simulated fleet is like."""

    devices: int = 3
    hours: float = 1.5
    online: float = 1.0  # share of the time that a device has a network
    plan: FaultPlan = FaultPlan()
    size: int = 4096  # parameters
    fold_updates: int = 2
    fold_seconds: float = 1800.0
    fold_min_s: float = 60.0  # between two folds
    patience: int = 0  # releases without a gain, then only who has new samples trains; 0: any
    min_minutes: float = 2.0  # between two trainings of a device
    sample_every_s: float = 450.0  # mean, per device
    session_s: float = 1800.0  # mean time that a device stays online, if ``online`` < 1
    max_samples: int = 400  # that a device keeps
    max_waiting: int = 4
    max_staleness: int = 6  # releases
    server_mb: int = MEGABYTE  # bytes; a planned fleet's is a real one
    look_s: float = 60.0  # between an idle agent's looks at its inbox and at whether to train
    traced: bool = False
    is_planning: bool = False  # see `tools.simulation.surroundings`
    is_varied: bool = False  # by the seed: real codec with contexts, refusals (`varied`)
    real_codec: bool = False
    policy: tuple[tuple[str, Any], ...] = ()  # settings of ``[[task]]`` in broker.toml
    training: tuple[tuple[str, Any], ...] = ()  # settings of ``[training]`` in agent.toml
    board: Board = PI_ZERO_2
    task: str = ""  # directory of a bundle; "": the light stand-in
    data: str = ""  # its samples, an npz or a name that `tools.author.data.datasets` knows
    split: str = "user"  # how they are dealt out: by user, or dirichlet:ALPHA
    settles: bool = True  # at the end all is repaired and must come to rest


def varied(settings: Settings, seed: int) -> Settings:
    """Return ``settings`` as every fourth seed or so has them otherwise.

    One in four learns with the product's own codec, so with uplink contexts; one in four has a
    server that refuses what is older than a release, and folds each update by itself; one of those
    with both. One in four has a server whose limits are a few updates away: it has no room, and
    drops unfinished ones. Patches are in all of them but those whose models are sent whole.

    Of eight, two learn with error feedback alone; the others with an average, a memory, GD-SEC,
    moments, a memory in whose context updates are coded, or a server that has room for one memory.
    """
    changes: dict[str, Any] = {}
    if seed % 4 == 0:
        changes |= {"real_codec": True, "size": CODED_SIZE}
    if seed % 4 == 1 or seed % 8 == 0:
        changes |= {"max_staleness": 1, "fold_updates": 1}
    if seed % 4 == 2:
        changes |= {"server_mb": TIGHT_MB, "fold_updates": 3}
    policy: dict[str, Any] = LEARNINGS.get(seed % 8, {})
    if seed % 8 == 3:
        changes |= {"real_codec": True, "size": CODED_SIZE}
    if seed % 16 == 8:
        policy = policy | {"downlink.method": "full"}
    if policy:
        changes["policy"] = (*settings.policy, *policy.items())
    return settings._replace(**changes)


class Violation(NamedTuple):
    """A promise that was broken."""

    at_s: float
    machine: str
    what: str


class Usage(NamedTuple):
    """What one device spent while the fleet lived."""

    bytes_up: int
    bytes_down: int
    online_s: float
    training_s: float
    trainings: int
    facts: OutboxFacts = OutboxFacts()  # what it noted of itself, last


class Milestone(NamedTuple):
    """A release, when it was made, and what all devices together had sent and received by then."""

    at_s: float
    release: int
    metric: float | None
    bytes_up: int
    bytes_down: int
    updates: int  # folded so far


class Outcome(NamedTuple):
    """What came of one seed."""

    seed: int
    violations: tuple[Violation, ...]
    digest: str  # of everything that happened
    trace: tuple[str, ...]
    wall_s: float
    virtual_s: float
    settled_after_s: float  # from the repair; -1: never, or it was not asked for
    releases: int
    trainings: int
    updates: int
    folded: int
    refused: int
    crashes: int
    messages: int
    bytes_up: int
    bytes_down: int
    imbalance: float  # the worst relative one of any device at any moment
    accuracy: float  # light: 1 / (1 + mean squared distance to the fleet's optimum)
    events: int
    patched: int = 0  # releases that a device made out of patches
    with_context: int = 0  # updates that were coded in the context of a release
    fold_error: float = 0.0  # the worst relative one of a release's step; see `folded_sum`
    reached: tuple[tuple[str, int], ...] = ()  # what seldom happens to a server, and how often
    usage: tuple[Usage, ...] = ()  # by device
    milestones: tuple[Milestone, ...] = ()
