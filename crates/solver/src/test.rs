//! What a net puts out, number by number, and Caffe's lines about it.

use lgm_net::{Net, six_digits};

/// One number of an output blob.
#[derive(Clone, Debug)]
pub struct Score {
    /// The blob's name.
    pub blob: String,
    /// The number, or a sum of it over passes.
    pub value: f64,
}

/// Every number of every output, in the order Caffe lists them.
pub type Scores = Vec<Score>;

/// The net's outputs after a forward pass.
pub fn scores_of(net: &Net) -> Scores {
    let blobs = net.outputs();
    let numbers = |blob: &&str| net.blob(blob).map(|(_, values)| values).unwrap_or_default();
    let each = |blob: &str, values: Vec<f64>| {
        let blob = blob.to_string();
        values.into_iter().map(move |value| Score { blob: blob.clone(), value }).collect::<Vec<_>>()
    };
    blobs.iter().flat_map(|blob| each(blob, numbers(blob))).collect()
}

/// Gives `say` a line for each score times `factor`: `#0: loss = 2.3 (* 1 = 2.3 loss)`.
pub fn score_lines(net: &Net, scores: &[Score], factor: f64, mut say: impl FnMut(String)) {
    for (i, score) in scores.iter().enumerate() {
        let (value, weight) = (score.value * factor, net.loss_weight(&score.blob) as f64);
        let loss = match weight {
            0.0 => String::new(),
            w => format!(" (* {} = {} loss)", six_digits(w), six_digits(w * value)),
        };
        say(format!("#{i}: {} = {}{loss}", score.blob, six_digits(value)));
    }
}
