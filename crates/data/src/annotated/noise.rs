//! `noise_param`: what is wanted of these, in this order.
//!
//! `decolorize`: the colours of gray; `gauss_blur`: a Gaussian of 7 × 7 pixels with a deviation of 1.5; `hist_eq`: the histogram of the
//! luminance made even; `clahe`: that in each of 8 × 8 tiles, up to a contrast of 4, blended from tile to tile; `jpeg`: compressed
//! with that quality and back; `erode`: each pixel the darkest of itself and its four neighbours; `posterize`: four levels a channel;
//! `inverse`; `saltpepper`: the `fraction` of the pixels set to `value`; `convert_to_hsv`. As in SSD's Caffe, `prob` and `all_effects`
//! have no effect: it is done to every image. There `convert_to_lab` makes floating-point numbers of which single bytes are then
//! read; here it is refused. Results are OpenCV's within 1, where the luminance is changed within 2.

use lgm_core::rng::Sequence;
use lgm_core::{Result, ensure};
use lgm_proto::NoiseParameter;

use super::color::{to_hsv, to_u8};
use crate::image::{BadImage, Color, Raster, decode_raster};
use crate::pixels::Extent;

/// Tiles of `clahe` in a row and a column, and its limit of contrast.
const TILES: usize = 8;
const LIMIT: usize = 4;

/// Checks what is asked for, for images of so many channels.
///
/// # Errors
/// When images have not the channels for it, or it says not what to set pixels to.
pub(super) fn check(p: &NoiseParameter, channels: usize) -> Result<()> {
    ensure!(
        !p.convert_to_lab(),
        "convert_to_lab is not supported: what it gives are not values of 8 bits, as the steps after it take; take it out"
    );
    let of_colors = p.decolorize() || p.convert_to_hsv();
    ensure!(channels == 3 || !of_colors, "decolorize and convert_to_hsv need images of 3 channels, found {channels}");
    ensure!([1, 3].contains(&channels), "noise_param needs images of 1 or 3 channels, found {channels}");
    let jpeg = p.jpeg();
    ensure!(jpeg <= 0.0 || (1.0..=100.0).contains(&jpeg), "jpeg is a quality from 1 to 100, found {jpeg}");
    if p.saltpepper() {
        let param = p.saltpepper_param.clone().unwrap_or_default();
        let (values, fraction) = (param.value.len(), param.fraction());
        ensure!(
            values == 1 || values == channels,
            "saltpepper_param needs a value, or one for each of the {channels} channels, found {values}"
        );
        ensure!((0.0..=1.0).contains(&fraction), "saltpepper_param's fraction must be from 0 to 1, found {fraction}");
    }
    Ok(())
}

/// Does it to an image.
pub(super) fn noise(mut image: Raster, p: &NoiseParameter, random: &mut Sequence) -> Result<Raster, BadImage> {
    let pixels = |image: &mut Raster, f: &dyn Fn([u8; 3]) -> [u8; 3]| {
        image.data.as_chunks_mut::<3>().0.iter_mut().for_each(|p| *p = f(*p));
    };
    if p.decolorize() {
        pixels(&mut image, &|p| [luma(p); 3]);
    }
    if p.gauss_blur() {
        image = blurred(&image)?;
    }
    if p.hist_eq() {
        on_luminance(&mut image, |plane, _| equalize(plane));
    }
    if p.clahe() {
        on_luminance(&mut image, equalize_tiles);
    }
    if p.jpeg() > 0.0 {
        let color = if image.extent.channels == 1 { Color::Gray } else { Color::Force };
        (image, _) = decode_raster(&image.as_jpeg(p.jpeg().trunc())?, color)?;
    }
    if p.erode() {
        image = eroded(&image)?;
    }
    if p.posterize() {
        image.data.iter_mut().for_each(|v| *v = *v / 64 * 64 + 32);
    }
    if p.inverse() {
        image.data.iter_mut().for_each(|v| *v = 255 - *v);
    }
    if p.saltpepper() {
        let param = p.saltpepper_param.clone().unwrap_or_default();
        let Extent { channels, height, width } = image.extent;
        let values: Vec<u8> = param.value.iter().cycle().take(channels).map(|&v| to_u8(v)).collect();
        for _ in 0..(f64::from(param.fraction()) * (height * width) as f64) as usize {
            let at = random.below(height * width) * channels;
            image.data[at..at + channels].copy_from_slice(&values);
        }
    }
    if p.convert_to_hsv() {
        pixels(&mut image, &to_hsv);
    }
    Ok(image)
}

/// The luminance of blue, green, red.
fn luma([b, g, r]: [u8; 3]) -> u8 {
    ((u32::from(b) * 1868 + u32::from(g) * 9617 + u32::from(r) * 4899 + 8192) >> 14) as u8
}

