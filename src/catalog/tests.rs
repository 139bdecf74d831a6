//! The failures guarded here: a row that comes back changed, a name taken twice, a layer removed under its users, an
//! ambiguous text that picks one, and a hostile file that panics.

use jiff::Timestamp;

use super::connection::scratch;
use super::*;
use crate::crypto::Cipher;
use crate::ids::{
    AccountId, BinRuleId, GroupId, InstanceId, KeyId, LayerId, Point, SnapshotId, TaskId, VolumeId,
};

struct Fixture {
    dir: tempfile::TempDir,
    catalog: Catalog,
    account: AccountId,
    key: KeyId,
}

fn now() -> Timestamp {
    "2026-05-01T10:00:00.123456Z".parse().unwrap()
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let mut catalog = scratch(dir.path()).catalog().unwrap();
    let account = Account {
        id: AccountId::random(),
        name: "default".parse().unwrap(),
        is_default: true,
        created_at: now(),
    };
    let instance = Instance {
        id: InstanceId::random(),
        account: account.id,
        name: "default".parse().unwrap(),
        kind: InstanceKind::Software,
        is_default: true,
        created_at: now(),
    };
    let key = Key {
        id: KeyId::random(),
        account: account.id,
        instance: instance.id,
        state: KeyState::Enabled,
        is_default: true,
        current_version: 1,
        description: Some("the first".into()),
        created_at: now(),
        aliases: vec!["default".parse().unwrap()],
    };
    let version = KeyVersion { key: key.id, version: 1, wrapped: vec![7; 61], created_at: now() };
    catalog
        .write(|tx| {
            tx.insert_account(&account)?;
            tx.insert_instance(&instance)?;
            tx.insert_key(&key)?;
            tx.insert_key_version(&version)
        })
        .unwrap();
    catalog
        .read(|tx| {
            assert_eq!(tx.accounts()?, std::slice::from_ref(&account));
            assert_eq!(tx.default_instance()?, instance);
            assert_eq!(tx.keys()?, std::slice::from_ref(&key));
            assert_eq!(tx.default_key()?, key);
            assert_eq!(tx.key_versions(key.id)?, [version]);
            Ok::<_, CatalogError>(())
        })
        .unwrap();
    Fixture { dir, catalog, account: account.id, key: key.id }
}

impl Fixture {
    fn layer(&self, parent: Option<LayerId>) -> Layer {
        Layer {
            id: LayerId::random(),
            account: self.account,
            volume: Some(VolumeId::random()),
            parent,
            size_bytes: 1 << 30,
            state: LayerState::Active,
            cipher: Cipher::XtsAes256,
            key: Some(self.key),
            key_version: 1,
            wrapped_key: vec![9; 93],
            point: None,
            sealed_generation: None,
            sealed_mac: None,
            stored_bytes: 0,
            created_at: now(),
        }
    }

    fn volume(&self, name: &str, active: LayerId) -> Volume {
        Volume {
            id: VolumeId::random(),
            account: self.account,
            name: Some(name.parse().unwrap()),
            size_bytes: 1 << 30,
            kind: DiskKind::Data,
            cipher: Cipher::XtsAes256,
            key: Some(self.key),
            active,
            next: None,
            source_snapshot: Some(SnapshotId::random()),
            deleting: false,
            created_at: now(),
        }
    }

    fn snapshot(&self, name: &str, layer: LayerId) -> Snapshot {
        Snapshot {
            id: SnapshotId::random(),
            account: self.account,
            name: name.parse().unwrap(),
            description: Some("words".into()),
            layer: Some(layer),
            volume: Some(VolumeId::random()),
            size_bytes: 1 << 30,
            kind: DiskKind::System,
            cipher: Cipher::XtsAes256,
            key: Some(self.key),
            state: SnapshotState::Success,
            progress_percent: 100,
            created_by: "snapshot create".into(),
            source_snapshot: Some("snap-x".into()),
            source_region: Some("elsewhere".into()),
            changed_bytes: 1,
            shipped_bytes: 2,
            stored_bytes: 3,
            group: Some(GroupId::random()),
            retention_days: Some(30),
            created_at: now(),
            mac: Some([7; 16]),
        }
    }

