//! LevelDB databases: whole, on many levels, in logs, cut short and damaged. Every file ends in records or in an error.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{golden, listen, warned};
use lgm_core::Result;
use lgm_data::db::{Backend, Database, Records, Writer};
use rusty_leveldb::{CompressorId, DB, Options, compressor::SnappyCompressor};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;
/// A record: its index, key and value.
type Found = (u64, Vec<u8>, Vec<u8>);

/// Values of many sizes, some of which no block holds.
fn value(i: usize) -> Vec<u8> {
    (0..[0, 9, 700, 2500, 9000][i % 5]).map(|p| (p * i / 7) as u8).collect()
}

fn key(i: usize) -> Vec<u8> {
    format!("{:05}", i * 7919 % 100_003).into_bytes()
}

/// Small tables, so that there are many, on several levels; the last records stay in a log.
fn write(folder: &Path, changes: impl Iterator<Item = (usize, Option<Vec<u8>>)>) -> Map {
    let options = Options {
        write_buffer_size: 50_000,
        max_file_size: 30_000,
        block_size: 1000,
        compressor: SnappyCompressor::ID,
        ..Options::default()
    };
    let mut database = DB::open(folder, options).unwrap();
    let mut map = Map::new();
    for (i, change) in changes {
        match change {
            Some(value) => {
                database.put(&key(i), &value).unwrap();
                map.insert(key(i), value);
            }
            None => {
                database.delete(&key(i)).unwrap();
                map.remove(&key(i));
            }
        }
    }
    database.close().unwrap();
    map
}

/// Puts 500 records, puts every third again, and deletes every seventh.
fn changes() -> impl Iterator<Item = (usize, Option<Vec<u8>>)> {
    let again = (0..500).step_by(3).map(|i| (i, Some(value(i + 1))));
    (0..500).map(|i| (i, Some(value(i)))).chain(again).chain((0..500).step_by(7).map(|i| (i, None)))
}

fn read_from(folder: &Path, from: u64, count: usize) -> Result<Vec<Found>> {
    let mut records = Records::from(Database::open(folder)?, from)?;
    let mut all = Vec::new();
    while all.len() < count {
        let part = records.next(100.min(count - all.len()))?;
        all.extend(part.into_iter().map(|r| (r.index, r.key.to_vec(), r.value.to_vec())));
    }
    Ok(all)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn names(folder: &Path, ending: &str) -> usize {
    files(folder).iter().filter(|path| path.extension().is_some_and(|e| e == ending)).count()
}

#[test]
fn the_newest_of_each_key_is_read_in_their_order_from_anywhere_and_round_again() {
    let dir = tempfile::tempdir().unwrap();
    let want = write(dir.path(), changes());
    assert!(names(dir.path(), "ldb") > 10, "{:?}", files(dir.path()));
    let before = files(dir.path());
    let count = want.len();
    for from in [0, 1, count / 2, count - 1, count, 3 * count + 5] {
        let found = read_from(dir.path(), from as u64, count + 10).unwrap();
        for (n, (index, key, value)) in found.iter().enumerate() {
            let i = (from + n) % count;
            let (want_key, want_value) = want.iter().nth(i).unwrap();
            assert!(*index == i as u64 && key == want_key && value == want_value, "record {n} from {from}");
        }
    }
    assert_eq!(files(dir.path()), before, "reading made or removed a file");
}

#[test]
fn a_log_alone_is_a_database() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = DB::open(dir.path(), Options::default()).unwrap();
    let mut want = Map::new();
    for i in 0..60 {
        database.put(&key(i), &value(i)).unwrap();
        want.insert(key(i), value(i));
    }
    database.close().unwrap();
    assert_eq!(names(dir.path(), "ldb"), 0);
    let found: Map = read_from(dir.path(), 0, 60).unwrap().into_iter().map(|(_, k, v)| (k, v)).collect();
    assert!(found == want);
}

#[test]
fn what_caffe_wrote_is_read() {
    for name in ["db/mnist_200_leveldb", "data/leveldb_tables/db"] {
        let count = if name.starts_with("db") { 200 } else { 12 };
        let found = read_from(&golden(name), 0, count + 1).unwrap();
        assert!(found.windows(2).take(count - 1).all(|pair| pair[0].1 < pair[1].1), "{name}");
        assert_eq!(found[0].1, found[count].1, "{name} has not {count} records");
    }
}

/// What is read of a database whose file of that name was changed.
fn changed(folder: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>), count: usize) -> Result<usize, String> {
    let path = folder.join(name);
    let whole = fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    change(&mut bytes);
    fs::write(&path, &bytes).unwrap();
    let found = read_from(folder, 0, count);
    fs::write(&path, whole).unwrap();
    let e = match found {
        Ok(found) => return Ok(found.len()),
        Err(e) => e.to_string(),
    };
    assert!(e.contains(&folder.display().to_string()), "{e}");
    Err(e)
}

