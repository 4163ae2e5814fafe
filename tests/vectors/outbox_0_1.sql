BEGIN TRANSACTION;
CREATE TABLE codec (  -- the state of the codec after job number `job`
    id INTEGER PRIMARY KEY CHECK (id = 1),
    job INTEGER NOT NULL,
    residual TEXT,
    personal TEXT
) STRICT;
INSERT INTO "codec" VALUES(1,6,'residual-6.npz','personal-6.npz');
CREATE TABLE facts (name TEXT PRIMARY KEY, value REAL NOT NULL) STRICT;
INSERT INTO "facts" VALUES('job',6.0);
INSERT INTO "facts" VALUES('owed',0.0);
INSERT INTO "facts" VALUES('trained_release',4.0);
INSERT INTO "facts" VALUES('trained_until',384.0);
INSERT INTO "facts" VALUES('accuracy',0.5);
INSERT INTO "facts" VALUES('ms_per_step',12.5);
INSERT INTO "facts" VALUES('made',6.0);
INSERT INTO "facts" VALUES('refunds_lost',0.0);
INSERT INTO "facts" VALUES('merged_back',0.0);
INSERT INTO "facts" VALUES('folded',1.0);
INSERT INTO "facts" VALUES('refused_running',1.0);
INSERT INTO "facts" VALUES('refused',1.0);
CREATE TABLE folds (  -- own updates in releases after the one trained on last
    release INTEGER PRIMARY KEY,
    count INTEGER NOT NULL
) STRICT;
INSERT INTO "folds" VALUES(5,1);
CREATE TABLE owner (installation TEXT NOT NULL) STRICT;
INSERT INTO "owner" VALUES('0123abcd');
CREATE TABLE refunds (  -- payloads that the next training adds to the residual
    seq INTEGER PRIMARY KEY,
    payload BLOB NOT NULL
) STRICT;
INSERT INTO "refunds" VALUES(2,X'7061796C6F61642032');
CREATE TABLE updates (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice, not after a deletion either
    state TEXT NOT NULL CHECK (state IN ('queued', 'sending', 'sent', 'stored')),
    base INTEGER NOT NULL,
    chunk_size INTEGER NOT NULL,
    header_size INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;
INSERT INTO "updates" VALUES(3,'stored',4,64,6,X'6865616465727061796C6F61642033');
INSERT INTO "updates" VALUES(4,'sending',4,64,6,X'6865616465727061796C6F61642034');
INSERT INTO "updates" VALUES(5,'queued',4,64,6,X'6865616465727061796C6F61642035');
INSERT INTO "updates" VALUES(6,'queued',4,64,6,X'6865616465727061796C6F61642036');
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('updates',6);
COMMIT;
