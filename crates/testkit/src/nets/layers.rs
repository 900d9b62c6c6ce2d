//! Genes that add one layer.

use super::Picks;
use super::writer::{HOST_ONLY, Manner, Writer};

/// Two names, for the weights and the bias of layers that may share them: those that can do, where the pick says so.
pub fn shared(pick: u8, key: &str, bias: bool) -> String {
    match pick % 8 {
        7 if bias => format!("param {{ name: 'w_{key}' }} param {{ name: 'b_{key}' }}"),
        7 => format!("param {{ name: 'w_{key}' }}"),
        6 => "param { lr_mult: 0 }".into(),
        _ => String::new(),
    }
}

/// A layer that treats every element alone.
fn unary(w: &mut Writer, kind: &str, blob: usize, manner: Manner, body: &str) -> Option<()> {
    let shape = w.shape(blob).to_vec();
    w.try_layer(kind, &[blob], vec![shape], manner, body).map(drop)
}

pub fn data(w: &mut Writer, picks: &Picks) -> Option<()> {
    let like = w.blob(picks[0], |_| true)?;
    let shape = w.shape(like).to_vec();
    w.data(&shape);
    Some(())
}

pub fn relu(w: &mut Writer, picks: &Picks) -> Option<()> {
    let slope = [0.0, 0.0, 0.0, 0.1][picks[1] as usize % 4];
    let body = if slope == 0.0 { String::new() } else { format!("relu_param {{ negative_slope: {slope} }}") };
    let blob = w.blob(picks[0], |_| true)?;
    unary(w, "ReLU", blob, Manner::of(picks[2]), &body)
}

pub fn prelu(w: &mut Writer, picks: &Picks) -> Option<()> {
    let body = format!("prelu_param {{ channel_shared: {} }}", picks[1] % 2 == 1);
    let blob = w.blob(picks[0], |b| b.shape.len() >= 2)?;
    unary(w, "PReLU", blob, Manner::of(picks[2]).learning(), &body)
}

pub fn activation(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |_| true)?;
    unary(
        w,
        ["Sigmoid", "TanH", "Swish", "BNLL", "ELU", "AbsVal"][picks[1] as usize % 6],
        blob,
        Manner::of(picks[2]),
        "",
    )
}

pub fn power(w: &mut Writer, picks: &Picks) -> Option<()> {
    let power = [1, 2][picks[1] as usize % 2];
    let blob = w.blob(picks[0], |_| true)?;
    unary(w, "Power", blob, Manner::of(picks[2]), &format!("power_param {{ power: {power} scale: 0.5 shift: 0.2 }}"))
}

pub fn dropout(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |_| true)?;
    unary(w, "Dropout", blob, Manner::of(picks[2]), "dropout_param { dropout_ratio: 0.3 }")
}

pub fn mvn(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.image(picks[0])?;
    let body = format!("mvn_param {{ across_channels: {} eps: 0.1 }}", picks[1] % 2 == 1);
    unary(w, "MVN", blob, Manner::of(picks[2]), &body)
}

pub fn host_only(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |_| true)?;
    unary(w, HOST_ONLY, blob, Manner::of(picks[2]).learning(), "")
}

pub fn softmax(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |b| b.shape.len() >= 2)?;
    unary(w, "Softmax", blob, Manner::of(picks[2]), "")
}

pub fn lrn(w: &mut Writer, picks: &Picks) -> Option<()> {
    let region = ["ACROSS_CHANNELS", "WITHIN_CHANNEL"][picks[1] as usize % 2];
    let blob = w.image(picks[0])?;
    unary(
        w,
        "LRN",
        blob,
        Manner::of(picks[2]),
        &format!("lrn_param {{ local_size: 3 alpha: 0.2 norm_region: {region} }}"),
    )
}

pub fn batch_norm(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |b| b.shape.len() >= 2)?;
    let c = w.shape(blob)[1];
    let (eps, global) = (["0.01", "0.1"][picks[1] as usize % 2], picks[3] % 8 == 7);
    let global = if global { " use_global_stats: true" } else { "" };
    // Statistics that several layers share, which each updates in its turn.
    let names = ["m", "v", "f"].map(|s| format!("param {{ name: '{s}_{c}' lr_mult: 0 }} ")).concat();
    let names = if picks[4] % 8 == 7 { names } else { String::new() };
    let body = format!("{names}batch_norm_param {{ eps: {eps} moving_average_fraction: 0.8{global} }}");
    unary(w, "BatchNorm", blob, Manner::of(picks[2]), &body)
}

