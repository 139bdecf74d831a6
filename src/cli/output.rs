//! What is printed and where: results to stdout, as tables or JSON; notes to stderr.

use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};

use anyhow::{Context, Result};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::json;

use super::Format;

/// Where results and notes go.
pub struct Output {
    format: Format,
    quiet: bool,
}

impl Output {
    /// In this format; `quiet` leaves notes out.
    pub fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet }
    }

    /// Whether results are JSON.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether notes and progress are left out.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Things in rows: a table with these columns, or a JSON array.
    pub fn list<T: Serialize>(
        &self,
        things: &[T],
        columns: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<()> {
        if self.is_json() {
            return emit(&format!("{}\n", printable_json(&serde_json::to_string_pretty(things)?)));
        }
        let mut table = plain_table();
        table.set_header(columns.iter().map(|column| column.to_uppercase()));
        for thing in things {
            table.add_row(row(thing).iter().map(|cell| printable(cell)));
        }
        emit_table(&mut table)
    }

    /// One thing: lines of a field and its value, or a JSON object.
    pub fn object<T: Serialize>(
        &self,
        thing: &T,
        fields: impl FnOnce(&T) -> Vec<(&'static str, String)>,
    ) -> Result<()> {
        if self.is_json() {
            return emit(&format!("{}\n", printable_json(&serde_json::to_string_pretty(thing)?)));
        }
        let mut table = plain_table();
        for (field, value) in fields(thing) {
            table.add_row([field.to_owned(), printable(&value)]);
        }
        emit_table(&mut table)
    }

    /// The id of something made: alone on a line, or `{"id":…}`.
    pub fn id(&self, id: impl Display) -> Result<()> {
        match self.format {
            Format::Json => emit(&format!("{}\n", json!({ "id": id.to_string() }))),
            Format::Table => emit(&format!("{id}\n")),
        }
    }

    /// One thing as a line of JSON.
    pub fn json_line<T: Serialize>(&self, thing: &T) -> Result<()> {
        emit(&format!("{}\n", printable_json(&serde_json::to_string(thing)?)))
    }

    /// A line of text to stdout, whatever the format.
    pub fn line(&self, text: impl Display) -> Result<()> {
        emit(&format!("{}\n", printable(&text.to_string())))
    }

    /// A sentence for people, on stderr, unless they asked for quiet.
    pub fn note(&self, text: impl Display) {
        if !self.quiet {
            eprintln!("{}", printable(&text.to_string()));
        }
    }
}

/// Text with everything that could steer a terminal shown and not done. Line ends stay.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match steers(c) {
            true => drop(write!(shown, "\\u{{{:x}}}", u32::from(c))),
            false => shown.push(c),
        }
    }
    shown
}

/// JSON for a terminal: the same characters in JSON's own escapes (they stand in strings alone), so that it means the same.
pub fn printable_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        match steers(c) {
            true => drop(write!(shown, "\\u{:04x}", u32::from(c))),
            false => shown.push(c),
        }
    }
    shown
}

/// Control characters but line ends, and marks that reorder what is read (Trojan Source, CVE-2021-42574).
fn steers(c: char) -> bool {
    let reorders =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && c != '\n') || reorders
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // On a terminal long cells wrap; in a pipe a row is a line.
    let arrangement = if table.is_tty() { ContentArrangement::Dynamic } else { ContentArrangement::Disabled };
    table.set_content_arrangement(arrangement);
    table
}

fn emit_table(table: &mut Table) -> Result<()> {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    if table.is_empty() && table.header().is_none() {
        return Ok(());
    }
    emit(&format!("{}\n", table.trim_fmt()))
}

/// To stdout. A reader that went away (`| head`) is no error; a full disk is.
fn emit(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("the command was carried out, but its result can't be printed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(printable("a\u{202e}b\u{9b}c\r"), "a\\u{202e}b\\u{9b}c\\u{d}");
        assert_eq!(printable("plain é 文\n"), "plain é 文\n");
        let json = serde_json::to_string(&["a\u{1b}\u{9b}\u{202e}\u{7f}é"]).unwrap();
        assert_eq!(printable_json(&json), "[\"a\\u001b\\u009b\\u202e\\u007fé\"]");
    }
}
