//! `terrane region …`

use std::path::PathBuf;

use anyhow::Result;
use clap::{ArgAction, Subcommand};
use serde::Serialize;

use super::check::{self, CheckArgs};
use super::{App, Failure, Outcome, trust_clock};
use crate::catalog::Setting;
use crate::ids::Name;
use crate::region::{
    self, Config, InitRequest, KnownRegion, NewPassphrase, Region, RegionError, RootKeyPlace,
};

/// Commands on regions.
#[derive(Subcommand)]
pub enum Command {
    /// Make a region in a new or empty directory
    Init {
        /// The directory
        dir: PathBuf,
        /// The region's name
        #[arg(long)]
        name: Name,
        /// Keep the root key in the region, wrapped by the passphrase in this file
        #[arg(long, value_name = "F", conflicts_with_all = ["root_key_file", "passphrase"])]
        passphrase_file: Option<PathBuf>,
        /// Keep the root key in the region, wrapped by a passphrase asked for on the terminal
        #[arg(long, conflicts_with = "root_key_file")]
        passphrase: bool,
        /// Use the root key in this file, and not a fresh one
        #[arg(long, value_name = "F")]
        root_key_file: Option<PathBuf>,
    },
    /// Make an existing region known here
    Add {
        /// The region's directory
        dir: PathBuf,
        /// A file with its root key, which is kept in the configuration
        #[arg(long, value_name = "F", conflicts_with = "passphrase_file")]
        root_key_file: Option<PathBuf>,
        /// A file with its passphrase
        #[arg(long, value_name = "F")]
        passphrase_file: Option<PathBuf>,
    },
    /// Take a region out of the configuration; the region and its root key stay
    Forget {
        /// Its name or directory [default: --region]
        #[arg(value_name = "REGION")]
        which: Option<String>,
    },
    /// Describe a region
    Show {
        /// Its name or directory [default: --region]
        #[arg(value_name = "REGION")]
        which: Option<String>,
    },
    /// List the regions known here
    List,
    /// Read all of a region and check it: catalog, keys, layers, every sector; exit 6 if anything is wrong
    Check(CheckArgs),
    /// Change a region's settings
    Set {
        /// encrypt_by_default, copy_and_encrypt, kms_enabled, storage_authorized: each true or false
        #[arg(required = true, value_name = "K=V", value_parser = parse_setting)]
        settings: Vec<(Setting, bool)>,
    },
    /// Say that this machine's clock is right: it is believed, and regions whose own is ahead, of --region or all known ones, go back to it
    TrustClock {
        /// Do what is said, and don't ask
        #[arg(long)]
        yes: bool,
    },
    /// Write a copy of the root key to a new file, to keep elsewhere
    ExportRootKey {
        /// The file, which must not be there yet
        #[arg(short = 'o', value_name = "F")]
        file: PathBuf,
    },
    /// Set, change or remove the passphrase that wraps the root key
    Passphrase {
        /// The new passphrase [default: asked for on the terminal]
        #[arg(long, value_name = "F", conflicts_with = "remove")]
        new_passphrase_file: Option<PathBuf>,
        /// Keep the root key in a file of the configuration from now on
        #[arg(long, action = ArgAction::SetTrue)]
        remove: bool,
    },
}

#[derive(Serialize)]
struct Listed {
    id: String,
    name: String,
    directory: String,
    state: &'static str,
    problem: Option<String>,
}

#[derive(Serialize)]
struct Shown {
    id: String,
    name: String,
    directory: String,
    format_version: i64,
    created_at: String,
    replaced_clock: bool,
    passphrase: bool,
    root_key: &'static str,
    root_key_file: Option<String>,
    account_id: String,
    kms_instance_id: String,
    default_key_id: String,
    settings: serde_json::Map<String, serde_json::Value>,
}

