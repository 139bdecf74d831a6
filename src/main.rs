//! The binary: parse, set up logging, call the library.

fn main() {
    std::process::exit(terrane::cli::main());
}
