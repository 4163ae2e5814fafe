"""The tables of outbox.db, as SQL."""

from models.protocol.update_life import WAITING

__all__ = ["FOLDS", "OWNER", "SCHEMA"]

_STATES = ", ".join(f"'{state}'" for state in WAITING)
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE updates (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice, not after a deletion either
    state TEXT NOT NULL CHECK (state IN ({_STATES})),
    base INTEGER NOT NULL,
    chunk_size INTEGER NOT NULL,
    header_size INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;
CREATE TABLE refunds (  -- payloads that the next training adds to the residual
    seq INTEGER PRIMARY KEY,
    payload BLOB NOT NULL
) STRICT;
CREATE TABLE codec (  -- the state of the codec after job number `job`
    id INTEGER PRIMARY KEY CHECK (id = 1),
    job INTEGER NOT NULL,
    residual TEXT,
    personal TEXT
) STRICT;
CREATE TABLE facts (name TEXT PRIMARY KEY, value REAL NOT NULL) STRICT;
INSERT INTO codec (id, job) VALUES (1, 0);
"""
FOLDS = """
CREATE TABLE IF NOT EXISTS folds (  -- own updates in releases after the one trained on last
    release INTEGER PRIMARY KEY,
    count INTEGER NOT NULL
) STRICT;
"""
OWNER = """
CREATE TABLE owner (installation TEXT NOT NULL) STRICT;  -- with `seq` it makes an update's id
INSERT INTO owner VALUES ('%s');
COMMIT;
"""
