//! `terrane snapshot verify` by content: `--against`, `--deep`, `--receipt`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::check::ReadingArgs;
use super::progress::{Progress, cancelled_by_signals};
use super::{App, Exit, Failure, Outcome};
use crate::copy::{
    CopyError, Differing, Measured, Pace, SALT_LEN, Side, VerifyWatch, compare_measured, compare_proofs,
};
use crate::region::{Region, hex};
use crate::sys::process;
use crate::units::CHUNK_BYTES;
use crate::volume::Host;

/// Ranges that a table lists.
const LISTED_MAX: usize = 100;

/// What `verify` takes.
#[derive(Args)]
pub struct VerifyArgs {
    /// The snapshot
    snapshot: String,
    /// Compare its content with that of another snapshot, by the proofs of both: no data is read
    #[arg(long, value_name = "REGION/SNAPSHOT")]
    against: Option<String>,
    /// Read all of it (of both, with --against) and compare what was read, also with the proof; makes the proof where there is none
    #[arg(long)]
    deep: bool,
    /// Write the roots of dm-verity's hash trees, for `veritysetup verify`, to this new file
    #[arg(long, value_name = "FILE", requires = "deep")]
    receipt: Option<PathBuf>,
    #[command(flatten)]
    reading: ReadingArgs,
}

#[derive(Serialize)]
struct ShownSide {
    region: String,
    snapshot_id: String,
    name: String,
    size_bytes: u64,
    /// The root of its leaves.
    root: String,
    /// Only in a receipt, and of `--receipt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    verity_root: Option<String>,
}

#[derive(Serialize)]
struct ShownRange {
    offset_bytes: u64,
    length_bytes: u64,
}

#[derive(Serialize)]
struct Shown {
    snapshot: ShownSide,
    against: Option<ShownSide>,
    /// All of it was read; else proofs were compared.
    deep: bool,
    equal: bool,
    differing_chunks: u64,
    differing: Vec<ShownRange>,
}

/// What a program needs to check a disk against what was read.
#[derive(Serialize)]
struct Receipt<'a> {
    format: &'static str,
    version: u32,
    hash: &'static str,
    data_block_bytes: u32,
    hash_block_bytes: u32,
    salt: String,
    snapshot: &'a ShownSide,
    against: &'a Option<ShownSide>,
    equal: bool,
    check: [String; 2],
}

/// What was found, and what it is called.
struct Found {
    shown: Shown,
    /// What was compared with what, if they differ.
    unequal: Option<String>,
    sizes: bool,
}

/// Verifies a snapshot.
pub fn run(args: &VerifyArgs, app: &App, region: Region) -> Outcome {
    let Some(against) = args.against.as_deref() else {
        return match args.deep {
            true => run_on(args, app, (region, &args.snapshot), None),
            false => super::check::snapshot(app, region, &args.snapshot, &args.reading),
        };
    };
    let (other, thing) = app.region_of_thing(against)?;
    run_on(args, app, (region, &args.snapshot), Some((other, thing)))
}

fn run_on(args: &VerifyArgs, app: &App, one: (Region, &str), other: Option<(Region, &str)>) -> Outcome {
    // Two a layer, on either side.
    process::raise_open_files();
    if let Some(path) = args.receipt.as_deref() {
        refuse_taken(path)?;
    }
    let host = Host::new(one.0, None);
    let side = open_side(&host, one.1)?;
    let against = other.map(|(region, text)| {
        // A region is opened once: a passphrase is asked for once.
        let there = if region.id() == host.region().id() { host.clone() } else { Host::new(region, None) };
        open_side(&there, text)
    });
    let against = against.transpose()?;
    let found = match (&against, args.deep) {
        (Some(against), false) => by_proofs(&side, against)?,
        _ => by_reading(args, app, &side, against.as_ref())?,
    };
    show(app, &found.shown)?;
    match &found.unequal {
        None => Ok(app.output().note(said(&found.shown))),
        Some(what) => Err(unequal(what, &found).into()),
    }
}

