use anyhow::Result;

use super::{Failure, Global, Output};
use crate::catalog::{Account, Catalog};
use crate::region::{Config, Region};

/// What a command needs to run: the configuration, the chosen region, and where results go.
pub struct App {
    config: Config,
    output: Output,
    region: Option<String>,
    account: Option<String>,
}

impl App {
    /// From the global options. Opens no region yet.
    pub fn new(global: Global) -> Result<Self> {
        // An empty variable is as good as none.
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Self {
            config: Config::from_env()?,
            output: Output::new(global.output, global.quiet),
            region: given(global.region),
            account: given(global.account),
        })
    }

    /// The regions known here.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where results and notes go.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// What `--region` or `TERRANE_REGION` says.
    pub fn region_text(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// Opens the chosen region.
    pub fn region(&self) -> Result<Region> {
        Ok(Region::choose(self.region_text(), &self.config)?)
    }

    /// Opens the region of this name or directory (as for `--to`).
    pub fn region_named(&self, text: &str) -> Result<Region> {
        Ok(Region::choose(Some(text), &self.config)?)
    }

    /// Opens the region that `REGION/THING` names, cut at the last `/`, or the chosen one for a bare `THING`.
    pub fn region_of_thing<'t>(&self, text: &'t str) -> Result<(Region, &'t str)> {
        match text.rsplit_once('/') {
            None => Ok((self.region()?, text)),
            Some((region, thing)) if !region.is_empty() && !thing.is_empty() => {
                Ok((self.region_named(region)?, thing))
            }
            Some(_) => Err(Failure::usage(format!("{text:?} is not REGION/THING"))),
        }
    }

    /// The account to act as: `--account`, `TERRANE_ACCOUNT`, else the region's default one.
    pub fn account(&self, catalog: &mut Catalog) -> Result<Account> {
        Ok(catalog.read(|tx| match &self.account {
            Some(text) => tx.resolve_account(text),
            None => tx.default_account(),
        })?)
    }
}
