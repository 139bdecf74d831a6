//! `terrane key …`

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;

use super::options::parse_description;
use super::{App, Outcome, owner};
use crate::catalog::{Key, KeyVersion};
use crate::ids::{KeyId, Name};
use crate::kms::{self, Rotated};
use crate::region::{Region, RegionError};
use crate::volume::{self, Order};

/// Commands on keys. KEY is an id, an alias, or the beginning of an id.
#[derive(Subcommand)]
pub enum Command {
    /// Make a key and print its id
    Create {
        /// A name for it, unique in the region
        #[arg(long)]
        alias: Option<Name>,
        /// Free words
        #[arg(long, value_parser = parse_description)]
        description: Option<String>,
    },
    /// List the region's keys
    List,
    /// Describe a key
    Show {
        /// The key
        key: String,
    },
    /// Allow a key's use
    Enable {
        /// The key
        key: String,
    },
    /// Forbid a key's use: what it encrypts can't be opened any more, what is open goes on
    Disable {
        /// The key
        key: String,
    },
    /// Add a version, which wraps new data keys; nothing is wrapped again
    Rotate {
        /// The key
        key: String,
    },
    /// Give a key one more alias
    Alias {
        /// The key
        key: String,
        /// The alias
        alias: Name,
    },
    /// Take an alias away; the key stays
    Unalias {
        /// The alias
        alias: Name,
    },
}

#[derive(Serialize)]
struct Shown {
    id: String,
    aliases: Vec<String>,
    state: &'static str,
    is_default: bool,
    current_version: u32,
    description: Option<String>,
    account_id: String,
    instance_id: String,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    versions: Option<Vec<ShownVersion>>,
}

#[derive(Serialize)]
struct ShownVersion {
    version: u32,
    created_at: String,
}

pub(super) fn run(command: Command, app: &App) -> Outcome {
    let region = app.region()?;
    match command {
        Command::Create { alias, description } => {
            let account = app.account(&mut region.catalog()?)?;
            let key = kms::create_key(&region, account.id, alias, description)?;
            app.output().id(key.id)
        }
        Command::List => {
            let keys = region.catalog()?.read(|tx| tx.keys())?;
            let shown: Vec<_> = keys.into_iter().map(|key| describe(key, None)).collect();
            app.output().list(
                &shown,
                &["id", "aliases", "state", "version", "default", "created at"],
                |key| {
                    vec![
                        key.id.clone(),
                        key.aliases.join(","),
                        key.state.into(),
                        key.current_version.to_string(),
                        if key.is_default { "yes" } else { "" }.into(),
                        key.created_at.clone(),
                    ]
                },
            )
        }
        Command::Show { key } => show(app, &region, resolve(&region, &key)?),
        Command::Enable { key } => {
            let key = kms::set_key_enabled(&region, resolve(&region, &key)?, true)?;
            after(app, &region, key.id, "is enabled")
        }
        Command::Disable { key } => {
            let key = kms::set_key_enabled(&region, resolve(&region, &key)?, false)?;
            // Nor is what the mount still has in memory of volumes that nobody uses.
            if owner::mounted(&region)?.is_some() {
                owner::perform(app.region()?, &Order::LetGo)?;
            }
            after(app, &region, key.id, "is disabled")
        }
        Command::Rotate { key } => {
            let id = resolve(&region, &key)?;
            let Rotated { key, was_filed } =
                kms::rotate_key(&region, id, volume::claimed_version(&region, id)?)?;
            let from = if was_filed { ", which keys/ already had" } else { "" };
            after(app, &region, key.id, &format!("has version {}{from}", key.current_version))
        }
        Command::Alias { key, alias } => {
            let id = resolve(&region, &key)?;
            kms::add_alias(&region, id, &alias)?;
            after(app, &region, id, &format!("is also {alias}"))
        }
        Command::Unalias { alias } => {
            let id = resolve(&region, alias.as_str())?;
            kms::remove_alias(&region, alias.as_str())?;
            after(app, &region, id, &format!("is no longer {alias}"))
        }
    }
}

fn resolve(region: &Region, text: &str) -> Result<KeyId> {
    Ok(region.catalog()?.read(|tx| tx.resolve_key(text))?.id)
}

/// What a change says: a note for people, the key for programs.
fn after(app: &App, region: &Region, id: KeyId, what: &str) -> Outcome {
    app.output().note(format!("key {id} {what}"));
    if app.output().is_json() { show(app, region, id) } else { Ok(()) }
}

fn show(app: &App, region: &Region, id: KeyId) -> Outcome {
    let (key, versions) = region
        .catalog()?
        .read(|tx| Ok::<_, RegionError>((tx.resolve_key(&id.to_string())?, tx.key_versions(id)?)))?;
    app.output().object(&describe(key, Some(versions)), |key| {
        vec![
            ("id", key.id.clone()),
            ("aliases", key.aliases.join(", ")),
            ("state", key.state.into()),
            ("default", if key.is_default { "yes" } else { "no" }.into()),
            ("version", key.current_version.to_string()),
            ("description", key.description.clone().unwrap_or_default()),
            ("account", key.account_id.clone()),
            ("KMS instance", key.instance_id.clone()),
            ("created at", key.created_at.clone()),
        ]
    })
}

fn describe(key: Key, versions: Option<Vec<KeyVersion>>) -> Shown {
    Shown {
        id: key.id.to_string(),
        aliases: key.aliases.iter().map(Name::to_string).collect(),
        state: key.state.as_str(),
        is_default: key.is_default,
        current_version: key.current_version,
        description: key.description,
        account_id: key.account.to_string(),
        instance_id: key.instance.to_string(),
        created_at: key.created_at.to_string(),
        versions: versions.map(|versions| {
            versions
                .into_iter()
                .map(|row| ShownVersion { version: row.version, created_at: row.created_at.to_string() })
                .collect()
        }),
    }
}