#[test]
fn a_file_cut_anywhere_is_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let want = write(dir.path(), changes());
    for path in files(dir.path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let len = fs::metadata(&path).unwrap().len() as usize;
        if name.starts_with("LO") || len == 0 {
            continue;
        }
        if name.ends_with(".log") {
            continue;
        }
        for cut in [0, 40, len / 2, len.saturating_sub(60), 1, 7, 12, len - 1].into_iter().filter(|&cut| cut < len) {
            match changed(dir.path(), name, |bytes| bytes.truncate(cut), want.len()) {
                Ok(_) => panic!("{name} cut after {cut} of {len} bytes was read"),
                Err(e) if name == "CURRENT" => assert!(e.contains("CURRENT names no manifest: '"), "{e}"),
                Err(e) => assert!(e.contains("was cut short") && e.contains(name), "{name}, {cut}: {e}"),
            }
        }
    }
}

#[test]
fn a_record_that_its_writer_did_not_finish_is_left_out() {
    listen();
    let dir = tempfile::tempdir().unwrap();
    let mut database = DB::open(dir.path(), Options::default()).unwrap();
    // The last record has fragments in three blocks.
    let values: Vec<Vec<u8>> = [9, 700, 20_000, 70_000].iter().map(|&len| vec![len as u8; len]).collect();
    for (i, value) in values.iter().enumerate() {
        database.put(&[i as u8], value).unwrap();
    }
    database.close().unwrap();
    let log = files(dir.path()).into_iter().find(|path| path.extension().is_some_and(|e| e == "log")).unwrap();
    let whole = fs::read(&log).unwrap();
    let ends: Vec<usize> = values
        .iter()
        .scan(0, |at, value| {
            // A batch of one record, with its key and the lengths of both; seven bytes before each fragment.
            let mut left = 12
                + 1
                + 2
                + if value.len() < 128 {
                    1
                } else if value.len() < 16_384 {
                    2
                } else {
                    3
                }
                + value.len();
            while left > 0 {
                let part = left.min(32_768 - *at % 32_768 - 7);
                *at += 7 + part;
                left -= part;
            }
            Some(*at)
        })
        .collect();
    assert_eq!(ends.last(), Some(&whole.len()));
    for (kept, pair) in ends.windows(2).enumerate() {
        for cut in [pair[0], pair[0] + 3, pair[0] + 8, (pair[0] + pair[1]) / 2, 32_768, 65_536, pair[1] - 1] {
            if !(pair[0]..pair[1]).contains(&cut) {
                continue;
            }
            fs::write(&log, &whole[..cut]).unwrap();
            let found = read_from(dir.path(), 0, kept + 2).unwrap();
            let keys: Vec<_> = found.iter().map(|(_, key, value)| (usize::from(key[0]), value.len())).collect();
            let want = |i: usize| (i % (kept + 1), values[i % (kept + 1)].len());
            assert_eq!(keys, (0..kept + 2).map(want).collect::<Vec<_>>(), "cut after {cut}");
            let told = warned(dir.path().to_str().unwrap());
            let name = log.file_name().unwrap().to_str().unwrap();
            assert_eq!(told.len(), usize::from(cut > pair[0]), "cut after {cut}: {told:?}");
            assert!(told.iter().all(|text| text.contains(&format!("{name} ends within a record, which is left out"))));
        }
    }
    // Each log has its own end.
    fs::write(log.with_file_name("999999.log"), &whole[..ends[1] - 1]).unwrap();
    assert_eq!(read_from(dir.path(), 0, 4).unwrap().last().unwrap().2, values[0]);
    assert_eq!(warned(dir.path().to_str().unwrap()).len(), 2);
    fs::remove_file(log.with_file_name("999999.log")).unwrap();
    fs::write(&log, &whole[..ends[0] - 1]).unwrap();
    let e = read_from(dir.path(), 0, 1).unwrap_err().to_string();
    assert!(e.contains("the database holds no records"), "{e}");
}

#[test]
fn a_changed_byte_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let want = write(dir.path(), changes());
    for path in files(dir.path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let len = fs::metadata(&path).unwrap().len() as usize;
        if name.starts_with("LO") || len == 0 {
            continue;
        }
        for at in (0..len).step_by(len / 17 + 1) {
            match changed(dir.path(), name, |bytes| bytes[at] ^= 0x55, want.len()) {
                // Filters are not read, nor is what their block's place says.
                Ok(_) => assert!(name.ends_with(".ldb"), "{name} with another byte {at} was read"),
                Err(e) => assert!(e.contains(name) || name == "CURRENT" && e.contains("MANIFEST"), "{name}, {at}: {e}"),
            }
        }
    }
}

