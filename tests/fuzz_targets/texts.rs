//! Texts and small files: `region.toml`, key files, headers of layers, bookmarks, a copy's words, who owns the layers, messages, what is
//! typed.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use jiff::Timestamp;
use terrane::crypto::{self, Cipher, LayerKeys, Secret};
use terrane::doors;
use terrane::ids::{
    AccountId, GroupId, InstanceId, KeyId, LayerId, Name, Point, RegionId, ScheduleId, SnapshotId, TaskId,
    VolumeId,
};
use terrane::layer::header::{Folding, Header, UntrustedHeader};
use terrane::layer::{Bookmark, ChunkBits, SectorSet, Taken, TakenChunk};
use terrane::schedule::{Cron, Every, When};

pub fn region_toml(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        doors::region_toml(text);
    }
}

pub fn key_file(bytes: &[u8]) {
    doors::key_file(bytes);
}

/// Header and length are made to fit, where the first byte says so.
pub fn control(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    if first % 8 == 0 {
        doors::control_message(rest);
        return;
    }
    let mut message = b"trrn\x01\0\0\0".to_vec();
    message.extend_from_slice(&(rest.len() as u32).to_le_bytes());
    message.extend_from_slice(rest);
    doors::control_message(&message);
}

fn keys() -> &'static LayerKeys {
    static KEYS: OnceLock<LayerKeys> = OnceLock::new();
    KEYS.get_or_init(|| {
        LayerKeys::derive(Cipher::Plain, &Secret::new(std::array::from_fn(|i| i as u8))).unwrap()
    })
}

/// Bookmarks of both kinds; head and MAC are made to fit, where the first byte says so.
pub fn bookmark(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let (layer, prf) = (LayerId([2; 16]), keys().header());
    let mut whole = rest.to_vec();
    if first % 4 > 0 {
        let mut body = b"terrmark\x01\0\0\0".to_vec();
        body.extend_from_slice(&u32::from(first % 2 + 1).to_le_bytes());
        body.extend_from_slice(&[0; 8]);
        body.extend_from_slice(&u64::from(first / 4).to_le_bytes());
        body.extend_from_slice(&layer.0);
        body.extend_from_slice(rest);
        let mac = prf.mac(&[b"bookmark\0", &body]);
        whole = body;
        whole.extend_from_slice(&mac);
    }
    if let Ok(mark) = Bookmark::parse(&whole, layer, prf) {
        let again = Bookmark::parse(&mark.to_bytes(layer, prf), layer, prf).expect("what we write we read");
        assert_eq!(again, mark);
        assert_eq!(mark.changed.union(&mark.changed), mark.changed);
    }
    if let Ok(taken) = Taken::parse(&whole, layer, prf) {
        let again = Taken::parse(&taken.to_bytes(layer, prf), layer, prf).expect("what we write we read");
        assert_eq!(again, taken);
    }
}

/// Such files without their heads, each after a byte that says what it is.
pub fn bookmark_seeds() -> Vec<Vec<u8>> {
    let (layer, prf) = (LayerId([2; 16]), keys().header());
    let (mut bits, mut changed) = (ChunkBits::NONE, SectorSet::default());
    bits.insert(7);
    bits.insert(300);
    changed.push(1, bits);
    changed.push(2, bits);
    changed.push(9, ChunkBits::NONE);
    let [from, to] = [Point([1; 16]), Point([3; 16])];
    let mark = Bookmark { from, to, changed }.to_bytes(layer, prf);
    let chunks = vec![TakenChunk { chunk: 4, data: bits, zero: ChunkBits::NONE, tags: vec![5, 6] }];
    let taken = Taken { since: from, before: from, after: Some(to), chunks }.to_bytes(layer, prf);
    let cut = |kind: u8, file: &[u8]| [&[kind][..], &file[48..file.len() - 16]].concat();
    vec![cut(4 + 2, &mark), cut(4 + 1, &taken)]
}

/// A copy's words as they lie in the file; or, where the first byte says so, what records say, each of 24 bytes, with MACs that fit.
pub fn copy_words(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let prf = keys().header();
    if first % 4 == 0 {
        doors::copy_words(rest, prf);
        return;
    }
    let (records, cut) = rest.as_chunks::<24>();
    let mut file = Vec::new();
    let mut chunks = BTreeSet::new();
    for said in records {
        file.extend_from_slice(said);
        file.extend_from_slice(&prf.mac(&[b"copy words\0", said]));
        chunks.insert(&said[..8]);
    }
    file.extend_from_slice(cut);
    assert_eq!(doors::copy_words(&file, prf), chunks.len(), "one of each chunk");
}

/// Of both kinds, each after a byte that says which.
pub fn copy_words_seeds() -> Vec<Vec<u8>> {
    let record = |chunk: u64| doors::copy_words_record(chunk, u128::from(chunk) << 90, keys().header());
    let whole = [0, 7, u64::MAX, 7].map(record);
    let said: Vec<u8> = whole.iter().flat_map(|record| record[..24].to_vec()).collect();
    vec![[&[0][..], &whole.concat()].concat(), [&[1][..], &said].concat()]
}

/// Who holds a region's layers.
pub fn owner(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        doors::layers_owner(text);
    }
}

pub fn owner_seeds() -> Vec<Vec<u8>> {
    ["1234\n/mnt/of somebody\n", "77\n\n", ""].map(|text| text.as_bytes().to_vec()).to_vec()
}

/// What a machine keeps in its configuration; as any of it.
pub fn machine_files(bytes: &[u8]) {
    is_machine_file(bytes);
}

