//! The flags of `convert_imageset`.

use std::path::PathBuf;

use clap::Args;

use super::data::DatabaseForm;
use super::name;

/// Flags of `convert_imageset`.
#[derive(Args, Debug)]
#[command(after_help = "\
Each line of the list is an image's name, which may have spaces, a space and its label, a whole number; a line without
one has label 0, with a warning. Examples:
  lgm-caffe convert_imageset -resize_height=256 -resize_width=256 -shuffle train/ train.txt train_lmdb
  lgm-caffe convert_imageset -encoded -encode_type jpg -resize_height=256 -resize_width=256 val/ val.txt val_lmdb")]
pub struct ConvertImagesetArgs {
    /// What is put before every name of the list: a folder, with its slash
    #[arg(value_name = "ROOTFOLDER/", value_parser = name())]
    pub root: String,
    /// The list of images and labels
    #[arg(value_name = "LISTFILE")]
    pub list: PathBuf,
    /// The folder of the database to make, which does not exist
    #[arg(value_name = "DB_NAME")]
    pub database: PathBuf,
    /// Store gray images in place of coloured ones
    #[arg(long = "gray")]
    pub gray: bool,
    /// Shuffle the list
    #[arg(long = "shuffle")]
    pub shuffle: bool,
    /// Another seed shuffles in another order
    #[arg(long = "seed", value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// The kind of database
    #[arg(long = "backend", value_name = "KIND", value_enum, default_value_t = DatabaseForm::Lmdb)]
    pub backend: DatabaseForm,
    /// The width to bring images to, with resize_height; 0: as they are
    #[arg(long = "resize_width", value_name = "N", default_value_t = 0)]
    pub resize_width: i32,
    /// The height to bring images to, with resize_width; 0: as they are
    #[arg(long = "resize_height", value_name = "N", default_value_t = 0)]
    pub resize_height: i32,
    /// Fail unless all images have one size
    #[arg(long = "check_size")]
    pub check_size: bool,
    /// Store image files, not pixels: the images' own where they need no change
    #[arg(long = "encoded")]
    pub encoded: bool,
    /// The kind of image files to store: jpg, png or bmp; without it, what each name's end says
    #[arg(long = "encode_type", value_name = "TYPE", default_value = "")]
    pub encode_type: String,
}