    fn bin_rule(&self, days: u32) -> BinRule {
        let (id, kind) = (BinRuleId::random(), BinKind::Snapshot);
        BinRule { id, account: self.account, kind, days, created_at: now() }
    }

    fn raw(&self, sql: &str) {
        rusqlite::Connection::open(self.dir.path().join("catalog.db")).unwrap().execute_batch(sql).unwrap();
    }
}

#[test]
fn a_volume_with_its_layers_lives_and_goes() {
    let mut f = fixture();
    let (base, points) = (f.layer(None), [Point::random(), Point::random()]);
    let top = f.layer(Some(base.id));
    let volume = f.volume("db", base.id);
    f.catalog
        .write(|tx| {
            tx.insert_layer(&base, &points)?;
            tx.insert_volume(&volume)?;
            assert_eq!(tx.volume(volume.id)?, volume);
            assert_eq!(tx.layer(base.id)?, base);
            // A seal: the base's own point heads its list, and the next layer inherits it.
            let own = Point::random();
            tx.seal_layer(base.id, own)?;
            tx.set_layer_seal(base.id, 12, [3; 16])?;
            let list = tx.layer_points(base.id)?;
            assert_eq!(list, [own, points[0], points[1]]);
            tx.insert_layer(&top, &list)?;
            tx.set_volume_layers(volume.id, top.id, None)?;
            let sealed = tx.layer(base.id)?;
            assert_eq!((sealed.state, sealed.point), (LayerState::Sealed, Some(own)));
            assert_eq!((sealed.sealed_generation, sealed.sealed_mac), (Some(12), Some([3; 16])));
            let chain: Vec<_> = tx.layer_chain(top.id)?.iter().map(|layer| layer.id).collect();
            assert_eq!(chain, [top.id, base.id]);
            Ok::<_, CatalogError>(())
        })
        .unwrap();
    let snapshot = f.snapshot("monday", base.id);
    f.catalog
        .write(|tx| {
            tx.insert_snapshot(&snapshot)?;
            assert_eq!(tx.snapshot(snapshot.id)?, snapshot);
            let point = tx.layer(base.id)?.point.unwrap();
            assert_eq!(tx.snapshots_at_point(point)?, std::slice::from_ref(&snapshot));
            assert_eq!(tx.snapshots_at_point(points[0])?, []);
            let needs = tx.layer_needs(base.id)?;
            assert_eq!((needs.snapshots, needs.children), (vec![snapshot.id], vec![top.id]));
            assert_eq!(tx.layer_needs(top.id)?.active_of, [volume.id]);
            Ok::<_, CatalogError>(())
        })
        .unwrap();
    for needed in [base.id, top.id] {
        assert!(matches!(f.catalog.write(|tx| tx.delete_layer(needed)), Err(CatalogError::Needed { .. })));
    }
    f.catalog
        .write(|tx| {
            tx.set_tags(&snapshot.id.to_string(), &["a=b=c".parse().unwrap()])?;
            tx.delete_snapshot(snapshot.id)?;
            assert_eq!(tx.tags(&snapshot.id.to_string())?, []);
            tx.set_volume_deleting(volume.id)?;
            assert_eq!(tx.find_volume_by_name("db")?, None);
            tx.delete_volume(volume.id)?;
            assert!(tx.layer_needs(top.id)?.is_empty());
            tx.delete_layer(top.id)?;
            tx.delete_layer(base.id)?;
            assert_eq!(tx.layer_points(base.id)?, []);
            Ok::<_, CatalogError>(())
        })
        .unwrap();
}

