"""The tables of the registry, and how those of an older version become them.

A change is written twice: in `TABLES`, which a new registry gets, and as one more of `STEPS`,
which the registries that are there go through.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["MIN_CHUNK", "STEPS", "TABLES"]

Run = Callable[[str], list[tuple[Any, ...]]]  # a statement; returns its rows

MIN_CHUNK = 1024  # bytes of a chunk that is not an update's last; there is an index of these
# What version 2 brought: the server's state, and memories of devices.
_LEARNING = """
CREATE TABLE server_state ( -- of each task: what else its server carries from fold to fold
  task TEXT PRIMARY KEY,
  release INTEGER NOT NULL,               -- that it belongs to
  state BLOB NOT NULL                     -- JSON (`broker.records.state_records.StateRow`)
) WITHOUT ROWID;
CREATE TABLE memories (     -- what is remembered of each device (`models.codec.feedback`)
  task TEXT NOT NULL,
  device TEXT NOT NULL,
  installation INTEGER NOT NULL,          -- of the update that was folded last
  digest INTEGER NOT NULL,                -- `history_digest`
  sha256 TEXT NOT NULL,                   -- of the artifact
  size INTEGER NOT NULL,
  samples REAL NOT NULL,                  -- its weight
  release INTEGER NOT NULL,               -- that its last update was folded into
  PRIMARY KEY (task, device)
) WITHOUT ROWID;
CREATE INDEX longest_unheard ON memories (task, release);
CREATE TABLE extras (       -- of updates with a header of version 2; behind a payload, to read it
  id INTEGER PRIMARY KEY,                 -- SQLite would have to read that too
  extras BLOB NOT NULL,                   -- msgpack (`models.protocol.update.Extras`)
  reset INTEGER NOT NULL DEFAULT 0        -- refused for its memory: the device begins anew
);
CREATE TABLE device_reports (   -- the newest `Extras` of each device
  task TEXT NOT NULL,
  device TEXT NOT NULL,
  received REAL NOT NULL,                 -- Unix seconds
  extras BLOB NOT NULL,                   -- msgpack
  PRIMARY KEY (task, device)
) WITHOUT ROWID
"""
TABLES = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE devices (
  device TEXT PRIMARY KEY,
  seen REAL NOT NULL DEFAULT 0,           -- Unix seconds; 0: no status yet
  online INTEGER NOT NULL DEFAULT 0,
  status BLOB,                            -- the last whole one, JSON
  runs TEXT NOT NULL DEFAULT '',          -- of its process, the newest last (`Status.run`)
  doubled REAL NOT NULL DEFAULT 0,        -- Unix seconds: a run spoke again after the next one
  bytes_received INTEGER NOT NULL DEFAULT 0,  -- of update messages, repeats included
  duplicates INTEGER NOT NULL DEFAULT 0,  -- chunks that came again
  garbage INTEGER NOT NULL DEFAULT 0,     -- messages that were none of ours
  heard REAL NOT NULL DEFAULT 0           -- Unix seconds: of a live word, or of its will; 0: never
) WITHOUT ROWID;
CREATE TABLE forgotten (    -- devices that an operator removed, until they come back
  device TEXT PRIMARY KEY,
  asked REAL NOT NULL,                    -- Unix seconds
  step INTEGER NOT NULL DEFAULT 0         -- see broker/devices/forgetting.py
) WITHOUT ROWID;
CREATE INDEX to_be_forgotten ON forgotten (device) WHERE step = 0;
CREATE TABLE partials (     -- updates that are not whole yet
  device TEXT NOT NULL,
  installation INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  size INTEGER NOT NULL DEFAULT 0,        -- of header and payload; 0: chunk 0 has not come
  chunk_size INTEGER NOT NULL DEFAULT 0,
  touched REAL NOT NULL,
  PRIMARY KEY (device, installation, sequence)
) WITHOUT ROWID;
CREATE INDEX touched ON partials (touched);
CREATE TABLE chunks (
  id INTEGER PRIMARY KEY,
  device TEXT NOT NULL,
  installation INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  number INTEGER NOT NULL,
  size INTEGER NOT NULL,
  data BLOB NOT NULL,
  UNIQUE (device, installation, sequence, number)
);
CREATE INDEX short_chunks ON chunks (device, installation, sequence)
  WHERE size < {MIN_CHUNK};
CREATE TABLE updates (
  id INTEGER PRIMARY KEY,
  device TEXT NOT NULL,
  installation INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  task TEXT NOT NULL,
  base INTEGER NOT NULL,
  samples INTEGER NOT NULL,
  steps INTEGER NOT NULL,
  loss_first REAL,
  loss_last REAL,
  accuracy REAL,
  size INTEGER NOT NULL,                  -- of header and payload
  received REAL NOT NULL,
  state TEXT NOT NULL,                    -- stored, folded, refused
  release INTEGER NOT NULL DEFAULT 0,     -- folded into
  reason TEXT NOT NULL DEFAULT '',        -- refused for
  told INTEGER NOT NULL DEFAULT 0,        -- the broker took over the receipt for this state
  payload BLOB,                           -- until it is folded or refused
  UNIQUE (device, installation, sequence)
);
CREATE INDEX waiting ON updates (task, id) WHERE state = 'stored';
CREATE INDEX untold ON updates (id) WHERE told = 0;
CREATE TABLE unreadable (   -- stored updates on bad blocks: refused, see `bury`
  id INTEGER PRIMARY KEY,
  reason TEXT NOT NULL
);
CREATE TABLE settled (      -- what became of every update, for ever, as ranges
  device TEXT NOT NULL,
  installation INTEGER NOT NULL,
  first INTEGER NOT NULL,
  last INTEGER NOT NULL,
  state TEXT NOT NULL,                    -- folded, refused
  release INTEGER NOT NULL,               -- the newest that one of them was folded into
  PRIMARY KEY (device, installation, first)
) WITHOUT ROWID;
CREATE TABLE releases (
  task TEXT NOT NULL,
  number INTEGER NOT NULL,
  created REAL NOT NULL,
  manifest BLOB NOT NULL,
  metric REAL,                            -- the task's, on hold-out data
  loss REAL,
  evaluated INTEGER NOT NULL DEFAULT 0,   -- hold-out samples
  updates INTEGER NOT NULL DEFAULT 0,     -- folded into it
  devices INTEGER NOT NULL DEFAULT 0,     -- that these came from
  bytes_received INTEGER NOT NULL DEFAULT 0,  -- of these updates
  bytes_down INTEGER NOT NULL,            -- manifest, and artifacts that its parent does not have
  metric_trained REAL,                    -- of the parameters, where devices run their average
  step REAL,                              -- length of what the exact sum moved by; NULL: no fold
  age REAL,                               -- releases; the mean one of what was folded
  PRIMARY KEY (task, number)
) WITHOUT ROWID;
CREATE TABLE reported (     -- how many samples the fleet had when a release was made
  task TEXT NOT NULL,
  number INTEGER NOT NULL,
  samples INTEGER NOT NULL,
  PRIMARY KEY (task, number)
) WITHOUT ROWID;
CREATE TABLE folded (       -- of each task: the exact sum of all that was folded
  task TEXT PRIMARY KEY,
  release INTEGER NOT NULL,               -- that it belongs to
  sha256 TEXT NOT NULL,                   -- of the artifact
  size INTEGER NOT NULL,
  since INTEGER NOT NULL                  -- the first release with the parameters of this one
) WITHOUT ROWID;
CREATE TABLE published (    -- what the broker retains for us, as far as we know
  name TEXT PRIMARY KEY,                  -- an artifact's sha256, or task/<task>
  digest TEXT NOT NULL,                   -- of the manifest; of the artifact
  size INTEGER NOT NULL,
  chunk_size INTEGER NOT NULL,
  done INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
{_LEARNING.strip()};
INSERT INTO meta VALUES ('format', '2')   -- what versions before 1 look at, which read '1'
""".split(";\n")


