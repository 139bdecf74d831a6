//! Guards against what only a machine of its own shows: power cuts of a whole kernel amid writes, and a layer that the kernel's
//! own dm-crypt can't read. The machine is a user-mode-linux guest, whose root is the host's.
//!
//! `TERRANE_CUTS=n` cuts n machines of each file system, where the gate cuts one.

#[path = "common/world.rs"]
mod world;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use world::{OnDisk, SECTOR, World, is_root, must, pattern, read_at, write_at};

const KERNEL: &str = "/usr/bin/linux.uml";

/// The gate installs the kernel; elsewhere these tests are left out without it.
fn can_boot() -> bool {
    let has = Path::new(KERNEL).exists();
    assert!(has || std::env::var_os("TERRANE_GATE").is_none(), "the gate has no {KERNEL}");
    is_root() && has
}

/// A guest, killed as a whole when dropped: each of its processes is one of the host.
struct Guest {
    kernel: Child,
    lines: Receiver<String>,
}

impl Guest {
    /// Boots; `disk`: its block device. What it prints is read by [`Guest::line`].
    fn boot(world: &World, disk: &str, variables: &str) -> Self {
        fs::write(world.path("guest.env"), variables).unwrap();
        let init = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/guest.sh");
        let mut command = Command::new(KERNEL);
        command.args(["mem=256M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", "quiet"]);
        command.args(["con=null", "con0=null,fd:1", disk, &format!("init={init}")]);
        command.arg(format!("TERRANE_GUEST={}", world.at("guest.env"))).process_group(0);
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut kernel = quiet.spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(kernel.stdout.take().unwrap());
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line.trim_end().to_owned()))
        });
        Self { kernel, lines }
    }

    /// The next line it prints; none when it has ended or the time is up.
    fn line(&self, until: Instant) -> Option<String> {
        self.lines.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
    }

    fn kill(&mut self) {
        let group = rustix::process::Pid::from_raw(self.kernel.id() as i32).unwrap();
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.kernel.wait();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

fn in_time(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

/// With the data key, dm-crypt reads a run of a layer's slots as the disk's bytes, as docs/format.md says.
#[test]
fn dm_crypt_reads_a_layer() {
    if !can_boot() {
        return;
    }
    let world = World::new();
    world.volume("web", "16M");
    world.mount();
    let written = pattern(64 * SECTOR, 1);
    write_at(&world.file("web"), 1000 * SECTOR as u64, &written).unwrap();
    world.snapshot("web", "s1");
    world.unmount();
    let layer = world.json(&["debug", "layers", "s1"])[0].clone();
    let (id, dir) = (layer["id"].as_str().unwrap(), layer["dir"].as_str().unwrap());
    let key = world.json(&["debug", "data-key", id, "--yes"]);
    let map = world.json(&["debug", "map", id]);
    let map = map.as_array().unwrap();
    let number = |row: usize, what: &str| map[row][what].as_u64().unwrap();
    assert_eq!(map.len(), 64);
    assert!((0..64).all(|i| number(i, "slot") == number(0, "slot") + i as u64), "one write, one run");
    let table = format!(
        "0 {} crypt aes-xts-plain64 {} {} /dev/ubda {} 2 sector_size:4096 iv_large_sectors",
        8 * map.len(),
        key["data_key"].as_str().unwrap(),
        8 * number(0, "sector"),
        number(0, "offset_bytes") / 512,
    );
    let variables = format!("TASK=dm-crypt\nTABLE='{table}'\nOUT='{}'\n", world.at("plain"));
    let guest = Guest::boot(&world, &format!("ubd0r={dir}/data"), &variables);
    let mut said = Vec::new();
    let until = in_time(60);
    while let Some(line) = guest.line(until).filter(|line| line != "guest done") {
        said.push(line);
    }
    assert!(fs::read(world.path("plain")).unwrap_or_default() == written, "{said:#?}");
}

/// Sectors that are written again and again; each is full of the number of its write.
const SECTORS: u64 = 64;

/// What the guest's writer did, as far as it came to the host.
struct Written {
    seed: u64,
    first: u64,
    synced: u64,
    snapshots: Vec<u64>,
}

impl Written {
    /// The disk after a write.
    fn disk_after(&self, write: u64, before: &[u64]) -> Vec<u64> {
        let (mut disk, mut state) = (before.to_vec(), self.seed);
        for n in self.first..=write {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            disk[((state >> 33) % SECTORS) as usize] = n;
        }
        disk
    }
}

fn numbers(path: &Path) -> Vec<u64> {
    let bytes = read_at(path, 0, SECTORS as usize * SECTOR).unwrap();
    let number = |sector: &[u8]| {
        assert!(sector.chunks_exact(8).all(|word| word == &sector[..8]), "a sector is torn");
        u64::from_le_bytes(sector[..8].try_into().unwrap())
    };
    bytes.chunks_exact(SECTOR).map(number).collect()
}

/// What a machine meets amid its writes.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    /// It loses power.
    Cut,
    /// Its disk gives errors for all that is asked, until the writer has ended; then it works again.
    Fail,
}

/// Boots, lets the guest write for so long, and has it meet its fate.
fn write_until(world: &World, seed: u64, first: u64, millis: u64, fate: Fate) -> Written {
    let terrane = assert_cmd::cargo::cargo_bin!("terrane");
    let writer = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/guest_writer.py");
    let mut variables = String::from("export TERRANE TERRANE_CONFIG_DIR\n");
    let task = if fate == Fate::Cut { "write" } else { "fail" };
    for (name, value) in [
        ("TASK", task.to_owned()),
        ("AFTER", format!("{}.{:03}", 2 + millis / 1000, millis % 1000)),
        ("TERRANE", terrane.to_str().unwrap().to_owned()),
        ("TERRANE_CONFIG_DIR", world.at("config")),
        ("REGION", world.at("r")),
        ("MOUNT", world.mnt()),
        ("WRITER", writer.to_owned()),
        ("FILE", world.file("web").to_str().unwrap().to_owned()),
        ("FIRST", first.to_string()),
        ("SEED", seed.to_string()),
        ("SECTORS", SECTORS.to_string()),
    ] {
        variables.push_str(&format!("{name}='{value}'\n"));
    }
    let mut guest = Guest::boot(world, &format!("ubd0={}", world.at("image")), &variables);
    let mut done = Written { seed, first, synced: first - 1, snapshots: Vec::new() };
    let mut said = Vec::new();
    let mut until = in_time(90);
    while let Some(line) = guest.line(until) {
        match line.split_once(' ').map(|(what, n)| (what, n.parse::<u64>())) {
            Some(("synced", Ok(n))) => {
                if done.synced < first && fate == Fate::Cut {
                    until = Instant::now() + Duration::from_millis(millis);
                }
                done.synced = n;
            }
            Some(("snapped", Ok(n))) => done.snapshots.push(n),
            _ => said.push(line),
        }
    }
    guest.kill();
    // What it had said before it was killed counts too.
    while let Ok(line) = guest.lines.try_recv() {
        if let Some(n) = line.strip_prefix("synced ").and_then(|n| n.parse().ok()) {
            done.synced = n;
        }
    }
    assert!(done.synced >= first, "the guest wrote nothing: {said:#?}");
    if fate == Fate::Fail {
        let eio = format!("failed {}", libc::EIO);
        let told: Vec<_> = said.iter().filter(|line| **line == eio || *line == "guest done").collect();
        assert_eq!(
            told,
            [&eio, "guest done"],
            "what the writer met, and whether all could be unmounted: {said:#?}"
        );
    }
    done
}

fn end_machines(mkfs: &[&str], fate: Fate) {
    if !can_boot() {
        return;
    }
    let times = std::env::var("TERRANE_CUTS").map_or(1, |n| n.parse().expect("a number of cuts"));
    let mut world = World::bare(None);
    world.expect_disorder();
    let image = world.at("image");
    fs::File::create(&image).unwrap().set_len(700 << 20).unwrap();
    must(mkfs[0], &[&mkfs[1..], &[image.as_str()]].concat());
    let attach = || must("losetup", &["-f", "--show", &image]);
    let mut device = attach();
    let mut disk = Some(OnDisk::new(&device, world.path("r")));
    world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
    world.volume("web", "16M");
    let (mut held, mut first, mut snapshots) = (vec![0; SECTORS as usize], 1, Vec::new());
    for turn in 0..times {
        drop(disk.take());
        must("losetup", &["-d", &device]);
        let done = write_until(&world, turn * 7919 + 3, first, 300 + turn * 173 % 1500, fate);
        device = attach();
        disk = Some(OnDisk::new(&device, world.path("r")));
        world.ok(&["region", "check"]);
        world.mount();
        let found = numbers(&world.file("web"));
        let newest = found.iter().copied().max().unwrap().max(done.synced);
        assert_eq!(found, done.disk_after(newest, &held), "cut {turn}: not the disk after write {newest}");
        snapshots.extend(done.snapshots.iter().map(|n| (*n, done.disk_after(*n, &held))));
        for (n, expected) in &snapshots {
            assert_eq!(
                numbers(&world.snapshot_file(&format!("s{n}"))),
                *expected,
                "cut {turn}, snapshot {n}"
            );
        }
        (held, first) = (found, newest + 1);
        // Their names are of writes, whose numbers are given again.
        for name in
            world.json(&["snapshot", "list"]).as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap())
        {
            let number: u64 = name[1..].parse().unwrap();
            if number >= first {
                world.ok(&["snapshot", "delete", name]);
            }
        }
        world.unmount();
    }
    drop(disk);
    must("losetup", &["-d", &device]);
    let _ = writeln!(std::io::stdout(), "{times} machines, {} snapshots, {first} writes", snapshots.len());
}

#[test]
fn a_machine_that_loses_power_leaves_a_prefix() {
    end_machines(&["mkfs.ext4", "-q", "-F"], Fate::Cut);
}

#[test]
fn a_machine_that_loses_power_leaves_a_prefix_on_xfs() {
    end_machines(&["mkfs.xfs", "-q", "-f"], Fate::Cut);
}

/// The kernel itself drops what it could not write, and gives the error once: the writer has EIO, and what was flushed is there when the
/// disk works again.
#[test]
fn a_disk_that_fails_amid_writes_leaves_a_prefix() {
    end_machines(&["mkfs.ext4", "-q", "-F"], Fate::Fail);
}
