//! Secrets to be looked for: all their windows, in memory, files and what is said.
//!
//! Used by `#[path = "common/canary.rs"] mod canary;`.
#![allow(dead_code)] // each test file uses a part

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use terrane::crypto::{Secret, unwrap};

const WINDOW: usize = 16;

/// All windows of some secrets, and a coarse sieve before the exact look.
pub struct Canary {
    windows: HashSet<[u8; WINDOW]>,
    sieve: Vec<u64>,
}

impl Canary {
    pub fn new() -> Self {
        Self { windows: HashSet::new(), sieve: vec![0; 1 << 20] }
    }

    fn bit(head: &[u8]) -> (usize, u64) {
        let word = u32::from_le_bytes(head[..4].try_into().unwrap()).wrapping_mul(0x9e37_79b1) >> 6;
        ((word >> 6) as usize, 1 << (word & 63))
    }

    pub fn add(&mut self, secret: &[u8]) {
        for window in secret.windows(WINDOW) {
            let (at, bit) = Self::bit(window);
            self.sieve[at] |= bit;
            self.windows.insert(window.try_into().unwrap());
        }
    }

    /// Where the first of them is, and how many.
    pub fn find(&self, bytes: &[u8]) -> Option<(usize, usize)> {
        let (mut first, mut count, mut at) = (None, 0, 0);
        while at + WINDOW <= bytes.len() {
            // Most of a memory is zeros.
            if bytes[at..].starts_with(&[0; 1024]) {
                at += 1024 - WINDOW;
                continue;
            }
            let (word, bit) = Self::bit(&bytes[at..]);
            if self.sieve[word] & bit != 0 && self.windows.contains(&bytes[at..at + WINDOW]) {
                first.get_or_insert(at);
                count += 1;
            }
            at += 1;
        }
        first.map(|first| (first, count))
    }

    #[track_caller]
    pub fn assert_absent(&self, bytes: &[u8], what: &str) {
        assert_eq!(self.find(bytes), None, "a secret is in {what}");
    }

    /// Of each mapping of a process, where secrets lie in it. Only root may look.
    pub fn in_memory(&self, pid: i32) -> Vec<String> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let mut found = Vec::new();
        for line in maps.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (range, mode) = (fields.next().unwrap(), fields.next().unwrap());
            if !mode.starts_with("rw") || line.contains("[vvar") {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let [start, end] = [start, end].map(|digits| u64::from_str_radix(digits, 16).unwrap());
            let mut piece = vec![0; 1 << 20];
            // Pieces overlap, so that a window over an edge is seen.
            for at in (start..end).step_by((1 << 20) - WINDOW) {
                let len = (end - at).min(1 << 20) as usize;
                if memory.read_exact_at(&mut piece[..len], at).is_ok()
                    && let Some((first, count)) = self.find(&piece[..len])
                {
                    found.push(format!("{count} from {:x} of {line}", at + first as u64));
                }
            }
        }
        found
    }

    /// Below a folder, holes left out; names too. A root key lies in its own file, and there alone.
    pub fn assert_absent_below(&self, dir: &Path) -> u64 {
        let mut looked = 0;
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            let kind = entry.file_type().unwrap();
            self.assert_absent(path.to_str().unwrap().as_bytes(), "a name");
            if kind.is_dir() {
                looked += self.assert_absent_below(&path);
            } else if kind.is_file() && path.extension().is_none_or(|end| end != "root-key") {
                let file = File::open(&path).unwrap();
                let mut at = 0;
                while let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
                    at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start)).unwrap();
                    let mut bytes = vec![0; (at - start) as usize];
                    file.read_exact_at(&mut bytes, start).unwrap();
                    self.assert_absent(&bytes, path.to_str().unwrap());
                    looked += bytes.len() as u64;
                }
            }
        }
        looked
    }
}

pub fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    std::io::Read::read_exact(&mut File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
    bytes
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap()).collect()
}

/// How text may show some bytes: each eight in a row as hexadecimal digits, together or as a list, and as a list of numbers.
pub fn spelled(secret: &[u8]) -> Vec<String> {
    let of = |window: &[u8]| {
        let digits: String = window.iter().map(|byte| format!("{byte:02x}")).collect();
        [
            digits.to_uppercase(),
            digits,
            format!("{window:?}"),
            format!("{window:02x?}"),
            format!("{window:x?}"),
        ]
        .map(|text| text.trim_matches(['[', ']']).to_owned())
    };
    secret.windows(8).flat_map(of).collect()
}

/// The bytes of all CMKs of a region, each with its id, by directory and root key.
pub fn master_keys(region: &Path, root_key: &[u8]) -> Vec<(String, Vec<u8>)> {
    let root_key = Secret::try_from_slice(root_key).unwrap();
    let open = |path: PathBuf| {
        let file: toml::Table = fs::read_to_string(path).unwrap().parse().unwrap();
        let text = |name: &str| file[name].as_str().unwrap();
        let version = u32::try_from(file["key_version"].as_integer().unwrap()).unwrap();
        let aad =
            [b"terrane key\0", &unhex(text("region"))[..], text("key_id").as_bytes(), &version.to_le_bytes()];
        let key = unwrap(&root_key, &aad.concat(), &unhex(text("wrapped_key"))).unwrap().to_vec();
        (text("key_id").to_owned(), key)
    };
    let files = fs::read_dir(region.join("keys")).unwrap();
    files.map(|entry| open(entry.unwrap().path())).collect()
}
