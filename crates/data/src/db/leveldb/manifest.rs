//! The manifest: which tables hold the records, by level, and from which log on records are in none.

use std::collections::BTreeMap;
use std::fs;

use lgm_core::{Error, Result};

use super::Place;
use super::bytes::Input;
use super::log::Log;

/// Levels of tables: those of level 0 may overlap, those of another do not.
const LEVELS: u64 = 7;
/// The order of keys that is read: by their bytes.
const BYTEWISE: &[u8] = b"leveldb.BytewiseComparator";
/// Bytes of CURRENT that are looked at.
const NAME: u64 = 200;

/// A table, by its entry in the manifest.
#[derive(Clone, Debug)]
pub(super) struct TableFile {
    /// Its place among all tables.
    pub index: u32,
    pub name: String,
    /// Bytes of the file.
    pub size: u64,
    /// The smallest key.
    smallest: Vec<u8>,
}

/// What a manifest says last.
#[derive(Default)]
pub(super) struct Version {
    tables: BTreeMap<(u64, u64), (u64, Vec<u8>)>,
    /// Logs from this number on, and the previous one, hold records that are in no table.
    log: Option<u64>,
    previous_log: u64,
}

impl Version {
    /// Reads the manifest that CURRENT names.
    pub fn read(place: &Place) -> Result<Version> {
        let name = current(place)?;
        let mut log = Log::open(place, &name)?;
        let mut version = Version::default();
        while log.next()? {
            version.edit(log.record()).map_err(|what| log.damaged(&what))?;
        }
        if version.log.is_none() {
            return Err(place.cut(&name, "does not say which log holds the last records"));
        }
        Ok(version)
    }

    /// Applies a record: fields, each behind its number.
    fn edit(&mut self, record: &[u8]) -> Result<(), String> {
        let mut input = Input(record);
        while !input.is_empty() {
            self.field(&mut input)?.ok_or("has a record that cannot be read")?;
        }
        Ok(())
    }

    fn field(&mut self, input: &mut Input) -> Result<Option<()>, String> {
        let tag = input.varint();
        if tag == Some(1) {
            return match input.string() {
                Some(order) if order != BYTEWISE => Err(format!(
                    "says that keys are in the order of {}, expected that of their bytes",
                    order.escape_ascii()
                )),
                order => Ok(order.map(drop)),
            };
        }
        let mut read = || -> Option<()> {
            match tag? {
                2 => self.log = Some(input.varint()?),
                // The next file's number, the last record's.
                3 | 4 => drop(input.varint()?),
                // Where a level was compacted to.
                5 => drop((input.varint()?, input.string()?)),
                6 => {
                    let table = (input.varint()?, input.varint()?);
                    self.tables.remove(&table);
                }
                7 => {
                    let table = (input.varint().filter(|&level| level < LEVELS)?, input.varint()?);
                    let (size, smallest) = (input.varint()?, input.string()?);
                    input.string()?;
                    self.tables.insert(table, (size, smallest.to_vec()));
                }
                9 => self.previous_log = input.varint()?,
                _ => return None,
            }
            Some(())
        };
        Ok(read())
    }

    /// The tables in runs that are each in the order of keys, all of them there and as long as they should be.
    pub fn runs(&self, place: &Place) -> Result<Vec<Vec<TableFile>>> {
        let mut runs: Vec<Vec<TableFile>> = Vec::new();
        let mut last = None;
        for (index, (&(level, number), (size, smallest))) in (0..).zip(&self.tables) {
            let (name, smallest) = (check(place, number, *size)?, smallest.clone());
            let table = TableFile { index, name, size: *size, smallest };
            match runs.last_mut() {
                Some(run) if level > 0 && last == Some(level) => run.push(table),
                _ => runs.push(vec![table]),
            }
            last = Some(level);
        }
        for run in &mut runs {
            run.sort_by(|a, b| a.smallest.cmp(&b.smallest));
        }
        Ok(runs)
    }

    /// The logs to read, the earliest first.
    pub fn logs(&self, place: &Place) -> Result<Vec<String>> {
        let mut logs = Vec::new();
        for entry in fs::read_dir(&place.folder).map_err(Error::io(&place.path, "list"))? {
            let name = entry.map_err(Error::io(&place.path, "list"))?.file_name();
            let Some(name) = name.to_str() else { continue };
            let number = name.strip_suffix(".log").and_then(|number| number.parse::<u64>().ok());
            let Some(number) = number else { continue };
            if Some(number) >= self.log || (number == self.previous_log && number > 0) {
                logs.push((number, name.to_string()));
            }
        }
        logs.sort();
        Ok(logs.into_iter().map(|(_, name)| name).collect())
    }
}

/// The name of a table's file, which must be there and whole.
fn check(place: &Place, number: u64, size: u64) -> Result<String> {
    let names = ["ldb", "sst"].map(|ending| format!("{number:06}.{ending}"));
    for name in &names {
        let Ok(found) = fs::metadata(place.folder.join(name)) else { continue };
        if found.len() != size {
            let what = format!("has {} bytes where its manifest has {size}", found.len());
            return Err(if found.len() < size { place.cut(name, &what) } else { place.damaged(name, &what) });
        }
        return Ok(name.clone());
    }
    let [name, old] = names;
    Err(place.damaged(&name, &format!("(or {old}) is missing")))
}

/// The manifest's name.
fn current(place: &Place) -> Result<String> {
    let (file, len) = place.file("CURRENT")?;
    let mut bytes = vec![0; len.min(NAME) as usize];
    place.read("CURRENT", &file, &mut bytes, 0)?;
    let name = std::str::from_utf8(&bytes).ok().and_then(|text| text.strip_suffix('\n'));
    let number = name.and_then(|name| name.strip_prefix("MANIFEST-"));
    match (name, number) {
        (Some(name), Some(number)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(name.into())
        }
        _ => Err(place.damaged("CURRENT", &format!("names no manifest: '{}'", bytes.escape_ascii()))),
    }
}
