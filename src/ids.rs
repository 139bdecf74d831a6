//! The identities of things: random ids with a prefix, layer ids, points, and names people give.

use std::fmt;
use std::str::FromStr;

/// Why a text is not the id or name it should be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    /// Not the form of an id of this kind.
    #[error("{text:?} is not {what}")]
    Malformed {
        /// The text as given, shortened.
        text: String,
        /// The form it should have had.
        what: &'static str,
    },
}

fn malformed(text: &str, what: &'static str) -> IdError {
    IdError::Malformed { text: text.chars().take(64).collect(), what }
}

fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel's random source answers");
    bytes
}

macro_rules! prefixed_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            /// What every id of this kind begins with.
            pub const PREFIX: &'static str = $prefix;

            /// A fresh random id (68 bits).
            pub fn random() -> Self {
                Self(u128::from_le_bytes(random_bytes()) >> 60)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:017x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let what = concat!("an id of the form ", $prefix, " and 17 hexadecimal digits");
                let digits = text.strip_prefix($prefix).ok_or_else(|| malformed(text, what))?;
                let plain = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if digits.len() != 17 || !digits.bytes().all(plain) {
                    return Err(malformed(text, what));
                }
                u128::from_str_radix(digits, 16).map(Self).map_err(|_| malformed(text, what))
            }
        }
    };
}

prefixed_id!(/// A volume's id.
    VolumeId, "vol-");
prefixed_id!(/// A snapshot's id.
    SnapshotId, "snap-");

impl SnapshotId {
    /// What the header of a copy's layer names as its volume: none has that id, and no other copy.
    pub fn as_volume(self) -> VolumeId {
        VolumeId(self.0)
    }
}

prefixed_id!(/// A group of snapshots of one moment.
    GroupId, "grp-");
prefixed_id!(/// A customer master key's id.
    KeyId, "key-");
prefixed_id!(/// A background task's id.
    TaskId, "task-");
prefixed_id!(/// A schedule's id.
    ScheduleId, "sched-");
prefixed_id!(/// An account's id.
    AccountId, "acc-");
prefixed_id!(/// A rule's id, of what waits in the bin.
    BinRuleId, "bin-");
prefixed_id!(/// A KMS instance's id.
    InstanceId, "kms-");

macro_rules! wide_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// A fresh random value.
            pub fn random() -> Self {
                Self(random_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", u128::from_be_bytes(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let plain = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if text.len() != 32 || !text.bytes().all(plain) {
                    return Err(malformed(text, concat!($what, " (32 hexadecimal digits)")));
                }
                u128::from_str_radix(text, 16)
                    .map(|n| Self(n.to_be_bytes()))
                    .map_err(|_| malformed(text, $what))
            }
        }
    };
}

wide_id!(/// A layer's id: the name of its folder, and part of what its MACs cover.
    LayerId, "a layer id");
wide_id!(/// The identity of one moment of one disk, minted at a seal and kept by copies.
    Point, "a point");
wide_id!(/// A region's id: names its root key in the configuration.
    RegionId, "a region id");

/// A name a person gives a resource: 2–128 letters, digits, `.`, `_` or `-`, beginning with a letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let what = "a name: 2 to 128 letters, digits, '.', '_' or '-', beginning with a letter";
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic());
        let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !first || !rest || !(2..=128).contains(&text.len()) {
            return Err(malformed(text, what));
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse_back() {
        for _ in 0..100 {
            let id = VolumeId::random();
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_eq!(id.to_string().len(), 4 + 17);
            let layer = LayerId::random();
            assert_eq!(layer.to_string().parse(), Ok(layer));
        }
    }

    #[test]
    fn hostile_ids_are_refused() {
        for text in [
            "",
            "vol-",
            "vol-../../../../x",
            "snap-0123456789abcdef0",
            "vol-0123456789ABCDEF0",
            "vol-+123456789abcdef",
        ] {
            assert!(text.parse::<VolumeId>().is_err(), "{text}");
        }
        for text in ["../../x", &"0".repeat(300), "0\0", "+1234567890123456789012345678901"] {
            assert!(text.parse::<LayerId>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_begin_with_a_letter() {
        for good in ["db", "web-1", "A.b_c-9", &"x".repeat(128)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "x", "-rf", "1a", "a b", "a/b", "a\u{1b}[2J", "é1", &"x".repeat(129)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
