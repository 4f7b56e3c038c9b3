-- What the hub keeps, in SQLite. Times are microseconds since 1970 (UTC), ids are 16 bytes, documents are JSON text.

-- Who the data belongs to. Every other table has the tenant first in its key.
CREATE TABLE tenants (
    tenant_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT;

-- Numbers that only grow: of cases, of versions of configurations, of the rules as a whole.
CREATE TABLE counters (
    tenant_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE settings (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    revision INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, key)
) STRICT;

CREATE TABLE agents (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    id BLOB NOT NULL,
    name TEXT NOT NULL,
    type TEXT NOT NULL,
    status TEXT NOT NULL,
    tags TEXT NOT NULL,
    config TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    retired_at INTEGER,
    last_seen INTEGER,
    version TEXT,
    config_hash TEXT,
    address TEXT,
    certificate_expires_at INTEGER,
    first_boot_id BLOB,
    boot_id BLOB,
    key_hash BLOB,
    health TEXT,
    ledger TEXT,
    update_state TEXT,
    PRIMARY KEY (tenant_id, id)
) STRICT;
CREATE INDEX agents_by_name ON agents (tenant_id, name, id);
-- Changes only when the status does: a heartbeat costs no index.
CREATE INDEX agents_by_status ON agents (tenant_id, status);

CREATE TABLE agent_tags (
    tenant_id INTEGER NOT NULL,
    tag TEXT NOT NULL,
    agent_id BLOB NOT NULL,
    PRIMARY KEY (tenant_id, tag, agent_id),
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX agent_tags_by_agent ON agent_tags (tenant_id, agent_id);

-- Which boot ids an agent gave, and how often it changed to each.
CREATE TABLE agent_boots (
    tenant_id INTEGER NOT NULL,
    agent_id BLOB NOT NULL,
    boot_id BLOB NOT NULL,
    first_seen INTEGER NOT NULL,
    last_began INTEGER NOT NULL,
    times INTEGER NOT NULL,
    address TEXT,
    key_hash BLOB,
    PRIMARY KEY (tenant_id, agent_id, boot_id),
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- No reference to agents: what was revoked stays revoked when the agent is gone.
CREATE TABLE certificates (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    serial TEXT NOT NULL,
    agent_id BLOB NOT NULL,
    key_hash BLOB NOT NULL,
    issuer TEXT NOT NULL,
    pem TEXT NOT NULL,
    not_before INTEGER NOT NULL,
    not_after INTEGER NOT NULL,
    issued_at INTEGER NOT NULL,
    superseded_at INTEGER,
    revoked_at INTEGER,
    revoked_reason TEXT,
    revoked_by TEXT,
    PRIMARY KEY (tenant_id, serial)
) STRICT;
CREATE INDEX certificates_by_agent ON certificates (tenant_id, agent_id, issued_at, serial);
CREATE INDEX certificates_by_key ON certificates (tenant_id, key_hash);
CREATE INDEX certificates_revoked ON certificates (tenant_id, revoked_at, serial) WHERE revoked_at IS NOT NULL;
CREATE INDEX certificates_ending ON certificates (tenant_id, not_after)
    WHERE superseded_at IS NULL AND revoked_at IS NULL;

CREATE TABLE enrol_tokens (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    id BLOB NOT NULL,
    secret_hash BLOB NOT NULL,
    label TEXT NOT NULL,
    tags TEXT NOT NULL,
    max_uses INTEGER NOT NULL,
    uses INTEGER NOT NULL,
    needs_approval INTEGER NOT NULL,
    allowed TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER,
    PRIMARY KEY (tenant_id, id)
) STRICT;
CREATE INDEX enrol_tokens_by_time ON enrol_tokens (tenant_id, created_at, id);

CREATE TABLE enrolments (
    tenant_id INTEGER NOT NULL,
    id BLOB NOT NULL,
    token_id BLOB NOT NULL,
    state TEXT NOT NULL,
    agent_id BLOB,
    key_hash BLOB NOT NULL,
    name TEXT NOT NULL,
    type TEXT NOT NULL,
    address TEXT NOT NULL,
    csr TEXT NOT NULL,
    serial TEXT,
    asked_at INTEGER NOT NULL,
    -- When the certificate was first given out: the replay window begins here.
    answered_at INTEGER,
    decided_at INTEGER,
    decided_by TEXT,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, token_id) REFERENCES enrol_tokens ON DELETE CASCADE
) STRICT;
CREATE INDEX enrolments_by_key ON enrolments (tenant_id, token_id, key_hash);
CREATE INDEX enrolments_by_time ON enrolments (tenant_id, asked_at, id);

CREATE TABLE users (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    id BLOB NOT NULL,
    name TEXT NOT NULL,
    display_name TEXT NOT NULL,
    password TEXT,
    must_change INTEGER NOT NULL,
    status TEXT NOT NULL,
    revision INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    last_login INTEGER,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name)
) STRICT;

CREATE TABLE sessions (
    tenant_id INTEGER NOT NULL,
    id_hash BLOB NOT NULL,
    user_id BLOB NOT NULL,
    csrf_hash BLOB NOT NULL,
    address TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_used INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, id_hash),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users ON DELETE CASCADE
) STRICT;
CREATE INDEX sessions_by_user ON sessions (tenant_id, user_id);

