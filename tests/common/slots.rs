//! What must hold of the slots of layers that were recovered.

use std::collections::HashSet;
use std::ops::Range;

use terrane::layer::{Layer, SLOTS_OFFSET, slot_offset};
use terrane::units::{SectorNo, SlotNo};
use terrane::volume::Stack;

use super::sim::Machine;

/// More than a simulated layer ever has.
const SLOTS_MAX: u64 = 1 << 30;

/// No slot belongs to two of these sectors of a layer.
pub fn check_owners(stack: &Stack, sectors: Range<u64>) {
    for layer in stack.chain.layers().iter().chain(&stack.active) {
        let mut owned = HashSet::new();
        for sector in sectors.clone() {
            if let Some(slot) = layer.entry(SectorNo(sector)).expect("a map is readable after a cut").slot() {
                assert!(owned.insert(slot), "slot {} has two owners", slot.0);
            }
        }
    }
}

/// Of what was recovered each slot holds a sector or is free: none is lost, and with it space for ever. And by rule 16 of
/// those that are free no more than a tenth of what is held takes space.
pub fn check_free(machine: &Machine, layer: &Layer) {
    layer.learn_free_slots().unwrap();
    let (backed, holes, high) = layer.slot_counts();
    let (free, held) = (backed + holes, layer.data_sectors());
    assert_eq!(free + held, high, "{free} slots are free and {held} held of {high}");
    layer.punch_free();
    check_stored(machine, layer, high);
}

/// The same bound for layers whose seal or fold is finished: what they had free was given back, and a cut does not bring it back.
pub fn check_sealed(machine: &Machine, stack: &Stack) {
    stack.chain.layers().iter().for_each(|layer| check_stored(machine, layer, SLOTS_MAX));
}

fn check_stored(machine: &Machine, layer: &Layer, high: u64) {
    let held = layer.data_sectors();
    let slots = SLOTS_OFFSET..slot_offset(SlotNo(high));
    let stored = machine.stored_in(&format!("{}.data", layer.id()), slots);
    let most = (held + held / 10) * 4096;
    assert!(stored <= most, "{stored} bytes of slots are stored for {held} sectors held, bound {most}");
}
