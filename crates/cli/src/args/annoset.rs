//! Flags of `convert_annoset` and `get_image_size`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lgm_data::convert::AnnotationFile;

use super::data::DatabaseForm;

/// Flags of `convert_annoset`.
#[derive(Args, Debug)]
#[command(after_help = "\
Lines of the list name an image and its annotation, both in ROOT:
  lgm-caffe convert_annoset -anno_type detection -label_type xml -label_map_file map.prototxt \\
    -encoded VOCdevkit/ trainval.txt trainval_lmdb")]
pub struct ConvertAnnosetArgs {
    /// The folder of the images and annotations
    pub root: PathBuf,
    /// The list: an image and its annotation, or its label, on each line
    pub list: PathBuf,
    /// The database to make
    pub output: PathBuf,
    /// What the list has beside images: labels, or files of objects
    #[arg(long = "anno_type", value_name = "TYPE", value_enum, default_value_t = AnnoType::Classification)]
    pub anno_type: AnnoType,
    /// The form of the annotations: VOC's XML, COCO's JSON of one image, or lines of class, xmin, ymin, xmax, ymax
    #[arg(long = "label_type", value_name = "FORM", value_enum, default_value_t = LabelType::Xml)]
    pub label_type: LabelType,
    /// A file with a LabelMap: the classes of the names in annotations
    #[arg(long = "label_map_file", value_name = "FILE")]
    pub label_map_file: Option<PathBuf>,
    /// Refuse a label map that has a name twice
    #[arg(long = "check_label")]
    pub check_label: bool,
    /// Store gray images in place of coloured ones
    #[arg(long = "gray")]
    pub gray: bool,
    /// Shuffle the list
    #[arg(long = "shuffle")]
    pub shuffle: bool,
    /// Another seed shuffles in another order
    #[arg(long = "seed", value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// The kind of database
    #[arg(long = "backend", value_name = "KIND", value_enum, default_value_t = DatabaseForm::Lmdb)]
    pub backend: DatabaseForm,
    /// The least number of pixels of an image's shorter side; its shape stays
    #[arg(long = "min_dim", value_name = "N", default_value_t = 0)]
    pub min_dim: usize,
    /// The greatest number of pixels of an image's longer side; its shape stays
    #[arg(long = "max_dim", value_name = "N", default_value_t = 0)]
    pub max_dim: usize,
    /// The width to bring images to, with resize_height; 0: as they are
    #[arg(long = "resize_width", value_name = "N", default_value_t = 0)]
    pub resize_width: usize,
    /// The height to bring images to, with resize_width; 0: as they are
    #[arg(long = "resize_height", value_name = "N", default_value_t = 0)]
    pub resize_height: usize,
    /// Fail unless all images have one size
    #[arg(long = "check_size")]
    pub check_size: bool,
    /// Store image files, not pixels: the images' own where they need no change
    #[arg(long = "encoded")]
    pub encoded: bool,
    /// The kind of image files to store: jpg, png or bmp; without it, what each name's end says
    #[arg(long = "encode_type", value_name = "KIND")]
    pub encode_type: Option<String>,
}

/// Flags of `get_image_size`.
#[derive(Args, Debug)]
#[command(after_help = "\
Each line of OUTPUT has an image's name without folder and extension, its height and its width:
  lgm-caffe get_image_size VOCdevkit/ test.txt test_name_size.txt")]
pub struct GetImageSizeArgs {
    /// The folder of the images
    pub root: PathBuf,
    /// The list: an image and its annotation, or its label, on each line
    pub list: PathBuf,
    /// The file of sizes to make
    pub output: PathBuf,
    /// A file of names and numbers: these stand in OUTPUT in place of the names
    #[arg(long = "name_id_file", value_name = "FILE")]
    pub name_id_file: Option<PathBuf>,
}

/// What a list has beside images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AnnoType {
    /// Labels.
    Classification,
    /// Files of objects.
    Detection,
}

/// The forms of annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LabelType {
    /// VOC's.
    Xml,
    /// COCO's.
    Json,
    /// Lines of numbers.
    Txt,
}

impl From<LabelType> for AnnotationFile {
    fn from(form: LabelType) -> Self {
        match form {
            LabelType::Xml => AnnotationFile::Xml,
            LabelType::Json => AnnotationFile::Json,
            LabelType::Txt => AnnotationFile::Text,
        }
    }
}
