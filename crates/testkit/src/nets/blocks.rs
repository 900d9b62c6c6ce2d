//! Genes that add several layers, as people write them.

use super::Picks;
use super::layers::{Window, convolve};
use super::writer::{Manner, Writer};

/// BatchNorm and Scale, each in place or not, with a bias or not, and perhaps a ReLU: the bits of `how`.
fn normalize(w: &mut Writer, blob: usize, how: u8, relu: bool) -> usize {
    let bit = |k: u8| how >> k & 1 == 1;
    let shape = w.shape(blob).to_vec();
    let manner = |in_place: bool| Manner { in_place, ..Default::default() };
    let unary = |w: &mut Writer, kind: &str, blob: usize, manner: Manner, body: &str| {
        w.layer(kind, &[blob], vec![shape.clone()], manner, body)[0]
    };
    let norm =
        unary(w, "BatchNorm", blob, manner(!bit(0)), "batch_norm_param { eps: 0.01 moving_average_fraction: 0.8 }");
    let fillers = "filler { type: 'gaussian' mean: 1 std: 0.3 } bias_filler { type: 'gaussian' std: 0.3 }";
    let body = format!("scale_param {{ bias_term: {} {fillers} }}", !bit(1));
    let scaled = unary(w, "Scale", norm, manner(!bit(2)).learning(), &body);
    if relu { unary(w, "ReLU", scaled, manner(!bit(3)), "") } else { scaled }
}

/// What [`normalize`] writes.
pub fn normalized(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |b| b.shape.len() >= 2)?;
    normalize(w, blob, picks[1], picks[3].is_multiple_of(2));
    Some(())
}

/// A residual block: one or two normalised convolutions, beside them the input itself, its normalisation, or a normalised
/// projection; their sum, in either order, and perhaps a ReLU.
pub fn residual(w: &mut Writer, picks: &Picks) -> Option<()> {
    let start = w.image(picks[0])?;
    let channels = w.shape(start)[1];
    let shortcut = picks[1] % 4;
    // What the block begins with is read twice, and keeps its name.
    w.blobs[start].read = true;
    let name = w.blobs[start].name.clone();
    let outputs = if shortcut % 2 == 1 { [8, 4][picks[3] as usize % 2] } else { channels };
    let window = |kernel: usize| Window { outputs, group: 1, kernel, pad: kernel / 2, stride: 1, dilation: 1 };
    let (without_bias, plain) = (1, Manner::default());
    let project = |w: &mut Writer| -> Option<usize> {
        let start = w.blob(0, |b| b.name == name)?;
        match shortcut {
            0 => Some(start),
            2 => Some(normalize(w, start, picks[5] | 1, false)),
            _ => convolve(w, start, window(1), without_bias, plain).map(|c| normalize(w, c, picks[5], false)),
        }
    };
    // The shortcut first, as Caffe's ResNets have it, or last.
    let shortcut_first = picks[4] & 1 == 0;
    let by = |w: &Writer, blob: usize| w.blobs[blob].name.clone();
    let early = if shortcut_first { Some(project(w)?) } else { None }.map(|b| by(w, b));
    let begin = w.blob(0, |b| b.name == name)?;
    let inner = convolve(w, begin, window(3), without_bias, plain)?;
    let twice = picks[4] >> 1 & 1 == 1;
    let inner = normalize(w, inner, picks[2], twice);
    let inner = if twice {
        let again = convolve(w, inner, window(3), without_bias, plain)?;
        normalize(w, again, picks[2] >> 4, false)
    } else {
        inner
    };
    let inner = by(w, inner);
    let other = match early {
        Some(name) => name,
        None => {
            let made = project(w)?;
            by(w, made)
        }
    };
    let find = |w: &Writer, name: &str| w.blob(0, |b| b.name == name);
    let mut bottoms = [find(w, &inner)?, find(w, &other)?];
    if picks[4] >> 2 & 1 == 1 {
        bottoms.swap(0, 1);
    }
    let shape = w.shape(bottoms[0]).to_vec();
    let sum = w.layer("Eltwise", &bottoms, vec![shape.clone()], plain, "")[0];
    if picks[4] >> 3 & 1 == 0 {
        w.layer("ReLU", &[sum], vec![shape], Manner { in_place: true, ..plain }, "");
    }
    Some(())
}
