//! The rows of a list of HDF5 files, window by window, in bounded memory.
//!
//! A window is what is in memory at a time: a whole file when it fits, else so many blocks of it. A block is a run of
//! rows that spans whole storage chunks, so that no compressed chunk is inflated twice in an epoch.
//!
//! With shuffling, an epoch visits the files in a random order, and each row of a file once before the next file. A
//! file of one window is visited in a uniformly random order. In a larger file, the blocks are put in a random order,
//! each window takes the next few of them, from all over the file, and its rows are visited in a random order: every
//! epoch mixes different blocks.
//!
//! Files that fit in two windows together are read once and stay.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lgm_core::fs::relative_to;
use lgm_core::{Error, Result, Shape};
use lgm_hdf5::{H5Dataset, H5File, Values};
use lgm_proto::strings;

use crate::order::Draws;

/// Bytes of one window. Two are in memory: the one in use and the one being read.
pub(crate) const WINDOW_BYTES: usize = 1 << 30;

/// Blocks that a window of a large file is meant to hold: the more, the better the shuffle mixes.
const BLOCKS_PER_WINDOW: usize = 64;

/// Blocks of one file whose order is kept in memory.
const MOST_BLOCKS: usize = 1 << 24;

/// Where in the data the next row is. `file` counts along the epoch's order of files, `row` along the order of the
/// file's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub epoch: u64,
    pub file: usize,
    pub row: usize,
}

/// One HDF5 file and how it is cut.
#[derive(Debug)]
struct File {
    path: PathBuf,
    rows: usize,
    block_rows: usize,
    window_blocks: usize,
}

impl File {
    fn blocks(&self) -> usize {
        self.rows.div_ceil(self.block_rows)
    }

    fn block(&self, i: usize) -> std::ops::Range<usize> {
        let start = i.saturating_mul(self.block_rows);
        start..start.saturating_add(self.block_rows).min(self.rows)
    }
}

/// The files of a list, checked, and the order they are read in.
#[derive(Debug)]
pub(crate) struct Files {
    names: Vec<String>,
    files: Vec<File>,
    shapes: Vec<Shape>,
    resident: bool,
    shuffle: Option<Draws>,
}

impl Files {
    /// Reads the list file `source` and the outlines of the HDF5 files it names, one dataset for each of `names`.
    pub fn open(source: &Path, names: &[String], shuffle: Option<Draws>, window_bytes: usize) -> Result<Self> {
        if lgm_hdf5::is_hdf5(source).unwrap_or(false) {
            let what = "is an HDF5 file; source must be a text file that lists HDF5 files, one a line";
            return Err(Error::data(source, what));
        }
        let list = std::fs::read(source).map_err(Error::io(source, "open the list of HDF5 files"))?;
        let paths = listed(&strings::of_file(&list));
        if paths.is_empty() {
            return Err(Error::data(source, "must list at least one HDF5 file, but is empty"));
        }
        let (mut files, mut shapes, mut total) = (Vec::new(), Vec::<Shape>::new(), 0usize);
        for path in paths {
            if !path.exists() {
                let what = format!("lists '{}', which does not exist{}", path.display(), relative_to(&path));
                return Err(Error::data(source, what));
            }
            let file = H5File::open(&path)?;
            let datasets = names.iter().map(|n| file.dataset(n)).collect::<Result<Vec<_>>>()?;
            let rows = check_rows(&path, names, &datasets)?;
            datasets.iter().try_for_each(H5Dataset::check_stored)?;
            let found: Vec<Shape> = datasets.iter().map(|d| d.shape().splice(0..1, [])).collect();
            if shapes.is_empty() {
                shapes = found;
            } else if let Some(i) = (0..names.len()).find(|&i| shapes[i] != found[i]) {
                return Err(Error::Shape {
                    what: format!("{}: one row of dataset '{}', as in {}", path.display(), names[i], first(&files)),
                    expected: shapes[i].clone(),
                    found: found[i].clone(),
                });
            }
            let row_bytes = datasets.iter().map(H5Dataset::row_bytes).fold(0, usize::saturating_add).max(1);
            let chunk = datasets.iter().max_by_key(|d| d.row_bytes()).and_then(H5Dataset::chunk_rows).unwrap_or(1);
            let (block_rows, window_blocks) = cut(rows, row_bytes, chunk, window_bytes);
            total = total.saturating_add(rows.saturating_mul(row_bytes));
            let file = File { path, rows, block_rows, window_blocks };
            if file.blocks() > MOST_BLOCKS {
                let what = format!("claims {rows} rows of {row_bytes} bytes, more than can be shuffled");
                return Err(Error::data(&file.path, what));
            }
            files.push(file);
        }
        let resident = total <= window_bytes.saturating_mul(2) && files.iter().all(|f| f.blocks() <= f.window_blocks);
        Ok(Files { names: names.into(), files, shapes, resident, shuffle })
    }

