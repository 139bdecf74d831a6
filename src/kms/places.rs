//! A version of a CMK lies at two places, its row and its file in `keys/`, so that neither is lost with the other: what is wrong with
//! one, and that one written anew from the other.

use subtle::ConstantTimeEq;

use super::{KmsError, envelope, key_file};
use crate::catalog::{Key, KeyVersion, ReadTx};
use crate::ids::KeyId;
use crate::region::Region;

const CURE: &str = "`terrane region check --repair` writes it anew";

/// What is wrong with a version.
enum Harm {
    /// The row does not open, or is not there; the file has this.
    Row(KeyVersion),
    /// The file does not open, says something else, or is not there; the row has this.
    File(KeyVersion),
    /// Neither opens.
    Both,
    /// Both open, and are not one key.
    Differ,
}

/// What is wrong with the versions of all keys, enabled or not, in sentences.
pub fn check_keys(region: &Region) -> Result<Vec<String>, KmsError> {
    let mut problems = Vec::new();
    for (key, version, harm) in region.catalog()?.read(|tx| harmed(region, tx))? {
        let what = match harm {
            Harm::Row(_) => format!("its row is missing or damaged, its file in keys/ serves: {CURE}"),
            Harm::File(_) => format!("its file in keys/ is missing or damaged, its row serves: {CURE}"),
            Harm::Both => "neither its row nor its file in keys/ opens: what is under it can't be read until that file, as it was, is \
                           there again"
                .into(),
            Harm::Differ => "its row and its file in keys/ hold different keys: the row's counts".into(),
        };
        problems.push(format!("key {key} version {version}: {what}"));
    }
    Ok(problems)
}

/// Writes each place that is harmed anew from the other; what was done, in sentences.
pub fn mend_keys(region: &Region) -> Result<Vec<String>, KmsError> {
    region.catalog()?.write(|tx| {
        let mut done = Vec::new();
        for (key, version, harm) in harmed(region, tx)? {
            let (place, from) = match harm {
                Harm::Row(filed) => {
                    tx.put_key_version(&filed)?;
                    ("its row", "its file in keys/")
                }
                Harm::File(row) => {
                    key_file::replace(region, &row)?;
                    ("its file in keys/", "its row")
                }
                Harm::Both | Harm::Differ => continue,
            };
            done.push(format!("key {key} version {version}: {place} is written anew from {from}"));
        }
        Ok(done)
    })
}

/// All that are not as they should be, at both places.
fn harmed(region: &Region, tx: &ReadTx) -> Result<Vec<(KeyId, u32, Harm)>, KmsError> {
    let files = key_file::list(region)?;
    let mut found = Vec::new();
    for key in tx.keys()? {
        let rows = tx.key_versions(key.id)?;
        for version in versions(&key, &rows, &files) {
            let row = rows.iter().find(|row| row.version == version);
            if let Some(harm) = harm_of(region, key.id, version, row)? {
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
    version: u32,
    row: Option<&KeyVersion>,
) -> Result<Option<Harm>, KmsError> {
    let filed = key_file::read(region, key, version)?;
    let names_itself = filed.as_ref().is_some_and(|filed| filed.names_itself);
    let filed = filed.map(|filed| filed.into_row(region, key, version));
    let open = |version: Option<&KeyVersion>| version.map_or(Ok(None), |v| envelope::open_version(region, v));
    let (row_opens, file_opens) = (open(row)?, open(filed.as_ref())?);
    Ok(match (row, row_opens, filed, file_opens) {
        (Some(_), Some(row), Some(_), Some(filed)) if !bool::from(row.expose().ct_eq(filed.expose())) => {
            Some(Harm::Differ)
        }
        (Some(row), Some(_), Some(filed), Some(_)) => {
            let is_whole = names_itself && filed.created_at == row.created_at;
            (!is_whole).then(|| Harm::File(row.clone()))
        }
        (Some(row), Some(_), ..) => Some(Harm::File(row.clone())),
        (_, None, Some(filed), Some(_)) => Some(Harm::Row(filed)),
        _ => Some(Harm::Both),
    })
}
