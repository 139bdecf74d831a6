//! Room for whole sectors around a request that begins or ends within one.

use std::cell::RefCell;

use zeroize::Zeroize;

use crate::units::SECTOR_LEN;

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// Longer room does not stay with a thread: few requests are both long and odd.
const KEPT: usize = 64 << 10;

/// Bytes that are wiped when they go, also by a panic: what the disk held would stay in memory.
#[derive(Default)]
struct Room(Vec<u8>);

impl Drop for Room {
    fn drop(&mut self) {
        // The slice: a Vec is wiped byte by byte.
        self.0[..].zeroize();
    }
}

/// Lends room for so many sectors, of any content.
pub(super) fn with_room<T>(sectors: u64, request: impl FnOnce(&mut [u8]) -> T) -> T {
    let len = sectors as usize * SECTOR_LEN;
    if len > KEPT {
        return request(&mut Room(vec![0; len]).0);
    }
    let mut room = ROOM.take();
    room.0.resize(room.0.len().max(len), 0);
    let done = request(&mut room.0[..len]);
    room.0[..len].fill(0);
    ROOM.set(room);
    done
}
