//! The images that a command line names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lgm_core::Error;
use lgm_data::{IMAGE_ENDS, is_image_name};

/// The files that paths, folders and patterns name. A folder stands for the images in it, a pattern (`*`, `?`, `[…]`, and
/// `**` for folders in folders) for the files that match, each in the order of names.
///
/// # Errors
/// When a folder or a pattern has no image, or cannot be read.
pub fn find(named: &[PathBuf]) -> Result<Vec<PathBuf>> {
    ensure!(!named.is_empty(), "no image to classify; name files, folders, or patterns in quotes");
    let mut found = Vec::new();
    for path in named {
        let text = path.to_string_lossy();
        if path.is_dir() {
            found.extend(folder(path)?);
        } else if !path.exists() && text.contains(['*', '?', '[']) {
            found.extend(matching(&text)?);
        } else {
            found.push(path.clone());
        }
    }
    Ok(found)
}

fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path, "read the folder"))? {
        let file = entry.map_err(Error::io(path, "read the folder"))?.path();
        if is_image_name(&file) && file.is_file() {
            images.push(file);
        }
    }
    ensure!(!images.is_empty(), "{}: has no files that end in .{}", path.display(), IMAGE_ENDS.join(", ."));
    images.sort();
    Ok(images)
}

fn matching(pattern: &str) -> Result<Vec<PathBuf>> {
    let paths = glob::glob(pattern).with_context(|| format!("'{pattern}' is no pattern of file names"))?;
    let mut files = Vec::new();
    for path in paths {
        let path = path.with_context(|| format!("looking for files like '{pattern}'"))?;
        if path.is_file() {
            files.push(path);
        }
    }
    ensure!(!files.is_empty(), "no file is named like '{pattern}'");
    Ok(files)
}
