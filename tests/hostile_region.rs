//! Guards against a region that a stranger made: one that leads a command to files outside of it, makes it wait or eat memory
//! for ever, steers the terminal, or ends it in a panic. The list is that of docs/security.md; the catalog's is `hostile_catalog.rs`.

#[path = "common/bad_region.rs"]
mod bad_region;
#[path = "common/hostile.rs"]
mod hostile;
#[path = "common/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use bad_region::*;
use hostile::{chmod, make_pipe};
use world::{World, flip};

#[test]
fn region_toml() {
    check_all(&[
        Case {
            name: "newer",
            harm: |b| b.edit("region.toml", "format_version = 1", "format_version = 2"),
            command: LIST,
            exit: 4,
            words: &["region.toml", "format 2", "hint"],
        },
        Case {
            name: "unknown feature",
            harm: |b| b.edit("region.toml", "features = []", "features = [\"object-store\"]"),
            command: LIST,
            exit: 4,
            words: &["region.toml", "object-store"],
        },
        Case {
            name: "1 GiB",
            harm: |b| sparse(&b.at("region.toml"), 1 << 30),
            command: LIST,
            exit: 6,
            words: &["region.toml", "65536"],
        },
        Case {
            name: "8 TiB",
            harm: |b| sparse(&b.at("region.toml"), 8 << 40),
            command: LIST,
            exit: 6,
            words: &["region.toml", "65536"],
        },
        Case {
            name: "empty",
            harm: |b| sparse(&b.at("region.toml"), 0),
            command: LIST,
            exit: 6,
            words: &["region.toml", "format"],
        },
        Case {
            name: "not UTF-8",
            harm: |b| fs::write(b.at("region.toml"), b"name = \"\xff\xfe\"").unwrap(),
            command: LIST,
            exit: 6,
            words: &["region.toml", "UTF-8"],
        },
        Case {
            name: "nested deeply",
            harm: |b| fs::write(b.at("region.toml"), format!("x = {}", "[".repeat(60_000))).unwrap(),
            command: LIST,
            exit: 6,
            words: &["region.toml"],
        },
        Case {
            name: "another id",
            harm: |b| edit_line(&b.at("region.toml"), "id = ", &format!("id = \"{}\"", "0".repeat(32))),
            command: VERIFY,
            exit: 4,
            words: &["root key", "here", "hint"],
        },
        Case {
            name: "an id that leads out",
            harm: |b| edit_line(&b.at("region.toml"), "id = ", "id = \"../../outside/victim\""),
            command: LIST,
            exit: 6,
            words: &["region.toml", "32 hexadecimal digits"],
        },
        Case {
            name: "a name that steers the terminal",
            harm: |b| edit_line(&b.at("region.toml"), "name = ", "name = \"a\\u001b[2J\\u009b\""),
            command: LIST,
            exit: 6,
            words: &["region.toml", "\\u{1b}[2J"],
        },
        Case {
            name: "a link",
            harm: |b| b.move_out(&b.at("region.toml")),
            command: LIST,
            exit: 6,
            words: &["region.toml", "symbolic link"],
        },
        Case {
            name: "a hard link",
            harm: |b| b.hard_link(&b.at("region.toml")),
            command: LIST,
            exit: 6,
            words: &["region.toml", "2 names", "copy"],
        },
        Case {
            name: "a pipe",
            harm: |b| pipe_instead(&b.at("region.toml")),
            command: LIST,
            exit: 6,
            words: &["region.toml", "a pipe"],
        },
        Case {
            name: "a folder",
            harm: |b| {
                remove(&b.at("region.toml"));
                fs::create_dir(b.at("region.toml")).unwrap();
            },
            command: LIST,
            exit: 6,
            words: &["region.toml", "a folder"],
        },
        Case {
            name: "a socket",
            harm: |b| {
                remove(&b.at("region.toml"));
                UnixListener::bind(b.at("region.toml")).unwrap();
            },
            command: LIST,
            exit: 6,
            words: &["region.toml", "socket"],
        },
        Case {
            name: "a device that never ends",
            harm: |b| {
                remove(&b.at("region.toml"));
                symlink("/dev/zero", b.at("region.toml")).unwrap();
            },
            command: LIST,
            exit: 6,
            words: &["region.toml", "symbolic link"],
        },
        Case {
            name: "writable by others",
            harm: |b| chmod(&b.at("region.toml"), 0o666),
            command: LIST,
            exit: 6,
            words: &["region.toml", "0666", "chmod 600"],
        },
    ]);
}

