//! `resize_param`, and the cutting and padding of images, with their objects.
//!
//! `WARP` makes an image `height` by `width`; `FIT_LARGE_SIZE_AND_PAD` fits it in there and pads what is left on both sides
//! (`pad_mode`, `pad_value`); `FIT_SMALL_SIZE` makes it the smallest of its own shape that covers that. Of several `interp_mode`s one
//! is drawn for each image; `LINEAR` without any. `prob` has no effect, as in SSD's Caffe. LINEAR is OpenCV's bit for bit, the
//! others within 1 of it.

use std::f64::consts::PI;

use lgm_core::rng::Sequence;
use lgm_core::{Result, ensure};
use lgm_proto::resize_parameter::{InterpMode, PadMode, ResizeMode};
use lgm_proto::{EmitConstraint, ExpansionParameter, ResizeParameter};

use super::boxes::{Corners, Object, clip, see};
use super::color::to_u8;
use crate::image::{BadImage, Raster};
use crate::pixels::Extent;

/// Checks what is asked for, for images of so many channels.
///
/// # Errors
/// When there is no size, or there are not as many values to pad with as channels.
pub(super) fn check(p: &ResizeParameter, channels: usize) -> Result<()> {
    let (height, width, values) = (p.height(), p.width(), p.pad_value.len());
    ensure!(height > 0 && width > 0, "resize_param needs a height and a width, found {height} and {width}");
    ensure!(
        values <= 1 || values == channels,
        "pad_value must be given once or once for each of the {channels} channels, found {values} times"
    );
    Ok(())
}

/// The size that an image of a height and width gets before it is padded.
fn size(p: &ResizeParameter, [height, width]: [usize; 2]) -> [usize; 2] {
    let new = [p.height() as usize, p.width() as usize];
    let aspect = width as f32 / height as f32;
    let is_wider = aspect > new[1] as f32 / new[0] as f32;
    let side = |v: f32| (v.floor() as usize).max(1);
    match (p.resize_mode(), is_wider) {
        (ResizeMode::Warp, _) => new,
        (ResizeMode::FitLargeSizeAndPad, true) | (ResizeMode::FitSmallSize, false) => {
            [side(new[1] as f32 / aspect), new[1]]
        }
        (ResizeMode::FitLargeSizeAndPad, false) | (ResizeMode::FitSmallSize, true) => {
            [new[0], side(aspect * new[0] as f32)]
        }
    }
}

/// The extent that an image gets.
pub(super) fn extent(p: &ResizeParameter, of: Extent) -> Extent {
    let [height, width] = match p.resize_mode() {
        ResizeMode::FitSmallSize => size(p, [of.height, of.width]),
        _ => [p.height() as usize, p.width() as usize],
    };
    Extent { height, width, ..of }
}

/// Resizes an image.
pub(super) fn resize(
    p: &ResizeParameter,
    image: Raster,
    objects: &mut [Object],
    random: &mut Sequence,
) -> Result<Raster, BadImage> {
    let modes: Vec<InterpMode> = p.interp_mode().collect();
    let mode = if modes.is_empty() { InterpMode::Linear } else { modes[random.below(modes.len())] };
    let [height, width] = size(p, [image.extent.height, image.extent.width]);
    let aspect = image.extent.width as f32 / image.extent.height as f32;
    let resized = interpolated(&image, mode, height, width)?;
    objects.iter_mut().for_each(|object| object.corners = clip(object.corners));
    if p.resize_mode() != ResizeMode::FitLargeSizeAndPad {
        return Ok(resized);
    }
    let new = [p.width() as f32, p.height() as f32];
    // What of the padded image is the image, across and down.
    let part = [(aspect * new[1] / new[0]).min(1.0), (new[0] / aspect / new[1]).min(1.0)];
    for object in objects {
        object.corners = std::array::from_fn(|k| object.corners[k] * part[k % 2] + (1.0 - part[k % 2]) / 2.0);
    }
    let to = extent(p, resized.extent);
    pad(&resized, to, [(to.height - height) / 2, (to.width - width) / 2], p)
}