pub(super) fn run(command: Command, app: &App) -> Outcome {
    match command {
        Command::Init { dir, name, passphrase_file, passphrase, root_key_file } => {
            let passphrase = match (passphrase_file, passphrase) {
                (Some(path), _) => Some(NewPassphrase::File(path)),
                (None, true) => Some(NewPassphrase::Terminal),
                (None, false) => None,
            };
            init(app, &InitRequest { dir, name, root_key_file, passphrase })
        }
        Command::Add { dir, root_key_file, passphrase_file } => {
            let known =
                region::add(&dir, root_key_file.as_deref(), passphrase_file.as_deref(), app.config())?;
            app.output().note(format!(
                "region {} in {} is known here",
                known.name,
                known.directory.display()
            ));
            if app.output().is_json() {
                app.output().object(&list_one(known), |_| Vec::new())
            } else {
                Ok(())
            }
        }
        Command::Forget { which } => forget(app, which.as_deref()),
        Command::Show { which } => {
            let region = match which {
                Some(text) => app.region_named(&text)?,
                None => app.region()?,
            };
            show(app, &region)
        }
        Command::List => list(app),
        Command::Check(args) => check::region(app, &args),
        Command::Set { settings } => {
            let region = app.region()?;
            region.catalog()?.write(|tx| {
                settings.iter().try_for_each(|(setting, on)| tx.set_flag(*setting, *on))?;
                Ok::<_, RegionError>(())
            })?;
            if app.output().is_json() { show(app, &region) } else { Ok(()) }
        }
        Command::TrustClock { yes } => trust_clock::run(app, yes),
        Command::ExportRootKey { file } => {
            let region = app.region()?;
            region::export_root_key(&region, &file)?;
            app.output().note(format!(
                "the root key of region {} is in {}; who has both it and the region's directory reads everything",
                region.name(),
                file.display()
            ));
            if app.output().is_json() {
                let made = serde_json::json!({ "region_id": region.id().to_string(), "file": file });
                app.output().object(&made, |_| Vec::new())?;
            }
            Ok(())
        }
        Command::Passphrase { new_passphrase_file, remove } => passphrase(app, new_passphrase_file, remove),
    }
}

fn init(app: &App, request: &InitRequest) -> Outcome {
    let region = region::init(request, app.config())?;
    let place = match region.root_key_place() {
        RootKeyPlace::File(path) => format!(
            "its root key is in {}\nkeep a copy of that file elsewhere (`terrane region export-root-key -o F`): \
             without it nothing in the region can be read",
            path.display()
        ),
        _ => format!(
            "its root key is in {}, wrapped by the passphrase\nkeep the passphrase, and a copy of the root key elsewhere \
             (`terrane region export-root-key -o F`): without one of them nothing in the region can be read",
            region.dir().join("region.toml").display()
        ),
    };
    app.output().note(format!("region {} is in {}\n{place}", region.name(), region.dir().display()));
    if region.header().replaced_clock {
        app.output().note("it was made under TERRANE_CLOCK, which replaces its wall clock");
    }
    app.output().id(region.id())
}

fn forget(app: &App, text: Option<&str>) -> Outcome {
    let text = text
        .or(app.region_text())
        .ok_or_else(|| Failure::usage("say which region to forget: `terrane region forget NAME`"))?;
    let known = region::forget(text, app.config())?;
    app.output().note(format!(
        "region {} in {} is no longer known here",
        known.name,
        known.directory.display()
    ));
    let kept = app.config().root_key_path(known.id);
    if kept.exists() {
        app.output().note(format!("its root key stays in {}", kept.display()));
    }
    if app.output().is_json() { app.output().object(&list_one(known), |_| Vec::new()) } else { Ok(()) }
}

fn list(app: &App) -> Outcome {
    let known: Vec<_> = app.config().known()?.into_iter().map(list_one).collect();
    app.output().list(&known, &["name", "id", "state", "directory"], |region| {
        vec![region.name.clone(), region.id.clone(), region.state.into(), region.directory.clone()]
    })
}

