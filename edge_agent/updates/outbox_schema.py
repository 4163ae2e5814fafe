"""The tables of outbox.db, as SQL, and the steps that lead to them from what older versions made.

New columns come last, in a file that is made as in one that was altered: onlookers read rows of the
codec by position.
"""

from models.protocol.update_life import WAITING

__all__ = ["FOLDS", "OWNER", "SCHEMA", "STEPS", "VERSION"]

_STATES = ", ".join(f"'{state}'" for state in WAITING)
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE updates (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice, not after a deletion either
    state TEXT NOT NULL CHECK (state IN ({_STATES})),
    base INTEGER NOT NULL,
    chunk_size INTEGER NOT NULL,
    header_size INTEGER NOT NULL,
    data BLOB NOT NULL,
    next_history TEXT,  -- h and e, once this one is folded; without an h it was made without memory
    next_owed TEXT
) STRICT;
CREATE TABLE refunds (  -- payloads that the next training adds to the residual
    seq INTEGER PRIMARY KEY,
    payload BLOB NOT NULL
) STRICT;
CREATE TABLE codec (  -- the state of the codec after job number `job`
    id INTEGER PRIMARY KEY CHECK (id = 1),
    job INTEGER NOT NULL,
    residual TEXT,  -- e, what is owed
    personal TEXT,
    history TEXT,  -- h, what the server remembers of this device; none: zeros
    tuned TEXT,  -- this device's own model
    feedback TEXT  -- the method that h and e are of; none: residual
) STRICT;
CREATE TABLE facts (name TEXT PRIMARY KEY, value REAL NOT NULL) STRICT;
INSERT INTO codec (id, job) VALUES (1, 0);
PRAGMA user_version = 1;
"""
STEPS = {  # PRAGMA user_version -> what makes the next one of it
    0: """
BEGIN IMMEDIATE;
ALTER TABLE codec ADD COLUMN history TEXT;
ALTER TABLE codec ADD COLUMN tuned TEXT;
ALTER TABLE codec ADD COLUMN feedback TEXT;
ALTER TABLE updates ADD COLUMN next_history TEXT;
ALTER TABLE updates ADD COLUMN next_owed TEXT;
PRAGMA user_version = 1;
COMMIT;
""",
}
VERSION = len(STEPS)
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