#[test]
fn folders_and_what_runs_in_them() {
    check_all(&[
        Case {
            name: "layers is a link",
            harm: |b| b.move_out(&b.at("layers")),
            command: LIST,
            exit: 6,
            words: &["layers", "symbolic link"],
        },
        Case {
            name: "keys is a link",
            harm: |b| b.move_out(&b.at("keys")),
            command: LIST,
            exit: 6,
            words: &["keys", "symbolic link"],
        },
        Case {
            name: "run is a link",
            harm: |b| b.move_out(&b.at("run")),
            command: LIST,
            exit: 6,
            words: &["run", "symbolic link"],
        },
        Case {
            name: "run is a file",
            harm: |b| sparse_after(&b.at("run")),
            command: LIST,
            exit: 6,
            words: &["run", "not a folder"],
        },
        Case {
            name: "run is missing",
            harm: |b| remove(&b.at("run")),
            command: LIST,
            exit: 6,
            words: &["run", "No such file"],
        },
        Case {
            name: "layers is a pipe",
            harm: |b| pipe_instead(&b.at("layers")),
            command: LIST,
            exit: 6,
            words: &["layers", "a pipe"],
        },
        Case {
            name: "others may write the region",
            harm: |b| chmod(&b.dir, 0o777),
            command: LIST,
            exit: 6,
            words: &["0777", "chmod 700"],
        },
        Case {
            name: "others may write layers",
            harm: |b| chmod(&b.at("layers"), 0o770),
            command: LIST,
            exit: 6,
            words: &["layers", "chmod 700"],
        },
        Case {
            name: "open.lock is a link",
            harm: |b| b.link(&b.at("run/open.lock")),
            command: LIST,
            exit: 6,
            words: &["open.lock", "symbolic link"],
        },
        Case {
            name: "open.lock is a pipe",
            harm: |b| pipe_instead(&b.at("run/open.lock")),
            command: LIST,
            exit: 6,
            words: &["open.lock", "a pipe"],
        },
        Case {
            name: "layers.lock is a link",
            harm: |b| b.link(&b.at("run/layers.lock")),
            command: SNAPSHOT,
            exit: 6,
            words: &["layers.lock", "symbolic link"],
        },
        Case {
            name: "layers.lock is a hard link",
            harm: |b| b.hard_link(&b.at("run/layers.lock")),
            command: SNAPSHOT,
            exit: 6,
            words: &["layers.lock", "2 names"],
        },
        Case {
            name: "layers.lock is a pipe",
            harm: |b| pipe_instead(&b.at("run/layers.lock")),
            command: SNAPSHOT,
            exit: 6,
            words: &["layers.lock", "a pipe"],
        },
        Case {
            name: "layers.lock holds a gigabyte",
            harm: |b| sparse(&b.at("run/layers.lock"), 1 << 30),
            command: SNAPSHOT,
            exit: 0,
            words: &["snap-"],
        },
        Case {
            name: "the snapshot's lock is a link",
            harm: |b| b.link(&b.at(&format!("run/{}.lock", b.ids.snapshot))),
            command: &["snapshot", "delete", "s1"],
            exit: 6,
            words: &["symbolic link"],
        },
        Case {
            name: "mount.log is a link",
            harm: |b| b.link(&b.at("run/mount.log")),
            command: &["mount", "/nowhere"],
            exit: 3,
            words: &["/nowhere"],
        },
    ]);
}

