"""The tables of a PostgreSQL store, step by step; every relay brings them forward, one at a time."""

from relay_service.stores.interface import StoreError
from relay_service.stores.postgres.running import Connection, advisory_number

_KEYS = """
CREATE SEQUENCE fences;
CREATE TABLE keys (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant text NOT NULL, method text NOT NULL, key bytea NOT NULL,
  fingerprint bytea NOT NULL, state text NOT NULL, fence bigint NOT NULL, owner text NOT NULL,
  first_seen double precision NOT NULL, changed_at double precision NOT NULL,
  lease_until double precision NOT NULL, expires_at double precision NOT NULL,
  answer bytea, reference text NOT NULL, attempts integer NOT NULL, afterwards text NOT NULL,
  was_ambiguous integer NOT NULL
);
CREATE UNIQUE INDEX keys_by_scope ON keys (tenant, method, key);
CREATE INDEX keys_unsettled ON keys (id) WHERE state IN ('in_progress', 'ambiguous');
CREATE INDEX keys_expiring ON keys (expires_at) WHERE state IN ('done', 'expired');
"""

_JOBS = """
CREATE TABLE jobs (
  seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text NOT NULL,
  tenant text NOT NULL, method text NOT NULL, request bytea NOT NULL, metadata text NOT NULL,
  key bytea NOT NULL, fingerprint bytea NOT NULL, order_key text NOT NULL, priority integer NOT NULL,
  traceparent text NOT NULL,
  state text NOT NULL, gate integer NOT NULL, rank double precision NOT NULL,
  submitted_at double precision NOT NULL, ready_at double precision NOT NULL,
  expires_at double precision NOT NULL,
  attempts integer NOT NULL DEFAULT 0, lost_leases integer NOT NULL DEFAULT 0, tries text NOT NULL DEFAULT '',
  fence bigint NOT NULL DEFAULT 0, worker text NOT NULL DEFAULT '',
  lease_until double precision NOT NULL DEFAULT 0, started_at double precision NOT NULL DEFAULT 0,
  finished_at double precision NOT NULL DEFAULT 0, answer bytea, dead_letter_id text NOT NULL DEFAULT ''
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
  tenant text, order_key text, until double precision NOT NULL, PRIMARY KEY (tenant, order_key)
);
"""

_LETTERS = """
CREATE TABLE letters (
  seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text NOT NULL,
  tenant text NOT NULL, method text NOT NULL, request bytea NOT NULL, metadata text NOT NULL,
  key bytea NOT NULL, fingerprint bytea NOT NULL, order_key text NOT NULL, priority integer NOT NULL,
  traceparent text NOT NULL,
  cause text NOT NULL, state text NOT NULL, died_at double precision NOT NULL,
  expires_at double precision NOT NULL, submitted_at double precision NOT NULL,
  attempts integer NOT NULL, tries text NOT NULL, code integer NOT NULL,
  message text NOT NULL, job_id text NOT NULL, policy text NOT NULL, replays text NOT NULL,
  note text NOT NULL, fields text NOT NULL
);
CREATE UNIQUE INDEX letters_by_id ON letters (id);
CREATE INDEX letters_by_death ON letters (died_at, seq);
CREATE INDEX letters_by_group ON letters (method, cause, code, state, died_at, seq);
CREATE INDEX letters_expiring ON letters (expires_at) WHERE state IN ('open', 'resolved', 'discarded');
"""