#[test]
fn names_are_unique_by_kind() {
    let mut f = fixture();
    let layer = f.layer(None);
    let (one, two) = (f.volume("same", layer.id), f.volume("same", layer.id));
    let snapshot = f.snapshot("same", layer.id);
    f.catalog
        .write(|tx| {
            tx.insert_layer(&layer, &[])?;
            tx.insert_volume(&one)?;
            tx.insert_snapshot(&snapshot)
        })
        .unwrap();
    let taken = f.catalog.write(|tx| tx.insert_volume(&two));
    assert!(matches!(taken, Err(CatalogError::Exists { kind: Kind::Volume, .. })));
    let other = f.volume("other", layer.id);
    let renamed = f.catalog.write(|tx| {
        tx.insert_volume(&other)?;
        tx.set_volume_name(other.id, one.name.as_ref())
    });
    assert!(matches!(renamed, Err(CatalogError::Exists { .. })));
    let disguised = f.volume("vol-0123456789abcdef0", layer.id);
    assert!(matches!(f.catalog.write(|tx| tx.insert_volume(&disguised)), Err(CatalogError::Refused { .. })));
    let orphan = f.volume("orphan", LayerId::random());
    assert!(matches!(f.catalog.write(|tx| tx.insert_volume(&orphan)), Err(CatalogError::Needed { .. })));
}

#[test]
fn a_text_means_one_thing_or_is_refused() {
    let mut f = fixture();
    let layer = f.layer(None);
    let with_id = |id: &str, name: &str| Volume { id: id.parse().unwrap(), ..f.volume(name, layer.id) };
    let one = with_id("vol-abcdef00000000001", "one");
    let two = with_id("vol-abcdef00000000002", "two");
    let decoy = with_id("vol-12345600000000003", "vol-abcdef");
    f.catalog
        .write(|tx| {
            tx.insert_layer(&layer, &[])?;
            [&one, &two, &decoy].into_iter().try_for_each(|volume| tx.insert_volume(volume))
        })
        .unwrap();
    let mut resolve = |text: &str| f.catalog.read(|tx| tx.resolve_volume(text)).map(|volume| volume.id);
    assert_eq!(resolve("vol-abcdef00000000001").unwrap(), one.id);
    assert_eq!(resolve("two").unwrap(), two.id);
    assert_eq!(resolve("vol-123456").unwrap(), decoy.id);
    assert_eq!(resolve("vol-1234560000000000").unwrap(), decoy.id);
    match resolve("vol-abcdef") {
        Err(CatalogError::Ambiguous { matches, .. }) => {
            assert_eq!(matches, [decoy.id, one.id, two.id].map(|id| id.to_string()));
        }
        other => panic!("{other:?}"),
    }
    for text in [
        "three",
        "vol-12345",
        "vol-ffffff",
        "vol-abcdef00000000009",
        "",
        "%",
        "vol-abcdeF",
        &"x".repeat(100_000),
    ] {
        assert!(matches!(resolve(text), Err(CatalogError::NotFound { .. })), "{text:.20}");
    }
    let key = f.key;
    f.catalog
        .read(|tx| {
            assert_eq!(tx.resolve_key("default")?.id, key);
            assert_eq!(tx.resolve_key(&key.to_string()[..10])?.id, key);
            assert!(matches!(
                tx.resolve_snapshot("x1"),
                Err(CatalogError::NotFound { kind: Kind::Snapshot, .. })
            ));
            Ok::<_, CatalogError>(())
        })
        .unwrap();
}

