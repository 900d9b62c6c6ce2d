//! Genes that add layers of forks.

use super::Picks;
use super::losses::loss;
use super::writer::{Manner, Writer};

/// A layer whose one top is not in place of its bottom.
fn apart(w: &mut Writer, kind: &str, bottoms: &[usize], shape: Vec<usize>, picks: &Picks, body: &str) -> Option<()> {
    let manner = Manner { in_place: false, ..Manner::of(picks[2]) };
    w.try_layer(kind, bottoms, vec![shape], manner, body).map(drop)
}

pub fn bn(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |b| b.shape.len() >= 2)?;
    let shape = w.shape(blob).to_vec();
    let frozen = picks[1] % 4 == 3;
    let body =
        format!("bn_param {{ slope_filler {{ type: 'gaussian' mean: 1 std: 0.3 }} eps: 0.05 frozen: {frozen} }}");
    let manner = Manner::of(picks[2]);
    let manner = if frozen { manner } else { manner.learning() };
    w.try_layer("BN", &[blob], vec![shape], manner, &body).map(drop)
}

pub fn normalize(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.image(picks[0])?;
    let shape = w.shape(blob).to_vec();
    let (spatial, shared) = (picks[1].is_multiple_of(2), picks[3].is_multiple_of(2));
    let body = format!("norm_param {{ across_spatial: {spatial} channel_shared: {shared} eps: 0.1 }}");
    w.try_layer("Normalize", &[blob], vec![shape], Manner::of(picks[2]).learning(), &body).map(drop)
}

pub fn shuffle(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |b| b.shape.len() >= 2 && b.shape[1].is_multiple_of(2))?;
    let shape = w.shape(blob).to_vec();
    apart(w, "ShuffleChannel", &[blob], shape, picks, "shuffle_channel_param { group: 2 }")
}

pub fn interp(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.image(picks[0])?;
    let &[n, c, h, width] = w.shape(blob) else { return None };
    let (shape, body) = match picks[1] % 2 {
        0 => (vec![n, c, 5, 3], "height: 5 width: 3"),
        _ => (vec![n, c, 2 * h - 1, 2 * width - 1], "zoom_factor: 2"),
    };
    apart(w, "Interp", &[blob], shape, picks, &format!("interp_param {{ {body} }}"))
}

pub fn reorg(w: &mut Writer, picks: &Picks) -> Option<()> {
    let reverse = picks[1] % 2 == 1;
    let fits = |shape: &[usize]| match shape {
        &[_, c, h, width] => c.is_multiple_of(4) && (reverse || h.is_multiple_of(2) && width.is_multiple_of(2)),
        _ => false,
    };
    let blob = w.blob(picks[0], |b| fits(&b.shape))?;
    let &[n, c, h, width] = w.shape(blob) else { return None };
    let shape = if reverse { vec![n, c / 4, 2 * h, 2 * width] } else { vec![n, c * 4, h / 2, width / 2] };
    apart(w, "Reorg", &[blob], shape, picks, &format!("reorg_param {{ stride: 2 reverse: {reverse} }}"))
}

/// All values of a plane in one place, so that where a maximum was found, which rounding decides, makes no difference.
pub fn upsample(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.image(picks[0])?;
    let shape = w.shape(blob).to_vec();
    let (h, width) = (2 * shape[2], shape[3] + 1);
    let places = w.labels(&shape, picks[1] as usize % (h * width));
    let top = vec![shape[0], shape[1], h, width];
    apart(
        w,
        "Upsample",
        &[blob, places],
        top,
        picks,
        &format!("upsample_param {{ upsample_h: {h} upsample_w: {width} }}"),
    )
}

/// A squeeze-and-excitation block without what is learned in it.
pub fn axpy(w: &mut Writer, picks: &Picks) -> Option<()> {
    let x = w.image(picks[0])?;
    let shape = w.shape(x).to_vec();
    let z = w.blob(picks[1], |b| b.shape == shape).unwrap_or(x);
    let means = vec![shape[0], shape[1], 1, 1];
    let pool = "pooling_param { pool: AVE global_pooling: true }";
    let a = w.try_layer("Pooling", &[x], vec![means], Manner::default(), pool)?[0];
    apart(w, "Axpy", &[a, x, z], shape, picks, "")
}

pub fn squeeze(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |b| b.shape.len() > 2 && b.shape[2..].contains(&1))?;
    let shape = w.shape(blob).to_vec();
    let axis = (2..shape.len()).find(|&axis| shape[axis] == 1)?;
    let rest = shape.iter().enumerate().filter(|(a, _)| *a != axis).map(|(_, &extent)| extent).collect();
    apart(w, "Squeeze", &[blob], rest, picks, &format!("squeeze_param {{ axis: {axis} }}"))
}

pub fn margin_inner_product(w: &mut Writer, picks: &Picks) -> Option<()> {
    let features = w.blob(picks[0], |b| b.shape.len() == 2 && b.learned)?;
    let n = w.shape(features)[0];
    let class = picks[1] as usize % 3;
    let label = w.labels(&[n], class);
    let body = "margin_inner_product_param { num_output: 3 type: DOUBLE base: 5 gamma: 0.1 lambda_min: 2 weight_filler { type: 'xavier' } }";
    let manner = Manner::default().learning();
    let scores = w.layer("MarginInnerProduct", &[features, label], vec![vec![n, 3]], manner, body)[0];
    let label = w.labels(&[n], class);
    loss(w, "SoftmaxWithLoss", &[scores, label], 0.3, "")
}

pub fn l1(w: &mut Writer, picks: &Picks) -> Option<()> {
    let first = w.blob(picks[0], |b| b.shape.len() >= 2 && b.learned)?;
    let shape = w.shape(first).to_vec();
    let other = w.data(&shape);
    let count: usize = shape[1..].iter().product();
    loss(w, "L1Loss", &[first, other], 1.0 / count as f32, "")
}

/// Steps, sequences and classes are what the first axes happen to be.
pub fn ctc(w: &mut Writer, picks: &Picks) -> Option<()> {
    let scores = w.blob(picks[0], |b| b.shape.len() >= 3 && b.learned)?;
    let shape = w.shape(scores).to_vec();
    let (steps, items, classes) = (shape[0], shape[1], shape[2..].iter().product::<usize>());
    let label = w.labels(&[items, 1], picks[1] as usize % classes);
    let body = format!("ctc_loss_param {{ alphabet_size: {classes} time_step: {steps} }}");
    loss(w, "CtcLoss", &[scores, label], 0.2, &body)
}
