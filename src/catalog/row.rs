//! From a row to a value, every bound checked: what is read from the file is not trusted.

use std::cell::Cell;
use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::Row;
use rusqlite::types::ValueRef;

use super::CatalogError;
use crate::units::{SECTOR_BYTES, VOLUME_BYTES_MAX};

/// No text or blob of a row is longer.
const FIELD_BYTES_MAX: usize = 64 << 10;

/// The named columns of one row.
pub(super) struct Fields<'r> {
    row: &'r Row<'r>,
    region: &'r str,
    /// The column behind the one that was asked for last.
    next: Cell<usize>,
}

impl<'r> Fields<'r> {
    pub fn new(row: &'r Row<'r>, region: &'r str) -> Self {
        Self { row, region, next: Cell::new(0) }
    }

    fn value(&self, column: &str) -> Result<ValueRef<'r>, CatalogError> {
        let statement = self.row.as_ref();
        // SQLite makes up each name that it is asked for; most are asked for in the order in which they stand.
        let next = self.next.get();
        let index = match statement.column_name(next) {
            Ok(name) if name == column => Ok(next),
            _ => statement.column_index(column),
        };
        let index = index.map_err(|error| super::error::from_sqlite(self.region, error))?;
        self.next.set(index + 1);
        self.row.get_ref(index).map_err(|error| super::error::from_sqlite(self.region, error))
    }

    pub fn corrupted(&self, column: &str, expected: &str, found: &str) -> CatalogError {
        let id = match self.row.get_ref("id") {
            Ok(ValueRef::Text(text)) => format!(" of {}", shortened(&String::from_utf8_lossy(text))),
            _ => String::new(),
        };
        CatalogError::Corrupted {
            region: self.region.to_owned(),
            what: format!("{column}{id}"),
            expected: expected.to_owned(),
            found: shortened(found),
        }
    }

    pub fn opt_text(&self, column: &str) -> Result<Option<&'r str>, CatalogError> {
        match self.value(column)? {
            ValueRef::Null => Ok(None),
            ValueRef::Text(bytes) if bytes.len() > FIELD_BYTES_MAX => {
                Err(self.corrupted(column, "at most 64 KiB", &format!("{} bytes", bytes.len())))
            }
            ValueRef::Text(bytes) => std::str::from_utf8(bytes)
                .map(Some)
                .map_err(|_| self.corrupted(column, "UTF-8", "something else")),
            other => Err(self.corrupted(column, "text", &format!("{:?}", other.data_type()))),
        }
    }

    pub fn text(&self, column: &str) -> Result<&'r str, CatalogError> {
        self.opt_text(column)?.ok_or_else(|| self.corrupted(column, "text", "nothing"))
    }

    pub fn opt_parsed<T: FromStr>(&self, column: &str, expected: &str) -> Result<Option<T>, CatalogError> {
        self.opt_text(column)?
            .map(|text| text.parse().map_err(|_| self.corrupted(column, expected, text)))
            .transpose()
    }

    pub fn parsed<T: FromStr>(&self, column: &str, expected: &str) -> Result<T, CatalogError> {
        let text = self.text(column)?;
        text.parse().map_err(|_| self.corrupted(column, expected, text))
    }

    pub fn int(&self, column: &str) -> Result<i64, CatalogError> {
        match self.value(column)? {
            ValueRef::Integer(n) => Ok(n),
            other => Err(self.corrupted(column, "a number", &format!("{:?}", other.data_type()))),
        }
    }

    pub fn opt_int(&self, column: &str) -> Result<Option<i64>, CatalogError> {
        match self.value(column)? {
            ValueRef::Null => Ok(None),
            _ => self.int(column).map(Some),
        }
    }

    pub fn unsigned(&self, column: &str) -> Result<u64, CatalogError> {
        let n = self.int(column)?;
        u64::try_from(n).map_err(|_| self.corrupted(column, "0 or more", &n.to_string()))
    }

    pub fn opt_unsigned(&self, column: &str) -> Result<Option<u64>, CatalogError> {
        match self.value(column)? {
            ValueRef::Null => Ok(None),
            _ => self.unsigned(column).map(Some),
        }
    }

    pub fn small(&self, column: &str, max: u32) -> Result<u32, CatalogError> {
        let n = self.int(column)?;
        u32::try_from(n)
            .ok()
            .filter(|n| *n <= max)
            .ok_or_else(|| self.corrupted(column, &format!("0 to {max}"), &n.to_string()))
    }

    pub fn flag(&self, column: &str) -> Result<bool, CatalogError> {
        Ok(self.small(column, 1)? == 1)
    }

    pub fn time(&self, column: &str) -> Result<Timestamp, CatalogError> {
        let n = self.int(column)?;
        Timestamp::from_microsecond(n).map_err(|_| self.corrupted(column, "a time", &n.to_string()))
    }

    pub fn opt_time(&self, column: &str) -> Result<Option<Timestamp>, CatalogError> {
        match self.value(column)? {
            ValueRef::Null => Ok(None),
            _ => self.time(column).map(Some),
        }
    }

    /// A disk's size: whole sectors, at least one, at most 64 TiB.
    pub fn disk_size(&self, column: &str) -> Result<u64, CatalogError> {
        let n = self.unsigned(column)?;
        if n == 0 || n > VOLUME_BYTES_MAX || !n.is_multiple_of(SECTOR_BYTES) {
            return Err(self.corrupted(column, "whole sectors up to 64 TiB", &n.to_string()));
        }
        Ok(n)
    }

    pub fn blob(&self, column: &str, bytes_max: usize) -> Result<Vec<u8>, CatalogError> {
        self.opt_blob(column, bytes_max)?.ok_or_else(|| self.corrupted(column, "bytes", "nothing"))
    }

    pub fn opt_blob(&self, column: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, CatalogError> {
        match self.value(column)? {
            ValueRef::Null => Ok(None),
            ValueRef::Blob(bytes) if bytes.len() <= bytes_max => Ok(Some(bytes.to_vec())),
            ValueRef::Blob(bytes) => Err(self.corrupted(
                column,
                &format!("at most {bytes_max} bytes"),
                &format!("{} bytes", bytes.len()),
            )),
            other => Err(self.corrupted(column, "bytes", &format!("{:?}", other.data_type()))),
        }
    }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= 64 {
        return text.to_owned();
    }
    text.chars().take(64).chain(['…']).collect()
}

/// A size or count as SQLite keeps it.
pub(super) fn stored(n: u64) -> Result<i64, CatalogError> {
    i64::try_from(n)
        .map_err(|_| CatalogError::Refused { what: format!("{n} is more than a catalog can hold") })
}

/// Words that stand for the variants of an enum, in rows and in JSON.
macro_rules! worded {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every variant.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its word in rows and JSON.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("known are: {}", [$($word),+].join(", "))),
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}
pub(super) use worded;
