//! What a file is, HDF5 included; see [`FileKind`].

use std::path::Path;

use lgm_core::Result;
use lgm_hdf5::H5File;
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
    let Ok(file) = H5File::open(path) else { return Ok(kind) };
    Ok(match () {
        () if file.contains("history") && file.contains("iter") => FileKind::State,
        () if file.members("data").is_ok() => FileKind::Weights,
        () if file.datasets().is_ok_and(|names| !names.is_empty()) => FileKind::Hdf5Data,
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
