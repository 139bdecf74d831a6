//! The one table from errors to exit numbers, and how an error is printed.

use std::io;

use serde_json::json;

use super::output::{printable, printable_json};
use crate::catalog::CatalogError;
use crate::control::ControlError;
use crate::copy::CopyError;
use crate::crypto::CryptoError;
use crate::fuse::MountError;
use crate::kms::KmsError;
use crate::region::RegionError;
use crate::schedule::ScheduleError;
use crate::sys::loopdev::LoopError;
use crate::volume::HostError;

/// What a process ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Anything else.
    Other = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// No such region, volume, snapshot, key, …
    NotFound = 3,
    /// Against a rule.
    Refused = 4,
    /// In use, or the name is taken.
    InUse = 5,
    /// Corruption, or a proof that differs.
    Corrupted = 6,
    /// Cancelled.
    Cancelled = 7,
}

impl Exit {
    /// The number.
    pub fn number(self) -> i32 {
        self as i32
    }

    /// What a number that another process gave means.
    pub fn of_number(number: i32) -> Self {
        let known = [
            Self::Success,
            Self::Usage,
            Self::NotFound,
            Self::Refused,
            Self::InUse,
            Self::Corrupted,
            Self::Cancelled,
        ];
        known.into_iter().find(|e| e.number() == number).unwrap_or(Self::Other)
    }
}

/// An error as it is printed. Also an error of its own, for what the command line itself refuses.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The number the process ends with.
    pub exit: Exit,
    /// What, and which thing.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Failure {
    /// A usage error.
    pub fn usage(message: impl Into<String>) -> anyhow::Error {
        Self { exit: Exit::Usage, message: message.into(), hint: None }.into()
    }

    /// Against a rule.
    pub fn refused(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
        Self { exit: Exit::Refused, message: message.into(), hint: Some(hint.into()) }.into()
    }

    /// What an error of any room ends with. The first error of the chain that a room knows decides; its text holds
    /// those of its own causes.
    pub fn of(error: &anyhow::Error) -> Self {
        let mut message = Vec::new();
        for cause in error.chain() {
            message.push(cause.to_string());
            if let Some((exit, hint)) = of_cause(cause) {
                return Self { exit, message: message.join(": "), hint };
            }
        }
        Self { exit: Exit::Other, message: message.join(": "), hint: None }
    }

    /// To stderr: a sentence and what to do, or one JSON object.
    pub fn print(&self, json: bool) {
        if json {
            let error = json!({ "exit": self.exit.number(), "message": self.message, "hint": self.hint });
            eprintln!("{}", printable_json(&json!({ "error": error }).to_string()));
            return;
        }
        eprintln!("terrane: {}", printable(&self.message));
        if let Some(hint) = &self.hint {
            eprintln!("  hint: {}", printable(hint));
        }
    }
}

/// The rooms' errors. A new room adds a line here and a match below.
fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<(Exit, Option<String>)> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        Some((failure.exit, failure.hint.clone()))
    } else if let Some(error) = cause.downcast_ref::<RegionError>() {
        Some((of_region(error), error.hint()))
    } else if let Some(error) = cause.downcast_ref::<KmsError>() {
        Some((of_kms(error), error.hint()))
    } else if let Some(error) = cause.downcast_ref::<CatalogError>() {
        Some((of_catalog(error), error.hint()))
    } else if let Some(error) = cause.downcast_ref::<CopyError>() {
        Some((of_copy(error), error.hint()))
    } else if let Some(error) = cause.downcast_ref::<ScheduleError>() {
        Some((of_schedule(error), error.hint()))
    } else if let Some(error) = cause.downcast_ref::<HostError>() {
        Some((of_host(error), error.hint()))
    } else if let Some(error) = cause.downcast_ref::<MountError>() {
        Some((super::mount::exit_of(error), None))
    } else if let Some(error) = cause.downcast_ref::<LoopError>() {
        Some((super::attach::exit_of(error), None))
    } else if let Some(error) = cause.downcast_ref::<ControlError>() {
        Some((of_control(error), None))
    } else if let Some(error) = cause.downcast_ref::<CryptoError>() {
        Some((of_crypto(error), None))
    } else {
        cause.downcast_ref::<io::Error>().map(|error| (of_io(error), None))
    }
}

fn of_region(error: &RegionError) -> Exit {
    match error {
        RegionError::NotARegion { .. } | RegionError::UnknownName { .. } => Exit::NotFound,
        // Nothing was named, so nothing was looked for: the command line is incomplete.
        RegionError::NotChosen { .. } | RegionError::Name(_) => Exit::Usage,
        RegionError::AmbiguousName { .. }
        | RegionError::NotOwner { .. }
        | RegionError::NetworkFileSystem { .. }
        // A newer format is whole, only not for this version.
        | RegionError::Newer { .. }
        | RegionError::RootKeyUnknown { .. }
        | RegionError::RootKeyFile { .. }
        | RegionError::WrongRootKey { .. }
        | RegionError::WrongPassphrase { .. }
        | RegionError::Passphrase { .. }
        | RegionError::Refused(_)
        | RegionError::AnotherRegion { .. } => Exit::Refused,
        RegionError::Exists { .. } | RegionError::InUse { .. } => Exit::InUse,
        RegionError::Corrupted { .. } | RegionError::Older { .. } => Exit::Corrupted,
        RegionError::Clock(_) | RegionError::NoConfigDir => Exit::Usage,
        RegionError::Io { source, .. } => of_io(source),
        RegionError::Catalog(error) => of_catalog(error),
        RegionError::Kms(error) => of_kms(error),
        RegionError::Crypto { source, .. } => of_crypto(source),
    }
}

