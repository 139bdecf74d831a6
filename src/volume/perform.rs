//! Has an order carried out by whoever owns the region's layers: the mount, over its socket, else this process, which then does it.

use std::time::{Duration, Instant};

use super::host::Host;
use super::host_error::{HostError, Result};
use super::litter::remove_litter;
use super::order::{Answer, Order};
use super::owner::LayersLock;
use crate::control::{self, ControlError};
use crate::region::Region;

/// The name of a mount's socket in `run/`.
pub const SOCKET: &str = "mount.sock";
/// The same as [`Waits::folding`], where layers are damaged.
const FAILING_TIME: Duration = Duration::from_millis(500);
/// A mount has just ended, or is not there yet.
const BETWEEN: Duration = Duration::from_millis(50);

/// How long an order waits, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// For other commands, which hold the layers briefly.
    pub layers: Duration,
    /// For a mount that carries it out.
    pub answer: Duration,
    /// Without a mount, for the folding of what it has freed; others may be waiting for the layers.
    pub folding: Duration,
}

impl Waits {
    /// Of a command.
    pub const COMMAND: Self = Self {
        layers: Duration::from_secs(120),
        answer: Duration::from_secs(600),
        folding: Duration::from_secs(5),
    };
    /// Of a process in the background, which comes again.
    pub const BACKGROUND: Self = Self {
        layers: Duration::from_secs(10),
        answer: Duration::from_secs(30),
        folding: Duration::from_secs(5),
    };
}

/// Has an order carried out. What a mount answers of a failure is [`HostError::Answered`].
pub fn perform(region: Region, order: &Order, waits: Waits) -> Result<()> {
    perform_all(region, std::slice::from_ref(order), waits)?.into_iter().collect()
}

/// Has orders carried out one after another, and what became of each; one that fails is no end of the others. Where the layers' owner can't be
/// reached any more the last result says why, and those behind it were not given: what is known of the others is. An error: of none anything
/// is known.
pub fn perform_all(region: Region, orders: &[Order], waits: Waits) -> Result<Vec<Result<()>>> {
    let mut done = Vec::with_capacity(orders.len());
    while let Some(order) = orders.get(done.len()) {
        let asked = match LayersLock::take_or_mount(&region, waits.layers) {
            Ok(Ok(lock)) => {
                let rest = carry_out(region, lock, &orders[done.len()..], waits.folding);
                return known(done, rest);
            }
            Ok(Err(_)) => ask(&region, order, waits.answer).map_err(HostError::from),
            Err(e) => Err(e),
        };
        match asked {
            Ok(Answer::Failed { exit, message, hint }) => {
                done.push(Err(HostError::Answered { exit, message, hint }));
            }
            Ok(_) => done.push(Ok(())),
            // Look again who owns the layers.
            Err(HostError::Control(ControlError::NotRunning)) => std::thread::sleep(BETWEEN),
            Err(e) => return known(done, Err(e)),
        }
    }
    Ok(done)
}

/// What became of the first orders, and of the rest.
fn known(mut done: Vec<Result<()>>, rest: Result<Vec<Result<()>>>) -> Result<Vec<Result<()>>> {
    match rest {
        Err(e) if done.is_empty() => return Err(e),
        Err(e) => done.push(Err(e)),
        Ok(rest) => done.extend(rest),
    }
    Ok(done)
}

/// Asks the mount that owns the layers.
pub fn ask(region: &Region, order: &Order, time: Duration) -> Result<Answer, ControlError> {
    control::call(&region.run_dir(), SOCKET, order, time)
}

fn carry_out(
    region: Region,
    lock: LayersLock,
    orders: &[Order],
    folding: Duration,
) -> Result<Vec<Result<()>>> {
    remove_litter(&region)?;
    let host = Host::new(region, Some(lock));
    let done: Vec<_> = orders.iter().map(|order| host.execute(order, false)).collect();
    if orders.iter().zip(&done).any(|(order, done)| done.is_ok() && order.may_free_layers()) {
        let since = Instant::now();
        // What is left is folded by the next such command, or the next mount; it has said why in the log.
        let _ = host.fold(false, &mut |fold| {
            let time = if fold.failures == 0 { folding } else { FAILING_TIME.min(folding) };
            fold.gives_back || since.elapsed() < time
        });
    }
    match host.close() {
        Err(error) if done.iter().all(Result::is_ok) => Err(error),
        _ => Ok(done),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::region::{Config, scratch};

    /// A mount that answers twice, and then not in time.
    #[test]
    fn what_is_known_is_told_though_a_later_order_has_no_answer() {
        let (dir, region) = scratch();
        let config = Config::at(&dir.path().join("config")).unwrap();
        let _lock = LayersLock::take(&region, Some(Path::new("/mnt"))).unwrap().unwrap();
        let server = control::serve(&region.run_dir(), SOCKET, |order: Order| match order {
            Order::PurgeSnapshot { snapshot } if snapshot == "bad" => {
                Answer::Failed { exit: 4, message: "no".into(), hint: None }
            }
            Order::PurgeSnapshot { snapshot } if snapshot == "slow" => {
                std::thread::sleep(Duration::from_secs(2));
                Answer::Done
            }
            _ => Answer::Done,
        });
        let _server = server.unwrap();
        let waits = Waits { answer: Duration::from_millis(500), ..Waits::COMMAND };
        let perform = |ids: &[&str]| {
            let order = |id: &&str| Order::PurgeSnapshot { snapshot: (*id).into() };
            let orders: Vec<_> = ids.iter().map(order).collect();
            let done = perform_all(Region::open(region.dir(), &config).unwrap(), &orders, waits);
            done.map(|done| {
                done.iter()
                    .map(|done| done.as_ref().map_err(ToString::to_string).copied())
                    .collect::<Vec<_>>()
            })
        };
        let done = perform(&["good", "bad", "slow", "good"]).unwrap();
        assert_eq!(done[..2], [Ok(()), Err("no".into())]);
        assert!(done.len() == 3 && done[2].as_ref().unwrap_err().contains("no answer"), "{done:?}");
        assert!(perform(&["slow", "good"]).is_err());
    }
}
