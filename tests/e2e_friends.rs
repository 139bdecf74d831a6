//! Guards against disks that other people's programs find wrong: fio, badblocks, stress-ng, e2fsck, xfs_repair, btrfs check,
//! qemu-img, veritysetup and OpenSSL, each with a mind of its own of what a disk must hold; and against files that show others what is equal.
//!
//! `TERRANE_FRIENDS=n` makes the random ones n times as long; fsx begins with the seed `TERRANE_SEED=s`.

#[path = "common/world.rs"]
mod world;

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use world::{MIB, OnDisk, SECTOR, World, is_root, must, pattern, read_at, tool, within, write_at};

/// How much longer than in the gate.
fn times() -> u64 {
    std::env::var("TERRANE_FRIENDS").map_or(1, |n| n.parse().expect("a number"))
}

/// Each way fio knows to tell what it wrote; read again in a snapshot, and after a kill.
#[test]
fn fio_verifies_in_each_of_its_patterns() {
    let mut world = World::new();
    world.expect_disorder();
    world.volume("web", "16M");
    world.mount();
    let io_size = format!("--io_size={}M", 4 * times());
    let ways: [&[&str]; 5] = [
        &["--verify=crc32c", "--bsrange=512-64k", "--bs_unaligned=0", "--rw=randwrite"],
        &["--verify=md5", "--bs=4k", "--rw=randwrite", "--fsync=16"],
        &["--verify=meta", "--bs=16k", "--rw=randwrite"],
        &["--verify=pattern", "--verify_pattern=0xdeadface", "--bs=8k", "--rw=write"],
        // Trims want a device.
        &["--verify=sha256", "--bs=4k", "--rw=randtrimwrite", "--direct=1"],
    ];
    for (turn, way) in ways.iter().enumerate() {
        let on_device = turn == 4;
        if on_device && !is_root() {
            continue;
        }
        let path = if on_device { world.ok(&["attach", "web"]) } else { at(&world.file("web")) };
        let file = format!("--filename={path}");
        // What fio writes down of a job goes with the world.
        let aux = format!("--aux-path={}", world.at(""));
        let job = [
            &file,
            &aux,
            "--name=w",
            "--size=16M",
            "--allow_file_create=0",
            "--randseed=7",
            "--verify_fatal=1",
        ];
        let job = [&job[..], &["--serialize_overlap=1", "--ioengine=psync", "--do_verify=1", &io_size], way]
            .concat();
        must("fio", &job);
        if on_device {
            world.ok(&["detach", &path]);
        }
        let before = read_at(&world.file("web"), 0, 16 << 20).unwrap();
        let name = format!("s{turn}");
        world.snapshot("web", &name);
        if turn % 2 == 0 {
            world.kill_server();
            world.mount_again();
        }
        assert!(read_at(&world.file("web"), 0, 16 << 20).unwrap() == before, "{way:?}");
        assert!(read_at(&world.snapshot_file(&name), 0, 16 << 20).unwrap() == before, "{way:?}");
    }
    world.unmount();
    world.ok(&["region", "check"]);
}

/// Each sum fio can make, side by side, and again in a volume made from a copy in another region.
#[test]
fn fio_verifies_each_of_its_sums_in_a_copy_too() {
    const SUMS: [&str; 8] = ["crc7", "crc16", "crc32", "crc64", "xxhash", "sha1", "sha512", "sha3-256"];
    let known = must("fio", &["--cmdhelp=verify"]);
    let sums: Vec<_> = SUMS
        .into_iter()
        .filter(|sum| known.split([' ', '\t', '\n', ',', '[', ']']).any(|word| word == *sum))
        .collect();
    assert!(sums.len() >= 6, "{known}");
    let world = World::new();
    world.ok(&["region", "init", &world.at("there"), "--name", "there", "-q"]);
    let job = |path: &Path, how: &str| {
        let common = ["--bs=4k", "--rw=write", "--size=512k", "--randseed=7", "--ioengine=psync"];
        let mut args = common.map(str::to_owned).to_vec();
        args.extend(["--allow_file_create=0", "--verify_fatal=1", how].map(str::to_owned));
        args.extend([format!("--filename={}", at(path)), format!("--aux-path={}", world.at(""))]);
        for (n, sum) in sums.iter().enumerate() {
            args.extend([format!("--name={sum}"), format!("--verify={sum}"), format!("--offset={n}m")]);
        }
        tool("fio", &args)
    };
    let in_region = |args: &[&str], region: &str| world.ok(&[args, &["--region", region]].concat());
    in_region(&["volume", "create", "--name", "web", "--size", "16M"], "here");
    in_region(&["mount", &world.mnt()], "here");
    let written = job(&world.file("web"), "--do_verify=1");
    assert!(written.status.success(), "{written:?}");
    in_region(&["snapshot", "create", "web", "--name", "s1"], "here");
    in_region(&["snapshot", "copy", "--wait", "here/s1", "--to", "there", "--name", "copy"], "here");
    in_region(&["unmount", &world.mnt()], "here");
    in_region(&["volume", "create", "--name", "made", "--snapshot", "copy"], "there");
    in_region(&["mount", &world.mnt()], "there");
    let made = world.file("made");
    let verified = job(&made, "--verify_only=1");
    assert!(verified.status.success(), "{verified:?}");
    // It can tell.
    write_at(&made, 300_000, b"no byte of what fio wrote").unwrap();
    assert!(!job(&made, "--verify_only=1").status.success(), "it sees nothing");
    world.unmount();
}

