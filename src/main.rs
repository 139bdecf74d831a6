//! The binary: parse, set up logging, call the library.

use terrane::sys::large_buffers::LargeBuffers;

#[global_allocator]
static ALLOCATOR: LargeBuffers = LargeBuffers;

fn main() {
    std::process::exit(terrane::cli::main());
}
