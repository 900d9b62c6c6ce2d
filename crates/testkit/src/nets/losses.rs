//! Genes that end a branch.

use super::Picks;
use super::writer::{Manner, Writer};

/// The layer is a loss of this weight, or none.
pub fn loss(w: &mut Writer, kind: &str, bottoms: &[usize], weight: f32, body: &str) -> Option<()> {
    w.losses += usize::from(bottoms.iter().any(|&b| w.blobs[b].learned));
    let top = w.layer(kind, bottoms, vec![vec![]], Manner::default(), &format!("loss_weight: {weight} {body}"))[0];
    w.blobs[top].read = true;
    Some(())
}

pub fn euclidean(w: &mut Writer, picks: &Picks) -> Option<()> {
    let first = w.blob(picks[0], |b| b.shape.len() >= 2)?;
    let shape = w.shape(first).to_vec();
    let other = w.blob(picks[1], |b| b.shape == shape && b.name != w.blobs[first].name);
    let other = other.unwrap_or_else(|| w.data(&shape));
    let count: usize = shape[1..].iter().product();
    loss(w, "EuclideanLoss", &[first, other], 1.0 / count as f32, "")
}

pub fn softmax(w: &mut Writer, picks: &Picks) -> Option<()> {
    let scores = w.blob(picks[0], |b| b.shape.len() >= 2 && b.learned)?;
    let mut shape = w.shape(scores).to_vec();
    let classes = shape.remove(1);
    let label = w.labels(&shape, picks[1] as usize % classes);
    loss(w, "SoftmaxWithLoss", &[scores, label], 0.5, "")
}

pub fn sigmoid(w: &mut Writer, picks: &Picks) -> Option<()> {
    let scores = w.blob(picks[0], |b| b.shape.len() >= 2 && b.learned)?;
    let shape = w.shape(scores).to_vec();
    let targets = w.data(&shape);
    let body = ["", "loss_param { normalization: VALID ignore_label: 1 }"][picks[1] as usize % 2];
    loss(w, "SigmoidCrossEntropyLoss", &[scores, targets], 0.1, body)
}

pub fn large_margin(w: &mut Writer, picks: &Picks) -> Option<()> {
    let features = w.blob(picks[0], |b| b.shape.len() == 2 && b.learned)?;
    let n = w.shape(features)[0];
    let label = w.labels(&[n], picks[1] as usize % 3);
    let more = "num_output: 3 weight_filler { type: 'gaussian' } bias_filler { value: 1 } center_coef: 0.1 \
                margin_mul { policy: ADDUP value: 0.1 gamma: 0.1 step: 1 }";
    if picks[3].is_multiple_of(2) {
        let ramp = "center_coef_ramp { policy: ADDUP value: 0.2 gamma: 0.3 step: 1 }";
        let likelihood = ["LABEL", "ALL_CLASSES"][picks[2] as usize % 2];
        let body = format!("lgm_loss_param {{ {more} {ramp} likelihood: {likelihood} }}");
        return loss(w, "LGMLoss", &[features, label], 0.3, &body);
    }
    let body = format!("class_distance_param {{ {more} }}");
    let logits = w.layer("ClassDistance", &[features, label], vec![vec![n, 3]], Manner::default().learning(), &body)[0];
    let label = w.labels(&[n], picks[1] as usize % 3);
    loss(w, "SoftmaxWithLoss", &[logits, label], 0.3, "")
}

pub fn reduction(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |b| !b.shape.is_empty())?;
    reduce(w, blob, ["SUMSQ", "MEAN", "ASUM"][picks[1] as usize % 3])
}

fn reduce(w: &mut Writer, blob: usize, operation: &str) -> Option<()> {
    let count: usize = w.shape(blob).iter().product();
    let coefficient = if operation == "MEAN" { 1.0 } else { 1.0 / count as f32 };
    let body = format!("reduction_param {{ operation: {operation} coeff: {coefficient} }}");
    loss(w, "Reduction", &[blob], 0.5, &body)
}

/// A loss of those items of a blob that a random selector picks, others in each pass.
pub fn filtered(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |b| b.shape.len() >= 2)?;
    let (shape, before) = (w.shape(blob).to_vec(), w.blobs.len());
    let random = w.data(&shape[..1]);
    let selector = w.layer("Threshold", &[random], vec![shape[..1].to_vec()], Manner::default(), "")[0];
    let some = w.layer("Filter", &[blob, selector], vec![shape.clone()], Manner::default(), "")[0];
    let body = "inner_product_param { num_output: 3 weight_filler { type: 'gaussian' std: 0.1 } }";
    let scores = w.layer("InnerProduct", &[some], vec![vec![shape[0], 3]], Manner::default().learning(), body)[0];
    let ended = reduce(w, scores, "SUMSQ");
    // What has other rows in each pass is for this loss alone.
    w.blobs.truncate(before);
    ended
}

pub fn accuracy(w: &mut Writer, picks: &Picks) -> Option<()> {
    let scores = w.blob(picks[0], |b| b.shape.len() == 2)?;
    let &[n, classes] = w.shape(scores) else { return None };
    let label = w.labels(&[n], picks[1] as usize % classes);
    w.layer("Accuracy", &[scores, label], vec![vec![]], Manner::default(), "");
    // No gradient passes it, so nothing that may weigh in the loss may read it.
    w.blobs.pop();
    Some(())
}

pub fn silence(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |b| b.learned)?;
    w.layer("Silence", &[blob], vec![], Manner::default(), "");
    Some(())
}

/// Sees to it that something is learned: a loss on the last blob with parameters behind it, or on a new one.
pub fn rest(w: &mut Writer) {
    let last = match w.blob(0, |b| b.learned && !b.read && !b.shape.is_empty()) {
        Some(blob) => blob,
        None if w.losses > 0 => return,
        None => {
            let Some(blob) = w.blob(0, |b| b.shape.len() >= 2) else { return };
            let shape = w.shape(blob).to_vec();
            w.layer("Scale", &[blob], vec![shape], Manner::default().learning(), "")[0]
        }
    };
    reduce(w, last, "SUMSQ");
}
