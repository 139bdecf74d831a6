//! Guarded here: a `snapshot verify` that says equal of what is not, or of what it compared with nothing; that costs a reading where
//! proofs would do, or tells a thief what they are of; and one that can't be held back.

mod copy_support;

use std::path::PathBuf;

use copy_support::daemon::{MIB, named};
use copy_support::proofs::{DISK, differs, forge, proof_file, world};
use copy_support::{Disk, World, flip};
use terrane::catalog::DiskKind;
use terrane::copy::KeyChoice;
use terrane::units::SECTOR_LEN;

#[test]
fn verify_compares_regions_without_reading() {
    let (world, mut disk, first) = world();
    let second = disk.change(&world, "second", |c| {
        c.write(2 * MIB, &[1; MIB]);
        c.write(6 * MIB, &[1; SECTOR_LEN]);
        c.discard(8 * MIB, 3 * MIB);
    });
    world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    world.copy(("north", second), "south", "second", KeyChoice::AsSource);
    let verify = |args: &[&'static str]| [&["snapshot", "verify", "--region", "south"], args].concat();
    let equal = world.run(&verify(&["second", "--against", "north/second"]));
    let said = String::from_utf8_lossy(&equal.stderr).into_owned();
    assert!(equal.status.success() && equal.stdout.is_empty(), "{said}");
    assert!(
        said.contains("equals snapshot second of region north (by their proofs, without reading data)"),
        "{said}"
    );
    let json = world.json(&verify(&["second", "--against", "north/second"]));
    assert_eq!((&json["equal"], &json["deep"]), (&true.into(), &false.into()));
    assert_eq!(json["snapshot"]["root"], json["against"]["root"]);
    assert_eq!((&json["against"]["region"], &json["differing"]), (&"north".into(), &serde_json::json!([])));

    // No layer is looked into: all of the target's sectors may be gone.
    let data = layer_files(&world, "south", "data");
    let saved: Vec<_> = data.iter().map(|path| std::fs::read(path).unwrap()).collect();
    for (path, bytes) in data.iter().zip(&saved) {
        (64 << 10..bytes.len() as u64).step_by(4096).for_each(|at| flip(path, at));
    }
    world.ok(&verify(&["second", "--against", "north/second"]));
    world.fails(&verify(&["second", "--against", "north/second", "--deep"]), 6, &["damaged"]);
    data.iter().zip(&saved).for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());

    // Chunks 1, 3 and 4 (bytes of 9 to 10 MiB became zeros).
    let differs = ["first", "--against", "north/second", "--output", "json"];
    for args in [verify(&differs), [verify(&differs), vec!["--deep"]].concat()] {
        let output = world.run(&args);
        assert_eq!(output.status.code(), Some(6), "{args:?}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let range = |offset: usize, length: usize| serde_json::json!({ "offset_bytes": offset, "length_bytes": length });
        assert_eq!(json["differing"], serde_json::json!([range(2 * MIB, 2 * MIB), range(6 * MIB, 4 * MIB)]));
        assert_eq!((&json["equal"], &json["differing_chunks"]), (&false.into(), &3.into()));
        assert!(String::from_utf8_lossy(&output.stderr).contains("in 3 chunks of 2 MiB"));
    }
}

fn layer_files(world: &World, region: &str, file: &str) -> Vec<PathBuf> {
    let layers = std::fs::read_dir(world.path(&format!("{region}/layers"))).unwrap();
    layers.map(|layer| layer.unwrap().path().join(file)).filter(|path| path.exists()).collect()
}

/// Case, exit, sentence.
#[test]
fn what_can_not_be_compared_is_refused() {
    let (world, mut disk, first) = world();
    let second = disk.change(&world, "second", |c| c.write(0, &[4; SECTOR_LEN]));
    let copy = world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    world.copy(("north", second), "south", "second", KeyChoice::AsSource);
    let mut stranger = Disk::new(&world, "north", DISK, Some(world.default_key("north")), DiskKind::Data);
    let content = disk.model.clone();
    let strange = stranger.change(&world, "stranger", |c| c.write(0, &content));
    let third = disk.change(&world, "third", |c| c.write(0, &[5; SECTOR_LEN]));
    assert!(!proof_file(&world, "north", third).exists());
    let verify = |args: &[&str], exit, words: &[&str]| {
        world.fails(&[&["snapshot", "verify", "--region", "south"], args].concat(), exit, words);
    };
    verify(
        &["first", "--against", "north/third"],
        4,
        &["snapshot third of region north has no proof", "--deep"],
    );
    verify(&["first", "--against", "north/stranger"], 4, &["are not of one disk", "add --deep"]);
    verify(&["first", "--against", "north/none"], 3, &["none"]);
    verify(&["first", "--against", "nowhere/first"], 3, &["nowhere"]);
    verify(&["first", "--against", "/first"], 2, &["REGION/THING"]);
    verify(&["first", "--receipt", "/nowhere/r"], 2, &["--deep"]);
    let taken = world.path("taken");
    std::fs::write(&taken, "mine").unwrap();
    let taken = taken.display().to_string();
    verify(&["first", "--deep", "--receipt", &taken], 5, &["is there already"]);
    assert_eq!(std::fs::read(&taken).unwrap(), b"mine");

    // Of other disks the content alone is compared; each has a proof by its own key.
    let compared = world.json(&[
        "snapshot",
        "verify",
        "second",
        "--region",
        "north",
        "--against",
        "north/stranger",
        "--deep",
    ]);
    assert_eq!(compared["snapshot"]["root"], compared["against"]["root"]);
    assert_eq!(proofs_of(&compared), ["equal", "made"]);
    let compared = world.json(&["snapshot", "verify", "stranger", "--region", "north", "--deep"]);
    assert_eq!(proofs_of(&compared), ["equal", "null"]);
    let unequal = |args: &[&str], words: &[&str]| {
        differs(&world, &[&["snapshot", "verify", "--region", "south"], args].concat(), words);
    };
    unequal(&["first", "--against", "north/stranger", "--deep"], &["differs from", "in 1 chunk of 2 MiB"]);
    assert!(proof_file(&world, "north", strange).exists());

    // Reading makes the proof that is missing, and it holds.
    world.ok(&["snapshot", "verify", "third", "--region", "north", "--deep"]);
    unequal(&["second", "--against", "north/third"], &["in 1 chunk of 2 MiB"]);

    // One that was put in another's place, cut short or changed is no proof.
    let (mine, other) = (proof_file(&world, "south", copy), named(&world, "south", "second").unwrap().id);
    let bytes = std::fs::read(&mine).unwrap();
    std::fs::copy(proof_file(&world, "south", other), &mine).unwrap();
    verify(&["first", "--against", "north/first"], 6, &["data key", "--deep` reads all of it"]);
    for (what, change) in [("cut", bytes.len() - 1), ("no head", 150), ("short", 10), ("empty", 0)] {
        std::fs::write(&mine, &bytes[..change]).unwrap();
        verify(&["second", "--against", "south/first"], 6, &["proof"]);
        assert!(!what.is_empty());
    }
    for at in [0, 8, 12, 30, 120, 190, bytes.len() as u64 - 1] {
        std::fs::write(&mine, &bytes).unwrap();
        flip(&mine, at);
        verify(&["second", "--against", "south/first"], 6, &[]);
        if at == 120 {
            let said =
                String::from_utf8(world.run(&["region", "check", "--region", "south"]).stdout).unwrap();
            assert!(said.contains("snapshot first") && said.contains("its proof can't be read"), "{said}");
        }
    }
    world.ok(&["snapshot", "verify", "first", "--region", "south", "--deep"]);
    world.ok(&["snapshot", "verify", "first", "--region", "south", "--against", "north/first"]);
    // Of either side.
    for region in ["north", "south"] {
        let key = world.default_key(region).to_string();
        world.ok(&["key", "disable", &key, "--region", region]);
        for deep in [&[][..], &["--deep"]] {
            verify(&[&["first", "--against", "north/first"], deep].concat(), 4, &["disabled", region]);
        }
        let checked = world.run(&["region", "check", "--region", region]);
        assert!(checked.status.success(), "nothing is said of what is closed: {checked:?}");
        world.ok(&["key", "enable", &key, "--region", region]);
    }
}

/// What each side's own proof is, in JSON.
fn proofs_of(shown: &serde_json::Value) -> [String; 2] {
    ["snapshot", "against"].map(|side| {
        shown[side]["proof"].as_str().map_or_else(|| shown[side]["proof"].to_string(), str::to_owned)
    })
}

/// X3: who reads all of a snapshot is told what became of its proof; nothing is called proven that was compared with nothing, and
/// nothing is overwritten that another version may know.
#[test]
fn what_becomes_of_a_proof_is_told() {
    let (world, mut disk, first) = world();
    world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    let last = disk.change(&world, "last", |c| c.write(0, &[4; SECTOR_LEN]));
    let deep = ["snapshot", "verify", "last", "--region", "north", "--deep"];
    let file = proof_file(&world, "north", last);
    let damage: [(&str, &dyn Fn(), &str, &str); 6] = [
        ("none", &|| {}, "made", "had no proof, and was given one"),
        ("whole", &|| {}, "equal", "is what its proof says"),
        ("damaged leaves", &|| flip(&file, 200), "replaced", "had a damaged proof, which was made anew"),
        ("damaged head", &|| flip(&file, 150), "replaced", "had a damaged proof, which was made anew"),
        ("cut", &|| std::fs::write(&file, "TRNPROOF").unwrap(), "replaced", "had a damaged proof"),
        ("gone", &|| std::fs::remove_file(&file).unwrap(), "made", "had no proof"),
    ];
    for (what, damage, became, words) in damage {
        damage();
        let before = std::fs::read(&file).ok();
        let said = String::from_utf8(world.run(&deep).stderr).unwrap();
        assert!(said.contains(words), "{what}: {words} is missing in {said}");
        assert_eq!(said.contains("is what its proof says"), became == "equal", "{what}: {said}");
        match before.filter(|_| became != "equal") {
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            None if became == "made" => std::fs::remove_file(&file).unwrap(),
            None => {}
        }
        let shown = world.json(&deep);
        assert_eq!(proofs_of(&shown), [became, "null"], "{what}");
        assert_eq!((&shown["equal"], &shown["deep"]), (&true.into(), &true.into()), "{what}");
        assert_eq!(proofs_of(&world.json(&deep)), ["equal", "null"], "{what}: afterwards");
    }
    let by_proofs = ["snapshot", "verify", "first", "--region", "south", "--against", "north/first"];
    assert_eq!(proofs_of(&world.json(&by_proofs)), ["null", "null"]);

    // Another version's is left as it is, whoever asks.
    let bytes = std::fs::read(&file).unwrap();
    for (at, words) in [(8, "version 3"), (12, "features 0x1")] {
        let mut other = bytes.clone();
        other[at] ^= 1;
        std::fs::write(&file, &other).unwrap();
        world.fails(&deep, 6, &[words, "this program knows version 2", &last.to_string()]);
        world.copy(("north", last), "south", &format!("last-{at}"), KeyChoice::AsSource);
        let checked = world.run(&["region", "check", "--region", "north"]);
        assert_eq!(checked.status.code(), Some(6));
        let said = String::from_utf8(checked.stdout).unwrap();
        assert!(said.contains(words) && !said.contains("--deep"), "{said}");
        assert_eq!(std::fs::read(&file).unwrap(), other);
    }
}

/// X3: which side is at fault: of two that are equal, the one that its proof denies; of two that are not, both are said.
#[test]
fn a_side_that_its_own_proof_denies_is_named() {
    let (world, mut disk, first) = world();
    let second = disk.change(&world, "second", |c| c.write(2 * MIB, &[1; SECTOR_LEN]));
    let copy = world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    world.copy(("north", second), "south", "second", KeyChoice::AsSource);
    forge(&world, "south", copy);
    let found = |args: &[&str]| {
        let args = [&["snapshot", "verify", "first", "--region", "south", "--output", "json"], args].concat();
        let output = world.run(&args);
        assert_eq!(output.status.code(), Some(6), "{args:?}");
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (shown, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (shown, said) = found(&["--deep", "--against", "north/first"]);
    assert_eq!((&shown["equal"], &shown["differing_chunks"]), (&true.into(), &0.into()));
    assert_eq!(proofs_of(&shown), ["differs", "equal"]);
    assert!(said.contains("of region south is not what its proof says: in 3 chunks"), "{said}");
    assert!(!said.contains("differs from"), "{said}");

    let (shown, said) = found(&["--deep", "--against", "north/second"]);
    assert_eq!((&shown["equal"], &shown["differing_chunks"]), (&false.into(), &1.into()));
    assert_eq!(proofs_of(&shown), ["differs", "equal"]);
    assert!(said.contains("of region north: in 1 chunk of 2 MiB; snapshot first"), "{said}");
    assert!(said.contains("of region south is not what its proof says: in 3 chunks"), "{said}");

    let (shown, said) = found(&["--deep"]);
    assert_eq!((&shown["equal"], &shown["differing_chunks"]), (&false.into(), &3.into()));
    assert_eq!(proofs_of(&shown), ["differs", "null"]);
    assert!(said.contains("is not what its proof says: in 3 chunks"), "{said}");
}

/// A deep verification is held back, and ends by a signal in order: exit 7, and no receipt that says nothing.
#[test]
fn a_deep_verification_can_be_slowed_and_cancelled() {
    use std::io::{BufRead, BufReader};
    let (world, _disk, first) = world();
    world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    let path = world.path("receipt").display().to_string();
    let args = ["snapshot", "verify", "first", "--region", "south", "--against", "north/first", "--deep"];
    // At a byte a second it does not end by itself.
    let slow = [&args[..], &["--max-rate", "1", "--receipt", &path, "--output", "json"]].concat();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let mut command = world.command(&slow);
        let mut child = command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let progress: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(progress["bytes_total"].as_u64().unwrap() >= 8 * MIB as u64, "{line}");
        // Of the end, or of a second later: what is held back is not near its end.
        line.clear();
        said.read_line(&mut line).unwrap();
        let progress: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(progress["bytes_done"].as_u64().unwrap() < 4 * MIB as u64, "{line}");
        assert!(std::path::Path::new(&path).exists(), "it has its place before hours are spent");
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        let rest = std::io::read_to_string(said).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{rest}");
        assert!(output.stdout.is_empty() && rest.contains("was cancelled before its end"), "{rest}");
        assert!(!std::path::Path::new(&path).exists());
    }
    world.ok(&args);
}

/// What was found is said, whether its receipt can be written or not.
#[test]
fn a_receipt_that_can_not_be_written_costs_no_verdict() {
    let (world, mut disk, first) = world();
    let second = disk.change(&world, "second", |c| c.write(0, &[4; SECTOR_LEN]));
    world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    world.copy(("north", second), "south", "second", KeyChoice::AsSource);
    let path = world.path("receipt");
    let nowhere = world.path("nowhere/receipt").display().to_string();
    let verify = ["snapshot", "verify", "first", "--region", "south", "--deep", "--receipt"];
    world.fails(&[&verify[..], &[&nowhere]].concat(), 3, &["making the receipt", &nowhere]);
    world.fails(
        &["snapshot", "verify", "none", "--region", "south", "--deep", "--receipt", path.to_str().unwrap()],
        3,
        &["none"],
    );
    assert!(!path.exists(), "nothing is left of one that came to nothing");

    // No file may grow beyond a part of a receipt. What SQLite shares between processes is there as long as somebody has it open.
    let _open = ["north", "south"].map(|region| {
        let host = world.reader(region);
        host.region().catalog().unwrap().read(|tx| tx.snapshots()).unwrap();
        host
    });
    let limited = |against: &str| {
        let of_program = world.command(&[]);
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$@\"", "sh"]).arg(of_program.get_program());
        for (name, value) in of_program.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let output = shell.args(verify).arg(&path).args(["--against", against]).output().unwrap();
        assert!(!path.exists(), "nothing is left of a part");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (exit, _, said) = limited("north/first");
    assert_eq!(exit, Some(1), "{said}");
    assert!(said.contains("equals snapshot first") && said.contains("writing the receipt"), "{said}");
    let (exit, ranges, said) = limited("north/second");
    assert_eq!(exit, Some(6), "{said}");
    assert!(ranges.starts_with("OFFSET BYTES") && ranges.contains("2097152"), "{ranges}");
    assert!(said.contains("in 1 chunk of 2 MiB; writing the receipt"), "{said}");
}

/// `--receipt`: another program's word for what both sides hold; of the smallest disk too, over which there is no tree.
#[test]
fn a_receipt_is_what_veritysetup_says() {
    let (world, mut disk, _) = world();
    let last = disk.change(&world, "last", |c| c.write(DISK - SECTOR_LEN, &[1; SECTOR_LEN]));
    let key = Some(world.default_key("north"));
    let mut small = Disk::new(&world, "north", SECTOR_LEN, key, DiskKind::Data);
    let of_zeros = small.change(&world, "zeros", |c| {
        c.write(0, &[3; SECTOR_LEN]);
        c.discard(0, SECTOR_LEN);
    });
    let zeros = small.model.clone();
    let block = small.change(&world, "block", |c| c.write(0, &[7; SECTOR_LEN]));
    for (called, id, model) in
        [("last", last, &disk.model), ("zeros", of_zeros, &zeros), ("block", block, &small.model)]
    {
        world.copy(("north", id), "south", called, KeyChoice::AsSource);
        is_what_veritysetup_says(&world, called, model);
    }
}

fn is_what_veritysetup_says(world: &World, called: &str, model: &[u8]) {
    let [path, plain, hashes] =
        ["receipt", "plain", "hashes"].map(|what| world.path(&format!("{called}-{what}")));
    let (against, receipt) = (format!("north/{called}"), path.display().to_string());
    let verify = ["snapshot", "verify", called, "--region", "south", "--deep"];
    world.ok(&[&verify[..], &["--against", &against, "--receipt", &receipt]].concat());
    let receipt: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((&receipt["version"], &receipt["equal"]), (&1.into(), &true.into()));
    assert_eq!(proofs_of(&receipt), ["equal", "equal"]);
    std::fs::write(&plain, model).unwrap();
    let salt = format!("--salt={}", receipt["salt"].as_str().unwrap());
    let formatted = std::process::Command::new("veritysetup")
        .args(["format", "--hash=sha256", &salt])
        .args([&plain, &hashes])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&formatted.stdout).into_owned();
    let root = said.lines().find_map(|line| line.strip_prefix("Root hash:"));
    let root = root.unwrap_or_else(|| panic!("{called}: {formatted:?}")).trim();
    for side in ["snapshot", "against"] {
        assert_eq!(receipt[side]["verity_root"], root, "{called}, {side}: {said}");
    }
}