#[test]
fn a_cancelled_copy_is_not_revived() {
    let mut f = fixture();
    let layer = f.layer(None);
    let snapshot =
        Snapshot { state: SnapshotState::Processing, progress_percent: 0, ..f.snapshot("copy", layer.id) };
    let task = Task {
        id: TaskId::random(),
        account: f.account,
        kind: "copy".into(),
        resource: Some(snapshot.id.to_string()),
        detail: "{}".into(),
        mac: None,
        state: TaskState::Queued,
        bytes_done: 0,
        bytes_total: 10,
        bytes_per_second: 0,
        error: None,
        exit: None,
        created_at: now(),
        updated_at: now(),
    };
    f.catalog
        .write(|tx| {
            tx.insert_layer(&layer, &[])?;
            tx.insert_snapshot(&snapshot)?;
            tx.insert_task(task.clone())?;
            assert_eq!(tx.resolve_task(&task.id.to_string())?, task);
            assert_eq!(tx.resolve_task("copy")?, task, "by the name of what it makes");
            assert!(!tx.set_task_progress(task.id, (5, 10), 1, now())?, "it does not run yet");
            assert!(tx.start_task(task.id, now())?);
            assert!(tx.set_task_progress(task.id, (5, 10), 1, now())?);
            assert!(tx.end_task(task.id, TaskEnd::CANCELLED, now())?);
            assert!(!tx.set_task_progress(task.id, (6, 10), 1, now())?);
            assert!(!tx.start_task(task.id, now())? && !tx.requeue_task(task.id, None, now())?);
            let succeeded = TaskEnd { state: TaskState::Succeeded, ..TaskEnd::CANCELLED };
            assert!(!tx.end_task(task.id, succeeded, now())?);
            assert!(tx.set_snapshot_progress(snapshot.id, 50, 5)?);
            assert!(tx.finish_snapshot(snapshot.id, 8, 9, 10)?);
            assert!(!tx.finish_snapshot(snapshot.id, 8, 9, 10)?);
            let done = tx.snapshot(snapshot.id)?;
            assert_eq!(
                (done.state, done.progress_percent, done.shipped_bytes),
                (SnapshotState::Success, 100, 9)
            );
            tx.delete_snapshot(snapshot.id)?;
            assert!(!tx.set_snapshot_progress(snapshot.id, 60, 6)?);
            Ok::<_, CatalogError>(())
        })
        .unwrap();
}

// S31
#[test]
fn tags_and_descriptions_have_bounds() {
    let mut f = fixture();
    let tag = |key: &str, value: &str| Tag { key: key.into(), value: value.into() };
    let many = |n: usize| (0..n).map(|n| tag(&n.to_string(), "")).collect::<Vec<_>>();
    f.catalog.write(|tx| tx.set_tags("vol-x", &many(20))).unwrap();
    for bad in [
        many(21),
        vec![tag("", "x")],
        vec![tag(&"k".repeat(129), "x")],
        vec![tag("k", &"v".repeat(257))],
        vec![tag("k\u{1b}", "v")],
        vec![tag("k", "1"), tag("k", "2")],
    ] {
        assert!(matches!(
            f.catalog.write(|tx| tx.set_tags("vol-x", &bad)),
            Err(CatalogError::Refused { .. })
        ));
    }
    assert_eq!(f.catalog.read(|tx| tx.tags("vol-x")).unwrap().len(), 20);
    let layer = f.layer(None);
    f.catalog.write(|tx| tx.insert_layer(&layer, &[])).unwrap();
    for text in ["x".to_owned(), "x".repeat(257)] {
        let snapshot = Snapshot { description: Some(text), ..f.snapshot("s1", layer.id) };
        assert!(matches!(
            f.catalog.write(|tx| tx.insert_snapshot(&snapshot)),
            Err(CatalogError::Refused { .. })
        ));
    }
}

// X6
#[test]
fn a_lock_comes_back_as_it_was_given() {
    let mut f = fixture();
    let layer = f.layer(None);
    let (snapshot, other) = (f.snapshot("s1", layer.id), f.snapshot("s2", layer.id));
    f.catalog
        .write(|tx| {
            tx.insert_layer(&layer, &[])?;
            [&snapshot, &other].into_iter().try_for_each(|row| tx.insert_snapshot(row))?;
            assert_eq!(tx.snapshot_lock(snapshot.id)?, None);
            for mode in LockMode::ALL {
                let lock = Some(SnapshotLock { until: now(), mode: *mode });
                tx.set_snapshot_lock(snapshot.id, lock)?;
                assert_eq!(tx.snapshot_lock(snapshot.id)?, lock);
            }
            assert_eq!(tx.snapshot_lock(other.id)?, None);
            assert_eq!(tx.snapshot(snapshot.id)?, snapshot);
            tx.set_snapshot_lock(snapshot.id, None)?;
            assert_eq!(tx.snapshot_lock(snapshot.id)?, None);
            assert!(matches!(
                tx.set_snapshot_lock(SnapshotId::random(), None),
                Err(CatalogError::NotFound { .. })
            ));
            Ok::<_, CatalogError>(())
        })
        .unwrap();
    let micro = std::time::Duration::from_micros(1);
    let lock = SnapshotLock { until: now(), mode: LockMode::Governance };
    assert!(lock.holds(now() - micro) && !lock.holds(now()));
}