/// An image with others of its pixels, or a value, around it.
fn pad(image: &Raster, to: Extent, [top, left]: [usize; 2], p: &ResizeParameter) -> Result<Raster, BadImage> {
    let Extent { channels, height, width } = image.extent;
    let source = |at: usize, before: usize, len: usize| -> Option<usize> {
        let at = at as isize - before as isize;
        let last = len as isize - 1;
        match p.pad_mode() {
            _ if (0..=last).contains(&at) => Some(at as usize),
            PadMode::Constant => None,
            PadMode::RepeatNearest => Some(at.clamp(0, last) as usize),
            // The edge itself is not repeated.
            PadMode::Mirrored => {
                let round = at.rem_euclid((2 * last).max(1));
                Some(round.min((2 * last - round).abs()) as usize)
            }
        }
    };
    let value = |c: usize| p.pad_value.get(if p.pad_value.len() == 1 { 0 } else { c }).map_or(0, |&v| to_u8(v));
    let mut out = Raster::zeros(to)?;
    let places = (0..to.height).flat_map(|y| (0..to.width).map(move |x| (y, x)));
    for (pixel, (y, x)) in out.data.chunks_exact_mut(channels).zip(places) {
        match (source(y, top, height), source(x, left, width)) {
            (Some(y), Some(x)) => pixel.copy_from_slice(&image.data[(y * width + x) * channels..][..channels]),
            _ => pixel.iter_mut().enumerate().for_each(|(c, v)| *v = value(c)),
        }
    }
    Ok(out)
}

/// The first pixel that each pixel of an axis is made of, and their weights.
fn weights(mode: InterpMode, from: usize, to: usize, shrinks: bool) -> Vec<(isize, Vec<f32>)> {
    let scale = from as f64 / to as f64;
    let taps = |i: usize| {
        let center = (i as f64 + 0.5) * scale - 0.5;
        let (first, part) = (center.floor() as isize, center - center.floor());
        match mode {
            InterpMode::Nearest => ((i as f64 * scale) as isize, vec![1.0]),
            InterpMode::Area if shrinks => {
                let (start, end) = (i as f64 * scale, ((i + 1) as f64 * scale).min(from as f64));
                let (low, high) = (start.floor() as usize, (end - 1e-9).ceil() as usize);
                let covered = |k: usize| ((end.min((k + 1) as f64) - start.max(k as f64)) / (end - start)) as f32;
                (low as isize, (low..high.max(low + 1)).map(covered).collect())
            }
            InterpMode::Area => {
                // Each pixel whole as far as it reaches.
                let low = (i as f64 * scale).floor();
                let over = (i + 1) as f64 - (low + 1.0) / scale;
                let part = if over <= 0.0 { 0.0 } else { over - over.floor() } as f32;
                (low as isize, vec![1.0 - part, part])
            }
            InterpMode::Linear => (first, vec![1.0 - part as f32, part as f32]),
            InterpMode::Cubic => (first - 1, (0..4).map(|k| cubic(part + 1.0 - f64::from(k)) as f32).collect()),
            InterpMode::Lanczos4 => {
                let taps: Vec<f64> = (0..8).map(|k| lanczos(part + 3.0 - f64::from(k))).collect();
                let sum: f64 = taps.iter().sum();
                (first - 3, taps.iter().map(|w| (w / sum) as f32).collect())
            }
        }
    };
    (0..to).map(taps).collect()
}

/// Keys's cubic kernel with the slope −3/4 at 1.
fn cubic(t: f64) -> f64 {
    const A: f64 = -0.75;
    match t.abs() {
        t if t <= 1.0 => ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0,
        t if t < 2.0 => ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A,
        _ => 0.0,
    }
}

/// Lanczos's kernel over 4 pixels to each side.
fn lanczos(t: f64) -> f64 {
    let sinc = |t: f64| if t == 0.0 { 1.0 } else { (PI * t).sin() / (PI * t) };
    if t.abs() < 4.0 { sinc(t) * sinc(t / 4.0) } else { 0.0 }
}

/// An image of another size.
fn interpolated(image: &Raster, mode: InterpMode, height: usize, width: usize) -> Result<Raster, BadImage> {
    let from = image.extent;
    if mode == InterpMode::Linear {
        return image.resized(height, width);
    }
    let shrinks = height <= from.height && width <= from.width;
    let mut out = Raster::zeros(Extent { channels: from.channels, height, width })?;
    let (down, across) = (weights(mode, from.height, height, shrinks), weights(mode, from.width, width, shrinks));
    let inside = |at: isize, len: usize| at.clamp(0, len as isize - 1) as usize;
    let (channels, row) = (from.channels, from.width * from.channels);
    let mut column = vec![0.0f32; row];
    for (out, (top, taps)) in out.data.chunks_exact_mut(width * channels).zip(&down) {
        column.fill(0.0);
        for (k, w) in taps.iter().enumerate() {
            let pixels = &image.data[inside(top + k as isize, from.height) * row..][..row];
            column.iter_mut().zip(pixels).for_each(|(sum, &v)| *sum += w * f32::from(v));
        }
        for (pixel, (left, taps)) in out.chunks_exact_mut(channels).zip(&across) {
            for (c, v) in pixel.iter_mut().enumerate() {
                let tap = |(k, w): (usize, &f32)| w * column[inside(left + k as isize, from.width) * channels + c];
                *v = to_u8(taps.iter().enumerate().map(tap).sum());
            }
        }
    }
    Ok(out)
}