    /// The shape of one row of each dataset.
    pub fn shapes(&self) -> &[Shape] {
        &self.shapes
    }

    /// The index of the file that is number `at.file` in its epoch.
    fn file_at(&self, at: Position) -> usize {
        match &self.shuffle {
            Some(draws) => draws.permutation("files", &[at.epoch], self.files.len())[at.file] as usize,
            None => at.file,
        }
    }

    /// Checks that a position, saved by another run, exists here.
    pub fn check(&self, at: Position) -> Result<()> {
        if at.file >= self.files.len() {
            let what = "the saved position is in file number";
            return Err(Error::config(format!(
                "{what} {}, but the list has {}",
                at.file.saturating_add(1),
                self.files.len()
            )));
        }
        let file = &self.files[self.file_at(at)];
        if at.row >= file.rows {
            return Err(Error::data(&file.path, format!("the saved position is row {} of {}", at.row, file.rows)));
        }
        Ok(())
    }
}

/// The file names of a list: one a line, or several set apart by blanks, as Caffe reads them.
fn listed(list: &str) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for line in list.lines() {
        match strings::to_path(line.trim()) {
            whole if whole.is_file() => paths.push(whole),
            _ => paths.extend(line.split_whitespace().map(strings::to_path)),
        }
    }
    paths
}

/// A list of one file, for HDF5Data's `source`.
pub fn list_of(file: &Path) -> Vec<u8> {
    [file.as_os_str().as_bytes(), b"\n"].concat()
}

fn first(files: &[File]) -> String {
    files.first().map(|f| f.path.display().to_string()).unwrap_or_default()
}

fn check_rows(path: &Path, names: &[String], datasets: &[H5Dataset]) -> Result<usize> {
    let rows = datasets.first().map_or(0, H5Dataset::rows);
    for (name, dataset) in names.iter().zip(datasets) {
        if dataset.shape().is_empty() {
            return Err(Error::data(path, format!("dataset '{name}' is a scalar; its first axis must count rows")));
        }
        if dataset.rows() != rows {
            let what = "all datasets must have as many rows (the first axis)";
            let found = format!("'{}' has {rows}, '{name}' has {}", names[0], dataset.rows());
            return Err(Error::data(path, format!("{what}: {found}")));
        }
    }
    if rows == 0 {
        return Err(Error::data(path, "holds no rows"));
    }
    Ok(rows)
}

/// How to cut a file: (rows of a block, blocks of a window).
fn cut(rows: usize, row_bytes: usize, chunk_rows: usize, window_bytes: usize) -> (usize, usize) {
    let fit = window_bytes.checked_div(row_bytes).unwrap_or(usize::MAX).max(1);
    if rows <= fit {
        return (rows, 1);
    }
    let block = (fit / BLOCKS_PER_WINDOW).max(1).checked_next_multiple_of(chunk_rows.max(1)).unwrap_or(fit);
    // A chunk larger than a window can only be read in parts.
    let block = block.min(fit);
    (block, fit.checked_div(block).unwrap_or(1))
}

