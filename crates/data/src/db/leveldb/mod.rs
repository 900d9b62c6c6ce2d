//! LevelDB databases: records in tables on several levels, and in logs until they are in a table.
//!
//! What CURRENT and its manifest say is read once, when the database is opened; the tables are read block by block as
//! records are asked for, and logs are indexed, their values left where they are. Of the entries of one key, that of the
//! highest number counts; it may be a deletion. Every number is checked before it is followed, and every checksum.
//!
//! Source: LevelDB's `doc/impl.md`, `doc/log_format.md` and `doc/table_format.md`.

mod bytes;
mod log;
mod log_index;
mod manifest;
mod table;
mod write;

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lgm_core::{Error, Result};

use super::{Location, Store, Walk, room};
use log_index::LogIndex;
use manifest::{TableFile, Version};
use table::Run;
pub(super) use write::LeveldbWriter;

/// Kinds of entries.
const DELETION: u8 = 0;
const VALUE: u8 = 1;

/// A database's folder.
struct Place {
    /// As errors name it.
    path: PathBuf,
    folder: PathBuf,
}

impl Place {
    /// Opens a file; with its length.
    fn file(&self, name: &str) -> Result<(File, u64)> {
        let open = || {
            let file = File::open(self.folder.join(name))?;
            let len = file.metadata()?.len();
            Ok((file, len))
        };
        open().map_err(Error::io(self.path.join(name), "open"))
    }

    fn read(&self, name: &str, file: &File, bytes: &mut [u8], at: u64) -> Result<()> {
        file.read_exact_at(bytes, at).map_err(Error::io(self.path.join(name), "read"))
    }

    /// The error of a file that cannot be right: "NAME …".
    fn damaged(&self, name: &str, what: &str) -> Error {
        Error::data(&self.path, format!("the database is damaged: {name} {what}"))
    }

