//! Guards against a copy that is cut anywhere and ends wrong: gone on with, it is its source to the byte, on the base it was begun on
//! or on nothing; deleted, nothing of it is left (X4, S34).

mod fs_support;

use fs_support::FsMount;
use fs_support::common::image::Cut;
use fs_support::common::shrink::failure;
use fs_support::common::{Random, seeds};
use fs_support::script::{ALL, SNAPSHOT, Script, Step, write};
use fs_support::sweep::Sweep;
use fs_support::world::new_regions;

#[test]
#[ignore = "the process that serves the file system of the others"]
fn serve_a_file_system() {
    fs_support::serve_if_asked();
}

/// Of the newest snapshot that is there.
const fn copy(of: u64, to: usize) -> Step {
    Step::Copy { of, from: 0, to }
}

/// A whole copy, one of what changed since, with zeros and discards, and one within a region under another key.
fn script(with_base: bool, to: usize) -> (Vec<Step>, Step) {
    let mut before = vec![Step::Create, ALL, SNAPSHOT];
    if with_base {
        before.extend([copy(0, to)]);
        // Several records a chunk.
        for first in (0..28).step_by(4) {
            let discard = Step::Discard { of: 0, at: (first + 2) * 4096, len: 4096 };
            before.extend([write(first, 2), discard]);
        }
        before.push(SNAPSHOT);
    }
    // Snapshots and copies of a region are counted together: the newest is the last.
    let of = if with_base && to == 0 { 2 } else { u64::from(with_base) };
    (before, copy(of, to))
}

/// Cuts one copy at each `stride`-th place; disks opened, and copies that were cut and ended afterwards.
fn cut_copy((with_base, to): (bool, usize), seeds: std::ops::Range<u64>, stride: usize) -> (u64, u64) {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let sweep = Sweep::new(&mount);
    for seed in seeds {
        let mut random = Random::new(seed);
        let (before, last) = script(with_base, to);
        let mut script = Script::new(&mount, &regions);
        before.iter().for_each(|s| script.step(s).unwrap_or_else(|e| panic!("{s:?}: {e}")));
        let from = script.disk.traced();
        script.step(&last).unwrap();
        script.close(false).unwrap();
        let trace = script.disk.take_trace();
        let Script { history, disk, .. } = script;
        drop(disk);
        let places = (from..=trace.len).filter(|n| !trace.is_zeros(*n) || n % 50 == 0);
        for n in places.skip(seed as usize % stride).step_by(stride) {
            let cut = Cut::any(&mut random);
            let left = trace.after(n, cut, random.next());
            if let Some(why) = failure(|| sweep.check(&left, &history, n, &mut random)) {
                let of = trace.len;
                panic!(
                    "seed {seed}, base {with_base}, to {to}: cut after {n} ({from} to {of}), {cut:?}: {why}"
                );
            }
        }
    }
    (sweep.states(), sweep.copies())
}

#[test]
fn a_cut_anywhere_in_a_copy_is_gone_on_from() {
    let (seeds, full) = seeds(1);
    let stride = if full { 1 } else { 8 };
    let done: Vec<_> = std::thread::scope(|scope| {
        let cut = |case| {
            scope.spawn({
                let seeds = seeds.clone();
                move || cut_copy(case, seeds, stride)
            })
        };
        [(false, 1), (true, 1), (true, 0)].map(cut).map(|case| case.join()).into_iter().collect()
    });
    let (mut states, mut copies) = (0, 0);
    for case in done {
        let (disks, ended) = case.unwrap_or_else(|why| std::panic::resume_unwind(why));
        assert!(ended > 0, "no copy of {disks} disks was cut");
        (states, copies) = (states + disks, copies + ended);
    }
    println!("{states} disks after a cut of copies, {copies} of which were ended");
}