/// What a window within the image shows of it, whole pixels, one at least.
pub(super) fn cut(image: &Raster, window: Corners) -> Result<Raster, BadImage> {
    let Extent { channels, height, width } = image.extent;
    let along = |from: f32, to: f32, len: usize| {
        let (from, to) = (from * len as f32, to * len as f32);
        let first = (from as usize).min(len - 1);
        (first, ((to - from) as usize).clamp(1, len - first))
    };
    let ((left, columns), (top, rows)) = (along(window[0], window[2], width), along(window[1], window[3], height));
    let mut out = Raster::zeros(Extent { channels, height: rows, width: columns })?;
    for (y, row) in out.data.chunks_exact_mut(columns * channels).enumerate() {
        row.copy_from_slice(&image.data[((top + y) * width + left) * channels..][..columns * channels]);
    }
    Ok(out)
}

/// Checks `expand_param`.
///
/// # Errors
/// When images are to become smaller.
pub(super) fn check_expansion(p: &ExpansionParameter) -> Result<()> {
    let ratio = p.max_expand_ratio();
    ensure!((1.0..=64.0).contains(&ratio), "max_expand_ratio must be a number from 1 to 64, found {ratio}");
    Ok(())
}

/// `expand_param`: with its probability an image lies anywhere in one that is 1 to `max_expand_ratio` times as high and wide, with
/// `fill`, the mean of each channel, around it.
pub(super) fn expand(
    image: Raster,
    p: &ExpansionParameter,
    fill: &[u8],
    (objects, constraint): (&mut Vec<Object>, Option<&EmitConstraint>),
    random: &mut Sequence,
) -> Result<Raster, BadImage> {
    let (at, ratio) = (random.unit(), random.uniform(1.0, p.max_expand_ratio().into()));
    if at > f64::from(p.prob()) || (p.max_expand_ratio() - 1.0).abs() < 1e-2 {
        return Ok(image);
    }
    let Extent { channels, height, width } = image.extent;
    let larger = |len: usize| ((len as f64 * ratio) as usize).max(len);
    let to = Extent { channels, height: larger(height), width: larger(width) };
    let (top, left) = (random.below(to.height - height + 1), random.below(to.width - width + 1));
    let mut out = Raster::zeros(to)?;
    out.data.chunks_exact_mut(channels).for_each(|pixel| pixel.copy_from_slice(fill));
    for (y, row) in image.data.chunks_exact(width * channels).enumerate() {
        out.data[((top + y) * to.width + left) * channels..][..row.len()].copy_from_slice(row);
    }
    let along =
        |before: usize, len: usize, of: usize| [-(before as f32) / len as f32, (of - before) as f32 / len as f32];
    let ([x1, x2], [y1, y2]) = (along(left, width, to.width), along(top, height, to.height));
    see(objects, [x1, y1, x2, y2], constraint);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lgm_core::rng::Philox;

    fn gray(height: usize, width: usize, data: &[u8]) -> Raster {
        Raster { extent: Extent { channels: 1, height, width }, data: data.to_vec() }
    }

    fn param(text: &str) -> ResizeParameter {
        let layer = format!("layer {{ transform_param {{ resize_param {{ {text} }} }} }}");
        lgm_testkit::parse_layer(&layer).unwrap().transform_param.unwrap().resize_param.remove(0)
    }

    fn resized(text: &str, image: Raster) -> (Raster, Corners) {
        let mut objects = [Object { class: 1, instance: 0, corners: [0.0, 0.25, 0.5, 1.0], difficult: false }];
        let image = resize(&param(text), image, &mut objects, &mut Philox::new(1, 1).from(0)).unwrap();
        (image, objects[0].corners)
    }

    #[test]
    fn each_interpolation() {
        let ramp = gray(1, 8, &[0, 10, 20, 30, 40, 50, 60, 70]);
        let to = |mode: &str, width: usize| {
            resized(&format!("height: 1 width: {width} interp_mode: {mode}"), ramp.clone()).0.data
        };
        assert_eq!(to("NEAREST", 4), [0, 20, 40, 60]);
        assert_eq!(to("AREA", 4), [5, 25, 45, 65]);
        assert_eq!(to("AREA", 3), [9, 35, 61]);
        assert_eq!(to("AREA", 16)[..4], [0, 0, 10, 10]);
        assert_eq!(to("LINEAR", 4), [5, 25, 45, 65]);
        for mode in ["CUBIC", "LANCZOS4"] {
            // Away from the ends both keep a ramp.
            let found = to(mode, 16);
            assert!((6..10).all(|i| found[i].abs_diff((i as f32 * 5.0 - 2.5).round() as u8) <= 1), "{mode}: {found:?}");
            assert_eq!(to(mode, 8), ramp.data);
        }
        for mode in [InterpMode::Area, InterpMode::Cubic, InterpMode::Lanczos4, InterpMode::Linear, InterpMode::Nearest]
        {
            for (from, to) in [(7, 3), (3, 7), (5, 5), (9, 2)] {
                let sums = weights(mode, from, to, to <= from).into_iter().map(|(_, w)| w.iter().sum::<f32>());
                assert!(sums.into_iter().all(|sum| (sum - 1.0).abs() < 1e-5), "{mode:?} {from} {to}");
            }
        }
    }

    #[test]
    fn each_mode_and_padding() {
        let image = gray(2, 4, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let fit = |more: &str| {
            resized(
                &format!("resize_mode: FIT_LARGE_SIZE_AND_PAD height: 4 width: 4 interp_mode: NEAREST {more}"),
                image.clone(),
            )
        };
        let (padded, corners) = fit("pad_value: 9");
        assert_eq!(padded.data, [9, 9, 9, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9]);
        assert_eq!(corners, [0.0, 0.375, 0.5, 0.75]);
        assert_eq!(fit("pad_mode: REPEAT_NEAREST").0.data[..8], [1, 2, 3, 4, 1, 2, 3, 4]);
        assert_eq!(fit("pad_mode: MIRRORED").0.data[..8], [5, 6, 7, 8, 1, 2, 3, 4]);
        assert_eq!(fit("").0.data[12..], [0; 4]);
        let high = gray(4, 2, &[0; 8]);
        let (padded, corners) = resized("resize_mode: FIT_LARGE_SIZE_AND_PAD height: 4 width: 4", high);
        assert_eq!((padded.extent.width, corners), (4, [0.25, 0.25, 0.5, 1.0]));
        let (warped, corners) = resized("height: 3 width: 5", image.clone());
        assert_eq!((warped.extent.height, warped.extent.width, corners), (3, 5, [0.0, 0.25, 0.5, 1.0]));
        let (small, _) = resized("resize_mode: FIT_SMALL_SIZE height: 4 width: 4", image.clone());
        assert_eq!((small.extent.height, small.extent.width), (4, 8));
        assert_eq!(extent(&param("resize_mode: FIT_SMALL_SIZE height: 4 width: 4"), image.extent), small.extent);
    }

    #[test]
    fn windows_and_expansions() {
        let image = gray(2, 4, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(cut(&image, [0.5, 0.0, 1.0, 1.0]).unwrap().data, [3, 4, 7, 8]);
        assert_eq!(cut(&image, [0.99, 0.99, 1.0, 1.0]).unwrap().data, [8]);
        let whole = Object { class: 1, instance: 0, corners: [0.0, 0.0, 1.0, 1.0], difficult: false };
        let p = ExpansionParameter { prob: Some(1.0), max_expand_ratio: Some(3.0) };
        for i in 0..30 {
            let mut objects = vec![whole];
            let out = expand(image.clone(), &p, &[9], (&mut objects, None), &mut Philox::new(1, i).from(0)).unwrap();
            let (height, width) = (out.extent.height, out.extent.width);
            assert!((2..=6).contains(&height) && (4..=12).contains(&width));
            let [x1, y1, x2, y2] = objects[0].corners;
            let (left, top) = ((x1 * width as f32).round() as usize, (y1 * height as f32).round() as usize);
            assert_eq!(out.data[top * width + left..][..4], [1, 2, 3, 4]);
            assert!(((x2 - x1) * width as f32 - 4.0).abs() < 1e-3 && ((y2 - y1) * height as f32 - 2.0).abs() < 1e-3);
            assert_eq!(out.data.iter().filter(|v| **v == 9).count(), height * width - 8);
        }
        let never = ExpansionParameter { prob: Some(0.0), ..p };
        let out =
            expand(image.clone(), &never, &[9], (&mut vec![whole], None), &mut Philox::new(1, 1).from(0)).unwrap();
        assert_eq!(out, image);
    }

    #[test]
    fn mistakes_are_named() {
        let fails = |text: &str, needles: &[&str]| {
            lgm_testkit::says(&check(&param(text), 3).unwrap_err().to_string(), needles);
        };
        fails("height: 3", &["resize_param", "found 3 and 0"]);
        fails("height: 3 width: 3 pad_value: 1 pad_value: 2", &["pad_value", "3 channels", "found 2"]);
        let small = ExpansionParameter { max_expand_ratio: Some(0.5), ..Default::default() };
        lgm_testkit::says(&check_expansion(&small).unwrap_err().to_string(), &["max_expand_ratio", "found 0.5"]);
    }
}
