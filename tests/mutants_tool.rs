//! Guards against rules of the engine that nobody can break any more to see their tests fail: what `tools/mutants` breaks has been
//! written otherwise since.

use std::process::Command;

const TOOL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/mutants");

#[test]
fn what_is_broken_on_purpose_is_still_there() {
    let output = Command::new("python3").args([TOOL, "--check"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
