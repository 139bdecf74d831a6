//! Room for whole sectors around a request that begins or ends within one.

use std::cell::RefCell;

use zeroize::Zeroizing;

use crate::sys::page_buffer::PageBuffer;
use crate::units::SECTOR_LEN;

/// Bytes that are wiped when they go, also by a panic: what the disk held would stay in memory.
type Room = Zeroizing<PageBuffer>;

thread_local! {
    static ROOM: RefCell<Option<Room>> = const { RefCell::new(None) };
}

/// Longer room does not stay with a thread: few requests are both long and odd.
const KEPT: usize = 64 << 10;

/// Lends room for so many sectors, of any content.
pub(super) fn with_room<T>(sectors: u64, request: impl FnOnce(&mut [u8]) -> T) -> T {
    let len = sectors as usize * SECTOR_LEN;
    let new = || Room::new(PageBuffer::new(len));
    if len > KEPT {
        return request(&mut new());
    }
    let mut room = ROOM.take().filter(|room| room.len() >= len).unwrap_or_else(new);
    let done = request(&mut room[..len]);
    room[..len].fill(0);
    ROOM.set(Some(room));
    done
}
