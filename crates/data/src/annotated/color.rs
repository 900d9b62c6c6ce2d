//! `distort_param`: brightness, contrast, saturation and hue changed at random, and channels put in another order.
//!
//! Each is changed with its probability: brightness by adding from −`brightness_delta` to it; contrast and saturation by a factor
//! from lower to upper; hue by adding from −`hue_delta` to it, of 180 for a whole turn. One time in two contrast is changed before
//! saturation and hue, else after them; the order of the channels last. Values round to whole numbers from 0 to 255 after each
//! change, hue and saturation also as OpenCV keeps them, in 8 bits.

use lgm_core::rng::Sequence;
use lgm_core::{Result, ensure};
use lgm_proto::DistortionParameter;

use crate::image::Raster;

/// Checks what is asked for, for images of so many channels.
///
/// # Errors
/// When a range cannot be drawn from, or colours are to be changed in images that have none.
pub(super) fn check(p: &DistortionParameter, channels: usize) -> Result<()> {
    for (name, delta) in [("brightness_delta", p.brightness_delta()), ("hue_delta", p.hue_delta())] {
        ensure!(delta.is_finite() && delta >= 0.0, "{name} must be a number of at least 0, found {delta}");
    }
    for (name, prob, lower, upper) in [
        ("contrast", p.contrast_prob(), p.contrast_lower(), p.contrast_upper()),
        ("saturation", p.saturation_prob(), p.saturation_lower(), p.saturation_upper()),
    ] {
        let is_range = 0.0 <= lower && lower <= upper && upper.is_finite();
        ensure!(
            prob <= 0.0 || is_range,
            "{name}_lower to {name}_upper must be a range of numbers of at least 0, found {lower} to {upper}"
        );
    }
    let of_colors = [p.saturation_prob(), p.hue_prob(), p.random_order_prob()].iter().any(|&prob| prob > 0.0);
    ensure!(
        channels == 3 || !of_colors,
        "distort_param changes colours, which needs images of 3 channels, found {channels}; force_color makes them so"
    );
    Ok(())
}

/// Rounded to 8 bits.
pub(super) fn to_u8(v: f32) -> u8 {
    v.round_ties_even().clamp(0.0, 255.0) as u8
}

/// Changes an image.
pub(super) fn distort(image: &mut Raster, p: &DistortionParameter, random: &mut Sequence) {
    let contrast_first = random.unit() > 0.5;
    let mut drawn = |prob: f32, from: f32, to: f32| {
        let (at, value) = (random.unit(), random.uniform(from.into(), to.into()));
        (at < f64::from(prob)).then_some(value as f32)
    };
    let brightness = drawn(p.brightness_prob(), -p.brightness_delta(), p.brightness_delta());
    let contrast = drawn(p.contrast_prob(), p.contrast_lower(), p.contrast_upper());
    let saturation = drawn(p.saturation_prob(), p.saturation_lower(), p.saturation_upper());
    let hue = drawn(p.hue_prob(), -p.hue_delta(), p.hue_delta());
    let order = drawn(p.random_order_prob(), 0.0, 6.0);
    let each = |image: &mut Raster, f: &dyn Fn(f32) -> f32| {
        let table: [u8; 256] = std::array::from_fn(|v| to_u8(f(v as f32)));
        image.data.iter_mut().for_each(|v| *v = table[usize::from(*v)]);
    };
    if let Some(delta) = brightness {
        each(image, &|v| v + delta);
    }
    let factor = contrast.filter(|factor| (factor - 1.0).abs() > 1e-3);
    if let Some(factor) = factor.filter(|_| contrast_first) {
        each(image, &|v| v * factor);
    }
    if let Some(factor) = saturation {
        each_hsv(image, |[h, s, v]| [h, to_u8(f32::from(s) * factor), v]);
    }
    if let Some(delta) = hue {
        each_hsv(image, |[h, s, v]| [to_u8(f32::from(h) + delta), s, v]);
    }
    if let Some(factor) = factor.filter(|_| !contrast_first) {
        each(image, &|v| v * factor);
    }
    if let Some(order) = order {
        let [a, b, c] = ORDERS[(order as usize).min(ORDERS.len() - 1)];
        image.data.as_chunks_mut::<3>().0.iter_mut().for_each(|p| *p = [p[a], p[b], p[c]]);
    }
}

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// Changes each pixel's hue, saturation and value.
fn each_hsv(image: &mut Raster, f: impl Fn([u8; 3]) -> [u8; 3]) {
    image.data.as_chunks_mut::<3>().0.iter_mut().for_each(|p| *p = from_hsv(f(to_hsv(*p))));
}

/// Blue, green, red to hue (180 for a whole turn), saturation and value.
pub(super) fn to_hsv(bgr: [u8; 3]) -> [u8; 3] {
    let [b, g, r] = bgr.map(f32::from);
    let (most, least) = (b.max(g).max(r), b.min(g).min(r));
    let range = most - least;
    if range == 0.0 {
        return [0, 0, most as u8];
    }
    let sixths = match most {
        m if m == r => (g - b) / range,
        m if m == g => 2.0 + (b - r) / range,
        _ => 4.0 + (r - g) / range,
    };
    let hue = (30.0 * sixths).round_ties_even();
    [to_u8(if hue < 0.0 { hue + 180.0 } else { hue }), to_u8(255.0 * range / most), most as u8]
}

