//! Tags: a key and a value that people give a resource.

use rusqlite::params;

use super::{CatalogError, ReadTx, WriteTx};

/// Tags a resource may have.
pub const TAGS_MAX: usize = 20;
const KEY_CHARS_MAX: usize = 128;
const VALUE_CHARS_MAX: usize = 256;

/// One tag.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Tag {
    /// 1 to 128 characters, once a resource.
    pub key: String,
    /// Up to 256 characters.
    pub value: String,
}

impl std::str::FromStr for Tag {
    type Err = String;

    /// `K=V`; the value may hold more `=`, or be empty.
    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("a tag is KEY=VALUE")?;
        let tag = Self { key: key.into(), value: value.into() };
        tag.check().map_err(|error| error.to_string())?;
        Ok(tag)
    }
}

impl Tag {
    fn check(&self) -> Result<(), CatalogError> {
        let refused = |what: &str| Err(CatalogError::Refused { what: what.into() });
        if !(1..=KEY_CHARS_MAX).contains(&self.key.chars().count()) {
            return refused("a tag's key has 1 to 128 characters");
        }
        if self.value.chars().count() > VALUE_CHARS_MAX {
            return refused("a tag's value has at most 256 characters");
        }
        if self.key.chars().chain(self.value.chars()).any(char::is_control) {
            return refused("a tag holds no control characters");
        }
        Ok(())
    }
}

/// Refuses tags that no resource may have together.
pub fn check_tags(tags: &[Tag]) -> Result<(), CatalogError> {
    if tags.len() > TAGS_MAX {
        return Err(CatalogError::Refused { what: format!("a resource has at most {TAGS_MAX} tags") });
    }
    for (n, tag) in tags.iter().enumerate() {
        tag.check()?;
        if tags[..n].iter().any(|other| other.key == tag.key) {
            return Err(CatalogError::Refused { what: format!("the tag {:?} is given twice", tag.key) });
        }
    }
    Ok(())
}

impl ReadTx<'_> {
    /// A resource's tags in order of their keys.
    pub fn tags(&self, resource: &str) -> Result<Vec<Tag>, CatalogError> {
        self.list("SELECT k, v, resource AS id FROM tags WHERE resource = ?1 ORDER BY k", [resource], |f| {
            Ok(Tag { key: f.text("k")?.to_owned(), value: f.text("v")?.to_owned() })
        })
    }
}

impl WriteTx<'_> {
    /// Replaces a resource's tags.
    pub fn set_tags(&self, resource: &str, tags: &[Tag]) -> Result<(), CatalogError> {
        check_tags(tags)?;
        self.delete_tags(resource)?;
        for tag in tags {
            self.execute(
                "INSERT INTO tags (resource, k, v) VALUES (?1, ?2, ?3)",
                params![resource, tag.key, tag.value],
            )?;
        }
        Ok(())
    }

    /// Takes tags away by their keys, then gives these, each new or in place of that of its key.
    pub fn change_tags(&self, resource: &str, removed: &[String], given: &[Tag]) -> Result<(), CatalogError> {
        let mut tags = self.tags(resource)?;
        tags.retain(|tag| !removed.contains(&tag.key) && !given.iter().any(|new| new.key == tag.key));
        tags.extend_from_slice(given);
        self.set_tags(resource, &tags)
    }

    pub(super) fn delete_tags(&self, resource: &str) -> Result<(), CatalogError> {
        self.execute("DELETE FROM tags WHERE resource = ?1", [resource]).map(drop)
    }
}