/// Changes the luminance of an image, the colours kept by their differences from it.
fn on_luminance(image: &mut Raster, change: impl Fn(&mut [u8], [usize; 2])) {
    let size = [image.extent.height, image.extent.width];
    if image.extent.channels == 1 {
        return change(&mut image.data, size);
    }
    let (pixels, _) = image.data.as_chunks_mut::<3>();
    let mut plane: Vec<u8> = pixels.iter().map(|p| luma(*p)).collect();
    let differences: Vec<[u8; 2]> = pixels
        .iter()
        .zip(&plane)
        .map(|(&[b, _, r], &y)| {
            let of = |v: u8, by: f32| to_u8((f32::from(v) - f32::from(y)) * by + 128.0);
            [of(r, 0.713), of(b, 0.564)]
        })
        .collect();
    change(&mut plane, size);
    for ((pixel, y), [red, blue]) in pixels.iter_mut().zip(plane).zip(differences) {
        let (y, red, blue) = (f32::from(y), f32::from(red) - 128.0, f32::from(blue) - 128.0);
        *pixel = [y + 1.773 * blue, y - 0.714 * red - 0.344 * blue, y + 1.403 * red].map(to_u8);
    }
}

/// Makes the histogram even: the darkest value becomes 0, the others what part of the pixels is not above them.
fn equalize(plane: &mut [u8]) {
    let mut histogram = [0usize; 256];
    plane.iter().for_each(|v| histogram[usize::from(*v)] += 1);
    let Some(darkest) = histogram.iter().position(|n| *n > 0) else { return };
    let others = plane.len() - histogram[darkest];
    if others == 0 {
        return;
    }
    let (mut sum, mut table) = (0, [0u8; 256]);
    for v in darkest + 1..256 {
        sum += histogram[v];
        table[v] = to_u8(sum as f32 * 255.0 / others as f32);
    }
    plane.iter_mut().for_each(|v| *v = table[usize::from(*v)]);
}

/// The same by tiles, with what stands out of the histograms spread evenly.
fn equalize_tiles(plane: &mut [u8], [height, width]: [usize; 2]) {
    // As OpenCV has it: where a side does not divide, the other one is made longer too.
    let longer = usize::from(!(height.is_multiple_of(TILES) && width.is_multiple_of(TILES)));
    let (rows, columns) = (height / TILES + longer, width / TILES + longer);
    let limit = (LIMIT * rows * columns / 256).max(1);
    let table = |tile: usize| -> [u8; 256] {
        let (top, left) = (tile / TILES * rows, tile % TILES * columns);
        let mut histogram = [0usize; 256];
        for y in top..top + rows {
            for x in left..left + columns {
                histogram[usize::from(plane[mirrored(y as isize, height) * width + mirrored(x as isize, width)])] += 1;
            }
        }
        let over: usize = histogram.iter().map(|n| n.saturating_sub(limit)).sum();
        histogram.iter_mut().for_each(|n| *n = (*n).min(limit) + over / 256);
        let left_over = over % 256;
        if let Some(step) = 256usize.checked_div(left_over) {
            histogram.iter_mut().step_by(step).take(left_over).for_each(|n| *n += 1);
        }
        let mut sum = 0;
        histogram.map(|n| {
            sum += n;
            to_u8(sum as f32 * 255.0 / (rows * columns) as f32)
        })
    };
    let tables: Vec<[u8; 256]> = (0..TILES * TILES).map(table).collect();
    let between = |at: usize, len: usize| {
        let at = at as f32 / len as f32 - 0.5;
        let (low, part) = (at.floor(), at - at.floor());
        let tile = |t: f32| t.clamp(0.0, (TILES - 1) as f32) as usize;
        (tile(low), tile(low + 1.0), part)
    };
    for (i, v) in plane.iter_mut().enumerate() {
        let ((above, below, down), (left, right, across)) = (between(i / width, rows), between(i % width, columns));
        let at = |row: usize, column: usize| f32::from(tables[row * TILES + column][usize::from(*v)]);
        let blend = |row: usize| at(row, left) * (1.0 - across) + at(row, right) * across;
        *v = to_u8(blend(above) * (1.0 - down) + blend(below) * down);
    }
}

/// A place beyond an axis's ends, seen in a mirror on its last element.
fn mirrored(at: isize, len: usize) -> usize {
    let last = len as isize - 1;
    let round = at.rem_euclid((2 * last).max(1));
    round.min((2 * last - round).abs()) as usize
}

