//! Guarded here: a machine's clock that is wrong once, and ends what is dated: retentions, the bin, locks; and a region that was told such a
//! time, and stands still until then.
//!
//! No test sets the machine's clock. Regions are made under a clock of the test's own, in the past or the future, and then opened without it:
//! the machine's counts, and is that much ahead or behind. That it jumped is what the file says that remembers it.

#[path = "common/clocked.rs"]
mod clocked;
#[path = "common/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use clocked::Case;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use world::{Running, World, must, within, words};

const ONCE: &[&str] = &["daemon", "--once"];
const TRUST: &[&str] = &["region", "trust-clock", "--yes"];

/// What this machine's clock is remembered by: it showed `wall`, in this boot or another.
fn remember(world: &World, wall: &str, boot: &str) {
    let text = format!(
        "format = \"terrane-clock\"\nformat_version = 1\nfeatures = []\n\n[believed]\nwall = \"{wall}\"\nboot = \"{boot}\"\n\
         since_boot_seconds = 5\nawake_seconds = 5\n"
    );
    fs::write(world.path("config/clock.new"), text).unwrap();
    fs::rename(world.path("config/clock.new"), world.path("config/clock")).unwrap();
}

/// In 2020: `mon` ends after a day, `tue` is in the bin for a week, `wed` is locked for a year.
fn dated() -> Case {
    let case = Case::with_mon_at("2020-01-01T00:00:00Z");
    case.ok(&["snapshot", "set", "mon", "--retention-days", "1"]);
    for name in ["tue", "wed"] {
        case.ok(&["snapshot", "create", "web", "--name", name]);
    }
    let rule = case.ok(&["bin", "add", "--kind", "snapshot", "--days", "7"]);
    case.ok(&["snapshot", "delete", "tue"]);
    case.ok(&["bin", "delete", rule.trim_end()]);
    case.ok(&["snapshot", "lock", "wed", "--until", "2021-01-01", "--mode", "compliance"]);
    case
}

/// Names of what is there and of what is in the bin, by the machine's clock.
fn names(world: &World) -> [Vec<String>; 2] {
    [&["snapshot", "list"][..], &["snapshot", "list", "--deleted"]].map(|args| {
        let listed = world.json(args);
        let mut names: Vec<_> =
            listed.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    })
}

fn once(world: &World) -> String {
    let output = world.run(ONCE);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    words(&output)
}

