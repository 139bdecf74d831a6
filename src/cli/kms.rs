//! `terrane kms …`: whether encrypted copies may come into a region.

use clap::Subcommand;
use serde::Serialize;

use super::{App, Outcome};
use crate::catalog::Setting;
use crate::region::RegionError;

/// Commands on a region's KMS. Each may be given again.
#[derive(Subcommand)]
pub enum Command {
    /// Let the KMS serve encrypted copies
    Enable,
    /// Refuse encrypted copies into the region; what is encrypted already can be read and written
    Disable,
    /// Let the storage service use the KMS, as it may from `region init` on
    Authorize,
    /// Take that grant back: encrypted copies into the region are refused
    Revoke,
}

#[derive(Serialize)]
struct Shown {
    region_id: String,
    kms_instance_id: String,
    kms_enabled: bool,
    storage_authorized: bool,
}

pub(super) fn run(command: &Command, app: &App) -> Outcome {
    let (setting, on) = match command {
        Command::Enable => (Setting::KmsEnabled, true),
        Command::Disable => (Setting::KmsEnabled, false),
        Command::Authorize => (Setting::StorageAuthorized, true),
        Command::Revoke => (Setting::StorageAuthorized, false),
    };
    let region = app.region()?;
    let name = region.name();
    let shown = region.catalog()?.write(|tx| {
        tx.set_flag(setting, on)?;
        Ok::<_, RegionError>(Shown {
            region_id: region.id().to_string(),
            kms_instance_id: tx.default_instance()?.id.to_string(),
            kms_enabled: tx.flag(Setting::KmsEnabled)?,
            storage_authorized: tx.flag(Setting::StorageAuthorized)?,
        })
    })?;
    app.output().note(match command {
        Command::Enable => format!("the KMS of region {name} is enabled"),
        Command::Disable => {
            format!("the KMS of region {name} is disabled: encrypted copies into it are refused")
        }
        Command::Authorize => format!("the storage of region {name} may use its KMS"),
        Command::Revoke => {
            format!(
                "the storage of region {name} may no longer use its KMS: encrypted copies into it are refused"
            )
        }
    });
    // One is of no use without the other, and nobody thinks of the other.
    match (shown.kms_enabled, shown.storage_authorized) {
        (false, true) if on => app.output().note("it is disabled still: `terrane kms enable`"),
        (true, false) if on => app.output().note("its storage may not use it still: `terrane kms authorize`"),
        _ => {}
    }
    if app.output().is_json() { app.output().object(&shown, |_| Vec::new()) } else { Ok(()) }
}