/// The Gaussian of 7 × 7 with a deviation of 1.5.
fn blurred(image: &Raster) -> Result<Raster, BadImage> {
    let weight = |k: usize| (-(k as f32 - 3.0).powi(2) / (2.0 * 1.5 * 1.5)).exp();
    let sum: f32 = (0..7).map(weight).sum();
    let weights: [f32; 7] = std::array::from_fn(|k| weight(k) / sum);
    let Extent { channels, height, width } = image.extent;
    let mut out = Raster::zeros(image.extent)?;
    let row_len = width * channels;
    let mut row = vec![0.0f32; row_len];
    for (y, out) in out.data.chunks_exact_mut(row_len).enumerate() {
        row.fill(0.0);
        for (k, w) in weights.iter().enumerate() {
            let from = &image.data[mirrored(y as isize + k as isize - 3, height) * row_len..][..row_len];
            row.iter_mut().zip(from).for_each(|(sum, &v)| *sum += w * f32::from(v));
        }
        for (i, out) in out.iter_mut().enumerate() {
            let (x, c) = ((i / channels) as isize, i % channels);
            let taps = weights.iter().enumerate();
            *out = to_u8(taps.map(|(k, w)| w * row[mirrored(x + k as isize - 3, width) * channels + c]).sum());
        }
    }
    Ok(out)
}

