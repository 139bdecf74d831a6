//! A snapshot's proof: a file that somebody changed, and what somebody wrote who has its key. The bytes are those of docs/format.md.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use terrane::catalog::{DiskKind, Snapshot, SnapshotState};
use terrane::crypto::{self, Cipher, ProofKey, Secret};
use terrane::ids::{AccountId, LayerId, Point, SnapshotId};
use terrane::kms;
use terrane::region::{Config, InitRequest, Region, init};
use terrane::units::{CHUNK_BYTES, ChunkNo};
use terrane::volume::proof::{self, Leaves};

use super::input::Input;

const POINT: Point = Point([5; 16]);
const CHUNKS: u64 = 40;
// Where file key, head and leaves begin.
const WRAPPED: usize = 24;
const HEAD: usize = 117;
const LEAVES: usize = 186;

/// A plain snapshot of a region, and its proof.
struct Base {
    region: Region,
    row: Snapshot,
    path: PathBuf,
    leaves: Leaves,
    bytes: Vec<u8>,
    _dir: tempfile::TempDir,
}

fn key() -> ProofKey {
    ProofKey::new(Secret::new([7; 32]))
}

impl Base {
    fn new() -> Self {
        let within = Some(Path::new("/dev/shm")).filter(|dir| dir.is_dir());
        let dir = within.map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
        let path = dir.path().canonicalize().unwrap();
        let request = InitRequest {
            dir: path.join("r"),
            name: "here".parse().unwrap(),
            root_key_file: None,
            passphrase: None,
        };
        let region = init(&request, &Config::at(&path.join("config")).unwrap()).unwrap();
        let row = row(&region);
        let mut leaves = Leaves::of_zeros(CHUNKS * CHUNK_BYTES);
        [0, 3, 4, 39].iter().for_each(|n| leaves.change(ChunkNo(*n), u128::from(n + 1) << 60));
        proof::write(&region, &row, POINT, &leaves, &key(), proof::Rests::Bytes).unwrap();
        let path = region.dir().join("proofs").join(row.id.to_string());
        let bytes = std::fs::read(&path).unwrap();
        Self { region, row, path, leaves, bytes, _dir: dir }
    }
}

/// A thread's own, which goes with it, and its files too.
fn base() -> Rc<Base> {
    thread_local!(static BASE: Rc<Base> = Rc::new(Base::new()));
    BASE.with(Rc::clone)
}

fn row(region: &Region) -> Snapshot {
    Snapshot {
        id: SnapshotId::random(),
        account: AccountId::random(),
        name: "s1".parse().unwrap(),
        description: None,
        layer: Some(LayerId([2; 16])),
        volume: None,
        size_bytes: CHUNKS * CHUNK_BYTES,
        kind: DiskKind::Data,
        cipher: Cipher::Plain,
        key: None,
        state: SnapshotState::Success,
        progress_percent: 100,
        created_by: "snapshot create".into(),
        source_snapshot: None,
        source_region: None,
        changed_bytes: 0,
        shipped_bytes: 0,
        stored_bytes: 0,
        group: None,
        retention_days: None,
        created_at: region.now(),
        mac: None,
    }
}

/// The first byte says whose file it is.
pub fn proof(bytes: &[u8]) {
    let base = base();
    let mut input = Input(bytes);
    let (file, list) = match input.byte() % 4 {
        0 => (changed(base.bytes.clone(), &mut input), base.leaves.list()),
        1 => (input.0.to_vec(), base.leaves.list()),
        2 => {
            let mut head = opened(HEAD..LEAVES, &bound_to());
            head = changed(head, &mut input);
            let leaves = base.bytes[LEAVES..].to_vec();
            (by_the_key(&head, leaves), base.leaves.list())
        }
        _ => {
            let list = changed(base.leaves.list(), &mut input);
            let root = key().root(&list);
            let count = (list.len() as u64).saturating_sub(8) / 24;
            let size = list.first_chunk().map_or(0, |size| u64::from_le_bytes(*size));
            let numbers = [count, size, 0].map(u64::to_le_bytes);
            let aad = [&bound_to()[..], b"\0leaves\0", &root].concat();
            let leaves = crypto::wrap(&file_key(), &aad, &list);
            (by_the_key(&[&root[..], &numbers.concat()].concat(), leaves), list)
        }
    };
    std::fs::write(&base.path, file).unwrap();
    let read = proof::read(&base.region, &base.row, POINT);
    let Some(proof) = read.ok().flatten() else { return };
    let Ok(leaves) = proof.leaves(&key()) else { return };
    assert_eq!(leaves.list(), list, "leaves that nobody wrote");
    assert_eq!(leaves.count(), proof.head.count);
    assert!(leaves.size_bytes() == proof.head.size_bytes && leaves.count() <= CHUNKS);
}

fn changed(mut bytes: Vec<u8>, input: &mut Input) -> Vec<u8> {
    while !input.is_empty() {
        match input.byte() % 8 {
            0 => bytes.truncate(usize::from(input.short()) % (bytes.len() + 1)),
            1 => bytes.extend(input.bytes(24)),
            _ => input.edit(&mut bytes),
        }
    }
    bytes
}

fn bound_to() -> Vec<u8> {
    format!("terrane proof\0{}\0{}\0{POINT}", base().region.id(), base().row.id).into_bytes()
}

fn file_key() -> Secret<32> {
    let base = base();
    let key = kms::unwrap_data_key(&base.region, None, 0, &bound_to(), &base.bytes[WRAPPED..HEAD]).unwrap();
    Secret::try_from_slice(&key.expose()[..32]).unwrap()
}

fn opened(range: std::ops::Range<usize>, aad: &[u8]) -> Vec<u8> {
    crypto::unwrap(&file_key(), aad, &base().bytes[range]).unwrap().to_vec()
}

fn by_the_key(head: &[u8], leaves: Vec<u8>) -> Vec<u8> {
    let head = crypto::wrap(&file_key(), &bound_to(), head);
    [base().bytes[..HEAD].to_vec(), head, leaves].concat()
}

/// Nothing changed, each way; and some changes.
pub fn seeds() -> Vec<Vec<u8>> {
    let whole = |way: u8| if way == 1 { [&[way], &base().bytes[..]].concat() } else { vec![way] };
    let changed = |way: u8| [vec![way], (0..60u8).map(|i| i.wrapping_mul(13)).collect()].concat();
    (0..4).map(whole).chain((0..4).map(changed)).collect()
}