fn at(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// fsx does what comes to its mind and remembers what must be there; of what it leaves, time after time, a snapshot is taken, which
/// holds that also when fsx has gone on and older ones are gone. The gate installs it; elsewhere only where it is: `cargo install fsx`.
#[test]
fn fsx_is_never_surprised() {
    if !tool("sh", &["-c", "command -v fsx"]).status.success() {
        assert!(std::env::var_os("TERRANE_GATE").is_none(), "the gate has no fsx");
        eprintln!("left out: fsx is not installed");
        return;
    }
    const KEPT: usize = 3;
    // To begin a round takes as long as a thousand operations, or more.
    let operations = if times() > 1 { "20000" } else { "400" }.to_owned();
    let world = World::new();
    world.volume("web", "4M");
    world.mount();
    let file = at(&world.file("web"));
    let first = std::env::var("TERRANE_SEED").map_or(5, |seed| seed.parse().expect("a number"));
    let mut taken = VecDeque::new();
    for round in 0..5 * times() {
        let seed = (first + round).to_string();
        // Over many sectors, over a few, and within one.
        let longest = [128 << 10, 16 << 10, 2 << 10][round as usize % 3];
        let config = format!(
            "blockmode = true\nnosizechecks = true\n[opsize]\nalign = 1\nmax = {longest}\n[weights]\ntruncate = 0\npunch_hole = 1\n"
        );
        fs::write(world.path("fsx.toml"), config).unwrap();
        must(
            "fsx",
            &[
                "-q",
                "-N",
                &operations,
                "-S",
                &seed,
                "-P",
                &at(&world.path("")),
                "-f",
                &world.at("fsx.toml"),
                &file,
            ],
        );
        let name = format!("after-{round}");
        world.snapshot("web", &name);
        taken.push_back((name, fs::read(&file).unwrap()));
        let (oldest, bytes) = &taken[0];
        assert!(fs::read(world.snapshot_file(oldest)).unwrap() == *bytes, "{oldest} after {round}");
        if taken.len() > KEPT {
            world.ok(&["snapshot", "delete", oldest]);
            taken.pop_front();
        }
        println!("seed {seed}: {operations} operations");
    }
    for (name, bytes) in &taken {
        assert!(fs::read(world.snapshot_file(name)).unwrap() == *bytes, "{name} at the end");
    }
    world.unmount();
    world.ok(&["region", "check"]);
}

/// Whoever has all files of all regions sees of the same bytes, written at the same place of two volumes, before and after a snapshot,
/// and carried to copies, no 16 bytes twice: each layer has a key of its own.
#[test]
fn equal_bytes_look_different_in_each_layer() {
    // One request, or a sector at its edge would be written twice.
    const LEN: usize = 512 << 10;
    let world = World::new();
    world.ok(&["region", "init", &world.at("there"), "--name", "there", "-q"]);
    let ok = |args: &[&str]| world.ok(&[args, &["--region", "here"]].concat());
    for name in ["web", "twin"] {
        ok(&["volume", "create", "--name", name, "--size", "8M"]);
    }
    ok(&["mount", &world.mnt()]);
    // All blocks are equal within each sector, too.
    let bytes = vec![7; LEN];
    write_at(&world.file("twin"), MIB, &bytes).unwrap();
    for name in ["s1", "s2"] {
        write_at(&world.file("web"), MIB, &bytes).unwrap();
        ok(&["snapshot", "create", "web", "--name", name]);
    }
    write_at(&world.file("web"), MIB, &bytes).unwrap();
    ok(&["key", "create", "--alias", "other"]);
    ok(&["snapshot", "copy", "--wait", "s2", "--to", "here", "--key", "other", "--name", "rekeyed"]);
    ok(&["snapshot", "copy", "--wait", "s1", "--to", "there", "--name", "copy"]);
    ok(&["unmount", &world.mnt()]);
    let mut seen: HashMap<[u8; 16], PathBuf> = HashMap::new();
    let mut layers = 0;
    for region in ["r", "there"] {
        for layer in fs::read_dir(world.path(region).join("layers")).unwrap() {
            let path = layer.unwrap().path().join("data");
            let slots = slots_of(&path);
            // Room zeroed ahead for small writes is none of the disk's bytes.
            let blocks: Vec<_> = slots.as_chunks().0.iter().filter(|block| **block != [0; 16]).collect();
            layers += u64::from(blocks.len() >= LEN / 16);
            for block in blocks {
                if let Some(other) = seen.insert(*block, path.clone()) {
                    panic!("{block:02x?} is in {} and in {}", other.display(), path.display());
                }
            }
        }
    }
    assert_eq!(layers, 6, "of three states of one volume, one of another, and two copies");
}

/// What lies in a layer's slots (docs/format.md), holes left out.
fn slots_of(data: &Path) -> Vec<u8> {
    let file = fs::File::open(data).unwrap();
    let (mut slots, mut at) = (Vec::new(), 64 * MIB);
    while let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start)).unwrap();
        let mut bytes = vec![0; (at - start) as usize];
        file.read_exact_at(&mut bytes, start).unwrap();
        slots.append(&mut bytes);
    }
    slots
}

