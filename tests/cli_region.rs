//! Guarded here: a region that can't be opened again after its configuration was lost, one that opens with the wrong key
//! or for the wrong user, a hostile `region.toml` that hangs or panics, and exit numbers that drift.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// One with a region named `here` in `r`.
    fn with_region() -> Self {
        let bench = Self::new();
        bench.ok(&["region", "init", &bench.at("r"), "--name", "here"]);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("terrane"));
        for name in ["TERRANE_REGION", "TERRANE_ACCOUNT", "TERRANE_CLOCK", "TERRANE_LOG"] {
            command.env_remove(name);
        }
        command.env("TERRANE_CONFIG_DIR", self.path("config")).args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it, expects 0, gives stdout.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it, expects this exit number and words on stderr, nothing on stdout and no panic.
    #[track_caller]
    fn fails(&self, args: &[&str], exit: i32, words: &[&str]) {
        expect(&self.run(args), exit, words);
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let args = [args, &["--output", "json", "-q"]].concat();
        serde_json::from_str(&self.ok(&args)).unwrap()
    }

    fn root_key_file(&self) -> PathBuf {
        fs::read_dir(self.path("config/keys")).unwrap().next().unwrap().unwrap().path()
    }

    /// What needs the root key.
    const NEEDS_KEY: &[&str] = &["key", "create"];
}