_COUNTS = """
CREATE TABLE job_counts (
  state text, shard integer, n bigint NOT NULL, PRIMARY KEY (state, shard)
) WITH (fillfactor = 50);
CREATE TABLE letter_counts (
  tenant text, method text, cause text, code integer, state text, shard integer, n bigint NOT NULL,
  PRIMARY KEY (tenant, method, cause, code, state, shard)
) WITH (fillfactor = 50);

CREATE FUNCTION count_jobs() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO job_counts SELECT state, pg_backend_pid() % 256, count(*) FROM added GROUP BY state
      ON CONFLICT (state, shard) DO UPDATE SET n = job_counts.n + excluded.n;
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO job_counts SELECT state, pg_backend_pid() % 256, -count(*) FROM removed GROUP BY state
      ON CONFLICT (state, shard) DO UPDATE SET n = job_counts.n + excluded.n;
  ELSE
    INSERT INTO job_counts SELECT state, pg_backend_pid() % 256, sum(d) FROM
      (SELECT state, 1 AS d FROM added UNION ALL SELECT state, -1 FROM removed) AS moves
      GROUP BY state HAVING sum(d) <> 0 ORDER BY state
      ON CONFLICT (state, shard) DO UPDATE SET n = job_counts.n + excluded.n;
  END IF;
  RETURN NULL;
END $body$;

CREATE FUNCTION count_letters() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO letter_counts SELECT tenant, method, cause, code, state, pg_backend_pid() % 256, count(*)
      FROM added GROUP BY tenant, method, cause, code, state
      ON CONFLICT (tenant, method, cause, code, state, shard) DO UPDATE SET n = letter_counts.n + excluded.n;
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO letter_counts SELECT tenant, method, cause, code, state, pg_backend_pid() % 256, -count(*)
      FROM removed GROUP BY tenant, method, cause, code, state
      ON CONFLICT (tenant, method, cause, code, state, shard) DO UPDATE SET n = letter_counts.n + excluded.n;
  ELSE
    INSERT INTO letter_counts SELECT tenant, method, cause, code, state, pg_backend_pid() % 256, sum(d) FROM
      (SELECT tenant, method, cause, code, state, 1 AS d FROM added
       UNION ALL SELECT tenant, method, cause, code, state, -1 FROM removed) AS moves
      GROUP BY tenant, method, cause, code, state HAVING sum(d) <> 0
      ORDER BY tenant, method, cause, code, state
      ON CONFLICT (tenant, method, cause, code, state, shard) DO UPDATE SET n = letter_counts.n + excluded.n;
  END IF;
  RETURN NULL;
END $body$;
"""
# Each server process counts in a row of its own (nearly: 256 of them), so that commits of different
# connections do not wait for one hot row.

_TRIGGERS = "".join(
    f"""
CREATE TRIGGER {table}_inserted AFTER INSERT ON {table} REFERENCING NEW TABLE AS added
  FOR EACH STATEMENT EXECUTE FUNCTION count_{table}();
CREATE TRIGGER {table}_deleted AFTER DELETE ON {table} REFERENCING OLD TABLE AS removed
  FOR EACH STATEMENT EXECUTE FUNCTION count_{table}();
CREATE TRIGGER {table}_moved AFTER UPDATE ON {table} REFERENCING OLD TABLE AS removed NEW TABLE AS added
  FOR EACH STATEMENT EXECUTE FUNCTION count_{table}();
"""
    for table in ("jobs", "letters")
)

MIGRATIONS = (_KEYS + _JOBS + _LETTERS + _COUNTS + _TRIGGERS,)
"""Forward only; a released one never changes."""


async def migrate(connection: Connection, where: str) -> str:
    """Bring the schema forward, one relay at a time; returns the name of the schema.

    Raises `StoreError` when there is no schema to use or a newer relay wrote this one.
    """
    async with connection.transaction():
        schema = await connection.fetchval("SELECT current_schema()")
        if schema is None:
            raise StoreError(f"{where} has no schema that its search_path names: create it, or name another")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", advisory_number("migrations", schema))
        await connection.execute("CREATE TABLE IF NOT EXISTS relay_store (version integer NOT NULL)")
        version = await connection.fetchval("SELECT version FROM relay_store")
        if version is None:
            version = 0
            await connection.execute("INSERT INTO relay_store VALUES (0)")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{where} (schema {schema}) was written by a newer relay (version {version}, this one knows"
                f" {len(MIGRATIONS)}): start that one again, or give this one a schema of its own"
            )
        for script in MIGRATIONS[version:]:
            await connection.execute(script)
        await connection.execute("UPDATE relay_store SET version = $1", len(MIGRATIONS))
    return str(schema)