fn list_one(known: KnownRegion) -> Listed {
    let problem = match region::peek(&known.directory) {
        Ok(header) if header.id == known.id => None,
        Ok(_) => Some(("another", "another region lies there".to_owned())),
        Err(error @ RegionError::NotARegion { .. }) => Some(("missing", error.to_string())),
        Err(error) => Some(("unreadable", error.to_string())),
    };
    Listed {
        id: known.id.to_string(),
        name: known.name.to_string(),
        directory: known.directory.display().to_string(),
        state: problem.as_ref().map_or("ok", |(state, _)| state),
        problem: problem.map(|(_, why)| why),
    }
}

fn show(app: &App, region: &Region) -> Outcome {
    let shown = describe(region)?;
    app.output().object(&shown, |shown| {
        let root_key = match &shown.root_key_file {
            Some(file) => format!("{} {file}", shown.root_key),
            None => shown.root_key.to_owned(),
        };
        let mut fields = vec![
            ("name", shown.name.clone()),
            ("id", shown.id.clone()),
            ("directory", shown.directory.clone()),
            ("format version", shown.format_version.to_string()),
            ("created at", shown.created_at.clone()),
            ("clock", if shown.replaced_clock { "TERRANE_CLOCK" } else { "the machine's" }.into()),
            ("root key", root_key),
            ("account", shown.account_id.clone()),
            ("KMS instance", shown.kms_instance_id.clone()),
            ("default key", shown.default_key_id.clone()),
        ];
        fields.extend(Setting::ALL.iter().map(|s| (s.as_str(), shown.settings[s.as_str()].to_string())));
        fields
    })
}

fn describe(region: &Region) -> Result<Shown> {
    let (account, instance, key, settings) = region.catalog()?.read(|tx| {
        let mut settings = serde_json::Map::new();
        for setting in Setting::ALL {
            settings.insert(setting.as_str().into(), tx.flag(*setting)?.into());
        }
        Ok::<_, RegionError>((
            tx.default_account()?.id,
            tx.default_instance()?.id,
            tx.default_key()?.id,
            settings,
        ))
    })?;
    let (root_key, file) = match region.root_key_place() {
        RootKeyPlace::File(path) => ("file", Some(path.display().to_string())),
        RootKeyPlace::PassphraseFile(path) => ("passphrase file", Some(path.display().to_string())),
        RootKeyPlace::Terminal => ("passphrase", None),
        RootKeyPlace::Unknown => ("unknown", None),
    };
    let header = region.header();
    Ok(Shown {
        id: header.id.to_string(),
        name: header.name.to_string(),
        directory: region.dir().display().to_string(),
        format_version: region::FORMAT_VERSION,
        created_at: header.created_at.to_string(),
        replaced_clock: header.replaced_clock,
        passphrase: header.has_passphrase(),
        root_key,
        root_key_file: file,
        account_id: account.to_string(),
        kms_instance_id: instance.to_string(),
        default_key_id: key.to_string(),
        settings,
    })
}

fn passphrase(app: &App, new: Option<PathBuf>, remove: bool) -> Outcome {
    let region = app.region()?;
    let config: &Config = app.config();
    if remove {
        let path = region::remove_passphrase(&region, config)?;
        app.output().note(format!("the passphrase is gone; the root key is in {}", path.display()));
    } else {
        let new = new.map_or(NewPassphrase::Terminal, NewPassphrase::File);
        region::set_passphrase(&region, config, &new)?;
        app.output().note(format!("the passphrase of region {} is set", region.name()));
        let kept = config.root_key_path(region.id());
        if kept.exists() {
            app.output().note(format!(
                "the root key also lies in {}, which is no longer used: keep it elsewhere, or delete it",
                kept.display()
            ));
        }
    }
    if app.output().is_json() { show(app, &Region::open(region.dir(), config)?) } else { Ok(()) }
}

fn parse_setting(text: &str) -> Result<(Setting, bool), String> {
    let (name, value) = text.split_once('=').ok_or("write K=V, as encrypt_by_default=false")?;
    let setting = name.parse().map_err(|known| format!("no setting {name:?}; {known}"))?;
    match value {
        "true" | "yes" | "on" | "1" => Ok((setting, true)),
        "false" | "no" | "off" | "0" => Ok((setting, false)),
        _ => Err(format!("{name} is true or false, not {value:?}")),
    }
}
