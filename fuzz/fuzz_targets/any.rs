//! Runs the target that `TERRANE_FUZZ_TARGET` names, under libFuzzer; first writes its seeds to the folder `TERRANE_FUZZ_SEEDS`.
#![no_main]

#[path = "../../tests/fuzz_targets/mod.rs"]
mod fuzz_targets;

use std::path::Path;
use std::sync::OnceLock;

use fuzz_targets::Target;

fn target() -> &'static Target {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    TARGET.get_or_init(|| fuzz_targets::find(&std::env::var("TERRANE_FUZZ_TARGET").expect("TERRANE_FUZZ_TARGET names a target")))
}

fn write_seeds() {
    let Ok(folder) = std::env::var("TERRANE_FUZZ_SEEDS") else { return };
    for (number, seed) in (target().seeds)().into_iter().enumerate() {
        std::fs::write(Path::new(&folder).join(format!("seed-{number}")), seed).expect("a seed is written");
    }
}

libfuzzer_sys::fuzz_target!(init: write_seeds(), |bytes: &[u8]| (target().run)(bytes));