#[track_caller]
fn expect(output: &Output, exit: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{stderr}");
    assert!(output.stdout.is_empty(), "an error prints nothing on stdout");
    assert!(!stderr.contains("panicked"), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is missing in: {stderr}");
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn write_private(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn init_makes_a_private_region_and_says_where_its_key_is() {
    let bench = Bench::new();
    let output = bench.run(&["region", "init", &bench.at("r"), "--name", "here"]);
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8(output.stderr).unwrap();
    let key = bench.root_key_file();
    assert!(said.contains(key.to_str().unwrap()) && said.contains("elsewhere"), "{said}");
    assert_eq!(fs::metadata(&key).unwrap().len(), 32);
    let id = String::from_utf8(output.stdout).unwrap();
    assert_eq!(key.file_stem().unwrap().to_str().unwrap(), id.trim());
    assert_eq!(mode(&bench.path("r")), 0o700);
    for file in [key, bench.path("r/region.toml"), bench.path("r/catalog.db")] {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    let shown = bench.json(&["region", "show"]);
    assert_eq!(shown["name"], "here");
    assert_eq!(shown["id"], id.trim());
    assert_eq!(shown["settings"]["encrypt_by_default"], true);
    let keys = bench.json(&["key", "list"]);
    assert_eq!(keys.as_array().unwrap().len(), 1, "the default service key");
    assert_eq!(keys[0]["is_default"], true);
    // A plain search of all files of the region finds no byte of the root key.
    let root_key = fs::read(bench.root_key_file()).unwrap();
    for file in ["r/region.toml", "r/catalog.db"] {
        let bytes = fs::read(bench.path(file)).unwrap();
        assert!(!bytes.windows(16).any(|window| window == &root_key[..16]));
    }
}

#[test]
fn init_refuses_what_is_taken_and_leaves_it_alone() {
    let bench = Bench::with_region();
    bench.fails(&["region", "init", &bench.at("r"), "--name", "other"], 5, &["region in"]);
    bench.fails(&["region", "init", &bench.at("r2"), "--name", "here"], 5, &["here"]);
    assert!(!bench.path("r2").exists());
    fs::create_dir(bench.path("full")).unwrap();
    fs::write(bench.path("full/file"), "x").unwrap();
    bench.fails(&["region", "init", &bench.at("full"), "--name", "other"], 5, &["file in"]);
    assert!(bench.path("full/file").exists());
    bench.fails(&["region", "init", &bench.at("no/such/parent"), "--name", "other"], 3, &["no/such/parent"]);
    bench.fails(&["region", "init", &bench.at("r3"), "--name", "a b"], 2, &["a b"]);
    // The configuration, and with it the root key, must not lie in the region.
    let mut inside = bench.command(&["region", "init", &bench.at("r4"), "--name", "other"]);
    inside.env("TERRANE_CONFIG_DIR", bench.path("r4/config"));
    fs::create_dir(bench.path("r4")).unwrap();
    expect(&inside.output().unwrap(), 4, &["inside the region"]);
    // An empty directory, also the top of a file system of its own, will do.
    fs::create_dir_all(bench.path("mount/lost+found")).unwrap();
    bench.ok(&["region", "init", &bench.at("mount"), "--name", "mounted"]);
    assert_eq!(mode(&bench.path("mount")), 0o700);
}

#[test]
fn a_region_is_chosen_by_directory_name_or_being_the_only_one() {
    let bench = Bench::new();
    bench.fails(&["key", "list"], 2, &["no region", "region init"]);
    bench.ok(&["region", "init", &bench.at("r"), "--name", "here"]);
    bench.ok(&["key", "list"]);
    bench.ok(&["region", "init", &bench.at("s"), "--name", "there"]);
    bench.fails(&["key", "list"], 2, &["here, there", "--region"]);
    bench.fails(&["key", "list", "--region", "nowhere"], 3, &["nowhere", "here, there"]);
    bench.ok(&["key", "list", "--region", "here"]);
    bench.ok(&["--region", &bench.at("s"), "key", "list"]);
    let by_variable = bench.command(&["region", "show"]).env("TERRANE_REGION", "there").output().unwrap();
    assert!(String::from_utf8_lossy(&by_variable.stdout).contains("there"));
    let in_dir =
        bench.command(&["region", "show", "--region", "./s"]).current_dir(bench.dir.path()).output().unwrap();
    assert!(String::from_utf8_lossy(&in_dir.stdout).contains("there"));
    bench.fails(&["key", "list", "--region", &bench.at("none")], 3, &["none", "no such directory"]);
    fs::create_dir(bench.path("empty")).unwrap();
    bench.fails(&["key", "list", "--region", &bench.at("empty")], 3, &["empty", "region.toml"]);
    bench.fails(&["key", "list", "--region", "/etc/passwd/"], 3, &["not a directory"]);
    let listed = bench.json(&["region", "list"]);
    assert_eq!(listed[0]["name"], "here");
    assert_eq!(listed[1]["state"], "ok");
    // A directory that another region now lies in is not taken for the first.
    fs::rename(bench.path("r"), bench.path("old")).unwrap();
    fs::rename(bench.path("s"), bench.path("r")).unwrap();
    bench.fails(&["key", "list", "--region", "here"], 4, &["region forget"]);
    assert_eq!(bench.json(&["region", "list"])[1]["state"], "missing");
}

#[test]
fn a_region_comes_back_after_its_configuration_was_lost() {
    let bench = Bench::with_region();
    let key = bench.ok(&["key", "create", "--alias", "mine"]);
    bench.ok(&["region", "export-root-key", "-o", &bench.at("copy")]);
    assert_eq!(mode(&bench.path("copy")), 0o600);
    bench.fails(&["region", "export-root-key", "-o", &bench.at("copy")], 5, &["copy", "exists"]);
    fs::remove_dir_all(bench.path("config")).unwrap();
    // Listing needs no root key, making a key does.
    let region = format!("{}/", bench.at("r"));
    assert!(bench.ok(&["key", "list", "--region", &region]).contains(key.trim()));
    bench.fails(&["key", "create", "--region", &region], 4, &["root key", "region add"]);
    bench.fails(&["region", "add", &bench.at("r")], 4, &["root key"]);
    bench.ok(&["region", "add", &bench.at("r"), "--root-key-file", &bench.at("copy")]);
    fs::remove_file(bench.path("copy")).unwrap();
    bench.ok(Bench::NEEDS_KEY);
    assert_eq!(mode(&bench.root_key_file()), 0o600);
}

#[test]
fn forget_keeps_the_region_and_its_key() {
    let bench = Bench::with_region();
    bench.ok(&["region", "forget", "here"]);
    assert_eq!(bench.json(&["region", "list"]), Value::Array(vec![]));
    assert!(bench.root_key_file().exists() && bench.path("r/region.toml").exists());
    bench.fails(&["region", "forget", "here"], 3, &["here"]);
    bench.fails(&["region", "forget"], 2, &["which region"]);
    bench.ok(&["region", "add", &bench.at("r")]);
    bench.ok(Bench::NEEDS_KEY);
    bench.ok(&["region", "forget", &bench.at("r")]);
    // Moved, then added: the entry follows. Copied: the second is refused while the first is there.
    bench.ok(&["region", "add", &bench.at("r")]);
    fs::rename(bench.path("r"), bench.path("moved")).unwrap();
    bench.ok(&["region", "add", &bench.at("moved")]);
    bench.ok(Bench::NEEDS_KEY);
    let copied = Command::new("cp").args(["-a", &bench.at("moved"), &bench.at("twin")]).status().unwrap();
    assert!(copied.success());
    bench.fails(&["region", "add", &bench.at("twin")], 5, &["same id", "forget"]);
}

#[test]
fn root_key_files_are_refused_in_words() {
    let bench = Bench::with_region();
    let file = bench.root_key_file();
    let key = fs::read(&file).unwrap();
    let refused = |words: &[&str]| {
        bench.fails(Bench::NEEDS_KEY, 4, words);
        bench.ok(&["key", "list"]);
    };
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&["0644", "chmod 600"]);
    write_private(&file, b"");
    refused(&["empty"]);
    write_private(&file, &key[..31]);
    refused(&["31 bytes"]);
    write_private(&file, &[key.as_slice(), b"\n"].concat());
    refused(&["33 bytes"]);
    write_private(&file, &[0; 10_000]);
    refused(&["10000 bytes"]);
    write_private(&file, &[7; 32]);
    refused(&["another region's"]);
    fs::remove_file(&file).unwrap();
    refused(&["not there"]);
    let moved = bench.path("elsewhere");
    write_private(&moved, &key);
    std::os::unix::fs::symlink(&moved, &file).unwrap();
    refused(&["refused"]);
    fs::remove_file(&file).unwrap();
    write_private(&file, &key);
    bench.ok(Bench::NEEDS_KEY);
    // `region add` puts a damaged file right.
    write_private(&file, b"");
    bench.ok(&["region", "add", &bench.at("r"), "--root-key-file", &bench.at("elsewhere")]);
    bench.ok(Bench::NEEDS_KEY);
}

#[test]
fn another_regions_root_key_is_recognised() {
    let bench = Bench::with_region();
    let other = Bench::with_region();
    let key = other.root_key_file();
    let key = key.to_str().unwrap();
    bench.fails(&["region", "add", &bench.at("r"), "--root-key-file", key], 4, &["another region's"]);
    // Two regions may share one root key, if their maker says so.
    bench.ok(&["region", "init", &bench.at("s"), "--name", "sister", "--root-key-file", key]);
    bench.ok(&["key", "create", "--region", "sister"]);
}

#[test]
fn a_hostile_header_is_refused_at_once() {
    let bench = Bench::with_region();
    let path = bench.path("r/region.toml");
    let good = fs::read_to_string(&path).unwrap();
    let refused = |exit: i32, words: &[&str]| {
        let started = std::time::Instant::now();
        bench.fails(&["region", "show"], exit, words);
        assert!(started.elapsed().as_secs() < 5);
    };
    fs::write(&path, good.replace("format_version = 1", "format_version = 2")).unwrap();
    refused(4, &["format 2", "newer version"]);
    fs::write(&path, good.replace("features = []", "features = [\"buckets\"]")).unwrap();
    refused(4, &["buckets", "newer version"]);
    for damaged in [
        good.replace("terrane-region", "something-else").into_bytes(),
        good.replace("name = ", "nome = ").into_bytes(),
        good.as_bytes()[..good.len() / 2].to_vec(),
        b"\xff\xfe\x00".to_vec(),
        b"".to_vec(),
        vec![b'['; 60_000],
        vec![b'#'; 65_537],
    ] {
        fs::write(&path, damaged).unwrap();
        refused(6, &["region.toml", "damaged"]);
    }
    fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    refused(6, &["64 KiB"]);
    fs::remove_file(&path).unwrap();
    let fifo = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(fifo.success());
    refused(6, &["regular file"]);
    fs::remove_file(&path).unwrap();
    let real = bench.path("real.toml");
    fs::write(&real, &good).unwrap();
    std::os::unix::fs::symlink(&real, &path).unwrap();
    refused(6, &["region.toml", "symbolic link"]);
    fs::remove_file(&path).unwrap();
    fs::write(&path, good).unwrap();
    bench.ok(&["region", "show"]);
}

#[test]
fn a_damaged_region_is_named() {
    let bench = Bench::with_region();
    for name in ["catalog.db-wal", "catalog.db-shm"] {
        assert!(!bench.path("r").join(name).exists(), "the last process folds the log into the file");
    }
    let catalog = bench.path("r/catalog.db");
    let good = fs::read(&catalog).unwrap();
    fs::write(&catalog, vec![0xa5; good.len()]).unwrap();
    bench.fails(&["key", "list"], 6, &["catalog", "damaged"]);
    fs::remove_file(&catalog).unwrap();
    bench.fails(&["key", "list"], 6, &["catalog.db"]);
    assert!(!catalog.exists(), "a lost catalog is not replaced by an empty one");
    // `region list` needs no catalog.
    assert_eq!(bench.json(&["region", "list"])[0]["state"], "ok");
    fs::write(&catalog, good).unwrap();
    fs::remove_dir(bench.path("r/layers")).unwrap();
    bench.fails(&["key", "list"], 6, &["layers"]);
}

#[test]
fn only_the_owner_opens_a_region() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    let bench = Bench::with_region();
    fs::set_permissions(bench.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = bench.path("terrane");
    fs::copy(assert_cmd::cargo::cargo_bin!("terrane"), &binary).unwrap();
    let nobody = |config: &str, args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary).args(args);
        command.env("TERRANE_CONFIG_DIR", bench.path(config)).stdin(Stdio::null()).output().unwrap()
    };
    fs::create_dir(bench.path("theirs")).unwrap();
    std::os::unix::fs::chown(bench.path("theirs"), Some(65534), Some(65534)).unwrap();
    expect(&nobody("theirs", &["key", "list", "--region", &bench.at("r")]), 4, &["uid 0 (root)"]);
    expect(&nobody("config", &["key", "list"]), 4, &["uid 0 (root)"]);
    expect(&nobody("theirs", &["region", "add", &bench.at("r")]), 4, &["uid 0 (root)"]);
    // And root does not open a user's: its files would lock the owner out.
    let made = nobody("theirs", &["region", "init", &bench.at("theirs/r"), "--name", "theirs"]);
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    bench.fails(&["key", "list", "--region", &bench.at("theirs/r")], 4, &["uid 65534"]);
    assert!(!bench.path("theirs/r/catalog.db-wal").exists());
}

#[test]
fn a_passphrase_is_set_changed_and_removed() {
    let bench = Bench::new();
    for (name, text) in [("p1", "first secret\n"), ("p2", "second secret"), ("none", "\n")] {
        write_private(&bench.path(name), text.as_bytes());
    }
    let init = ["region", "init", &bench.at("r"), "--name", "here", "--passphrase-file"];
    bench.fails(&[&init[..], &[&bench.at("none")]].concat(), 4, &["passphrase", "empty"]);
    bench.fails(&[&init[..], &[&bench.at("nothing")]].concat(), 3, &["nothing"]);
    assert!(!bench.path("r").exists());
    bench.ok(&[&init[..], &[&bench.at("p1")]].concat());
    let keys = || fs::read_dir(bench.path("config/keys")).unwrap().count();
    assert_eq!(keys(), 0, "with a passphrase no root key lies in the configuration");
    bench.ok(Bench::NEEDS_KEY);
    let shown = bench.json(&["region", "show"]);
    assert_eq!((&shown["passphrase"], &shown["root_key"]), (&Value::Bool(true), &"passphrase file".into()));

    // Changed: the old one opens it no longer.
    bench.ok(&["region", "passphrase", "--new-passphrase-file", &bench.at("p2")]);
    bench.ok(Bench::NEEDS_KEY);
    bench.fails(
        &["region", "add", &bench.at("r"), "--passphrase-file", &bench.at("p1")],
        4,
        &["p1", "does not open"],
    );
    write_private(&bench.path("p2"), b"wrong");
    bench.fails(Bench::NEEDS_KEY, 4, &["p2", "does not open"]);
    bench.ok(&["key", "list"]);
    write_private(&bench.path("p2"), b"second secret\r\n");
    bench.ok(Bench::NEEDS_KEY);

    // Without an entry and a terminal there is nobody to ask.
    bench.ok(&["region", "forget", "here"]);
    bench.fails(&["key", "create", "--region", &bench.at("r")], 4, &["no terminal"]);
    bench.ok(&["region", "add", &bench.at("r"), "--passphrase-file", &bench.at("p2")]);

    // Removed: the root key is a file again.
    bench.ok(&["region", "passphrase", "--remove"]);
    assert_eq!(keys(), 1);
    fs::remove_file(bench.path("p2")).unwrap();
    bench.ok(Bench::NEEDS_KEY);
    assert!(!fs::read_to_string(bench.path("r/region.toml")).unwrap().contains("passphrase"));
    bench.fails(&["region", "passphrase", "--remove"], 4, &["has none"]);
    bench.fails(&["region", "add", &bench.at("r"), "--passphrase-file", &bench.at("p1")], 4, &["has none"]);
    bench.ok(&["region", "passphrase", "--new-passphrase-file", &bench.at("p1")]);
    bench.ok(Bench::NEEDS_KEY);
}

#[test]
fn hostile_argon2_parameters_are_refused_before_they_are_used() {
    let bench = Bench::new();
    write_private(&bench.path("p"), b"secret");
    bench.ok(&["region", "init", &bench.at("r"), "--name", "here", "--passphrase-file", &bench.at("p")]);
    let path = bench.path("r/region.toml");
    let good = fs::read_to_string(&path).unwrap();
    let with =
        |field: &str, value: &str| {
            good.lines()
                .map(|line| {
                    if line.starts_with(field) { format!("{field} = {value}\n") } else { format!("{line}\n") }
                })
                .collect::<String>()
        };
    for (field, value) in [
        ("memory_kib", "4294967295"),
        ("memory_kib", "67108864"),
        ("memory_kib", "262145"),
        ("memory_kib", "0"),
        ("passes", "4294967295"),
        ("passes", "7"),
        ("passes", "0"),
        ("lanes", "16777215"),
        ("lanes", "0"),
        ("lanes", "-1"),
        ("salt", "\"\""),
        ("salt", "\"zz\""),
    ] {
        fs::write(&path, with(field, value)).unwrap();
        let started = std::time::Instant::now();
        bench.fails(Bench::NEEDS_KEY, 6, &[]);
        assert!(started.elapsed().as_secs() < 5, "{field} = {value}");
    }
}

#[test]
fn keys_are_made_named_rotated_and_disabled() {
    let bench = Bench::with_region();
    let id = bench.ok(&["key", "create", "--alias", "mine", "--description", "of the ledger"]);
    let id = id.trim();
    assert!(id.starts_with("key-") && id.len() == 21);
    bench.fails(&["key", "create", "--alias", "mine"], 5, &["mine"]);
    bench.fails(&["key", "create", "--alias", "a/b"], 2, &["a/b"]);
    for name in [id, "mine", &id[..10]] {
        assert_eq!(bench.json(&["key", "show", name])["id"], id);
    }
    bench.fails(&["key", "show", "other"], 3, &["other", "here"]);
    bench.fails(&["key", "show", "key-00000000000000000"], 3, &["key-00000000000000000"]);
    bench.ok(&["key", "rotate", "mine"]);
    let shown = bench.json(&["key", "show", "mine"]);
    assert_eq!(shown["current_version"], 2);
    assert_eq!(shown["versions"].as_array().unwrap().len(), 2);
    for version in [1, 2] {
        assert_eq!(mode(&bench.path(&format!("r/keys/{id}.{version}"))), 0o600);
    }
    assert_eq!(bench.json(&["key", "disable", "mine"])["state"], "disabled");
    bench.fails(&["key", "rotate", "mine"], 4, &["disabled", "key enable"]);
    bench.ok(&["key", "enable", "mine"]);
    bench.ok(&["key", "alias", "mine", "ours"]);
    bench.fails(&["key", "alias", "default", "ours"], 5, &["ours"]);
    bench.ok(&["key", "unalias", "mine"]);
    assert_eq!(bench.json(&["key", "show", "ours"])["aliases"], serde_json::json!(["ours"]));
    assert_eq!(bench.json(&["key", "create"]).as_object().unwrap().len(), 1, "an id alone");
}

#[test]
fn settings_are_set_by_name() {
    let bench = Bench::with_region();
    bench.ok(&["region", "set", "encrypt_by_default=false", "copy_and_encrypt=off"]);
    let settings = bench.json(&["region", "show"])["settings"].clone();
    assert_eq!((&settings["encrypt_by_default"], &settings["kms_enabled"]), (&false.into(), &true.into()));
    bench.fails(&["region", "set", "colour=red"], 2, &["colour", "encrypt_by_default"]);
    bench.fails(&["region", "set", "kms_enabled=perhaps"], 2, &["perhaps"]);
    bench.fails(&["region", "set"], 2, &[]);
}

#[test]
fn errors_have_one_shape_in_json() {
    let bench = Bench::with_region();
    for (args, exit) in [
        (&["key", "show", "nothing"][..], 3),
        (&["key", "frobnicate"][..], 2),
        (&["region", "set", "colour=red"][..], 2),
        (&["key", "create", "--alias", "default"][..], 5),
        (&["region", "show", "--region", "nowhere"][..], 3),
    ] {
        let output = bench.run(&[args, &["--output", "json"]].concat());
        assert_eq!(output.status.code(), Some(exit));
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["error"]["exit"], exit);
        assert!(!error["error"]["message"].as_str().unwrap().is_empty());
        assert!(error["error"].as_object().unwrap().contains_key("hint"));
    }
    let help = bench.run(&["--help"]);
    assert_eq!((help.status.code(), help.stderr.len()), (Some(0), 0));
    bench.fails(&[], 2, &["Usage"]);
}

