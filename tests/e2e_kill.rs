//! Guards against writes that were answered and are gone after the server was killed, snapshots that vanish with it, and
//! mounts that can't be cleared afterwards.

#[path = "common/world.rs"]
mod world;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};
use world::{MIB, Running, SECTOR, World, pattern, read_at, writable, write_at};

/// Sectors a writer goes through.
const PLACES: u64 = 512;

/// Writes count after count, each to the next place, until the server is gone; says how far it was answered and flushed.
fn write_until_death(path: &Path, from: u64, flush: bool, answered: &AtomicU64) -> u64 {
    let file = writable(path).unwrap();
    let mut flushed = from;
    for count in from + 1.. {
        let bytes = count.to_le_bytes().repeat(SECTOR / 8);
        let at = count % PLACES * SECTOR as u64;
        if file.write_all_at(&bytes, at).is_err() {
            break;
        }
        answered.store(count, Ordering::Release);
        if flush && count.is_multiple_of(16) {
            if file.sync_data().is_err() {
                break;
            }
            flushed = count;
        }
    }
    flushed
}

/// The disk is that after one count, of these.
#[track_caller]
fn check_moment(disk: &[u8], least: u64, most: u64) {
    let count = |sector: &[u8]| u64::from_le_bytes(sector[..8].try_into().unwrap());
    let places = || disk[..PLACES as usize * SECTOR].chunks_exact(SECTOR).enumerate();
    let newest = places().map(|(_, sector)| count(sector)).max().unwrap();
    assert!((least..=most).contains(&newest), "it holds count {newest}, not one of {least} to {most}");
    for (place, sector) in places() {
        let expected = newest.saturating_sub((newest + PLACES - place as u64) % PLACES);
        assert!(
            sector == expected.to_le_bytes().repeat(SECTOR / 8),
            "place {place} is not of count {newest}"
        );
    }
}

/// Every place holds the newest count that was answered for it, or the one that was under way.
fn check_places(path: &Path, answered: u64) -> u64 {
    let bytes = read_at(path, 0, PLACES as usize * SECTOR).unwrap();
    let mut newest = answered;
    for (place, sector) in bytes.chunks_exact(SECTOR).enumerate() {
        let found = u64::from_le_bytes(sector[..8].try_into().unwrap());
        assert!(sector.chunks_exact(8).all(|word| word == &sector[..8]), "place {place} is torn");
        let behind = (answered + PLACES - place as u64) % PLACES;
        let expected = answered.saturating_sub(behind);
        let under_way = (answered + 1) % PLACES == place as u64 && found == answered + 1;
        assert!(
            found == expected || under_way,
            "place {place} holds {found}, {expected} was answered (newest {answered})"
        );
        newest = newest.max(found);
    }
    newest
}

#[test]
fn answered_writes_survive() {
    let mut world = World::new();
    world.volume("web", "64M");
    world.volume("idle", "4M");
    world.mount();
    let path = world.file("web");
    write_at(&world.file("idle"), 0, &pattern(MIB as usize, 1)).unwrap();
    world.snapshot("idle", "quiet");
    let mut count = 0;
    // Of each round's snapshot: the counts that it may be of, and the sum of all of it when it was first read.
    let (mut moments, mut sums) = (Vec::new(), Vec::new());
    for round in 0..6u64 {
        let file = format!("--filename={}", path.display());
        let options =
            ["--name=w", &file, "--offset=8M", "--size=48M", "--rw=randwrite", "--bs=16k", "--fsync=8"];
        let mut fio = std::process::Command::new("fio");
        // A thread, which dies with it: a process would outlive it.
        fio.args(options).args(["--time_based", "--runtime=60", "--allow_file_create=0", "--thread"]);
        let fio =
            Running(fio.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let answered = AtomicU64::new(count);
        let flushed = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_until_death(&path, count, round % 2 == 0, &answered));
            std::thread::sleep(Duration::from_millis(300 + 170 * round));
            let least = answered.load(Ordering::Acquire);
            world.snapshot("web", &format!("round{round}"));
            // One more may be written and not answered.
            moments.push((least, answered.load(Ordering::Acquire) + 1));
            std::thread::sleep(Duration::from_millis(100));
            world.kill_server();
            writer.join().unwrap()
        });
        drop(fio);
        let answered = answered.into_inner();
        assert!(answered > count && answered >= flushed, "nothing was written in round {round}");
        if round == 0 {
            world.fails(&["status"], 6, &["problem"]);
            let told = String::from_utf8(world.run(&["status"]).stdout).unwrap();
            assert!(told.contains("dead mount") && told.contains(&world.mnt()), "{told}");
            world.fails(&["status", "--region", "here"], 6, &["1 problem"]);
            world.ok(&["region", "init", &world.at("other"), "--name", "other", "-q"]);
            // Of that region it is none.
            world.ok(&["status", "--region", "other"]);
            world.ok(&["region", "forget", "other"]);
            world.fails(&["mount", &world.mnt()], 5, &["dead mount", "terrane unmount"]);
        }
        if round == 1 {
            // The region serves at another place before the stale one is cleared.
            std::fs::create_dir(world.path("elsewhere")).unwrap();
            world.ok(&["mount", &world.at("elsewhere")]);
            check_places(&world.path("elsewhere/by-name/volumes/web"), answered);
            world.ok(&["unmount", &world.at("elsewhere")]);
        }
        world.mount_again();
        count = check_places(&path, answered);
        assert!(read_at(&world.snapshot_file("quiet"), 0, MIB as usize).unwrap() == pattern(MIB as usize, 1));
        for (earlier, (least, most)) in moments.iter().enumerate() {
            let found = read_at(&world.snapshot_file(&format!("round{earlier}")), 0, 64 << 20).unwrap();
            check_moment(&found, *least, *most);
            let sum: [u8; 32] = Sha256::digest(&found).into();
            match sums.get(earlier) {
                None => sums.push(sum),
                Some(first) => assert!(sum == *first, "snapshot round{earlier} has changed in round {round}"),
            }
        }
    }
    assert_eq!(world.problems(), Vec::<String>::new());
    world.expect_disorder();
    world.unmount();
    assert!(!world.log().contains("damaged"), "{}", world.log());
}

#[test]
fn answered_snapshots_survive() {
    let world = World::new();
    world.volume("web", "16M");
    let mut taken = 0u64;
    for round in 0..5u64 {
        match round {
            0 => world.mount(),
            _ => world.mount_again(),
        }
        let done = AtomicU64::new(taken);
        let dying = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in taken + 1.. {
                    let file = world.file("web");
                    let written = write_at(&file, 12345, &n.to_le_bytes());
                    if dying.load(Ordering::Acquire) || written.is_err() {
                        return;
                    }
                    // A retry after the death would be carried out by the command itself.
                    let output = world.run(&["snapshot", "create", "web", "--name", &format!("n{n}")]);
                    match output.status.success() {
                        true => done.store(n, Ordering::Release),
                        false => return,
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(350 + 130 * round));
            dying.store(true, Ordering::Release);
            world.kill_server();
        });
        taken = done.into_inner();
        world.mount_again();
        for n in 1..=taken {
            let found = read_at(&world.snapshot_file(&format!("n{n}")), 12345, 8).unwrap();
            assert_eq!(u64::from_le_bytes(found.try_into().unwrap()), n, "in round {round}");
        }
        // One that was not answered may be there too; its name is free again or taken, and the number moves on.
        taken = taken.max(world.json(&["snapshot", "list"]).as_array().unwrap().len() as u64);
        world.kill_server();
    }
    assert!(taken >= 5, "only {taken} snapshots were taken");
    world.mount_again();
}
