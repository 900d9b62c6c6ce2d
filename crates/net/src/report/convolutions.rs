//! What computes the convolutions of a net's passes on a device: logged at the end of a run, and at once where it is slow.

use std::collections::BTreeMap;
use std::fmt;

use lgm_core::{ConvolutionPass, Maker, PreparedConvolution};
use tracing::warn;

use crate::graph::{Graph, LayerNode};
use crate::net::Net;
use lgm_cuda::Gpu;

/// Layers that are named before the rest is only counted.
const NAMED: usize = 8;

/// What makes the convolutions of one forward and one backward pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Convolutions {
    /// Those by cuDNN: how many take each of its algorithms.
    pub library: BTreeMap<String, usize>,
    /// Those that are matrix products of the blobs as they are, by cuBLAS.
    pub products: usize,
    /// Those by our own kernels: layer and pass of each.
    pub own: Vec<String>,
    /// What cuDNN, where it is there, does not make for a layer, with the geometry and why.
    pub refusals: Vec<String>,
}

impl Convolutions {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.library.values().sum::<usize>() + self.products + self.own.len()
    }
}

impl fmt::Display for Convolutions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Convolutions { library, products, own, .. } = self;
        write!(f, "{} by cuDNN", library.values().sum::<usize>())?;
        if !library.is_empty() {
            let algorithms: Vec<String> =
                library.iter().map(|(algorithm, count)| format!("{count} {algorithm}")).collect();
            write!(f, " ({})", algorithms.join(", "))?;
        }
        write!(f, ", {products} as matrix products by cuBLAS, {} by our own kernels", own.len())?;
        if !own.is_empty() {
            let more = if own.len() > NAMED { format!(" and {} more", own.len() - NAMED) } else { String::new() };
            write!(f, " ({}{more})", own[..own.len().min(NAMED)].join(", "))?;
        }
        Ok(())
    }
}

/// The convolutions that a layer's passes make, and how often each runs.
fn made(graph: &Graph, layer: &LayerNode) -> Vec<(PreparedConvolution, usize)> {
    let learned = layer.exec_params.first().is_some_and(|&p| graph.params[p].backward);
    let times = |pass| match pass {
        ConvolutionPass::Forward => layer.bottoms.len(),
        ConvolutionPass::Data => layer.bottom_backward.iter().filter(|&&wanted| wanted).count(),
        ConvolutionPass::Filter => layer.bottoms.len() * usize::from(learned),
    };
    let runs = |pass| if pass == ConvolutionPass::Forward || layer.backward { times(pass) } else { 0 };
    let prepared = layer.compute().and_then(|c| c.device()).map(|run| run.convolutions()).unwrap_or_default();
    prepared.into_iter().map(|conv| (conv, runs(conv.pass))).filter(|(_, times)| *times > 0).collect()
}

/// What the library does not make for each layer, and why.
fn refusals(graph: &Graph, gpu: &dyn Gpu) -> Vec<String> {
    let of = |layer: &LayerNode| {
        let own = made(graph, layer).into_iter().filter(|(made, _)| made.maker == Maker::Own);
        let refused = own.filter_map(|(made, _)| {
            let conv = made.conv?;
            Some((conv, made.pass, gpu.convolution_algorithm(&conv, made.pass)?.err()?))
        });
        let refused: Vec<_> = refused.collect();
        let (conv, ..) = refused.first()?;
        let each: Vec<String> = refused.iter().map(|(_, pass, why)| format!("{pass}: {why}")).collect();
        let (name, kind, each) = (layer.name(), layer.kind(), each.join("; "));
        Some(format!(
            "layer '{name}' ({kind}): cuDNN does not make, and our own kernels make slower, of {conv}: {each}"
        ))
    };
    graph.layers.iter().filter_map(of).collect()
}

/// Warns of what the library does not make.
pub(crate) fn warn_refusals(graph: &Graph, gpu: &dyn Gpu) {
    refusals(graph, gpu).iter().for_each(|refusal| warn!("{refusal}"));
}

impl Net {
    /// What makes the convolutions of a forward and a backward pass; `None` on the host.
    pub fn convolutions(&self) -> Option<Convolutions> {
        let gpu = self.exec.as_device()?.gpu();
        let refusals = refusals(&self.graph, gpu.as_ref());
        let mut all = Convolutions { refusals, ..Convolutions::default() };
        for layer in &self.graph.layers {
            for (made, times) in made(&self.graph, layer) {
                let pass = made.pass;
                match made.maker {
                    Maker::Library => {
                        let algorithm = made.conv.and_then(|conv| gpu.convolution_algorithm(&conv, pass)?.ok());
                        let algorithm =
                            algorithm.map_or_else(|| pass.to_string(), |algorithm| format!("{pass} by {algorithm}"));
                        *all.library.entry(algorithm).or_default() += times;
                    }
                    Maker::Product => all.products += times,
                    Maker::Own => all.own.extend((0..times).map(|_| format!("{} {pass}", layer.name()))),
                }
            }
        }
        Some(all)
    }
}
