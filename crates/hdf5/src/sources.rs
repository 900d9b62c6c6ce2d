//! Virtual datasets, whose numbers lie in other datasets, of the same file or of others.

use std::path::PathBuf;

use hdf5_metno::Dataset;
use hdf5_metno::plist::dataset_create::Layout;
use lgm_core::Result;

use crate::file::H5File;
use crate::reason;

/// Fails for a virtual dataset of which a source is virtual too: such sources can make a circle, which the library follows
/// until its stack ends.
pub(crate) fn check(file: &H5File, name: &str, dataset: &Dataset) -> Result<()> {
    if dataset.layout() != Layout::Virtual {
        return Ok(());
    }
    let fail = |what: &str| file.fail(format!("the virtual dataset '{name}' {what}"));
    let maps = dataset.dcpl().and_then(|dcpl| dcpl.get_virtual_map());
    let maps = maps.map_err(|e| fail(&format!("cannot be read: {}", reason(&e))))?;
    for map in maps {
        if map.src_filename.contains('%') || map.src_dataset.contains('%') {
            return Err(fail("names its sources by a pattern; name each, or write one dataset of all"));
        }
        let is_virtual =
            |of: &hdf5_metno::File| of.dataset(&map.src_dataset).is_ok_and(|source| source.layout() == Layout::Virtual);
        let found = match map.src_filename.as_str() {
            "." => is_virtual(&file.file),
            other => places(file, other).iter().any(|p| hdf5_metno::File::open(p).is_ok_and(|of| is_virtual(&of))),
        };
        if found {
            let what = format!("has a source that is virtual too, '{}' in '{}'", map.src_dataset, map.src_filename);
            return Err(fail(&(what + "; write one dataset of all")));
        }
    }
    Ok(())
}

/// Where the library looks for another file: as it is named, and in this file's folder.
fn places(file: &H5File, name: &str) -> Vec<PathBuf> {
    let folder = file.path().parent().map(PathBuf::from).unwrap_or_default();
    let last = PathBuf::from(name).file_name().map(PathBuf::from).unwrap_or_default();
    let places = [PathBuf::from(name), folder.join(name), folder.join(last)];
    places.into_iter().filter(|place| place.is_file()).collect()
}
