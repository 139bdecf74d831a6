//! `terrane region check` and `terrane snapshot verify`: reading everything.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde::Serialize;

use super::progress::{Progress, cancelled_by_signals};
use super::repair::{self, Repaired};
use super::{App, Exit, Failure, Outcome, parse_bytes, size_text};
use crate::catalog::SnapshotState;
use crate::region::{self, Region};
use crate::volume::{
    CheckWatch, Finding, Host, RegionCheck, check_region, proof, refuse_in_bin, verify_snapshot,
    words_of_unknown,
};

/// How fast is read.
#[derive(Args)]
pub struct ReadingArgs {
    /// Bytes a second to read at most, as 100M
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    max_rate: Option<u64>,
}

impl ReadingArgs {
    /// What was given.
    pub fn max_rate(&self) -> Option<u64> {
        self.max_rate
    }
}

/// What `region check` takes.
#[derive(Args)]
pub struct CheckArgs {
    /// Take the region as it is, though it is older than this machine has seen it
    #[arg(long)]
    accept_older: bool,
    /// Read catalog, keys and the folders' names only, no layers
    #[arg(long, conflicts_with = "max_rate")]
    quick: bool,
    /// Rebuild a lost or damaged catalog, rows of keys and files in keys/ from what else is there, and list folders that no layer has
    #[arg(long, conflicts_with = "quick")]
    repair: bool,
    /// Remove the folders in layers/ that no layer of the catalog has
    #[arg(long, requires = "repair")]
    remove_unknown: bool,
    /// Do what is said without asking
    #[arg(long, requires = "repair")]
    yes: bool,
    #[command(flatten)]
    reading: ReadingArgs,
}

/// One thing that is wrong.
#[derive(Serialize)]
struct Problem {
    what: String,
    layer_id: Option<String>,
    sector: Option<u64>,
    /// Volumes and snapshots that read through the layer.
    needed_by: Vec<String>,
}

#[derive(Serialize)]
struct Unchecked {
    layer_id: String,
    why: String,
}

#[derive(Serialize)]
struct ShownRegion {
    problems: Vec<Problem>,
    /// Also those that are not listed.
    problem_count: u64,
    checked_bytes: u64,
    unchecked: Vec<Unchecked>,
    unknown_folders: Vec<PathBuf>,
    /// What `--repair` did.
    repaired: Repaired,
}

#[derive(Serialize)]
struct ShownSnapshot {
    snapshot_id: String,
    name: String,
    volume_id: Option<String>,
    volume: Option<String>,
    damage: Vec<Problem>,
    damage_count: u64,
    checked_bytes: u64,
}

/// Checks a region.
pub fn region(app: &App, args: &CheckArgs) -> Outcome {
    if args.accept_older {
        let dir = match app.region_text() {
            Some(text) if text.contains('/') => PathBuf::from(text),
            text => app.config().find(text)?.directory,
        };
        region::accept_older(&dir, app.config())?;
    }
    let repaired = match args.repair {
        true => repair::run(app, args.remove_unknown, args.yes)?,
        false => Repaired::default(),
    };
    let cancel = cancelled_by_signals()?;
    let region = app.region()?;
    let name = region.name().to_owned();
    let mut problems: Vec<_> = region::check(&region)?.into_iter().map(plain).collect();
    let unknown_folders = region::unknown_folders(&region)?;
    problems.extend(
        unknown_folders
            .iter()
            .map(|path| plain(format!("{}: no layer of the catalog", unknown(&region, path)))),
    );
    let mut of_proofs = 0;
    let report = match args.quick {
        true => {
            problems.extend(region::missing_layers(&region)?.into_iter().map(plain));
            RegionCheck::default()
        }
        false => {
            let found = proof::problems(&region, &cancel)?;
            of_proofs = found.len() as u64;
            problems.extend(found.into_iter().map(plain));
            read_layers(app, region, &args.reading, &cancel)?
        }
    };
    let problem_count = problems.len() as u64 + report.findings.count;
    let of_layers = report.findings.listed.iter().map(|finding| Problem {
        what: words(finding),
        layer_id: Some(finding.layer.to_string()),
        sector: finding.sector,
        needed_by: report.needed_by.get(&finding.layer).cloned().unwrap_or_default(),
    });
    problems.extend(of_layers);
    let unchecked: Vec<_> = report
        .left
        .iter()
        .map(|(layer, why)| Unchecked { layer_id: layer.to_string(), why: why.clone() })
        .collect();
    unchecked.iter().for_each(|u| app.output().note(format!("not checked: layer {}: {}", u.layer_id, u.why)));
    let shown = ShownRegion {
        problems,
        problem_count,
        checked_bytes: report.checked_bytes,
        unchecked,
        unknown_folders,
        repaired,
    };
    print(app, &shown, &shown.problems, shown.problem_count)?;
    let what = format!("region {name}");
    end(
        app,
        &what,
        problem_count,
        shown.checked_bytes,
        report.cancelled,
        hint(&shown, report.misled_rows, of_proofs),
    )
}

