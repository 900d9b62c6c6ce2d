//! Lists of image files to databases of `Datum` records: Caffe's `convert_imageset`.
//!
//! Records lie under the keys `00000000_NAME`, `00000001_NAME`, …, numbers and names those of the list's lines (after
//! shuffling). An image is stored as blue, green, red planes of 8 bits or one gray one; encoded, as a file: the image's own
//! where it is of the kind wanted and neither size nor colour changes, else one that is made.
//!
//! Threads decode, resize and encode; records are written in order, so that the database does not depend on them. An image
//! that cannot be read is warned of and left out, and its number with it, as in Caffe; the caller is told how many. So is a
//! line that names none. JPEGs that were cut short are used, as in Caffe, and the first warned of with their number.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crossbeam_channel::bounded;
use lgm_core::{Error, Phase, Result, memory};
use lgm_proto::{Datum, strings};
use prost::Message;

use super::Progress;
use crate::datum;
use crate::db::{Backend, Writer};
use crate::image::{self, Color, ImageFile, Pixels};
use crate::image_list::ImageList;
use crate::order::Draws;
use crate::pixels::Extent;
use crate::warnings::{Alike, Flaw};

/// Images after which Caffe logs how many are done.
const LOGGED: usize = 1000;

/// Bytes of the longest key that LMDB takes.
const LONGEST_KEY: usize = 511;

/// How images are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As pixels.
    None,
    /// As files of the kind that each name's extension tells.
    AsNamed,
    /// As files of one kind.
    As(ImageFile),
}

/// What [`convert_imageset`] makes of images.
#[derive(Clone, Debug)]
pub struct ImageSetOptions {
    /// Gray in place of colour.
    pub gray: bool,
    /// Shuffles the list, by a seed.
    pub shuffle: Option<u64>,
    /// The kind of database.
    pub backend: Backend,
    /// The height and width to bring images to.
    pub size: Option<(usize, usize)>,
    /// Fails unless all images have one size.
    pub check_size: bool,
    /// How they are stored.
    pub encoding: Encoding,
}

/// What came of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSet {
    /// Images in the database.
    pub written: usize,
    /// Images that could not be read.
    pub left_out: usize,
}

/// An image's record, as it is stored, its extents as decoded, and what is amiss with it.
struct Converted {
    record: Vec<u8>,
    extent: Extent,
    flaw: Option<Flaw>,
}

/// Converts the images of the list `list`, named relative to `root`, which is put before every name as it is, to a new
/// database `out`.
///
/// # Errors
/// When the list cannot be read or has a label of more than 32 bits, when none of the images can, when an image has another size than the others
/// (`check_size`) or cannot be encoded, when `out` exists or cannot be written. Nothing is left behind then.
pub fn convert_imageset(
    root: &str,
    list: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &ImageSetOptions,
    progress: Progress<'_>,
) -> Result<ImageSet> {
    let list = ImageList::read_loosely(list.as_ref(), root)?;
    let images = list.len();
    let order: Vec<u32> = match options.shuffle {
        Some(seed) => {
            tracing::info!("Shuffling data");
            Draws::new(seed, "convert_imageset", Phase::Train).permutation("files", &[], images)
        }
        None => (0..images as u32).collect(),
    };
    tracing::info!("A total of {images} images.");
    memory::keep_freed();
    let mut writer = Writer::create(out, options.backend)?;
    let mut set = ImageSet { written: 0, left_out: 0 };
    let (mut first, mut unread, cut) = (None, None, Alike::default());
    let one = |number: usize| convert(&list, order[number] as usize, options);
    in_order(images, &one, |number, converted| {
        let index = order[number] as usize;
        progress(number.saturating_add(1), images);
        let Converted { record, extent, flaw } = match converted?? {
            Ok(converted) => converted,
            Err(_) if list.name(index).is_empty() => return Ok(()),
            Err(unreadable) => {
                let why = list.unread(index, unreadable);
                tracing::warn!("Could not open or find file {}: {why}", list.file(index).display());
                set.left_out = set.left_out.saturating_add(1);
                unread.get_or_insert(why);
                return Ok(());
            }
        };
        flaw.iter()
            .for_each(|flaw| cut.add(|| list.error(index, format!("'{}' {flaw}", list.name(index))).to_string()));
        let (line, expected) = *first.get_or_insert((index.saturating_add(1), extent));
        if options.check_size && extent != expected {
            let name = list.name(index);
            return Err(list.error(index, format!("'{name}' is {extent}, but the image of line {line} is {expected}")));
        }
        let key = format!("{number:08}_{}", list.name(index));
        let key = strings::to_bytes(&key);
        if options.backend == Backend::Lmdb && key.len() > LONGEST_KEY {
            let what = format!("the name makes a key of {} bytes, and LMDB takes {LONGEST_KEY}", key.len());
            return Err(list.error(index, what + "; -backend leveldb takes longer ones"));
        }
        writer.put(&key, record).map_err(|e| list.error(index, e))?;
        set.written = set.written.saturating_add(1);
        if set.written.is_multiple_of(LOGGED) {
            tracing::info!("Processed {} files.", set.written);
        }
        Ok(())
    })?;
    if let (0, Some(why)) = (set.written, unread) {
        let what = format!("none of the {images} images can be read; the first: {why}");
        return Err(Error::data(list.path(), what));
    }
    writer.finish()?;
    if !set.written.is_multiple_of(LOGGED) {
        tracing::info!("Processed {} files.", set.written);
    }
    Ok(set)
}

