//! `terrane attach` and `terrane detach`: a volume, or any file, as a loop device.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::exit::Exit;
use super::{App, Failure, Outcome, owner};
use crate::sys::loopdev::{self, LoopError, LoopOptions};

/// What `attach` takes.
#[derive(Args)]
pub struct AttachArgs {
    /// A volume, or the path of a file in a mount (with a '/')
    #[arg(value_name = "VOLUME|FILE")]
    what: String,
    /// The device's sector size: 4096, or 512 for what insists on it
    #[arg(long, default_value_t = 4096, value_parser = parse_sector_size)]
    sector_size: u32,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
}

fn parse_sector_size(text: &str) -> Result<u32, String> {
    match text {
        "4096" => Ok(4096),
        "512" => Ok(512),
        _ => Err("a sector has 4096 or 512 bytes".into()),
    }
}

/// Attaches, and prints the device.
pub fn attach(args: &AttachArgs, app: &App) -> Outcome {
    let file = file_of(&args.what, app)?;
    if let Some(device) = loopdev::backed_by(&file)?.first() {
        let message = format!("{} is attached as {}", args.what, device.device.display());
        return Err(Failure {
            exit: Exit::InUse,
            message,
            hint: Some("use that device, or detach it first".into()),
        }
        .into());
    }
    // A snapshot's file can't be opened for writing.
    let read_only = args.read_only || file.parent().is_some_and(|p| p.ends_with("snapshots"));
    let device = loopdev::attach(&file, &LoopOptions { sector_bytes: args.sector_size, read_only })?;
    if !device.direct {
        app.output().note("the device goes through the page cache: its file allows no direct I/O");
    }
    match app.output().is_json() {
        true => app.output().line(serde_json::json!({ "device": device.device, "file": device.file })),
        false => app.output().line(device.device.display()),
    }
}

/// Detaches the devices over a volume or file, or a device itself.
pub fn detach(what: &str, app: &App) -> Outcome {
    if what.starts_with("/dev/loop") {
        return Ok(loopdev::detach(Path::new(what))?);
    }
    let devices = loopdev::backed_by(&file_of(what, app)?)?;
    if devices.is_empty() {
        let message = format!("{what} is not attached");
        return Err(Failure { exit: Exit::NotFound, message, hint: None }.into());
    }
    for device in devices {
        loopdev::detach(&device.device)?;
    }
    Ok(())
}

fn file_of(what: &str, app: &App) -> Result<PathBuf> {
    if what.contains('/') {
        return std::fs::canonicalize(what).with_context(|| what.to_owned());
    }
    let region = app.region()?;
    let volume = region.catalog()?.read(|tx| tx.resolve_volume(what))?;
    match owner::mounted(&region)? {
        Some(state) => Ok(Path::new(&state.mount_point).join("volumes").join(volume.id.to_string())),
        None => Err(Failure::refused(
            format!("region {} is not mounted", region.name()),
            "mount it first: terrane mount DIRECTORY",
        )),
    }
}

/// The exit number of what a loop device could not do.
pub(super) fn exit_of(error: &LoopError) -> Exit {
    match error {
        LoopError::NeedsRoot(_) => Exit::Refused,
        LoopError::InUse(_) => Exit::InUse,
        LoopError::NotAttached(_) => Exit::NotFound,
        LoopError::NoDriver(_) | LoopError::LastWrites { .. } => Exit::Other,
        LoopError::Io { source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => Exit::NotFound,
            std::io::ErrorKind::PermissionDenied => Exit::Refused,
            _ => Exit::Other,
        },
    }
}
