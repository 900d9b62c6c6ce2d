//! Databases as LMDB lays them out, whole, cut short and damaged: every page ends in a record or in an error.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, EnvOpenOptions};
use lgm_core::Result;
use lgm_data::db::{Database, Records};

/// Puts records into a database, and takes some out.
fn change(folder: &Path, put: &BTreeMap<Vec<u8>, Vec<u8>>, delete: &[Vec<u8>]) {
    fs::create_dir_all(folder).unwrap();
    let env = unsafe { EnvOpenOptions::new().map_size(1 << 26).open(folder) }.unwrap();
    env.create_databases_and_commit(env.write_txn().unwrap(), |opener, txn| -> heed::Result<_> {
        let db = opener.create_database::<Bytes, Bytes>(txn, None)?;
        for (key, value) in put {
            db.put(txn, key, value)?;
        }
        for key in delete {
            db.delete(txn, key)?;
        }
        Ok(CommitOrAbort::<_, ()>::Commit(()))
    })
    .unwrap();
    env.prepare_for_closing().wait();
}

/// Records of many sizes: none, small, and with pages of their own.
fn records(count: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let value = |i: usize| vec![i as u8; [0, 9, 700, 2500, 5000, 30_000][i % 6]];
    (0..count).map(|i| (format!("{:05}", i * 7919 % 100_003).into_bytes(), value(i))).collect()
}

fn read_all(folder: &Path, from: u64) -> Result<Vec<Vec<u8>>> {
    let lmdb = Database::open(folder)?;
    let mut records = Records::from(lmdb.clone(), from)?;
    let mut all = Vec::new();
    while (all.len() as u64) < lmdb.count().unwrap() {
        all.extend(records.next(100)?.into_iter().map(|r| r.value.to_vec()));
    }
    Ok(all)
}

#[test]
fn every_record_is_read_in_the_order_of_keys_from_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    for count in [1, 2, 40, 3000] {
        let folder = dir.path().join(count.to_string());
        let want = records(count);
        change(&folder, &want, &[]);
        let want: Vec<_> = want.into_values().collect();
        for from in [0, 1, count / 2, count - 1] {
            let mut all = read_all(&folder, from as u64).unwrap();
            all.truncate(count);
            all.rotate_right(from % count);
            assert!(all == want, "{count} records from {from}");
        }
    }
}

#[test]
fn pages_that_are_not_in_use_may_be_missing_at_the_end_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let (first, all) = (records(12), records(120));
    change(dir.path(), &all, &[]);
    let gone: Vec<Vec<u8>> = all.keys().filter(|k| !first.contains_key(*k)).cloned().collect();
    change(dir.path(), &BTreeMap::new(), &gone);
    let want: Vec<_> = first.into_values().collect();
    assert_eq!(read_all(dir.path(), 0).unwrap()[..12], want);
    let data = dir.path().join("data.mdb");
    let whole = fs::read(&data).unwrap();
    let mut shortest = whole.len();
    for len in (0..whole.len()).rev().step_by(4096) {
        fs::write(&data, &whole[..len]).unwrap();
        match read_all(dir.path(), 0) {
            Ok(found) => {
                assert_eq!(found[..12], want);
                shortest = len;
            }
            Err(e) => assert!(e.to_string().contains("was cut short"), "{e}"),
        }
    }
    assert!(shortest > 4096, "a file without its records was read");
}

#[test]
fn a_file_cut_anywhere_is_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    change(dir.path(), &records(60), &[]);
    let data = dir.path().join("data.mdb");
    let whole = fs::read(&data).unwrap();
    for len in [0, 1, 40, 4095, 4096, 5000, 8192, whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        fs::write(&data, &whole[..len]).unwrap();
        let e = read_all(dir.path(), 0).unwrap_err().to_string();
        assert!(e.contains(&dir.path().display().to_string()) && e.contains("was cut short"), "{len}: {e}");
    }
}

#[test]
fn a_damaged_page_in_the_middle_is_named() {
    let dir = tempfile::tempdir().unwrap();
    change(dir.path(), &records(120), &[]);
    let data = dir.path().join("data.mdb");
    let whole = fs::read(&data).unwrap();
    let mut found = 0;
    for page in 2..whole.len() / 4096 {
        let mut bytes = whole.clone();
        bytes[page * 4096..][..4096].fill(0);
        fs::write(&data, bytes).unwrap();
        if let Err(e) = read_all(dir.path(), 0) {
            assert!(e.to_string().contains(&format!("page {page} ")), "{e}");
            found += 1;
        }
    }
    assert!(found > 20, "{found} pages of {} were missed", whole.len() / 4096);
}

#[test]
fn whatever_the_pages_say_reading_ends() {
    let dir = tempfile::tempdir().unwrap();
    change(dir.path(), &records(90), &[]);
    let data = dir.path().join("data.mdb");
    let whole = fs::read(&data).unwrap();
    let mut seed = 7u64;
    let mut next = |n: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % n
    };
    let mut refused = 0;
    for _ in 0..2000 {
        let mut bytes = whole.clone();
        for _ in 0..=next(3) {
            // Headers and node pointers more often than values.
            let at = next(bytes.len() / 4096) * 4096 + if next(4) > 0 { next(160) } else { next(4096) };
            let kind = next(4);
            match kind {
                0 => bytes[at] = next(256) as u8,
                1 => bytes[at] ^= 1 << next(8),
                2 => bytes[at..][..8.min(4096 - at % 4096)].fill([0, 0xff][next(2)]),
                _ => {
                    let from = next(bytes.len() / 4096) * 4096;
                    bytes.copy_within(from..from + 64, at / 4096 * 4096);
                }
            }
        }
        fs::write(&data, bytes).unwrap();
        refused += usize::from(read_all(dir.path(), next(90) as u64).is_err());
    }
    assert!(refused > 300, "{refused}");
}
