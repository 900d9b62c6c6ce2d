//! Global heaps, in which the library of version 2.2 can go round for ever: free space of no bytes, or an object whose length
//! wraps to none, leads to itself. Files are looked through for such heaps before the library sees them.

use std::io::Read;
use std::path::Path;

use lgm_core::{Error, Result};

use crate::file::MAGIC;

/// Files up to this size are looked through: those made to do harm are small, and large ones would take long.
const LARGEST: u64 = 16 << 20;
/// Bytes before a heap's first object, and before an object's data.
const HEADER: usize = 16;

/// Fails for a file with a heap that has no end.
pub(crate) fn check(path: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
    if file.metadata().map_err(Error::io(path, "read"))?.len() > LARGEST {
        return Ok(());
    }
    file.take(LARGEST).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    let Some(word) = length_size(&bytes) else { return Ok(()) };
    match memchr::memmem::find_iter(&bytes, b"GCOL").find(|&at| is_endless(&bytes[at..], word)) {
        Some(at) => Err(Error::data(path, format!("is damaged: the global heap at byte {at} has no end"))),
        None => Ok(()),
    }
}

/// Bytes of a length, as the superblock says, which begins at byte 0 or at 512 · 2ⁿ.
fn length_size(bytes: &[u8]) -> Option<usize> {
    let starts = std::iter::once(0).chain((9..).map(|n| 1 << n)).take_while(|&at| at < bytes.len());
    let block = starts.map(|at| &bytes[at..]).find(|block| block.starts_with(&MAGIC))?;
    let at = if *block.get(8)? < 2 { 14 } else { 10 };
    block.get(at).map(|&size| usize::from(size)).filter(|size| [2, 4, 8].contains(size))
}

fn length(bytes: &[u8], at: usize, size: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + size)?;
    bytes.iter().rev().try_fold(0_usize, |n, &byte| n.checked_mul(256)?.checked_add(usize::from(byte)))
}

/// Whether walking a heap's objects, each behind the other, comes to one that leads to itself.
fn is_endless(heap: &[u8], word: usize) -> bool {
    let Some(size) = length(heap, 8, word).filter(|&size| size <= heap.len()) else { return false };
    let mut at = HEADER;
    while at + HEADER <= size {
        let Some(len) = length(heap, at + 8, word) else { return false };
        let free = heap[at..at + 2] == [0, 0];
        // As the library adds up.
        match if free { len } else { (len.wrapping_add(7) & !7).wrapping_add(HEADER) } {
            0 => return true,
            step if step <= size - at => at += step,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_of_no_bytes_is_found() {
        let mut file = MAGIC.to_vec();
        file.extend([0, 0, 0, 0, 0, 8, 8, 0]);
        file.extend(b"GCOL\x01\0\0\0");
        file.extend(64u64.to_le_bytes());
        let object =
            |index: u16, len: u64| [&index.to_le_bytes()[..], &[1, 0, 0, 0, 0, 0], &len.to_le_bytes()].concat();
        file.extend(object(1, 5));
        file.extend([7; 8]);
        file.extend(object(0, 24));
        file.resize(16 + 64, 0);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        std::fs::write(&path, &file).unwrap();
        check(&path).unwrap();
        file[16 + 40 + 8] = 0;
        std::fs::write(&path, &file).unwrap();
        assert!(check(&path).unwrap_err().to_string().contains("the global heap at byte 16 has no end"));
        file[16 + 16 + 8..][..8].copy_from_slice(&(u64::MAX - 15).to_le_bytes());
        std::fs::write(&path, &file).unwrap();
        assert!(check(&path).is_err());
    }
}
