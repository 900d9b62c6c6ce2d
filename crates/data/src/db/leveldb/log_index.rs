//! What logs hold: records in the order in which they came, and where in its log each value lies.

use std::fs::File;

use lgm_core::{Error, Result, memory};

use super::bytes::Input;
use super::log::{Log, read_part};
use super::{DELETION, Place, VALUE};

/// Where a value is.
#[derive(Clone, Copy)]
struct Value {
    file: u32,
    len: u32,
    at: u64,
}

struct Entry {
    key: usize,
    key_len: u32,
    sequence: u64,
    /// None for a deletion.
    value: Option<Value>,
}

/// The newest entry of each key in some logs, in the order of the keys. Values stay on disk.
#[derive(Default)]
pub(super) struct LogIndex {
    files: Vec<(String, File)>,
    /// The keys, one after another.
    keys: Vec<u8>,
    entries: Vec<Entry>,
}

impl LogIndex {
    /// Reads the logs of these names, the earliest first. A record that is not whole at the end of one, whose writer was
    /// killed, is left out with a warning, as LevelDB does.
    pub fn read(place: &Place, names: Vec<String>) -> Result<LogIndex> {
        let mut all = LogIndex::default();
        for name in names {
            let mut log = Log::open(place, &name)?;
            loop {
                match log.next() {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(_) if log.is_cut() => {
                        tracing::warn!(
                            "{place}: {name} ends within a record, which is left out: was its writer killed?"
                        );
                        break;
                    }
                    Err(e) => return Err(e),
                }
                all.batch(place, &log)?.ok_or_else(|| log.damaged("has a record that cannot be read"))?;
            }
            all.files.push((name.clone(), log.into_file()));
        }
        let LogIndex { keys, entries, .. } = &mut all;
        let key = |entry: &Entry| key_of(keys, entry);
        entries.sort_unstable_by(|a, b| key(a).cmp(key(b)).then(b.sequence.cmp(&a.sequence)));
        entries.dedup_by(|later, first| key(later) == key(first));
        Ok(all)
    }

    /// A batch: the number of its first entry, how many there are, and the entries; none where it is no such thing.
    fn batch(&mut self, place: &Place, log: &Log) -> Result<Option<()>> {
        let record = log.record();
        let mut input = Input(record);
        let (Some(first), Some(count)) = (input.u64(), input.u32()) else { return Ok(None) };
        for i in 0..u64::from(count) {
            let (kind, Some(key)) = (input.u8(), input.string()) else { return Ok(None) };
            let value = match (kind, input) {
                (Some(VALUE), mut behind) => {
                    let Some(value) = behind.string() else { return Ok(None) };
                    input = behind;
                    let at = log.locate(record.len().saturating_sub(input.0.len()).saturating_sub(value.len()));
                    let Ok(len) = u32::try_from(value.len()) else { return Ok(None) };
                    Some(Value { file: self.files.len() as u32, len, at })
                }
                (Some(DELETION), _) => None,
                _ => return Ok(None),
            };
            let Ok(key_len) = u32::try_from(key.len()) else { return Ok(None) };
            let what = || format!("{place}: the keys of its logs");
            grow(&mut self.keys, key.len(), what)?;
            grow(&mut self.entries, 1, what)?;
            let entry = Entry { key: self.keys.len(), key_len, sequence: first.saturating_add(i), value };
            self.keys.extend_from_slice(key);
            self.entries.push(entry);
        }
        Ok(input.is_empty().then_some(()))
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The key of entry `i`, and its number.
    pub fn key(&self, i: usize) -> Option<(&[u8], u64)> {
        self.entries.get(i).map(|entry| (key_of(&self.keys, entry), entry.sequence))
    }

    /// Bytes of the value of entry `i`; none for a deletion.
    pub fn value_len(&self, i: usize) -> Option<usize> {
        self.entries.get(i).and_then(|entry| entry.value).map(|value| value.len as usize)
    }

    /// Appends the value of entry `i`.
    pub fn append_value(&self, place: &Place, i: usize, to: &mut Vec<u8>) -> Result<()> {
        let Some(value) = self.entries.get(i).and_then(|entry| entry.value) else { return Ok(()) };
        let Some((name, file)) = self.files.get(value.file as usize) else { return Ok(()) };
        read_part(file, value.at, value.len as usize, to).map_err(Error::io(place.path.join(name), "read"))
    }
}

fn key_of<'a>(keys: &'a [u8], entry: &Entry) -> &'a [u8] {
    keys.get(entry.key..entry.key.saturating_add(entry.key_len as usize)).unwrap_or_default()
}

/// Makes room for so many more elements, at least twofold.
fn grow<T>(buffer: &mut Vec<T>, more: usize, what: impl Fn() -> String) -> Result<()> {
    if buffer.capacity().saturating_sub(buffer.len()) >= more {
        return Ok(());
    }
    memory::reserve(buffer, more.max(buffer.len()).max(64), what())
}
