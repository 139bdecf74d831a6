//! `terrane bin …`

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;

use super::{App, Failure, Outcome};
use crate::catalog::{BIN_DAYS_MAX, BinKind, BinRule, CatalogError, Tag, check_tags};
use crate::ids::BinRuleId;
use crate::region::Region;

/// Commands on the rules of the recycle bin. RULE is an id or the beginning of one.
#[derive(Subcommand)]
pub enum Command {
    /// Let what is deleted from now on wait in the bin, and print the rule's id
    Add {
        /// What: snapshot
        #[arg(long, value_name = "snapshot", value_parser = parse_kind)]
        kind: BinKind,
        /// Only what has this tag, K=V; of several, all of them
        #[arg(long = "tag", value_name = "K=V")]
        tags: Vec<Tag>,
        /// How many days; where several rules apply, the most of them
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(BIN_DAYS_MAX)))]
        days: u32,
    },
    /// List the region's rules
    List,
    /// Take a rule away; what is in the bin by it stays as long as was said
    Delete {
        /// The rule
        rule: String,
    },
}

#[derive(Serialize)]
struct Shown {
    id: String,
    kind: BinKind,
    tags: Vec<Tag>,
    days: u32,
    account_id: String,
    created_at: String,
}

pub(super) fn run(command: Command, app: &App) -> Outcome {
    let region = app.region()?;
    match command {
        Command::Add { kind, tags, days } => {
            check_tags(&tags).map_err(|e| Failure::usage(e.to_string()))?;
            let account = app.account(&mut region.catalog()?)?.id;
            let rule = BinRule { id: BinRuleId::random(), account, kind, days, created_at: region.now() };
            region.catalog()?.write(|tx| tx.insert_bin_rule(&rule, &tags))?;
            app.output().id(rule.id)
        }
        Command::List => {
            let columns = ["id", "kind", "tags", "days", "created at"];
            app.output().list(&rules(&region)?, &columns, |rule| {
                let tags: Vec<_> = rule.tags.iter().map(|tag| format!("{}={}", tag.key, tag.value)).collect();
                let tags = if tags.is_empty() { "any".into() } else { tags.join(", ") };
                vec![
                    rule.id.clone(),
                    rule.kind.to_string(),
                    tags,
                    rule.days.to_string(),
                    rule.created_at.clone(),
                ]
            })
        }
        Command::Delete { rule } => Ok(region.catalog()?.write(|tx| {
            // By its whole id also one that does not read, which keeps everything from being deleted.
            let id = rule.parse().or_else(|_| Ok::<_, CatalogError>(tx.resolve_bin_rule(&rule)?.id))?;
            tx.delete_bin_rule(id)
        })?),
    }
}

fn rules(region: &Region) -> Result<Vec<Shown>> {
    Ok(region.catalog()?.read(|tx| -> Result<_, CatalogError> {
        let shown = |rule: BinRule| {
            Ok(Shown {
                id: rule.id.to_string(),
                kind: rule.kind,
                tags: tx.tags(&rule.id.to_string())?,
                days: rule.days,
                account_id: rule.account.to_string(),
                created_at: rule.created_at.to_string(),
            })
        };
        tx.bin_rules()?.into_iter().map(shown).collect()
    })?)
}

fn parse_kind(text: &str) -> Result<BinKind, String> {
    text.parse()
        .map_err(|_| "only snapshots have a bin, --kind snapshot: anything else is deleted at once".into())
}
