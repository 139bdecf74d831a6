//! The command line: one file a noun, tables for people, JSON for programs.
//!
//! Owns parsing, the choice of a region, what is printed where, and the exit numbers. Decides nothing of its own: every
//! noun calls the room that owns it. Results go to stdout; progress, notes and errors to stderr.
//!
//! To add a noun: a file with `#[derive(Subcommand)] pub enum Command` and `pub fn run(command, &App) -> Outcome`, a
//! variant of [`Command`] and a line in [`run`]; for a new room's errors, a match in `exit.rs`.
//!
//! Called by `main` alone.

mod app;
mod attach;
mod bin;
mod check;
mod confirm;
mod copy;
mod copy_to;
mod daemon;
mod debug;
mod diff;
mod exit;
mod filter;
mod key;
mod kms;
mod lock;
mod log;
mod mount;
mod newest;
mod options;
mod output;
mod owner;
mod parse;
mod progress;
mod region;
mod repair;
mod schedule;
mod set;
mod snapshot;
mod status;
mod task;
mod trust_clock;
mod verify;
mod volume;
mod waiting;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::sys::{open_files, process};

pub use app::App;
pub use exit::{Exit, Failure};
pub use output::{Output, printable, printable_json};
pub use parse::{parse_bytes, parse_volume_size, size_text};

/// What a command gives: nothing, or the error that `exit.rs` turns into a number.
pub type Outcome = anyhow::Result<()>;

/// Encrypted virtual disks: snapshots in microseconds, re-keyed copies in other regions
#[derive(Parser)]
#[command(name = "terrane", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options every command takes.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// The region: a directory if it contains '/', else a known name [default: the only known one]
    #[arg(long, global = true, value_name = "DIR|NAME", env = "TERRANE_REGION", hide_env_values = true)]
    pub region: Option<String>,
    /// The account to act as [default: the region's default account]
    #[arg(long, global = true, value_name = "ACCOUNT", env = "TERRANE_ACCOUNT", hide_env_values = true)]
    pub account: Option<String>,
    /// Tables for people, or JSON for programs
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Print no notes and no progress
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// How results and errors are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Make, open and describe regions
    #[command(subcommand)]
    Region(region::Command),
    /// Customer master keys
    #[command(subcommand)]
    Key(key::Command),
    /// Whether encrypted copies may come into a region
    #[command(subcommand)]
    Kms(kms::Command),
    /// Make, list, resize, roll back and delete volumes
    #[command(subcommand)]
    Volume(volume::Command),
    /// Take, list and delete snapshots
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Rules of what waits in the recycle bin once it is deleted
    #[command(subcommand)]
    Bin(bin::Command),
    /// Mount the region: its volumes and snapshots as files
    Mount(mount::MountArgs),
    /// Write everything and unmount
    Unmount {
        /// Where it is mounted
        mount_point: std::path::PathBuf,
    },
    /// Attach a volume as a loop device, and print that
    Attach(attach::AttachArgs),
    /// Detach a volume's loop device
    Detach {
        /// A volume, a file in a mount, or a loop device
        #[arg(value_name = "VOLUME|FILE|DEVICE")]
        what: String,
    },
    /// What a mount that ends asks of a process of its own
    #[command(hide = true)]
    LetGo {
        /// A loop device
        device: std::path::PathBuf,
    },
    /// Work off the queues and carry out the schedules of all known regions, or of the one of --region
    Daemon(daemon::DaemonArgs),
    /// What is queued, being done, or over in a region
    #[command(subcommand)]
    Task(task::Command),
    /// Take, copy and expire snapshots by the clock
    #[command(subcommand)]
    Schedule(schedule::Command),
    /// What is mounted, what is wrong
    Status,
    /// What another program needs to check the bytes
    #[command(subcommand)]
    Debug(debug::Command),
}

fn run(command: Command, app: &App) -> Outcome {
    match command {
        Command::Region(command) => region::run(command, app),
        Command::Key(command) => key::run(command, app),
        Command::Kms(command) => kms::run(&command, app),
        Command::Volume(command) => volume::run(command, app),
        Command::Snapshot(command) => snapshot::run(command, app),
        Command::Bin(command) => bin::run(command, app),
        Command::Mount(args) => mount::mount(args, app),
        Command::Unmount { mount_point } => mount::unmount(&mount_point),
        Command::Attach(args) => attach::attach(&args, app),
        Command::Detach { what } => attach::detach(&what, app),
        Command::LetGo { device } => mount::let_go(&device),
        Command::Daemon(args) => daemon::run(&args, app),
        Command::Task(command) => task::run(&command, app),
        Command::Schedule(command) => schedule::run(command, app),
        Command::Status => status::run(app),
        Command::Debug(command) => debug::run(command, app),
    }
}

/// Parses the command line and runs it; the process's exit number.
pub fn main() -> i32 {
    log::set_up();
    if let Err(error) = process::keep_memory_private() {
        tracing::warn!("keys may show in a core dump: {error}");
    }
    process::keep_out_of_swap();
    open_files::raise_limit();
    let args: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, asks_for_json(&args)),
    };
    let format = cli.global.output;
    let outcome = App::new(cli.global).and_then(|app| run(cli.command, &app));
    match outcome {
        Ok(()) => Exit::Success.number(),
        Err(error) => {
            let failure = Failure::of(&error);
            failure.print(format == Format::Json);
            failure.exit.number()
        }
    }
}

/// No line of what clap says is longer.
const LINE_CHARS_MAX: usize = 400;

/// What clap says: help and version to stdout, anything else is a usage error.
fn usage(error: &clap::Error, json: bool) -> i32 {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return Exit::Success.number();
    }
    if json {
        let text = error.render().to_string();
        // The first paragraph is the sentence; usage and help follow it.
        let message = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ").trim();
        let message = shortened(message);
        let hint = Some("`terrane --help` shows the commands and options".to_owned());
        Failure { exit: Exit::Usage, message, hint }.print(true);
    } else {
        let plain = error.render().to_string();
        let shown = printable(&plain.lines().map(shortened).collect::<Vec<_>>().join("\n"));
        // What was typed, or expanded by a shell, may steer the terminal or fill it; else as clap has it, in colours.
        match shown.trim_end() == plain.trim_end() {
            true => drop(error.print()),
            false => eprintln!("{}", shown.trim_end()),
        }
    }
    Exit::Usage.number()
}

/// A line of a reasonable length: the reason stands at its end, what was typed before.
fn shortened(line: &str) -> String {
    let chars = line.chars().count();
    if chars <= LINE_CHARS_MAX {
        return line.to_owned();
    }
    let half = LINE_CHARS_MAX / 2;
    line.chars().take(half).chain(['…']).chain(line.chars().skip(chars - half)).collect()
}

/// Whether the arguments ask for JSON, where they could not be parsed.
fn asks_for_json(args: &[OsString]) -> bool {
    args.iter().any(|arg| arg == "--output=json")
        || args.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
