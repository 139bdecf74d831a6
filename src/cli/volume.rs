//! `terrane volume …`

use std::path::Path;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::filter::{self, VolumeFilter};
use super::options::{KeyArgs, checked_changes, checked_tags, tags_text};
use super::{App, Outcome, owner, parse_volume_size, size_text};
use crate::catalog::{CatalogError, DiskKind, ReadTx, Setting, Snapshot, Tag, Volume};
use crate::copy::KeyChoice;
use crate::ids::{KeyId, LayerId, Name};
use crate::region::Region;
use crate::sys::loopdev;
use crate::volume::folder;
use crate::volume::{
    HostState, LiveState, Order, Unopened, VolumeSpec, create_tagged_volume, damaged_header,
    unreadable_layers,
};

/// Commands on volumes. VOLUME is an id, a name, or the beginning of an id.
#[derive(Subcommand)]
pub enum Command {
    /// Make a volume and print its id
    Create(Create),
    /// List the region's volumes
    List {
        /// Only those that are so; of several, all must hold: tag:K=V, name=N*
        #[arg(long = "filter", value_name = "F")]
        filters: Vec<VolumeFilter>,
    },
    /// Describe a volume
    Show {
        /// The volume
        volume: String,
    },
    /// Give a volume another name, or change its tags
    Set(Set),
    /// Make a volume larger, also while it is in use
    Resize {
        /// The volume
        volume: String,
        /// Its new size, as 20G
        #[arg(long, value_parser = parse_volume_size)]
        size: u64,
    },
    /// Put a volume back to one of its snapshots; what was written since is lost
    Rollback {
        /// The volume
        volume: String,
        /// The snapshot
        #[arg(long)]
        snapshot: String,
    },
    /// Delete a volume; its snapshots stay
    Delete {
        /// The volume
        volume: String,
    },
}

/// What `create` takes.
#[derive(Args)]
pub struct Create {
    /// Its size, as 10G: a multiple of 4096 bytes, at most 64T
    #[arg(long, value_parser = parse_volume_size, required_unless_present = "snapshot")]
    size: Option<u64>,
    /// The snapshot it starts as
    #[arg(long)]
    snapshot: Option<String>,
    /// A name, unique in the region
    #[arg(long)]
    name: Option<Name>,
    #[command(flatten)]
    key: KeyArgs,
    /// What it is for: system or data [default: data, or the snapshot's]
    #[arg(long)]
    kind: Option<DiskKind>,
    /// A tag, K=V; up to 20, each key once. A volume made from a snapshot has none of its
    #[arg(long = "tag", value_name = "K=V")]
    tags: Vec<Tag>,
}

/// What `set` takes.
#[derive(Args)]
pub struct Set {
    /// The volume
    volume: String,
    #[command(flatten)]
    changes: Changes,
}

/// What is to be changed: at least one thing, and nothing else.
#[derive(Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// Its new name
    #[arg(long)]
    name: Option<Name>,
    /// A tag, K=V, new or in place of that key's; a volume has up to 20
    #[arg(long = "tag", value_name = "K=V")]
    tags: Vec<Tag>,
    /// Take the tag of this key away; may be given again, and need not be there
    #[arg(long = "remove-tag", value_name = "K")]
    removed_tags: Vec<String>,
}

#[derive(Serialize)]
struct Shown {
    id: String,
    name: Option<String>,
    size_bytes: u64,
    stored_bytes: u64,
    shared_bytes: u64,
    encrypted: bool,
    key_id: Option<String>,
    kind: DiskKind,
    state: &'static str,
    reason: Option<String>,
    path: Option<String>,
    source_snapshot_id: Option<String>,
    tags: Vec<Tag>,
    created_at: String,
}

