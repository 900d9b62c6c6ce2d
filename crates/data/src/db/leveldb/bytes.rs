//! Numbers and strings in LevelDB's files, and their checksums.

/// Bytes yet to be read. Where they do not hold what is asked for, there is none.
#[derive(Clone, Copy)]
pub(super) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of seven bits a byte, the lowest first.
    pub fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            let moved = bits << shift;
            if moved >> shift != bits {
                return None;
            }
            value |= moved;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A varint that counts bytes.
    pub fn length(&mut self) -> Option<usize> {
        self.varint().and_then(|length| usize::try_from(length).ok())
    }

    /// A string behind its length.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.length()?;
        self.bytes(length)
    }
}

/// Whether bytes in two parts have a checksum as LevelDB stores it: CRC-32C, turned and shifted.
pub(super) fn matches(stored: u32, first: &[u8], second: &[u8]) -> bool {
    let crc = crc32c::crc32c_append(crc32c::crc32c(first), second);
    crc.rotate_right(15).wrapping_add(0xa282_ead8) == stored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints() {
        let read = |bytes: &[u8]| Input(bytes).varint();
        assert_eq!(read(&[5]), Some(5));
        assert_eq!(read(&[0xac, 0x02]), Some(300));
        assert_eq!(read(&[0xff; 9].iter().copied().chain([1]).collect::<Vec<_>>()), Some(u64::MAX));
        assert_eq!(read(&[0xff; 9].iter().copied().chain([2]).collect::<Vec<_>>()), None);
        assert_eq!(read(&[0x80; 11]), None);
        assert_eq!(read(&[0x80]), None);
        assert_eq!(Input(&[3, 1, 2]).string(), None);
    }
}
