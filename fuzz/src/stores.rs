//! Databases and HDF5 files: what data layers, weights and states are read from.

use std::path::Path;

use lgm_data::Data;
use lgm_data::db::{Database, Records};
use lgm_data::hdf5::H5File;

use crate::data::{CX, batches, layer};
use crate::scratch::Scratch;

thread_local!(static FOLDER: Scratch = Scratch::new());

/// Bytes of a page of the database made here.
const PAGE: usize = 4096;
/// Records read of one database.
const RECORDS: usize = 2000;
/// Elements read of one dataset.
const ELEMENTS: usize = 1 << 20;

/// The `data.mdb` of a database whose only record is `value`: two headers, a leaf, and pages of the value's own.
pub(crate) fn database(value: &[u8]) -> Vec<u8> {
    let own = (16 + value.len()).div_ceil(PAGE);
    let mut file = vec![0; (3 + own) * PAGE];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let word = |n: usize| (n as u64).to_le_bytes();
    for header in 0..2 {
        let at = header * PAGE;
        put(at, &word(header));
        // The flag of a header, and the magic number and version behind it.
        put(at + 10, &[8, 0]);
        put(at + 16, &[0xde, 0xc0, 0xef, 0xbe, 1, 0, 0, 0]);
        // The tree of free pages is empty; its first word is the size of a page.
        put(at + 40, &word(PAGE)[..4]);
        put(at + 80, &[0xff; 8]);
        // The tree of records: depth 1, one leaf, `own` other pages, one record, its root.
        put(at + 94, &[1, 0]);
        [(96, 0), (104, 1), (112, own), (120, 1), (128, 2), (136, 2 + own), (144, 1 + header)]
            .iter()
            .for_each(|&(offset, n)| put(at + offset, &word(n)));
    }
    // The leaf: one node at its end, with a key of one byte and the page of the value.
    let (leaf, node) = (2 * PAGE, PAGE - 18);
    put(leaf, &word(2));
    put(leaf + 10, &[2, 0, 18, 0, node as u8, (node >> 8) as u8, node as u8, (node >> 8) as u8]);
    put(leaf + node, &word(value.len())[..4]);
    put(leaf + node + 4, &[1, 0, 1, 0, b'0']);
    put(leaf + node + 9, &word(3));
    put(3 * PAGE, &word(3));
    put(3 * PAGE + 10, &[4, 0]);
    put(3 * PAGE + 12, &word(own)[..4]);
    put(3 * PAGE + 16, value);
    file
}

/// One record of a database, with and without a crop.
pub fn datum(bytes: &[u8]) {
    FOLDER.with(|folder| {
        folder.write("one/data.mdb", &database(bytes));
        let db = folder.text("one");
        for transform in ["", "crop_size: 2 mirror: true", "force_color: true"] {
            let text = format!(
                "layer {{ name: 'd' type: 'Data' top: 'x' top: 'y' transform_param {{ {transform} }} \
                 data_param {{ source: '{db}' batch_size: 2 backend: LMDB }} }}"
            );
            let _ = Data::new(&layer(&text), &CX).and_then(|data| batches(data, 2));
        }
    });
}

/// The pages of a database.
pub fn lmdb(bytes: &[u8]) {
    FOLDER.with(|folder| {
        folder.write("db/data.mdb", bytes);
        let Ok(lmdb) = Database::open(folder.at("db")) else { return };
        for from in [0, lmdb.count().unwrap() - 1] {
            let Ok(mut records) = Records::from(lmdb.clone(), from) else { continue };
            let mut read = 0;
            while read < RECORDS {
                match records.next(100) {
                    Ok(part) => read += part.len(),
                    Err(_) => break,
                }
            }
        }
    });
}

fn read_all(path: &Path) -> lgm_core::Result<()> {
    let file = H5File::open(path)?;
    let _ = (file.integer("iter"), file.text("learned_net"), file.groups("data"), file.members("history"));
    for name in file.datasets()?.into_iter().take(20) {
        let Ok(dataset) = file.dataset(&name) else { continue };
        if dataset.check_stored().is_ok() && dataset.row_len() < ELEMENTS {
            let rows = dataset.rows().min(ELEMENTS / dataset.row_len().max(1));
            let _ = (dataset.read_rows(0..rows), dataset.read_rows(rows / 2..rows));
        }
    }
    Ok(())
}

/// An HDF5 file of data: every dataset there is.
pub fn hdf5_data(bytes: &[u8]) {
    FOLDER.with(|folder| {
        let _ = read_all(&folder.write("data.h5", bytes));
    });
}

/// Weights in HDF5.
pub fn hdf5_weights(bytes: &[u8]) {
    hdf5_data(bytes);
    crate::models::weights(bytes);
}

/// A solver's state in HDF5.
pub fn hdf5_state(bytes: &[u8]) {
    hdf5_data(bytes);
    crate::models::state(bytes);
}

#[cfg(test)]
mod tests {
    use lgm_data::db::Record;

    use super::*;

    #[test]
    fn the_database_made_for_a_record_holds_it() {
        for len in [0, 1, 4080, 4081, 20_000] {
            let value: Vec<u8> = (0..len).map(|i| i as u8).collect();
            FOLDER.with(|folder| {
                folder.write("one/data.mdb", &database(&value));
                let lmdb = Database::open(folder.at("one")).unwrap();
                let mut records = Records::from(lmdb, 0).unwrap();
                assert_eq!(records.next(1).unwrap(), [Record { index: 0, key: b"0", value: &value }]);
            });
        }
    }
}
