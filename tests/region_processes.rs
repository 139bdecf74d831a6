//! Guarded here: one of several processes that write a catalog at once is told "busy", or loses what it made; one that is
//! killed leaves a region that does not open, or a key without its material.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

fn terrane(dir: &std::path::Path, args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("terrane"));
    for name in ["TERRANE_REGION", "TERRANE_ACCOUNT", "TERRANE_CLOCK", "TERRANE_LOG"] {
        command.env_remove(name);
    }
    command.env("TERRANE_CONFIG_DIR", dir.join("config")).args(args).stdin(Stdio::null());
    command
}

#[test]
fn eight_processes_make_a_hundred_keys_each() {
    let dir = tempfile::tempdir().unwrap();
    let region = dir.path().join("r");
    let made = terrane(dir.path(), &["region", "init", region.to_str().unwrap(), "--name", "here"])
        .output()
        .unwrap();
    assert!(made.status.success());
    let ids: Vec<BTreeSet<String>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let dir = dir.path();
                scope.spawn(move || {
                    (0..100)
                        .map(|n| {
                            let alias = format!("k-{writer}-{n}");
                            let output =
                                terrane(dir, &["key", "create", "--alias", &alias]).output().unwrap();
                            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                            String::from_utf8(output.stdout).unwrap().trim().to_owned()
                        })
                        .collect()
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let made: BTreeSet<String> = ids.into_iter().flatten().collect();
    assert_eq!(made.len(), 800);
    let listed = terrane(dir.path(), &["key", "list", "--output", "json"]).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let listed: BTreeSet<String> =
        listed.as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect();
    assert!(made.is_subset(&listed), "every key that was answered is there");
    assert_eq!(listed.len(), 801);
}

/// A retried create: of eight that want one name at once, one makes it and seven are told that it exists.
#[test]
fn one_name_is_taken_once() {
    let dir = tempfile::tempdir().unwrap();
    let region = dir.path().join("r");
    let made = terrane(dir.path(), &["region", "init", region.to_str().unwrap(), "--name", "here"])
        .output()
        .unwrap();
    assert!(made.status.success());
    let children: Vec<_> = (0..8)
        .map(|_| {
            let mut command = terrane(dir.path(), &["key", "create", "--alias", "same"]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let mut exits: Vec<_> =
        children.into_iter().map(|child| child.wait_with_output().unwrap().status.code().unwrap()).collect();
    exits.sort_unstable();
    assert_eq!(exits, [0, 5, 5, 5, 5, 5, 5, 5]);
    let files = std::fs::read_dir(region.join("keys")).unwrap().count();
    assert_eq!(files, 2, "those refused leave no key file");
}

/// Killed at any moment, a create leaves a key that opens or none, and an init a region that opens or none.
#[test]
fn killed_processes_leave_a_whole_region() {
    let dir = tempfile::tempdir().unwrap();
    let region = dir.path().join("r");
    let region = region.to_str().unwrap();
    assert!(
        terrane(dir.path(), &["region", "init", region, "--name", "here"]).output().unwrap().status.success()
    );
    let kill_after = |args: &[&str], micros: u64| {
        let mut command = terrane(dir.path(), args);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_micros(micros));
        let _ = child.kill();
        child.wait().unwrap();
    };
    for n in 0..60 {
        kill_after(&["key", "create", "--region", "here"], n * 350);
    }
    let check = terrane(dir.path(), &["region", "check", "--region", "here"]).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    for n in 0..30 {
        let other = dir.path().join(format!("other-{n}"));
        let name = format!("other-{n}");
        kill_after(&["region", "init", other.to_str().unwrap(), "--name", &name], n * 1500);
        if other.join("region.toml").exists() {
            let add = terrane(dir.path(), &["region", "add", other.to_str().unwrap()]).output().unwrap();
            assert!(add.status.success(), "{}", String::from_utf8_lossy(&add.stderr));
            let check = terrane(dir.path(), &["region", "check", "--region", &name]).output().unwrap();
            assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        }
    }
}
