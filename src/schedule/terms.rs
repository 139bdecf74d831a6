//! What a schedule was asked: kept in its row, under a MAC, and never changed.

use serde::{Deserialize, Serialize};

use super::cron::Cron;
use super::error::{Result, ScheduleError};
use super::vouch::Voucher;
use super::when::{Every, When};
use crate::catalog::{Schedule, Tag, check_tags};
use crate::copy::KeyChoice;
use crate::ids::{AccountId, Name, RegionId, ScheduleId, VolumeId};
use crate::region::{Config, Region};
use crate::sys::lock_file::LockFile;
use crate::volume::HostError;

/// A schedule's name is a part of those of its snapshots, which have no more than 128 characters.
const NAME_CHARS_MAX: usize = 64;
/// So many regions one schedule copies to.
const COPIES_MAX: usize = 8;

/// What a schedule is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// When.
    pub when: When,
    /// Of which volumes.
    pub what: What,
    /// How many snapshots of a volume stay; none: all.
    pub keep: Option<u32>,
    /// Where copies are made.
    pub copies: Vec<CopyTo>,
}

/// Of which volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Of these.
    Volumes(Vec<VolumeId>),
    /// Of all that have each of these tags when it is due.
    Tagged(Vec<Tag>),
}

/// Copies that are to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyTo {
    /// Where.
    pub region: RegionId,
    /// That region's name, as it was.
    pub region_name: String,
    /// Their owner.
    pub account: AccountId,
    /// Under which key; one that is named is named by its id.
    pub key: KeyChoice,
    /// How many of a volume stay; none: all.
    pub keep: Option<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    every_seconds: Option<i64>,
    cron: Option<String>,
    volumes: Vec<String>,
    tags: Vec<(String, String)>,
    keep: Option<u32>,
    copies: Vec<CopyFields>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CopyFields {
    region_id: String,
    region: String,
    account: String,
    key: String,
    keep: Option<u32>,
}

impl CopyTo {
    /// The key in words: `as source`, `default`, `none`, or its id.
    pub fn key_text(&self) -> &str {
        match &self.key {
            KeyChoice::AsSource => "as source",
            KeyChoice::Default => "default",
            KeyChoice::Plain => "none",
            KeyChoice::Named(key) => key,
        }
    }

    fn of_fields(fields: CopyFields) -> Option<Self> {
        Some(Self {
            region: fields.region_id.parse().ok()?,
            region_name: fields.region,
            account: fields.account.parse().ok()?,
            key: match fields.key.as_str() {
                "as source" => KeyChoice::AsSource,
                "default" => KeyChoice::Default,
                "none" => KeyChoice::Plain,
                key => KeyChoice::Named(key.parse::<crate::ids::KeyId>().ok()?.to_string()),
            },
            keep: fields.keep,
        })
    }
}

impl Terms {
    fn to_text(&self) -> String {
        let (volumes, tags) = match &self.what {
            What::Volumes(ids) => (ids.iter().map(VolumeId::to_string).collect(), Vec::new()),
            What::Tagged(tags) => {
                (Vec::new(), tags.iter().map(|tag| (tag.key.clone(), tag.value.clone())).collect())
            }
        };
        let copy = |to: &CopyTo| CopyFields {
            region_id: to.region.to_string(),
            region: to.region_name.clone(),
            account: to.account.to_string(),
            key: to.key_text().to_owned(),
            keep: to.keep,
        };
        let fields = Fields {
            every_seconds: if let When::Every(every) = &self.when { Some(every.seconds()) } else { None },
            cron: if let When::Cron(cron) = &self.when { Some(cron.to_string()) } else { None },
            volumes,
            tags,
            keep: self.keep,
            copies: self.copies.iter().map(copy).collect(),
        };
        serde_json::to_string(&fields).unwrap_or_default()
    }

    /// What a schedule's row asks. It may not be what was asked: [`Terms::checked`] tells.
    pub fn of_row(row: &Schedule) -> Result<Self> {
        let bad = || unvouched(row, "what it is to do can't be read");
        let fields: Fields = serde_json::from_str(&row.detail).map_err(|_| bad())?;
        Self::of_fields(fields).ok_or_else(bad)
    }

