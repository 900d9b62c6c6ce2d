//! `batch_sampler`: windows of an image, drawn at random, that its objects have to lie in as asked for.

use lgm_core::rng::Sequence;
use lgm_core::{Result, ensure};
use lgm_proto::{BatchSampler, SampleConstraint, Sampler};

use super::boxes::{Corners, Object, coverage, iou};

/// Checks what samplers ask for.
///
/// # Errors
/// When a range cannot be drawn from.
pub(super) fn check(samplers: &[BatchSampler]) -> Result<()> {
    for sampler in samplers.iter().map(|s| s.sampler.unwrap_or_default()) {
        let (from, to) = (sampler.min_scale(), sampler.max_scale());
        ensure!(
            0.0 < from && from <= to && to <= 1.0,
            "min_scale to max_scale must be a range within 0 (not itself) and 1, found {from} to {to}"
        );
        let (from, to) = (sampler.min_aspect_ratio(), sampler.max_aspect_ratio());
        ensure!(
            0.0 < from && from <= to && to < f32::MAX,
            "min_aspect_ratio to max_aspect_ratio must be a range of positive numbers, found {from} to {to}"
        );
    }
    Ok(())
}

/// A window whose area is about the square of a scale, and whose width is an aspect ratio of its height.
fn draw(sampler: &Sampler, random: &mut Sequence) -> Corners {
    let mut between = |from: f32, to: f32| random.uniform(from.into(), to.into()) as f32;
    let scale = between(sampler.min_scale(), sampler.max_scale());
    let ratio = between(sampler.min_aspect_ratio(), sampler.max_aspect_ratio());
    // So that neither side is longer than the image's.
    let ratio = ratio.max(scale * scale).min(1.0 / (scale * scale)).sqrt();
    let (width, height) = ((scale * ratio).min(1.0), (scale / ratio).min(1.0));
    let (x, y) = (between(0.0, 1.0 - width), between(0.0, 1.0 - height));
    [x, y, x + width, y + height]
}

/// Whether there is an object that lies to a window as a constraint asks; without any, every window will do.
fn is_met(window: Corners, objects: &[Object], c: &SampleConstraint) -> bool {
    let limits = [
        (c.min_jaccard_overlap, c.max_jaccard_overlap),
        (c.min_sample_coverage, c.max_sample_coverage),
        (c.min_object_coverage, c.max_object_coverage),
    ];
    let is_within = |v: f32, (least, most): (Option<f32>, Option<f32>)| {
        least.is_none_or(|least| v >= least) && most.is_none_or(|most| v <= most)
    };
    let fits = |object: &Object| {
        let of = [iou(window, object.corners), coverage(window, object.corners), coverage(object.corners, window)];
        of.into_iter().zip(limits).all(|(v, limits)| is_within(v, limits))
    };
    limits.iter().all(|limits| *limits == (None, None)) || objects.iter().any(fits)
}

/// One of the windows that the samplers find, or none where they find none.
pub(super) fn sample(samplers: &[BatchSampler], objects: &[Object], random: &mut Sequence) -> Option<Corners> {
    let mut found = Vec::new();
    for sampler in samplers.iter().filter(|s| s.use_original_image()) {
        let (of, constraint) = (sampler.sampler.unwrap_or_default(), sampler.sample_constraint.unwrap_or_default());
        let most = sampler.max_sample.map_or(usize::MAX, |most| most as usize);
        let before = found.len();
        for _ in 0..sampler.max_trials() {
            if found.len() - before >= most {
                break;
            }
            let window = draw(&of, random);
            if is_met(window, objects, &constraint) {
                found.push(window);
            }
        }
    }
    if found.is_empty() { None } else { Some(found[random.below(found.len())]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lgm_core::rng::Philox;

    fn samplers(text: &str) -> Vec<BatchSampler> {
        let layer = format!("layer {{ annotated_data_param {{ {text} }} }}");
        lgm_testkit::parse_layer(&layer).unwrap().annotated_data_param.unwrap().batch_sampler
    }

    const OBJECT: Object = Object { class: 1, instance: 0, corners: [0.3, 0.3, 0.6, 0.7], difficult: false };

    #[test]
    fn windows_are_as_asked_for() {
        let of = "sampler { min_scale: 0.3 max_scale: 0.9 min_aspect_ratio: 0.5 max_aspect_ratio: 2 }";
        let one = |constraint: &str| {
            samplers(&format!(
                "batch_sampler {{ max_sample: 1 max_trials: 50 {of} sample_constraint {{ {constraint} }} }}"
            ))
        };
        let mut met = 0;
        for i in 0..300 {
            let mut random = Philox::new(1, i).from(0);
            if let Some(w) = sample(&one("min_jaccard_overlap: 0.4"), &[OBJECT], &mut random) {
                assert!(iou(w, OBJECT.corners) >= 0.4 && w.iter().all(|v| (0.0..=1.0).contains(v)), "{w:?}");
                let (width, height) = (w[2] - w[0], w[3] - w[1]);
                let (scale, ratio) = ((width * height).sqrt(), width / height);
                assert!((0.299..0.901).contains(&scale) && (0.49..2.01).contains(&ratio), "{w:?}");
                met += 1;
            }
            let far = sample(&one("max_jaccard_overlap: 0.1 max_object_coverage: 0.2"), &[OBJECT], &mut random);
            assert!(far.is_none_or(|w| iou(w, OBJECT.corners) <= 0.1 && coverage(OBJECT.corners, w) <= 0.2));
            let covered = sample(&one("min_sample_coverage: 0.3"), &[OBJECT], &mut random);
            assert!(covered.is_none_or(|w| coverage(w, OBJECT.corners) >= 0.3));
        }
        assert!(met > 250, "{met}");
    }

    #[test]
    fn the_whole_image_is_one_of_the_windows() {
        let both = "batch_sampler { max_sample: 1 max_trials: 1 } batch_sampler { max_sample: 1 sampler { min_scale: 0.5 max_scale: 0.5 } }";
        let draws = (0..200).map(|i| sample(&samplers(both), &[], &mut Philox::new(1, i).from(0)));
        let whole = draws.filter(|w| *w == Some([0.0, 0.0, 1.0, 1.0])).count();
        assert!((70..130).contains(&whole), "{whole}");
        assert_eq!(sample(&[], &[OBJECT], &mut Philox::new(1, 1).from(0)), None);
        let never = samplers("batch_sampler { max_trials: 3 sample_constraint { min_jaccard_overlap: 0.1 } }");
        assert_eq!(sample(&never, &[], &mut Philox::new(1, 1).from(0)), None);
        let off = samplers("batch_sampler { use_original_image: false }");
        assert_eq!(sample(&off, &[], &mut Philox::new(1, 1).from(0)), None);
    }

    #[test]
    fn ranges_are_checked() {
        for (text, needles) in [
            ("min_scale: 0", &["min_scale to max_scale", "found 0 to 1"][..]),
            ("max_scale: 1.5", &["found 1 to 1.5"]),
            ("min_aspect_ratio: 2", &["min_aspect_ratio to max_aspect_ratio", "found 2 to 1"]),
        ] {
            let text = check(&samplers(&format!("batch_sampler {{ sampler {{ {text} }} }}"))).unwrap_err().to_string();
            lgm_testkit::says(&text, needles);
        }
    }
}