/// The bottoms of a Scale or Bias layer, and its axes: one that learns, along one axis, several or none, or one that is
/// given a second bottom along the first axes of the first.
fn along(w: &Writer, picks: &Picks) -> Option<(Vec<usize>, String)> {
    let blob = w.blob(picks[0], |b| b.shape.len() >= 2)?;
    let shape = w.shape(blob);
    let other = w.blob(picks[3], |b| b.shape.len() < shape.len() && !b.shape.is_empty() && shape.starts_with(&b.shape));
    match (picks[1] % 8, other) {
        (4..=5, Some(other)) => Some((vec![blob, other], "axis: 0".into())),
        (6, _) => Some((vec![blob], "axis: 0 num_axes: 2".into())),
        (7, _) => Some((vec![blob], "axis: 1 num_axes: -1".into())),
        (3, _) => Some((vec![blob], "num_axes: 0".into())),
        _ => Some((vec![blob], String::new())),
    }
}

pub fn scale(w: &mut Writer, picks: &Picks) -> Option<()> {
    let (bottoms, axes) = along(w, picks)?;
    let filler = if bottoms.len() == 1 { "filler { type: 'gaussian' mean: 1 std: 0.3 }" } else { "" };
    let body = format!("scale_param {{ {axes} {filler} bias_term: {} }}", picks[4] % 2 == 1);
    let shape = w.shape(bottoms[0]).to_vec();
    w.try_layer("Scale", &bottoms, vec![shape], Manner::of(picks[2]).learning(), &body).map(drop)
}

pub fn bias(w: &mut Writer, picks: &Picks) -> Option<()> {
    let (bottoms, axes) = along(w, picks)?;
    let filler = if bottoms.len() == 1 { "filler { type: 'gaussian' std: 0.3 }" } else { "" };
    let shape = w.shape(bottoms[0]).to_vec();
    let body = format!("bias_param {{ {axes} {filler} }}");
    w.try_layer("Bias", &bottoms, vec![shape], Manner::of(picks[2]).learning(), &body).map(drop)
}

pub fn convolution(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.image(picks[0])?;
    let c = w.shape(blob)[1];
    let outputs = [c, 4, 8, 5, 16, 12][picks[1] as usize % 6];
    let group = match picks[3] % 8 {
        5 => c,
        6 | 7 if c.is_multiple_of(2) => 2,
        _ => 1,
    };
    let outputs = if outputs.is_multiple_of(group) { outputs } else { c };
    let (kernel, pad, stride, dilation) = [
        (3, 1, 1, 1),
        (1, 0, 1, 1),
        (3, 1, 2, 1),
        (1, 0, 2, 1),
        (5, 2, 1, 1),
        (3, 0, 1, 1),
        (2, 1, 1, 1),
        (3, 2, 1, 2),
    ][picks[4] as usize % 8];
    convolve(w, blob, Window { outputs, group, kernel, pad, stride, dilation }, picks[5], Manner::of(picks[2]))
        .map(drop)
}

/// A transposed convolution, of one group or as many as channels.
pub fn deconvolution(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.image(picks[0])?;
    let &[n, c, height, width] = w.shape(blob) else { return None };
    let group = if picks[3] % 3 == 2 { c } else { 1 };
    let outputs = if group == 1 { [4, 3, 8, 5][picks[1] as usize % 4] } else { c };
    let (kernel, pad, stride) = [(4, 1, 2), (3, 1, 1), (2, 0, 2), (3, 2, 2)][picks[4] as usize % 4];
    let extent =
        |size: usize| (stride * (size - 1) + kernel).checked_sub(2 * pad).filter(|extent| (1..=16).contains(extent));
    let shape = vec![n, outputs, extent(height)?, extent(width)?];
    let body = format!(
        "convolution_param {{ num_output: {outputs} group: {group} kernel_size: {kernel} pad: {pad} stride: {stride} \
         weight_filler {{ type: 'msra' }} bias_term: {} }}",
        picks[5].is_multiple_of(2)
    );
    w.try_layer("Deconvolution", &[blob], vec![shape], Manner::of(picks[2]).learning(), &body).map(drop)
}

