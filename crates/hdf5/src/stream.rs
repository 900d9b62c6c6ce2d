//! Files that grow as their numbers come, of any size in little memory.
//!
//! The library makes the frame, every dataset whole and without numbers, in a sparse file, in memory if it can be; what it wrote
//! there goes to its place, and so do the numbers, by plain writes: no write of the library's meets a disk that is full.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hdf5_metno::plist::dataset_create::{AllocTime, FillTime};
use lgm_core::fs::{Staged, publish_all};
use lgm_core::memory::{self, in_units};
use lgm_core::{Error, Result, Shape, count};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use crate::reason;

/// Bytes copied at a time, and values.
const BLOCK: usize = 1 << 16;
const VALUES: usize = BLOCK / size_of::<f32>();

/// Bytes that a frame may take beside the numbers.
const FRAME: usize = 1 << 20;

/// A new HDF5 file of `f32` datasets that are written row by row, under a temporary name until it is published; dropped
/// before, it leaves nothing behind.
pub struct H5Stream {
    path: PathBuf,
    staged: Staged,
    datasets: Vec<Rows>,
}

/// A dataset that is being written.
struct Rows {
    name: String,
    shape: Shape,
    /// Where its next value goes, and where its last one ends.
    next: u64,
    end: u64,
}

impl H5Stream {
    /// Makes a file of datasets with these names, which may hold groups, and shapes, and room for it on the disk.
    ///
    /// # Errors
    /// When the folder cannot be written, the disk has no such room, or the library refuses.
    pub fn create(path: &Path, datasets: &[(&str, Shape)]) -> Result<Self> {
        let (frame, datasets) = frame(path, datasets)?;
        let failed = |e: Errno| Error::io(path, "create")(e.into());
        let len = frame.metadata().map_err(Error::io(path, "create"))?.len();
        let staged = Staged::create(path)?;
        match fallocate(staged.file(), FallocateFlags::KEEP_SIZE, 0, len.max(1)) {
            Err(Errno::NOSPC) => {
                let what = format!("its {} do not fit on the disk", in_units(len));
                return Err(Error::data(path, what));
            }
            // Some file systems cannot do so: there the disk is found full when it is.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) | Ok(()) => {}
            Err(e) => return Err(failed(e)),
        }
        staged.file().set_len(len).map_err(Error::io(path, "write"))?;
        copy_written(&frame, staged.file()).map_err(Error::io(path, "write"))?;
        Ok(H5Stream { path: path.into(), staged, datasets })
    }

