"""The tables of a SQLite store, step by step: a file is brought forward from whichever step it is at."""

APPLICATION_ID = 0x52656C79
"""``Rely``: marks a file as a relay's, so that a wrong path is refused and not written into."""

_KEYS = """
CREATE TABLE keys (
  id INTEGER PRIMARY KEY,
  tenant TEXT NOT NULL, method TEXT NOT NULL, key BLOB NOT NULL,
  fingerprint BLOB NOT NULL, state TEXT NOT NULL, fence INTEGER NOT NULL, owner TEXT NOT NULL,
  first_seen REAL NOT NULL, changed_at REAL NOT NULL, lease_until REAL NOT NULL, expires_at REAL NOT NULL,
  answer BLOB, reference TEXT NOT NULL, attempts INTEGER NOT NULL, afterwards TEXT NOT NULL,
  was_ambiguous INTEGER NOT NULL
);
CREATE UNIQUE INDEX keys_by_scope ON keys (tenant, method, key);
CREATE INDEX keys_unsettled ON keys (id) WHERE state IN ('in_progress', 'ambiguous');
CREATE INDEX keys_expiring ON keys (expires_at) WHERE state IN ('done', 'expired');
"""

_JOBS = """
CREATE TABLE jobs (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL,
  tenant TEXT NOT NULL, method TEXT NOT NULL, request BLOB NOT NULL, metadata TEXT NOT NULL,
  key BLOB NOT NULL, fingerprint BLOB NOT NULL, order_key TEXT NOT NULL, priority INTEGER NOT NULL,
  traceparent TEXT NOT NULL,
  state TEXT NOT NULL, gate INTEGER NOT NULL, rank REAL NOT NULL,
  submitted_at REAL NOT NULL, ready_at REAL NOT NULL, expires_at REAL NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, lost_leases INTEGER NOT NULL DEFAULT 0, tries TEXT NOT NULL DEFAULT '',
  fence INTEGER NOT NULL DEFAULT 0, worker TEXT NOT NULL DEFAULT '', lease_until REAL NOT NULL DEFAULT 0,
  started_at REAL NOT NULL DEFAULT 0, finished_at REAL NOT NULL DEFAULT 0,
  answer BLOB, dead_letter_id TEXT NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX jobs_by_id ON jobs (id);
CREATE INDEX jobs_by_key ON jobs (tenant, method, key);
CREATE INDEX jobs_by_state ON jobs (state, seq);
CREATE INDEX jobs_ready ON jobs (rank, seq) WHERE gate = 0;
CREATE INDEX jobs_ready_by_method ON jobs (method, rank, seq) WHERE gate = 0;
CREATE INDEX jobs_delayed ON jobs (ready_at) WHERE gate = 1;
CREATE INDEX jobs_leased ON jobs (lease_until) WHERE state = 'running';
CREATE INDEX jobs_expiring ON jobs (expires_at) WHERE state IN ('pending', 'paused');
CREATE INDEX jobs_ended ON jobs (finished_at) WHERE state IN ('completed', 'cancelled', 'dead');
CREATE INDEX jobs_in_order ON jobs (tenant, order_key, state, seq) WHERE order_key <> '';
CREATE TABLE order_holds (
  tenant TEXT NOT NULL, order_key TEXT NOT NULL, until REAL NOT NULL, PRIMARY KEY (tenant, order_key)
);
CREATE TABLE job_counts (state TEXT PRIMARY KEY, n INTEGER NOT NULL);
CREATE TRIGGER jobs_inserted AFTER INSERT ON jobs BEGIN
  INSERT INTO job_counts VALUES (new.state, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER jobs_deleted AFTER DELETE ON jobs BEGIN
  UPDATE job_counts SET n = n - 1 WHERE state = old.state;
END;
CREATE TRIGGER jobs_moved AFTER UPDATE OF state ON jobs WHEN old.state <> new.state BEGIN
  UPDATE job_counts SET n = n - 1 WHERE state = old.state;
  INSERT INTO job_counts VALUES (new.state, 1) ON CONFLICT DO UPDATE SET n = n + 1;
END;
"""

_LETTERS = """
CREATE TABLE letters (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL,
  tenant TEXT NOT NULL, method TEXT NOT NULL, request BLOB NOT NULL, metadata TEXT NOT NULL,
  key BLOB NOT NULL, fingerprint BLOB NOT NULL, order_key TEXT NOT NULL, priority INTEGER NOT NULL,
  traceparent TEXT NOT NULL,
  cause TEXT NOT NULL, state TEXT NOT NULL, died_at REAL NOT NULL, expires_at REAL NOT NULL,
  submitted_at REAL NOT NULL, attempts INTEGER NOT NULL, tries TEXT NOT NULL, code INTEGER NOT NULL,
  message TEXT NOT NULL, job_id TEXT NOT NULL, policy TEXT NOT NULL, replays TEXT NOT NULL,
  note TEXT NOT NULL, fields TEXT NOT NULL
);
CREATE UNIQUE INDEX letters_by_id ON letters (id);
CREATE INDEX letters_by_death ON letters (died_at, seq);
CREATE INDEX letters_by_group ON letters (method, cause, code, state, died_at, seq);
CREATE INDEX letters_expiring ON letters (expires_at) WHERE state IN ('open', 'resolved', 'discarded');
CREATE TABLE letter_counts (
  tenant TEXT NOT NULL, method TEXT NOT NULL, cause TEXT NOT NULL, code INTEGER NOT NULL, state TEXT NOT NULL,
  n INTEGER NOT NULL, PRIMARY KEY (tenant, method, cause, code, state)
) WITHOUT ROWID;
CREATE TRIGGER letters_inserted AFTER INSERT ON letters BEGIN
  INSERT INTO letter_counts VALUES (new.tenant, new.method, new.cause, new.code, new.state, 1)
    ON CONFLICT DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER letters_deleted AFTER DELETE ON letters BEGIN
  UPDATE letter_counts SET n = n - 1 WHERE tenant = old.tenant AND method = old.method
    AND cause = old.cause AND code = old.code AND state = old.state;
END;
CREATE TRIGGER letters_moved AFTER UPDATE OF cause, code, state ON letters BEGIN
  UPDATE letter_counts SET n = n - 1 WHERE tenant = old.tenant AND method = old.method
    AND cause = old.cause AND code = old.code AND state = old.state;
  INSERT INTO letter_counts VALUES (new.tenant, new.method, new.cause, new.code, new.state, 1)
    ON CONFLICT DO UPDATE SET n = n + 1;
END;
"""

_STORE = """
CREATE TABLE store (only INTEGER PRIMARY KEY CHECK (only = 1),
  last_fence INTEGER NOT NULL, clock REAL NOT NULL,
  probes INTEGER NOT NULL);
INSERT INTO store VALUES (1, 0, 0, 0);
"""

MIGRATIONS = (_STORE + _KEYS + _JOBS + _LETTERS,)
"""Forward only. ``user_version`` of a file is how many of them it has seen; a released one never changes."""
