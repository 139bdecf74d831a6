//! Doors to parsers of untrusted bytes that no public type leads to: for `tests/fuzz_targets`, and no part of the library.
//!
//! Each says whether the bytes were taken.

use std::path::Path;

use crate::copy::words;
use crate::crypto::Prf;
use crate::ids::{RegionId, VolumeId};
use crate::region::{Anchors, Config, MachineClock};
use crate::volume::{Answer, Order, Owner};

/// `region.toml`; what was taken is written and taken again.
pub fn region_toml(text: &str) -> bool {
    let path = Path::new("region.toml");
    let Ok(header) = crate::region::Header::parse(text, path) else { return false };
    let again = crate::region::Header::parse(&header.to_toml(), path).expect("what we write we read");
    assert_eq!(header.to_toml(), again.to_toml());
    true
}

/// `keys/<id>.<version>`.
pub fn key_file(bytes: &[u8]) -> bool {
    crate::kms::parse_key_file(bytes)
}

/// A message to the server, or to a client.
pub fn control_message(bytes: &[u8]) -> bool {
    let Ok(Some(body)) = crate::control::decode_frame(bytes) else { return false };
    let order = serde_json::from_slice::<Order>(body);
    let answer = serde_json::from_slice::<Answer>(body);
    order.is_ok() || answer.is_ok()
}

/// A size on the command line: of anything, or of a volume.
pub fn size(text: &str) -> bool {
    let bytes = crate::cli::parse_bytes(text);
    if let Ok(bytes) = bytes {
        assert!(bytes > 0 && !crate::cli::size_text(bytes).is_empty());
    }
    let volume = crate::cli::parse_volume_size(text);
    assert!(volume.is_err() || volume == bytes, "{text}");
    bytes.is_ok()
}

/// Text and JSON on a terminal.
pub fn printed(text: &str) {
    let steers = |c: char| c.is_control() && c != '\n';
    assert!(!crate::cli::printable(text).contains(steers));
    let json = serde_json::to_string(text).expect("a string is JSON");
    let shown = crate::cli::printable_json(&json);
    assert!(!shown.contains(steers));
    assert_eq!(serde_json::from_str::<String>(&shown).ok().as_deref(), Some(text));
}

/// `layers/<id>/words`; what was taken is written and found among the bytes again. How much was.
pub fn copy_words(bytes: &[u8], prf: &Prf) -> usize {
    let (known, whole) = words::parse(bytes, prf);
    for (chunk, words) in &known {
        let record = words::to_bytes(*chunk, *words, prf);
        assert!(bytes[..whole].chunks(record.len()).any(|piece| piece == record), "it was not there");
    }
    known.len()
}

/// A record of it, as it is written.
pub fn copy_words_record(chunk: u64, words: u128, prf: &Prf) -> Vec<u8> {
    words::to_bytes(chunk, words, prf).to_vec()
}

/// `run/layers.lock`; what was taken is written and taken again.
pub fn layers_owner(text: &str) -> bool {
    let owner = Owner::parse(text);
    assert_eq!(Owner::parse(&owner.to_text()), owner, "what we write we read");
    owner.pid != 0
}

/// What a machine keeps beside its root keys, in `dir`: the entry of a region, the anchors of its catalog and of a volume, what is
/// remembered of the clock. As which of them the bytes were taken.
pub fn machine_files(dir: &Path, bytes: &[u8]) -> [bool; 4] {
    let config = Config::at(dir).expect("a path");
    let region: RegionId = "000102030405060708090a0b0c0d0e0f".parse().expect("an id");
    let volume: VolumeId = "vol-00000000000000001".parse().expect("an id");
    let (anchors, clock) = (Anchors::new(&config, region, true), MachineClock::new(&config));
    let folder = dir.join("anchors").join(region.to_string());
    let entry = dir.join("regions").join(format!("{region}.toml"));
    for path in [&entry, &folder.join("catalog"), &folder.join(volume.to_string()), &dir.join("clock")] {
        std::fs::write(path, bytes).expect("the folders are there");
    }
    let taken = anchors.volume(volume);
    if let Ok(Some(anchor)) = &taken {
        anchors.set_volume(volume, anchor).expect("what was read is written");
        assert_eq!(anchors.volume(volume).ok().flatten().as_ref(), Some(anchor));
    }
    let is_remembered = clock.doubt().is_ok();
    assert_eq!(clock.behind().is_ok(), is_remembered);
    clock.certain();
    [
        matches!(config.entry(region), Ok(Some(_))),
        anchors.check_catalog("here", 7).is_ok(),
        taken.is_ok(),
        is_remembered,
    ]
}