/// A convolution's extents.
#[derive(Clone, Copy)]
pub struct Window {
    pub outputs: usize,
    pub group: usize,
    pub kernel: usize,
    pub pad: usize,
    pub stride: usize,
    pub dilation: usize,
}

/// Writes a convolution; `pick` chooses whether it has a bias and shares its weights with those alike.
pub fn convolve(w: &mut Writer, blob: usize, window: Window, pick: u8, manner: Manner) -> Option<usize> {
    let &[n, c, height, width] = w.shape(blob) else { return None };
    let Window { outputs, group, kernel, pad, stride, dilation } = window;
    let reach = dilation * (kernel - 1) + 1;
    let extent = |size: usize| Some((size + 2 * pad).checked_sub(reach)? / stride + 1);
    let shape = vec![n, outputs, extent(height)?, extent(width)?];
    let bias = pick & 1 == 0;
    let names = shared(pick >> 1, &format!("{c}_{outputs}_{group}_{kernel}_{bias}"), bias);
    let fillers =
        format!("weight_filler {{ type: 'msra' }} bias_filler {{ type: 'gaussian' std: 0.3 }} bias_term: {bias}");
    let body = format!(
        "{names} convolution_param {{ num_output: {outputs} group: {group} kernel_size: {kernel} pad: {pad} \
         stride: {stride} dilation: {dilation} {fillers} }}"
    );
    w.try_layer("Convolution", &[blob], vec![shape], manner.learning(), &body).map(|tops| tops[0])
}

pub fn inner_product(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |b| b.shape.len() >= 2)?;
    let (n, features) = (w.shape(blob)[0], w.shape(blob)[1..].iter().product::<usize>());
    let outputs = [4, 3, 8, 5][picks[1] as usize % 4];
    let names = shared(picks[3], &format!("{features}_{outputs}"), true);
    let fillers = "weight_filler { type: 'xavier' } bias_filler { type: 'gaussian' std: 0.3 }";
    let body = format!("{names} inner_product_param {{ num_output: {outputs} {fillers} }}");
    w.try_layer("InnerProduct", &[blob], vec![vec![n, outputs]], Manner::of(picks[2]).learning(), &body).map(drop)
}

pub fn pooling(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.image(picks[0])?;
    let &[n, c, height, width] = w.shape(blob) else { return None };
    let method = ["MAX", "AVE"][picks[1] as usize % 2];
    let manner = Manner::of(picks[2]);
    if picks[3] % 8 == 7 {
        let body = format!("pooling_param {{ pool: {method} global_pooling: true }}");
        return w.try_layer("Pooling", &[blob], vec![vec![n, c, 1, 1]], manner, &body).map(drop);
    }
    let (kernel, stride, pad) = [(2, 2, 0), (3, 2, 0), (3, 1, 1), (2, 1, 0), (3, 2, 1)][picks[4] as usize % 5];
    let extent = |size: usize| {
        let out = (size + 2 * pad).checked_sub(kernel)?.div_ceil(stride) + 1;
        // The last window begins inside the image or its padding before.
        Some(if pad > 0 && (out - 1) * stride >= size + pad { out - 1 } else { out })
    };
    let shape = vec![n, c, extent(height)?, extent(width)?];
    let body = format!("pooling_param {{ pool: {method} kernel_size: {kernel} stride: {stride} pad: {pad} }}");
    w.try_layer("Pooling", &[blob], vec![shape], manner, &body).map(drop)
}

pub fn eltwise(w: &mut Writer, picks: &Picks) -> Option<()> {
    let first = w.blob(picks[0], |b| !b.shape.is_empty())?;
    let shape = w.shape(first).to_vec();
    let count = 2 + picks[3] as usize % 3;
    let mut bottoms = vec![first];
    for k in 1..count {
        // Another one, if there is one: the same blob twice is a rarer thing.
        let other = w.blob(picks[4].wrapping_mul(k as u8), |b| b.shape == shape && b.name != w.blobs[first].name);
        bottoms.push(other.unwrap_or(first));
    }
    let coefficients = ["", "coeff: -1 ", "coeff: 0.5 "];
    let body = match picks[1] % 6 {
        0..=2 => String::new(),
        3 => (0..count).map(|k| coefficients[1 + (k + picks[5] as usize) % 2]).collect(),
        4 => "operation: PROD".into(),
        _ => "operation: MAX".into(),
    };
    let body = format!("eltwise_param {{ {body} }}");
    w.try_layer("Eltwise", &bottoms, vec![shape], Manner::of(picks[2]), &body).map(drop)
}

