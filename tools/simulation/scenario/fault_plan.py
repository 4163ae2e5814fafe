"""How the world misbehaves: three plans by name, or one of your own in TOML. Pure."""

import tomllib
from typing import Annotated

import msgspec

from models.errors import UsageError

__all__ = ["PLANS", "FaultPlan", "parse_plan"]

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
PerDay = Annotated[float, msgspec.Meta(ge=0, le=100_000)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class FaultPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rates per day are of each machine (or of the one broker), with exponential gaps.

    A crash happens at a random operation on disk or network soon after its moment.
    """

    delay_s: Seconds = 0.05  # of a line, one way
    bits_per_s: float = 0.0  # of a device's line, each direction; 0: no limit
    cuts: PerDay = 0.0  # broken connections
    black_holes: PerDay = 0.0  # nothing passes for `outage_s`, and nobody is told
    outages: PerDay = 0.0  # a device has no network for `outage_s`
    outage_s: Seconds = 1800.0  # mean
    drop: Share = 0.0  # messages that the broker accepts and loses
    double: Share = 0.0
    late: Share = 0.0  # up to a minute, so after later ones
    damage: Share = 0.0  # cut in half, or with another last byte
    broker_restarts: PerDay = 0.0
    broker_wipes: Share = 0.0  # of the restarts
    device_kills: PerDay = 0.0  # kill -9
    device_power_cuts: PerDay = 0.0
    trainer_kills: Share = 0.0  # of the trainings, at any point
    server_kills: PerDay = 0.0
    server_power_cuts: PerDay = 0.0
    server_outages: PerDay = 0.0
    down_s: Seconds = 120.0  # mean, from a crash to the next start
    full_disks: PerDay = 0.0
    read_only_disks: PerDay = 0.0
    failing_disks: PerDay = 0.0
    failing: Share = 0.2  # of the operations on a failing disk
    failing_reads: Share = 0.0  # likewise, of those that only read
    tight_disks: PerDay = 0.0  # with room for what is short, and none for parameters
    disk_trouble_s: Seconds = 600.0  # mean
    clock_jumps: PerDay = 0.0  # to 1970, to 2040, or by up to a day
    forgets: PerDay = 0.0  # an operator has the server forget a device that is not gone
    lost_memories: PerDay = 0.0  # a bad block takes what a device carries for the server's memory


PLANS = {
    "none": FaultPlan(),
    "mild": FaultPlan(
        cuts=12,
        outages=2,
        broker_restarts=0.5,
        broker_wipes=0.2,
        device_kills=0.5,
        device_power_cuts=0.5,
        server_kills=0.5,
        server_power_cuts=0.2,
        clock_jumps=0.5,
    ),
    "harsh": FaultPlan(
        delay_s=0.3,
        bits_per_s=64_000,
        cuts=300,
        black_holes=24,
        outages=48,
        outage_s=600,
        drop=0.05,
        double=0.05,
        late=0.05,
        damage=0.02,
        broker_restarts=24,
        broker_wipes=0.5,
        device_kills=60,
        device_power_cuts=60,
        trainer_kills=0.1,
        server_kills=60,
        server_power_cuts=60,
        server_outages=12,
        full_disks=15,
        read_only_disks=10,
        failing_disks=15,
        tight_disks=10,
        clock_jumps=15,
        forgets=48,
        lost_memories=24,
    ),
}


def parse_plan(text: str, source: str) -> FaultPlan:
    """Read a plan: keys of `FaultPlan`, and ``like = "mild"`` for what is not named.

    Raises:
        UsageError: not TOML, or a key is unknown or out of range.
    """
    try:
        values = tomllib.loads(text)
        like = values.pop("like", "none")
        if like not in PLANS:
            raise UsageError(f"{source}: like = {like!r}; known are {', '.join(PLANS)}")
        return msgspec.convert(msgspec.to_builtins(PLANS[like]) | values, FaultPlan)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{source}: {error}") from None