CREATE TABLE api_tokens (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    id BLOB NOT NULL,
    hash BLOB NOT NULL,
    name TEXT NOT NULL,
    principal TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER,
    last_used INTEGER,
    revoked_at INTEGER,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, hash)
) STRICT;

CREATE TABLE permissions (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    principal TEXT NOT NULL,
    action TEXT NOT NULL,
    -- Empty for everywhere: a key has no NULL in it.
    tag TEXT NOT NULL,
    granted_at INTEGER NOT NULL,
    granted_by TEXT NOT NULL,
    PRIMARY KEY (tenant_id, principal, action, tag)
) STRICT;

CREATE TABLE signing_keys (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    kid TEXT NOT NULL,
    purpose TEXT NOT NULL,
    public BLOB NOT NULL,
    sealed BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    retires_at INTEGER,
    PRIMARY KEY (tenant_id, kid)
) STRICT;

-- What came of an agent's boot: the hub's books.
CREATE TABLE streams (
    tenant_id INTEGER NOT NULL,
    agent_id BLOB NOT NULL,
    boot_id BLOB NOT NULL,
    stored INTEGER NOT NULL,
    gaps INTEGER NOT NULL,
    records INTEGER NOT NULL,
    duplicates INTEGER NOT NULL,
    rejected INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    ledger TEXT,
    PRIMARY KEY (tenant_id, agent_id, boot_id),
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents ON DELETE CASCADE
) STRICT;

-- The sequence numbers that came, as ranges that neither overlap nor touch.
CREATE TABLE stream_ranges (
    tenant_id INTEGER NOT NULL,
    agent_id BLOB NOT NULL,
    boot_id BLOB NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, agent_id, boot_id, first),
    FOREIGN KEY (tenant_id, agent_id, boot_id) REFERENCES streams ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- The position is the order of commits: there is one writer. AUTOINCREMENT never gives one twice.
-- No reference to agents: checked once a batch by streams, and events outlive their agent.
CREATE TABLE events (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id INTEGER NOT NULL,
    id BLOB NOT NULL,
    agent_id BLOB NOT NULL,
    boot_id BLOB NOT NULL,
    seq INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    timestamp INTEGER NOT NULL,
    type TEXT NOT NULL,
    class TEXT NOT NULL,
    shard TEXT NOT NULL,
    data TEXT NOT NULL,
    -- PostgreSQL's order needs the transaction, too; here it says nothing and takes no room.
    xid INTEGER NOT NULL GENERATED ALWAYS AS (0) VIRTUAL
) STRICT;
CREATE INDEX events_by_id ON events (tenant_id, id);
CREATE INDEX events_by_agent ON events (tenant_id, agent_id, id);

CREATE TABLE leases (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    name TEXT NOT NULL,
    holder TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, name)
) STRICT;

CREATE TABLE progress (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    name TEXT NOT NULL,
    xid INTEGER NOT NULL,
    position INTEGER NOT NULL,
    state BLOB,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, name)
) STRICT;

CREATE TABLE rules (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    id TEXT NOT NULL,
    version INTEGER NOT NULL,
    title TEXT NOT NULL,
    level TEXT NOT NULL,
    logsource TEXT NOT NULL,
    source TEXT NOT NULL,
    origin TEXT NOT NULL,
    enabled INTEGER NOT NULL,
    -- A rule that was removed keeps its place, so that its versions are never counted anew.
    deleted INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (tenant_id, id)
) STRICT;

CREATE TABLE rule_versions (
    tenant_id INTEGER NOT NULL,
    rule_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    source TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (tenant_id, rule_id, version),
    FOREIGN KEY (tenant_id, rule_id) REFERENCES rules ON DELETE CASCADE
) STRICT;

