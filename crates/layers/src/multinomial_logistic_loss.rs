//! MultinomialLogisticLoss: −1/N · Σ ln p(label), from probabilities such as Softmax gives.
//!
//! Gradient: dp = −dL/(N · p) for the label's class, else 0. As in Caffe, a probability below 10⁻²⁰ counts as that.
//!
//! Shapes: bottoms probabilities [N, …], of as many classes as an item has elements, and N labels; top the loss. `loss_param` has
//! no effect (in Intel's fork `normalization: NONE` has).
//!
//! Source: Caffe's layer of this name; SoftmaxWithLoss does the same from scores, and rounds less. Where we differ: a label outside
//! the classes is an error that names it.

use lgm_core::{BuildCx, Float, Node, Result};
use lgm_proto::LayerParameter;

use crate::common::loss::{LEAST_PROBABILITY, warn_of_normalization};
use crate::common::own_class::{self, OwnClass};

/// The layer; see the module.
pub struct MultinomialLogisticLoss;

impl MultinomialLogisticLoss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        warn_of_normalization(param);
        own_class::node(MultinomialLogisticLoss)
    }
}

/// What a probability counts as. NaN stays NaN, so that it is seen.
fn bounded<T: Float>(p: T) -> T {
    let least = T::of(LEAST_PROBABILITY);
    if p < least { least } else { p }
}

impl OwnClass for MultinomialLogisticLoss {
    const NUMBER: u32 = 0;

    fn loss<T: Float>(p: T) -> T {
        -bounded(p).ln()
    }

    fn slope<T: Float>(p: T) -> T {
        -bounded(p).recip()
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check, config_error};

    const LAYER: &str = "layer { name: 'm' type: 'MultinomialLogisticLoss' bottom: 'p' bottom: 'y' top: 'l' }";

    #[test]
    fn cases() {
        let probabilities = || Fill::Uniform(0.1, 1.0);
        check(
            &crate::tests::registry(),
            &[
                Case::golden("layers/multinomial"),
                Case::golden("layers/multinomial_more_0"),
                Case::new(LAYER).bottom_of([5, 3, 2], probabilities()).bottom_of([5, 1], Fill::Labels(6)),
                // As little as counts, and less.
                Case::new(LAYER)
                    .bottom_of([2, 2], Fill::Given(vec![0.0, 1.0, -0.5, 1e-30]))
                    .bottom_of([2], Fill::Given(vec![0.0, 1.0]))
                    .without_gradients(),
                Case::new(LAYER)
                    .bottom_of([600, 9], probabilities())
                    .bottom_of([600], Fill::Labels(9))
                    .without_gradients(),
            ],
        );
    }

    #[test]
    fn there_is_a_label_for_each_item() {
        config_error(&crate::tests::registry(), LAYER, &[[2, 3].into(), [3].into()], &["expected 2", "found 3"]);
    }
}
