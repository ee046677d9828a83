-- Timestamps are microseconds since the epoch. What is queried is a column; the rest is JSON.

PRAGMA application_id = 0x54415254; -- "TART"

-- `seq` is the order of acceptance. A lease is held while `token` is set and the sandbox has not ended.
CREATE TABLE sandboxes (
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
    CHECK ((ended_at IS NULL) = (outcome IS NULL)),
    CHECK ((ended_at IS NULL) = (state IN ('queued', 'scheduled', 'preparing', 'running', 'terminating'))),
    CHECK (state <> 'queued' OR token IS NULL),
    CHECK (state NOT IN ('scheduled', 'preparing', 'running', 'terminating') OR token IS NOT NULL AND node IS NOT NULL),
    CHECK ((kill_signal IS NULL) = (kill_grace_ms IS NULL))
) STRICT;

CREATE UNIQUE INDEX sandboxes_live_name ON sandboxes (name) WHERE name IS NOT NULL AND ended_at IS NULL;
CREATE INDEX sandboxes_name ON sandboxes (name, seq) WHERE name IS NOT NULL;
CREATE INDEX sandboxes_live ON sandboxes (seq, image, kernel) WHERE ended_at IS NULL;
CREATE INDEX sandboxes_held ON sandboxes (node, state, memory_mib) WHERE token IS NOT NULL AND ended_at IS NULL;

-- One entry per sandbox that has not ended: waiting (`visible_at`; 0 = visible, else when it will be) or leased.
CREATE TABLE queue (
    seq            INTEGER PRIMARY KEY REFERENCES sandboxes (seq),
    visible_at     INTEGER,
    start_deadline INTEGER NOT NULL,
    lease_until    INTEGER,
    CHECK ((visible_at IS NULL) <> (lease_until IS NULL))
) STRICT;

CREATE INDEX queue_order ON queue (visible_at, seq, start_deadline) WHERE visible_at IS NOT NULL;
CREATE INDEX queue_start ON queue (start_deadline) WHERE visible_at IS NOT NULL;
CREATE INDEX queue_leases ON queue (lease_until) WHERE lease_until IS NOT NULL;

-- An attempt fails at most once.
CREATE TABLE failures (
    sandbox INTEGER NOT NULL REFERENCES sandboxes (seq) ON DELETE CASCADE,
    attempt INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    node    TEXT,
    why     TEXT NOT NULL,
    PRIMARY KEY (sandbox, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE dead_letters (
    sandbox INTEGER PRIMARY KEY REFERENCES sandboxes (seq) ON DELETE CASCADE,
    at      INTEGER NOT NULL,
    why     TEXT NOT NULL
) STRICT;

CREATE INDEX dead_letters_at ON dead_letters (at, sandbox);

-- `answer` is the record as it was accepted, as JSON: the sandbox itself may be gone.
CREATE TABLE idempotency (
    caller  TEXT NOT NULL,
    key     TEXT NOT NULL,
    request BLOB NOT NULL,
    at      INTEGER NOT NULL,
    answer  TEXT NOT NULL,
    PRIMARY KEY (caller, key)
) STRICT;

CREATE INDEX idempotency_at ON idempotency (at);

CREATE TABLE nodes (
    id           TEXT PRIMARY KEY,
    memory_mib   INTEGER NOT NULL,
    overhead_mib INTEGER NOT NULL,
    start_slots  INTEGER NOT NULL,
    max_cpus     INTEGER NOT NULL,
    seen_at      INTEGER NOT NULL
) STRICT;

CREATE TABLE images (
    name       TEXT PRIMARY KEY,
    digest     TEXT NOT NULL,
    size       INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX images_digest ON images (digest);

-- `seq` is the order of adding: the highest is the newest.
CREATE TABLE kernels (
    seq        INTEGER PRIMARY KEY,
    digest     TEXT NOT NULL UNIQUE,
    release    TEXT NOT NULL,
    size       INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX kernels_release ON kernels (release);

CREATE TABLE templates (
    name       TEXT PRIMARY KEY,
    image      TEXT NOT NULL,
    spec       TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX templates_image ON templates (image);

CREATE TABLE keys (
    name       TEXT PRIMARY KEY,
    hash       BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX keys_hash ON keys (hash);
