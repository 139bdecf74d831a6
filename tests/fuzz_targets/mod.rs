//! What is done with hostile bytes, parser by parser. In the gate `tests/hostile_bytes.rs` runs each a few thousand times; `tools/fuzz`
//! runs them under libFuzzer for as long as one likes.
#![allow(dead_code)] // each user takes a part

mod input;
mod layers;
mod proofs;
mod rows;
mod store;
mod texts;

/// A target: its name, what it does, bytes to begin with, and how often the gate runs it.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: fn() -> Vec<Vec<u8>>,
    pub runs: u64,
}

pub const ALL: &[Target] = &[
    Target { name: "superblock", run: layers::superblock, seeds: edits, runs: 20_000 },
    Target { name: "log", run: layers::log, seeds: edits, runs: 1_500 },
    Target { name: "pages", run: layers::pages, seeds: edits, runs: 1_500 },
    Target { name: "header", run: texts::header, seeds: headers, runs: 10_000 },
    Target { name: "bookmark", run: texts::bookmark, seeds: texts::bookmark_seeds, runs: 20_000 },
    Target { name: "copy_words", run: texts::copy_words, seeds: texts::copy_words_seeds, runs: 20_000 },
    Target { name: "owner", run: texts::owner, seeds: texts::owner_seeds, runs: 20_000 },
    Target { name: "region_toml", run: texts::region_toml, seeds: region_tomls, runs: 10_000 },
    Target { name: "key_file", run: texts::key_file, seeds: key_files, runs: 10_000 },
    Target {
        name: "machine_files",
        run: texts::machine_files,
        seeds: texts::machine_file_seeds,
        runs: 2_000,
    },
    Target { name: "control", run: texts::control, seeds: messages, runs: 30_000 },
    Target { name: "typed", run: texts::typed, seeds: words, runs: 20_000 },
    Target { name: "envelope", run: texts::envelope, seeds: envelopes, runs: 10_000 },
    Target { name: "proof", run: proofs::proof, seeds: proofs::seeds, runs: 4_000 },
    Target { name: "catalog", run: rows::catalog, seeds: rows::seeds, runs: 300 },
];

pub fn find(name: &str) -> &'static Target {
    ALL.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("no target {name}"))
}

/// For targets whose bytes say what to change in something whole.
fn edits() -> Vec<Vec<u8>> {
    let counted = |len: u8, factor: u8| (0..len).map(|i| i.wrapping_mul(factor)).collect();
    vec![vec![], vec![1; 8], counted(40, 1), counted(120, 7), counted(250, 31)]
}

fn headers() -> Vec<Vec<u8>> {
    vec![texts::header_seed().into_bytes()]
}

fn region_tomls() -> Vec<Vec<u8>> {
    let plain = "format = \"terrane-region\"\nformat_version = 1\nfeatures = []\nid = \"000102030405060708090a0b0c0d0e0f\"\n\
        name = \"here\"\ncreated_at = \"2026-05-01T00:00:00Z\"\nreplaced_clock = false\nroot_key_check = \"0102\"\n";
    let passphrase = "[passphrase]\nmemory_kib = 65536\npasses = 3\nlanes = 1\nsalt = \"000102030405060708090a0b0c0d0e0f\"\n\
        wrapped_root_key = \"0a\"\n";
    vec![plain.into(), format!("{plain}{passphrase}").into_bytes()]
}

fn key_files() -> Vec<Vec<u8>> {
    let text = "format = \"terrane-key\"\nformat_version = 1\nfeatures = []\nregion = \"00\"\nkey_id = \"key-0\"\nkey_version = 1\n\
        created_at = \"2026-05-01T00:00:00Z\"\nwrapped_key = \"01ff\"\n";
    vec![text.into()]
}

fn messages() -> Vec<Vec<u8>> {
    let orders = [
        r#""status""#,
        r#"{"snapshot":{"items":[{"volume":"vol-0","snapshot":"snap-0","name":"s"}],"account":"acc-0","group":null,"description":"x","tags":[{"key":"k","value":"v"}],"retention_days":7}}"#,
        r#"{"resize":{"volume":"vol-0","size_bytes":8388608}}"#,
        r#"{"failed":{"exit":4,"message":"m","hint":null}}"#,
        r#"{"status":{"pid":1,"mount_point":"/m","live":[{"volume":"v","latched":false,"openers":[1],"unflushed_bytes":0}]}}"#,
    ];
    orders.iter().map(|order| [b"\x01", order.as_bytes()].concat()).collect()
}

fn words() -> Vec<Vec<u8>> {
    let words = [
        "10G",
        "1.5T",
        "0.000000001E",
        "18446744073709551615",
        "99999999999999999999.999999999E",
        "vol-0123456789abcdef0",
        "00000000000000000000000000000001",
        "a.b_c-9",
        "key=value",
        "\u{1b}[2J\u{9b}\u{202e}",
        "aes-xts-plain64",
        "90m",
        "*/5 0-6/2,23 1,15 jan-mar fri-sun",
        "0 0 29 2 *",
    ];
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

fn envelopes() -> Vec<Vec<u8>> {
    vec![vec![1; 61], vec![1; 93], (0..64).collect(), vec![]]
}
