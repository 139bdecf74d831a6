//! Room for whole sectors around a request that begins or ends within one.

use std::cell::RefCell;

use zeroize::Zeroize;

use crate::units::SECTOR_LEN;

thread_local! {
    static ROOM: RefCell<Vec<u8>> = RefCell::default();
}

/// Longer room does not stay with a thread: few requests are both long and odd.
const KEPT: usize = 64 << 10;

/// Lends room for so many sectors, of any content.
pub(super) fn with_room<T>(sectors: u64, request: impl FnOnce(&mut [u8]) -> T) -> T {
    let len = sectors as usize * SECTOR_LEN;
    let mut room = ROOM.take();
    room.resize(room.len().max(len), 0);
    let done = request(&mut room[..len]);
    // What the disk held would stay in memory.
    match room.len() <= KEPT {
        true => {
            room[..len].fill(0);
            ROOM.set(room);
        }
        false => room[..len].zeroize(),
    }
    done
}
