//! `terrane debug …`: what another program needs to check the bytes.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Subcommand;
use serde::Serialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::{App, Exit, Failure, Outcome};
use crate::catalog::{CatalogError, Layer as LayerRow, LayerState};
use crate::crypto::Cipher;
use crate::ids::LayerId;
use crate::kms;
use crate::layer::{Entry, Layer, PageCache, State, header, slot_offset};
use crate::region::Region;
use crate::units::{CHUNK_SECTORS, ChunkNo, SlotNo};
use crate::volume::folder::{self, Opening};

/// Commands for checking a region with other programs. They change nothing.
#[derive(Subcommand)]
pub enum Command {
    /// List the layers of a volume or a snapshot, the nearest first
    Layers {
        /// An id, a name, or the beginning of an id
        #[arg(value_name = "VOLUME|SNAPSHOT")]
        thing: String,
    },
    /// List the sectors that a sealed layer records, and where in its data file they lie
    Map {
        /// The layer
        layer: LayerId,
    },
    /// Print a layer's data key: 64 bytes in hexadecimal. Whoever has it reads the layer
    DataKey {
        /// The layer
        layer: LayerId,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Serialize)]
struct ShownLayer {
    id: String,
    parent_id: Option<String>,
    dir: String,
    sealed: bool,
    cipher: String,
}

#[derive(Serialize)]
struct ShownSector {
    sector: u64,
    state: &'static str,
    slot: Option<u64>,
    offset_bytes: Option<u64>,
}

pub(super) fn run(command: Command, app: &App) -> Outcome {
    match command {
        Command::Layers { thing } => {
            let (region, text) = app.region_of_thing(&thing)?;
            layers(app, &region, text)
        }
        Command::Map { layer } => map(app, &app.region()?, layer),
        Command::DataKey { layer, yes } => data_key(app, &app.region()?, layer, yes),
    }
}

fn layers(app: &App, region: &Region, text: &str) -> Outcome {
    let chain = region.catalog()?.read(|tx| -> Result<_> {
        let absent = |e: &CatalogError| matches!(e, CatalogError::NotFound { .. });
        let top = match (tx.resolve_volume(text), tx.resolve_snapshot(text)) {
            (Ok(volume), Ok(snapshot)) => {
                return Err(Failure {
                    exit: Exit::Refused,
                    message: format!("{text:?} is both a volume and a snapshot"),
                    hint: Some(format!("name one by its id: {} or {}", volume.id, snapshot.id)),
                }
                .into());
            }
            (Ok(volume), _) => volume.active,
            (_, Ok(snapshot)) => tx.layer_of_snapshot(snapshot.id)?,
            (Err(e), Err(f)) if absent(&e) && absent(&f) => {
                let message = format!("region {} has no volume or snapshot {text:?}", region.name());
                let hint = "`terrane volume list` and `terrane snapshot list` show what there is".to_owned();
                return Err(Failure { exit: Exit::NotFound, message, hint: Some(hint) }.into());
            }
            (Err(e), Err(f)) => return Err(if absent(&e) { f } else { e }.into()),
        };
        Ok(tx.layer_chain(top)?)
    })?;
    let shown: Vec<_> = chain
        .iter()
        .map(|row| ShownLayer {
            id: row.id.to_string(),
            parent_id: row.parent.map(|p| p.to_string()),
            dir: region.layer_dir(row.id).display().to_string(),
            sealed: row.state.is_sealed(),
            cipher: row.cipher.to_string(),
        })
        .collect();
    app.output().list(&shown, &["id", "parent", "sealed", "cipher", "dir"], |l| {
        vec![
            l.id.clone(),
            l.parent_id.clone().unwrap_or_default(),
            if l.sealed { "yes" } else { "no" }.into(),
            l.cipher.clone(),
            l.dir.clone(),
        ]
    })
}