fn hint(shown: &ShownRegion, misled_rows: u64, of_proofs: u64) -> &'static str {
    if shown.problem_count == of_proofs {
        "no snapshot needs its proof to be read, and none is lost: `terrane snapshot verify SNAPSHOT --deep` reads all of it, and makes \
         a damaged one anew"
    } else if shown.problem_count == shown.unknown_folders.len() as u64 + of_proofs {
        "`terrane region check --repair` lists such folders; with --remove-unknown it removes them"
    } else if misled_rows > 0 {
        "the catalog says what no key bears out: `terrane region check --repair` writes such rows anew, from what layers say of \
         themselves; where an older state was put back on purpose: `terrane region check --accept-older`"
    } else if shown.problems.iter().any(|p| p.layer_id.is_some()) {
        "what is not damaged can be read; write the damaged sectors anew, or restore the volume from a snapshot that does \
         not need the layer, or from a copy in another region"
    } else {
        "`terrane region check --repair` builds a damaged catalog anew, and writes what is lost of a key at one place from the other"
    }
}

fn read_layers(
    app: &App,
    region: Region,
    reading: &ReadingArgs,
    cancel: &AtomicBool,
) -> anyhow::Result<RegionCheck> {
    let host = Host::new(region, None);
    let mut progress = Progress::new(app, "checking", 0);
    let checked =
        check_region(&host, &mut watch(reading, cancel, &mut |done, total| progress.report(done, total)));
    progress.end(checked.is_ok());
    Ok(checked?)
}

fn watch<'a>(
    reading: &ReadingArgs,
    cancel: &'a AtomicBool,
    progress: &'a mut dyn FnMut(u64, u64),
) -> CheckWatch<'a> {
    CheckWatch { cancel, max_rate: reading.max_rate, progress }
}

/// Checks a snapshot.
pub fn snapshot(app: &App, region: Region, text: &str, reading: &ReadingArgs) -> Outcome {
    let found = region.catalog()?.read(|tx| tx.resolve_snapshot(text))?;
    refuse_in_bin(&found)?;
    if found.state != SnapshotState::Success {
        return Err(Failure::refused(
            format!("snapshot {} is {}", found.name, found.state.as_str()),
            "a copy can be verified once it is whole",
        ));
    }
    let volume = match found.volume {
        Some(id) => region.catalog()?.read(|tx| tx.find_volume(id))?.and_then(|v| v.name),
        None => None,
    };
    let cancel = cancelled_by_signals()?;
    let host = Host::new(region, None);
    let mut progress = Progress::new(app, "verifying", 0);
    let mut tell = |done, total| progress.report(done, total);
    let checked = verify_snapshot(&host, found.id, &mut watch(reading, &cancel, &mut tell));
    progress.end(checked.is_ok());
    let checked = checked?;
    let of_volume = found.volume.map(|id| match &volume {
        Some(name) => format!(" of volume {name} ({id})"),
        None => format!(" of volume {id}"),
    });
    let what = format!("snapshot {} ({}){}", found.name, found.id, of_volume.unwrap_or_default());
    let damage = checked.findings.listed.iter().map(|finding| Problem {
        what: format!("{what}: {}", words(finding)),
        layer_id: Some(finding.layer.to_string()),
        sector: finding.sector,
        needed_by: Vec::new(),
    });
    let shown = ShownSnapshot {
        snapshot_id: found.id.to_string(),
        name: found.name.to_string(),
        volume_id: found.volume.map(|v| v.to_string()),
        volume: volume.map(|v| v.to_string()),
        damage: damage.collect(),
        damage_count: checked.findings.count,
        checked_bytes: checked.checked_bytes,
    };
    print(app, &shown, &shown.damage, shown.damage_count)?;
    let hint =
        "the other sectors can be read; an older snapshot, or a copy in another region, may have those";
    end(app, &what, shown.damage_count, shown.checked_bytes, checked.cancelled, hint)
}

fn plain(what: String) -> Problem {
    Problem { what, layer_id: None, sector: None, needed_by: Vec::new() }
}

/// A folder that no row names, and what it holds.
pub fn unknown(region: &Region, path: &Path) -> String {
    match words_of_unknown(region, path) {
        Some(words) => format!("{} ({words})", path.display()),
        None => path.display().to_string(),
    }
}

fn words(finding: &Finding) -> String {
    match finding.sector {
        Some(sector) => format!("sector {sector} in layer {}: {}", finding.layer, finding.what),
        None => format!("layer {}: {}", finding.layer, finding.what),
    }
}

fn print<T: Serialize>(app: &App, shown: &T, problems: &[Problem], count: u64) -> Outcome {
    if app.output().is_json() {
        return app.output().object(shown, |_| Vec::new());
    }
    if problems.is_empty() {
        return Ok(());
    }
    app.output()
        .list(problems, &["problem", "needed by"], |p| vec![p.what.clone(), p.needed_by.join(", ")])?;
    let unlisted = count - problems.len() as u64;
    if unlisted > 0 {
        app.output().note(format!("and {unlisted} more"));
    }
    Ok(())
}

fn end(app: &App, what: &str, count: u64, bytes: u64, cancelled: bool, hint: &str) -> Outcome {
    if count > 0 {
        let things = if count == 1 { "problem" } else { "problems" };
        let message = format!("{what} has {count} {things}");
        return Err(Failure { exit: Exit::Corrupted, message, hint: Some(hint.into()) }.into());
    }
    if cancelled {
        let message = format!("{what}: cancelled after {} were read, all of them well", size_text(bytes));
        return Err(Failure { exit: Exit::Cancelled, message, hint: None }.into());
    }
    app.output().note(format!("{what} is well ({} read)", size_text(bytes)));
    Ok(())
}