def _from_0(run: Run) -> None:
    """What release 0.1 made, or what was between it and this."""
    if "heard" not in {row[1] for row in run("PRAGMA table_info(devices)")}:
        run("ALTER TABLE devices ADD COLUMN heard REAL NOT NULL DEFAULT 0")
    run(
        "CREATE TABLE IF NOT EXISTS forgotten "
        "(device TEXT PRIMARY KEY, asked REAL NOT NULL, step INTEGER NOT NULL DEFAULT 0) "
        "WITHOUT ROWID"
    )
    run("CREATE INDEX IF NOT EXISTS to_be_forgotten ON forgotten (device) WHERE step = 0")
    run(
        "CREATE TABLE IF NOT EXISTS reported (task TEXT NOT NULL, number INTEGER NOT NULL, "
        "samples INTEGER NOT NULL, PRIMARY KEY (task, number)) WITHOUT ROWID"
    )
    run("ALTER TABLE releases RENAME COLUMN accuracy TO metric")
    run("INSERT OR REPLACE INTO meta VALUES ('format', '2')")


def _from_1(run: Run) -> None:
    """What had no state but the exact sum, and headers of version 1."""
    for column in ("metric_trained", "step", "age"):
        run(f"ALTER TABLE releases ADD COLUMN {column} REAL")
    for statement in _LEARNING.strip().split(";\n"):
        run(statement)


STEPS = (_from_0, _from_1)  # each from the version that is its place here to the next
