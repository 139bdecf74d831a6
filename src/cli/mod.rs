//! One file a noun.

/// Parses the command line and runs it; the process's exit number.
pub fn main() -> i32 {
    2
}
