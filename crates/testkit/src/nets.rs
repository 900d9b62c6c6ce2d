//! Random nets, for tests that compare one way of running a net with another.
//!
//! A net is drawn as a list of genes, each of which adds a layer, a block of them or a loss to what those before it made.
//! What a gene lacks is chosen among what there is, by remainders, so every list gives a valid net and a failing one can be
//! shortened anywhere: proptest shrinks it to the few layers that matter.

use std::fmt;
use std::sync::Arc;

use lgm_core::Registry;
use proptest::collection::vec;
use proptest::prelude::{Strategy, any};

mod blocks;
mod forks;
mod layers;
mod losses;
mod writer;

use writer::Writer;

/// What a gene chooses by: each number is used for one choice, 0 the simplest.
type Picks = [u8; 6];

/// Adds something to a net; `None` where the net has nothing that it could read.
type Add = fn(&mut Writer, &Picks) -> Option<()>;

/// What a gene can add, the commonest several times, the simplest first.
const KINDS: &[Add] = &[
    layers::relu,
    blocks::normalized,
    blocks::residual,
    layers::convolution,
    layers::eltwise,
    blocks::normalized,
    layers::convolution,
    layers::pooling,
    layers::deconvolution,
    layers::inner_product,
    blocks::residual,
    layers::batch_norm,
    layers::scale,
    layers::bias,
    layers::prelu,
    layers::concat,
    layers::slice,
    layers::lrn,
    layers::dropout,
    layers::relu,
    layers::activation,
    layers::power,
    layers::softmax,
    layers::flatten,
    layers::reshape,
    layers::permute,
    layers::tile,
    layers::mvn,
    layers::host_only,
    layers::eltwise,
    forks::bn,
    forks::normalize,
    forks::shuffle,
    forks::interp,
    forks::reorg,
    forks::upsample,
    forks::axpy,
    forks::squeeze,
    forks::margin_inner_product,
    forks::l1,
    forks::ctc,
    losses::euclidean,
    losses::softmax,
    losses::sigmoid,
    losses::large_margin,
    losses::reduction,
    losses::filtered,
    losses::accuracy,
    losses::silence,
    layers::data,
];

/// A net, as the list it was drawn as; shown as its prototxt.
#[derive(Clone)]
pub struct RandomNet {
    elementwise: Arc<[&'static str]>,
    input: [u8; 5],
    genes: Vec<(u8, Picks)>,
}

impl RandomNet {
    /// The prototxt. It has learned parameters and a loss; its data come from DummyData layers.
    pub fn prototxt(&self) -> String {
        let mut writer = Writer::new(self.elementwise.clone(), self.input);
        for (kind, picks) in &self.genes {
            KINDS[*kind as usize % KINDS.len()](&mut writer, picks);
        }
        losses::rest(&mut writer);
        writer.finish()
    }
}

impl fmt::Debug for RandomNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{}", self.prototxt())
    }
}

/// Nets of up to so many genes, with the element-wise layers of a registry.
pub fn random_nets(genes: usize, registry: &Registry) -> impl Strategy<Value = RandomNet> + use<> {
    let elementwise: Arc<[&'static str]> = registry.elementwise().into();
    (any::<[u8; 5]>(), vec((any::<u8>(), any::<Picks>()), 1..=genes)).prop_map(move |(input, genes)| RandomNet {
        elementwise: elementwise.clone(),
        input,
        genes,
    })
}
