//! The next chunk of which any of many layers records something, found without asking each layer for each chunk.

use std::sync::Arc;

use super::error::Result;
use crate::layer::Layer;

/// Of each layer the first chunk from a number on of which it records something, as it was found last: a sparse layer is not
/// searched anew for each chunk of the others.
#[derive(Default)]
pub struct Ahead {
    at: u64,
    firsts: Vec<u64>,
}

impl Ahead {
    /// The first chunk from `at` on, and before `end`, of which any of these records something; always the same layers.
    pub fn first<'a>(
        &mut self,
        layers: impl Iterator<Item = &'a Arc<Layer>>,
        at: u64,
        end: u64,
    ) -> Result<Option<u64>> {
        if at < self.at {
            self.firsts.clear();
        }
        self.at = at;
        let mut first = u64::MAX;
        for (number, layer) in layers.enumerate() {
            if number == self.firsts.len() {
                self.firsts.push(0);
            }
            let known = &mut self.firsts[number];
            // Never looked for, or passed. (Chunk 0 is looked for each time it is asked for.)
            if *known < at || at == 0 {
                *known = layer.next_present(at..end)?.unwrap_or(u64::MAX);
            }
            first = first.min(*known);
        }
        Ok(Some(first).filter(|first| *first < end))
    }
}
