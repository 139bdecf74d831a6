//! The commands' side of the process that owns the region's layers: orders to it, what it says of itself, what is attached of it.

use std::time::Duration;

use anyhow::Result;

use super::Failure;
use super::exit::Exit;
use crate::control::ControlError;
use crate::fuse::{self, Life};
use crate::region::Region;
use crate::sys::loopdev;
use crate::sys::mount::MountedAt;
use crate::volume::{self, Answer, HostError, HostState, LayersLock, Order, Owner, SnapshotItem, Waits};

/// What a mount may take to say that it is there.
pub const MOUNT_TIME: Duration = Duration::from_secs(10);

/// Has an order carried out, with the patience of a command.
pub fn perform(region: Region, order: &Order) -> Result<()> {
    Ok(volume::perform(region, order, Waits::COMMAND)?)
}

/// The same for a process that nobody looks at. What was synced on an attached volume is flushed before its snapshot.
pub fn carry_out_unseen(region: Region, order: &Order) -> Result<(), HostError> {
    if let Order::Snapshot { items, .. } = order
        && let Ok(Some(state)) = mounted(&region)
    {
        flush_loops(&state, items, |words| tracing::warn!("{words}"));
    }
    volume::perform(region, order, Waits::BACKGROUND)
}

/// What was synced on an attached volume lies in the loop device's pages until it is flushed.
pub fn flush_loops(state: &HostState, items: &[SnapshotItem], mut tell: impl FnMut(String)) {
    for item in items {
        for device in loops_over(state, "volumes", &item.volume) {
            if let Err(e) = loopdev::flush(&device.device) {
                let device = device.device.display();
                tell(format!(
                    "{device} could not be flushed ({e}): the snapshot may lack what was last written to it"
                ));
            }
        }
    }
}

/// What a read-write mount of the region says of itself; none: there is no such mount.
pub fn mounted(region: &Region) -> Result<Option<HostState>> {
    match LayersLock::take(region, None)? {
        Ok(_) => Ok(None),
        Err(Owner { mount_point: None, .. }) => Ok(None),
        Err(Owner { mount_point: Some(_), .. }) => {
            match volume::ask(region, &Order::Status, Duration::from_secs(10)) {
                Ok(Answer::Status(state)) => Ok(Some(state)),
                Ok(_) | Err(ControlError::NotRunning) => Ok(None),
                Err(e) => Err(e.into()),
            }
        }
    }
}

/// Loop devices over a file of the mount.
pub fn loops_over(state: &HostState, shelf: &str, id: &str) -> Vec<loopdev::LoopDevice> {
    let file = std::path::Path::new(&state.mount_point).join(shelf).join(id);
    loopdev::backed_by(&file).unwrap_or_default()
}

/// Refuses what can't be done to a disk while it is attached, in any mount of the region. A loop device is named, where
/// the kernel's own opening would show a meaningless process.
pub fn refuse_attached(region: &Region, shelf: &str, id: &str, what: &str) -> Result<()> {
    let ours = |at: &MountedAt| at.source == region.dir().as_os_str();
    for at in fuse::mounts()?.iter().filter(|at| ours(at)) {
        let file = at.path.join(shelf).join(id);
        match fuse::life(&at.path, MOUNT_TIME) {
            Life::Live => {}
            Life::Dead => continue,
            Life::Silent => {
                let message =
                    format!("{what} may be in use: the mount at {} does not answer", at.path.display());
                let hint = Some("let its server go on (`terrane status` names it), or end it".into());
                return Err(Failure { exit: Exit::InUse, message, hint }.into());
            }
        }
        if let Some(device) = loopdev::backed_by(&file).unwrap_or_default().first() {
            let device = device.device.display();
            return Err(Failure {
                exit: Exit::InUse,
                message: format!("{what} is attached as {device}"),
                hint: Some(format!("unmount what is on it, then: terrane detach {device}")),
            }
            .into());
        }
    }
    Ok(())
}
