//! Images with annotations, as SSD's `convert_annoset` makes databases of them for AnnotatedData.
//!
//! A list names an image and its annotation on each line: a file (`detection`) or a label (`classification`). Annotations are VOC's
//! XML, COCO's JSON of one image, or text: a line (class, xmin, ymin, xmax, ymax) an object, in pixels, as in the others.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lgm_core::rng::{Philox, stream_id};
use lgm_core::{Error, Result};
use lgm_proto::annotated_datum::AnnotationType;
use lgm_proto::{AnnotatedDatum, AnnotationGroup, Datum, LabelMap};
use prost::Message;
use tracing::warn;

use super::{BLOCK, Progress};
use crate::annotated::{Corners, groups};
use crate::db::{Backend, Writer};
use crate::image::{Color, ImageFile, Raster, decode_raster};

/// How annotations are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnnotationFile {
    /// VOC's XML: `annotation` with `size` and an `object` each with `name`, `difficult` and `bndbox`.
    Xml,
    /// COCO's annotations of one image: `image` with its size and `annotation`, a list with `category_id`, `bbox` (x, y, width,
    /// height) and `iscrowd`, which counts as difficult.
    Json,
    /// Lines of class, xmin, ymin, xmax and ymax.
    Text,
}

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

/// The classes of names of objects.
#[derive(Clone, Debug, Default)]
pub struct ClassNames {
    path: PathBuf,
    classes: HashMap<String, i32>,
}

impl ClassNames {
    /// Those of a file with a `LabelMap` as text.
    ///
    /// # Errors
    /// When there is no such file, it is none, or, with `check`, it has a name twice.
    pub fn read(path: impl AsRef<Path>, check: bool) -> Result<ClassNames> {
        let path = path.as_ref();
        let text = std::fs::read(path).map_err(Error::io(path, "read the label map"))?;
        let map: LabelMap = lgm_proto::parse(&text, path)?.message;
        let mut classes = HashMap::new();
        for item in &map.item {
            if classes.insert(item.name().to_owned(), item.label()).is_some() && check {
                return Err(Error::data(path, format!("has the name '{}' twice", item.name())));
            }
        }
        Ok(ClassNames { path: path.into(), classes })
    }

    fn class(&self, name: &str) -> std::result::Result<i32, String> {
        self.classes.get(name).copied().ok_or_else(|| {
            let near = lgm_core::nearest(name, self.classes.keys().map(String::as_str));
            let near = near.map_or(String::new(), |near| format!("; did you mean '{near}'?"));
            format!("has an object '{name}', which is not in {}{near}", self.path.display())
        })
    }
}

/// An object in pixels: class, corners, and whether it is difficult.
type InPixels = (i32, [f64; 4], bool);

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
    let (mut written, mut first) = (0, None);
    for (i, (name, annotation)) in lines.iter().enumerate() {
        let path = root.join(name);
        let (datum, raster) = match image(&path, options) {
            Ok(image) => image,
            Err(e) => {
                warn!("Failed to read {name}: {e}");
                continue;
            }
        };
        let size = datum.data().len();
        if options.check_size && *first.get_or_insert(size) != size {
            return Err(Error::data(&path, format!("has {size} values, unlike the images before it")));
        }
        let record = annotated(datum, &raster, &root.join(annotation), annotation, list, &options.annotations)?;
        database.put(format!("{i:08}_{name}").as_bytes(), record.encode_to_vec())?;
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
fn read_list(path: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "read the list"))?;
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

