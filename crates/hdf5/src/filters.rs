//! The filters that storage chunks go through, as far as the library of version 2.2 trusts what comes out of them.

use hdf5_metno::Dataset;
use hdf5_metno::filters::Filter;
use lgm_core::Result;

use crate::handle::H5File;
use crate::reason;

/// Bytes of a checksum, which its filter takes off whatever there is.
const CHECKSUM: u64 = 4;

/// Fails for filters that take it for granted that a chunk holds as many bytes as it should, and would read what lies behind
/// a smaller one; and for a chunk with a checksum that is smaller than one, of which the library would read what is before it.
pub(crate) fn check(file: &H5File, name: &str, dataset: &Dataset) -> Result<()> {
    let fail = |what: &str| file.fail(format!("dataset '{name}' cannot be read: {what}"));
    let filters = dataset.dcpl().and_then(|dcpl| dcpl.get_filters()).map_err(|e| fail(&reason(&e)))?;
    let trusting = |filter: &Filter| match filter {
        Filter::NBit => Some("N-bit"),
        Filter::ScaleOffset(_) => Some("scale-offset"),
        _ => None,
    };
    if let Some(filter) = filters.iter().find_map(trusting) {
        let what = format!(
            "of its filter {filter}, damage cannot be detected; 'h5repack -f GZIP=1 OLD NEW' writes it with another"
        );
        return Err(fail(&what));
    }
    let Some((last, before)) = filters.split_last() else { return Ok(()) };
    // How large the checksum's chunk is, its own size says only where no filter comes after it.
    if before.contains(&Filter::Fletcher32) {
        return Err(fail("its checksums are not the last of its filters, as every program writes them"));
    }
    if *last != Filter::Fletcher32 {
        return Ok(());
    }
    let mut small = false;
    let each = |chunk: hdf5_metno::dataset::ChunkInfoRef<'_>| {
        small |= chunk.size < CHECKSUM;
        i32::from(small)
    };
    dataset.chunks_visit(each).map_err(|e| fail(&reason(&e)))?;
    if small { Err(fail("a storage chunk is damaged: it is smaller than its checksum")) } else { Ok(()) }
}
