//! Guards against a place in the work of a mount at which its death loses what it has answered: a script of everything that
//! changes a volume, and a kill at each system call of the serving process.
//!
//! The gate takes a sample; `TERRANE_STRIDE=n` kills at each n-th call.

#[path = "common/script.rs"]
mod script;
#[path = "common/tamper.rs"]
mod tamper;
#[path = "common/world.rs"]
mod world;

use std::os::unix::fs::FileExt;
use std::path::Path;

use script::{SCRIPT, State, keep, put_back};
use tamper::{CHANGING, Rule, Tampered, can_tamper};
use world::{MIB, SECTOR, World, errno, is_gone, pattern, read_at, tool, within, writable};

/// What the region may hold after a kill: all that was answered, and the step that was under way, or not.
struct Survived {
    states: [State; 2],
    steps: usize,
}

fn run_script(world: &World) -> Survived {
    let mut state = State::new();
    for (number, step) in SCRIPT.iter().enumerate() {
        let next = state.after(number, *step);
        if step.perform(world, number, 20).error().is_some() {
            return Survived { states: [state, next], steps: number };
        }
        state = next;
    }
    Survived { states: [state.clone(), state], steps: SCRIPT.len() }
}

/// One run with a kill at the `n`-th of these calls; whether it came to that.
fn killed_at(world: &World, n: u64, path: &str, calls: &str) -> bool {
    put_back(world);
    let rule = Rule { act: "kill", first: n, times: 1, within: (0, u64::MAX), path, calls };
    let mount = Tampered::mount(world, Some(&rule));
    let survived = run_script(world);
    // Its last calls are those of its end.
    let unmounted = world.run(&["unmount", &world.mnt()]).status.success();
    let hits = mount.hits();
    assert!(unmounted || !hits.is_empty(), "{}", mount.log());
    let counted = mount.end();
    if hits.is_empty() {
        assert_eq!(survived.steps, SCRIPT.len(), "a step failed, and nothing was killed");
        println!("{counted} calls in all");
        return false;
    }
    let what = format!("killed at call {n}, {}, after {} steps", hits[0], survived.steps);
    let _ = world.run(&["unmount", &world.mnt()]);
    check(world, &what);
    world.mount();
    let now = State::found(world);
    let told = survived.states.iter().map(|s| (s.disk == now.disk, s.snapshots == now.snapshots));
    let told: Vec<_> = told.collect();
    assert!(
        survived.states.contains(&now),
        "{what}: disk and snapshots as before, as after the step: {told:?}"
    );
    // It goes on as if nothing had been.
    let file = writable(&world.file("web")).unwrap();
    assert_eq!(errno(file.write_all_at(&pattern(9999, n), MIB)), 0, "{what}");
    assert_eq!(errno(file.sync_all()), 0, "{what}");
    drop(file);
    world.unmount();
    check(world, &format!("{what}, later"));
    true
}

fn check(world: &World, what: &str) {
    let checked = world.run(&["region", "check"]);
    assert!(checked.status.success(), "{what}: {}", world::words(&checked));
}

#[test]
fn a_kill_of_the_mount_at_any_call_loses_nothing() {
    if !can_tamper() {
        return;
    }
    let mut world = World::new();
    world.expect_disorder();
    world.volume("web", "8M");
    keep(&world);
    let mut kills = 0;
    if let Some(stride) = tamper::stride() {
        kills = (1..).step_by(stride as usize).take_while(|n| killed_at(&world, *n, "*", CHANGING)).count()
            as u64;
    } else {
        // By the golden ratio: spread over the script, and not always at the same kind of call.
        for n in 1..=12 {
            kills +=
                u64::from(killed_at(&world, 1 + n * 618_034 % 1_000_000 * 1500 / 1_000_000, "*", CHANGING));
        }
    }
    // While it answers for the first times: whoever asks must not wait for ever, a thread of the server's own among them.
    for n in 1..=3 {
        kills += u64::from(killed_at(&world, n, "/dev/fuse", "writev"));
    }
    assert!(kills >= 10, "{kills}");
    println!("{kills} kills of a mount");
}

/// What a dying mount flushes goes through itself: killed meanwhile, it must not wait for its own answer for ever.
#[test]
fn a_kill_amid_the_last_flush_of_a_loop_device_ends_the_mount() {
    if !can_tamper() {
        return;
    }
    let mut world = World::new();
    world.expect_disorder();
    world.volume("web", "8M");
    let mut mount = Tampered::mount(&world, None);
    let device = world.ok(&["attach", "web"]);
    // Into the device's cache alone, which the last closing would write out.
    let user = writable(Path::new(&device)).unwrap();
    user.write_all_at(&pattern(4 << 20, 1), 0).unwrap();
    let calls = "pwrite64";
    mount.arm(&Rule { act: "kill", first: 2, times: 1, within: (0, u64::MAX), path: "/data", calls });
    let server = world.signal(rustix::process::Signal::TERM);
    assert!(within(20, || mount.has_ended() && is_gone(server)), "the killed server stays");
    assert_eq!(mount.hits().len(), 1, "it was killed while it flushed the device");
    drop(user);
    let _ = tool("losetup", &["-d", &device]);
    assert!(within(20, || world.loops().is_empty()), "the device stays");
    world.mount_again();
    let held = read_at(&world.file("web"), 0, 4 << 20).unwrap();
    let written = pattern(4 << 20, 1);
    let is_either = |(i, sector): (usize, &[u8])| {
        sector.iter().all(|b| *b == 0) || *sector == written[i * SECTOR..][..SECTOR]
    };
    assert!(held.chunks(SECTOR).enumerate().all(is_either));
}
