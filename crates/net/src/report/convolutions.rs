//! What computes the convolutions of a net's passes on a device: logged at the end of a run, and at once where it is slow.

use std::collections::BTreeMap;
use std::fmt;

use lgm_core::Maker;

use crate::exec::convolutions::{made, refusals};
use crate::net::Net;

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
