//! `terrane snapshot set …`

use clap::Args;

use super::Outcome;
use super::options::{checked_changes, parse_description};
use crate::catalog::{Snapshot, Tag};
use crate::region::Region;
use crate::volume::{refuse_in_bin, vouch};

/// What `set` takes.
#[derive(Args)]
pub struct SetArgs {
    /// The snapshot
    snapshot: String,
    #[command(flatten)]
    changes: Changes,
}

/// What is to be changed: at least one thing, and nothing else.
#[derive(Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// Free words, 2 to 256 characters
    #[arg(long, value_parser = parse_description, conflicts_with = "no_description")]
    description: Option<String>,
    /// Take the free words away
    #[arg(long)]
    no_description: bool,
    /// A tag, K=V, new or in place of that key's; a snapshot has up to 20
    #[arg(long = "tag", value_name = "K=V")]
    tags: Vec<Tag>,
    /// Take the tag of this key away; may be given again, and need not be there
    #[arg(long = "remove-tag", value_name = "K")]
    removed_tags: Vec<String>,
    /// Days after which `terrane daemon` deletes it, counted from when it was taken
    #[arg(long, value_name = "N", conflicts_with = "no_retention", value_parser = clap::value_parser!(u32).range(1..))]
    retention_days: Option<u32>,
    /// Let it stay until somebody deletes it
    #[arg(long)]
    no_retention: bool,
}

/// Changes what people say of a snapshot, all of it or nothing.
pub fn run(args: &SetArgs, region: &Region) -> Outcome {
    let changes = &args.changes;
    checked_changes(&changes.tags, &changes.removed_tags)?;
    if changes.retention_days.is_some() {
        // It vouches for a retention, and may be asked for on the terminal: no other writer should wait for that.
        region.root_key()?;
    }
    region.catalog()?.write(|tx| -> anyhow::Result<()> {
        let snapshot = tx.resolve_snapshot(&args.snapshot)?;
        refuse_in_bin(&snapshot)?;
        let description = match changes.no_description {
            true => None,
            false => changes.description.as_deref().or(snapshot.description.as_deref()),
        };
        let retention = match changes.no_retention {
            true => None,
            false => changes.retention_days.or(snapshot.retention_days),
        };
        tx.set_snapshot_details(snapshot.id, description, retention)?;
        if changes.no_retention || changes.retention_days.is_some() {
            let changed = Snapshot { retention_days: retention, ..snapshot.clone() };
            tx.set_retention_mac(snapshot.id, vouch::retention_mac(region, &changed)?)?;
        }
        Ok(tx.change_tags(&snapshot.id.to_string(), &changes.removed_tags, &changes.tags)?)
    })
}
