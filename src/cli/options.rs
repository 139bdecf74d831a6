//! Options that several commands take alike.

use anyhow::Result;
use clap::Args;

use super::Failure;
use crate::catalog::{Tag, check_tags};
use crate::copy::KeyChoice;

/// Under which key something new is to be.
#[derive(Args)]
pub struct KeyArgs {
    /// The key that encrypts it, of the region it is made in
    #[arg(long, conflicts_with_all = ["encrypt", "unencrypted"])]
    key: Option<String>,
    /// Encrypt it under that region's default key
    #[arg(long, conflicts_with = "unencrypted")]
    encrypt: bool,
    /// Leave it plain; refused where it is made of an encrypted snapshot
    #[arg(long)]
    unencrypted: bool,
}

impl KeyArgs {
    /// What was chosen.
    pub fn choice(&self) -> KeyChoice {
        match (&self.key, self.encrypt, self.unencrypted) {
            (Some(text), _, _) => KeyChoice::Named(text.clone()),
            (None, true, _) => KeyChoice::Default,
            (None, _, true) => KeyChoice::Plain,
            (None, false, false) => KeyChoice::AsSource,
        }
    }
}

/// What people say of a new snapshot.
#[derive(Args)]
pub struct DetailArgs {
    /// Free words, 2 to 256 characters
    #[arg(long, value_parser = parse_description)]
    pub description: Option<String>,
    /// A tag, K=V; up to 20, each key once. A copy has none of its source's
    #[arg(long = "tag", value_name = "K=V")]
    tags: Vec<Tag>,
    /// Days after which `terrane daemon` deletes it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub retention_days: Option<u32>,
}

impl DetailArgs {
    /// The tags; as many, and each as often, as a resource may have them.
    pub fn tags(&self) -> Result<&[Tag]> {
        checked_tags(&self.tags)
    }
}

/// Tags as they were given, if a resource may have all of them.
pub fn checked_tags(tags: &[Tag]) -> Result<&[Tag]> {
    check_tags(tags).map_err(|e| Failure::usage(e.to_string()))?;
    Ok(tags)
}

/// Tags that are given and taken away, if that can be both at once.
pub fn checked_changes<'t>(given: &'t [Tag], removed: &[String]) -> Result<&'t [Tag]> {
    if let Some(tag) = given.iter().find(|tag| removed.contains(&tag.key)) {
        return Err(Failure::usage(format!("the tag {:?} can't be both given and removed", tag.key)));
    }
    checked_tags(given)
}

/// Tags for people.
pub fn tags_text(tags: &[Tag]) -> String {
    let tags: Vec<String> = tags.iter().map(|t| format!("{}={}", t.key, t.value)).collect();
    tags.join(", ")
}

/// Free words: 2 to 256 characters.
pub fn parse_description(text: &str) -> Result<String, String> {
    crate::catalog::check_description(text).map_err(|e| e.to_string())?;
    Ok(text.to_owned())
}
