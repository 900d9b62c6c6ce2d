//! Images with annotations, as SSD's `convert_annoset` makes databases of them for AnnotatedData.
//!
//! A list names an image and its annotation on each line: a file (`detection`) or a label (`classification`). Annotations are VOC's
//! XML, COCO's JSON of one image, or text: a line (class, xmin, ymin, xmax, ymax) an object, in pixels, as in the others.

mod annotations;

use std::path::{Path, PathBuf};

use lgm_core::rng::{Philox, stream_id};
use lgm_core::{Error, Result};
use lgm_proto::annotated_datum::AnnotationType;
use lgm_proto::{AnnotatedDatum, AnnotationGroup, Datum, strings};
use prost::Message;
use tracing::warn;

pub use annotations::{AnnotationFile, ClassNames};

use super::{BLOCK, Progress};
use crate::annotated::{Corners, groups};
use crate::db::{Backend, Writer};
use crate::image::{Color, ImageFile, Raster, decode_raster};
use crate::warnings::{Alike, Flaw};

/// What a list has beside the names of images.
#[derive(Clone, Debug)]
pub enum Annotations {
    /// A label.
    Labels,
    /// A file of objects, and the classes of their names.
    Objects(AnnotationFile, ClassNames),
}

/// What is to be made of images.
#[derive(Clone, Debug)]
pub struct AnnosetOptions {
    /// What a list has beside the names of images.
    pub annotations: Annotations,
    /// The kind of database.
    pub backend: Backend,
    /// Images are made gray.
    pub gray: bool,
    /// The list is put in another order, which this number draws.
    pub shuffle: Option<u64>,
    /// The shorter side that an image has at least, and the longer one at most; 0 for any. Its shape stays.
    pub dims: [usize; 2],
    /// The height and width of all images, where `dims` say nothing; 0 for their own.
    pub size: [usize; 2],
    /// All images must have one size.
    pub check_size: bool,
    /// Images are kept as files.
    pub encoded: bool,
    /// Of which kind, if not of their own: `png`, `jpg`, …
    pub encode_type: Option<String>,
}

impl AnnosetOptions {
    /// An LMDB database of the images as they are, in the order of the list.
    pub fn new(annotations: Annotations) -> Self {
        AnnosetOptions {
            annotations,
            backend: Backend::Lmdb,
            gray: false,
            shuffle: None,
            dims: [0, 0],
            size: [0, 0],
            check_size: false,
            encoded: false,
            encode_type: None,
        }
    }
}

/// Makes a database of the images that a list in `list` names, in folder `root`. Returns how many images are in it, and how many
/// could not be read, of which the log tells.
///
/// # Errors
/// When the list cannot be read, an annotation is not as it should be, `out` exists or cannot be written, or no image can be read.
pub fn convert_annoset(
    root: impl AsRef<Path>,
    list: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &AnnosetOptions,
    progress: Progress<'_>,
) -> Result<(usize, usize)> {
    let (root, list) = (root.as_ref(), list.as_ref());
    let mut lines = read_list(list)?;
    if let Some(seed) = options.shuffle {
        Philox::new(seed, stream_id("convert_annoset", "shuffle")).from(0).shuffle(&mut lines);
    }
    let mut database = Writer::create(out, options.backend)?;
    let (mut written, mut first, cut) = (0, None, Alike::default());
    for (i, (name, annotation)) in lines.iter().enumerate() {
        let path = under(root, name);
        let (datum, raster, flaw) = match image(&path, options) {
            Ok(image) => image,
            Err(e) => {
                warn!("Failed to read {name}: {e}");
                continue;
            }
        };
        flaw.iter().for_each(|flaw| cut.add(|| Error::data(&path, format!("the image {flaw}")).to_string()));
        let size = datum.data().len();
        if options.check_size && *first.get_or_insert(size) != size {
            return Err(Error::data(&path, format!("has {size} values, unlike the images before it")));
        }
        let file = under(root, annotation);
        let record = annotated(datum, &raster, &file, annotation, list, &options.annotations)?;
        database.put(&strings::to_bytes(&format!("{i:08}_{name}")), record.encode_to_vec())?;
        written += 1;
        if (i + 1) % BLOCK == 0 || i + 1 == lines.len() {
            progress(i + 1, lines.len());
        }
    }
    if written == 0 {
        return Err(Error::data(list, "none of its images can be read"));
    }
    database.finish()?;
    Ok((written, lines.len() - written))
}

/// Names of images and their annotations. The last word of a line is the annotation: names may have spaces.
pub(super) fn read_list(path: &Path) -> Result<Vec<(String, String)>> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read the list"))?;
    let text = strings::of_file(&bytes);
    let mut lines = Vec::new();
    for (i, line) in text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty()) {
        let Some((name, annotation)) = line.rsplit_once(char::is_whitespace) else {
            let what = format!("line {}: expected an image and its annotation, found '{line}'", i + 1);
            return Err(Error::data(path, what));
        };
        lines.push((name.trim_end().to_owned(), annotation.to_owned()));
    }
    if lines.is_empty() { Err(Error::data(path, "names no images")) } else { Ok(lines) }
}