// X6
#[test]
fn a_clock_in_doubt_ends_nothing_until_it_is_trusted() {
    for mounted in [false, true] {
        let case = dated();
        let world = &case.world;
        remember(world, "2010-01-01T12:00:00Z", "another");
        if mounted {
            world.mount();
        }
        for turn in 0..2 {
            let said = once(world);
            let told = said.matches("this machine's clock shows").count();
            assert!(told == 1 && said.contains("2010-01-01T12:00:00Z when it was believed last"), "{said}");
            assert_eq!(names(world), [vec!["mon", "wed"], vec!["tue"]], "{turn}");
        }
        world.fails(&["snapshot", "delete", "wed"], 4, &["locked until 2021-01-01"]);
        world.fails(&["snapshot", "unlock", "wed"], 4, &["compliance"]);
        let problems = world.problems();
        assert!(problems.iter().any(|problem| problem.contains("region trust-clock")), "{problems:?}");
        assert_eq!(world.run(&["status"]).status.code(), Some(6));
        // A person has to say so.
        world.fails(&["region", "trust-clock"], 4, &["2010-01-01T12:00:00Z", "nothing was changed"]);
        once(world);
        assert_eq!(names(world), [vec!["mon", "wed"], vec!["tue"]]);
        let trusted = world.json(TRUST);
        assert_eq!(trusted["was_in_doubt"], true);
        assert!(world.problems().is_empty(), "{:?}", world.problems());
        let said = once(world);
        assert!(said.contains("snapshot mon") && said.contains("snapshot tue"), "{said}");
        assert_eq!(names(world), [vec!["wed"], vec![]]);
        world.ok(&["snapshot", "delete", "wed"]);
        if mounted {
            world.unmount();
        }
        let mode = fs::metadata(world.path("config/clock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        world.ok(&["region", "check"]);
    }
}

/// Two configurations on one machine: what the mount does not take for over the daemon would ask it to end again and again.
#[test]
fn a_mount_that_knows_another_clock_is_told_of_and_not_asked_at_once() {
    let case = dated();
    let world = &case.world;
    must("cp", &["-a", &world.at("config"), &world.at("other")]);
    remember(world, "2010-01-01T12:00:00Z", "another");
    world.mount();
    let daemon = |args: &[&str]| {
        let mut command = world.command(args);
        command.env("TERRANE_CONFIG_DIR", world.at("other"));
        command
    };
    let log = fs::File::create(world.path("said")).unwrap();
    let mut running = Running(daemon(&["daemon"]).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    let said = || fs::read_to_string(world.path("said")).unwrap();
    let told = || said().matches("and not by the one that the mount does").count();
    assert!(within(20, || told() == 2), "{}", said());
    // It is told once, though it is asked again.
    std::thread::sleep(Duration::from_secs(2));
    kill_process(Pid::from_child(&running.0), Signal::TERM).unwrap();
    assert!(running.0.wait().unwrap().success());
    assert_eq!(told(), 2, "{}", said());
    assert_eq!(names(world), [vec!["mon", "wed"], vec!["tue"]]);
    // By the configuration that doubts nothing both are over.
    world.unmount();
    assert!(daemon(ONCE).status().unwrap().success());
    assert_eq!(names(world), [vec!["wed"], vec![]]);
}

// X6
#[test]
fn a_daemon_holds_what_ends_and_goes_on_once_the_clock_is_back() {
    let case = dated();
    let world = &case.world;
    let right = || {
        remember(world, "1999-01-01T00:00:00Z", "another");
        world.ok(TRUST);
        fs::read_to_string(world.path("config/clock")).unwrap()
    };
    let right = right();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(right.contains(boot.trim()), "{right}");
    // By the seconds since boot it should be the year 2010 still.
    let since = right.lines().find(|line| line.starts_with("since_boot_seconds")).unwrap();
    remember(world, "2010-01-01T12:00:00Z", boot.trim());
    let jumped = fs::read_to_string(world.path("config/clock")).unwrap();
    fs::write(world.path("config/clock"), jumped.replace("since_boot_seconds = 5", since)).unwrap();
    let said = fs::File::create(world.path("said")).unwrap();
    let daemon = world.command(&["daemon"]).stdout(Stdio::null()).stderr(said).spawn().unwrap();
    let mut daemon = Running(daemon);
    let said = || fs::read_to_string(world.path("said")).unwrap();
    assert!(within(20, || said().contains("this machine's clock shows")), "{}", said());
    // It looks at the region when that changes.
    for name in ["thu", "fri"] {
        world.ok(&["snapshot", "create", "web", "--name", name]);
    }
    world.fails(&["region", "trust-clock"], 4, &["no terminal"]);
    let file = || fs::read_to_string(world.path("config/clock")).unwrap();
    assert!(within(20, || file().contains("[away]")), "it is written down: {}", file());
    assert_eq!(names(world), [vec!["fri", "mon", "thu", "wed"], vec!["tue"]]);
    assert_eq!(said().lines().count(), 1, "it is said once: {}", said());
    // It is where it should be.
    fs::write(world.path("config/clock.new"), &right).unwrap();
    fs::rename(world.path("config/clock.new"), world.path("config/clock")).unwrap();
    assert!(within(20, || said().contains("is believed again")), "{}", said());
    assert!(within(20, || names(world) == [vec!["fri", "thu", "wed"], vec![]]), "{}", said());
    kill_process(Pid::from_child(&daemon.0), Signal::TERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());
}

// X6
#[test]
fn a_region_that_was_told_a_later_time_ends_nothing_early() {
    let case = Case::with_mon_at("2020-01-01T00:00:00Z");
    let world = &case.world;
    case.ok(&["snapshot", "set", "mon", "--retention-days", "29000"]);
    for name in ["tue", "wed"] {
        case.ok(&["snapshot", "create", "web", "--name", name]);
    }
    case.ok(&["snapshot", "lock", "wed", "--until", "2100-01-01", "--mode", "governance"]);
    case.time("2101-01-01T00:00:00Z");
    case.ok(&["snapshot", "create", "web", "--name", "thu"]);
    // The same catalog, by the clock of the machine: it is not 2101, and the region has seen that.
    let problems = world.problems();
    let is_told =
        |problem: &String| problem.contains("stands at 2101-01-01") && problem.contains("trust-clock");
    assert!(problems.iter().any(is_told), "{problems:?}");
    world.fails(&["snapshot", "delete", "wed"], 4, &["locked until 2100-01-01"]);
    assert_eq!(world.json(&["snapshot", "show", "wed"])["lock_mode"], "governance");
    let said = once(world);
    assert!(!said.contains("clock"), "nothing is known of another time of the machine's: {said}");
    assert_eq!(names(world), [vec!["mon", "thu", "tue", "wed"], vec![]]);
    // And it may be locked up to a time that the region has seen.
    world.ok(&["snapshot", "lock", "tue", "--until", "2090-01-01", "--mode", "governance"]);
}

// X6, X7
#[test]
fn a_clock_that_is_put_back_leaves_nothing_to_stay_or_go_for_it() {
    let case = Case::with_mon_at("2031-03-01T00:00:30Z");
    let world = &case.world;
    let here = |args: &[&str]| case.ok(&[args, &["--region", "here"]].concat());
    let json = |args: &[&str], region: &str| case.json(&[args, &["--region", region]].concat());
    case.ok(&["region", "init", &world.at("south"), "--name", "south", "-q"]);
    here(&["mount", &world.mnt()]);
    let schedule = |name: &str| {
        let copies = ["--copy-to", "south", "--keep-copies", "1"];
        let words = ["schedule", "create", "--name", name, "--volume", "web", "--every", "1h", "--keep", "1"];
        here(&[&words[..], &copies].concat());
    };
    let once = || {
        let (exit, _, said) = case.run(ONCE);
        assert_eq!(exit, 0, "{said}");
    };
    schedule("old");
    case.time("2031-03-01T01:00:30Z");
    once();
    // One wrong time, for an hour.
    case.time("2999-01-01T00:30:00Z");
    let rule = here(&["bin", "add", "--kind", "snapshot", "--days", "7"]);
    here(&["snapshot", "create", "web", "--name", "tue"]);
    here(&["snapshot", "delete", "tue"]);
    here(&["bin", "delete", rule.trim_end()]);
    here(&["snapshot", "create", "web", "--name", "wed", "--retention-days", "3"]);
    schedule("new");
    once();
    case.time("2999-01-01T01:00:30Z");
    once();
    case.time("2031-03-01T02:00:30Z");
    once();
    let of = |schedule: &str, region: &str| {
        let listed = json(&["snapshot", "list"], region);
        let mut names: Vec<_> =
            listed.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect();
        names.retain(|name| name.starts_with(schedule));
        names.sort();
        names
    };
    let wrong = "old-web-29990101T010000Z";
    assert_eq!((of("old", "here"), of("old", "south")), (vec![wrong.to_owned()], vec![wrong.to_owned()]));
    assert_eq!(case.run(&["status"]).0, 6);
    let problem = json_problems(&case);
    assert!(problem.contains("the clock of region here stands at 2999"), "{problem}");
    assert!(problem.contains("the clock of region south stands at 2999"), "{problem}");
    case.fails(&["region", "trust-clock"], 4, &["region here", "region south", "nothing was changed"]);
    let stood = json(&["schedule", "show", "old"], "here")["last_due_at"].clone();
    assert_eq!(stood, "2999-01-01T01:00:00Z", "nothing was changed");
    let trusted = case.json(TRUST);
    assert_eq!(trusted["regions"][0]["name"], "here");
    assert_eq!(trusted["regions"][0]["in_bin"], 1);
    assert_eq!(trusted["regions"][0]["schedules"], 1);
    assert_eq!(json_problems(&case), "");
    let again = case.json(TRUST);
    assert_eq!(
        (&again["regions"][0]["is_ahead"], &again["regions"][0]["snapshots"]),
        (&false.into(), &0.into())
    );
    // What is made is dated by it, by the mount too, which has the region open all the time.
    here(&["snapshot", "create", "web", "--name", "thu"]);
    for name in ["wed", "thu", wrong] {
        let made = json(&["snapshot", "show", name], "here")["created_at"].as_str().unwrap().to_owned();
        assert!(made.starts_with("2031-03-01T02:00:"), "{name}: {made}");
    }
    // Schedules go on, and count nothing of what was taken then, here or there.
    for hour in [3, 4] {
        case.time(&format!("2031-03-01T0{hour}:00:30Z"));
        once();
        for schedule in ["new", "old"] {
            let taken = format!("{schedule}-web-20310301T0{hour}0000Z");
            for region in ["here", "south"] {
                let names = of(schedule, region);
                assert_eq!(names[0], taken, "{region}");
                assert!(names[1..].iter().all(|name| name.contains("-2999")), "{names:?}");
            }
        }
    }
    assert_eq!(json_problems(&case), "");
    // Days count from then, and are vouched for.
    let deleted = json(&["snapshot", "list", "--deleted"], "here");
    let tue = deleted.as_array().unwrap().iter().find(|s| s["name"] == "tue").expect("it is in the bin");
    let until = tue["purge_at"].as_str().unwrap().to_owned();
    assert!(until.starts_with("2031-03-08T02:00:"), "{until}");
    here(&["region", "check"]);
    let is_there = |name: &str| case.run(&["snapshot", "show", name, "--region", "here"]).0 == 0;
    case.time("2031-03-04T02:00:29Z");
    once();
    assert!(is_there("wed"));
    case.time("2031-03-04T02:00:31Z");
    once();
    assert!(!is_there("wed"), "its three days are over");
    let id = tue["id"].as_str().unwrap();
    case.time("2031-03-08T02:00:29Z");
    once();
    assert!(is_there(id));
    case.time("2031-03-08T02:00:31Z");
    once();
    assert!(!is_there(id), "its week is over");
    here(&["unmount", &world.mnt()]);
    case.ok(&["region", "check", "--region", "here"]);
}

fn json_problems(case: &Case) -> String {
    let status = case.run(&["status", "--output", "json"]).1;
    let status: Value = serde_json::from_str(&status).unwrap();
    let of_clocks = |problem: &&str| problem.contains("clock") || problem.contains("schedule");
    let problems = status["problems"].as_array().unwrap().iter().map(|problem| problem.as_str().unwrap());
    problems.filter(of_clocks).collect::<Vec<_>>().join("\n")
}

// X6
#[test]
fn what_is_remembered_of_a_clock_may_be_anything() {
    let case = dated();
    let world = &case.world;
    // Nothing is certain, and nothing ends, until a person has spoken.
    for bytes in [&b""[..], b"\xff\xfe\x00", b"format = 7", &[b'['; 60_000], &[b'['; 70_000]] {
        fs::write(world.path("config/clock"), bytes).unwrap();
        let said = once(world);
        assert!(!said.contains("panicked") && said.contains("nothing ends by it"), "{said}");
        assert_eq!(names(world), [vec!["mon", "wed"], vec!["tue"]]);
        world.fails(&["snapshot", "delete", "wed"], 4, &["locked until 2021-01-01", "in doubt"]);
        let problems = world.problems();
        assert!(problems.iter().any(|problem| problem.contains("region trust-clock")), "{problems:?}");
        assert_eq!(fs::read(world.path("config/clock")).unwrap(), bytes, "it is left as it is");
    }
    fs::remove_file(world.path("config/clock")).unwrap();
    fs::create_dir(world.path("config/clock")).unwrap();
    let said = once(world);
    assert!(said.contains("nothing ends by it"), "{said}");
    world.fails(TRUST, 1, &["config/clock"]);
    fs::remove_dir(world.path("config/clock")).unwrap();
    fs::write(world.path("config/clock"), "damaged").unwrap();
    world.fails(&["region", "trust-clock"], 4, &["can't be read", "nothing was changed"]);
    world.ok(TRUST);
    once(world);
    assert_eq!(names(world), [vec!["wed"], vec![]]);
}

/// The clock was three hours ahead, and was put back: once that hour comes it has a snapshot of its own, for which the last one goes.
// X6 X7
#[test]
fn what_was_taken_for_a_time_to_come_is_nobodys_when_that_comes() {
    let case = Case::with_mon_at("2031-03-01T00:00:30Z");
    let here = |args: &[&str]| case.ok(&[args, &["--region", "here"]].concat());
    here(&["schedule", "create", "--name", "hourly", "--volume", "web", "--every", "1h", "--keep", "1"]);
    let once_at = |time: &str| {
        case.time(time);
        let (exit, _, said) = case.run(ONCE);
        assert_eq!(exit, 0, "{said}");
        let listed = case.json(&["snapshot", "list", "--region", "here"]);
        let of = |snapshot: &serde_json::Value| {
            let text = |key: &str| snapshot[key].as_str().unwrap().to_owned();
            (text("name"), text("created_at"))
        };
        let mut taken: Vec<_> = listed.as_array().unwrap().iter().map(of).collect();
        taken.retain(|(name, _)| name.starts_with("hourly"));
        taken.sort();
        taken
    };
    assert_eq!(once_at("2031-03-01T01:00:30Z").len(), 1);
    let ahead = once_at("2031-03-01T04:10:00Z");
    assert!(ahead.len() == 1 && ahead[0].0.ends_with("T040000Z"), "{ahead:?}");
    case.time("2031-03-01T01:30:00Z");
    assert_eq!(case.json(TRUST)["regions"][0]["is_ahead"], true);
    for hour in [2, 3] {
        let taken = once_at(&format!("2031-03-01T0{hour}:00:30Z"));
        assert!(taken.len() == 2 && taken[0].0.ends_with(&format!("T0{hour}0000Z")), "{taken:?}");
    }
    let taken = once_at("2031-03-01T04:00:30Z");
    assert_eq!(taken.len(), 2, "{taken:?}");
    assert!(taken[1].0.contains("T040000Z-") && taken[1].1.starts_with("2031-03-01T04:00:30"), "{taken:?}");
}
