//! A file in memory. Clones share what neither has changed.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use terrane::layer::Store;

const PAGE: u64 = 4096;

#[derive(Clone, Default)]
struct Image {
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
    len: u64,
}

#[derive(Default)]
pub struct Memory(Mutex<Image>);

impl Memory {
    pub fn fork(&self) -> Self {
        Self(Mutex::new(self.0.lock().clone()))
    }

    /// The pages that hold something.
    pub fn pages(&self) -> Vec<u64> {
        self.0.lock().pages.keys().copied().collect()
    }

    pub fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.read_at(&mut bytes, offset).unwrap();
        bytes
    }
}

impl Store for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().len)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let image = self.0.lock();
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let take = (PAGE as usize - within).min(into.len() - done);
            match image.pages.get(&(at / PAGE)).filter(|_| at < image.len) {
                Some(page) => into[done..done + take].copy_from_slice(&page[within..within + take]),
                None => into[done..done + take].fill(0),
            }
            done += take;
        }
        Ok(())
    }

    fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(from.len() as u64).filter(|end| *end < 1 << 63);
        let end = end.ok_or(io::ErrorKind::FileTooLarge)?;
        let image = &mut *self.0.lock();
        let mut done = 0;
        while done < from.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let take = (PAGE as usize - within).min(from.len() - done);
            let page = image.pages.entry(at / PAGE).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(page)[within..within + take].copy_from_slice(&from[done..done + take]);
            done += take;
        }
        image.len = image.len.max(end);
        Ok(())
    }

    fn append(&self, from: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(from, offset)
    }

    fn prepare_log(&self, offset: u64, len: u64) -> io::Result<()> {
        let image = &mut *self.0.lock();
        image.pages.retain(|page, _| !(offset..offset + len).contains(&(page * PAGE)));
        image.len = image.len.max(offset + len);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let image = &mut *self.0.lock();
        image.len = len;
        image.pages.retain(|page, _| page * PAGE < len);
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let image = &mut *self.0.lock();
        image.pages.retain(|page, _| !(offset..offset + len).contains(&(page * PAGE)));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn stored_bytes(&self) -> io::Result<u64> {
        Ok(self.0.lock().pages.len() as u64 * PAGE)
    }

    fn data_end(&self, range: Range<u64>) -> io::Result<u64> {
        let image = self.0.lock();
        let last = image.pages.range(range.start / PAGE..range.end.div_ceil(PAGE)).next_back();
        Ok(last.map_or(range.start, |(page, _)| ((page + 1) * PAGE).min(range.end)))
    }
}