/// An image's record. The inner error is that of an image that cannot be read, the outer one ends the conversion.
fn convert(list: &ImageList, index: usize, options: &ImageSetOptions) -> Result<Result<Converted>> {
    let file = list.file(index);
    let color = if options.gray { Color::Gray } else { Color::Force };
    let read = || -> Result<_> {
        let bytes = image::read_bytes(&file)?;
        let (raster, flaw) = image::decode_file(&bytes, &file, color)?;
        Ok((bytes, raster, flaw))
    };
    let (bytes, mut raster, flaw) = match read() {
        Ok(read) => read,
        Err(unreadable) => return Ok(Err(unreadable)),
    };
    let failed = |e| list.error(index, format!("{}: the image {e}", file.display()));
    if let Some((height, width)) = options.size {
        raster = raster.resized(height, width).map_err(failed)?;
    }
    let (extent, label) = (raster.extent, Some(list.label(index)));
    let encoded = |data| Datum { data: Some(data), label, encoded: Some(true), ..Default::default() };
    let datum = match target(list, index, options)? {
        // Gray is a file's own where it was gray before.
        Some(kind) if options.size.is_none() && named(&file) == Some(kind) && (!options.gray || is_gray(&bytes)) => {
            encoded(bytes)
        }
        Some(kind) => encoded(raster.encode(kind).map_err(failed)?),
        None => {
            let Pixels::U8(pixels) = raster.planes().map_err(failed)?.pixels else {
                return Err(Error::internal("an image file decoded to floating-point pixels"));
            };
            datum::record(extent, pixels, label)?
        }
    };
    Ok(Ok(Converted { record: datum.encode_to_vec(), extent, flaw }))
}

/// The kind of file that an image is to be stored as; none for pixels.
fn target(list: &ImageList, index: usize, options: &ImageSetOptions) -> Result<Option<ImageFile>> {
    match options.encoding {
        Encoding::None => Ok(None),
        Encoding::As(kind) => Ok(Some(kind)),
        Encoding::AsNamed => named(&list.file(index)).map(Some).ok_or_else(|| {
            let name = list.name(index);
            list.error(index, format!("the name '{name}' does not tell how to encode the image; give -encode_type"))
        }),
    }
}

/// The kind that a file's extension tells.
fn named(file: &Path) -> Option<ImageFile> {
    file.extension().and_then(|extension| extension.to_str()).and_then(ImageFile::of)
}

/// Whether an image file has one channel.
fn is_gray(bytes: &[u8]) -> bool {
    image::decode_raster(bytes, Color::Native).is_ok_and(|(raster, _)| raster.extent.channels == 1)
}

/// Runs `one` on the numbers below `count` on all cores, and `each` with what it returns, in their order, on this thread.
/// A bounded number of results waits.
fn in_order<R: Send>(
    count: usize,
    one: &(impl Fn(usize) -> R + Sync),
    mut each: impl FnMut(usize, Result<R>) -> Result<()>,
) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(count.max(1));
    let waiting = threads.saturating_mul(8).min(count);
    let (give, todo) = bounded::<usize>(waiting.max(1));
    let (done, results) = bounded(waiting.max(1));
    for number in 0..waiting {
        give.send(number).map_err(|_| Error::internal("a channel closed before it was used"))?;
    }
    std::thread::scope(|scope| {
        let work = || {
            for number in todo.clone() {
                let result = catch_unwind(AssertUnwindSafe(|| one(number)))
                    .map_err(|_| Error::internal("a thread that converts images panicked"));
                if done.send((number, result)).is_err() {
                    return;
                }
            }
        };
        let mut started = 0usize;
        for _ in 0..threads {
            let thread = std::thread::Builder::new().name("converter".into());
            match thread.spawn_scoped(scope, work) {
                Ok(_) => started = started.saturating_add(1),
                Err(e) if started == 0 => return Err(Error::io("convert_imageset", "start a thread")(e)),
                // Those there are do it all.
                Err(_) => break,
            }
        }
        // Dropped at the end, also of an early one: then the threads end.
        let (give, results) = (give, results);
        let (mut pending, mut next) = (BTreeMap::new(), 0usize);
        while next < count {
            let (number, result) =
                results.recv().map_err(|_| Error::internal("the threads that convert images ended"))?;
            pending.insert(number, result);
            while let Some(result) = pending.remove(&next) {
                each(next, result)?;
                let further = next.saturating_add(waiting);
                if further < count {
                    give.send(further).map_err(|_| Error::internal("the threads that convert images ended"))?;
                }
                next = next.saturating_add(1);
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_takes_long() {
        let mut seen = Vec::new();
        let slow = |n: usize| {
            std::thread::sleep(std::time::Duration::from_micros(((n * 7919) % 13 * 50) as u64));
            n * n
        };
        in_order(100, &slow, |n, square| {
            seen.push((n, square?));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, (0..100).map(|n| (n, n * n)).collect::<Vec<_>>());
        in_order(0, &slow, |_, _| panic!("nothing to do")).unwrap();
    }

    #[test]
    fn an_error_ends_the_work_and_a_panic_is_one() {
        let e = in_order(1000, &|n| n, |n, _| if n == 5 { Err(Error::config("five")) } else { Ok(()) });
        assert_eq!(e.unwrap_err().to_string(), "five");
        let panics = |n: usize| if n == 30 { panic!("deliberate") } else { n };
        let e = in_order(100, &panics, |_, r| r.map(drop)).unwrap_err().to_string();
        assert!(e.contains("a thread that converts images panicked"), "{e}");
    }
}