#[test]
fn control_characters_are_shown_and_not_done() {
    let bench = Bench::with_region();
    for args in [&["key", "show", "a\u{1b}[2Jb"][..], &["region", "show", "x\u{1b}]0;t\u{7}"][..]] {
        let output = bench.run(args);
        assert_eq!(output.status.code(), Some(3));
        assert!(!output.stderr.contains(&0x1b) && !output.stderr.contains(&7));
    }
}

#[test]
fn the_clock_is_replaced_only_where_it_was_from_the_start() {
    let bench = Bench::with_region();
    let at = |time: &str, args: &[&str]| bench.command(args).env("TERRANE_CLOCK", time).output().unwrap();
    let created = |output: Output| {
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let id = String::from_utf8(output.stdout).unwrap();
        let region = if bench.path("s").exists() { "there" } else { "here" };
        bench.json(&["key", "show", id.trim(), "--region", region])["created_at"].as_str().unwrap().to_owned()
    };
    assert!(!created(at("2031-01-01T00:00:00Z", &["key", "create"])).starts_with("2031"));
    expect(&at("tomorrow", &["region", "init", &bench.at("t"), "--name", "never"]), 2, &["TERRANE_CLOCK"]);
    assert!(!bench.path("t").exists());
    let made = at("2031-05-01T00:00:00Z", &["region", "init", &bench.at("s"), "--name", "there"]);
    assert_eq!(made.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&made.stderr).contains("TERRANE_CLOCK"));
    let shown = bench.json(&["region", "show", "there"]);
    assert_eq!(
        (&shown["replaced_clock"], &shown["created_at"]),
        (&true.into(), &"2031-05-01T00:00:00Z".into())
    );
    let create = ["key", "create", "--region", "there"];
    assert_eq!(created(at("2031-05-02T10:00:00+02:00", &create)), "2031-05-02T08:00:00Z");
    fs::write(bench.path("clock"), "2031-05-03T00:00:00Z").unwrap();
    assert_eq!(created(at(&format!("@{}", bench.at("clock")), &create)), "2031-05-03T00:00:00Z");
    assert_eq!(created(at("2031-05-01T00:00:00Z", &create)), "2031-05-03T00:00:00Z", "it never goes back");
    expect(&at("nonsense", &create), 2, &["nonsense"]);
}

