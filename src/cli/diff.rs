//! `terrane snapshot diff …`

use std::io::{self, BufWriter, Write};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{App, Outcome, size_text};
use crate::region::{Region, RegionError};
use crate::units::SECTOR_BYTES;
use crate::volume::{ChangedRun, Changes, Holds, Host};

/// What `diff` takes.
#[derive(Args)]
pub struct DiffArgs {
    /// A snapshot
    #[arg(value_name = "A")]
    from: String,
    /// Another one of the same region, older or newer, related or not
    #[arg(value_name = "B")]
    to: String,
    /// Print sums, and no ranges
    #[arg(long)]
    stat: bool,
}

#[derive(Serialize)]
struct ShownRange {
    offset_bytes: u64,
    length_bytes: u64,
    /// What B has there.
    state: &'static str,
}

#[derive(Default, Serialize)]
struct Sums {
    ranges: u64,
    changed_bytes: u64,
    data_bytes: u64,
    zero_bytes: u64,
}

/// Lists what differs, or sums it up.
pub fn run(args: &DiffArgs, app: &App, region: Region) -> Outcome {
    let snapshots = region.catalog()?.read(|tx| {
        Ok::<_, RegionError>([tx.resolve_snapshot(&args.from)?, tx.resolve_snapshot(&args.to)?])
    })?;
    let changes = Changes::between(&Host::new(region, None), snapshots[0].id, snapshots[1].id)?;
    if args.stat {
        return stat(app, &changes);
    }
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let done = match app.output().is_json() {
        true => stream_json(&changes, &mut out),
        false => stream_table(&changes, &mut out),
    };
    match done.and_then(|()| Ok(out.flush()?)) {
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(())
        }
        other => other,
    }
}

fn stat(app: &App, changes: &Changes) -> Outcome {
    let mut sums = Sums::default();
    changes.each_run(|run| {
        let bytes = run.count * SECTOR_BYTES;
        sums.ranges += 1;
        sums.changed_bytes += bytes;
        match run.holds {
            Holds::Data => sums.data_bytes += bytes,
            Holds::Zero => sums.zero_bytes += bytes,
        }
        anyhow::Ok(())
    })?;
    app.output().object(&sums, |sums| {
        vec![
            ("ranges", sums.ranges.to_string()),
            ("changed", size_text(sums.changed_bytes)),
            ("data", size_text(sums.data_bytes)),
            ("zero", size_text(sums.zero_bytes)),
        ]
    })
}

fn shown(run: ChangedRun) -> ShownRange {
    ShownRange {
        offset_bytes: run.first.byte(),
        length_bytes: run.count * SECTOR_BYTES,
        state: match run.holds {
            Holds::Data => "data",
            Holds::Zero => "zero",
        },
    }
}

// Both print as they go: a disk may have more ranges than fit in memory.

fn stream_table(changes: &Changes, out: &mut impl Write) -> Result<()> {
    writeln!(out, "{:>18}  {:>18}  STATE", "OFFSET BYTES", "LENGTH BYTES")?;
    changes.each_run(|run| {
        let range = shown(run);
        Ok(writeln!(out, "{:>18}  {:>18}  {}", range.offset_bytes, range.length_bytes, range.state)?)
    })
}

fn stream_json(changes: &Changes, out: &mut impl Write) -> Result<()> {
    let mut before = "[\n ";
    changes.each_run(|run| {
        out.write_all(before.as_bytes())?;
        before = ",\n ";
        anyhow::Ok(serde_json::to_writer(&mut *out, &shown(run)).map_err(io::Error::from)?)
    })?;
    Ok(out.write_all(if before.starts_with('[') { b"[]\n" } else { b"\n]\n" })?)
}
