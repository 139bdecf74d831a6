//! A sealed layer that a fold changes: opened to take writes again, and read meanwhile by those who have it open.
//!
//! What is read through the layers above stays the same (rule 20), so a reader may see any mixture of its pages before and
//! after. A page that was written over since its reader read the superblock fails its check: the reader takes the newer
//! superblock then, and asks again.

use std::sync::atomic::Ordering;

use super::bytes::Superblock;
use super::durable::SealedMark;
use super::engine::{Layer, Parts};
use super::error::{LayerError, Result, no_space_or};
use super::recover::{newest_superblock, refuse_older_header};
use super::tree::Leaf;
use crate::units::ChunkNo;

impl Layer {
    /// Opens a layer to take a fold's writes: one that is sealed, or one where a fold was cut short. `size_bytes` may be more
    /// than it had. The caller holds the lock of the data file, and has written down that the layer is being changed.
    pub fn reopen(parts: Parts, size_bytes: u64) -> Result<Self> {
        let layer = Self::recover(parts.clone(), None)?;
        if layer.is_ended() && !layer.sealed.load(Ordering::Acquire) {
            // Whoever goes on with the fold looks for all that is free at its end.
            layer.settle_seal()?;
        }
        let (sb, _) = layer.superblock.lock().clone();
        if !sb.is_sealed() {
            return match layer.size_bytes() == size_bytes {
                true => {
                    layer.unpunched.store(true, Ordering::Release);
                    Ok(layer)
                }
                false => Err(LayerError::corrupted(
                    format!("layer {} in a fold", layer.id()),
                    format!("{size_bytes} bytes"),
                    format!("{} bytes", layer.size_bytes()),
                )),
            };
        }
        // A seal leaves a fresh place and number for the log to go on from.
        let next = Superblock {
            flags: 0,
            generation: sb.generation + 1,
            size_bytes: size_bytes.max(sb.size_bytes),
            edition: parts.edition,
            ..sb
        };
        let (bytes, mac) = next.to_bytes(parts.id, parts.keys.superblock());
        let written = parts.data.write_at(&bytes, Superblock::offset(next.generation));
        written.and_then(|()| parts.data.sync()).map_err(|e| no_space_or(e, "opening a sealed layer"))?;
        Ok(Self::assemble(parts, next, mac, [0; 2]))
    }

    /// Opens a layer that a fold is changing, to read it: its pages, newer than `mark` or the same. What only its log has is
    /// found in the other layer of the fold.
    pub fn open_folding(parts: Parts, mark: SealedMark) -> Result<Self> {
        let (sb, mac) = newest_superblock(parts.id, &*parts.data, &parts.keys)?;
        refuse_older_header(&parts, &sb)?;
        if sb.generation < mark.generation || sb.generation == mark.generation && mac != mark.mac {
            return Err(LayerError::corrupted(
                format!("the superblock of layer {}", parts.id),
                format!("generation {} or newer", mark.generation),
                format!("generation {}", sb.generation),
            ));
        }
        let layer = Self::assemble(parts, sb, mac, [0; 2]);
        layer.sealed.store(true, Ordering::Release);
        Ok(layer)
    }

    /// Whether it is sealed, and with this mark.
    pub fn is_sealed_as(&self, mark: SealedMark) -> bool {
        let current = self.superblock.lock();
        self.sealed.load(Ordering::Acquire)
            && (current.0.generation, current.1) == (mark.generation, mark.mac)
    }

    /// Whether it is as a fold found it, with this mark, or newer: what earlier folds moved is in it.
    pub fn is_at_least(&self, mark: SealedMark) -> bool {
        let current = self.superblock.lock();
        let generation = current.0.generation;
        generation > mark.generation || (generation, current.1) == (mark.generation, mark.mac)
    }

    /// It is sealed and its row says so: its lock is free for a fold.
    pub fn release_lock(&self) {
        self.data.release_lock();
    }

    /// Asks the pages; where one fails its check and there is a newer superblock, asks again below that.
    pub(super) fn ask_pages<T>(&self, ask: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            match ask() {
                Err(e) if e.is_corruption() && self.takes_newer_superblock()? => {}
                other => return other,
            }
        }
    }

    /// A chunk's entries by the pages.
    pub(super) fn leaf(&self, chunk: ChunkNo) -> Result<Leaf> {
        self.ask_pages(|| self.tree.leaf(chunk))
    }

    /// Whether somebody has written a newer superblock into this layer, which only reads it.
    pub(super) fn takes_newer_superblock(&self) -> Result<bool> {
        if !self.sealed.load(Ordering::Acquire) {
            return Ok(false);
        }
        let mut current = self.superblock.lock();
        let (sb, mac) = newest_superblock(self.id, &*self.data, &self.keys)?;
        let newer = sb.generation > current.0.generation;
        if newer {
            self.tree.publish(sb.top);
            *current = (sb, mac);
        }
        Ok(newer)
    }
}