-- No reference to events or agents: a finding outlives what it was made of.
CREATE TABLE findings (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    id BLOB NOT NULL,
    event_id BLOB NOT NULL,
    timestamp INTEGER NOT NULL,
    severity TEXT NOT NULL,
    description TEXT NOT NULL,
    details TEXT NOT NULL,
    rule_id TEXT NOT NULL,
    rule_version INTEGER NOT NULL,
    dedupe_key TEXT NOT NULL,
    title TEXT NOT NULL,
    entity_kind TEXT,
    entity_value TEXT,
    agent_id BLOB,
    state TEXT NOT NULL,
    suppressed_until INTEGER,
    assignee TEXT,
    last_seen INTEGER NOT NULL,
    event_count INTEGER NOT NULL,
    -- How many rows finding_events has, and the highest position that was counted.
    kept INTEGER NOT NULL,
    counted_xid INTEGER NOT NULL,
    counted_position INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    changed_xid INTEGER NOT NULL,
    changed_position INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, id)
) STRICT;
CREATE UNIQUE INDEX findings_unresolved ON findings (tenant_id, rule_id, dedupe_key) WHERE state <> 'resolved';
CREATE INDEX findings_by_time ON findings (tenant_id, created_at, id);
CREATE INDEX findings_by_change ON findings (tenant_id, changed_xid, changed_position);
CREATE INDEX findings_by_agent ON findings (tenant_id, agent_id, created_at, id);

CREATE TABLE finding_events (
    tenant_id INTEGER NOT NULL,
    finding_id BLOB NOT NULL,
    event_id BLOB NOT NULL,
    xid INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, finding_id, event_id),
    FOREIGN KEY (tenant_id, finding_id) REFERENCES findings ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX finding_events_by_event ON finding_events (tenant_id, event_id);

CREATE TABLE finding_history (
    tenant_id INTEGER NOT NULL,
    finding_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    at INTEGER NOT NULL,
    by TEXT NOT NULL,
    action TEXT NOT NULL,
    old TEXT,
    new TEXT,
    PRIMARY KEY (tenant_id, finding_id, number),
    FOREIGN KEY (tenant_id, finding_id) REFERENCES findings ON DELETE CASCADE
) STRICT;

CREATE TABLE cases (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    id BLOB NOT NULL,
    number INTEGER NOT NULL,
    title TEXT NOT NULL,
    description TEXT NOT NULL,
    state TEXT NOT NULL,
    severity TEXT NOT NULL,
    assignee TEXT,
    revision INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    updated_at INTEGER NOT NULL,
    closed_at INTEGER,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, number)
) STRICT;

CREATE TABLE case_findings (
    tenant_id INTEGER NOT NULL,
    case_id BLOB NOT NULL,
    finding_id BLOB NOT NULL,
    PRIMARY KEY (tenant_id, case_id, finding_id),
    FOREIGN KEY (tenant_id, case_id) REFERENCES cases ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, finding_id) REFERENCES findings
) STRICT, WITHOUT ROWID;
CREATE INDEX case_findings_by_finding ON case_findings (tenant_id, finding_id);

CREATE TABLE case_history (
    tenant_id INTEGER NOT NULL,
    case_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    at INTEGER NOT NULL,
    by TEXT NOT NULL,
    action TEXT NOT NULL,
    old TEXT,
    new TEXT,
    PRIMARY KEY (tenant_id, case_id, number),
    FOREIGN KEY (tenant_id, case_id) REFERENCES cases ON DELETE CASCADE
) STRICT;

CREATE TABLE deliveries (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    id BLOB NOT NULL,
    target TEXT NOT NULL,
    payload TEXT NOT NULL,
    due INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    holder TEXT,
    held_until INTEGER,
    last_error TEXT,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, id)
) STRICT;
CREATE INDEX deliveries_waiting ON deliveries (tenant_id, due) WHERE state = 'waiting';
CREATE INDEX deliveries_by_time ON deliveries (tenant_id, created_at, id);

CREATE TABLE audit (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    record TEXT NOT NULL,
    previous BLOB NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (tenant_id, seq)
) STRICT;

CREATE TABLE idempotency (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    principal TEXT NOT NULL,
    key TEXT NOT NULL,
    request_hash BLOB NOT NULL,
    attempt INTEGER NOT NULL,
    locked_until INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    status INTEGER,
    headers TEXT,
    body BLOB,
    PRIMARY KEY (tenant_id, principal, key)
) STRICT;

CREATE TABLE blocks (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    kind TEXT NOT NULL,
    value TEXT NOT NULL,
    until INTEGER,
    reason TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (tenant_id, kind, value)
) STRICT;

CREATE TABLE configs (
    tenant_id INTEGER NOT NULL REFERENCES tenants,
    version INTEGER NOT NULL,
    document TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    comment TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (tenant_id, version)
) STRICT;

CREATE TABLE config_targets (
    tenant_id INTEGER NOT NULL,
    -- `all`, `tag` or `agent`; which is empty for all.
    kind TEXT NOT NULL,
    value TEXT NOT NULL,
    version INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (tenant_id, kind, value),
    FOREIGN KEY (tenant_id, version) REFERENCES configs
) STRICT;