/// Rows in memory, and the order to visit them in.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// The rows of each dataset.
    pub data: Arc<Vec<Values>>,
    /// Indices of the rows still to be visited, in order.
    pub order: Vec<u32>,
    /// Position of the first of them.
    pub at: Position,
    /// Position after the last.
    pub next: Position,
}

/// Reads window after window from a position on.
pub(crate) struct WindowReader {
    files: Arc<Files>,
    at: Position,
    kept: HashMap<usize, Arc<Vec<Values>>>,
}

impl WindowReader {
    pub fn new(files: Arc<Files>, at: Position) -> Self {
        WindowReader { files, at, kept: HashMap::new() }
    }

    /// Replaces `window` with the one that holds the current position, and moves on.
    pub fn fill(&mut self, window: &mut Window) -> Result<()> {
        // Freed before the next is read, so that no more than two are in memory.
        window.data = Arc::default();
        let files = self.files.clone();
        files.check(self.at)?;
        let index = files.file_at(self.at);
        let file = &files.files[index];
        let counters = [self.at.epoch, index as u64];
        let blocks = match &files.shuffle {
            Some(draws) if file.blocks() > 1 => draws.permutation("blocks", &counters, file.blocks()),
            _ => (0..file.blocks() as u32).collect(),
        };
        let mut start: usize = 0;
        for (number, blocks) in blocks.chunks(file.window_blocks).enumerate() {
            let rows: usize = blocks.iter().map(|&b| file.block(b as usize).len()).sum();
            if self.at.row >= start.saturating_add(rows) {
                start = start.saturating_add(rows);
                continue;
            }
            window.data = self.read(index, blocks)?;
            window.order = match &files.shuffle {
                Some(draws) => draws.permutation("rows", &[self.at.epoch, index as u64, number as u64], rows),
                None => (0..rows as u32).collect(),
            };
            window.order.drain(..self.at.row.saturating_sub(start));
            window.at = self.at;
            let (row, next) = (start.saturating_add(rows), self.at.file.saturating_add(1));
            self.at = match (row < file.rows, next < files.files.len()) {
                (true, _) => Position { row, ..self.at },
                (false, true) => Position { file: next, row: 0, ..self.at },
                (false, false) => Position { epoch: self.at.epoch.saturating_add(1), file: 0, row: 0 },
            };
            window.next = self.at;
            return Ok(());
        }
        Err(Error::internal("a row is in no window of its file"))
    }

    fn read(&mut self, index: usize, blocks: &[u32]) -> Result<Arc<Vec<Values>>> {
        if let Some(data) = self.kept.get(&index) {
            return Ok(data.clone());
        }
        let info = &self.files.files[index];
        let file = H5File::open(&info.path)?;
        let datasets = self.files.names.iter().map(|n| file.dataset(n)).collect::<Result<Vec<_>>>()?;
        let same = |(d, s): (&H5Dataset, &Shape)| d.rows() == info.rows && d.shape().splice(0..1, []) == *s;
        if !datasets.iter().zip(&self.files.shapes).all(same) {
            return Err(Error::data(&info.path, "the file has changed since training began"));
        }
        let ranges = runs(blocks, info);
        let data = datasets.iter().map(|d| d.read_ranges(&ranges)).collect::<Result<Vec<_>>>()?;
        let data = Arc::new(data);
        if self.files.resident {
            self.kept.insert(index, data.clone());
        }
        Ok(data)
    }
}

