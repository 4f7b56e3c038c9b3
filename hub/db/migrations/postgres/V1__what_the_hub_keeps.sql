-- What the hub keeps, in PostgreSQL 14 or later. Text sorts by its bytes, as in SQLite; documents are `json`, which
-- takes any text that is JSON, also one with \u0000.

CREATE SEQUENCE event_positions CACHE 1000;
CREATE SEQUENCE changes;

-- Who the data belongs to. Every other table has the tenant first in its key.
CREATE TABLE tenants (
    tenant_id integer PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    created_at timestamptz NOT NULL
);

-- Numbers that only grow: of cases, of versions of configurations, of the rules as a whole.
CREATE TABLE counters (
    tenant_id integer NOT NULL,
    name text COLLATE "C" NOT NULL,
    value bigint NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

CREATE TABLE settings (
    tenant_id integer NOT NULL REFERENCES tenants,
    key text COLLATE "C" NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, key)
);

CREATE TABLE agents (
    tenant_id integer NOT NULL REFERENCES tenants,
    id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    tags json NOT NULL,
    config json NOT NULL,
    revision bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    retired_at timestamptz,
    last_seen timestamptz,
    version text COLLATE "C",
    config_hash text COLLATE "C",
    address text COLLATE "C",
    certificate_expires_at timestamptz,
    first_boot_id uuid,
    boot_id uuid,
    key_hash bytea,
    health json,
    ledger json,
    update_state json,
    PRIMARY KEY (tenant_id, id)
) WITH (fillfactor = 70);
CREATE INDEX agents_by_name ON agents (tenant_id, name, id);
-- Changes only when the status does: a heartbeat costs no index.
CREATE INDEX agents_by_status ON agents (tenant_id, status);

CREATE TABLE agent_tags (
    tenant_id integer NOT NULL,
    tag text COLLATE "C" NOT NULL,
    agent_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, tag, agent_id),
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents ON DELETE CASCADE
);
CREATE INDEX agent_tags_by_agent ON agent_tags (tenant_id, agent_id);

-- Which boot ids an agent gave, and how often it changed to each.
CREATE TABLE agent_boots (
    tenant_id integer NOT NULL,
    agent_id uuid NOT NULL,
    boot_id uuid NOT NULL,
    first_seen timestamptz NOT NULL,
    last_began timestamptz NOT NULL,
    times bigint NOT NULL,
    address text COLLATE "C",
    key_hash bytea,
    PRIMARY KEY (tenant_id, agent_id, boot_id),
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents ON DELETE CASCADE
);

-- No reference to agents: what was revoked stays revoked when the agent is gone.
CREATE TABLE certificates (
    tenant_id integer NOT NULL REFERENCES tenants,
    serial text COLLATE "C" NOT NULL,
    agent_id uuid NOT NULL,
    key_hash bytea NOT NULL,
    issuer text COLLATE "C" NOT NULL,
    pem text COLLATE "C" NOT NULL,
    not_before timestamptz NOT NULL,
    not_after timestamptz NOT NULL,
    issued_at timestamptz NOT NULL,
    superseded_at timestamptz,
    revoked_at timestamptz,
    revoked_reason text COLLATE "C",
    revoked_by text COLLATE "C",
    PRIMARY KEY (tenant_id, serial)
);
CREATE INDEX certificates_by_agent ON certificates (tenant_id, agent_id, issued_at, serial);
CREATE INDEX certificates_by_key ON certificates (tenant_id, key_hash);
CREATE INDEX certificates_revoked ON certificates (tenant_id, revoked_at, serial) WHERE revoked_at IS NOT NULL;
CREATE INDEX certificates_ending ON certificates (tenant_id, not_after)
    WHERE superseded_at IS NULL AND revoked_at IS NULL;