fn open_side(host: &Arc<Host>, text: &str) -> anyhow::Result<Side> {
    let row = host.region().catalog()?.read(|tx| tx.resolve_snapshot(text))?;
    Ok(Side::open(host, row.id)?)
}

fn by_proofs(side: &Side, against: &Side) -> anyhow::Result<Found> {
    let differing = compare_proofs(side, against)?;
    let roots = [side.proof()?.head.root, against.proof()?.head.root];
    let sides = (shown_side(side, roots[0], None), Some(shown_side(against, roots[1], None)));
    Ok(found(sides, false, &differing, || format!("{} differs from {}", words(side), words(against))))
}

fn by_reading(args: &VerifyArgs, app: &App, side: &Side, against: Option<&Side>) -> anyhow::Result<Found> {
    let cancel = cancelled_by_signals()?;
    let mut salt = args.receipt.as_ref().map(|_| [0; SALT_LEN]);
    if let Some(salt) = &mut salt {
        getrandom::fill(salt).map_err(std::io::Error::other).context("random bytes")?;
    }
    let sides: Vec<&Side> = std::iter::once(side).chain(against).collect();
    let measured = read_all(args, app, &sides, salt, &cancel)?;
    let mut result = Differing { chunks: Vec::new(), sizes: false };
    let mut what = String::new();
    // What a side's own proof says otherwise is said first: the fault is there.
    for (side, measured) in sides.iter().zip(&measured) {
        if let Some(differing) =
            measured.against_proof.clone().filter(|d| result.is_nothing() && !d.is_nothing())
        {
            (result, what) = (differing, format!("{} is not what its proof says", words(side)));
        }
    }
    if let (Some(against), [a, b], true) = (against, measured.as_slice(), result.is_nothing()) {
        result = compare_measured(a, b);
        what = format!("{} differs from {}", words(side), words(against));
    }
    let mut shown = sides.iter().zip(&measured).map(|(side, m)| shown_side(side, m.root, m.verity_root));
    let shown = (shown.next().context("one side")?, shown.next());
    let found = found(shown, true, &result, || what);
    if let (Some(path), Some(salt)) = (&args.receipt, salt) {
        write_receipt(path, &salt, &found.shown)?;
    }
    Ok(found)
}

fn read_all(
    args: &VerifyArgs,
    app: &App,
    sides: &[&Side],
    salt: Option<[u8; SALT_LEN]>,
    cancel: &AtomicBool,
) -> anyhow::Result<Vec<Measured>> {
    let pace = args.reading.max_rate().map(Pace::new);
    let total: u64 = sides.iter().map(|side| side.data_bytes()).sum();
    let mut progress = Progress::new(app, "reading", total);
    let mut before = 0;
    let mut all = Vec::new();
    for side in sides {
        let mut done = 0;
        let mut tell = |read| {
            done = read;
            progress.report(before + read, total.max(before + read));
        };
        let mut watch = VerifyWatch { cancel, pace: pace.as_ref(), progress: &mut tell };
        let measured = side.measure(sides[0], salt, &mut watch);
        before += done;
        match measured {
            Ok(measured) => all.push(measured),
            Err(error) => {
                progress.end(false);
                return Err(match error {
                    CopyError::Interrupted => {
                        let message = "the verification was cancelled before its end".into();
                        Failure { exit: Exit::Cancelled, message, hint: None }.into()
                    }
                    other => other.into(),
                });
            }
        }
    }
    progress.end(true);
    Ok(all)
}

fn found(
    (snapshot, against): (ShownSide, Option<ShownSide>),
    deep: bool,
    differing: &Differing,
    words: impl FnOnce() -> String,
) -> Found {
    let size = snapshot.size_bytes.max(against.as_ref().map_or(0, |a| a.size_bytes));
    let range = |run: &std::ops::Range<u64>| {
        let offset_bytes = run.start * CHUNK_BYTES;
        ShownRange {
            offset_bytes,
            length_bytes: (run.end * CHUNK_BYTES).min(size).saturating_sub(offset_bytes),
        }
    };
    let shown = Shown {
        snapshot,
        against,
        deep,
        equal: differing.is_nothing(),
        differing_chunks: differing.chunks.iter().map(|run| run.end - run.start).sum(),
        differing: differing.chunks.iter().map(range).collect(),
    };
    Found { unequal: (!shown.equal).then(words), sizes: differing.sizes, shown }
}

