//! An object's header, read before the library opens the object: version 2.2 of the library can crash or loop forever in
//! virtual datasets, which map the data of others, so those are refused. So is a group whose heap of names has a circular
//! list of free blocks, which the library would follow until memory is exhausted.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;

use hdf5_metno::Group;
use hdf5_metno_sys::h5o::{H5O_INFO_BASIC, H5O_info2_t, H5Oget_info_by_name3};
use hdf5_metno_sys::h5p::H5P_DEFAULT;
use lgm_core::{Error, Result};

use crate::handle::{H5File, MAGIC};
use crate::reason;

/// Types of messages: how a dataset is stored, where a group's members are, and where the header goes on.
const LAYOUT: u16 = 0x08;
const SYMBOL_TABLE: u16 = 0x11;
const CONTINUATION: u16 = 0x10;
/// The class of a virtual dataset's layout, which layouts have from version 4 on.
const VIRTUAL: (u8, u8) = (4, 3);
/// Most blocks of one header, and bytes of one block.
const BLOCKS: usize = 1000;
const BLOCK: u64 = 16 << 20;

/// Fails for a dataset that is virtual or in another file, and for an object that is no dataset with a complete header.
pub(crate) fn check(file: &H5File, name: &str) -> Result<()> {
    let fail = |what: &str| file.fail(format!("'{name}' cannot be read as a dataset: {what}"));
    let (here, _) = locate(&file.file, ".").map_err(|e| fail(&reason(&e)))?;
    let (there, address) = locate(&file.file, name).map_err(|e| fail(&reason(&e)))?;
    if here != there {
        return Err(fail("it is in another file, to which an external link points; give that file"));
    }
    let bytes = File::open(file.path()).map_err(Error::io(file.path(), "open"))?;
    let header = Bytes::new(&bytes).and_then(|bytes| bytes.header(address)?.layout);
    match header {
        Some((version, class)) if version >= VIRTUAL.0 && class == VIRTUAL.1 => {
            Err(fail("it is virtual: its data are in other datasets; copy them into one"))
        }
        Some(_) => Ok(()),
        None => Err(fail("its header is damaged or that of something else")),
    }
}

/// Fails for a group of this file whose heap of names the library could not read to its end; anything else passes.
pub(crate) fn check_group(file: &H5File, group: &Group, name: &str) -> Result<()> {
    let Ok((_, address)) = locate(group, ".") else { return Ok(()) };
    let bytes = File::open(file.path()).map_err(Error::io(file.path(), "open"))?;
    let Some(bytes) = Bytes::new(&bytes) else { return Ok(()) };
    let heap = bytes.header(address).and_then(|header| header.heap);
    if heap.is_none_or(|heap| bytes.ends(heap).unwrap_or(true)) {
        return Ok(());
    }
    Err(file.fail(format!("the group '/{name}' is damaged: the free blocks of its names are a circle")))
}

/// The number of the file that holds an object, and its address there.
fn locate(from: &Group, name: &str) -> hdf5_metno::Result<(u64, u64)> {
    let name = std::ffi::CString::new(name).map_err(|e| e.to_string())?;
    let mut info = MaybeUninit::<H5O_info2_t>::uninit();
    let (object, to) = (from.id(), info.as_mut_ptr());
    // SAFETY: the name ends in a zero, and `info` is the struct that the call fills.
    let get = || unsafe { H5Oget_info_by_name3(object, name.as_ptr(), to, H5O_INFO_BASIC, H5P_DEFAULT) };
    hdf5_metno::sync::sync(|| hdf5_metno::h5check(get()))?;
    // SAFETY: the call has filled it.
    let info = unsafe { info.assume_init() };
    // SAFETY: a token is sixteen bytes, which begin with the address in files.
    let address = unsafe { (&raw const info.token).cast::<[u8; 8]>().read() };
    let address = u64::from_le_bytes(address);
    Ok((info.fileno, address))
}

/// How an object is stored.
#[derive(Default)]
struct Header {
    /// The version and class of a dataset's layout.
    layout: Option<(u8, u8)>,
    /// Where a group keeps the names of its members.
    heap: Option<u64>,
}

/// A file's bytes, and how its addresses and lengths are written.
struct Bytes<'a> {
    file: &'a File,
    base: u64,
    address: usize,
    length: usize,
}