CREATE TABLE enrol_tokens (
    tenant_id integer NOT NULL REFERENCES tenants,
    id uuid NOT NULL,
    secret_hash bytea NOT NULL,
    label text COLLATE "C" NOT NULL,
    tags json NOT NULL,
    max_uses bigint NOT NULL,
    uses bigint NOT NULL,
    needs_approval boolean NOT NULL,
    allowed json NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text COLLATE "C" NOT NULL,
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX enrol_tokens_by_time ON enrol_tokens (tenant_id, created_at, id);

CREATE TABLE enrolments (
    tenant_id integer NOT NULL,
    id uuid NOT NULL,
    token_id uuid NOT NULL,
    state text COLLATE "C" NOT NULL,
    agent_id uuid,
    key_hash bytea NOT NULL,
    name text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    address text COLLATE "C" NOT NULL,
    csr text COLLATE "C" NOT NULL,
    serial text COLLATE "C",
    asked_at timestamptz NOT NULL,
    -- When the certificate was first given out: the replay window begins here.
    answered_at timestamptz,
    decided_at timestamptz,
    decided_by text COLLATE "C",
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, token_id) REFERENCES enrol_tokens ON DELETE CASCADE
);
CREATE INDEX enrolments_by_key ON enrolments (tenant_id, token_id, key_hash);
CREATE INDEX enrolments_by_time ON enrolments (tenant_id, asked_at, id);

CREATE TABLE users (
    tenant_id integer NOT NULL REFERENCES tenants,
    id uuid NOT NULL,
    name text COLLATE "C" NOT NULL,
    display_name text COLLATE "C" NOT NULL,
    password text COLLATE "C",
    must_change boolean NOT NULL,
    status text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    last_login timestamptz,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name)
);

CREATE TABLE sessions (
    tenant_id integer NOT NULL,
    id_hash bytea NOT NULL,
    user_id uuid NOT NULL,
    csrf_hash bytea NOT NULL,
    address text COLLATE "C" NOT NULL,
    user_agent text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    last_used timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id_hash),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users ON DELETE CASCADE
);
CREATE INDEX sessions_by_user ON sessions (tenant_id, user_id);

CREATE TABLE api_tokens (
    tenant_id integer NOT NULL REFERENCES tenants,
    id uuid NOT NULL,
    hash bytea NOT NULL,
    name text COLLATE "C" NOT NULL,
    principal text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text COLLATE "C" NOT NULL,
    expires_at timestamptz,
    last_used timestamptz,
    revoked_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, hash)
);

CREATE TABLE permissions (
    tenant_id integer NOT NULL REFERENCES tenants,
    principal text COLLATE "C" NOT NULL,
    action text COLLATE "C" NOT NULL,
    -- Empty for everywhere: a key has no NULL in it.
    tag text COLLATE "C" NOT NULL,
    granted_at timestamptz NOT NULL,
    granted_by text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, principal, action, tag)
);

CREATE TABLE signing_keys (
    tenant_id integer NOT NULL REFERENCES tenants,
    kid text COLLATE "C" NOT NULL,
    purpose text COLLATE "C" NOT NULL,
    public bytea NOT NULL,
    sealed bytea NOT NULL,
    created_at timestamptz NOT NULL,
    retires_at timestamptz,
    PRIMARY KEY (tenant_id, kid)
);

-- What came of an agent's boot: the hub's books.
CREATE TABLE streams (
    tenant_id integer NOT NULL,
    agent_id uuid NOT NULL,
    boot_id uuid NOT NULL,
    stored bigint NOT NULL,
    gaps bigint NOT NULL,
    records bigint NOT NULL,
    duplicates bigint NOT NULL,
    rejected bigint NOT NULL,
    last_seq bigint NOT NULL,
    first_seen timestamptz NOT NULL,
    last_seen timestamptz NOT NULL,
    ledger json,
    PRIMARY KEY (tenant_id, agent_id, boot_id),
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents ON DELETE CASCADE
) WITH (fillfactor = 70);

-- The sequence numbers that came, as ranges that neither overlap nor touch.
CREATE TABLE stream_ranges (
    tenant_id integer NOT NULL,
    agent_id uuid NOT NULL,
    boot_id uuid NOT NULL,
    first bigint NOT NULL,
    last bigint NOT NULL,
    PRIMARY KEY (tenant_id, agent_id, boot_id, first),
    FOREIGN KEY (tenant_id, agent_id, boot_id) REFERENCES streams ON DELETE CASCADE
) WITH (fillfactor = 70);

