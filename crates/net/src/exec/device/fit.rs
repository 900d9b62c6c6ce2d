//! Whether a net fits on a device, beside what libraries take there.
//!
//! A library loads its kernels when it first runs them. Those for convolutions are loaded when convolutions are planned,
//! each of which is tried then, so what they take is known before memory is given to the net. Those for products are loaded
//! in the first pass, when it is too late: where a net comes near to what is free, products are made beforehand.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use lgm_core::memory::in_units;
use lgm_core::{DevicePtr, Element, Error, Gemm, Result, count};

use crate::graph::Graph;
use crate::passes::pack::DEVICE_ALIGN;
use lgm_cuda::Gpu;

/// A net that leaves so much free fits, whatever the kernels of products take.
const PLENTY: u64 = 1 << 30;

/// Allocations that a net and its solver make, its recording counted as one: each fills up its last page.
const ALLOCATIONS: u64 = 10;

/// What a net needs and what was taken for it before, in bytes.
pub(crate) struct Needs {
    /// Batches, blobs, gradients and scratch.
    pub arena: usize,
    /// Parameters, their gradients and histories.
    pub params: usize,
    /// What planning its convolutions has taken for good.
    pub libraries: u64,
}

/// Refuses a net that the device has no room for.
///
/// # Errors
/// When it does not fit, with what takes how much and the batch that would fit; when the device fails.
pub(crate) fn check(graph: &Graph, gpu: &dyn Gpu, needs: &Needs) -> Result<()> {
    let &Needs { arena, params, libraries } = needs;
    let needed = arena.saturating_add(params) as u64;
    if needed.saturating_add(PLENTY) <= gpu.free_bytes()?.0 {
        return Ok(());
    }
    let products = taken_by_products(gpu)?;
    let (free, total) = gpu.free_bytes()?;
    // Products of other extents have kernels of their own: as much again is left to them.
    let usable = free.saturating_sub(ALLOCATIONS.saturating_mul(gpu.page().saturating_sub(1)).saturating_add(products));
    if needed <= usable {
        return Ok(());
    }
    let input = graph.layers.iter().find(|l| l.bottoms.is_empty() && !l.tops.is_empty() && l.params.is_empty());
    let batch = input.and_then(|l| graph.values[l.tops[0]].spec.shape.first().copied()).unwrap_or(0);
    // What grows with the batch is the arena, and all of it does, but for the rounding of each blob's length.
    let rounding = graph.values.len().saturating_mul(4 * DEVICE_ALIGN);
    let room = usable.saturating_sub(params.saturating_add(rounding) as u64);
    let fit = ((batch as f64 * room as f64 / arena.max(1) as f64) as usize).min(batch.saturating_sub(1));
    let hint = match fit {
        0 => "not even one image a batch would fit: take a smaller net or another GPU".to_string(),
        n => format!("a batch of about {n} would fit, where it is {batch} now (iter_size can make up for it)"),
    };
    let taken = match libraries.saturating_add(products) {
        0 => String::new(),
        _ => format!(
            "; libraries have loaded kernels of {} for its convolutions and {} for products, and as much as for those is \
             kept for more of them",
            in_units(libraries),
            in_units(products)
        ),
    };
    Err(Error::config(format!(
        "the net does not fit on {}: it needs {} ({} for batches, blobs, gradients and scratch, {} for parameters, their \
         gradients and histories), {} of {} are free{taken}; {hint}",
        gpu.name(),
        in_units(needed),
        in_units(arena as u64),
        in_units(params as u64),
        in_units(free),
        in_units(total),
    )))
}

/// Rows, columns and the extent summed over: small, wide, long and square products, for which libraries have kernels of
/// their own.
const EXTENTS: [[usize; 3]; 4] = [[64, 64, 64], [64, 2048, 512], [1024, 64, 2048], [1024, 1024, 1024]];

/// Bytes that a device takes for good when products of several kinds are made on it.
///
/// # Errors
/// When it refuses them.
fn taken_by_products(gpu: &dyn Gpu) -> Result<u64> {
    let before = gpu.free_bytes()?.0;
    let largest =
        EXTENTS.iter().map(|&[m, n, k]| count(&[m, k]).max(count(&[k, n])).max(count(&[m, n]))).max().unwrap_or(0);
    // Without room for them there is none for a net.
    let bytes = count(&[3, 4, largest]);
    let Ok(at) = gpu.alloc(bytes) else { return Ok(0) };
    let block = Lent { gpu, at };
    gpu.zero(block.at, bytes)?;
    let at = [0, 1, 2].map(|i| block.at.offset(count(&[4, largest, i])));
    let narrow = gpu.storage().element;
    let mut kinds = vec![(Element::F32, Element::F32), (narrow, Element::F32), (narrow, narrow)];
    kinds.dedup();
    for extents in EXTENTS {
        for transposed in [[false, false], [false, true], [true, false]] {
            for &(factors, result) in &kinds {
                gpu.gemm(&Gemm { result, ..Gemm::dense(extents, transposed, at, factors) })?;
            }
        }
    }
    gpu.finish()?;
    drop(block);
    Ok(before.saturating_sub(gpu.free_bytes()?.0))
}

/// Device memory for as long as this lives.
struct Lent<'a> {
    gpu: &'a dyn Gpu,
    at: DevicePtr,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.gpu.free(self.at) {
            tracing::warn!("a block was not given back: {error}");
        }
    }
}