/// An image as a record has it, and as its file does.
fn image(path: &Path, options: &AnnosetOptions) -> Result<(Datum, Raster)> {
    let file = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let bad = |e| Error::data(path, format!("the image {e}"));
    let color = if options.gray { Color::Gray } else { Color::Force };
    let original = decode_raster(&file, color).map_err(bad)?;
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
            // A file that is as it should be is kept as it is.
            let as_it_is = size.is_none() && options.dims == [0, 0] && extension == own && !options.gray;
            let kind = ImageFile::of(&extension).ok_or_else(|| {
                Error::data(path, format!("cannot be encoded as '{extension}': JPEG, PNG and BMP can be written"))
            })?;
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
    Ok((datum, original))
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
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read the annotation"))?;
        objects(&text, file, names, [image.extent.height, image.extent.width], path)?
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
    let found = match file {
        AnnotationFile::Xml => of_xml(text, names),
        AnnotationFile::Json => of_json(text, names),
        AnnotationFile::Text => of_text(text).map(|objects| (None, objects)),
    };
    let (size, found) = found.map_err(|what| Error::data(path, what))?;
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

/// The image's size, if it is told, and the objects; or what is wrong, of the file that …
type Found = std::result::Result<(Option<[usize; 2]>, Vec<InPixels>), String>;

fn of_xml(text: &str, names: &ClassNames) -> Found {
    let document = roxmltree::Document::parse(text).map_err(|e| format!("is not XML: {e}"))?;
    let root = document.root_element();
    if root.tag_name().name() != "annotation" {
        return Err(format!("line 1: expected an element 'annotation', found '{}'", root.tag_name().name()));
    }
    let line = |node: roxmltree::Node| document.text_pos_at(node.range().start).row;
    let child = |of: roxmltree::Node, name: &str| {
        let found = of.children().find(|c| c.has_tag_name(name));
        found.and_then(|c| c.text().map(|text| text.trim().to_owned()))
    };
    let number = |of: roxmltree::Node, name: &str| {
        let text =
            child(of, name).ok_or_else(|| format!("line {}: '{}' has no '{name}'", line(of), of.tag_name().name()))?;
        let number = text.parse::<f64>().ok().filter(|v| v.is_finite());
        number.ok_or_else(|| format!("line {}: '{name}' must be a number, found '{text}'", line(of)))
    };
    let size = match root.children().find(|c| c.has_tag_name("size")) {
        Some(size) => {
            Some([number(size, "height")? as usize, number(size, "width")? as usize]).filter(|s| !s.contains(&0))
        }
        None => None,
    };
    let mut objects = Vec::new();
    for object in root.children().filter(|c| c.has_tag_name("object")) {
        let name = child(object, "name").ok_or_else(|| format!("line {}: an object has no name", line(object)))?;
        let class = names.class(&name).map_err(|what| format!("line {}: {what}", line(object)))?;
        let corners = object.children().find(|c| c.has_tag_name("bndbox"));
        let corners = corners.ok_or_else(|| format!("line {}: an object has no 'bndbox'", line(object)))?;
        let mut at = [0.0; 4];
        for (at, name) in at.iter_mut().zip(["xmin", "ymin", "xmax", "ymax"]) {
            *at = number(corners, name)?;
        }
        objects.push((class, at, child(object, "difficult").as_deref() == Some("1")));
    }
    Ok((size, objects))
}

fn of_json(text: &str, names: &ClassNames) -> Found {
    let all: serde_json::Value = serde_json::from_str(text).map_err(|e| format!("is not JSON: {e}"))?;
    let side = |name: &str| all["image"][name].as_u64().filter(|&side| side > 0).map(|side| side as usize);
    let list = all["annotation"].as_array().ok_or("has no list 'annotation'")?;
    let mut objects = Vec::new();
    for (i, object) in list.iter().enumerate() {
        let name = match &object["category_id"] {
            serde_json::Value::String(name) => name.clone(),
            other => other.to_string(),
        };
        let class = names.class(&name).map_err(|what| format!("annotation {i}: {what}"))?;
        let bbox: Option<Vec<f64>> = object["bbox"].as_array().map(|b| b.iter().filter_map(|v| v.as_f64()).collect());
        let Some([x, y, width, height]) = bbox.as_deref().and_then(|b| <[f64; 4]>::try_from(b).ok()) else {
            return Err(format!("annotation {i}: 'bbox' must be four numbers, found {}", object["bbox"]));
        };
        let crowd = object["iscrowd"].as_i64().unwrap_or_default() != 0;
        objects.push((class, [x, y, x + width, y + height], crowd));
    }
    Ok((side("height").zip(side("width")).map(|(height, width)| [height, width]), objects))
}

fn of_text(text: &str) -> std::result::Result<Vec<InPixels>, String> {
    let object = |(i, line): (usize, &str)| {
        let numbers: Vec<f64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        match numbers[..] {
            [class, x1, y1, x2, y2] if class.fract() == 0.0 && line.split_whitespace().count() == 5 => {
                Ok((class as i32, [x1, y1, x2, y2], false))
            }
            _ => Err(format!(
                "line {}: expected a class and four numbers (xmin, ymin, xmax, ymax), found '{line}'",
                i + 1
            )),
        }
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> ClassNames {
        let classes = [("cat".to_owned(), 1), ("dog".to_owned(), 2), ("7".to_owned(), 3)].into();
        ClassNames { path: "map.prototxt".into(), classes }
    }

    #[test]
    fn each_kind_of_annotation() {
        let xml = "<annotation>\n<size><width>100</width><height>50</height></size>
            <object><name>dog</name><difficult>1</difficult><bndbox><xmin>10</xmin><ymin>5</ymin><xmax>60</xmax><ymax>45.5</ymax></bndbox></object>
            <object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>";
        let want = vec![(2, [10.0, 5.0, 60.0, 45.5], true), (1, [1.0, 2.0, 3.0, 4.0], false)];
        assert_eq!(of_xml(xml, &names()).unwrap(), (Some([50, 100]), want));
        let json = r#"{"image": {"height": 50, "width": 100}, "annotation": [{"category_id": 7, "bbox": [1, 2, 3.5, 4], "iscrowd": 1}]}"#;
        assert_eq!(of_json(json, &names()).unwrap(), (Some([50, 100]), vec![(3, [1.0, 2.0, 4.5, 6.0], true)]));
        assert_eq!(of_text("2 1 2 3 4\n\n").unwrap(), [(2, [1.0, 2.0, 3.0, 4.0], false)]);
    }

    #[test]
    fn damaged_annotations_are_described() {
        let object = |name: &str, bndbox: &str| {
            of_xml(&format!("<annotation>\n<object><name>{name}</name>{bndbox}</object></annotation>"), &names())
                .unwrap_err()
        };
        lgm_testkit::says(&object("cta", ""), &["line 2", "'cta'", "map.prototxt", "did you mean 'cat'"]);
        lgm_testkit::says(&object("cat", ""), &["line 2", "no 'bndbox'"]);
        lgm_testkit::says(&object("cat", "<bndbox><xmin>x</xmin></bndbox>"), &["'xmin' must be a number", "'x'"]);
        lgm_testkit::says(&object("cat", "<bndbox/>"), &["'bndbox' has no 'xmin'"]);
        lgm_testkit::says(&of_xml("<a/>", &names()).unwrap_err(), &["'annotation'", "'a'"]);
        lgm_testkit::says(&of_xml("<a", &names()).unwrap_err(), &["not XML"]);
        lgm_testkit::says(&of_json("{", &names()).unwrap_err(), &["not JSON"]);
        lgm_testkit::says(&of_json("{}", &names()).unwrap_err(), &["no list 'annotation'"]);
        let json = r#"{"annotation": [{"category_id": "dog", "bbox": [1, 2]}]}"#;
        lgm_testkit::says(&of_json(json, &names()).unwrap_err(), &["annotation 0", "four numbers", "[1,2]"]);
        lgm_testkit::says(&of_text("1 2 3 4\n").unwrap_err(), &["line 1", "'1 2 3 4'"]);
    }

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