fn map(app: &App, region: &Region, id: LayerId) -> Outcome {
    let row = region.catalog()?.read(|tx| tx.layer(id))?;
    let Some(mark) = folder::sealed_mark(&row).filter(|_| row.state == LayerState::Sealed) else {
        return Err(Failure::refused(
            format!("layer {id} is not sealed: what it records still changes"),
            "take a snapshot of its volume, then ask for the snapshot's layers",
        ));
    };
    let layer = folder::open_layer(region, &Arc::new(PageCache::new(64)), &row, Opening::Sealed(mark))?;
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let done = match app.output().is_json() {
        true => stream_json(&layer, &mut out),
        false => stream_table(&layer, &mut out),
    };
    match done.and_then(|()| Ok(out.flush()?)) {
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(())
        }
        other => other,
    }
}

fn stream_table(layer: &Layer, out: &mut impl Write) -> Result<()> {
    writeln!(out, "{:>14}  {:5}  {:>14}  {:>18}", "SECTOR", "STATE", "SLOT", "OFFSET BYTES")?;
    let text = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    each_sector(layer, |s| {
        Ok(writeln!(
            out,
            "{:>14}  {:5}  {:>14}  {:>18}",
            s.sector,
            s.state,
            text(s.slot),
            text(s.offset_bytes)
        )?)
    })
}

fn stream_json(layer: &Layer, out: &mut impl Write) -> Result<()> {
    let mut before = "[\n ";
    each_sector(layer, |s| {
        out.write_all(before.as_bytes())?;
        before = ",\n ";
        Ok(serde_json::to_writer(&mut *out, &s).map_err(io::Error::from)?)
    })?;
    Ok(out.write_all(if before.starts_with('[') { b"[]\n" } else { b"\n]\n" })?)
}

/// Every sector a layer records, in order; one chunk of them in memory at a time.
fn each_sector(layer: &Layer, mut tell: impl FnMut(ShownSector) -> Result<()>) -> Result<()> {
    let chunks = layer.sectors().div_ceil(CHUNK_SECTORS);
    let mut at = 0;
    while let Some(chunk) = layer.next_present(at..chunks)?.map(ChunkNo) {
        let first = chunk.first_sector().0;
        let mut entries = [Entry::ABSENT; CHUNK_SECTORS as usize];
        let within = (layer.sectors() - first).min(CHUNK_SECTORS) as usize;
        layer.entries(chunk, 0, &mut entries[..within])?;
        for (sector, entry) in (first..).zip(&entries[..within]) {
            let (state, slot): (_, Option<SlotNo>) = match entry.state() {
                State::Absent => continue,
                State::Zero => ("zero", None),
                State::Data(slot) => ("data", Some(slot)),
            };
            tell(ShownSector {
                sector,
                state,
                slot: slot.map(|s| s.0),
                offset_bytes: slot.map(slot_offset),
            })?;
        }
        at = chunk.0 + 1;
    }
    Ok(())
}

fn data_key(app: &App, region: &Region, id: LayerId, yes: bool) -> Outcome {
    let row: LayerRow = region.catalog()?.read(|tx| tx.layer(id))?;
    if !yes {
        return Err(Failure::refused(
            format!("the data key of layer {id} opens all that the layer holds"),
            "with --yes it is printed",
        ));
    }
    let aad = header::associated_data(region.id(), row.id, row.cipher);
    let key = kms::unwrap_data_key(region, row.key, row.key_version, &aad, &row.wrapped_key)?;
    tracing::warn!(target: "terrane::audit", region = region.name(), layer = %id, "the data key of a layer was printed");
    match row.cipher {
        Cipher::Plain => {
            eprintln!("layer {id} is plain: its data key serves its tags and checks, its sectors lie open")
        }
        Cipher::XtsAes256 => {
            eprintln!("whoever has this key reads layer {id}: keep it as you would the disk")
        }
    }
    let mut text = Zeroizing::new(String::with_capacity(2 * key.expose().len() + 256));
    let digits = Zeroizing::new(crate::region::hex::encode(key.expose()));
    match app.output().is_json() {
        true => {
            let shown =
                json!({ "layer_id": id.to_string(), "cipher": row.cipher.to_string(), "data_key": &*digits });
            text.push_str(&shown.to_string());
        }
        false => text.push_str(&digits),
    }
    text.push('\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("printing the data key")
}
