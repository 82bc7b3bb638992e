//! The bytes of a file: copy-on-write pages, so that a copy costs nothing and a changed one only its changed pages.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// The unit that a disk writes or does not write.
pub(super) const SECTOR: u64 = 512;
/// The unit of the page cache and of space.
pub(super) const PAGE: u64 = 4096;
const PAGE_BYTES: usize = PAGE as usize;
const SECTORS_A_PAGE: u64 = PAGE / SECTOR;

pub(super) type Page = [u8; PAGE_BYTES];

static ZEROES: LazyLock<Arc<Page>> = LazyLock::new(|| Arc::new([0; PAGE_BYTES]));

/// Bytes of a file, holes included. Bytes past the length are kept (a disk has them too) but not read.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pages: Arc<Vec<Option<Arc<Page>>>>,
    length: u64,
    allocated: u64,
}

impl Content {
    pub(super) const fn length(&self) -> u64 {
        self.length
    }

    /// How many pages have space of their own.
    pub(super) const fn allocated(&self) -> u64 {
        self.allocated
    }

    pub(super) fn page(&self, number: u64) -> Option<&Arc<Page>> {
        self.pages.get(usize::try_from(number).ok()?)?.as_ref()
    }

    /// How many pages of `range` would need new space.
    pub(super) fn missing(&self, range: Range<u64>) -> u64 {
        pages_of(range).filter(|&number| self.page(number).is_none()).count() as u64
    }

    /// Bytes from `position`, as many as there are.
    pub(super) fn read(&self, buffer: &mut [u8], position: u64) -> usize {
        let wanted = (buffer.len() as u64).min(self.length.saturating_sub(position)) as usize;
        self.read_blocks(&mut buffer[..wanted], position)
    }

    /// Bytes from `position` whatever the length is, as blocks have them.
    pub(super) fn read_blocks(&self, buffer: &mut [u8], position: u64) -> usize {
        let wanted = buffer.len() as u64;
        let mut done = 0_u64;
        while done < wanted {
            let at = position + done;
            let (number, inside) = (at / PAGE, at % PAGE);
            let count = (PAGE - inside).min(wanted - done);
            let target = &mut buffer[done as usize..(done + count) as usize];
            match self.page(number) {
                Some(page) => target.copy_from_slice(&page[inside as usize..(inside + count) as usize]),
                None => target.fill(0),
            }
            done += count;
        }
        wanted as usize
    }

