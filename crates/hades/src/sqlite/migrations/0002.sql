-- A sandbox may be paused; one may make a golden snapshot; the oldest that ended are found without a scan; a node's memory
-- may be sold more than once. A CHECK cannot
-- be altered, so the table is made anew; foreign keys are off while this runs, and `seq` stays what it was.

CREATE TABLE sandboxes_new (
    seq           INTEGER PRIMARY KEY,
    id            TEXT NOT NULL UNIQUE,
    name          TEXT,
    state         TEXT NOT NULL,
    created_at    INTEGER NOT NULL,
    started_at    INTEGER,
    ended_at      INTEGER,
    attempts      INTEGER NOT NULL,
    node          TEXT,
    token         TEXT,
    memory_mib    INTEGER NOT NULL,
    cpus          INTEGER NOT NULL,
    image         TEXT NOT NULL,
    kernel        TEXT NOT NULL,
    kill_signal   INTEGER,
    kill_grace_ms INTEGER,
    remove        INTEGER NOT NULL,
    outcome       TEXT,
    progress      TEXT,
    labels        TEXT NOT NULL,
    spec          TEXT NOT NULL,
    makes         TEXT, -- the golden snapshot that it becomes
    CHECK ((ended_at IS NULL) = (outcome IS NULL)),
    CHECK ((ended_at IS NULL) = (state IN ('queued', 'scheduled', 'preparing', 'running', 'paused', 'terminating'))),
    CHECK (state <> 'queued' OR token IS NULL),
    CHECK (state NOT IN ('scheduled', 'preparing', 'running', 'paused', 'terminating')
           OR token IS NOT NULL AND node IS NOT NULL),
    CHECK ((kill_signal IS NULL) = (kill_grace_ms IS NULL))
) STRICT;

INSERT INTO sandboxes_new (seq, id, name, state, created_at, started_at, ended_at, attempts, node, token, memory_mib,
                           cpus, image, kernel, kill_signal, kill_grace_ms, remove, outcome, progress, labels, spec)
SELECT seq, id, name, state, created_at, started_at, ended_at, attempts, node, token, memory_mib,
       cpus, image, kernel, kill_signal, kill_grace_ms, remove, outcome, progress, labels, spec
FROM sandboxes;

DROP TABLE sandboxes;
ALTER TABLE sandboxes_new RENAME TO sandboxes;

CREATE UNIQUE INDEX sandboxes_live_name ON sandboxes (name) WHERE name IS NOT NULL AND ended_at IS NULL;
CREATE INDEX sandboxes_name ON sandboxes (name, seq) WHERE name IS NOT NULL;
CREATE INDEX sandboxes_live ON sandboxes (seq, image, kernel) WHERE ended_at IS NULL;
CREATE INDEX sandboxes_held ON sandboxes (node, state, memory_mib) WHERE token IS NOT NULL AND ended_at IS NULL;
CREATE INDEX sandboxes_ended ON sandboxes (ended_at, seq) WHERE ended_at IS NOT NULL;
CREATE INDEX sandboxes_makes ON sandboxes (makes, seq) WHERE makes IS NOT NULL;
CREATE UNIQUE INDEX sandboxes_making ON sandboxes (makes) WHERE makes IS NOT NULL AND ended_at IS NULL;

-- In hundredths.
ALTER TABLE nodes ADD COLUMN overcommit INTEGER NOT NULL DEFAULT 100 CHECK (overcommit BETWEEN 100 AND 1000);
