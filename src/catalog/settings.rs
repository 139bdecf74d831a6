//! What a region offers and does by itself.

use super::row::worded;
use super::{CatalogError, ReadTx, WriteTx};

worded! {
    /// A region's switches. All are on in a new region.
    Setting {
        /// A new volume is encrypted under the default key unless told otherwise.
        EncryptByDefault = "encrypt_by_default",
        /// Copies may be encrypted as they are made.
        CopyAndEncrypt = "copy_and_encrypt",
        /// The KMS serves.
        KmsEnabled = "kms_enabled",
        /// The storage service may use the KMS.
        StorageAuthorized = "storage_authorized",
    }
}

impl ReadTx<'_> {
    /// Whether a switch is on.
    pub fn flag(&self, setting: Setting) -> Result<bool, CatalogError> {
        let found = self.first("SELECT v, k AS id FROM settings WHERE k = ?1", [setting.as_str()], |f| {
            f.parsed("v", "true or false")
        })?;
        Ok(found.unwrap_or(true))
    }
}

impl WriteTx<'_> {
    /// Turns a switch on or off.
    pub fn set_flag(&self, setting: Setting, on: bool) -> Result<(), CatalogError> {
        let value = if on { "true" } else { "false" };
        self.execute(
            "INSERT INTO settings (k, v) VALUES (?1, ?2) ON CONFLICT (k) DO UPDATE SET v = ?2",
            [setting.as_str(), value],
        )
        .map(drop)
    }
}
