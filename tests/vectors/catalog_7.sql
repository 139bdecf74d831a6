-- The schema of a catalog of `user_version` 7, as steps 1 to 7 leave it. Of what an earlier version made: it never changes.
CREATE TABLE accounts (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, is_default INTEGER NOT NULL, created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE bin (
  snapshot TEXT PRIMARY KEY, deleted_at INTEGER NOT NULL, purge_at INTEGER NOT NULL, mac BLOB
) STRICT, WITHOUT ROWID;
CREATE TABLE bin_rules (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, kind TEXT NOT NULL, days INTEGER NOT NULL,
  created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE folds (
  parent TEXT PRIMARY KEY REFERENCES layers ON DELETE CASCADE, child TEXT NOT NULL UNIQUE REFERENCES layers ON DELETE CASCADE,
  way TEXT NOT NULL, next_chunk INTEGER NOT NULL, mac BLOB, moved_bytes INTEGER NOT NULL, is_moved INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE key_aliases (alias TEXT PRIMARY KEY, key TEXT NOT NULL REFERENCES keys) STRICT, WITHOUT ROWID;
CREATE TABLE key_versions (
  key TEXT NOT NULL REFERENCES keys, version INTEGER NOT NULL, wrapped BLOB NOT NULL, created_at INTEGER NOT NULL,
  PRIMARY KEY (key, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE keys (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, instance TEXT NOT NULL REFERENCES kms_instances,
  state TEXT NOT NULL, is_default INTEGER NOT NULL, current_version INTEGER NOT NULL, description TEXT,
  created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE kms_instances (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
  is_default INTEGER NOT NULL, created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE layer_points (
  layer TEXT NOT NULL REFERENCES layers ON DELETE CASCADE, place INTEGER NOT NULL, point TEXT NOT NULL,
  PRIMARY KEY (layer, place)
) STRICT, WITHOUT ROWID;
CREATE TABLE layers (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, volume TEXT, parent TEXT REFERENCES layers,
  size_bytes INTEGER NOT NULL, state TEXT NOT NULL, cipher TEXT NOT NULL, key TEXT REFERENCES keys,
  key_version INTEGER NOT NULL, wrapped_key BLOB NOT NULL, point TEXT, sealed_generation INTEGER, sealed_mac BLOB,
  stored_bytes INTEGER NOT NULL, created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE retentions (snapshot TEXT PRIMARY KEY, mac BLOB) STRICT, WITHOUT ROWID;
CREATE TABLE schedule_copies (
  snapshot TEXT PRIMARY KEY, schedule TEXT NOT NULL, source TEXT NOT NULL, volume TEXT NOT NULL, due INTEGER NOT NULL, mac BLOB
) STRICT, WITHOUT ROWID;
CREATE TABLE schedule_snapshots (
  snapshot TEXT PRIMARY KEY, schedule TEXT NOT NULL REFERENCES schedules ON DELETE CASCADE, volume TEXT NOT NULL,
  due INTEGER NOT NULL, name TEXT NOT NULL, mac BLOB
) STRICT, WITHOUT ROWID;
CREATE TABLE schedules (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, name TEXT NOT NULL UNIQUE, detail TEXT NOT NULL, mac BLOB,
  created_at INTEGER NOT NULL, last_due INTEGER, last_run_at INTEGER, error TEXT, error_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE settings (k TEXT PRIMARY KEY, v TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE "snapshots" (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, name TEXT NOT NULL, description TEXT,
  layer TEXT REFERENCES layers, volume TEXT, size_bytes INTEGER NOT NULL, kind TEXT NOT NULL,
  cipher TEXT NOT NULL, key TEXT REFERENCES keys, state TEXT NOT NULL, progress_percent INTEGER NOT NULL,
  created_by TEXT NOT NULL, source_snapshot TEXT, source_region TEXT, changed_bytes INTEGER NOT NULL,
  shipped_bytes INTEGER NOT NULL, stored_bytes INTEGER NOT NULL, group_id TEXT, retention_days INTEGER,
  created_at INTEGER NOT NULL, mac BLOB, locked_until INTEGER, lock_mode TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE state (k TEXT PRIMARY KEY, v INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE tags (
  resource TEXT NOT NULL, k TEXT NOT NULL, v TEXT NOT NULL, PRIMARY KEY (resource, k)
) STRICT, WITHOUT ROWID;
CREATE TABLE tasks (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, kind TEXT NOT NULL, resource TEXT, detail TEXT NOT NULL,
  state TEXT NOT NULL, bytes_done INTEGER NOT NULL, bytes_total INTEGER NOT NULL, error TEXT,
  created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL
, bytes_per_second INTEGER NOT NULL DEFAULT 0, exit INTEGER, mac BLOB) STRICT, WITHOUT ROWID;
CREATE TABLE volumes (
  id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts, name TEXT UNIQUE, size_bytes INTEGER NOT NULL,
  kind TEXT NOT NULL, cipher TEXT NOT NULL, key TEXT REFERENCES keys, active TEXT NOT NULL REFERENCES layers,
  next TEXT REFERENCES layers, source_snapshot TEXT, deleting INTEGER NOT NULL, created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX accounts_default ON accounts (is_default) WHERE is_default = 1;
CREATE INDEX key_aliases_key ON key_aliases (key);
CREATE UNIQUE INDEX keys_default ON keys (is_default) WHERE is_default = 1;
CREATE UNIQUE INDEX kms_instances_default ON kms_instances (is_default) WHERE is_default = 1;
CREATE INDEX layer_points_point ON layer_points (point);
CREATE INDEX layers_key ON layers (key);
CREATE INDEX layers_parent ON layers (parent);
CREATE INDEX layers_point ON layers (point);
CREATE INDEX layers_volume ON layers (volume);
CREATE INDEX schedule_copies_schedule ON schedule_copies (schedule, due);
CREATE UNIQUE INDEX schedule_snapshots_due ON schedule_snapshots (schedule, volume, due);
CREATE INDEX snapshots_deleted ON snapshots (name) WHERE state = 'deleted';
CREATE INDEX snapshots_group ON snapshots (group_id);
CREATE INDEX snapshots_key ON snapshots (key);
CREATE INDEX snapshots_layer ON snapshots (layer);
CREATE UNIQUE INDEX snapshots_name ON snapshots (name) WHERE state <> 'deleted';
CREATE INDEX snapshots_volume ON snapshots (volume);
CREATE INDEX tasks_resource ON tasks (resource);
CREATE INDEX tasks_state ON tasks (state, created_at);
CREATE INDEX volumes_active ON volumes (active);
CREATE INDEX volumes_key ON volumes (key);
CREATE INDEX volumes_next ON volumes (next);
