//! The schema as numbered steps: step n takes a catalog of `user_version` n to n + 1. A step that was ever released is
//! never changed; a new one is appended.

/// SQL of each step.
pub(super) const MIGRATIONS: &[&str] = &[V1, V2, V3, V4, V5, V6, V7, V8];

/// `application_id` of a catalog: "TRNE".
pub(super) const APPLICATION_ID: i32 = 0x5452_4e45;

const V1: &str = "
CREATE TABLE state (k TEXT PRIMARY KEY, v INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO state VALUES ('last_time', 0), ('generation', 0);

CREATE TABLE accounts (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, is_default INTEGER NOT NULL, created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX accounts_default ON accounts (is_default) WHERE is_default = 1;

CREATE TABLE kms_instances (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
  is_default INTEGER NOT NULL, created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX kms_instances_default ON kms_instances (is_default) WHERE is_default = 1;

CREATE TABLE keys (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, instance TEXT NOT NULL REFERENCES kms_instances,
  state TEXT NOT NULL, is_default INTEGER NOT NULL, current_version INTEGER NOT NULL, description TEXT,
  created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX keys_default ON keys (is_default) WHERE is_default = 1;

CREATE TABLE key_aliases (alias TEXT PRIMARY KEY, key TEXT NOT NULL REFERENCES keys) STRICT, WITHOUT ROWID;
CREATE INDEX key_aliases_key ON key_aliases (key);

CREATE TABLE key_versions (
  key TEXT NOT NULL REFERENCES keys, version INTEGER NOT NULL, wrapped BLOB NOT NULL, created_at INTEGER NOT NULL,
  PRIMARY KEY (key, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE settings (k TEXT PRIMARY KEY, v TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE layers (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, volume TEXT, parent TEXT REFERENCES layers,
  size_bytes INTEGER NOT NULL, state TEXT NOT NULL, cipher TEXT NOT NULL, key TEXT REFERENCES keys,
  key_version INTEGER NOT NULL, wrapped_key BLOB NOT NULL, point TEXT, sealed_generation INTEGER, sealed_mac BLOB,
  stored_bytes INTEGER NOT NULL, created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX layers_parent ON layers (parent);
CREATE INDEX layers_key ON layers (key);
CREATE INDEX layers_volume ON layers (volume);
CREATE INDEX layers_point ON layers (point);

-- nearest first: place 0, 1, …; a layer's own point, once sealed, at the lowest place
CREATE TABLE layer_points (
  layer TEXT NOT NULL REFERENCES layers ON DELETE CASCADE, place INTEGER NOT NULL, point TEXT NOT NULL,
  PRIMARY KEY (layer, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX layer_points_point ON layer_points (point);

CREATE TABLE volumes (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, name TEXT UNIQUE, size_bytes INTEGER NOT NULL,
  kind TEXT NOT NULL, cipher TEXT NOT NULL, key TEXT REFERENCES keys, active TEXT NOT NULL REFERENCES layers,
  next TEXT REFERENCES layers, source_snapshot TEXT, deleting INTEGER NOT NULL, created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX volumes_active ON volumes (active);
CREATE INDEX volumes_next ON volumes (next);
CREATE INDEX volumes_key ON volumes (key);

CREATE TABLE snapshots (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, name TEXT NOT NULL UNIQUE, description TEXT,
  layer TEXT NOT NULL REFERENCES layers, volume TEXT, size_bytes INTEGER NOT NULL, kind TEXT NOT NULL,
  cipher TEXT NOT NULL, key TEXT REFERENCES keys, state TEXT NOT NULL, progress_percent INTEGER NOT NULL,
  created_by TEXT NOT NULL, source_snapshot TEXT, source_region TEXT, changed_bytes INTEGER NOT NULL,
  shipped_bytes INTEGER NOT NULL, stored_bytes INTEGER NOT NULL, group_id TEXT, retention_days INTEGER,
  created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshots_layer ON snapshots (layer);
CREATE INDEX snapshots_volume ON snapshots (volume);
CREATE INDEX snapshots_key ON snapshots (key);

CREATE TABLE tags (
  resource TEXT NOT NULL, k TEXT NOT NULL, v TEXT NOT NULL, PRIMARY KEY (resource, k)
) STRICT, WITHOUT ROWID;

CREATE TABLE tasks (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, kind TEXT NOT NULL, resource TEXT, detail TEXT NOT NULL,
  state TEXT NOT NULL, bytes_done INTEGER NOT NULL, bytes_total INTEGER NOT NULL, error TEXT,
  created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tasks_state ON tasks (state, created_at);
";

const V2: &str = "
CREATE TABLE folds (
  parent TEXT PRIMARY KEY REFERENCES layers ON DELETE CASCADE, child TEXT NOT NULL UNIQUE REFERENCES layers ON DELETE CASCADE,
  way TEXT NOT NULL, next_chunk INTEGER NOT NULL, mac BLOB, moved_bytes INTEGER NOT NULL, is_moved INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

// By the root key, over what never changes of a snapshot.
const V3: &str = "ALTER TABLE snapshots ADD COLUMN mac BLOB;";

// Both or none: until when a snapshot may not be deleted, and who may lift that.
const V4: &str = "
ALTER TABLE snapshots ADD COLUMN locked_until INTEGER;
ALTER TABLE snapshots ADD COLUMN lock_mode TEXT;
";

// A copy that waits has no layer yet. SQLite can't take a NOT NULL away but by a new table; nothing refers to this one.
// Of a task: how fast it goes, the number its waiters end with, and by the root key, over what was asked.
const V5: &str = "
CREATE TABLE snapshots_5 (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, name TEXT NOT NULL UNIQUE, description TEXT,
  layer TEXT REFERENCES layers, volume TEXT, size_bytes INTEGER NOT NULL, kind TEXT NOT NULL,
  cipher TEXT NOT NULL, key TEXT REFERENCES keys, state TEXT NOT NULL, progress_percent INTEGER NOT NULL,
  created_by TEXT NOT NULL, source_snapshot TEXT, source_region TEXT, changed_bytes INTEGER NOT NULL,
  shipped_bytes INTEGER NOT NULL, stored_bytes INTEGER NOT NULL, group_id TEXT, retention_days INTEGER,
  created_at INTEGER NOT NULL, mac BLOB, locked_until INTEGER, lock_mode TEXT
) STRICT, WITHOUT ROWID;
INSERT INTO snapshots_5 SELECT id, account, name, description, layer, volume, size_bytes, kind, cipher, key, state,
  progress_percent, created_by, source_snapshot, source_region, changed_bytes, shipped_bytes, stored_bytes, group_id,
  retention_days, created_at, mac, locked_until, lock_mode FROM snapshots;
DROP TABLE snapshots;
ALTER TABLE snapshots_5 RENAME TO snapshots;
CREATE INDEX snapshots_layer ON snapshots (layer);
CREATE INDEX snapshots_volume ON snapshots (volume);
CREATE INDEX snapshots_key ON snapshots (key);
CREATE INDEX snapshots_group ON snapshots (group_id);
ALTER TABLE tasks ADD COLUMN bytes_per_second INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN exit INTEGER;
ALTER TABLE tasks ADD COLUMN mac BLOB;
UPDATE tasks SET state = 'failed', exit = 4,
  error = 'it was begun by an earlier version, which alone could go on with it: delete its snapshot, and copy again'
  WHERE state IN ('queued', 'running');
CREATE INDEX tasks_resource ON tasks (resource);
";

// What is in the bin has freed its name. Nothing refers to snapshots, and nothing of these tables does: a step may make that table
// anew. The MACs are by the root key, over the dates.
const V6: &str = "
CREATE TABLE snapshots_6 (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, name TEXT NOT NULL, description TEXT,
  layer TEXT REFERENCES layers, volume TEXT, size_bytes INTEGER NOT NULL, kind TEXT NOT NULL,
  cipher TEXT NOT NULL, key TEXT REFERENCES keys, state TEXT NOT NULL, progress_percent INTEGER NOT NULL,
  created_by TEXT NOT NULL, source_snapshot TEXT, source_region TEXT, changed_bytes INTEGER NOT NULL,
  shipped_bytes INTEGER NOT NULL, stored_bytes INTEGER NOT NULL, group_id TEXT, retention_days INTEGER,
  created_at INTEGER NOT NULL, mac BLOB, locked_until INTEGER, lock_mode TEXT
) STRICT, WITHOUT ROWID;
INSERT INTO snapshots_6 SELECT id, account, name, description, layer, volume, size_bytes, kind, cipher, key, state,
  progress_percent, created_by, source_snapshot, source_region, changed_bytes, shipped_bytes, stored_bytes, group_id,
  retention_days, created_at, mac, locked_until, lock_mode FROM snapshots;
DROP TABLE snapshots;
ALTER TABLE snapshots_6 RENAME TO snapshots;
CREATE UNIQUE INDEX snapshots_name ON snapshots (name) WHERE state <> 'deleted';
CREATE INDEX snapshots_deleted ON snapshots (name) WHERE state = 'deleted';
CREATE INDEX snapshots_layer ON snapshots (layer);
CREATE INDEX snapshots_volume ON snapshots (volume);
CREATE INDEX snapshots_key ON snapshots (key);
CREATE INDEX snapshots_group ON snapshots (group_id);
CREATE TABLE bin (
  snapshot TEXT PRIMARY KEY, deleted_at INTEGER NOT NULL, purge_at INTEGER NOT NULL, mac BLOB
) STRICT, WITHOUT ROWID;
CREATE TABLE bin_rules (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, kind TEXT NOT NULL, days INTEGER NOT NULL,
  created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE retentions (snapshot TEXT PRIMARY KEY, mac BLOB) STRICT, WITHOUT ROWID;
";

// What a schedule was asked never changes, and is under a MAC by the root key, as is what it took and asked for; how it went is not.
// A snapshot's row here is there before the snapshot, and may outlive it: no reference. Copies name schedules of any region.
const V7: &str = "
CREATE TABLE schedules (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, name TEXT NOT NULL UNIQUE, detail TEXT NOT NULL, mac BLOB,
  created_at INTEGER NOT NULL, last_due INTEGER, last_run_at INTEGER, error TEXT, error_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE schedule_snapshots (
  snapshot TEXT PRIMARY KEY, schedule TEXT NOT NULL REFERENCES schedules ON DELETE CASCADE, volume TEXT NOT NULL,
  due INTEGER NOT NULL, name TEXT NOT NULL, mac BLOB
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX schedule_snapshots_due ON schedule_snapshots (schedule, volume, due);

CREATE TABLE schedule_copies (
  snapshot TEXT PRIMARY KEY, schedule TEXT NOT NULL, source TEXT NOT NULL, volume TEXT NOT NULL, due INTEGER NOT NULL, mac BLOB
) STRICT, WITHOUT ROWID;
CREATE INDEX schedule_copies_schedule ON schedule_copies (schedule, due);
";

// Whether a schedule's snapshot was there: what was, and is gone, is not taken again.
const V8: &str = "
ALTER TABLE schedule_snapshots ADD COLUMN is_taken INTEGER NOT NULL DEFAULT 0;
UPDATE schedule_snapshots SET is_taken = 1 WHERE EXISTS (SELECT 1 FROM snapshots WHERE id = schedule_snapshots.snapshot)
  OR due <= (SELECT last_due FROM schedules WHERE id = schedule_snapshots.schedule);
";