/// badblocks writes and reads four patterns over the whole device.
#[test]
fn badblocks_finds_none() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.volume("web", "8M");
    world.mount();
    let device = world.ok(&["attach", "web"]);
    let said = tool("badblocks", &["-w", "-b", "4096", "-c", "256", &device]);
    assert!(said.status.success() && said.stdout.is_empty(), "{said:?}");
    world.ok(&["detach", "web"]);
    assert!(
        read_at(&world.file("web"), 0, 8 << 20).unwrap().iter().all(|b| *b == 0),
        "the last pattern is zeros"
    );
}

/// stress-ng, which writes files of a file system and verifies them.
fn stress(world: &World, more: &[&str]) -> Command {
    let mut stress = Command::new("stress-ng");
    stress
        .args(["--hdd", "1", "--hdd-bytes", "8m", "--verify", "-q", "--temp-path", &world.at("fs")])
        .args(more);
    stress.stdin(Stdio::null());
    stress
}

/// Kills the server while stress-ng writes past the cache; then all of stress-ng.
fn kill_amid_writes(world: &World, device: &str) {
    let stat = Path::new("/sys/block").join(device.trim_start_matches("/dev/")).join("stat");
    let written = || -> u64 {
        let stat = fs::read_to_string(&stat).unwrap();
        stat.split_whitespace().nth(6).unwrap().parse().unwrap()
    };
    let before = written();
    let mut load = stress(world, &["--hdd-opts", "direct", "--timeout", "120"]);
    let mut load = load.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let is_writing = within(30, || written() > before + MIB / 512);
    let goes_on = load.try_wait().unwrap().is_none();
    world.kill_server();
    let group = rustix::process::Pid::from_child(&load);
    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    load.wait().unwrap();
    assert!(is_writing && goes_on, "stress-ng was not writing: {is_writing}, {goes_on}");
}

/// File systems under load whose server is killed: their own checkers repair by the journal alone, and what was synced is there.
fn killed_under(mkfs: &[&str], size: &str, check: &[&str]) {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    world.expect_disorder();
    world.volume("web", size);
    for round in 0..times() {
        world.mount();
        let device = world.ok(&["attach", "web"]);
        if round == 0 {
            must(mkfs[0], &[&mkfs[1..], &[&device]].concat());
        }
        let disk = OnDisk::new(&device, world.path("fs"));
        let synced = pattern(3 << 20, round);
        fs::write(world.path("fs/synced"), &synced).unwrap();
        must("sync", &["-f", &world.at("fs")]);
        let verified = stress(&world, &["--timeout", "1"]).output().unwrap();
        assert!(verified.status.success(), "{verified:?}");
        fs::write(world.path("fs/not-synced"), pattern(2 << 20, round + 100)).unwrap();
        kill_amid_writes(&world, &device);
        must("umount", &["-l", disk.0.to_str().unwrap()]);
        std::mem::forget(disk);
        let _ = tool("losetup", &["-d", &device]);
        assert!(within(30, || world.loops().is_empty()), "{:?}", world.loops());
        world.mount_again();
        let device = world.ok(&["attach", "web"]);
        // Mounting replays the journal; then nothing is left to repair.
        let disk = OnDisk::new(&device, world.path("fs"));
        assert!(fs::read(world.path("fs/synced")).unwrap() == synced, "round {round}");
        drop(disk);
        must(check[0], &[&check[1..], &[&device]].concat());
        world.ok(&["detach", "web"]);
        world.unmount();
    }
    world.ok(&["region", "check"]);
}