fn of_host(error: &HostError) -> Exit {
    match error {
        HostError::Region(error) => of_region(error),
        HostError::Catalog(error) => of_catalog(error),
        HostError::Kms(error) => of_kms(error),
        HostError::Crypto(error) => of_crypto(error),
        HostError::Volume(error) if error.is_corruption() => Exit::Corrupted,
        HostError::Unvouched { .. } | HostError::Misfit { .. } => Exit::Corrupted,
        HostError::Volume(_) | HostError::OpenFiles { .. } => Exit::Other,
        // A file of a layer that is not what it should be is damage.
        HostError::Io { source, .. } => match source.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::NotFound => Exit::Corrupted,
            _ => of_io(source),
        },
        HostError::Refused { .. } => Exit::Refused,
        HostError::InUse { .. } => Exit::InUse,
        HostError::Control(error) => of_control(error),
        HostError::Answered { exit, .. } => Exit::of_number(*exit),
    }
}

pub(super) fn of_copy(error: &CopyError) -> Exit {
    match error {
        CopyError::Host(error) => of_host(error),
        CopyError::Refused { .. } => Exit::Refused,
        CopyError::Damaged { .. }
        | CopyError::DamagedBase { .. }
        | CopyError::Unproven { .. }
        | CopyError::Misled { .. }
        | CopyError::WrongBase { .. } => Exit::Corrupted,
        CopyError::NoSpace { .. } | CopyError::Panicked => Exit::Other,
        CopyError::Away { .. } => Exit::NotFound,
        CopyError::Overtaken { .. } | CopyError::Behind { .. } => Exit::InUse,
        CopyError::Interrupted | CopyError::Cancelled => Exit::Cancelled,
    }
}

fn of_schedule(error: &ScheduleError) -> Exit {
    match error {
        ScheduleError::Host(error) => of_host(error),
        ScheduleError::Copy(error) => of_copy(error),
    }
}

pub(super) fn of_control(error: &ControlError) -> Exit {
    match error {
        ControlError::ForeignUser(_) | ControlError::Refused(_) | ControlError::Version { .. } => {
            Exit::Refused
        }
        ControlError::AlreadyServed { .. } => Exit::InUse,
        _ => Exit::Other,
    }
}

fn of_catalog(error: &CatalogError) -> Exit {
    match error {
        CatalogError::NotFound { .. } => Exit::NotFound,
        CatalogError::Exists { .. } | CatalogError::Needed { .. } => Exit::InUse,
        CatalogError::Ambiguous { .. } | CatalogError::Refused { .. } | CatalogError::NewerSchema { .. } => {
            Exit::Refused
        }
        CatalogError::OlderSchema { .. } | CatalogError::Busy { .. } => Exit::InUse,
        CatalogError::Corrupted { .. } => Exit::Corrupted,
        CatalogError::Io { source, .. } => of_io(source),
        CatalogError::NoSpace { .. } | CatalogError::OpenFiles { .. } | CatalogError::Sql { .. } => {
            Exit::Other
        }
    }
}

fn of_kms(error: &KmsError) -> Exit {
    match error {
        KmsError::Disabled { .. } | KmsError::PendingDeletion { .. } => Exit::Refused,
        KmsError::NotFound { .. } => Exit::NotFound,
        KmsError::Damaged { .. } => Exit::Corrupted,
        KmsError::Io { source, .. } => of_io(source),
        KmsError::Region(error) => of_region(error),
        KmsError::Catalog(error) => of_catalog(error),
    }
}

fn of_crypto(error: &CryptoError) -> Exit {
    match error {
        CryptoError::UnknownCipher { .. } => Exit::Usage,
        CryptoError::EqualKeys
        | CryptoError::WrongLength { .. }
        | CryptoError::MalformedEnvelope { .. }
        | CryptoError::NotAuthentic
        // Parameters come from region.toml: what no version writes there is damage.
        | CryptoError::KdfBounds { .. } => Exit::Corrupted,
        CryptoError::KdfMemory { .. } | CryptoError::Kdf { .. } => Exit::Other,
    }
}

fn of_io(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::NotFound => Exit::NotFound,
        // The kernel's own rule about whose files these are.
        io::ErrorKind::PermissionDenied => Exit::Refused,
        io::ErrorKind::AlreadyExists => Exit::InUse,
        _ => Exit::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are a promise to scripts.
    #[test]
    fn errors_end_with_their_numbers() {
        let not_found = || CatalogError::NotFound {
            kind: crate::catalog::Kind::Key,
            text: "x".into(),
            region: "here".into(),
        };
        let number = |error: anyhow::Error| Failure::of(&error).exit.number();
        assert_eq!(number(not_found().into()), 3);
        assert_eq!(number(KmsError::Catalog(not_found()).into()), 3);
        assert_eq!(number(RegionError::Catalog(not_found()).into()), 3);
        assert_eq!(number(anyhow::Error::from(not_found()).context("while copying")), 3);
        assert_eq!(number(anyhow::anyhow!("anything else")), 1);
        assert_eq!(number(Failure::usage("x")), 2);
        assert_eq!(number(Failure::refused("x", "y")), 4);
        assert_eq!(number(RegionError::InUse { region: "here".into(), pids: vec![1] }.into()), 5);
        assert_eq!(number(KmsError::Damaged { what: "x".into(), region: "here".into() }.into()), 6);
    }

    #[test]
    fn a_message_names_a_thing_once() {
        let error = RegionError::Io {
            doing: "reading it",
            path: "/x".into(),
            source: io::ErrorKind::NotFound.into(),
        };
        let failure = Failure::of(&anyhow::Error::from(error).context("while copying"));
        assert_eq!(failure.message, "while copying: /x: reading it: entity not found");
    }
}