/// Each pixel the darkest of itself and its four neighbours, channel by channel.
fn eroded(image: &Raster) -> Result<Raster, BadImage> {
    let Extent { channels, height, width } = image.extent;
    let mut out = Raster::zeros(image.extent)?;
    let row = width * channels;
    for (i, v) in out.data.iter_mut().enumerate() {
        let (y, x) = (i / row, i % row / channels);
        let of = |is_there: bool, at: usize| if is_there { image.data[at] } else { u8::MAX };
        let beside = [of(x > 0, i.wrapping_sub(channels)), of(x + 1 < width, i + channels)];
        let over = [of(y > 0, i.wrapping_sub(row)), of(y + 1 < height, i + row)];
        *v = beside.into_iter().chain(over).fold(image.data[i], u8::min);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lgm_core::rng::Philox;

    fn param(text: &str) -> NoiseParameter {
        let layer = format!("layer {{ transform_param {{ noise_param {{ {text} }} }} }}");
        lgm_testkit::parse_layer(&layer).unwrap().transform_param.unwrap().noise_param.remove(0)
    }

    fn gray(height: usize, width: usize, data: Vec<u8>) -> Raster {
        Raster { extent: Extent { channels: 1, height, width }, data }
    }

    fn done(text: &str, image: Raster) -> Vec<u8> {
        noise(image, &param(text), &mut Philox::new(1, 1).from(0)).unwrap().data
    }

    #[test]
    fn each_effect() {
        let color = Raster { extent: Extent { channels: 3, height: 1, width: 2 }, data: vec![255, 0, 0, 0, 255, 255] };
        assert_eq!(done("decolorize: true", color.clone()), [29, 29, 29, 226, 226, 226]);
        assert_eq!(done("convert_to_hsv: true", color.clone()), [120, 255, 255, 30, 255, 255]);
        assert_eq!(done("inverse: true", color.clone()), [0, 255, 255, 255, 0, 0]);
        assert_eq!(done("posterize: true", color.clone()), [224, 32, 32, 32, 224, 224]);
        assert_eq!(done("", color.clone()), color.data);
        let dot = |v: u8, rest: u8| gray(9, 9, (0..81).map(|i| if i == 40 { v } else { rest }).collect());
        let hole = done("erode: true", dot(10, 200));
        let dark: Vec<usize> = (0..81).filter(|&i| hole[i] == 10).collect();
        assert_eq!(dark, [31, 39, 40, 41, 49]);
        assert_eq!(done("erode: true", dot(200, 10)), [10; 81]);
        let soft = done("gauss_blur: true", dot(255, 0));
        // 0.2707 of it stays in each axis.
        assert!(soft[40].abs_diff(19) <= 1 && soft[39] == soft[41] && soft[31] == soft[49] && soft[39] < soft[40]);
        assert_eq!(done("gauss_blur: true", dot(7, 7)), [7; 81]);
        assert_eq!(done("hist_eq: true", gray(1, 4, vec![10, 20, 20, 30])), [0, 170, 170, 255]);
        assert_eq!(done("hist_eq: true", gray(1, 2, vec![9, 9])), [9, 9]);
        let salted = done("saltpepper: true saltpepper_param { fraction: 0.5 value: 9 }", gray(20, 20, vec![0; 400]));
        assert!((100..=200).contains(&salted.iter().filter(|v| **v == 9).count()));
        let picture = gray(16, 16, (0..=255).map(|v: u8| v / 2 + 50).collect());
        let compressed = done("jpeg: 90", picture.clone());
        assert!(compressed.iter().zip(&picture.data).all(|(a, b)| a.abs_diff(*b) < 12));
    }

    /// What OpenCV 5.0 makes of images like these: how they begin, and the sum of their values.
    #[test]
    fn results_are_opencvs() {
        let color: Vec<u8> = (0..270).map(|i| ((i * i * 7 + i * 13) % 251) as u8).collect();
        let color = Raster { extent: Extent { channels: 3, height: 9, width: 10 }, data: color };
        let grays = gray(9, 10, (0..90).map(|i| (i * i * 5 % 201) as u8).collect());
        let large = gray(64, 48, (0..64 * 48).map(|i| (i * i / 7 % 120 + 60) as u8).collect());
        let cases: [(&str, &Raster, [u8; 24], i32, u8); 9] = [
            (
                "gauss_blur",
                &color,
                [
                    98, 98, 129, 99, 100, 125, 104, 106, 111, 115, 113, 98, 127, 117, 92, 134, 115, 92, 128, 113, 97,
                    111, 118, 101,
                ],
                31769,
                1,
            ),
            (
                "hist_eq",
                &color,
                [
                    0, 0, 33, 145, 207, 255, 101, 203, 71, 207, 104, 255, 155, 94, 44, 50, 255, 255, 216, 0, 22, 135,
                    200, 255,
                ],
                34900,
                2,
            ),
            (
                "clahe",
                &color,
                [
                    36, 56, 91, 177, 239, 255, 140, 242, 110, 255, 196, 255, 165, 104, 54, 53, 255, 255, 255, 27, 63,
                    175, 240, 255,
                ],
                40052,
                2,
            ),
            (
                "erode",
                &color,
                [0, 20, 54, 0, 0, 50, 2, 24, 50, 79, 77, 1, 13, 77, 48, 13, 13, 10, 13, 13, 48, 45, 13, 21],
                10188,
                0,
            ),
            (
                "gauss_blur",
                &grays,
                [68, 67, 69, 78, 92, 98, 95, 88, 85, 86, 79, 77, 76, 82, 92, 97, 94, 90, 89, 91, 102, 99, 91, 89],
                9020,
                1,
            ),
            (
                "hist_eq",
                &grays,
                [
                    0, 14, 34, 66, 112, 163, 223, 63, 155, 9, 126, 6, 149, 54, 212, 158, 100, 49, 26, 252, 241, 246,
                    20, 43,
                ],
                11550,
                0,
            ),
            (
                "clahe",
                &grays,
                [
                    64, 191, 128, 191, 128, 191, 255, 128, 191, 64, 255, 128, 255, 128, 255, 128, 96, 64, 64, 255, 223,
                    255, 64, 128,
                ],
                12710,
                0,
            ),
            (
                "erode",
                &grays,
                [0, 0, 5, 20, 45, 80, 44, 38, 3, 3, 0, 2, 2, 32, 41, 74, 38, 12, 12, 3, 78, 2, 8, 8],
                3174,
                0,
            ),
            (
                "clahe",
                &large,
                [27, 27, 27, 32, 36, 39, 40, 42, 48, 53, 61, 69, 69, 71, 76, 80, 99, 103, 106, 122, 133, 154, 156, 166],
                379852,
                1,
            ),
        ];
        for (effect, image, begin, sum, apart) in cases {
            let found = done(&format!("{effect}: true"), image.clone());
            let near = found.iter().zip(begin).all(|(a, b)| a.abs_diff(b) <= apart);
            assert!(near, "{effect} of {} channels: {:?}, not {begin:?}", image.extent.channels, &found[..24]);
            let of_all: i32 = found.iter().map(|v| i32::from(*v)).sum();
            let most = i32::from(apart) * found.len() as i32 / 4;
            assert!((of_all - sum).abs() <= most, "{effect}: {of_all}, not {sum}");
        }
    }

    #[test]
    fn colours_are_kept_where_the_luminance_changes() {
        let data: Vec<u8> = [[0, 0, 200], [0, 200, 0], [200, 0, 0], [50, 60, 70]].concat();
        let image = Raster { extent: Extent { channels: 3, height: 2, width: 2 }, data };
        let found = done("hist_eq: true", image);
        assert!(found[2] > found[0] && found[2] > found[1] && found[4] > found[3], "{found:?}");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, channels, needles) in [
            ("convert_to_lab: true", 3, &["convert_to_lab"][..]),
            ("decolorize: true", 1, &["decolorize", "3 channels", "found 1"]),
            ("inverse: true", 4, &["noise_param", "found 4"]),
            ("jpeg: 101", 3, &["jpeg", "101"]),
            ("jpeg: 0.5", 3, &["jpeg", "0.5"]),
            ("saltpepper: true", 3, &["saltpepper_param", "3 channels", "found 0"]),
            ("saltpepper: true saltpepper_param { value: 1 fraction: 2 }", 3, &["fraction", "found 2"]),
        ] {
            lgm_testkit::says(&check(&param(text), channels).unwrap_err().to_string(), needles);
        }
    }
}
