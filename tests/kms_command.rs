//! Guarded here: a KMS that is disabled, or that the storage may not use, and serves a copy nevertheless; and one that was
//! enabled again and does not.

mod copy_support;

use copy_support::{Disk, World};
use serde_json::{Value, json};
use terrane::catalog::DiskKind;

// S5 S20
#[test]
fn what_is_switched_off_refuses_copies_until_it_is_on() {
    let world = World::new(&["north", "south"]);
    let key = Some(world.default_key("north"));
    let mut disk = Disk::new(&world, "north", 1 << 20, key, DiskKind::Data);
    disk.change(&world, "secret", |c| c.write(0, &[5; 4096]));
    Disk::new(&world, "north", 1 << 20, None, DiskKind::Data)
        .change(&world, "plain", |c| c.write(0, &[5; 4096]));
    let copy = |snapshot: &'static str, called: &'static str, more: &[&'static str]| {
        [
            &["snapshot", "copy", "--wait", snapshot, "--region", "north", "--to", "south", "--name", called],
            more,
        ]
        .concat()
    };
    let settings = |region: &str| world.json(&["region", "show", region])["settings"].clone();
    for (off, on, setting, word) in [
        ("disable", "enable", "kms_enabled", "the KMS of region south is not enabled"),
        ("revoke", "authorize", "storage_authorized", "the storage of region south is not authorised"),
    ] {
        // Given twice it is as good as once, and another region's is its own.
        for _ in 0..2 {
            let shown = world.json(&["kms", off, "--region", "south"]);
            assert_eq!(shown[setting], Value::from(false), "{shown}");
            assert_eq!(settings("south")[setting], Value::from(false));
            assert_eq!(settings("north")[setting], Value::from(true));
        }
        let before = world.holdings("south");
        for more in [&[][..], &["--encrypt"], &["--dry-run"]] {
            world.fails(
                &copy("secret", "copied", more),
                4,
                &[word, &format!("terrane kms {on} --region south")],
            );
        }
        world.fails(&copy("plain", "copied", &["--encrypt"]), 4, &[word]);
        assert_eq!(world.holdings("south"), before);
        // A plain one needs no KMS (S10), and what is encrypted there can be used.
        world.ok(&copy("plain", if off == "disable" { "plain-1" } else { "plain-2" }, &[]));
        world.ok(&["volume", "create", "--size", "1M", "--region", "south"]);
        for _ in 0..2 {
            let shown = world.json(&["kms", on, "--region", "south"]);
            let instance = world.json(&["region", "show", "south"])["kms_instance_id"].clone();
            let id = world.region("south").id().to_string();
            let wanted = json!({
                "region_id": id, "kms_instance_id": instance, "kms_enabled": true, "storage_authorized": true
            });
            assert_eq!(shown, wanted);
        }
        world.ok(&copy("secret", if off == "disable" { "secret-1" } else { "secret-2" }, &[]));
    }
}

// S5 S20
#[test]
fn it_says_what_is_and_what_is_still_missing() {
    let world = World::new(&["north"]);
    let said = |command: &str| {
        let output = world.run(&["kms", command]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{command}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(said("enable"), "the KMS of region north is enabled\n");
    assert!(said("revoke").contains("may no longer use its KMS: encrypted copies into it are refused"));
    assert!(said("disable").contains("is disabled: encrypted copies into it are refused"));
    assert!(said("enable").contains("terrane kms authorize"));
    assert!(said("disable").contains("is disabled"));
    assert!(said("authorize").contains("terrane kms enable"));
    assert_eq!(said("enable"), "the KMS of region north is enabled\n");
    assert_eq!(said("authorize"), "the storage of region north may use its KMS\n");
    assert!(world.run(&["kms", "disable", "-q"]).stderr.is_empty());
    world.fails(&["kms", "enable", "--region", "nowhere"], 3, &["nowhere"]);
    world.fails(&["kms", "destroy"], 2, &["destroy"]);
}