    /// Writes the next rows of dataset number `dataset`: as many as `values` fills.
    ///
    /// # Errors
    /// When it fills no number of rows, they are more than the dataset has, or the system refuses.
    pub fn append(&mut self, dataset: usize, values: &[f32]) -> Result<()> {
        let Some(rows) = self.datasets.get_mut(dataset) else {
            return Err(Error::internal(format!("dataset {dataset} of {}", self.path.display())));
        };
        let bytes = count(&[values.len(), size_of::<f32>()]) as u64;
        let next = rows.next.saturating_add(bytes);
        let is_whole = values.len().checked_rem(rows.shape.count_from(1)).is_none_or(|rest| rest == 0);
        if !is_whole || next > rows.end {
            let what = format!("dataset '{}' of shape {} takes no {} values more", rows.name, rows.shape, values.len());
            return Err(Error::data(&self.path, what));
        }
        let mut block = memory::room(BLOCK, "what is written of a dataset")?;
        for values in values.chunks(VALUES) {
            block.clear();
            block.extend(values.iter().flat_map(|value| value.to_ne_bytes()));
            self.staged.file().write_all_at(&block, rows.next).map_err(Error::io(&self.path, "write"))?;
            rows.next = rows.next.saturating_add(block.len() as u64);
        }
        Ok(())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// When rows are missing, or the system refuses.
    pub fn publish(self) -> Result<()> {
        if let Some(rows) = self.datasets.iter().find(|rows| rows.next < rows.end) {
            let missing = in_units(rows.end.saturating_sub(rows.next));
            let what = format!("dataset '{}' of shape {} lacks {missing}", rows.name, rows.shape);
            return Err(Error::data(&self.path, what));
        }
        publish_all([self.staged.synced()?])
    }
}

/// A sparse file with datasets as they will be but for their numbers, and where these go.
fn frame(path: &Path, datasets: &[(&str, Shape)]) -> Result<(File, Vec<Rows>)> {
    let bytes = |shape: &Shape| count(&[shape.count(), size_of::<f32>()]) as u64;
    let all = datasets.iter().fold(FRAME as u64, |sum, (_, shape)| sum.saturating_add(bytes(shape)));
    let scratch = scratch(all).map_err(Error::io(path, "make the frame of"))?;
    let make = || -> hdf5_metno::Result<Vec<Rows>> {
        let frame = hdf5_metno::File::with_options().with_fapl(|p| p.libver_earliest()).create(scratch.path())?;
        let rows = datasets.iter().map(|(name, shape)| {
            let builder = frame.new_dataset::<f32>().shape(shape.to_vec());
            let builder = builder.alloc_time(Some(AllocTime::Early)).fill_time(FillTime::Never);
            // Without values there is no place for them.
            let next = builder.create(*name)?.offset().unwrap_or(0);
            Ok(Rows { name: (*name).to_string(), shape: shape.clone(), next, end: next.saturating_add(bytes(shape)) })
        });
        let rows = rows.collect::<hdf5_metno::Result<_>>()?;
        frame.close()?;
        Ok(rows)
    };
    let rows = make().map_err(|e| Error::data(path, format!("cannot be made: {}", reason(&e))))?;
    Ok((scratch.into_file(), rows))
}

/// A file for a frame, where there is room for one and a file may have so many bytes.
fn scratch(bytes: u64) -> io::Result<NamedTempFile> {
    let made = |folder: &Path| {
        let mut file = NamedTempFile::new_in(folder)?;
        file.write_all(&vec![0; FRAME])?;
        file.as_file().set_len(bytes)?;
        Ok(file)
    };
    made(Path::new("/dev/shm")).or_else(|_: io::Error| made(&std::env::temp_dir()))
}

/// Copies what was written of a sparse file.
fn copy_written(from: &File, to: &File) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    loop {
        at = match seek(from, SeekFrom::Data(at)) {
            Ok(at) => at,
            // There is nothing behind.
            Err(Errno::NXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let end = seek(from, SeekFrom::Hole(at))?;
        while at < end {
            let len = usize::try_from(end.saturating_sub(at)).unwrap_or(BLOCK).min(BLOCK);
            from.read_exact_at(&mut block[..len], at)?;
            to.write_all_at(&block[..len], at)?;
            at = at.saturating_add(len as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{H5File, Values};

    #[test]
    fn rows_of_several_datasets_come_in_turn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.h5");
        let shapes = [("conv/a", Shape::from([70, 300])), ("none", Shape::from([0, 4])), ("b", Shape::from([70]))];
        let mut file = H5Stream::create(&path, &shapes).unwrap();
        let value = |i: usize| i as f32 * 0.5;
        for row in (0..70).step_by(7) {
            file.append(0, &(row * 300..(row + 7) * 300).map(value).collect::<Vec<_>>()).unwrap();
            assert!(!path.exists());
            file.append(2, &(row..row + 7).map(value).collect::<Vec<_>>()).unwrap();
        }
        file.append(1, &[]).unwrap();
        let e = file.append(2, &[1.0]).unwrap_err().to_string();
        assert!(e.contains("'b' of shape (70)") && e.contains("takes no 1 values more"), "{e}");
        file.publish().unwrap();
        let file = H5File::open(&path).unwrap();
        assert_eq!(file.datasets().unwrap(), ["b", "none", "conv/a"]);
        let read = |name: &str| file.dataset(name).unwrap().read().unwrap();
        assert_eq!(read("conv/a"), Values::F32((0..70 * 300).map(value).collect()));
        assert_eq!(read("b"), Values::F32((0..70).map(value).collect()));
        assert!(read("none").is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_not_whole_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.h5");
        let mut file = H5Stream::create(&path, &[("x", Shape::from([4, 2]))]).unwrap();
        assert!(file.append(0, &[1.0; 3]).unwrap_err().to_string().contains("takes no 3 values more"));
        file.append(0, &[1.0; 6]).unwrap();
        let e = file.publish().unwrap_err().to_string();
        assert!(e.contains("'x' of shape (4, 2)") && e.contains("lacks 8 bytes"), "{e}");
        // 4 EiB, which no disk has.
        let e = H5Stream::create(&path, &[("x", Shape::from([1 << 30, 1 << 30]))]).err().unwrap().to_string();
        assert!(e.contains("a.h5"), "{e}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