#[test]
fn errors_say_what_is_wrong_and_where() {
    let dir = tempfile::tempdir().unwrap();
    let want = write(dir.path(), changes());
    let table = files(dir.path()).into_iter().find(|path| path.extension().is_some_and(|e| e == "ldb")).unwrap();
    let name = table.file_name().unwrap().to_str().unwrap().to_string();
    let fails = |change: &dyn Fn(&mut Vec<u8>), what: &str| {
        let e = changed(dir.path(), &name, change, want.len()).unwrap_err();
        assert!(e.contains(&name) && e.contains(what), "expected '{what}' in: {e}");
    };
    fails(&|bytes| bytes[5] ^= 1, "is wrong: the block of");
    fails(&|bytes| bytes[5] ^= 1, "does not match its checksum");
    fails(&|bytes| *bytes.last_mut().unwrap() ^= 1, "does not end as a table does");
    fails(&|bytes| bytes.push(0), "bytes where its manifest has");
    fails(
        &|bytes| {
            let footer = bytes.len() - 48;
            bytes[footer..footer + 40].fill(0xff);
        },
        "has no index",
    );
    fails(
        &|bytes| {
            let footer = bytes.len() - 48;
            bytes[footer..footer + 4].copy_from_slice(&[0, 0, 0xff, 0x7f]);
            bytes[footer + 4] = 0x7f;
        },
        "would end behind the file",
    );
    let whole = fs::read(&table).unwrap();
    fs::remove_file(&table).unwrap();
    let e = read_from(dir.path(), 0, 1).unwrap_err().to_string();
    assert!(e.contains(&format!("{name} (or {}) is missing", name.replace("ldb", "sst"))), "{e}");
    // Old LevelDB called its tables so.
    fs::write(table.with_extension("sst"), whole).unwrap();
    assert_eq!(read_from(dir.path(), 0, want.len()).unwrap().len(), want.len());
    let manifest = fs::read_to_string(dir.path().join("CURRENT")).unwrap();
    fs::remove_file(dir.path().join(manifest.trim())).unwrap();
    let e = read_from(dir.path(), 0, 1).unwrap_err().to_string();
    assert!(e.contains(&format!("{}: cannot open", manifest.trim())), "{e}");
    fs::write(dir.path().join("data.mdb"), "").unwrap();
    assert!(read_from(dir.path(), 0, 1).unwrap_err().to_string().contains("holds both an LMDB database"));
}

#[test]
fn a_damaged_record_is_told_by_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let want = write(dir.path(), changes());
    let mut told = 0;
    for table in files(dir.path()).iter().filter(|path| path.extension().is_some_and(|e| e == "ldb")) {
        let name = table.file_name().unwrap().to_str().unwrap();
        let e = changed(dir.path(), name, |bytes| bytes[20] ^= 1, want.len()).unwrap_err();
        assert!(e.contains(name) && e.contains("does not match its checksum"), "{e}");
        let Some((_, behind)) = e.split_once(" (behind record ") else { continue };
        let (index, key) = behind.split_once(" (key '").unwrap();
        let (found, _) = want.iter().nth(index.parse().unwrap()).unwrap();
        assert_eq!(key.strip_suffix("'))").unwrap().as_bytes(), found);
        told += 1;
    }
    assert!(told > 3, "{told}");
}

#[test]
fn both_backends_give_back_what_was_put_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    for backend in [Backend::Lmdb, Backend::Leveldb] {
        let folder = dir.path().join(backend.to_string());
        let mut writer = Writer::create(&folder, backend).unwrap();
        let mut want = Map::new();
        for (i, value) in changes().filter_map(|(i, value)| value.map(|value| (i, value))) {
            writer.put(&key(i), value.clone()).unwrap();
            want.insert(key(i), value);
            if i % 100 == 99 {
                writer.commit().unwrap();
            }
        }
        assert!(!folder.exists());
        writer.finish().unwrap();
        let database = Database::open(&folder).unwrap();
        assert_eq!(database.backend(), backend);
        assert_eq!(database.count().unwrap_or(500), 500);
        let found: Map = read_from(&folder, 0, 500).unwrap().into_iter().map(|(_, k, v)| (k, v)).collect();
        assert!(found == want, "{backend}");
        assert!(Writer::create(&folder, backend).err().unwrap().to_string().contains("already exists"));
        let mut given_up = Writer::create(dir.path().join("other"), backend).unwrap();
        given_up.put(b"key", vec![1; 100]).unwrap();
        given_up.commit().unwrap();
    }
    let left = files(dir.path());
    assert_eq!(left, [dir.path().join("LMDB"), dir.path().join("LevelDB")]);
}

#[test]
fn keys_that_lmdb_does_not_take_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for key in [vec![], vec![b'k'; 512]] {
        let mut writer = Writer::create(dir.path().join("db"), Backend::Lmdb).unwrap();
        writer.put(&key, vec![1]).unwrap();
        let e = writer.finish().unwrap_err().to_string();
        assert!(e.contains(&format!("has {} bytes, and LMDB takes 1 to 511", key.len())), "{e}");
    }
    assert!(files(dir.path()).is_empty());
}

#[test]
fn a_database_without_records_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for backend in [Backend::Lmdb, Backend::Leveldb] {
        let folder = dir.path().join(backend.to_string());
        Writer::create(&folder, backend).unwrap().finish().unwrap();
        let e = Database::open(&folder).err().unwrap().to_string();
        assert!(e.contains("the database holds no records"), "{e}");
    }
}