/// A snapshot ends with its time in the bin, its retention, or its lock, and numbers that nobody wrote end nothing sooner.
#[test]
fn what_ends_is_found_and_what_ends_next() {
    let mut f = fixture();
    let layer = f.layer(None);
    let day = jiff::SignedDuration::from_hours(24);
    let at = |days: i32| now() + day * days;
    let of =
        |name: &str, retention_days: Option<u32>| Snapshot { retention_days, ..f.snapshot(name, layer.id) };
    let [kept, week, locked, deleted, made] =
        [("kept", None), ("week", Some(7)), ("locked", Some(7)), ("deleted", Some(1)), ("made", Some(1))]
            .map(|(name, days)| of(name, days));
    let made = Snapshot { state: SnapshotState::Processing, ..made };
    let endings = |f: &mut Fixture, days: i32| f.catalog.read(|tx| tx.endings(at(days))).unwrap();
    f.catalog
        .write(|tx| {
            tx.insert_layer(&layer, &[])?;
            [&kept, &week, &locked, &deleted, &made]
                .into_iter()
                .try_for_each(|row| tx.insert_snapshot(row))?;
            let lock = SnapshotLock { until: at(9), mode: LockMode::Governance };
            tx.set_snapshot_lock(locked.id, Some(lock))?;
            tx.put_in_bin(deleted.id, &BinEntry { deleted_at: now(), purge_at: at(8), mac: None })
        })
        .unwrap();
    for (days, over, next) in [
        (6, &[][..], Some(7)),
        (7, &[week.id][..], Some(8)),
        (8, &[week.id, deleted.id][..], Some(9)),
        (9, &[week.id, deleted.id, locked.id][..], None),
    ] {
        assert_eq!(endings(&mut f, days), Endings { over: over.to_vec(), next: next.map(at) }, "day {days}");
    }
    // Past what a clock can say: never.
    for retention in ["9223372036854775807", "4294967295", "100000000"] {
        f.raw(&format!("UPDATE snapshots SET retention_days = {retention} WHERE name = 'week'"));
        let found = endings(&mut f, 9);
        assert_eq!((found.over, found.next), (vec![deleted.id, locked.id], None), "{retention}");
    }
    // Without a date it stays.
    f.raw("DELETE FROM bin");
    assert_eq!(endings(&mut f, 9).over, [locked.id]);
}

