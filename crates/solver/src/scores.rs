//! What a net puts out, number by number, in Caffe's words.

use lgm_core::Result;
use lgm_net::{Net, six_digits};

/// One number of an output blob.
#[derive(Clone, Debug)]
pub struct Score {
    /// The blob's name.
    pub blob: String,
    /// The number, or a sum or mean of it over passes.
    pub value: f64,
}

impl Score {
    /// What the number adds to the loss, ` (* 1 = 2.3 loss)`; empty for a blob that is no loss.
    pub fn as_loss(&self, net: &Net) -> String {
        match net.loss_weight(&self.blob) as f64 {
            0.0 => String::new(),
            w => format!(" (* {} = {} loss)", six_digits(w), six_digits(w * self.value)),
        }
    }
}

/// Every number of every output after a forward pass, in the order Caffe lists them.
///
/// # Errors
/// When they cannot be read from a device.
pub fn scores_of(net: &Net) -> Result<Vec<Score>> {
    net.output_values().map(scores_from)
}

/// Every number of outputs given by name.
pub(crate) fn scores_from(outputs: Vec<(String, Vec<f64>)>) -> Vec<Score> {
    let each =
        |(blob, values): (String, Vec<f64>)| values.into_iter().map(move |value| Score { blob: blob.clone(), value });
    outputs.into_iter().flat_map(each).collect()
}

/// Caffe's line for each score: `#0: loss = 2.3 (* 1 = 2.3 loss)`.
pub(crate) fn lines(net: &Net, scores: &[Score]) -> Vec<String> {
    let line = |(i, s): (usize, &Score)| format!("#{i}: {} = {}{}", s.blob, six_digits(s.value), s.as_loss(net));
    scores.iter().enumerate().map(line).collect()
}
