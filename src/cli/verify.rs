//! `terrane snapshot verify` by content: `--against`, `--deep`, `--receipt`.

use std::fs::{File, OpenOptions};
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
    CopyError, Differing, Measured, OwnProof, Pace, SALT_LEN, Side, VerifyWatch, compare_measured,
    compare_proofs,
};
use crate::region::{Region, hex};
use crate::units::CHUNK_BYTES;
use crate::volume::{Host, HostError};

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
    /// Read all of it (of both, with --against) and compare what was read, also with the proof of each; makes the proof where there is none or it is damaged
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
    /// Its own proof, where all was read: equal, differs, made, replaced.
    proof: Option<&'static str>,
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
    /// Of one side: it is what its proof says.
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

/// What was found.
struct Found {
    shown: Shown,
    /// What differs from what, in sentences.
    faults: Vec<String>,
    /// What else was done, in sentences.
    notes: Vec<String>,
    /// Why a proof was not made.
    failed: Option<HostError>,
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
    let receipt = args.receipt.as_deref().map(ReceiptFile::create).transpose()?;
    let host = Host::new(one.0, None);
    let side = open_side(&host, one.1)?;
    let against = other.map(|(region, text)| {
        // A region is opened once: a passphrase is asked for once.
        let there = if region.id() == host.region().id() { host.clone() } else { Host::new(region, None) };
        open_side(&there, text)
    });
    let against = against.transpose()?;
    let salt = receipt.as_ref().map(|_| new_salt()).transpose()?;
    let mut found = match (&against, args.deep) {
        (Some(against), false) => by_proofs(&side, against)?,
        _ => by_reading(args, app, &side, against.as_ref(), salt)?,
    };
    // Whatever fails from here on, what was found was said.
    let printed = show(app, &found.shown);
    let written = receipt.zip(salt).map_or(Ok(()), |(receipt, salt)| receipt.write(&salt, &found.shown));
    found.notes.iter().for_each(|note| app.output().note(note));
    let proven = found.failed.take().map_or(Ok(()), |error| Err(error.into()));
    end(app, &found, [printed, written, proven])
}

/// A difference is what a command ends with before anything that failed, of which the first is told with it.
fn end(app: &App, found: &Found, done: [Outcome; 3]) -> Outcome {
    let failed = done.into_iter().find_map(Result::err);
    if found.faults.is_empty() {
        app.output().note(said(&found.shown));
        return failed.map_or(Ok(()), Err);
    }
    let failed = failed.map(|error| Failure::of(&error).message);
    let message = found.faults.iter().cloned().chain(failed).collect::<Vec<_>>().join("; ");
    let hint = match found.shown.deep {
        true => {
            "`terrane region check` of either side reads every layer, and names what is damaged; another copy may have the rest"
        }
        false => "with --deep both are read, which says which side is not what its proof says",
    };
    Err(Failure { exit: Exit::Corrupted, message, hint: Some(hint.into()) }.into())
}

fn new_salt() -> anyhow::Result<[u8; SALT_LEN]> {
    let mut salt = [0; SALT_LEN];
    getrandom::fill(&mut salt).map_err(std::io::Error::other).context("random bytes")?;
    Ok(salt)
}

fn open_side(host: &Arc<Host>, text: &str) -> anyhow::Result<Side> {
    let row = host.region().catalog()?.read(|tx| tx.resolve_snapshot(text))?;
    Ok(Side::open(host, row.id)?)
}

fn by_proofs(side: &Side, against: &Side) -> anyhow::Result<Found> {
    let compared = compare_proofs(side, against).map_err(|error| {
        let is_damaged = matches!(error, CopyError::Host(HostError::Volume(_)));
        let failure = Failure::of(&error.into());
        let hint = "`terrane snapshot verify SNAPSHOT --deep` reads all of it, and makes its proof anew";
        Failure { hint: if is_damaged { Some(hint.into()) } else { failure.hint.clone() }, ..failure }
    })?;
    let [a, b] = compared.roots;
    let shown = shown(
        (shown_side(side, a, None, None), Some(shown_side(against, b, None, None))),
        false,
        &compared.differing,
    );
    let faults = differs(side, against, &compared.differing).into_iter().collect();
    Ok(Found { shown, faults, notes: Vec::new(), failed: None })
}

