//! A version of a CMK lies at two places, its row and its file in `keys/`, so that neither is lost with the other: what is wrong with
//! one, and that one written anew from the other.

use subtle::ConstantTimeEq;

use super::key_file::Form;
use super::{KmsError, envelope, key_file};
use crate::catalog::{Key, KeyVersion, ReadTx, WriteTx};
use crate::ids::KeyId;
use crate::region::Region;

const CURE: &str = "`terrane region check --repair` writes it anew";

/// What is wrong with a version.
enum Harm {
    /// The row does not open, or is not there; the file has this.
    Row(KeyVersion),
    /// The file does not open, says something else, or is not there; the row has this.
    File(KeyVersion),
    /// The file says to be of a format to come; the row serves.
    NewerFile,
    /// The file is not read; the row serves.
    UnreadFile,
    /// The row does not open, or is not there, and the file is not read.
    Unread,
    /// Neither opens.
    Both,
    /// A file that does not open, and no row has been seen of it.
    Stray,
    /// Both open, and are not one key.
    Differ,
}

/// What [`mend_keys`] did and could not do, in sentences.
#[derive(Debug, Default)]
pub struct Mended {
    /// What is as it should be again.
    pub done: Vec<String>,
    /// What is as it was.
    pub failed: Vec<String>,
}

/// What is wrong with the versions of all keys, enabled or not, in sentences.
pub fn check_keys(region: &Region) -> Result<Vec<String>, KmsError> {
    let sentence = |(key, version, harm)| {
        let what = match harm {
            Harm::Row(_) => format!("its row is missing or damaged, its file in keys/ serves: {CURE}"),
            Harm::File(_) => format!("its file in keys/ is missing or damaged, its row serves: {CURE}"),
            Harm::NewerFile => format!(
                "its file in keys/ is of a newer format, and is left as it is; its row serves. Where no newer version wrote it, move it \
                 away: {CURE}"
            ),
            Harm::UnreadFile => format!(
                "its file in keys/ can't be read (it is open to others, not ours, or no file), and is left as it is; its row serves. \
                 Move it away: {CURE}"
            ),
            Harm::Unread => "its row is missing or damaged, and its file in keys/ can't be read: make it a file of yours that nobody else may \
                             read or write"
                .into(),
            Harm::Both => "neither its row nor its file in keys/ opens: what is under it can't be read until that file, as it was, is \
                           there again"
                .into(),
            Harm::Stray => "its file in keys/ does not open, and nothing else is known of it: move it away where it never was a key".into(),
            Harm::Differ => format!(
                "its row and its file in keys/ hold different keys: the row's counts. Where it is the right one, move the file away: {CURE}"
            ),
        };
        format!("key {key} version {version}: {what}")
    };
    Ok(region.catalog()?.read(|tx| harmed(region, tx))?.into_iter().map(sentence).collect())
}

/// Writes each place that is harmed anew from the other. One that can't be written keeps no other from it.
pub fn mend_keys(region: &Region) -> Result<Mended, KmsError> {
    // Asks for a passphrase, perhaps: not while others wait for the catalog.
    region.root_key()?;
    let mut mended = Mended::default();
    // A row that was written anew shows what is wrong with its file.
    for _ in 0..2 {
        if region.catalog()?.read(|tx| harmed(region, tx))?.iter().any(|(.., harm)| harm.can_be_mended()) {
            region.catalog()?.write(|tx| mend(region, tx, &mut mended))?;
        }
    }
    Ok(mended)
}

fn mend(region: &Region, tx: &WriteTx, mended: &mut Mended) -> Result<(), KmsError> {
    for (key, version, harm) in harmed(region, tx)? {
        let done = match harm {
            Harm::Row(filed) => {
                tx.put_key_version(&filed)?;
                "its row is written anew from its file in keys/"
            }
            Harm::File(row) => match key_file::replace(region, &row) {
                Ok(()) => "its file in keys/ is written anew from its row",
                Err(error) => {
                    let failed =
                        format!("key {key} version {version}: its file can't be written anew: {error}");
                    if !mended.failed.contains(&failed) {
                        mended.failed.push(failed);
                    }
                    continue;
                }
            },
            _ => continue,
        };
        mended.done.push(format!("key {key} version {version}: {done}"));
    }
    Ok(())
}

impl Harm {
    fn can_be_mended(&self) -> bool {
        matches!(self, Self::Row(_) | Self::File(_))
    }
}

/// All that are not as they should be, at both places.
fn harmed(region: &Region, tx: &ReadTx) -> Result<Vec<(KeyId, u32, Harm)>, KmsError> {
    let files = key_file::list(region)?;
    let mut found = Vec::new();
    for key in tx.keys()? {
        let rows = tx.key_versions(key.id)?;
        for version in versions(&key, &rows, &files) {
            let row = rows.iter().find(|row| row.version == version);
            if let Some(harm) = harm_of(region, key.id, (version, version == key.current_version), row)? {
                found.push((key.id, version, harm));
            }
        }
    }
    Ok(found)
}

/// The current one, those that have a row, and those that have a file. A cut amid a rotation leaves the file of one that is still to come.
fn versions(key: &Key, rows: &[KeyVersion], files: &[key_file::Entry]) -> Vec<u32> {
    let filed = files.iter().filter_map(|file| file.named).filter(|(id, _)| *id == key.id).map(|(_, n)| n);
    let filed = filed.filter(|version| *version <= key.current_version);
    let mut all: Vec<_> =
        rows.iter().map(|row| row.version).chain(filed).chain([key.current_version]).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn harm_of(
    region: &Region,
    key: KeyId,
    (version, is_current): (u32, bool),
    row: Option<&KeyVersion>,
) -> Result<Option<Harm>, KmsError> {
    let filed = key_file::read(region, key, version)?;
    let form = filed.as_ref().map(|filed| filed.form);
    let says = filed.as_ref().filter(|filed| filed.form == Form::Whole).and_then(|filed| filed.created_at);
    let filed = filed.map(|filed| filed.into_row(region, key, version));
    let open = |version: Option<&KeyVersion>| version.map_or(Ok(None), |v| envelope::open_version(region, v));
    let (row_opens, file_opens) = (open(row)?, open(filed.as_ref())?);
    Ok(match (row, row_opens, filed, file_opens) {
        (Some(_), Some(row), _, Some(filed)) if !bool::from(row.expose().ct_eq(filed.expose())) => {
            Some(Harm::Differ)
        }
        (Some(_), Some(_), ..) if form == Some(Form::Newer) => Some(Harm::NewerFile),
        (Some(_), Some(_), ..) if form == Some(Form::Unread) => Some(Harm::UnreadFile),
        (Some(row), Some(_), _, Some(_)) if says == Some(row.created_at) => None,
        (Some(row), Some(_), ..) => Some(Harm::File(row.clone())),
        (_, None, Some(filed), Some(_)) => Some(Harm::Row(filed)),
        (_, None, Some(_), None) if form == Some(Form::Unread) => Some(Harm::Unread),
        (None, None, Some(_), None) if !is_current => Some(Harm::Stray),
        _ => Some(Harm::Both),
    })
}
