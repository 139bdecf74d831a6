//! A mount or a command whose system calls are killed or made to fail (`tamper.c`). Needs root, a C compiler and an x86-64 processor.
//!
//! Used by `#[path = "common/tamper.rs"] mod tamper;` beside `world`.
#![allow(dead_code)] // each test file uses a part

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::world::{Running, World, is_root, must, within};

/// Everything by which a process changes files, answers, and takes locks.
pub const CHANGING: &str = "pwrite64,pwritev,write,writev,fdatasync,fsync,fallocate,ftruncate,flock,rename,renameat,renameat2,\
                            unlink,unlinkat,mkdir,mkdirat,openat,openat2,sendto,sendmsg,msync";

/// Whether calls can be tampered with here.
pub fn can_tamper() -> bool {
    is_root() && cfg!(target_arch = "x86_64")
}

/// Of a long run: each n-th call is tried. None: a sample is.
pub fn stride() -> Option<u64> {
    std::env::var("TERRANE_STRIDE").ok().map(|n| n.parse().expect("a number of calls"))
}

/// What happens to which calls.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// `kill`, `short`, `again`, or the number of an errno.
    pub act: &'a str,
    /// The first call that is hit, from 1, and how many.
    pub first: u64,
    pub times: u64,
    /// Offsets in the file.
    pub within: (u64, u64),
    /// A part of the file's name, or `*`.
    pub path: &'a str,
    pub calls: &'a str,
}

impl Rule<'_> {
    fn line(&self) -> String {
        let Self { act, first, times, within: (low, high), path, calls } = self;
        format!("{act} {first} {times} {low} {high} {path} {calls}\n")
    }
}

/// The program, compiled once.
fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/tamper.c");
            let target =
                PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("tamper-{}", std::process::id()));
            must("cc", &["-O1", "-o", target.to_str().unwrap(), source]);
            target
        })
        .clone()
}

/// A command under a tracer.
fn traced(world: &World, args: &[&str]) -> Command {
    let terrane = world.command(args);
    let mut command = Command::new(program());
    command.args([world.at("rule"), world.at("hits")]).arg(terrane.get_program()).args(terrane.get_args());
    for (name, value) in terrane.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null());
    command
}

fn hits(world: &World) -> Vec<String> {
    let text = fs::read_to_string(world.path("hits")).unwrap_or_default();
    text.lines().filter(|line| !line.starts_with("counted ")).map(str::to_owned).collect()
}

/// Runs a command to its end; the calls that were hit.
pub fn run(world: &World, rule: &Rule, args: &[&str]) -> Vec<String> {
    fs::write(world.path("rule"), rule.line()).unwrap();
    let status = traced(world, args).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert_ne!(status.code(), Some(TRACER_FAILED), "the tracer failed");
    fs::remove_file(world.path("rule")).unwrap();
    hits(world)
}

const TRACER_FAILED: i32 = 125;

/// A mount in the foreground under a tracer.
pub struct Tampered<'a> {
    world: &'a World,
    tracer: Running,
}

impl<'a> Tampered<'a> {
    /// Mounts. `rule`: in force from the first call on.
    pub fn mount(world: &'a World, rule: Option<&Rule>) -> Self {
        let _ = fs::remove_file(world.path("rule"));
        if let Some(rule) = rule {
            fs::write(world.path("rule"), rule.line()).unwrap();
        }
        let log = File::create(world.path("mount.err")).unwrap();
        let mut command = traced(world, &["mount", &world.mnt(), "--foreground", "--threads", "2"]);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let tracer = Running(command.spawn().unwrap());
        let mut mount = Self { world, tracer };
        assert!(within(30, || world.path("mnt/volumes").exists() || mount.has_ended()), "{}", mount.log());
        mount
    }

    /// From the next call on.
    pub fn arm(&self, rule: &Rule) {
        fs::write(self.world.path("rule.new"), rule.line()).unwrap();
        fs::rename(self.world.path("rule.new"), self.world.path("rule")).unwrap();
    }

    pub fn disarm(&self) {
        let _ = fs::remove_file(self.world.path("rule"));
    }

    /// The calls that were hit, each with its file.
    pub fn hits(&self) -> Vec<String> {
        hits(self.world)
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.world.path("mount.err")).unwrap_or_default()
    }

    /// Whether the server has ended, by itself or not.
    pub fn has_ended(&mut self) -> bool {
        self.tracer.0.try_wait().unwrap().is_some()
    }

    /// Waits for its end; how many calls the last rule matched.
    pub fn end(mut self) -> u64 {
        assert!(within(30, || self.has_ended()), "the server stays: {}", self.log());
        let text = fs::read_to_string(self.world.path("hits")).unwrap();
        let counted =
            text.lines().find_map(|line| line.strip_prefix("counted ")).expect("the tracer has ended");
        counted.parse().unwrap()
    }
}