pub(super) fn run(command: Command, app: &App) -> Outcome {
    let region = app.region()?;
    let resolve = |text: &str| {
        region
            .catalog()
            .map_err(anyhow::Error::from)
            .and_then(|mut c| Ok(c.read(|tx| tx.resolve_volume(text))?))
    };
    match command {
        Command::Create(args) => create(args, app, &region),
        Command::List { filters } => {
            let volumes = region.catalog()?.read(|tx| filter::volumes(tx, &filters))?;
            let live = owner::mounted(&region)?;
            // Once for all: those that were made from a snapshot stand on the same layers.
            let damaged = unreadable_layers(&region);
            let damage = |v: &Volume| match &damaged {
                Ok(layers) => {
                    layers.iter().find(|l| l.ids.contains(&v.id.to_string())).map(|l| l.why.clone())
                }
                Err(e) => Some(e.to_string()),
            };
            let shown: Vec<_> = volumes
                .into_iter()
                .map(|v| describe(v, &region, live.as_ref(), &damage))
                .collect::<Result<_>>()?;
            app.output().list(&shown, &["id", "name", "size", "stored", "key", "kind", "state"], |v| {
                vec![
                    v.id.clone(),
                    v.name.clone().unwrap_or_default(),
                    size_text(v.size_bytes),
                    size_text(v.stored_bytes),
                    v.key_id.clone().unwrap_or_else(|| "none".into()),
                    v.kind.as_str().into(),
                    v.state.into(),
                ]
            })
        }
        Command::Show { volume } => {
            let damage =
                |v: &Volume| damaged_header(&region, v.active).unwrap_or_else(|e| Some(e.to_string()));
            let shown = describe(resolve(&volume)?, &region, owner::mounted(&region)?.as_ref(), &damage)?;
            app.output().object(&shown, |v| {
                vec![
                    ("id", v.id.clone()),
                    ("name", v.name.clone().unwrap_or_default()),
                    ("size", size_text(v.size_bytes)),
                    ("stored", size_text(v.stored_bytes)),
                    ("shared", size_text(v.shared_bytes)),
                    ("key", v.key_id.clone().unwrap_or_else(|| "none: not encrypted".into())),
                    ("kind", v.kind.as_str().into()),
                    ("state", v.reason.as_ref().map_or(v.state.into(), |r| format!("{}: {r}", v.state))),
                    ("path", v.path.clone().unwrap_or_else(|| "not mounted".into())),
                    ("made from", v.source_snapshot_id.clone().unwrap_or_default()),
                    ("tags", tags_text(&v.tags)),
                    ("created at", v.created_at.clone()),
                ]
            })
        }
        Command::Set(Set { volume, changes }) => {
            checked_changes(&changes.tags, &changes.removed_tags)?;
            Ok(region.catalog()?.write(|tx| {
                let id = tx.resolve_volume(&volume)?.id;
                if let Some(name) = &changes.name {
                    tx.set_volume_name(id, Some(name))?;
                }
                tx.change_tags(&id.to_string(), &changes.removed_tags, &changes.tags)
            })?)
        }
        Command::Resize { volume, size } => {
            let id = resolve(&volume)?.id;
            let loops = owner::mounted(&region)?
                .map(|state| owner::loops_over(&state, "volumes", &id.to_string()))
                .unwrap_or_default();
            owner::perform(region, &Order::Resize { volume: id.to_string(), size_bytes: size })?;
            for device in loops {
                app.output().note(grow(&device.device));
            }
            Ok(())
        }
        Command::Rollback { volume, snapshot } => {
            let volume = resolve(&volume)?;
            refuse_attached(&region, &volume)?;
            let snapshot = region.catalog()?.read(|tx| tx.resolve_snapshot(&snapshot))?;
            owner::perform(
                region,
                &Order::Rollback { volume: volume.id.to_string(), snapshot: snapshot.id.to_string() },
            )
        }
        Command::Delete { volume } => {
            let volume = resolve(&volume)?;
            refuse_attached(&region, &volume)?;
            owner::perform(region, &Order::DeleteVolume { volume: volume.id.to_string() })
        }
    }
}

/// Tells a loop device that its file has grown, which its volume has in any case; what came of it. Another user's can't be told.
fn grow(device: &Path) -> String {
    let name = device.display();
    match loopdev::take_new_size(device) {
        Ok(()) => format!("{name} has grown; the file system on it grows with its own command"),
        Err(e) => format!(
            "the volume has grown, but {name} has not grown with it ({e}): as root, losetup --set-capacity {name}"
        ),
    }
}

fn refuse_attached(region: &Region, volume: &Volume) -> Result<()> {
    let what = volume.name.as_ref().map_or_else(|| volume.id.to_string(), ToString::to_string);
    owner::refuse_attached(region, "volumes", &volume.id.to_string(), &format!("volume {what}"))
}

fn create(args: Create, app: &App, region: &Region) -> Outcome {
    let account = app.account(&mut region.catalog()?)?.id;
    let snapshot = match &args.snapshot {
        Some(text) => Some(region.catalog()?.read(|tx| tx.resolve_snapshot(text))?),
        None => None,
    };
    let source = snapshot.as_ref();
    let spec = VolumeSpec {
        account,
        name: args.name,
        size_bytes: args.size.or(source.map(|s| s.size_bytes)).unwrap_or_default(),
        kind: args.kind.or(source.map(|s| s.kind)).unwrap_or(DiskKind::Data),
        snapshot: source.map(|s| s.id),
        key: region.catalog()?.read(|tx| key_of_new(tx, &args.key.choice(), source))?,
    };
    app.output().id(create_tagged_volume(region, &spec, checked_tags(&args.tags)?)?)
}

