//! LevelDB databases: their files as they are, and what lies under checksums with the right ones.

use std::path::Path;

use lgm_core::Result;
use lgm_data::db::{Database, Records};

use crate::scratch::Scratch;

thread_local!(static FOLDER: Scratch = Scratch::new());

/// Bytes of a block of a log, and before a fragment's content.
const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;
/// Records read of one database.
const RECORDS: usize = 2000;

/// A database of a table and a log. The first byte says what the others are in place of the sound part: `t` the table, `b`
/// its block of entries packed as the next byte says, `i` its index, `l` the log, `r` the record in that, `m` the manifest,
/// `e` the record in that.
pub fn leveldb(bytes: &[u8]) {
    FOLDER.with(|folder| {
        let Some((&kind, rest)) = bytes.split_first() else { return };
        let given = |this: u8| (kind == this).then_some(rest);
        let (packing, block) = match given(b'b').map(<[u8]>::split_first) {
            Some(Some((&packing, block))) => (packing, block.to_vec()),
            _ => (0, entries()),
        };
        let index = given(b'i').map_or_else(|| index(block.len()), <[u8]>::to_vec);
        let table = given(b't').map_or_else(|| table(&block, packing, &index), <[u8]>::to_vec);
        let record = given(b'r').map_or_else(batch, <[u8]>::to_vec);
        let log = given(b'l').map_or_else(|| framed(&record), <[u8]>::to_vec);
        let edit = given(b'e').map_or_else(|| edit(table.len()), <[u8]>::to_vec);
        let manifest = given(b'm').map_or_else(|| framed(&edit), <[u8]>::to_vec);
        for (name, bytes) in [
            ("CURRENT", &b"MANIFEST-000002\n"[..]),
            ("MANIFEST-000002", &manifest),
            ("000003.log", &log),
            ("000005.ldb", &table),
        ] {
            folder.write(&format!("db/{name}"), bytes);
        }
        let _ = read(&folder.at("db"));
    });
}

/// Reads records from the first on, and some from another on; how many there were up to the end or to [`RECORDS`].
fn read(path: &Path) -> Result<usize> {
    let database = Database::open(path)?;
    let _ = Records::from(database.clone(), 3).and_then(|mut records| records.next(10).map(drop));
    let mut records = Records::from(database, 0)?;
    let mut count = 0;
    while count < RECORDS {
        count += records.next_to_end(100)?.len();
        if records.index() == 0 {
            break;
        }
    }
    Ok(count)
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [varint(bytes.len()), bytes.to_vec()].concat()
}

/// A checksum as LevelDB stores it.
fn checksum(parts: &[&[u8]]) -> [u8; 4] {
    let crc = parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// A record in fragments.
fn framed(record: &[u8]) -> Vec<u8> {
    let mut log = Vec::new();
    let mut rest = record;
    let mut is_first = true;
    loop {
        let left = BLOCK - log.len() % BLOCK;
        if left < HEADER {
            log.resize(log.len() + left, 0);
            continue;
        }
        let (content, behind) = rest.split_at(rest.len().min(left - HEADER));
        let kind = match (is_first, behind.is_empty()) {
            (true, true) => 1,
            (true, false) => 2,
            (false, false) => 3,
            (false, true) => 4,
        };
        log.extend(checksum(&[&[kind], content]));
        log.extend((content.len() as u16).to_le_bytes());
        log.push(kind);
        log.extend(content);
        (rest, is_first) = (behind, false);
        if rest.is_empty() {
            return log;
        }
    }
}

/// A key with the entry's number and its kind, 1 for a value.
fn numbered(key: &[u8], number: u64, kind: u64) -> Vec<u8> {
    [key, &(number << 8 | kind).to_le_bytes()].concat()
}

/// A block of entries that share nothing.
fn block(entries: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in entries {
        bytes.extend([vec![0], varint(key.len()), varint(value.len()), key.clone(), value.clone()].concat());
    }
    bytes.extend([0, 0, 0, 0, 1, 0, 0, 0]);
    bytes
}

fn entries() -> Vec<u8> {
    let entry = |n: u8| (numbered(&[b'a' + n], u64::from(n), 1), vec![n; usize::from(n) * 9]);
    block(&(0..6).map(entry).collect::<Vec<_>>())
}

fn index(len: usize) -> Vec<u8> {
    block(&[(numbered(b"z", 0, 1), [varint(0), varint(len)].concat())])
}

fn table(block: &[u8], packing: u8, index: &[u8]) -> Vec<u8> {
    let stored = |content: &[u8], packing: u8| [content, &[packing], &checksum(&[content, &[packing]])].concat();
    let mut table = stored(block, packing);
    // No filters; then the index.
    let mut spans = [varint(0), varint(0), varint(table.len()), varint(index.len())].concat();
    spans.resize(40, 0);
    table.extend(stored(index, 0));
    table.extend(spans);
    table.extend(0xdb47_7524_8b80_fb57_u64.to_le_bytes());
    table
}

/// One record anew, one deleted, and one behind them.
fn batch() -> Vec<u8> {
    let mut batch = [&100u64.to_le_bytes()[..], &3u32.to_le_bytes()].concat();
    batch.extend([vec![1], string(b"b"), string(&[7; 40])].concat());
    batch.extend([vec![0], string(b"c")].concat());
    batch.extend([vec![1], string(b"x"), string(b"last")].concat());
    batch
}

fn edit(size: usize) -> Vec<u8> {
    let (smallest, largest) = (numbered(b"a", 0, 1), numbered(b"f", 5, 1));
    let fields = [
        vec![1],
        string(b"leveldb.BytewiseComparator"),
        vec![2, 3, 3, 9, 4, 50, 7, 1, 5],
        varint(size),
        string(&smallest),
        string(&largest),
    ];
    fields.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_made_here_is_sound() {
        leveldb(b"-");
        FOLDER.with(|folder| assert_eq!(read(&folder.at("db")).unwrap(), 6));
        // A record over several blocks.
        let long = [batch(), vec![0; 100_000]].concat();
        leveldb(&[&b"r"[..], &long].concat());
        let e = FOLDER.with(|folder| read(&folder.at("db")).unwrap_err().to_string());
        assert!(e.contains("000003.log has a record that cannot be read"), "{e}");
    }

    /// Sound inputs of every kind; `LGM_FUZZ_RENEW=1` makes the files anew.
    #[test]
    fn the_corpus_is_what_is_made_here() {
        let table = table(&entries(), 0, &index(entries().len()));
        let sound = [
            ("table", b't', table.clone()),
            ("block", b'b', [vec![0], entries()].concat()),
            ("index", b'i', index(entries().len())),
            ("log", b'l', framed(&batch())),
            ("record", b'r', batch()),
            ("manifest", b'm', framed(&edit(table.len()))),
            ("edit", b'e', edit(table.len())),
        ];
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/leveldb");
        for (name, kind, content) in sound {
            let (path, bytes) = (folder.join(name), [&[kind][..], &content].concat());
            if std::env::var_os("LGM_FUZZ_RENEW").is_some() {
                std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, &bytes)).unwrap();
            }
            assert!(std::fs::read(&path).unwrap() == bytes, "{name}");
            leveldb(&bytes);
            FOLDER.with(|folder| assert_eq!(read(&folder.at("db")).unwrap(), 6, "{name}"));
        }
    }
}