impl<'a> Bytes<'a> {
    /// Reads the superblock, which begins at byte 0 or at 512 · 2ⁿ.
    fn new(file: &'a File) -> Option<Bytes<'a>> {
        let starts = std::iter::once(0).chain((9..40).map(|n| 1 << n));
        for base in starts {
            let mut start = [0; 16];
            file.read_exact_at(&mut start, base).ok()?;
            if start.starts_with(&MAGIC) {
                let sizes = if start[8] < 2 { [start[13], start[14]] } else { [start[9], start[10]] };
                let [address, length] = sizes.map(usize::from);
                let known = |size| [2, 4, 8].contains(&size);
                return (known(address) && known(length)).then_some(Bytes { file, base, address, length });
            }
        }
        None
    }

    fn read(&self, at: u64, len: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len).ok().filter(|_| len <= BLOCK)?];
        self.file.read_exact_at(&mut bytes, self.base.checked_add(at)?).ok()?;
        Some(bytes)
    }

    /// Whether the list of free blocks of the heap at `at` has an end. Each block has the place of the next and its size.
    fn ends(&self, at: u64) -> Option<bool> {
        let length = self.length as u64;
        let head = self.read(at, 8_u64.checked_add(length.checked_mul(2)?)?.checked_add(self.address as u64)?)?;
        if !head.starts_with(b"HEAP") {
            return None;
        }
        let size = number(&head, 8, self.length)?;
        // Behind the size of what it holds, the first free block, and the address of the heap's data.
        let behind = head.get(8_usize.checked_add(self.length)?..)?;
        let data = self.read(number(behind, self.length, self.address)?, size)?;
        let mut next = number(behind, 0, self.length)?;
        for _ in 0..=size.checked_div(length)? {
            // The end is 1, where no block can be.
            let Ok(block) = usize::try_from(next) else { return Some(true) };
            let Some(after) = number(&data, block, self.length).filter(|_| next != 1) else { return Some(true) };
            next = after;
        }
        Some(false)
    }

    /// How the object with the header at `at` is stored.
    fn header(&self, at: u64) -> Option<Header> {
        let head = self.read(at, 16)?;
        let mut found = Header::default();
        // Blocks of messages still to be looked through; in version 2, a header of each.
        let (mut blocks, before, ordered) = if head.starts_with(b"OHDR") {
            let flags = head[5];
            let start: u64 = [(0x20, 16), (0x10, 4)]
                .iter()
                .filter(|(flag, _)| flags & flag != 0)
                .fold(6, |sum: u64, (_, n)| sum.saturating_add(*n));
            let width = 1 << (flags & 3);
            let size = number(&self.read(at.checked_add(start)?, width)?, 0, width as usize)?;
            (vec![(at.checked_add(start)?.checked_add(width)?, size)], 4, Some(flags & 0x04 != 0))
        } else if head[0] == 1 {
            (vec![(at.checked_add(16)?, number(&head, 8, 4)?)], 8, None)
        } else {
            return None;
        };
        let before = if ordered == Some(true) { 6 } else { before };
        for _ in 0..BLOCKS {
            let Some((at, size)) = blocks.pop() else { return Some(found) };
            let block = self.read(at, size)?;
            let mut rest = &block[..];
            while let Some((head, after)) = rest.split_at_checked(before) {
                let (kind, size) = match ordered {
                    None => (number(head, 0, 2)? as u16, number(head, 2, 2)?),
                    Some(_) => (u16::from(*head.first()?), number(head, 1, 2)?),
                };
                // What does not fit is a gap at the end.
                let Some((message, after)) = after.split_at_checked(size as usize) else { break };
                match kind {
                    // Of several, a virtual one counts: which the library takes is its affair.
                    LAYOUT if message.len() >= 2 => found.layout = found.layout.max(Some((message[0], message[1]))),
                    SYMBOL_TABLE => found.heap = Some(number(message, self.address, self.address)?),
                    CONTINUATION => {
                        let at = number(message, 0, self.address)?;
                        let len = number(message, self.address, self.length)?;
                        // In version 2 a block begins with its signature and ends with its checksum.
                        let inner =
                            if ordered.is_some() { (at.checked_add(4)?, len.checked_sub(8)?) } else { (at, len) };
                        blocks.push(inner);
                    }
                    _ => {}
                }
                rest = after;
            }
        }
        None
    }
}

fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
}
