//! Image folders: `<split>/<class>/<image>`, classes numbered in alphabetical order.

use std::fs;
use std::path::{Path, PathBuf};

use lgm_core::{Error, Result};

use crate::image::{IMAGE_ENDS, is_image_name};

/// The images of a folder of class folders, with their class numbers, in alphabetical order; and the classes.
#[derive(Debug)]
pub(super) struct Listing {
    pub files: Vec<PathBuf>,
    pub labels: Vec<usize>,
    pub classes: Vec<String>,
}

/// Lists the image files under `folder`.
pub(super) fn list(folder: &Path) -> Result<Listing> {
    let mut listing = Listing { files: Vec::new(), labels: Vec::new(), classes: Vec::new() };
    for class in entries(folder)?.into_iter().filter(|p| p.is_dir()) {
        let images: Vec<PathBuf> = entries(&class)?.into_iter().filter(|p| is_image_name(p)).collect();
        listing.labels.resize(listing.labels.len() + images.len(), listing.classes.len());
        listing.files.extend(images);
        listing.classes.push(class.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default());
    }
    if listing.files.is_empty() {
        let what = format!(
            "holds no images: expected a folder for each class with files that end in .{}",
            IMAGE_ENDS.join(", .")
        );
        return Err(Error::data(folder, what));
    }
    Ok(listing)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(folder).map_err(Error::io(folder, "list"))?;
    let mut paths =
        read.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(Error::io(folder, "list"))?;
    paths.sort();
    Ok(paths)
}