    /// Writes and grows the length over what was written.
    pub(super) fn write(&mut self, bytes: &[u8], position: u64) {
        let mut done = 0_usize;
        while done < bytes.len() {
            let at = position + done as u64;
            let (number, inside) = (at / PAGE, (at % PAGE) as usize);
            let count = (PAGE_BYTES - inside).min(bytes.len() - done);
            let page = self.page_mut(number);
            page[inside..inside + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
        self.length = self.length.max(position + bytes.len() as u64);
    }

    /// Gives the pages of `range` space.
    pub(super) fn allocate(&mut self, range: Range<u64>) {
        for number in pages_of(range) {
            if self.page(number).is_none() {
                self.set_page(number, Some(Arc::clone(&ZEROES)));
            }
        }
    }

    /// Only the length; for a longer one the new bytes are those that the pages have.
    pub(super) fn set_length(&mut self, length: u64) {
        self.length = length;
    }

    /// Cuts to `length`: what was past it is gone, and reads as zeroes when the file grows again.
    pub(super) fn cut(&mut self, length: u64) {
        let first_gone = length.div_ceil(PAGE);
        for number in first_gone..self.pages.len() as u64 {
            if self.page(number).is_some() {
                self.set_page(number, None);
            }
        }
        if !length.is_multiple_of(PAGE) && self.page(length / PAGE).is_some() {
            self.page_mut(length / PAGE)[(length % PAGE) as usize..].fill(0);
        }
        self.length = self.length.min(length);
    }

    /// Takes the sectors in `mask` of a page over from `other`.
    pub(super) fn take_sectors(&mut self, other: Option<&Arc<Page>>, number: u64, mask: u8) {
        if mask == u8::MAX {
            self.set_page(number, other.map(Arc::clone));
            return;
        }
        let source: &Page = other.map_or(&ZEROES, |page| page);
        let target = self.page_mut(number);
        for sector in 0..SECTORS_A_PAGE {
            if mask & (1 << sector) != 0 {
                let range = (sector * SECTOR) as usize..((sector + 1) * SECTOR) as usize;
                target[range.clone()].copy_from_slice(&source[range]);
            }
        }
    }

    pub(super) fn flip(&mut self, position: u64, bit: u8) {
        self.page_mut(position / PAGE)[(position % PAGE) as usize] ^= 1 << (bit % 8);
    }

    fn set_page(&mut self, number: u64, page: Option<Arc<Page>>) {
        let index = self.grown_to(number);
        let slot = &mut Arc::make_mut(&mut self.pages)[index];
        self.allocated = self.allocated + u64::from(page.is_some()) - u64::from(slot.is_some());
        *slot = page;
    }

    fn page_mut(&mut self, number: u64) -> &mut Page {
        let index = self.grown_to(number);
        let slot = &mut Arc::make_mut(&mut self.pages)[index];
        if slot.is_none() {
            self.allocated += 1;
        }
        Arc::make_mut(slot.get_or_insert_with(|| Arc::clone(&ZEROES)))
    }

    fn grown_to(&mut self, number: u64) -> usize {
        let index = number as usize;
        if self.pages.len() <= index {
            Arc::make_mut(&mut self.pages).resize(index + 1, None);
        }
        index
    }
}

/// The pages that `range` touches.
pub(super) fn pages_of(range: Range<u64>) -> Range<u64> {
    if range.is_empty() { 0..0 } else { range.start / PAGE..range.end.div_ceil(PAGE) }
}

/// The sectors of page `number` that `range` touches, a bit each.
pub(super) fn sectors_of(range: &Range<u64>, number: u64) -> u8 {
    let page = number * PAGE;
    let start = range.start.max(page) - page;
    let end = range.end.min(page + PAGE).saturating_sub(page);
    let mut mask = 0;
    for sector in 0..SECTORS_A_PAGE {
        if start < (sector + 1) * SECTOR && sector * SECTOR < end {
            mask |= 1 << sector;
        }
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_across_pages() {
        let mut content = Content::default();
        let bytes: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        content.write(&bytes, 3000);
        let mut read = vec![9; 14_000];
        assert_eq!(content.read(&mut read, 0), 13_000);
        assert!(read[..3000].iter().all(|&byte| byte == 0));
        assert_eq!(&read[3000..13_000], &bytes[..]);
        assert_eq!(content.allocated(), 4);
    }

    #[test]
    fn a_copy_does_not_see_later_writes() {
        let mut content = Content::default();
        content.write(&[1; 5000], 0);
        let copy = content.clone();
        content.write(&[2], 4999);
        let mut byte = [0];
        copy.read(&mut byte, 4999);
        assert_eq!(byte, [1]);
    }

    #[test]
    fn what_was_cut_reads_as_zeroes_when_the_file_grows_again() {
        let mut content = Content::default();
        content.write(&[7; 9000], 0);
        content.cut(4100);
        content.set_length(9000);
        let mut read = vec![1; 9000];
        content.read(&mut read, 0);
        assert!(read[..4100].iter().all(|&byte| byte == 7) && read[4100..].iter().all(|&byte| byte == 0));
        assert_eq!(content.allocated(), 2);
    }

    #[test]
    fn masks_name_the_touched_sectors() {
        assert_eq!(sectors_of(&(0..1), 0), 0b1);
        assert_eq!(sectors_of(&(511..513), 0), 0b11);
        assert_eq!(sectors_of(&(0..PAGE), 0), u8::MAX);
        assert_eq!(sectors_of(&(100..PAGE + 1), 1), 0b1);
        assert_eq!(pages_of(0..0), 0..0);
        assert_eq!(pages_of(4095..4097), 0..2);
    }
}
