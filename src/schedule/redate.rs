//! Schedules that were made while the clock was ahead of what it shows now: once it is put back they go on from then.

use jiff::Timestamp;

use super::error::Result;
use super::vouch::Voucher;
use crate::catalog::{ReadTx, Schedule, WriteTx};
use crate::region::Region;

/// Schedules made later than a moment.
pub fn made_after(moment: Timestamp, tx: &ReadTx) -> Result<Vec<Schedule>> {
    Ok(tx.schedules()?.into_iter().filter(|row| row.created_at > moment).collect())
}

/// Dates them by this moment. One that nothing vouched for stays so.
pub fn redate(region: &Region, schedules: &[Schedule], tx: &WriteTx, moment: Timestamp) -> Result<()> {
    if schedules.is_empty() {
        return Ok(());
    }
    let voucher = Voucher::of(region)?;
    // As the catalog keeps it.
    let moment = Timestamp::from_microsecond(moment.as_microsecond()).unwrap_or(moment);
    for row in schedules {
        let is_vouched = row.mac.is_some() && row.mac == voucher.schedule(row);
        let redated = Schedule { created_at: moment, ..row.clone() };
        let mac = if is_vouched { voucher.schedule(&redated) } else { row.mac };
        tx.set_schedule_since(row.id, moment, mac)?;
    }
    Ok(())
}