fn by_reading(
    args: &VerifyArgs,
    app: &App,
    side: &Side,
    against: Option<&Side>,
    salt: Option<[u8; SALT_LEN]>,
) -> anyhow::Result<Found> {
    let cancel = cancelled_by_signals()?;
    let sides: Vec<&Side> = std::iter::once(side).chain(against).collect();
    let measured = read_all(args, app, &sides, salt, &cancel)?;
    let mut faults = Vec::new();
    let differing = match (against, measured.as_slice()) {
        (Some(against), [a, b]) => {
            let differing = compare_measured(a, b);
            faults.extend(differs(side, against, &differing));
            differing
        }
        (_, [Measured { own_proof: OwnProof::Differs(differing), .. }, ..]) => differing.clone(),
        _ => Differing { chunks: Vec::new(), sizes: false },
    };
    let mut notes = Vec::new();
    for (side, measured) in sides.iter().zip(&measured) {
        match &measured.own_proof {
            OwnProof::Differs(differing) => {
                faults.push(format!("{} is not what its proof says: {}", words(side), extent(differing)));
            }
            OwnProof::Made => notes.push(format!("{} had no proof, and was given one", words(side))),
            OwnProof::Replaced => {
                notes.push(format!("{} had a damaged proof, which was made anew", words(side)));
            }
            OwnProof::Equal | OwnProof::Failed(_) => {}
        }
    }
    let mut shown_sides = sides
        .iter()
        .zip(&measured)
        .map(|(side, m)| shown_side(side, m.root, m.verity_root, Some(&m.own_proof)));
    let both = (shown_sides.next().context("one side")?, shown_sides.next());
    let shown = shown(both, true, &differing);
    let failed = measured.into_iter().find_map(|measured| match measured.own_proof {
        OwnProof::Failed(error) => Some(error),
        _ => None,
    });
    Ok(Found { shown, faults, notes, failed })
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

fn shown((snapshot, against): (ShownSide, Option<ShownSide>), deep: bool, differing: &Differing) -> Shown {
    let size = snapshot.size_bytes.max(against.as_ref().map_or(0, |a| a.size_bytes));
    let range = |run: &std::ops::Range<u64>| {
        let offset_bytes = run.start * CHUNK_BYTES;
        ShownRange {
            offset_bytes,
            length_bytes: (run.end * CHUNK_BYTES).min(size).saturating_sub(offset_bytes),
        }
    };
    Shown {
        snapshot,
        against,
        deep,
        equal: differing.is_nothing(),
        differing_chunks: differing.chunks.iter().map(|run| run.end - run.start).sum(),
        differing: differing.chunks.iter().map(range).collect(),
    }
}

fn shown_side(
    side: &Side,
    root: [u8; 16],
    verity_root: Option<[u8; 32]>,
    proof: Option<&OwnProof>,
) -> ShownSide {
    let row = side.row();
    ShownSide {
        region: side.region().to_owned(),
        snapshot_id: row.id.to_string(),
        name: row.name.to_string(),
        size_bytes: row.size_bytes,
        root: hex::encode(&root),
        proof: proof.and_then(|proof| match proof {
            OwnProof::Equal => Some("equal"),
            OwnProof::Differs(_) => Some("differs"),
            OwnProof::Made => Some("made"),
            OwnProof::Replaced => Some("replaced"),
            OwnProof::Failed(_) => None,
        }),
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
        None if shown.snapshot.proof == Some("equal") => {
            format!("snapshot {name} of region {region} is what its proof says ({how})")
        }
        None => {
            format!("snapshot {name} of region {region} reads whole; it was compared with nothing ({how})")
        }
    }
}

fn differs(a: &Side, b: &Side, differing: &Differing) -> Option<String> {
    let said = || format!("{} differs from {}: {}", words(a), words(b), extent(differing));
    (!differing.is_nothing()).then(said)
}

/// How much differs.
fn extent(differing: &Differing) -> String {
    let count: u64 = differing.chunks.iter().map(|run| run.end - run.start).sum();
    let chunks = if count == 1 { "1 chunk of 2 MiB".into() } else { format!("{count} chunks of 2 MiB") };
    match (count, differing.sizes) {
        (0, _) => "in size alone".into(),
        (_, true) => format!("in size, and in {chunks}"),
        (_, false) => format!("in {chunks}"),
    }
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

/// A receipt's file: made before anything is read, which takes long, and taken away where nothing comes of it.
struct ReceiptFile<'a> {
    path: &'a Path,
    file: File,
    is_whole: bool,
}

impl<'a> ReceiptFile<'a> {
    fn create(path: &'a Path) -> anyhow::Result<Self> {
        match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => Ok(Self { path, file, is_whole: false }),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                let message = format!("{} is there already", path.display());
                let hint = Some("name a file that is not".into());
                Err(Failure { exit: Exit::InUse, message, hint }.into())
            }
            Err(e) => Err(e).with_context(|| format!("making the receipt {}", path.display())),
        }
    }

    fn write(mut self, salt: &[u8], shown: &Shown) -> Outcome {
        let text = receipt(salt, shown)?;
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        self.is_whole = written.is_ok();
        written.with_context(|| format!("writing the receipt {}", self.path.display()))
    }
}

impl Drop for ReceiptFile<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

fn receipt(salt: &[u8], shown: &Shown) -> anyhow::Result<String> {
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
    Ok(serde_json::to_string_pretty(&receipt)? + "\n")
}
