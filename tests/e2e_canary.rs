//! Guards against plaintext and keys where they don't belong: in the files of regions, in logs, output, arguments and
//! environments; and, once a key is disabled and its volumes closed, in the memory of the process that serves on. And against a
//! process with keys that others may look into.
//!
//! A random canary of 1 MiB, the data keys of the layers it lies in, the root key and a passphrase go through everything. No 16
//! bytes of any of them, wherever they begin, may be found.

#[path = "common/canary.rs"]
mod canary;
#[path = "common/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use canary::{Canary, master_keys, random, unhex};
use world::{MIB, World, is_root, must, read_at, tool, within, writable, write_at};

/// Commands whose output is looked at.
struct Said<'w>(&'w World, Vec<u8>);

impl Said<'_> {
    fn ok(&mut self, args: &[&str]) -> String {
        for format in [&[][..], &["--output", "json"]] {
            if format.is_empty() || matches!(args[1], "list" | "show" | "check" | "verify") {
                let output = self.0.run(&[args, format].concat());
                assert!(output.status.success(), "{args:?}: {}", world::words(&output));
                self.1.extend_from_slice(&output.stdout);
                self.1.extend_from_slice(&output.stderr);
                if format.is_empty() && !matches!(args[1], "list" | "show" | "check" | "verify") {
                    return String::from_utf8(output.stdout).unwrap().trim_end().to_owned();
                }
            }
        }
        String::new()
    }
}

/// The requests of others fill the buffers of all threads: of whole pages, so that none is shorter than any before.
fn busy(world: &World) {
    std::thread::scope(|scope| {
        for thread in 0..16 {
            scope.spawn(move || {
                let file = writable(&world.file("other")).unwrap();
                let pages = vec![thread as u8 + 1; MIB as usize + 4096];
                let pages = &pages[pages.as_ptr().align_offset(4096)..][..MIB as usize];
                for n in 0..4u64 {
                    file.write_all_at(pages, (thread % 8) * MIB).unwrap();
                    let mut back = vec![0; MIB as usize];
                    file.read_exact_at(&mut back, (n + thread) % 8 * MIB).unwrap();
                }
            });
        }
    });
}