/// The key of a new volume; none: plain.
fn key_of_new(
    tx: &ReadTx,
    choice: &KeyChoice,
    source: Option<&Snapshot>,
) -> Result<Option<KeyId>, CatalogError> {
    Ok(match (choice, source) {
        (KeyChoice::Named(text), _) => Some(tx.resolve_key(text)?.id),
        (KeyChoice::Plain, _) => None,
        (KeyChoice::AsSource, Some(snapshot)) => snapshot.key,
        (KeyChoice::AsSource, None) if !tx.flag(Setting::EncryptByDefault)? => None,
        (KeyChoice::AsSource | KeyChoice::Default, _) => Some(tx.default_key()?.id),
    })
}

/// `damage`: what is wrong with the headers of a volume's layers.
fn describe(
    v: Volume,
    region: &Region,
    live: Option<&HostState>,
    damage: &dyn Fn(&Volume) -> Option<String>,
) -> Result<Shown> {
    let (own, shared, tags) = region.catalog()?.read(|tx| -> Result<_, CatalogError> {
        let chain = tx.layer_chain(v.active)?;
        let bytes = |id: LayerId, known: u64| folder::stored_bytes(region, id).unwrap_or(known);
        let below: u64 = chain[1..].iter().map(|l| bytes(l.id, l.stored_bytes)).sum();
        Ok((bytes(v.active, chain[0].stored_bytes), below, tx.tags(&v.id.to_string())?))
    })?;
    let state = live.and_then(|s| s.live.iter().find(|l| l.volume == v.id.to_string()));
    let unopened = live.and_then(|s| s.unopened.iter().find(|u| u.volume == v.id.to_string()));
    let unreadable = unreadable(region, &v, damage).or_else(|| unopened.map(could_not_be_opened));
    let reason = state.and_then(in_trouble).or_else(|| unreadable.clone());
    let state = match (state, &unreadable) {
        (Some(l), _) if l.latched => "latched",
        (Some(l), _) if !l.openers.is_empty() => "open",
        (_, Some(_)) => "unreadable",
        _ => "available",
    };
    Ok(Shown {
        id: v.id.to_string(),
        name: v.name.map(|n| n.to_string()),
        size_bytes: v.size_bytes,
        stored_bytes: own + shared,
        shared_bytes: shared,
        encrypted: v.key.is_some(),
        key_id: v.key.map(|k| k.to_string()),
        kind: v.kind,
        state,
        reason,
        path: live.map(|s| format!("{}/volumes/{}", s.mount_point, v.id)),
        source_snapshot_id: v.source_snapshot.map(|s| s.to_string()),
        tags,
        created_at: v.created_at.to_string(),
    })
}

/// Why a volume could not be opened, and what to do.
pub(super) fn could_not_be_opened(unopened: &Unopened) -> String {
    format!(
        "it could not be opened: {}; unmounted, `terrane region check` names all that is wrong",
        unopened.trouble
    )
}

/// What is wrong with a volume that is live, and what to do.
pub(super) fn in_trouble(live: &LiveState) -> Option<String> {
    let trouble = live.trouble.as_deref();
    if live.latched {
        let first = trouble.map(|t| format!("{t}; ")).unwrap_or_default();
        return Some(format!(
            "{first}it is latched after a failed write or sync: see to the disk below the region, close its file and open it again"
        ));
    }
    trouble.map(|t| format!("{t}; the mount's log names all: `terrane status` says where it is"))
}

/// Why a volume can't be opened, as far as its key and the headers of its layers tell without reading a sector.
fn unreadable(
    region: &Region,
    volume: &Volume,
    damage: &dyn Fn(&Volume) -> Option<String>,
) -> Option<String> {
    if let Some(key) = volume.key {
        match region.catalog().ok()?.read(|tx| tx.find_key(key)) {
            Ok(Some(key)) if key.state != crate::catalog::KeyState::Enabled => {
                return Some(format!(
                    "key {} is {}: terrane key enable {}",
                    key.id,
                    key.state.as_str(),
                    key.id
                ));
            }
            Ok(Some(_)) => {}
            Ok(None) => return Some(format!("key {key} is gone")),
            Err(e) => return Some(e.to_string()),
        }
    }
    damage(volume).map(|why| format!("{why}; `terrane region check` names all that is wrong"))
}