#[test]
fn e2fsck_after_a_kill() {
    killed_under(&["mkfs.ext4", "-q", "-F"], "64M", &["e2fsck", "-f", "-n"]);
}

#[test]
fn xfs_repair_after_a_kill() {
    killed_under(&["mkfs.xfs", "-q", "-f"], "320M", &["xfs_repair", "-n"]);
}

#[test]
fn btrfs_check_after_a_kill() {
    killed_under(&["mkfs.btrfs", "-q", "-f"], "256M", &["btrfs", "check"]);
}

/// A snapshot, its copy under another key and a plain file written beside it are the same to qemu-img and veritysetup.
#[test]
fn others_find_a_snapshot_equal_to_an_independent_copy() {
    let world = World::new();
    world.volume("web", "16M");
    world.mount();
    let plain = fs::File::create(world.path("plain")).unwrap();
    plain.set_len(16 << 20).unwrap();
    for n in 0..24u64 {
        let (at, bytes) = (n * 681_217 % (15 << 20), pattern((n as usize * 7919) % 500_000 + 1, n));
        write_at(&world.file("web"), at, &bytes).unwrap();
        plain.write_all_at(&bytes, at).unwrap();
        if n % 8 == 7 {
            world.snapshot("web", &format!("s{n}"));
        }
    }
    world.ok(&["key", "create", "--alias", "other"]);
    world.ok(&["snapshot", "copy", "--wait", "s23", "--to", "here", "--key", "other", "--name", "copy"]);
    write_at(&world.file("web"), 0, &pattern(MIB as usize, 99)).unwrap();
    for name in ["s23", "copy"] {
        let snapshot = at(&world.snapshot_file(name));
        must("qemu-img", &["compare", "-f", "raw", "-F", "raw", &world.at("plain"), &snapshot]);
        must("cmp", &[&world.at("plain"), &snapshot]);
        if is_root() {
            // The hash tree of the plain file vouches for the snapshot.
            let said = must("veritysetup", &["format", &world.at("plain"), &world.at("hashes")]);
            let root = said.lines().find_map(|line| line.strip_prefix("Root hash:")).unwrap().trim();
            must("veritysetup", &["verify", &snapshot, &world.at("hashes"), root]);
            let changed = at(&world.file("web"));
            let refused = tool("veritysetup", &["verify", &changed, &world.at("hashes"), root]);
            assert!(!refused.status.success(), "it tells a difference");
        }
    }
}

/// With the data key and the layer's map, OpenSSL alone reads the disk: terrane is not needed to have the data back.
#[test]
fn openssl_reads_a_layer() {
    let world = World::new();
    world.volume("web", "16M");
    world.mount();
    for n in 0..12u64 {
        write_at(&world.file("web"), n * 1_234_567, &pattern(300_000 + n as usize, n)).unwrap();
    }
    write_at(&world.file("web"), 5 * MIB, &vec![0; MIB as usize]).unwrap();
    world.snapshot("web", "s1");
    let expected = read_at(&world.snapshot_file("s1"), 0, 16 << 20).unwrap();
    world.unmount();
    let layers = world.json(&["debug", "layers", "s1"]);
    let layer = &layers[0];
    let (id, dir) = (layer["id"].as_str().unwrap(), layer["dir"].as_str().unwrap());
    assert_eq!(layer["cipher"], "aes-xts-plain64");
    let key = world.json(&["debug", "data-key", id, "--yes"])["data_key"].as_str().unwrap().to_owned();
    let key: Vec<u8> =
        (0..key.len()).step_by(2).map(|i| u8::from_str_radix(&key[i..i + 2], 16).unwrap()).collect();
    let data = fs::File::open(Path::new(dir).join("data")).unwrap();
    let mut disk = vec![0; 16 << 20];
    let map = world.json(&["debug", "map", id]);
    for row in map.as_array().unwrap().iter().filter(|row| row["state"] == "data") {
        let sector = row["sector"].as_u64().unwrap();
        let mut cipher = vec![0; SECTOR];
        data.read_exact_at(&mut cipher, row["offset_bytes"].as_u64().unwrap()).unwrap();
        let tweak = u128::from(sector).to_le_bytes();
        let xts = openssl::symm::Cipher::aes_256_xts();
        let plain = openssl::symm::decrypt(xts, &key, Some(&tweak), &cipher).unwrap();
        disk[sector as usize * SECTOR..][..SECTOR].copy_from_slice(&plain);
    }
    assert!(disk == expected, "OpenSSL reads another disk");
    assert!(disk.iter().any(|b| *b != 0));
}