fn is_machine_file(bytes: &[u8]) -> bool {
    let dir = tempfile::tempdir().expect("a folder");
    for folder in ["regions", "anchors/000102030405060708090a0b0c0d0e0f"] {
        std::fs::create_dir_all(dir.path().join(folder)).expect("a folder");
    }
    doors::machine_files(dir.path(), bytes).contains(&true)
}

pub fn machine_file_seeds() -> Vec<Vec<u8>> {
    let entry = "name = \"here\"\ndirectory = \"/r\"\nroot_key_file = \"/k\"\n";
    let anchor = "format = \"terrane-anchor\"\nformat_version = 1\nfeatures = []\n\
        layer = \"00000000000000000000000000000001\"\nturn = 1\ngeneration = 9\nconfirmed_seq = 5\n";
    let reading =
        |wall: &str| format!("wall = \"{wall}\"\nboot = \"b\"\nsince_boot_seconds = 9\nawake_seconds = 9\n");
    let clock = format!(
        "format = \"terrane-clock\"\nformat_version = 1\nfeatures = []\n[believed]\n{}[away]\nran_seconds = 1\n\
         passed_seconds = 2\n[away.last]\n{}",
        reading("2026-12-01T00:00:00Z"),
        reading("2027-12-01T00:00:00Z")
    );
    let seeds = [entry, anchor, &clock].map(|text| text.as_bytes().to_vec()).to_vec();
    assert!(seeds.iter().all(|seed| is_machine_file(seed)), "a seed is not what it stands for");
    seeds
}

/// In whose folder the header lies.
const OF: LayerId = LayerId([7; 16]);

/// A layer's header with its list of points; the last line is made its MAC.
pub fn header(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = UntrustedHeader::parse(text, OF);
    let body = text.rfind("mac = \"").map_or(text, |at| &text[..at]);
    let mac: String = keys().header().mac(&[body.as_bytes()]).iter().map(|b| format!("{b:02x}")).collect();
    let Ok(untrusted) = UntrustedHeader::parse(&format!("{body}mac = \"{mac}\"\n"), OF) else { return };
    let header = untrusted.verify(keys().header()).expect("the MAC fits");
    let again = UntrustedHeader::parse(&header.to_text(keys().header()), OF).expect("what we write we read");
    assert_eq!(again.verify(keys().header()).unwrap(), header);
}

pub fn header_seed() -> String {
    let header = Header {
        region: RegionId([1; 16]),
        volume: "vol-0123456789abcdef0".parse().unwrap(),
        layer: LayerId([2; 16]),
        parent: Some(LayerId([3; 16])),
        parent_point: Some(Point([5; 16])),
        size_bytes: 10 << 30,
        cipher: Cipher::XtsAes256,
        kind: "data".into(),
        key: Some("key-0123456789abcdef0".parse().unwrap()),
        key_version: 1,
        wrapped_key: vec![9; 93],
        wrapped_proof_key: vec![3; 61],
        mint: [11; 16],
        points: vec![Point([4; 16]), Point([5; 16])],
        sealed: Some(terrane::layer::SealedMark { generation: 3, mac: [6; 16] }),
        took: Some(LayerId([8; 16])),
        turn: 7,
        edition: 2,
        reached: Some(terrane::layer::Anchor { generation: 5, confirmed: 70 }),
        fold: Some(Folding::Absorbs(LayerId([9; 16]))),
    };
    header.to_text(keys().header())
}

/// A text that was taken means the same once it was printed.
fn comes_back<T: std::str::FromStr + ToString + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert!(value.to_string().parse::<T>().is_ok_and(|again| again == value), "{text}");
    }
}

/// Sizes, ids, names, tags, times.
pub fn typed(bytes: &[u8]) {
    let text = &String::from_utf8_lossy(bytes);
    doors::size(text);
    doors::printed(text);
    comes_back::<VolumeId>(text);
    comes_back::<SnapshotId>(text);
    comes_back::<GroupId>(text);
    comes_back::<KeyId>(text);
    comes_back::<TaskId>(text);
    comes_back::<AccountId>(text);
    comes_back::<InstanceId>(text);
    comes_back::<LayerId>(text);
    comes_back::<Point>(text);
    comes_back::<RegionId>(text);
    comes_back::<Name>(text);
    comes_back::<Cipher>(text);
    comes_back::<ScheduleId>(text);
    comes_back::<Every>(text);
    comes_back::<Cron>(text);
    if let Ok(cron) = text.parse::<Cron>() {
        let when = When::Cron(cron);
        let next = when.next_after(Timestamp::UNIX_EPOCH).expect("it is due some time");
        assert_eq!(when.last_until(Timestamp::UNIX_EPOCH, next), Some(next), "{text}");
    }
    let _ = text.parse::<terrane::catalog::Tag>();
    let _ = terrane::catalog::check_description(text);
}

/// A wrapped key: any bytes, and any bytes that the right key has wrapped.
pub fn envelope(bytes: &[u8]) {
    let key = Secret::<32>::new([3; 32]);
    let _ = crypto::unwrap(&key, b"what for", bytes);
    let wrapped = crypto::wrap(&key, b"what for", bytes);
    let opened = crypto::unwrap(&key, b"what for", &wrapped).expect("what we wrap we open");
    assert_eq!(&opened[..], bytes);
    let _ = Secret::<64>::try_from_slice(&opened).map(|key| LayerKeys::derive(Cipher::XtsAes256, &key));
    assert!(crypto::unwrap(&key, b"something else", &wrapped).is_err());
}
