//! Guards against requests over a mount's socket that no command of ours would send, and that stop the server for all.

#[path = "common/world.rs"]
mod world;

use std::time::Duration;

use terrane::control;
use terrane::volume::{Answer, Order, SnapshotItem};
use world::{World, pattern, read_at, write_at};

/// Longer than any answer takes, shorter than a test may hang.
const PATIENCE: Duration = Duration::from_secs(20);

fn ask(world: &World, order: &Order) -> Answer {
    control::call(&world.path("r/run"), "mount.sock", order, PATIENCE).unwrap()
}

/// A request for snapshots of these volumes, at one moment.
fn snapshots(world: &World, volumes: &[&str]) -> Order {
    let account = world.json(&["region", "show"])["account_id"].as_str().unwrap().to_owned();
    let item = |(n, volume): (usize, &&str)| SnapshotItem {
        volume: (*volume).to_owned(),
        snapshot: format!("snap-{n:017x}"),
        name: format!("s{n}"),
    };
    Order::Snapshot {
        items: volumes.iter().enumerate().map(item).collect(),
        account,
        group: Some("grp-00000000000000001".into()),
        description: None,
        tags: Vec::new(),
        retention_days: None,
    }
}

/// To end one volume's layer twice, the server would wait for its own lock.
#[test]
fn a_volume_named_twice_is_refused_in_words_and_the_server_lives_on() {
    let world = World::new();
    let web = world.volume("web", "8M");
    let other = world.volume("other", "8M");
    world.mount();
    for name in ["web", "other"] {
        write_at(&world.file(name), 0, &pattern(4096, 1)).unwrap();
    }
    for volumes in [vec![&web[..], &web], vec![&web, &other, &web]] {
        let Answer::Failed { exit, message, hint } = ask(&world, &snapshots(&world, &volumes)) else {
            panic!("{volumes:?} were taken");
        };
        assert_eq!(exit, 4, "{message}");
        assert!(message.contains(&web) && message.contains("named twice"), "{message}");
        assert_eq!(hint.as_deref(), Some("name each volume once"));
    }
    assert_eq!(world.json(&["snapshot", "list"]).as_array().unwrap().len(), 0);
    // Each volume takes writes, and snapshots that are asked for as they should be.
    for name in ["web", "other"] {
        write_at(&world.file(name), 4096, &pattern(4096, 2)).unwrap();
    }
    let answer = ask(&world, &snapshots(&world, &[&web, &other]));
    assert!(matches!(answer, Answer::Done), "{answer:?}");
    for name in ["s0", "s1"] {
        assert!(read_at(&world.snapshot_file(name), 4096, 4096).unwrap() == pattern(4096, 2));
    }
    let Answer::Status(state) = ask(&world, &Order::Status) else { panic!("no state") };
    assert_eq!((state.pid as i32, state.mount_point), (world.server(), world.mnt()));
}