-- The order of commits is (xid, position), read up to the oldest transaction that still runs.
-- One partition a day of the hub's time. No reference to agents: checked once a batch by streams, and events outlive
-- their agent.
CREATE TABLE events (
    tenant_id integer NOT NULL,
    id uuid NOT NULL,
    agent_id uuid NOT NULL,
    boot_id uuid NOT NULL,
    seq bigint NOT NULL,
    received_at timestamptz NOT NULL,
    timestamp timestamptz NOT NULL,
    type text COLLATE "C" NOT NULL,
    class text COLLATE "C" NOT NULL,
    shard text COLLATE "C" NOT NULL,
    data json NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    position bigint NOT NULL DEFAULT nextval('event_positions')
) PARTITION BY RANGE (received_at);
CREATE INDEX events_by_id ON events (tenant_id, id);
CREATE INDEX events_by_agent ON events (tenant_id, agent_id, id);
-- The order of commits. With the shard, so that who follows one is not shown the rows of the others.
CREATE INDEX events_by_position ON events (tenant_id, xid, position, shard);


CREATE TABLE leases (
    tenant_id integer NOT NULL REFERENCES tenants,
    name text COLLATE "C" NOT NULL,
    holder text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, name)
) WITH (fillfactor = 70);

CREATE TABLE progress (
    tenant_id integer NOT NULL REFERENCES tenants,
    name text COLLATE "C" NOT NULL,
    xid bigint NOT NULL,
    position bigint NOT NULL,
    state bytea,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, name)
) WITH (fillfactor = 70);

CREATE TABLE rules (
    tenant_id integer NOT NULL REFERENCES tenants,
    id text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    title text COLLATE "C" NOT NULL,
    level text COLLATE "C" NOT NULL,
    logsource text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    origin text COLLATE "C" NOT NULL,
    enabled boolean NOT NULL,
    -- A rule that was removed keeps its place, so that its versions are never counted anew.
    deleted boolean NOT NULL,
    revision bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    updated_by text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE rule_versions (
    tenant_id integer NOT NULL,
    rule_id text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    source text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, rule_id, version),
    FOREIGN KEY (tenant_id, rule_id) REFERENCES rules ON DELETE CASCADE
);

-- No reference to events or agents: a finding outlives what it was made of.
CREATE TABLE findings (
    tenant_id integer NOT NULL REFERENCES tenants,
    id uuid NOT NULL,
    event_id uuid NOT NULL,
    timestamp timestamptz NOT NULL,
    severity text COLLATE "C" NOT NULL,
    description text COLLATE "C" NOT NULL,
    details json NOT NULL,
    rule_id text COLLATE "C" NOT NULL,
    rule_version bigint NOT NULL,
    dedupe_key text COLLATE "C" NOT NULL,
    title text COLLATE "C" NOT NULL,
    entity_kind text COLLATE "C",
    entity_value text COLLATE "C",
    agent_id uuid,
    state text COLLATE "C" NOT NULL,
    suppressed_until timestamptz,
    assignee text COLLATE "C",
    last_seen timestamptz NOT NULL,
    event_count bigint NOT NULL,
    -- How many rows finding_events has, and the highest position that was counted.
    kept bigint NOT NULL,
    counted_xid bigint NOT NULL,
    counted_position bigint NOT NULL,
    revision bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    changed_xid xid8 NOT NULL,
    changed_position bigint NOT NULL,
    PRIMARY KEY (tenant_id, id)
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX findings_unresolved ON findings (tenant_id, rule_id, dedupe_key) WHERE state <> 'resolved';
CREATE INDEX findings_by_time ON findings (tenant_id, created_at, id);
CREATE INDEX findings_by_change ON findings (tenant_id, changed_xid, changed_position);
CREATE INDEX findings_by_agent ON findings (tenant_id, agent_id, created_at, id);

CREATE TABLE finding_events (
    tenant_id integer NOT NULL,
    finding_id uuid NOT NULL,
    event_id uuid NOT NULL,
    xid bigint NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (tenant_id, finding_id, event_id),
    FOREIGN KEY (tenant_id, finding_id) REFERENCES findings ON DELETE CASCADE
);
CREATE INDEX finding_events_by_event ON finding_events (tenant_id, event_id);

CREATE TABLE finding_history (
    tenant_id integer NOT NULL,
    finding_id uuid NOT NULL,
    number bigint NOT NULL,
    at timestamptz NOT NULL,
    by text COLLATE "C" NOT NULL,
    action text COLLATE "C" NOT NULL,
    old text COLLATE "C",
    new text COLLATE "C",
    PRIMARY KEY (tenant_id, finding_id, number),
    FOREIGN KEY (tenant_id, finding_id) REFERENCES findings ON DELETE CASCADE
);

CREATE TABLE cases (
    tenant_id integer NOT NULL REFERENCES tenants,
    id uuid NOT NULL,
    number bigint NOT NULL,
    title text COLLATE "C" NOT NULL,
    description text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL,
    severity text COLLATE "C" NOT NULL,
    assignee text COLLATE "C",
    revision bigint NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text COLLATE "C" NOT NULL,
    updated_at timestamptz NOT NULL,
    closed_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, number)
);

