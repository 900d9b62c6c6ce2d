//! Annotation files: VOC's XML, COCO's JSON of one image, and text.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lgm_core::Error;
use lgm_proto::LabelMap;

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
    pub fn read(path: impl AsRef<Path>, check: bool) -> lgm_core::Result<ClassNames> {
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

    fn class(&self, name: &str) -> Result<i32, String> {
        self.classes.get(name).copied().ok_or_else(|| {
            let near = lgm_core::nearest(name, self.classes.keys().map(String::as_str));
            let near = near.map_or(String::new(), |near| format!("; did you mean '{near}'?"));
            format!("has an object '{name}', which is not in {}{near}", self.path.display())
        })
    }
}

/// An object in pixels: class, corners, and whether it is difficult.
pub(super) type InPixels = (i32, [f64; 4], bool);

/// The image's size, if it is told, and the objects; or what is wrong, of the file that …
pub(super) type Found = Result<(Option<[usize; 2]>, Vec<InPixels>), String>;

/// Reads an image's annotations.
pub(super) fn read(text: &str, file: AnnotationFile, names: &ClassNames) -> Found {
    match file {
        AnnotationFile::Xml => of_xml(text, names),
        AnnotationFile::Json => of_json(text, names),
        AnnotationFile::Text => of_text(text).map(|objects| (None, objects)),
    }
}

fn of_xml(text: &str, names: &ClassNames) -> Found {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(text, options).map_err(|e| format!("is not XML: {e}"))?;
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

fn of_text(text: &str) -> Result<Vec<InPixels>, String> {
    let object = |(i, line): (usize, &str)| {
        let numbers: Vec<f64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let is_finite = numbers.iter().all(|number| number.is_finite());
        match numbers[..] {
            [class, x1, y1, x2, y2]
                if f64::from(class as i32) == class && is_finite && line.split_whitespace().count() == 5 =>
            {
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
        for line in ["1 2 3 4", "1e10 1 2 3 4", "1 nan 2 3 4", "1.5 1 2 3 4"] {
            lgm_testkit::says(&of_text(line).unwrap_err(), &["line 1", line]);
        }
    }
}