/// And back; hues from 180 on go round again.
pub(super) fn from_hsv([h, s, v]: [u8; 3]) -> [u8; 3] {
    let (sixths, s, v) = (f32::from(h) / 30.0 % 6.0, f32::from(s) / 255.0, f32::from(v));
    let (sector, part) = (sixths.floor(), sixths.fract());
    let levels = [v, v * (1.0 - s), v * (1.0 - s * part), v * (1.0 - s * (1.0 - part))];
    let [b, g, r] = [[1, 3, 0], [1, 0, 2], [3, 0, 1], [0, 2, 1], [0, 1, 3], [2, 1, 0]][(sector as usize).min(5)];
    [b, g, r].map(|level: usize| to_u8(levels[level]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::Extent;
    use lgm_core::rng::Philox;

    fn image(data: &[u8]) -> Raster {
        Raster { extent: Extent { channels: 3, height: 1, width: data.len() / 3 }, data: data.to_vec() }
    }

    fn param(text: &str) -> DistortionParameter {
        let layer = format!("layer {{ transform_param {{ distort_param {{ {text} }} }} }}");
        lgm_testkit::parse_layer(&layer).unwrap().transform_param.unwrap().distort_param.unwrap()
    }

    fn distorted(text: &str, stream: u64) -> Vec<u8> {
        let mut image = image(&[10, 100, 200, 0, 0, 0, 255, 250, 90]);
        distort(&mut image, &param(text), &mut Philox::new(3, stream).from(0));
        image.data
    }

    #[test]
    fn hues_are_opencvs() {
        // Red, yellow, green, cyan, blue, magenta, a gray and a brown.
        for (bgr, hsv) in [
            ([0, 0, 255], [0, 255, 255]),
            ([0, 255, 255], [30, 255, 255]),
            ([0, 255, 0], [60, 255, 255]),
            ([255, 255, 0], [90, 255, 255]),
            ([255, 0, 0], [120, 255, 255]),
            ([255, 0, 255], [150, 255, 255]),
            ([77, 77, 77], [0, 0, 77]),
            ([10, 100, 200], [14, 242, 200]),
        ] {
            assert_eq!(to_hsv(bgr), hsv);
            let back = from_hsv(hsv);
            assert!(back.iter().zip(bgr).all(|(a, b)| a.abs_diff(b) <= 3), "{bgr:?} {back:?}");
        }
        assert_eq!(from_hsv([210, 255, 255]), from_hsv([30, 255, 255]));
    }

    #[test]
    fn each_change_is_made_with_its_probability() {
        let same = vec![10, 100, 200, 0, 0, 0, 255, 250, 90];
        assert_eq!(distorted("brightness_delta: 30 contrast_lower: 2 contrast_upper: 2", 1), same);
        let twice = distorted("contrast_prob: 1 contrast_lower: 2 contrast_upper: 2", 1);
        assert_eq!(twice, [20, 200, 255, 0, 0, 0, 255, 255, 180]);
        let brighter: Vec<i32> =
            (0..50).map(|i| i32::from(distorted("brightness_prob: 0.5 brightness_delta: 30", i)[1])).collect();
        assert!(brighter.iter().all(|v| (70..=130).contains(v)));
        let changed = brighter.iter().filter(|v| **v != 100).count();
        assert!((15..35).contains(&changed), "{changed}");
        let gray = distorted("saturation_prob: 1", 1);
        assert_eq!(gray, [200, 200, 200, 0, 0, 0, 255, 255, 255]);
        let turned = distorted("hue_prob: 1 hue_delta: 18", 2);
        assert!(turned != same && to_hsv([turned[0], turned[1], turned[2]])[2] == 200, "{turned:?}");
        let orders: std::collections::BTreeSet<Vec<u8>> =
            (0..100).map(|i| distorted("random_order_prob: 1", i)).collect();
        assert_eq!(orders.len(), 6);
    }

    #[test]
    fn ranges_are_checked() {
        for (text, channels, needles) in [
            ("brightness_delta: -1", 3, &["brightness_delta", "-1"][..]),
            (
                "contrast_prob: 0.5 contrast_lower: 2 contrast_upper: 1",
                3,
                &["contrast_lower to contrast_upper", "2 to 1"],
            ),
            ("saturation_prob: 0.5 saturation_lower: -1", 3, &["saturation_lower", "-1 to 0"]),
            ("hue_prob: 0.5", 1, &["3 channels", "found 1", "force_color"]),
        ] {
            lgm_testkit::says(&check(&param(text), channels).unwrap_err().to_string(), needles);
        }
        check(&param("brightness_prob: 0.5 brightness_delta: 3"), 1).unwrap();
    }
}