    fn of_fields(fields: Fields) -> Option<Self> {
        let when = match (fields.every_seconds, fields.cron) {
            (Some(seconds), None) => When::Every(Every::of_seconds(seconds)?),
            (None, Some(text)) => When::Cron(text.parse::<Cron>().ok()?),
            _ => return None,
        };
        let tags = fields.tags.into_iter().map(|(key, value)| Tag { key, value }).collect::<Vec<_>>();
        let volumes = fields.volumes.iter().map(|id| id.parse().ok()).collect::<Option<Vec<_>>>()?;
        let what = match (volumes.is_empty(), tags.is_empty()) {
            (false, true) => What::Volumes(volumes),
            (true, false) => What::Tagged(tags),
            _ => return None,
        };
        let copies = fields.copies.into_iter().map(CopyTo::of_fields).collect::<Option<Vec<_>>>()?;
        // None of zero: that would keep nothing.
        let keeps_some = copies.iter().map(|to| to.keep).chain([fields.keep]).all(|keep| keep != Some(0));
        keeps_some.then_some(Self { when, what, keep: fields.keep, copies })
    }

    /// What a schedule's row asks, if that is what was asked.
    pub(super) fn checked(row: &Schedule, voucher: &Voucher) -> Result<Self> {
        match row.mac.is_some() && row.mac == voucher.schedule(row) {
            true => Self::of_row(row),
            false => Err(unvouched(row, "its row is not what was asked")),
        }
    }
}

pub(super) fn unvouched(row: &Schedule, why: &str) -> ScheduleError {
    HostError::unvouched(format!("schedule {}", row.name), why).into()
}

/// Makes a schedule: from now on it is due as its terms say.
pub fn create(region: &Region, account: AccountId, name: Name, terms: &Terms) -> Result<ScheduleId> {
    if name.as_str().len() > NAME_CHARS_MAX {
        return Err(ScheduleError::refused(
            format!(
                "the name {name} is too long for a schedule, which has at most {NAME_CHARS_MAX} characters"
            ),
            "its name is a part of those of its snapshots: choose a shorter one",
        ));
    }
    check(region, terms)?;
    let row = Schedule {
        id: ScheduleId::random(),
        account,
        name,
        detail: terms.to_text(),
        mac: None,
        // As the catalog keeps it.
        created_at: jiff::Timestamp::from_microsecond(region.now().as_microsecond()).unwrap_or_default(),
        last_due: None,
        last_run_at: None,
        error: None,
        error_at: None,
    };
    let row = Schedule { mac: Voucher::of(region)?.schedule(&row), ..row };
    region.catalog()?.write(|tx| tx.insert_schedule(&row))?;
    Ok(row.id)
}

/// Refuses what could never be done.
fn check(region: &Region, terms: &Terms) -> Result<()> {
    if let What::Tagged(tags) = &terms.what {
        check_tags(tags)?;
    }
    if terms.copies.len() > COPIES_MAX {
        let message = format!("a schedule copies to at most {COPIES_MAX} regions");
        return Err(ScheduleError::refused(message, "make a second schedule"));
    }
    for (n, to) in terms.copies.iter().enumerate() {
        if terms.copies[..n].iter().any(|other| other.region == to.region) {
            let message = format!("region {} is named twice", to.region_name);
            return Err(ScheduleError::refused(message, "name each region once"));
        }
        if to.region == region.id() && !matches!(to.key, KeyChoice::Named(_)) {
            return Err(ScheduleError::refused(
                format!("a copy within region {} would be the same again", region.name()),
                "name another key of the region for it: --key KEY",
            ));
        }
    }
    Ok(())
}

/// Takes a schedule away, once nobody carries it out any more. Its snapshots and copies stay, and expire no more.
pub fn delete(region: &Region, id: ScheduleId, config: &Config) -> Result<()> {
    let row = region.catalog()?.read(|tx| tx.find_schedule(id));
    let _lock = LockFile::take(&lock_path(region, id)).map_err(lock_error(region, id))?.ok_or_else(|| {
        HostError::InUse { what: format!("schedule {id}"), by: "a daemon that carries it out".into() }
    })?;
    region.catalog()?.write(|tx| tx.delete_schedule(id))?;
    // Of no worth any more; where a region is away they stay, and nobody asks for them.
    let terms = row.ok().flatten().and_then(|row| Terms::of_row(&row).ok());
    for to in terms.iter().flat_map(|terms| &terms.copies) {
        let forgotten = Region::choose(Some(&to.region.to_string()), config)
            .and_then(|target| Ok(target.catalog()?.write(|tx| tx.forget_scheduled_copies(id))?));
        if let Err(error) = forgotten {
            tracing::debug!(region = to.region_name, %error, "what was known of a schedule's copies stays");
        }
    }
    Ok(())
}

/// Who holds it carries the schedule out.
pub(super) fn lock_path(region: &Region, id: ScheduleId) -> std::path::PathBuf {
    region.run_dir().join(format!("{id}.lock"))
}

pub(super) fn lock_error(region: &Region, id: ScheduleId) -> impl FnOnce(std::io::Error) -> ScheduleError {
    let of_host = HostError::io("locking a schedule by", &lock_path(region, id));
    move |source| of_host(source).into()
}
