//! The convolutions that a net's passes make on a device, and what makes them.

use lgm_core::{ConvolutionPass, Maker, PreparedConvolution};
use lgm_cuda::Gpu;
use tracing::warn;

use crate::graph::{Graph, LayerNode};

/// The convolutions that a layer's passes make, and how often each runs.
pub fn made(graph: &Graph, layer: &LayerNode) -> Vec<(PreparedConvolution, usize)> {
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
pub fn refusals(graph: &Graph, gpu: &dyn Gpu) -> Vec<String> {
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
pub fn warn_refusals(graph: &Graph, gpu: &dyn Gpu) {
    refusals(graph, gpu).iter().for_each(|refusal| warn!("{refusal}"));
}
