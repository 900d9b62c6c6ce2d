//! The sizes of images, as SSD's `get_image_size` lists them for DetectionOutput and DetectionEvaluate (`name_size_file`).

use std::collections::HashMap;
use std::path::Path;

use lgm_core::fs::write_bytes;
use lgm_core::{Error, Result};
use lgm_proto::strings;
use tracing::info;

use super::annoset::{read_list, under};
use super::{BLOCK, Progress};
use crate::image::{Color, read_file};
use crate::parallel::{in_parallel, threads_for};

/// Writes the name, height and width of each image that a list in `list` names beside its annotation or label, in folder `root`,
/// as a line of `out`, in the list's order. Names are without folder and extension; where `ids` names a file of names and numbers
/// ("000001 17" on a line), their numbers stand in place of them. Returns how many lines it wrote.
///
/// # Errors
/// When a file or an image cannot be read, a name has no number or two of them, or `out` cannot be written.
pub fn get_image_size(
    root: impl AsRef<Path>,
    list: impl AsRef<Path>,
    out: impl AsRef<Path>,
    ids: Option<&Path>,
    progress: Progress<'_>,
) -> Result<usize> {
    let root = root.as_ref();
    let lines = read_list(list.as_ref())?;
    info!("A total of {} images.", lines.len());
    let ids = ids.map(|file| read_ids(file).map(|ids| (file, ids))).transpose()?;
    let mut text = Vec::new();
    for (block, lines_of) in lines.chunks(BLOCK).enumerate() {
        let size = |i: usize, _: &mut [f32]| {
            let path = under(root, &lines_of[i].0);
            let (image, flaw) = read_file(&path, Color::Force)?;
            flaw.iter().for_each(|flaw| tracing::warn!("{}", Error::data(&path, format!("the image {flaw}"))));
            Ok((path, image.extent))
        };
        // No numbers come of it, only what each image gives.
        let sizes = in_parallel(&mut vec![0.0; lines_of.len()], 1, threads_for(lines_of.len()), size)?;
        for (path, extent) in sizes {
            let mut name = strings::from_path(path.file_stem().unwrap_or_default());
            if let Some((file, ids)) = &ids {
                let none = || Error::data(file, format!("has no number for '{}'", strings::readable(&name)));
                name = ids.get(&name).ok_or_else(none)?.to_string();
            }
            text.extend_from_slice(&strings::to_bytes(&name));
            text.extend(format!(" {} {}\n", extent.height, extent.width).into_bytes());
        }
        let done = (block * BLOCK + lines_of.len()).min(lines.len());
        progress(done, lines.len());
    }
    write_bytes(out, &text)?;
    info!("Processed {} files.", lines.len());
    Ok(lines.len())
}

/// Names and their numbers, one of each on a line.
fn read_ids(path: &Path) -> Result<HashMap<String, i64>> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let mut ids = HashMap::new();
    for (i, line) in strings::of_file(&bytes).lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let pair = if let [name, id] = words[..] { id.parse().ok().map(|id| (name.to_owned(), id)) } else { None };
        let expected = || Error::data(path, format!("line {}: expected a name and a number, found '{line}'", i + 1));
        let (name, id) = pair.ok_or_else(expected)?;
        if ids.insert(name, id).is_some() {
            return Err(Error::data(path, format!("line {}: '{}' has a number already", i + 1, words[0])));
        }
    }
    Ok(ids)
}