CREATE TABLE case_findings (
    tenant_id integer NOT NULL,
    case_id uuid NOT NULL,
    finding_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, case_id, finding_id),
    FOREIGN KEY (tenant_id, case_id) REFERENCES cases ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, finding_id) REFERENCES findings
);
CREATE INDEX case_findings_by_finding ON case_findings (tenant_id, finding_id);

CREATE TABLE case_history (
    tenant_id integer NOT NULL,
    case_id uuid NOT NULL,
    number bigint NOT NULL,
    at timestamptz NOT NULL,
    by text COLLATE "C" NOT NULL,
    action text COLLATE "C" NOT NULL,
    old text COLLATE "C",
    new text COLLATE "C",
    PRIMARY KEY (tenant_id, case_id, number),
    FOREIGN KEY (tenant_id, case_id) REFERENCES cases ON DELETE CASCADE
);

CREATE TABLE deliveries (
    tenant_id integer NOT NULL REFERENCES tenants,
    id uuid NOT NULL,
    target text COLLATE "C" NOT NULL,
    payload json NOT NULL,
    due timestamptz NOT NULL,
    state text COLLATE "C" NOT NULL,
    attempts bigint NOT NULL,
    holder text COLLATE "C",
    held_until timestamptz,
    last_error text COLLATE "C",
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX deliveries_waiting ON deliveries (tenant_id, due) WHERE state = 'waiting';
CREATE INDEX deliveries_by_time ON deliveries (tenant_id, created_at, id);

CREATE TABLE audit (
    tenant_id integer NOT NULL REFERENCES tenants,
    seq bigint NOT NULL,
    at timestamptz NOT NULL,
    actor text COLLATE "C" NOT NULL,
    action text COLLATE "C" NOT NULL,
    object text COLLATE "C" NOT NULL,
    record text COLLATE "C" NOT NULL,
    previous bytea NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (tenant_id, seq)
);

CREATE TABLE idempotency (
    tenant_id integer NOT NULL REFERENCES tenants,
    principal text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    request_hash bytea NOT NULL,
    attempt bigint NOT NULL,
    locked_until timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    status bigint,
    headers json,
    body bytea,
    PRIMARY KEY (tenant_id, principal, key)
);

CREATE TABLE blocks (
    tenant_id integer NOT NULL REFERENCES tenants,
    kind text COLLATE "C" NOT NULL,
    value text COLLATE "C" NOT NULL,
    until timestamptz,
    reason text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, kind, value)
);

CREATE TABLE configs (
    tenant_id integer NOT NULL REFERENCES tenants,
    version bigint NOT NULL,
    document json NOT NULL,
    sha256 text COLLATE "C" NOT NULL,
    comment text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, version)
);

CREATE TABLE config_targets (
    tenant_id integer NOT NULL,
    -- `all`, `tag` or `agent`; which is empty for all.
    kind text COLLATE "C" NOT NULL,
    value text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    priority bigint NOT NULL,
    updated_at timestamptz NOT NULL,
    updated_by text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, kind, value),
    FOREIGN KEY (tenant_id, version) REFERENCES configs
);
