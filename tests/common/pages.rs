//! The pages of a simulated file. Copies share them, by groups, so that a copy costs little: a test makes several for each cut.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
pub type PageBytes = [u8; PAGE as usize];

/// Pages of a group.
const GROUP: u64 = 64;
type Group = [Option<Arc<PageBytes>>; GROUP as usize];

static ZEROS: LazyLock<Arc<PageBytes>> = LazyLock::new(|| Arc::new([0; PAGE as usize]));

/// Pages by number; absent ones are holes.
#[derive(Clone, Default)]
pub struct Pages {
    groups: BTreeMap<u64, Arc<Group>>,
}

impl Pages {
    pub fn get(&self, page: u64) -> Option<&PageBytes> {
        self.groups.get(&(page / GROUP))?[(page % GROUP) as usize].as_deref()
    }

    pub fn contains(&self, page: u64) -> bool {
        self.get(page).is_some()
    }

    pub fn count(&self) -> u64 {
        self.groups.values().map(|group| group.iter().flatten().count() as u64).sum()
    }

    /// A page to change, made if it is absent.
    pub fn make(&mut self, page: u64) -> &mut PageBytes {
        Arc::make_mut(self.place(page).get_or_insert_with(|| ZEROS.clone()))
    }

    /// How many there are of these.
    pub fn count_in(&self, pages: Range<u64>) -> u64 {
        let groups = self.groups.range(pages.start / GROUP..pages.end.div_ceil(GROUP));
        let present = |(number, group): (&u64, &Arc<Group>)| {
            let of_group = group.iter().zip(number * GROUP..).filter(|(page, _)| page.is_some());
            of_group.filter(|(_, number)| pages.contains(number)).count() as u64
        };
        groups.map(present).sum()
    }

    /// Makes them zeros that take space.
    pub fn zero(&mut self, pages: Range<u64>) {
        pages.for_each(|page| *self.place(page) = Some(ZEROS.clone()));
    }

    fn place(&mut self, page: u64) -> &mut Option<Arc<PageBytes>> {
        let group =
            self.groups.entry(page / GROUP).or_insert_with(|| Arc::new([const { None }; GROUP as usize]));
        &mut Arc::make_mut(group)[(page % GROUP) as usize]
    }

    pub fn remove(&mut self, pages: Range<u64>) {
        if pages.is_empty() {
            return;
        }
        for (number, group) in self.groups.range_mut(pages.start / GROUP..=(pages.end - 1) / GROUP) {
            let first = number * GROUP;
            let within = pages.start.saturating_sub(first)..(pages.end - first).min(GROUP);
            let within = within.start as usize..within.end as usize;
            if group[within.clone()].iter().any(Option::is_some) {
                Arc::make_mut(group)[within].fill(None);
            }
        }
        self.groups.retain(|_, group| group.iter().any(Option::is_some));
    }

    /// The last there is of these.
    pub fn last_of(&self, pages: Range<u64>) -> Option<u64> {
        if pages.is_empty() {
            return None;
        }
        let groups = self.groups.range(pages.start / GROUP..=(pages.end - 1) / GROUP);
        let mut all = groups.rev().flat_map(|(number, group)| {
            let present = group.iter().enumerate().rev().filter(|(_, page)| page.is_some());
            present.map(move |(within, _)| number * GROUP + within as u64)
        });
        all.find(|page| pages.contains(page))
    }
}