    /// The error of a file that ends too early: "NAME …".
    fn cut(&self, name: &str, what: &str) -> Error {
        Error::data(&self.path, format!("the database was cut short: {name} {what}; copy or create it again"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// A database opened for reading.
pub(super) struct Leveldb {
    place: Arc<Place>,
    /// The tables by their index, and in runs of which each is in the order of keys.
    tables: Vec<TableFile>,
    runs: Vec<Vec<TableFile>>,
    logs: Arc<LogIndex>,
}

impl Leveldb {
    /// Reads the manifest and the logs of the database in `folder`; errors call it `path`.
    pub fn open(path: &Path, folder: &Path) -> Result<Self> {
        let place = Arc::new(Place { path: path.into(), folder: folder.into() });
        let version = Version::read(&place)?;
        let logs = Arc::new(LogIndex::read(&place, version.logs(&place)?)?);
        let runs = version.runs(&place)?;
        let mut tables: Vec<TableFile> = runs.iter().flatten().cloned().collect();
        tables.sort_by_key(|table| table.index);
        Ok(Leveldb { place, tables, runs, logs })
    }
}

impl Store for Leveldb {
    fn count(&self) -> Option<u64> {
        None
    }

    fn walk(&self) -> Result<Box<dyn Walk>> {
        let mut sources = Vec::new();
        for tables in &self.runs {
            sources.push(Source::Tables(Box::new(Run::first(&self.place, tables)?)));
        }
        if self.logs.len() > 0 {
            sources.push(Source::Logs(self.logs.clone(), 0));
        }
        let mut walk = LeveldbWalk { place: self.place.clone(), sources, here: None, key: Vec::new() };
        walk.settle()?;
        Ok(Box::new(walk))
    }

    fn read(&self, at: Location, to: &mut Vec<u8>) -> Result<[usize; 2]> {
        let Some(table) = at.file.checked_sub(1) else {
            let entry = at.entry as usize;
            let (key, _) = self.logs.key(entry).unwrap_or_default();
            let lengths = [key.len(), self.logs.value_len(entry).unwrap_or(0)];
            room(to, lengths, &self.place.path)?;
            to.extend_from_slice(key);
            self.logs.append_value(&self.place, entry, to)?;
            return Ok(lengths);
        };
        let Some(table) = self.tables.get(table as usize) else {
            return Err(Error::internal("a LevelDB database lost a table"));
        };
        let entry = table::Entry::read(&self.place, table, at)?;
        let (key, value) = entry.record();
        room(to, [key.len(), value.len()], &self.place.path)?;
        to.extend_from_slice(key);
        to.extend_from_slice(value);
        Ok([key.len(), value.len()])
    }
}

/// Entries in the order of their keys.
enum Source {
    Tables(Box<Run>),
    Logs(Arc<LogIndex>, usize),
}

impl Source {
    fn key(&self) -> Option<(&[u8], u64)> {
        match self {
            Source::Tables(run) => run.key(),
            Source::Logs(entries, at) => entries.key(*at),
        }
    }

    fn advance(&mut self, place: &Place) -> Result<()> {
        match self {
            Source::Tables(run) => run.advance(place)?,
            Source::Logs(_, at) => *at = at.saturating_add(1),
        }
        Ok(())
    }

    /// The file that the entry is in.
    fn name(&self) -> &str {
        match self {
            Source::Tables(run) => run.name(),
            Source::Logs(..) => "a log",
        }
    }

    fn location(&self) -> Location {
        match self {
            Source::Tables(run) => run.location(),
            Source::Logs(_, at) => Location { entry: *at as u32, ..Location::default() },
        }
    }

    /// Bytes of the value; none for a deletion.
    fn value_len(&self) -> Option<usize> {
        match self {
            Source::Tables(run) => run.value().map(<[u8]>::len),
            Source::Logs(entries, at) => entries.value_len(*at),
        }
    }

    fn append_value(&self, place: &Place, to: &mut Vec<u8>) -> Result<()> {
        match self {
            Source::Tables(run) => to.extend_from_slice(run.value().unwrap_or_default()),
            Source::Logs(entries, at) => entries.append_value(place, *at, to)?,
        }
        Ok(())
    }
}

/// A place in a database.
struct LeveldbWalk {
    place: Arc<Place>,
    /// Each at an entry or behind its last.
    sources: Vec<Source>,
    /// The source of the record here, none behind the last record, and the key.
    here: Option<usize>,
    key: Vec<u8>,
}

impl LeveldbWalk {
    fn source(&self) -> Option<&Source> {
        self.here.and_then(|here| self.sources.get(here))
    }

    /// Takes the smallest key of all sources, or the next one after it while that is deleted.
    fn settle(&mut self) -> Result<()> {
        loop {
            let mut least: Option<(usize, (&[u8], u64))> = None;
            for (i, source) in self.sources.iter().enumerate() {
                let Some((key, number)) = source.key() else { continue };
                // Of one key, the highest number first.
                if least.is_none_or(|(_, (least, highest))| (key, highest) < (least, number)) {
                    least = Some((i, (key, number)));
                }
            }
            self.here = least.map(|(i, _)| i);
            let Some((_, (key, _))) = least else { return Ok(()) };
            self.key.clear();
            self.key.extend_from_slice(key);
            if self.source().and_then(Source::value_len).is_some() {
                return Ok(());
            }
            self.pass()?;
        }
    }

    /// Moves all sources behind the key that was taken.
    fn pass(&mut self) -> Result<()> {
        for source in &mut self.sources {
            while let Some((key, _)) = source.key().filter(|(key, _)| *key <= &self.key[..]) {
                if key < &self.key[..] {
                    let what = format!("has the key '{}' behind '{}'", key.escape_ascii(), self.key.escape_ascii());
                    return Err(self.place.damaged(source.name(), &what));
                }
                source.advance(&self.place)?;
            }
        }
        Ok(())
    }
}

impl Walk for LeveldbWalk {
    fn lengths(&self) -> Result<Option<[usize; 2]>> {
        Ok(self.source().map(|source| [self.key.len(), source.value_len().unwrap_or(0)]))
    }

    fn append_to(&self, to: &mut Vec<u8>) -> Result<()> {
        let Some(source) = self.source() else { return Ok(()) };
        to.extend_from_slice(&self.key);
        source.append_value(&self.place, to)
    }

    fn location(&self) -> Location {
        self.source().map(Source::location).unwrap_or_default()
    }

    fn skip(&mut self, count: u64) -> Result<u64> {
        for passed in 0..count {
            if self.here.is_none() {
                return Ok(passed);
            }
            self.pass()?;
            self.settle()?;
        }
        Ok(count)
    }
}
