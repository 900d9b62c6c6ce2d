//! What a file is, HDF5 included; see [`FileKind`].

use std::path::Path;

use hdf5_metno as hdf5;
use lgm_core::Result;
use lgm_proto::FileKind;

/// The kind of a file, of HDF5 by what is in it.
///
/// # Errors
/// When it cannot be read.
pub fn kind_of(path: &Path) -> Result<FileKind> {
    let kind = FileKind::of(path)?;
    if kind != FileKind::Hdf5 {
        return Ok(kind);
    }
    // What cannot be opened is damaged, which whoever reads it says.
    let Ok(file) = hdf5::File::open(path) else { return Ok(kind) };
    let group = |name: &str| file.group(name).is_ok();
    let dataset = |name: &str| file.dataset(name).is_ok();
    Ok(match () {
        () if group("history") && dataset("iter") => FileKind::State,
        () if group("data") => FileKind::Weights,
        () if file.member_names().is_ok_and(|names| names.iter().any(|name| dataset(name))) => FileKind::Hdf5Data,
        () => kind,
    })
}

/// Refuses a file that is recognised as of another kind than `wanted`, with what was found and which flag takes it.
/// One that is not there, or not recognised, passes: whoever reads it says what is wrong with it.
///
/// # Errors
/// For a file of another kind.
pub fn expect_kind(path: impl AsRef<Path>, wanted: FileKind) -> Result<()> {
    let path = path.as_ref();
    match kind_of(path) {
        Ok(kind) => Ok(kind.expect(wanted, path)?),
        Err(_) => Ok(()),
    }
}
