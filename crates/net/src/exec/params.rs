//! The parameters of a net, as an executor gives them out.

use std::ops::Range;

use lgm_core::Host;
use lgm_cuda::floats_of;

use super::views::Bound;
use crate::graph::Graph;

/// Values to be filled in, in the precision they are kept in.
pub(crate) enum Numbers<'a> {
    F32(&'a mut [f32]),
    F64(&'a mut [f64]),
}

/// The parameters of a net.
pub(crate) enum Params<'a> {
    /// As they lie on the host.
    Host(&'a Bound<Host>),
    /// Copied from a device in one go; the span of each learnable parameter in both blocks, in bytes.
    Copied { data: Vec<u8>, diff: Option<Vec<u8>>, spans: &'a [Range<usize>] },
}

impl Params<'_> {
    /// Values of parameter `p`.
    pub fn data(&self, graph: &Graph, p: usize) -> Vec<f64> {
        match self {
            Params::Host(bound) => bound.param(graph, p).to_f64(),
            Params::Copied { data, spans, .. } => widen(&data[spans[graph.params[p].learnable].clone()]),
        }
    }

    /// Gradients of parameter `p`, where there are any.
    pub fn diff(&self, graph: &Graph, p: usize) -> Option<Vec<f64>> {
        match self {
            Params::Host(bound) => bound.param_diff(graph, p).map(|d| d.to_f64()),
            Params::Copied { diff, spans, .. } => {
                diff.as_ref().map(|diff| widen(&diff[spans[graph.params[p].learnable].clone()]))
            }
        }
    }
}

fn widen(bytes: &[u8]) -> Vec<f64> {
    floats_of(bytes).into_iter().map(f64::from).collect()
}
