//! NewLoss: 1/N · Σ (1 − p(label))², from probabilities such as Softmax gives.
//!
//! Gradient: dp = −2 · dL/N · (1 − p) for the label's class, else 0. Shapes: bottoms probabilities [N, …], of as many
//! classes as an item has elements, and N labels; top the loss. Source: the L-GM fork's layer of this name.

use lgm_core::{BuildCx, Float, Node, Result};
use lgm_proto::LayerParameter;

use crate::common::own_class::{self, OwnClass};

/// The layer; see the module.
pub struct NewLoss;

impl NewLoss {
    pub(crate) fn build(_param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        own_class::node(NewLoss)
    }
}

impl OwnClass for NewLoss {
    const NUMBER: u32 = 1;

    fn loss<T: Float>(p: T) -> T {
        (T::one() - p) * (T::one() - p)
    }

    fn slope<T: Float>(p: T) -> T {
        T::of(-2.0) * (T::one() - p)
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check};

    #[test]
    fn cases() {
        let layer = "layer { name: 'n' type: 'NewLoss' bottom: 'p' bottom: 'y' top: 'l' }";
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/fork_newloss"),
                Case::new(layer).bottom([5, 3, 2]).bottom_of([5, 1], Fill::Labels(6)),
            ],
        );
    }
}
