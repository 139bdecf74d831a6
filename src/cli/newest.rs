//! What `terrane status` says of the newest copy of each volume.

use jiff::Timestamp;
use serde::Serialize;

use crate::copy::{Copies, CopyError, Newest, newest_copies};
use crate::region::Region;

/// A volume and its newest copy; nothing of that where no other region has one.
#[derive(Serialize)]
pub struct ShownNewest {
    volume_id: String,
    volume: Option<String>,
    region: Option<String>,
    snapshot_id: Option<String>,
    snapshot: Option<String>,
    taken_at: Option<String>,
    age_seconds: Option<u64>,
}

/// A region whose copies were not looked at.
#[derive(Serialize)]
pub struct LeftOut {
    /// Its name.
    pub region: String,
    /// Why.
    pub why: String,
}

/// The newest copies of a region's volumes, and how old they are by its clock.
pub fn of_region(region: &Region, copies: &[Copies]) -> Result<Vec<ShownNewest>, CopyError> {
    let now = region.now();
    Ok(newest_copies(region, copies)?.into_iter().map(|newest| shown(newest, now)).collect())
}

fn shown(newest: Newest, now: Timestamp) -> ShownNewest {
    let (volume_id, volume) = (newest.volume.to_string(), newest.name.map(|name| name.to_string()));
    let copy = newest.copy.as_ref();
    ShownNewest {
        volume_id,
        volume,
        region: copy.map(|copy| copy.region.clone()),
        snapshot_id: copy.map(|copy| copy.snapshot.to_string()),
        snapshot: copy.map(|copy| copy.name.to_string()),
        taken_at: copy.map(|copy| copy.taken_at.to_string()),
        age_seconds: copy.map(|copy| now.duration_since(copy.taken_at).as_secs().max(0).unsigned_abs()),
    }
}

/// One line a volume.
pub fn text(newest: &[ShownNewest]) -> String {
    let line = |one: &ShownNewest| {
        let volume = one.volume.as_ref().unwrap_or(&one.volume_id);
        match (&one.region, &one.snapshot, one.age_seconds) {
            (Some(region), Some(snapshot), Some(age)) => {
                format!("{volume}: {} old, {region}/{snapshot}", age_text(age))
            }
            _ => format!("{volume}: none"),
        }
    };
    newest.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The largest unit, and the next where that is small.
fn age_text(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        (1..10, _, _) => format!("{days} d {} h", hours % 24),
        _ => format!("{days} d"),
    }
}

#[cfg(test)]
mod tests {
    use super::age_text;

    #[test]
    fn ages_are_in_the_units_that_tell() {
        let cases = [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3599, "59 min"),
            (3600, "1 h 0 min"),
            (86399, "23 h 59 min"),
            (86400, "1 d 0 h"),
            (10 * 86400 - 1, "9 d 23 h"),
            (10 * 86400, "10 d"),
            (400 * 86400, "400 d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(age_text(seconds), text);
        }
    }
}
