//! Keys: customer master keys with their versions and aliases, and the envelope that data keys travel in.
//!
//! Owns the material of CMKs: 32 random bytes a version, wrapped by the root key, in the catalog and in
//! `keys/<id>.<version>`. Gives out data keys of layers, wrapped by a CMK's current version (or, for plain layers, by the
//! root key). Never stores a data key, and reads no sectors.
//!
//! Invariants: a version's file is synced before its row commits, so a lost catalog does not lose keys; a wrapped
//! version opens only as that version of that key of that region; a key that is not enabled wraps and unwraps nothing;
//! rotating adds a version and re-wraps nothing.
//!
//! Called by `region` (making one), `volume` and `copy` (data keys) and `cli`.

mod envelope;
mod error;
mod key_file;
mod keys;
mod places;
mod restore;

pub use envelope::{WrappedKey, check_usable, new_data_key, unwrap_data_key, wrap_again};
pub use error::KmsError;
pub(crate) use key_file::parse_key_file;
pub use keys::{Rotated, add_alias, create_key, initialise, remove_alias, rotate_key, set_key_enabled};
pub use places::{Mended, check_keys, mend_keys};
pub use restore::{Restored, restore};