#[test]
fn an_older_catalog_put_back_is_noticed() {
    let bench = Bench::with_region();
    let copy = bench.path("older.db");
    fs::copy(bench.path("r/catalog.db"), &copy).unwrap();
    bench.ok(&["key", "create"]);
    bench.ok(&["key", "create"]);
    // The anchor is at most a minute old: as if that minute had passed before the next write.
    let id = bench.json(&["region", "show"])["id"].as_str().unwrap().to_owned();
    let anchor = bench.path("config/anchors").join(&id).join("catalog");
    let yesterday = std::time::SystemTime::now() - std::time::Duration::from_secs(86_400);
    fs::File::options().write(true).open(&anchor).unwrap().set_modified(yesterday).unwrap();
    bench.ok(&["key", "create"]);
    fs::copy(&copy, bench.path("r/catalog.db")).unwrap();
    bench.fails(&["key", "list"], 6, &["older", "--accept-older"]);
    bench.ok(&["region", "check", "--accept-older"]);
    bench.ok(&["key", "list"]);
}

#[test]
fn a_check_names_what_is_wrong() {
    let bench = Bench::with_region();
    bench.ok(&["region", "check"]);
    let key = bench.ok(&["key", "create"]);
    fs::write(bench.path(&format!("r/keys/{}.1", key.trim())), "x").unwrap();
    fs::create_dir(bench.path("r/layers/stray")).unwrap();
    let output = bench.run(&["region", "check"]);
    assert_eq!(output.status.code(), Some(6));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(key.trim()) && said.contains("stray"), "{said}");
    assert!(bench.path("r/layers/stray").exists(), "nothing is removed by itself");
}