#[test]
fn proofs() {
    check_all(&[
        Case {
            name: "proofs is a link",
            harm: |b| b.move_out(&b.at("proofs")),
            command: DEEP,
            exit: 6,
            words: &["proofs", "symbolic link"],
        },
        Case {
            name: "proofs is a link to be swept",
            harm: |b| {
                b.move_out(&b.at("proofs"));
                fs::write(b.outside.join("moved/old"), "mine").unwrap();
                fs::rename(
                    b.outside.join("moved").join(&b.ids.snapshot),
                    b.outside.join("moved/snap-00000000000000001"),
                )
                .unwrap();
                for name in ["old", "snap-00000000000000001"] {
                    age(&b.outside.join("moved").join(name));
                }
            },
            command: SNAPSHOT,
            exit: 0,
            words: &["snap-"],
        },
        Case {
            name: "proofs is a link as a snapshot is deleted",
            harm: |b| b.move_out(&b.at("proofs")),
            command: &["snapshot", "delete", "s1"],
            exit: 0,
            words: &[],
        },
        Case {
            name: "proofs is a file",
            harm: |b| sparse_after(&b.at("proofs")),
            command: SNAPSHOT,
            exit: 0,
            words: &["snap-"],
        },
        Case {
            name: "proofs is a file as a snapshot is deleted",
            harm: |b| sparse_after(&b.at("proofs")),
            command: &["snapshot", "delete", "s1"],
            exit: 0,
            words: &[],
        },
        Case {
            name: "proofs is a file as all is checked",
            harm: |b| sparse_after(&b.at("proofs")),
            command: CHECK,
            exit: 6,
            words: &["proofs", "not a folder"],
        },
        Case {
            name: "proofs is a pipe",
            harm: |b| pipe_instead(&b.at("proofs")),
            command: CHECK,
            exit: 6,
            words: &["proofs", "a pipe"],
        },
        Case {
            name: "others may write proofs",
            harm: |b| chmod(&b.at("proofs"), 0o777),
            command: CHECK,
            exit: 6,
            words: &["proofs", "chmod 700", "no snapshot needs its proof"],
        },
        Case {
            name: "others may write proofs and a snapshot is taken",
            harm: |b| chmod(&b.at("proofs"), 0o777),
            command: SNAPSHOT,
            exit: 0,
            words: &["snap-"],
        },
        Case {
            name: "a proof is a link",
            harm: |b| b.move_out(&b.proof()),
            command: CHECK,
            exit: 6,
            words: &["its proof can't be read", "symbolic link"],
        },
        Case {
            name: "a proof is a link and is made anew",
            harm: |b| b.move_out(&b.proof()),
            command: DEEP,
            exit: 0,
            words: &["had a damaged proof, which was made anew"],
        },
        Case {
            name: "a proof is a hard link",
            harm: |b| b.hard_link(&b.proof()),
            command: CHECK,
            exit: 6,
            words: &["its proof can't be read", "2 names"],
        },
        Case {
            name: "a proof is a pipe",
            harm: |b| pipe_instead(&b.proof()),
            command: CHECK,
            exit: 6,
            words: &["its proof can't be read", "a pipe"],
        },
        Case {
            name: "a proof is a pipe and is made anew",
            harm: |b| pipe_instead(&b.proof()),
            command: DEEP,
            exit: 0,
            words: &["made anew"],
        },
        Case {
            name: "a proof is a folder",
            harm: |b| {
                remove(&b.proof());
                fs::create_dir(b.proof()).unwrap();
            },
            command: DEEP,
            exit: 6,
            words: &["proof", "a folder"],
        },
        Case {
            name: "a proof is a folder as all is checked",
            harm: |b| {
                remove(&b.proof());
                fs::create_dir(b.proof()).unwrap();
            },
            command: CHECK,
            exit: 6,
            words: &["proof", "a folder"],
        },
        Case {
            name: "a proof of 800 MB of zeros",
            harm: |b| sparse(&b.proof(), 800 << 20),
            command: CHECK,
            exit: 6,
            words: &["another kind of file"],
        },
        Case {
            name: "a proof that goes on for 800 MB",
            harm: |b| set_len(&b.proof(), 800 << 20),
            command: CHECK,
            exit: 6,
            words: &["its proof can't be read", "838860800 bytes"],
        },
        Case {
            name: "a proof that goes on for 800 MB and is made anew",
            harm: |b| set_len(&b.proof(), 800 << 20),
            command: DEEP,
            exit: 0,
            words: &["made anew"],
        },
        Case {
            name: "a proof that is cut",
            harm: |b| set_len(&b.proof(), 150),
            command: CHECK,
            exit: 6,
            words: &["a shorter file"],
        },
        Case {
            name: "leaves that are damaged",
            harm: |b| flip(&b.proof(), 200),
            command: CHECK,
            exit: 6,
            words: &["its proof can't be read", "no snapshot needs its proof"],
        },
        Case {
            name: "a proof of another version",
            harm: |b| {
                let mut bytes = fs::read(b.proof()).unwrap();
                bytes[8] = 3;
                fs::write(b.proof(), bytes).unwrap();
            },
            command: DEEP,
            exit: 6,
            words: &["version 3", "this program knows version 2"],
        },
    ]);
}