/// The rows of some blocks in file order, neighbours joined.
fn runs(blocks: &[u32], file: &File) -> Vec<std::ops::Range<usize>> {
    let mut blocks = blocks.to_vec();
    blocks.sort_unstable();
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for block in blocks {
        let rows = file.block(block as usize);
        match runs.last_mut() {
            Some(last) if last.end == rows.start => last.end = rows.end,
            _ => runs.push(rows),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use lgm_core::Phase;
    use lgm_hdf5::write_f32;

    fn visits(files: &Arc<Files>, at: Position, rows: usize) -> Vec<(Position, f32)> {
        let mut reader = WindowReader::new(files.clone(), at);
        let mut seen = Vec::new();
        while seen.len() < rows {
            let mut w = Window::default();
            reader.fill(&mut w).unwrap();
            for (i, &r) in w.order.iter().enumerate() {
                let mut v = [0.0];
                w.data[0].copy_to(r as usize..r as usize + 1, &mut v);
                seen.push((Position { row: w.at.row + i, ..w.at }, v[0]));
            }
        }
        seen.truncate(rows);
        seen
    }

    fn make(dir: &Path, rows: &[usize], shuffle: bool, window_bytes: usize) -> Arc<Files> {
        let mut list = String::new();
        let mut next = 0;
        for (i, &n) in rows.iter().enumerate() {
            let path = dir.join(format!("{i}.h5"));
            let values: Vec<f32> = (next..next + n).map(|v| v as f32).collect();
            next += n;
            write_f32(&path, &[("x", &Shape::from([n]), &values)]).unwrap();
            list += &format!("{}\n", path.display());
        }
        std::fs::write(dir.join("list.txt"), list).unwrap();
        let draws = shuffle.then(|| Draws::new(5, "data", Phase::Train));
        Arc::new(Files::open(&dir.join("list.txt"), &["x".into()], draws, window_bytes).unwrap())
    }

    #[test]
    fn blocks_span_chunks_and_windows_fit() {
        assert_eq!(cut(100, 10, 7, 1000), (100, 1));
        assert_eq!(cut(100_000, 10, 7, 64_000), (105, 60));
        assert_eq!(cut(100_000, 10, 50_000, 64_000), (6400, 1));
        assert_eq!(cut(10, 1000, 1, 10), (1, 1));
    }

    #[test]
    fn every_row_once_an_epoch_whatever_the_window() {
        let dir = tempfile::tempdir().unwrap();
        // 4 bytes a row: everything in one window; files in windows of 40 and of 3 rows.
        for window in [1 << 20, 160, 12] {
            for shuffle in [false, true] {
                let files = make(dir.path(), &[50, 7, 60], shuffle, window);
                assert_eq!(files.resident, window == 1 << 20);
                let seen = visits(&files, Position::default(), 117 * 2);
                let mut epochs = Vec::new();
                for epoch in seen.chunks(117) {
                    let order: Vec<f32> = epoch.iter().map(|v| v.1).collect();
                    let mut sorted = order.clone();
                    sorted.sort_by(f32::total_cmp);
                    assert_eq!(sorted, (0..117).map(|v| v as f32).collect::<Vec<_>>());
                    assert_eq!(order == sorted, !shuffle);
                    epochs.push(order);
                }
                assert_eq!(epochs[0] == epochs[1], !shuffle);
                // Any position can be started from.
                for start in [0, 1, 49, 50, 56, 57, 116, 117, 150] {
                    assert_eq!(visits(&files, seen[start].0, 20), seen[start..start + 20], "{window} {start}");
                }
            }
        }
    }

    #[test]
    fn windows_of_a_large_shuffled_file_mix_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let files = make(dir.path(), &[10_000], true, 4000);
        let seen = visits(&files, Position::default(), 1000);
        let low = seen.iter().filter(|v| v.1 < 5000.0).count();
        assert!((350..650).contains(&low), "{low} of the first tenth come from the first half");
    }

    #[test]
    fn a_position_outside_the_data_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let files = make(dir.path(), &[5], false, 1000);
        assert!(files.check(Position { epoch: 3, file: 0, row: 4 }).is_ok());
        let e = files.check(Position { epoch: 0, file: 0, row: 5 }).unwrap_err().to_string();
        assert!(e.contains("row 5 of 5"), "{e}");
        let e = files.check(Position { epoch: 0, file: 1, row: 0 }).unwrap_err().to_string();
        assert!(e.contains("file number 2, but the list has 1"), "{e}");
    }
}
