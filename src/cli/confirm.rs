//! Asking before what can't be taken back.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, Result};

use super::Failure;
use super::output::printable;

/// Says what will be done, and goes on only with a yes.
pub(super) fn confirm(what: &str, yes: bool) -> Result<()> {
    eprintln!("{}", printable(what));
    if yes {
        return Ok(());
    }
    let refused = |message| Failure::refused(message, "`--yes` does what is said above");
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(refused("nothing was changed: there is no terminal to ask on"));
    }
    eprint!("do it? [y/N] ");
    io::stderr().flush().context("asking")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("reading the answer")?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(refused("nothing was changed")),
    }
}
