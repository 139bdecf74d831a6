//! Guards against rules of the engine that nobody can break any more to see their tests fail: what `tools/mutants` breaks has been
//! written otherwise since; or it takes for a failing test what is none.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

const TOOL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/mutants");

#[test]
fn what_is_broken_on_purpose_is_still_there() {
    let output = Command::new("python3").args([TOOL, "--check"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The tool's own code, over a tree of one file and mutants that make it what the test is to do.
const DRIVER: &str = r#"
import importlib.machinery, importlib.util, pathlib, sys
loader = importlib.machinery.SourceFileLoader("mutants", sys.argv[1])
mutants = importlib.util.module_from_spec(importlib.util.spec_from_loader("mutants", loader))
loader.exec_module(mutants)
mutants.ROOT = mutants.TREE = pathlib.Path.cwd()
mutants.copy_tree, mutants.LIMIT = (lambda: None), 2
mutants.MUTANTS = [
    (does, f"it {does}", ("guard", "the_test"), [("rule", sys.argv[3], does)], *expected)
    for does, *expected in (word.split("=") for word in sys.argv[2].split())
]
sys.exit(mutants.main([]))
"#;

/// "Builds" the program that does as the tree's one file says.
const CARGO: &str = r#"#!/bin/sh
[ "$(cat rule)" != breaks ] || { echo "error: no such type" >&2; exit 101; }
echo '{"reason":"compiler-artifact","target":{"name":"guard"},"executable":"'"$PWD"'/guard"}'
"#;

const GUARD: &str = r#"#!/bin/sh
[ "$*" = "--exact the_test" ] || exit 9
case $(cat rule) in
    passes) echo "test result: ok. 1 passed; 0 failed; 0 ignored" ;;
    fails) echo "test result: FAILED. 0 passed; 1 failed; 0 ignored"; exit 101 ;;
    vanishes) echo "test result: ok. 0 passed; 0 failed; 0 ignored" ;;
    quits) exit 101 ;;
    boasts) echo "test result: FAILED. 0 passed; 1 failed; 0 ignored"; kill -KILL $$ ;;
    hangs) sleep 60 ;;
    dies) kill -SEGV $$ ;;
esac
"#;

/// Tries mutants, each a word for what the test does with it; and without any.
fn try_mutants(plain: &str, mutants: &str) -> Output {
    let tree = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str, mode| {
        fs::write(tree.path().join(name), text).unwrap();
        fs::set_permissions(tree.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    put("rule", plain, 0o644);
    put("cargo", CARGO, 0o755);
    put("guard", GUARD, 0o755);
    let mut path = tree.path().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    let mut python = Command::new("python3");
    python.args(["-c", DRIVER, TOOL, mutants, plain]).env("PATH", path).env("PYTHONDONTWRITEBYTECODE", "1");
    let output = python.current_dir(tree.path()).output().unwrap();
    assert_eq!(fs::read_to_string(tree.path().join("rule")).unwrap(), plain, "the tree is as it was");
    output
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_mutant_is_seen_by_a_test_that_ran_and_failed() {
    for (mutant, word) in [
        ("fails", "seen by guard::the_test\n1 of 1 are seen"),
        ("passes", "SURVIVED"),
        ("breaks", "DOES NOT BUILD: error: no such type"),
        ("vanishes", "NO TEST"),
        ("quits", "DIES: no result, exit 101"),
        ("boasts", "DIES: no result, exit -9"),
        ("dies", "DIES: no result, exit -11"),
        ("hangs", "HANGS: no end after 2 s"),
        ("hangs=HANGS", "seen by guard::the_test, which hangs"),
        ("dies=DIES", "seen by guard::the_test, which dies"),
        ("fails=HANGS", "FAILS: it fails"),
        ("fails dies", "1 of 2 are seen"),
    ] {
        let output = try_mutants("passes", mutant);
        let is_seen = word.starts_with("seen by");
        assert!(said(&output).contains(word), "{mutant}: {}", said(&output));
        assert_eq!(output.status.code(), Some(i32::from(!is_seen)), "{mutant}: {}", said(&output));
    }
}

#[test]
fn nothing_is_counted_of_a_test_that_does_not_pass_by_itself() {
    for plain in ["fails", "breaks", "vanishes", "quits", "dies", "hangs"] {
        let output = try_mutants(plain, "fails");
        let said = said(&output);
        assert!(!output.status.success() && said.contains("nothing is counted"), "{plain}: {said}");
        assert!(!said.contains("seen by"), "{plain}: {said}");
    }
}