/// An image as a record has it, and as its file does; and what is amiss with that.
fn image(path: &Path, options: &AnnosetOptions) -> Result<(Datum, Raster, Option<Flaw>)> {
    let file = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let bad = |e| Error::data(path, format!("the image {e}"));
    let color = if options.gray { Color::Gray } else { Color::Force };
    let (original, flaw) = decode_raster(&file, color).map_err(bad)?;
    let own = path.extension().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_lowercase();
    let extension = options.encode_type.clone().or_else(|| options.encoded.then(|| own.clone()));
    let size = new_size([original.extent.height, original.extent.width], options);
    let resized = match size {
        Some([height, width]) => Some(original.resized(height, width).map_err(bad)?),
        None => None,
    };
    let shown = resized.as_ref().unwrap_or(&original);
    let mut datum = Datum { label: Some(-1), ..Default::default() };
    let extent = |v: usize| i32::try_from(v).ok();
    (datum.channels, datum.height, datum.width) =
        (extent(shown.extent.channels), extent(shown.extent.height), extent(shown.extent.width));
    match extension {
        Some(extension) => {
            let kind = ImageFile::of(&extension).ok_or_else(|| {
                Error::data(path, format!("cannot be encoded as '{extension}': JPEG, PNG and BMP can be written"))
            })?;
            // A file that is as it should be is kept as it is.
            let as_it_is =
                size.is_none() && options.dims == [0, 0] && ImageFile::of(&own) == Some(kind) && !options.gray;
            datum.data = Some(if as_it_is { file } else { shown.encode(kind).map_err(bad)? });
            datum.encoded = Some(true);
        }
        None => {
            let planes = shown.clone().planes().map_err(bad)?;
            datum.data = match planes.pixels {
                crate::image::Pixels::U8(pixels) => Some(pixels),
                crate::image::Pixels::F32(_) => None,
            };
            datum.encoded = Some(false);
        }
    }
    Ok((datum, original, flaw))
}

/// The file that a list names: what begins with a slash lies in the root too, as text that is joined to text.
pub(super) fn under(root: &Path, name: &str) -> PathBuf {
    match root.as_os_str().is_empty() {
        true => strings::to_path(name),
        false => root.join(strings::to_path(name.trim_start_matches('/'))),
    }
}

/// The size that an image is to get, if another than its own.
fn new_size([height, width]: [usize; 2], options: &AnnosetOptions) -> Option<[usize; 2]> {
    let [least, most] = options.dims;
    if [least, most] == [0, 0] {
        return (!options.size.contains(&0)).then_some(options.size);
    }
    let (short, long) = (height.min(width), height.max(width));
    let mut factor = if short < least { least as f32 / short as f32 } else { 1.0 };
    if most > 0 && (factor * long as f32) as usize > most {
        factor = most as f32 / long as f32;
    }
    let side = |side: usize| ((factor * side as f32).round_ties_even() as usize).max(1);
    (factor != 1.0).then(|| [side(height), side(width)])
}

/// The record of an image.
fn annotated(
    datum: Datum,
    image: &Raster,
    path: &Path,
    annotation: &str,
    list: &Path,
    annotations: &Annotations,
) -> Result<AnnotatedDatum> {
    let (file, names) = match annotations {
        Annotations::Labels => {
            let label = annotation.parse::<i32>();
            let label = label.map_err(|_| Error::data(list, format!("expected a label, found '{annotation}'")))?;
            let datum = Datum { label: Some(label), ..datum };
            return Ok(AnnotatedDatum { datum: Some(datum), ..Default::default() });
        }
        Annotations::Objects(file, names) => (*file, names),
    };
    let annotation_group = if path.exists() {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read the annotation"))?;
        objects(&strings::of_file(&bytes), file, names, [image.extent.height, image.extent.width], path)?
    } else {
        warn!("{}: there is no such annotation, so the image has no objects", path.display());
        Vec::new()
    };
    let kind = Some(AnnotationType::Bbox as i32);
    Ok(AnnotatedDatum { datum: Some(datum), r#type: kind, annotation_group, ..Default::default() })
}

fn objects(
    text: &str,
    file: AnnotationFile,
    names: &ClassNames,
    image: [usize; 2],
    path: &Path,
) -> Result<Vec<AnnotationGroup>> {
    let (size, found) = annotations::read(text, file, names).map_err(|what| Error::data(path, what))?;
    let [height, width] = size.unwrap_or(image).map(|side| side as f64);
    if size.is_some_and(|size| size != image) {
        warn!("{}: says that the image is {height} x {width}, but it is {} x {}", path.display(), image[0], image[1]);
    }
    let mut objects: Vec<(i32, Corners, bool)> = Vec::new();
    for (class, corners, difficult) in found {
        let fractions: [f64; 4] = std::array::from_fn(|k| corners[k] / if k % 2 == 0 { width } else { height });
        if fractions.iter().any(|v| !(0.0..=1.0).contains(v)) {
            warn!("{}: bounding box {corners:?} exceeds the image's boundary", path.display());
        }
        if corners[0] > corners[2] || corners[1] > corners[3] {
            warn!("{}: bounding box {corners:?} has its corners the wrong way round", path.display());
        }
        objects.push((class, fractions.map(|v| v as f32), difficult));
    }
    Ok(groups(&objects))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_kept_in_bounds() {
        let options = |dims, size| AnnosetOptions {
            annotations: Annotations::Labels,
            backend: Backend::Lmdb,
            gray: false,
            shuffle: None,
            dims,
            size,
            check_size: false,
            encoded: false,
            encode_type: None,
        };
        assert_eq!(new_size([50, 100], &options([0, 0], [0, 0])), None);
        assert_eq!(new_size([50, 100], &options([0, 0], [30, 40])), Some([30, 40]));
        assert_eq!(new_size([50, 100], &options([75, 0], [30, 40])), Some([75, 150]));
        assert_eq!(new_size([50, 100], &options([75, 120], [0, 0])), Some([60, 120]));
        assert_eq!(new_size([50, 100], &options([40, 200], [0, 0])), None);
        assert_eq!(new_size([50, 100], &options([0, 80], [0, 0])), Some([40, 80]));
    }
}
