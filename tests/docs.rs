//! Guards against documents that rest on tests which are elsewhere or nowhere, and that lag behind the format.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use terrane::catalog::SCHEMA_VERSION;
use terrane::ids::{
    AccountId, BinRuleId, GroupId, InstanceId, KeyId, ScheduleId, SnapshotId, TaskId, VolumeId,
};

/// A backticked word of so many parts is a test's name. Columns, keys of JSON and settings have fewer.
const PARTS_OF_A_TEST: usize = 5;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => files_below(&entry, found),
            false => found.push(entry),
        }
    }
}

/// Of each function, the files that have one of this name.
fn functions() -> HashMap<String, HashSet<String>> {
    let mut sources = Vec::new();
    ["src", "tests"].iter().for_each(|dir| files_below(&root().join(dir), &mut sources));
    let mut functions: HashMap<String, HashSet<String>> = HashMap::new();
    for source in sources.iter().filter(|path| path.extension().is_some_and(|e| e == "rs")) {
        let file = source.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        for line in fs::read_to_string(source).unwrap().lines() {
            let Some((_, after)) = line.split_once("fn ") else { continue };
            let name = after.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap();
            functions.entry(name.to_owned()).or_default().insert(file.clone());
        }
    }
    functions
}

/// The file that a backticked word names: by its path, also within `src`, or a test by its name alone.
fn file_of(word: &str) -> Option<String> {
    if word.ends_with(".rs") && word.contains('/') {
        let is_whole = ["src/", "tests/", "benches/", "fuzz/"].iter().any(|dir| word.starts_with(dir));
        return Some(if is_whole { word.to_owned() } else { format!("src/{word}") });
    }
    let test = format!("tests/{word}.rs");
    (!word.contains('/') && root().join(&test).is_file()).then_some(test)
}

/// What is wrong with the citations of a line or a table's cell: each test is in the file named before it.
fn wrong_in(text: &str, functions: &HashMap<String, HashSet<String>>) -> Vec<String> {
    let (mut wrong, mut file) = (Vec::new(), None);
    for word in text.split('`').skip(1).step_by(2) {
        if let Some(named) = file_of(word) {
            if !root().join(&named).is_file() {
                wrong.push(format!("there is no {named}"));
            }
            file = Some(named);
            continue;
        }
        let is_name = word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !is_name || word.split('_').count() < PARTS_OF_A_TEST {
            continue;
        }
        match (functions.get(word), &file) {
            (None, _) => wrong.push(format!("there is no {word}")),
            (Some(places), Some(file)) if !places.contains(file) => {
                wrong.push(format!("{word} is not in {file}, but in {places:?}"));
            }
            _ => {}
        }
    }
    wrong
}

#[test]
fn each_test_that_a_document_cites_is_where_it_says() {
    let functions = functions();
    let mut documents = Vec::new();
    files_below(&root().join("docs"), &mut documents);
    documents.push(root().join("README.md"));
    let (mut wrong, mut lines) = (Vec::new(), 0);
    for document in documents.iter().filter(|path| path.extension().is_some_and(|e| e == "md")) {
        for (number, line) in (1..).zip(fs::read_to_string(document).unwrap().lines()) {
            lines += usize::from(line.contains("`tests/"));
            let at = format!("{}:{number}", document.strip_prefix(root()).unwrap().display());
            let cells = line.split('|').flat_map(|cell| wrong_in(cell, &functions));
            wrong.extend(cells.map(|what| format!("{at}: {what}")));
        }
    }
    assert!(lines > 20, "{lines} lines cite tests");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_format_is_that_of_the_program() {
    let format = fs::read_to_string(root().join("docs/format.md")).unwrap();
    let version = format!("`user_version` {SCHEMA_VERSION}: the number of steps of");
    assert!(format.contains(&version), "{version}");
    let ids = format.lines().find(|line| line.starts_with("Ids are a prefix")).unwrap();
    let prefixes = [
        VolumeId::PREFIX,
        SnapshotId::PREFIX,
        GroupId::PREFIX,
        KeyId::PREFIX,
        TaskId::PREFIX,
        ScheduleId::PREFIX,
        BinRuleId::PREFIX,
        AccountId::PREFIX,
        InstanceId::PREFIX,
    ];
    for prefix in prefixes {
        assert!(ids.contains(&format!("`{prefix}`")), "{prefix} is missing in: {ids}");
    }
}