fn shown_side(side: &Side, root: [u8; 16], verity_root: Option<[u8; 32]>) -> ShownSide {
    let row = side.row();
    ShownSide {
        region: side.region().to_owned(),
        snapshot_id: row.id.to_string(),
        name: row.name.to_string(),
        size_bytes: row.size_bytes,
        root: hex::encode(&root),
        verity_root: verity_root.map(|root| hex::encode(&root)),
    }
}

fn words(side: &Side) -> String {
    format!("snapshot {} ({}) of region {}", side.row().name, side.row().id, side.region())
}

fn said(shown: &Shown) -> String {
    let how = if shown.deep { "all of it was read" } else { "by their proofs, without reading data" };
    let ShownSide { name, region, .. } = &shown.snapshot;
    match &shown.against {
        Some(b) => format!(
            "snapshot {name} of region {region} equals snapshot {} of region {} ({how})",
            b.name, b.region
        ),
        None => format!("snapshot {name} of region {region} is what its proof says ({how})"),
    }
}

fn unequal(what: &str, found: &Found) -> Failure {
    let count = found.shown.differing_chunks;
    let chunks = if count == 1 { "1 chunk of 2 MiB".into() } else { format!("{count} chunks of 2 MiB") };
    let message = match (count, found.sizes) {
        (0, _) => format!("{what}: in size alone"),
        (_, true) => format!("{what}: in size, and in {chunks}"),
        (_, false) => format!("{what}: in {chunks}"),
    };
    let hint = match found.shown.deep {
        true => {
            "`terrane region check` of either side reads every layer, and names what is damaged; another copy may have the rest"
        }
        false => "with --deep both are read, which says which side is not what its proof says",
    };
    Failure { exit: Exit::Corrupted, message, hint: Some(hint.into()) }
}

fn show(app: &App, shown: &Shown) -> Outcome {
    if app.output().is_json() {
        return app.output().object(shown, |_| Vec::new());
    }
    if shown.differing.is_empty() {
        return Ok(());
    }
    let listed = &shown.differing[..shown.differing.len().min(LISTED_MAX)];
    app.output().list(listed, &["offset bytes", "length bytes"], |range| {
        vec![range.offset_bytes.to_string(), range.length_bytes.to_string()]
    })?;
    let unlisted = shown.differing.len() - listed.len();
    if unlisted > 0 {
        app.output().note(format!("and {unlisted} more ranges: `--output json` has all"));
    }
    Ok(())
}

fn refuse_taken(path: &Path) -> Outcome {
    match path.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        _ => {
            let message = format!("{} is there already", path.display());
            Err(Failure { exit: Exit::InUse, message, hint: Some("name a file that is not".into()) }.into())
        }
    }
}

fn write_receipt(path: &Path, salt: &[u8], shown: &Shown) -> Outcome {
    let salt = hex::encode(salt);
    let root = shown.snapshot.verity_root.as_deref().unwrap_or_default();
    let receipt = Receipt {
        format: "terrane receipt",
        version: 1,
        hash: "sha256",
        data_block_bytes: 4096,
        hash_block_bytes: 4096,
        check: [
            format!("veritysetup format --hash sha256 --salt {salt} DISK HASHES"),
            format!("veritysetup verify DISK HASHES {root}"),
        ],
        salt,
        snapshot: &shown.snapshot,
        against: &shown.against,
        equal: shown.equal,
    };
    let text = serde_json::to_string_pretty(&receipt)? + "\n";
    let context = || format!("writing the receipt {}", path.display());
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).open(path).with_context(context)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(context)
}