/// As if it had been written long ago.
fn age(path: &Path) {
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
}

fn sparse_after(path: &Path) {
    remove(path);
    sparse(path, 10);
}

#[test]
fn files_of_layers() {
    check_all(&[
        Case {
            name: "header is a link",
            harm: |b| b.move_out(&b.layer(&b.ids.sealed).join("header.toml")),
            command: VERIFY,
            exit: 6,
            words: &["header.toml", "symbolic link"],
        },
        Case {
            name: "data is a link",
            harm: |b| b.move_out(&b.layer(&b.ids.sealed).join("data")),
            command: VERIFY,
            exit: 6,
            words: &["data", "symbolic link"],
        },
        Case {
            name: "map is a link",
            harm: |b| b.move_out(&b.layer(&b.ids.active).join("map")),
            command: SNAPSHOT,
            exit: 6,
            words: &["map", "symbolic link"],
        },
        Case {
            name: "the folder is a link",
            harm: |b| b.move_out(&b.layer(&b.ids.sealed)),
            command: VERIFY,
            exit: 6,
            words: &["symbolic link", "layers"],
        },
        Case {
            name: "the folder of the active layer is a link",
            harm: |b| b.move_out(&b.layer(&b.ids.active)),
            command: SNAPSHOT,
            exit: 6,
            words: &["symbolic link", "layers"],
        },
        Case {
            name: "header is a hard link",
            harm: |b| b.hard_link(&b.layer(&b.ids.sealed).join("header.toml")),
            command: VERIFY,
            exit: 6,
            words: &["header.toml", "2 names"],
        },
        Case {
            name: "data is a hard link",
            harm: |b| {
                let data = b.layer(&b.ids.active).join("data");
                fs::hard_link(&data, b.outside.join("second")).unwrap();
            },
            command: SNAPSHOT,
            exit: 6,
            words: &["data", "2 names"],
        },
        Case {
            name: "header is a pipe",
            harm: |b| pipe_instead(&b.layer(&b.ids.sealed).join("header.toml")),
            command: VERIFY,
            exit: 6,
            words: &["header.toml", "a pipe"],
        },
        Case {
            name: "data is a pipe",
            harm: |b| pipe_instead(&b.layer(&b.ids.sealed).join("data")),
            command: VERIFY,
            exit: 6,
            words: &["data", "a pipe"],
        },
        Case {
            name: "map is a pipe",
            harm: |b| pipe_instead(&b.layer(&b.ids.active).join("map")),
            command: SNAPSHOT,
            exit: 6,
            words: &["map", "a pipe"],
        },
        Case {
            name: "data is writable by others",
            harm: |b| chmod(&b.layer(&b.ids.sealed).join("data"), 0o602),
            command: VERIFY,
            exit: 6,
            words: &["data", "0602", "chmod 600"],
        },
        Case {
            name: "header is writable by others",
            harm: |b| chmod(&b.layer(&b.ids.sealed).join("header.toml"), 0o620),
            command: VERIFY,
            exit: 6,
            words: &["header.toml", "0620", "chmod 600"],
        },
        Case {
            name: "the folder is writable by others",
            harm: |b| chmod(&b.layer(&b.ids.sealed), 0o777),
            command: VERIFY,
            exit: 6,
            words: &["0777", "chmod 700"],
        },
        Case {
            name: "map is missing",
            harm: |b| remove(&b.layer(&b.ids.sealed).join("map")),
            command: VERIFY,
            exit: 6,
            words: &["map", "No such file"],
        },
        Case {
            name: "map is a folder",
            harm: |b| {
                remove(&b.layer(&b.ids.sealed).join("map"));
                fs::create_dir(b.layer(&b.ids.sealed).join("map")).unwrap();
            },
            command: VERIFY,
            exit: 6,
            words: &["map", "a folder"],
        },
        Case {
            name: "header of a gigabyte",
            harm: |b| sparse(&b.layer(&b.ids.sealed).join("header.toml"), 1 << 30),
            command: VERIFY,
            exit: 6,
            words: &["header.toml", "1048576"],
        },
        Case {
            name: "header not UTF-8",
            harm: |b| fs::write(b.layer(&b.ids.sealed).join("header.toml"), [0xff; 500]).unwrap(),
            command: VERIFY,
            exit: 6,
            words: &["UTF-8"],
        },
        Case {
            name: "map is shorter",
            harm: |b| set_len(&b.layer(&b.ids.sealed).join("map"), 4096),
            command: VERIFY,
            exit: 6,
            words: &["page"],
        },
        Case {
            name: "map of 8 TiB",
            harm: |b| set_len(&b.layer(&b.ids.sealed).join("map"), 8 << 40),
            command: VERIFY,
            exit: 0,
            words: &[],
        },
        Case {
            name: "data is shorter",
            harm: |b| set_len(&b.layer(&b.ids.sealed).join("data"), (64 << 20) + 4096),
            command: VERIFY,
            exit: 6,
            words: &["sector"],
        },
        Case {
            name: "data ends within its superblocks",
            harm: |b| set_len(&b.layer(&b.ids.active).join("data"), 5000),
            command: SNAPSHOT,
            exit: 6,
            words: &["5000 bytes"],
        },
        Case {
            name: "data of 8 TiB",
            harm: |b| set_len(&b.layer(&b.ids.active).join("data"), 8 << 40),
            command: SNAPSHOT,
            exit: 0,
            words: &["snap-"],
        },
        Case {
            name: "folders swapped",
            harm: |b| {
                let (one, two) = (b.layer(&b.ids.active), b.layer(&b.ids.other));
                let between = b.dir.join("layers/between");
                fs::rename(&one, &between).unwrap();
                fs::rename(&two, &one).unwrap();
                fs::rename(&between, &two).unwrap();
            },
            command: SNAPSHOT,
            exit: 6,
            words: &["header"],
        },
        Case {
            name: "data of another layer",
            harm: |b| {
                fs::copy(b.layer(&b.ids.other).join("data"), b.layer(&b.ids.active).join("data"))
                    .map(drop)
                    .unwrap()
            },
            command: SNAPSHOT,
            exit: 6,
            words: &["superblock"],
        },
        Case {
            name: "the wrapped key of another layer",
            harm: |b| {
                let other = fs::read_to_string(b.layer(&b.ids.other).join("header.toml")).unwrap();
                let line = other.lines().find(|line| line.starts_with("wrapped_key")).unwrap().to_owned();
                edit_line(&b.layer(&b.ids.sealed).join("header.toml"), "wrapped_key", &line);
                b.sql(&format!(
                    "UPDATE layers SET wrapped_key = (SELECT wrapped_key FROM layers WHERE id = '{}') WHERE id = '{}'",
                    b.ids.other, b.ids.sealed
                ));
            },
            command: VERIFY,
            exit: 6,
            words: &["key"],
        },
        Case {
            name: "a wrapped key that is cut",
            harm: |b| {
                b.sql(&format!(
                    "UPDATE layers SET wrapped_key = substr(wrapped_key, 1, 40) WHERE id = '{}'",
                    b.ids.sealed
                ))
            },
            command: VERIFY,
            exit: 6,
            words: &["key"],
        },
        Case {
            name: "a wrapped key of one byte",
            harm: |b| b.sql(&format!("UPDATE layers SET wrapped_key = x'01' WHERE id = '{}'", b.ids.sealed)),
            command: VERIFY,
            exit: 6,
            words: &["key"],
        },
        Case {
            name: "a wrapped key with one bit off",
            harm: |b| {
                let catalog = rusqlite::Connection::open(b.at("catalog.db")).unwrap();
                let read = "SELECT wrapped_key FROM layers WHERE id = ?1";
                let mut key: Vec<u8> = catalog.query_row(read, [&b.ids.sealed], |row| row.get(0)).unwrap();
                key[40] ^= 1;
                let write = "UPDATE layers SET wrapped_key = ?2 WHERE id = ?1";
                catalog.execute(write, rusqlite::params![b.ids.sealed, key]).unwrap();
            },
            command: VERIFY,
            exit: 6,
            words: &["key"],
        },
        Case {
            name: "another size in header",
            harm: |b| {
                edit(
                    &b.layer(&b.ids.sealed).join("header.toml"),
                    "size_bytes = 8388608",
                    "size_bytes = 8392704",
                )
            },
            command: VERIFY,
            exit: 6,
            words: &["header.toml", "MAC"],
        },
        Case {
            name: "a size of minus one in header",
            harm: |b| {
                edit(&b.layer(&b.ids.sealed).join("header.toml"), "size_bytes = 8388608", "size_bytes = -1")
            },
            command: VERIFY,
            exit: 6,
            words: &["header.toml"],
        },
        Case {
            name: "cipher renamed to none",
            harm: |b| {
                edit_line(&b.layer(&b.ids.sealed).join("header.toml"), "cipher", "cipher = \"none\"");
                b.sql(&format!("UPDATE layers SET cipher = 'none' WHERE id = '{}'", b.ids.sealed));
            },
            command: VERIFY,
            exit: 6,
            words: &["key"],
        },
        Case {
            name: "another parent in header",
            harm: |b| {
                let parent = format!("parent = \"{}\"", b.ids.other);
                edit_line(&b.layer(&b.ids.active).join("header.toml"), "parent = ", &parent);
            },
            command: SNAPSHOT,
            exit: 6,
            words: &["header.toml", "MAC"],
        },
        Case {
            name: "both superblocks flipped",
            harm: |b| [40, 4136].iter().for_each(|at| flip(&b.layer(&b.ids.active).join("data"), *at)),
            command: SNAPSHOT,
            exit: 6,
            words: &["superblock"],
        },
        Case {
            name: "key files are links and pipes",
            harm: |b| {
                b.link(&b.at(&format!("keys/{}.1", b.ids.key)));
                make_pipe(&b.at(&format!("keys/{}.2", b.ids.key)));
            },
            command: CHECK,
            exit: 6,
            words: &["key"],
        },
        Case {
            name: "a key file of a gigabyte, the row damaged",
            harm: |b| {
                sparse(&b.at(&format!("keys/{}.1", b.ids.key)), 1 << 30);
                b.sql("UPDATE key_versions SET wrapped = x'00'");
            },
            command: VERIFY,
            exit: 6,
            words: &["key"],
        },
    ]);
}