pub fn concat(w: &mut Writer, picks: &Picks) -> Option<()> {
    let axis = [1, 1, 0][picks[1] as usize % 3];
    let first = w.blob(picks[0], |b| b.shape.len() >= 2)?;
    let mut shape = w.shape(first).to_vec();
    let fits =
        |other: &[usize]| other.len() == shape.len() && (0..shape.len()).all(|a| a == axis || other[a] == shape[a]);
    let mut bottoms = vec![first];
    for k in 0..1 + picks[3] % 2 {
        bottoms.push(w.blob(picks[4].wrapping_add(k * 77), |b| fits(&b.shape))?);
    }
    shape[axis] = bottoms.iter().map(|&b| w.shape(b)[axis]).sum();
    let manner = Manner { in_place: false, ..Manner::of(picks[2]) };
    w.try_layer("Concat", &bottoms, vec![shape], manner, &format!("concat_param {{ axis: {axis} }}")).map(drop)
}

pub fn slice(w: &mut Writer, picks: &Picks) -> Option<()> {
    let axis = [1, 1, 0][picks[1] as usize % 3];
    let blob = w.blob(picks[0], |b| b.shape.len() >= 2 && b.shape[axis] >= 2)?;
    let shape = w.shape(blob).to_vec();
    let first = 1 + picks[3] as usize % (shape[axis] - 1);
    let of = |extent: usize| {
        let mut shape = shape.clone();
        shape[axis] = extent;
        shape
    };
    let body = format!("slice_param {{ axis: {axis} slice_point: {first} }}");
    let manner = Manner { in_place: false, ..Manner::of(picks[2]) };
    w.try_layer("Slice", &[blob], vec![of(first), of(shape[axis] - first)], manner, &body).map(drop)
}

/// The axes in another order, the first in its place.
pub fn permute(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.image(picks[0])?;
    let shape = w.shape(blob).to_vec();
    let order = [[0, 2, 3, 1], [0, 3, 1, 2], [0, 1, 3, 2], [0, 3, 2, 1]][picks[1] as usize % 4];
    let body: String = order.iter().map(|axis| format!("order: {axis} ")).collect();
    let manner = Manner { in_place: false, ..Manner::of(picks[2]) };
    w.try_layer(
        "Permute",
        &[blob],
        vec![order.map(|axis| shape[axis]).to_vec()],
        manner,
        &format!("permute_param {{ {body} }}"),
    )
    .map(drop)
}

pub fn tile(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |b| b.shape.len() >= 2)?;
    let mut shape = w.shape(blob).to_vec();
    shape[1] *= 2;
    let manner = Manner { in_place: false, ..Manner::of(picks[2]) };
    w.try_layer("Tile", &[blob], vec![shape], manner, "tile_param { tiles: 2 }").map(drop)
}

pub fn flatten(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |b| b.shape.len() >= 2)?;
    let (n, features) = (w.shape(blob)[0], w.shape(blob)[1..].iter().product());
    w.try_layer("Flatten", &[blob], vec![vec![n, features]], Manner::of(picks[2]), "").map(drop)
}

pub fn reshape(w: &mut Writer, picks: &Picks) -> Option<()> {
    let blob = w.blob(picks[0], |b| b.shape.len() >= 2)?;
    let (n, features) = (w.shape(blob)[0], w.shape(blob)[1..].iter().product::<usize>());
    let channels = [4, 2, 8, 1][picks[1] as usize % 4];
    if !features.is_multiple_of(channels) {
        return None;
    }
    let shape = vec![n, channels, features / channels, 1];
    let body = format!("reshape_param {{ shape {{ dim: 0 dim: {channels} dim: -1 dim: 1 }} }}");
    w.try_layer("Reshape", &[blob], vec![shape], Manner::of(picks[2]), &body).map(drop)
}
