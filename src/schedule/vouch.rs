//! What rows say of schedules, held against the root key of their region: what decides over deletions is believed of nobody else.

use super::error::Result;
use crate::catalog::{Schedule, ScheduledCopy, ScheduledSnapshot};
use crate::crypto::Prf;
use crate::ids::RegionId;
use crate::region::Region;

/// The MACs of one region.
pub(super) struct Voucher {
    prf: Prf,
    region: RegionId,
}

impl Voucher {
    pub fn of(region: &Region) -> Result<Self> {
        Ok(Self { prf: Prf::derive(region.root_key()?, "terrane catalog"), region: region.id() })
    }

    /// Over texts that hold no zero byte, and numbers.
    fn mac(&self, kind: &str, texts: &[&str], numbers: &[&[u8]]) -> Option<[u8; 16]> {
        let mut text = Vec::new();
        for part in std::iter::once(&kind).chain(texts) {
            text.extend_from_slice(part.as_bytes());
            text.push(0);
        }
        let mut parts: Vec<&[u8]> = vec![&text, &self.region.0];
        parts.extend(numbers);
        Some(self.prf.mac(&parts))
    }

    /// Over all that a schedule was asked, and since when.
    pub fn schedule(&self, row: &Schedule) -> Option<[u8; 16]> {
        let since = row.created_at.as_microsecond().to_le_bytes();
        let (id, account) = (row.id.to_string(), row.account.to_string());
        self.mac("schedule", &[&id, &account, row.name.as_str(), &row.detail], &[&since])
    }

    /// That a snapshot is a schedule's, of this volume and time.
    pub fn snapshot(&self, row: &ScheduledSnapshot) -> Option<[u8; 16]> {
        let [id, schedule, volume] =
            [row.snapshot.to_string(), row.schedule.to_string(), row.volume.to_string()];
        let due = row.due.as_microsecond().to_le_bytes();
        self.mac("schedule snapshot", &[&id, &schedule, &volume, row.name.as_str()], &[&due])
    }

    /// That a copy is a schedule's, of this snapshot, volume and time.
    pub fn copy(&self, row: &ScheduledCopy) -> Option<[u8; 16]> {
        let [id, schedule] = [row.snapshot.to_string(), row.schedule.to_string()];
        let [source, volume] = [row.source.to_string(), row.volume.to_string()];
        let due = row.due.as_microsecond().to_le_bytes();
        self.mac("schedule copy", &[&id, &schedule, &source, &volume], &[&due])
    }
}