/// Every column of every table, set to each of a few hostile values: an answer or `Corrupted`, never a panic.
#[test]
fn hostile_rows_give_corrupted() {
    let mut f = fixture();
    let layer = f.layer(None);
    let (volume, snapshot) = (f.volume("v1", layer.id), f.snapshot("s1", layer.id));
    let (deleted, rule) = (f.snapshot("s2", layer.id), f.bin_rule(7));
    let entry = BinEntry { deleted_at: now(), purge_at: now(), mac: Some([7; 16]) };
    f.catalog
        .write(|tx| {
            tx.insert_layer(&layer, &[Point::random()])?;
            tx.insert_volume(&volume)?;
            tx.insert_snapshot(&snapshot)?;
            tx.set_retention_mac(snapshot.id, Some([7; 16]))?;
            tx.insert_bin_rule(&rule, &[])?;
            tx.insert_snapshot(&deleted)?;
            tx.put_in_bin(deleted.id, &entry)
        })
        .unwrap();
    drop(f.catalog);
    let path = f.dir.path().join("catalog.db");
    let original = std::fs::read(&path).unwrap();
    let text =
        ["''", "'x'", "char(27)||'[2J'", "CAST(x'ff00' AS TEXT)", "replace(hex(zeroblob(50000)),'00','xx')"];
    let number = ["-1", "-9223372036854775808", "9223372036854775807", "4097"];
    let blob = ["x''", "zeroblob(100000)"];
    let raw = |sql: &str| rusqlite::Connection::open(&path).unwrap().execute_batch(sql);
    let mut refused = 0;
    for (table, columns) in [
        (
            "volumes",
            "id name size_bytes kind cipher key active next source_snapshot deleting created_at account",
        ),
        (
            "snapshots",
            "id name description layer volume size_bytes kind cipher key state progress_percent created_at
          changed_bytes shipped_bytes stored_bytes group_id retention_days source_snapshot locked_until lock_mode account",
        ),
        (
            "layers",
            "id volume parent size_bytes state cipher key key_version wrapped_key point sealed_generation
          sealed_mac stored_bytes created_at account",
        ),
        ("layer_points", "point"),
        ("keys", "id account instance state is_default current_version description created_at"),
        ("key_versions", "version wrapped created_at"),
        ("key_aliases", "alias"),
        ("settings", "v"),
        ("state", "v"),
        ("accounts", "id name created_at"),
        ("kms_instances", "id name kind is_default"),
        ("bin", "snapshot deleted_at purge_at mac"),
        ("bin_rules", "id account kind days created_at"),
        ("retentions", "snapshot mac"),
    ] {
        for column in columns.split_whitespace() {
            for value in text.iter().chain(&number).chain(&blob) {
                for name in ["catalog.db-wal", "catalog.db-shm"] {
                    let _ = std::fs::remove_file(f.dir.path().join(name));
                }
                std::fs::write(&path, &original).unwrap();
                if raw(&format!("PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF; UPDATE {table} SET {column} = {value}")).is_err() {
                    continue; // STRICT tables refuse another type.
                }
                let pool = Pool::new(path.canonicalize().unwrap(), "here", Default::default());
                let outcome = pool.catalog().and_then(|mut catalog| {
                    catalog.read(|tx| {
                        tx.accounts()?;
                        tx.instances()?;
                        tx.keys()?;
                        tx.key_versions(f.key)?;
                        tx.layers()?;
                        tx.layer_points(layer.id)?;
                        tx.layer_chain(layer.id).or_else(|error| match error {
                            CatalogError::NotFound { .. } => Ok(Vec::new()),
                            other => Err(other),
                        })?;
                        tx.volumes()?;
                        tx.endings(now())?;
                        for row in tx.snapshots()? {
                            tx.snapshot_lock(row.id)?;
                            tx.bin_entry(row.id)?;
                            tx.retention_mac(row.id)?;
                        }
                        tx.bin_rules()?;
                        Setting::ALL.iter().try_for_each(|setting| tx.flag(*setting).map(drop))
                    })
                });
                match outcome {
                    Ok(()) => {}
                    Err(CatalogError::Corrupted { found, .. }) => {
                        refused += 1;
                        assert!(found.len() < 1000, "{table}.{column}");
                    }
                    Err(other) => panic!("{table}.{column} = {value}: {other}"),
                }
            }
        }
    }
    assert!(refused > 150, "only {refused} hostile values were noticed");
}

#[test]
fn a_chain_that_bites_its_tail_is_damage() {
    let mut f = fixture();
    let (one, two) = (f.layer(None), f.layer(None));
    f.catalog
        .write(|tx| {
            tx.insert_layer(&one, &[])?;
            tx.insert_layer(&two, &[])?;
            tx.set_layer_parent(one.id, Some(two.id))?;
            tx.set_layer_parent(two.id, Some(one.id))
        })
        .unwrap();
    assert!(matches!(f.catalog.read(|tx| tx.layer_chain(one.id)), Err(CatalogError::Corrupted { .. })));
}

#[test]
fn ten_megabytes_are_no_name() {
    let mut f = fixture();
    let layer = f.layer(None);
    let volume = f.volume("v1", layer.id);
    f.catalog
        .write(|tx| {
            tx.insert_layer(&layer, &[])?;
            tx.insert_volume(&volume)
        })
        .unwrap();
    f.raw("UPDATE volumes SET name = replace(hex(zeroblob(5000000)), '00', 'xx')");
    assert!(matches!(f.catalog.read(|tx| tx.volumes()), Err(CatalogError::Corrupted { .. })));
}
