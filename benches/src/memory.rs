//! Memory that a virtual machine keeps while something is measured.

use anyhow::{Context, Result, ensure};
use memmap2::MmapMut;

/// Bytes of a page.
const PAGE_BYTES: usize = 4096;
/// Bytes of the blocks that are free. Free page reporting gives blocks back to the host from 128 KiB on at the least (order
/// 5 of `/sys/module/page_reporting/parameters/page_reporting_order`), never smaller ones; and wherever in memory one of
/// these begins, it has an aligned block of 64 KiB in it, which is what the broker's writes take.
const BLOCK_BYTES: usize = 31 * PAGE_BYTES;
/// Bytes that can be kept: two mappings for each block stay below the 65,530 that Linux lets a process have.
pub const KEPT_BYTES_MAX: u64 = 3584 << 20;

/// Free memory that its host does not take back, for as long as this lives.
///
/// A virtual machine with free page reporting gives free memory to its host after two seconds, and the first write to each
/// page of it later is a fault there: writing into the page cache goes at a tenth of its speed then. What is given back are
/// large blocks. So memory is taken here, and let go but for a page now and then: what is free between those cannot become
/// a large block.
#[derive(Debug)]
pub struct Kept {
    /// A page between every two free blocks.
    held: Vec<MmapMut>,
}

impl Kept {
    /// Makes `bytes` of free memory stay.
    ///
    /// # Errors
    /// When `bytes` is above [`KEPT_BYTES_MAX`], or there is no memory.
    pub fn new(bytes: u64) -> Result<Self> {
        ensure!(bytes <= KEPT_BYTES_MAX, "{bytes} bytes are more than the {KEPT_BYTES_MAX} that can be kept");
        let blocks = usize::try_from(bytes)? / BLOCK_BYTES;
        let mut held = Vec::with_capacity(blocks);
        let mut free = Vec::with_capacity(blocks);
        for _block in 0..blocks {
            free.push(touched(BLOCK_BYTES)?);
            held.push(touched(PAGE_BYTES)?);
        }
        // Not before all are taken: what is let go would be taken again.
        drop(free);
        Ok(Self { held })
    }

    /// Bytes that stay free.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.held.len() as u64 * BLOCK_BYTES as u64
    }
}

/// Memory that has been written to.
fn touched(bytes: usize) -> Result<MmapMut> {
    let mut block = MmapMut::map_anon(bytes).context("map memory; see vm.max_map_count")?;
    for page in block.chunks_mut(PAGE_BYTES) {
        page.fill(1);
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_held_for_each_block_that_is_free() {
        let kept = Kept::new(4 * BLOCK_BYTES as u64).unwrap();
        assert_eq!(kept.bytes(), 4 * BLOCK_BYTES as u64);
        assert!(
            kept.held.len() == 4 && kept.held.iter().all(|page| page.len() == PAGE_BYTES && page[0] == 1)
        );
    }

    #[test]
    fn there_is_a_bound() {
        let error = Kept::new(KEPT_BYTES_MAX + 1).unwrap_err();
        assert!(error.to_string().contains("more than"), "{error}");
    }
}
