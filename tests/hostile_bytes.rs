//! Guards against bytes from a disk, a socket or a keyboard that end a process, or that mean something else once they were read.
//!
//! Each target is run on bytes made from its seeds by changes that a seed number decides: the same each time. `TERRANE_FUZZ_RUNS`
//! says how many times as often as in the gate; `TERRANE_FUZZ_FIRST` from which number on. A failure names the number.
//! `TERRANE_FUZZ_INPUT` names a file to be run instead, such as libFuzzer's artifacts.

mod common;
mod fuzz_targets;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::Random;
use fuzz_targets::Target;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().expect("a number"))
}

/// A few changes, as fuzzers make them.
fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let any = |random: &mut Random| seeds[random.below(seeds.len() as u64) as usize].clone();
    let mut bytes = any(random);
    // Mostly few: a text with many changes ends at the first check.
    let most = 1 << random.below(4);
    for _ in 0..random.below(most) + 1 {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        let end = (at + random.below(16) as usize).min(bytes.len());
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.insert(at, random.next() as u8),
            3 => drop(bytes.drain(at..end)),
            4 => bytes[at..end].fill([0, 0xff, b'0', b'"'][random.below(4) as usize]),
            5 => random.fill(&mut bytes[at..end]),
            6 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let other = any(random);
                let from = random.below(other.len() as u64 + 1) as usize;
                bytes.splice(at.., other[from..].iter().copied());
            }
        }
        // Bytes of edits are soon used up.
        if random.one_in(8) {
            let mut more = vec![0; random.below(64) as usize];
            random.fill(&mut more);
            bytes.append(&mut more);
        }
    }
    bytes
}

fn run(target: &Target) {
    if let Some(path) = std::env::var_os("TERRANE_FUZZ_INPUT") {
        return (target.run)(&std::fs::read(path).unwrap());
    }
    let seeds = (target.seeds)();
    seeds.iter().for_each(|seed| (target.run)(seed));
    let first = number("TERRANE_FUZZ_FIRST").unwrap_or(1);
    let runs = target.runs * number("TERRANE_FUZZ_RUNS").unwrap_or(1);
    for n in first..first + runs {
        let bytes = mutate(&mut Random::new(n), &seeds);
        let done = catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes)));
        assert!(done.is_ok(), "target {}, number {n} (TERRANE_FUZZ_FIRST={n}): {bytes:02x?}", target.name);
    }
}

fn targets_of_the_tool() -> Vec<String> {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/fuzz");
    let output = std::process::Command::new(tool).arg("--help").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let list = said.lines().find_map(|line| line.strip_prefix("targets: ")).expect("its list");
    list.split(' ').map(str::to_owned).collect()
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            run(fuzz_targets::find(stringify!($name)));
        })*

        #[test]
        fn every_target_is_run() {
            let run = [$(stringify!($name)),*];
            assert!(fuzz_targets::ALL.iter().all(|target| run.contains(&target.name)));
            assert_eq!(targets_of_the_tool(), run, "tools/fuzz has others");
        }
    };
}

/// libFuzzer's own program is built by hand alone: what the targets use must be among its dependencies.
#[test]
fn the_fuzzer_has_what_the_targets_use() {
    let dependencies = |manifest: &str| -> Vec<String> {
        let text =
            std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(manifest)).unwrap();
        let parsed: toml::Table = text.parse().unwrap();
        let of = |table: &str| {
            parsed.get(table).and_then(|t| t.as_table()).map(|t| t.keys().cloned().collect::<Vec<_>>())
        };
        ["dependencies", "dev-dependencies"].into_iter().filter_map(of).flatten().collect()
    };
    let (ours, fuzzers) = (dependencies("Cargo.toml"), dependencies("fuzz/Cargo.toml"));
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz_targets");
    let mut used = 0;
    for entry in std::fs::read_dir(sources).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let is_used = |name: &&String| {
            let root = format!("{}::", name.replace('-', "_"));
            let begins = |(at, _): (usize, &str)| {
                !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
            };
            text.match_indices(&root).any(begins)
        };
        for name in ours.iter().filter(is_used) {
            used += 1;
            assert!(fuzzers.contains(name), "{} uses {name}, which fuzz/Cargo.toml lacks", path.display());
        }
    }
    assert!(used >= 3, "{used}: their imports were not seen");
}

targets!(superblock log pages header bookmark copy_words owner region_toml key_file machine_files control typed envelope proof catalog);