/// What a passphrase's derivation may ask for is little; the rest is refused before it is begun.
#[test]
fn a_passphrase_that_would_take_long() {
    let world = World::bare(None);
    let phrase = world.at("phrase");
    fs::write(&phrase, "correct horse").unwrap();
    chmod(Path::new(&phrase), 0o600);
    let dir = world.at("r");
    world.ok(&["region", "init", &dir, "--name", "here", "--passphrase-file", &phrase]);
    fs::remove_dir_all(world.path("config")).unwrap();
    let toml = world.path("r/region.toml");
    let good = fs::read_to_string(&toml).unwrap();
    for (field, value) in [
        ("memory_kib", 1 << 20),
        ("memory_kib", (256 << 10) + 1),
        ("passes", 16),
        ("passes", 7),
        ("lanes", 9),
    ] {
        edit_line(&toml, &format!("{field} = "), &format!("{field} = {value}"));
        let what = format!("{field} = {value}");
        let ended =
            hostile::bounded(&what, || world.command(&["region", "add", &dir, "--passphrase-file", &phrase]));
        assert_eq!(ended.exit, Some(6), "{what}: {ended:?}");
        assert!(ended.stderr.contains(&format!("{field} is {value}")), "{what}: {ended:?}");
        assert!(ended.memory_kib < 64 << 10, "{what}: {ended:?}");
        fs::write(&toml, &good).unwrap();
    }
    world.ok(&["region", "add", &dir, "--passphrase-file", &phrase]);
}
