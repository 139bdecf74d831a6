//! Bytes of a message: `magic[4] · version u32 · length u32 · body`, little-endian. The body is JSON.

use serde::{Deserialize, Serialize};

/// Of this program; raised when a message changes its meaning.
pub(super) const VERSION: u32 = 1;
/// Bound of a body in bytes.
pub(super) const BODY_BYTES_MAX: usize = 1 << 20;
pub(super) const HEADER_BYTES: usize = 12;
const MAGIC: [u8; 4] = *b"trrn";

/// What an answer's body holds.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply<T> {
    Answer(T),
    Refused(String),
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FrameError {
    Magic,
    Version(u32),
    TooLong(usize),
    TrailingBytes,
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FrameError::Magic => write!(f, "it does not begin like one"),
            FrameError::Version(theirs) => write!(f, "it is of version {theirs}, not {VERSION}"),
            FrameError::TooLong(len) => write!(f, "{len} bytes are more than {BODY_BYTES_MAX}"),
            FrameError::TrailingBytes => write!(f, "more bytes than it announced"),
        }
    }
}

/// A whole message around `body`, which the caller has kept below the bound.
pub(super) fn encode(body: &[u8]) -> Vec<u8> {
    assert!(body.len() <= BODY_BYTES_MAX);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The body, if all of it is there; refused as early as the bytes show that it never will be.
pub(crate) fn decode(bytes: &[u8]) -> Result<Option<&[u8]>, FrameError> {
    let begins = bytes.len().min(MAGIC.len());
    if bytes[..begins] != MAGIC[..begins] {
        return Err(FrameError::Magic);
    }
    let Some(version) = word(bytes, 4) else { return Ok(None) };
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let Some(len) = word(bytes, 8) else { return Ok(None) };
    let len = len as usize;
    if len > BODY_BYTES_MAX {
        return Err(FrameError::TooLong(len));
    }
    let body = &bytes[HEADER_BYTES..];
    match body.len() {
        have if have < len => Ok(None),
        have if have == len => Ok(Some(body)),
        _ => Err(FrameError::TrailingBytes),
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().expect("four bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_frozen() {
        // Changed? Then raise VERSION.
        assert_eq!(encode(b"{}"), b"trrn\x01\0\0\0\x02\0\0\0{}");
    }

    #[test]
    fn a_message_is_whole_or_waited_for_or_refused() {
        let whole = encode(b"body");
        for cut in 0..whole.len() {
            assert_eq!(decode(&whole[..cut]), Ok(None));
        }
        assert_eq!(decode(&whole), Ok(Some(&b"body"[..])));
        let mut longer = whole.clone();
        longer.push(0);
        assert_eq!(decode(&longer), Err(FrameError::TrailingBytes));
        assert_eq!(decode(b"GET "), Err(FrameError::Magic));
        assert_eq!(decode(b"trrn\x02\0\0\0"), Err(FrameError::Version(2)));
        assert_eq!(decode(b"trrn\x01\0\0\0\xff\xff\xff\xff"), Err(FrameError::TooLong(u32::MAX as usize)));
    }
}