#[test]
fn no_secret_is_found_where_it_does_not_belong() {
    if !is_root() {
        eprintln!("left out: only root may look at the memory of a process that forbids it");
        return;
    }
    let mut world = World::new();
    fs::create_dir(world.path("tmp")).unwrap();
    world.temporary_files = Some(world.path("tmp"));
    let (canary, passphrase, root_key) = (random(MIB as usize), random(24), random(32));
    let passphrase: String = passphrase.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut secrets = Canary::new();
    for secret in [&canary[..], passphrase.as_bytes(), &root_key] {
        secrets.add(secret);
    }
    // Where they may be: beside, and named by, the configuration.
    let beside = tempfile::tempdir().unwrap();
    for (name, bytes) in [("phrase", passphrase.as_bytes()), ("root", &root_key)] {
        fs::write(beside.path().join(name), bytes).unwrap();
        fs::set_permissions(beside.path().join(name), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
    }
    let beside = |name: &str| beside.path().join(name).to_str().unwrap().to_owned();
    let mut said = Said(&world, Vec::new());
    said.ok(&[
        "region",
        "init",
        &world.at("south"),
        "--name",
        "south",
        "--passphrase-file",
        &beside("phrase"),
    ]);
    said.ok(&["region", "init", &world.at("west"), "--name", "west", "--root-key-file", &beside("root")]);

    said.ok(&["key", "create", "--alias", "project", "--region", "west"]);
    said.ok(&["volume", "create", "--name", "web", "--size", "16M", "--key", "project", "--region", "west"]);
    said.ok(&["volume", "create", "--name", "other", "--size", "16M", "--region", "west"]);
    said.ok(&["mount", &world.mnt(), "--region", "west"]);
    let file = world.file("web");
    let server: i32 = {
        let text = fs::read_to_string(world.path("west/run/layers.lock")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    };
    write_at(&file, 0, &canary).unwrap();
    // Unaligned: merged with what is there.
    write_at(&file, 5 * MIB + 100, &canary[..70_000]).unwrap();
    said.ok(&["snapshot", "create", "web", "--name", "s1", "--region", "west"]);
    write_at(&file, 9 * MIB, &canary).unwrap();
    said.ok(&["volume", "rollback", "web", "--snapshot", "s1", "--region", "west"]);
    write_at(&file, 2 * MIB, &canary).unwrap();
    assert!(read_at(&world.snapshot_file("s1"), 0, MIB as usize).unwrap() == canary);
    said.ok(&["snapshot", "copy", "--wait", "west/s1", "--to", "south", "--name", "c1"]);
    said.ok(&["volume", "create", "--snapshot", "s1", "--name", "clone", "--region", "west"]);
    assert!(read_at(&world.file("clone"), 0, MIB as usize).unwrap() == canary);
    for args in
        [&["volume", "list"][..], &["volume", "show", "web"], &["snapshot", "show", "s1"], &["key", "list"]]
    {
        said.ok(&[args, &["--region", "west"]].concat());
    }
    said.ok(&["snapshot", "verify", "s1", "--region", "west"]);
    // The keys of what is to be closed: they serve nobody afterwards.
    let mut closed = Canary::new();
    closed.add(&canary);
    for key in keys_of(&world, "project", &root_key) {
        secrets.add(&key);
        closed.add(&key);
    }
    assert!(!closed.in_memory(server).is_empty(), "the search sees what is in use");

    said.ok(&["key", "disable", "project", "--region", "west"]);
    let mut left = Vec::new();
    let gone = within(30, || {
        busy(&world);
        left = closed.in_memory(server);
        left.is_empty()
    });
    assert!(gone, "in the memory of the mount: {left:#?}");
    assert!(fs::File::open(&file).is_err(), "it is closed");
    let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    let value =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    // CAP_IPC_LOCK, which root of a container may lack.
    let may_lock = u64::from_str_radix(&value("CapEff:"), 16).unwrap() >> 14 & 1 == 1;
    let locked: u64 = value("VmLck:").trim_end_matches(" kB").parse().unwrap();
    assert!(!may_lock || locked > 4096, "memory is locked: {status}");
    for of in ["cmdline", "environ"] {
        secrets.assert_absent(&fs::read(format!("/proc/{server}/{of}")).unwrap(), of);
    }
    // A cut leaves its log and its WAL; and all is in order again.
    write_at(&world.file("other"), 0, &[1; 4096]).unwrap();
    let mut looked = 0;
    for dir in ["west", "south", "r", "config", "tmp"] {
        looked += secrets.assert_absent_below(&world.path(dir));
    }
    said.ok(&["key", "enable", "project", "--region", "west"]);
    assert!(read_at(&file, 2 * MIB, MIB as usize).unwrap() == canary);
    said.ok(&["unmount", &world.mnt()]);
    said.ok(&["region", "check", "--region", "west"]);
    for dir in ["west", "south", "r", "config", "tmp"] {
        looked += secrets.assert_absent_below(&world.path(dir));
    }
    assert!(looked > 8 * MIB, "{looked} bytes looked at");
    secrets.assert_absent(&said.1, "what commands say");
    assert!(said.1.len() > 1000);
}

/// The process that has the keys leaves no core, and not even its own user may look into it; nothing in the mount runs, or is a device.
#[test]
fn the_mount_shuts_its_memory_and_its_files() {
    is_shut(None);
    if !is_root() {
        return;
    }
    // Another user's mount needs a device that is open to users, as not in every container: in a mount namespace of its own.
    let folder = tempfile::tempdir().unwrap();
    let script = r#"set -e
        mount -t tmpfs -o mode=755 none "$1"
        mknod -m 666 "$1/fuse" c 10 229
        mount --bind "$1/fuse" /dev/fuse
        exec "$2" --exact a_users_mount_is_shut --ignored --nocapture"#;
    let program = std::env::current_exe().unwrap();
    let [folder, program] = [folder.path(), &program].map(|path| path.to_str().unwrap());
    let said = must("unshare", &["--mount", "sh", "-c", script, "sh", folder, program]);
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "run by the_mount_shuts_its_memory_and_its_files"]
fn a_users_mount_is_shut() {
    is_shut(Some(NOBODY));
}

const NOBODY: u32 = 65534;

fn is_shut(uid: Option<u32>) {
    let world = World::bare(uid);
    world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
    world.volume("web", "8M");
    world.mount();
    let server = Path::new("/proc").join(world.server().to_string());
    let limits = fs::read_to_string(server.join("limits")).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert!(core.split_whitespace().take(2).eq(["0", "0"]), "{limits}");
    // What a process that may not be dumped shows of itself is root's.
    for shown in ["environ", "mem", "maps", "fd"].map(|name| server.join(name)) {
        assert_eq!(fs::metadata(&shown).unwrap().uid(), 0, "{} of user {uid:?}", shown.display());
        if let Some(uid) = uid {
            let id = uid.to_string();
            let user = ["--reuid", &id, "--regid", &id, "--clear-groups", "--"];
            let look = if shown.is_dir() { "ls" } else { "cat" };
            let seen = tool("setpriv", &[&user[..], &[look, shown.to_str().unwrap()]].concat());
            let said = world::words(&seen);
            assert!(
                said.contains("Permission denied"),
                "its own user looks into {}: {said}",
                shown.display()
            );
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = mounts.lines().find(|line| line.split(' ').nth(4) == Some(&world.mnt())).unwrap();
    let options: Vec<_> = ours.split(' ').nth(5).unwrap().split(',').collect();
    assert!(["nosuid", "nodev", "noexec"].iter().all(|word| options.contains(word)), "{ours}");
    world.unmount();
}

/// A key's own bytes, and the data keys of the layers of volume `web`.
fn keys_of(world: &World, alias: &str, root_key: &[u8]) -> Vec<Vec<u8>> {
    let json = |args: &[&str]| world.json(&[args, &["--region", "west"]].concat());
    let id = json(&["key", "show", alias])["id"].as_str().unwrap().to_owned();
    let its = master_keys(&world.path("west"), root_key).into_iter().filter(|(of, _)| *of == id);
    let mut keys: Vec<_> = its.map(|(_, key)| key).collect();
    for layer in json(&["debug", "layers", "web"]).as_array().unwrap() {
        let id = layer["id"].as_str().unwrap();
        let shown = json(&["debug", "data-key", id, "--yes"]);
        keys.push(unhex(shown["data_key"].as_str().unwrap()));
    }
    assert!(keys.len() >= 3, "a snapshot's layer and the active one, and the key");
    keys
}
