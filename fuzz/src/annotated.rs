//! Images with the boxes of their objects: records of AnnotatedData, and what `convert_annoset` makes them of.

use lgm_data::AnnotatedData;
use lgm_data::convert::{AnnosetOptions, AnnotationFile, Annotations, ClassNames, convert_annoset};

use crate::data::{CX, batches, layer};
use crate::scratch::Scratch;
use crate::stores::database;

thread_local!(static FOLDER: Scratch = Scratch::new());

/// What can be done with images and boxes.
const TRANSFORMS: [&str; 4] = [
    "",
    "transform_param { crop_size: 2 mirror: true mean_value: 9 emit_constraint { emit_type: MIN_OVERLAP emit_overlap: 0.1 } }",
    "transform_param { force_color: true
       distort_param { brightness_prob: 1 brightness_delta: 24 contrast_prob: 1 contrast_lower: 0.7 contrast_upper: 1.3
         saturation_prob: 1 saturation_lower: 0.7 saturation_upper: 1.3 hue_prob: 1 hue_delta: 12 random_order_prob: 0.5 }
       expand_param { prob: 1 max_expand_ratio: 2 } mean_value: [1, 2, 3] emit_constraint { emit_type: CENTER }
       resize_param { resize_mode: WARP height: 5 width: 7 interp_mode: [LINEAR, AREA, NEAREST, CUBIC, LANCZOS4] } }
     annotated_data_param { batch_sampler { sampler { min_scale: 0.3 min_aspect_ratio: 0.5 max_aspect_ratio: 2 }
       sample_constraint { min_jaccard_overlap: 0.1 } max_sample: 1 max_trials: 20 } }",
    "transform_param { resize_param { resize_mode: FIT_LARGE_SIZE_AND_PAD height: 6 width: 4 pad_mode: MIRRORED } }",
];

fn source(folder: &Scratch, transform: &str) -> lgm_core::Result<AnnotatedData> {
    let db = folder.text("one");
    let data = format!("data_param {{ source: '{db}' batch_size: 2 backend: LMDB }}");
    AnnotatedData::new(&layer(&format!("layer {{ name: 'd' type: 'AnnotatedData' top: 'x' {data} {transform} }}")), &CX)
}

/// One record of a database, its objects resized, cut and distorted with it.
pub fn datum(bytes: &[u8]) {
    FOLDER.with(|folder| {
        folder.write("one/data.mdb", &database(bytes));
        for transform in TRANSFORMS {
            let _ = source(folder, transform).and_then(|source| batches(source, 2));
        }
    });
}

/// A picture of 5 rows of 6 pixels.
const PICTURE: &[u8] = include_bytes!("../corpus/image/palette.png");
const LABEL_MAP: &[u8] = include_bytes!("../corpus/label_map/sound");

fn options(annotations: Annotations) -> AnnosetOptions {
    AnnosetOptions { encoded: true, ..AnnosetOptions::new(annotations) }
}

/// Converts one picture with an annotation; how many were written.
fn annotation(bytes: &[u8], kind: AnnotationFile) -> lgm_core::Result<usize> {
    FOLDER.with(|folder| {
        let list = folder.write("annotations/list.txt", b"picture.png annotation\n");
        let map = folder.write("annotations/label_map", LABEL_MAP);
        folder.write("annotations/picture.png", PICTURE);
        folder.write("annotations/annotation", bytes);
        let out = folder.fresh("annotations/db");
        let options = options(Annotations::Objects(kind, ClassNames::read(map, true)?));
        convert_annoset(folder.at("annotations"), list, out, &options, &mut |_, _| ()).map(|(written, _)| written)
    })
}

/// VOC's annotation of an image.
pub fn voc_xml(bytes: &[u8]) {
    let _ = annotation(bytes, AnnotationFile::Xml);
}

/// COCO's annotations of an image.
pub fn coco_json(bytes: &[u8]) {
    let _ = annotation(bytes, AnnotationFile::Json);
}

/// Lines of a class and corners.
pub fn boxes(bytes: &[u8]) {
    let _ = annotation(bytes, AnnotationFile::Text);
}

/// A list of images and their labels; the files it names are not there, but for one.
pub fn list(bytes: &[u8]) {
    // What lies on this machine is none of the fuzzer's business.
    if bytes.contains(&b'/') {
        return;
    }
    FOLDER.with(|folder| {
        let list = folder.write("list/list.txt", bytes);
        folder.write("list/a.png", PICTURE);
        let out = folder.fresh("list/db");
        let _ = convert_annoset(folder.at("list"), list, out, &options(Annotations::Labels), &mut |_, _| ());
    });
}

/// A label map's prototxt.
pub fn label_map(bytes: &[u8]) {
    FOLDER.with(|folder| {
        let _ = ClassNames::read(folder.write("label_map", bytes), true);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        files.map(|path| (path.display().to_string(), std::fs::read(&path).unwrap())).collect()
    }

    /// What is varied of the sound inputs reaches beyond the first check.
    #[test]
    fn the_sound_inputs_are_taken() {
        for (name, bytes) in corpus("annotated_datum") {
            FOLDER.with(|folder| {
                folder.write("one/data.mdb", &database(&bytes));
                for transform in TRANSFORMS {
                    source(folder, transform)
                        .and_then(|source| batches(source, 2))
                        .unwrap_or_else(|e| panic!("{name}: {e}"));
                }
            });
        }
        for (target, kind) in
            [("voc_xml", AnnotationFile::Xml), ("coco_json", AnnotationFile::Json), ("boxes", AnnotationFile::Text)]
        {
            for (name, bytes) in corpus(target) {
                assert_eq!(annotation(&bytes, kind).unwrap_or_else(|e| panic!("{name}: {e}")), 1, "{name}");
            }
        }
    }
}
