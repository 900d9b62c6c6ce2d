//! Average precision of detections, a solver's `eval_type: "detection"`: every output of a test net holds rows as
//! DetectionEvaluate gives them, and what is told of it is the mean over classes of average precision.
//!
//! Source: Everingham et al., "The PASCAL Visual Object Classes Challenge" (2010); SSD's Caffe.

use std::collections::BTreeMap;

use lgm_core::{Error, Result, ensure};
use lgm_net::{Net, six_digits};
use tracing::{info, warn};

use crate::scores::Score;

/// Numbers of a row: image, class, score, true and false positive; of image −1, class and number of ground truths.
const ROW: usize = 5;

/// What average precision is (`ap_version`), of the precision at each recall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    /// The integral over recall.
    Integral,
    /// The integral of the greatest precision at that recall or a higher one.
    MaxIntegral,
    /// The mean of that at recalls of 0, 0.1, … 1.
    ElevenPoint,
}

/// Recalls nearer to each other than this are the same.
const SAME: f64 = 1e-6;

impl Precision {
    /// That of a name.
    ///
    /// # Errors
    /// When it is none.
    pub fn named(name: &str) -> Result<Precision> {
        match name {
            "Integral" => Ok(Precision::Integral),
            "MaxIntegral" => Ok(Precision::MaxIntegral),
            "11point" => Ok(Precision::ElevenPoint),
            _ => Err(Error::unknown_among("unknown value", name, &["Integral", "MaxIntegral", "11point"])),
        }
    }

    /// The average precision of detections, scores and whether they are right, of so many ground truths.
    fn average(self, detections: &mut [(f64, bool)], positives: f64) -> f64 {
        if detections.is_empty() || positives <= 0.0 {
            return 0.0;
        }
        // What is no number comes last; equal ones stay in their order.
        detections.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or_else(|| a.0.is_nan().cmp(&b.0.is_nan())));
        let mut right = 0.0;
        let at = |(i, (_, is_right)): (usize, &(f64, bool))| {
            right += f64::from(u8::from(*is_right));
            // Single precision, as in SSD's Caffe, where a recall of 0.7 is below seven tenths.
            (f64::from((right / positives) as f32), right / (i + 1) as f64)
        };
        let curve: Vec<(f64, f64)> = detections.iter().enumerate().map(at).collect();
        match self {
            Precision::Integral => {
                let before = std::iter::once(0.0).chain(curve.iter().map(|(recall, _)| *recall));
                let steps = curve.iter().zip(before).filter(|((recall, _), before)| recall - before > SAME);
                steps.map(|((recall, precision), before)| precision * (recall - before)).sum()
            }
            Precision::MaxIntegral => {
                let (mut sum, mut most) = (0.0, 0.0f64);
                for (i, &(recall, precision)) in curve.iter().enumerate().rev() {
                    most = most.max(precision);
                    let before = if i == 0 { 0.0 } else { curve[i - 1].0 };
                    sum += most * (recall - before);
                }
                sum
            }
            Precision::ElevenPoint => {
                let best = |tenths: u32| {
                    let reached = curve.iter().filter(|(recall, _)| *recall >= f64::from(tenths) / 10.0);
                    reached.fold(0.0f64, |best, (_, precision)| best.max(*precision))
                };
                (0..=10).map(best).sum::<f64>() / 11.0
            }
        }
    }
}

/// What an output says of one class.
#[derive(Debug, Default)]
struct Class {
    positives: f64,
    detections: Vec<(f64, bool)>,
}

/// What the outputs of a test net say, over its passes.
#[derive(Debug, Default)]
pub(crate) struct Evaluation {
    outputs: Vec<(String, BTreeMap<i64, Class>)>,
}

impl Evaluation {
    /// Takes up the outputs of a pass.
    ///
    /// # Errors
    /// When they are no rows of DetectionEvaluate, or cannot be read.
    pub fn add(&mut self, net: &Net) -> Result<()> {
        for (i, name) in net.outputs().into_iter().enumerate() {
            let (shape, values) = net.blob(name)?;
            ensure!(
                shape.last() == Some(&ROW),
                "eval_type \"detection\" needs a test net whose every output has rows of {ROW} numbers, as \
                 DetectionEvaluate gives them, but '{name}' is of shape {shape}: end other blobs in a Silence layer"
            );
            if self.outputs.len() == i {
                self.outputs.push((name.to_string(), BTreeMap::new()));
            }
            self.outputs[i].1.add(&values);
        }
        net.check()
    }

    /// The mean over classes of each output's average precision; each class's is logged if asked for.
    pub fn scores(self, precision: Precision, show: bool) -> Vec<Score> {
        let mean = |(blob, classes): (String, BTreeMap<i64, Class>)| {
            let (count, mut sum) = (classes.len().max(1), 0.0);
            for (class, mut found) in classes {
                if found.detections.is_empty() {
                    warn!("'{blob}': nothing was detected of class {class}");
                    continue;
                }
                let average = precision.average(&mut found.detections, found.positives);
                if show {
                    info!("class{class}: {}", six_digits(average));
                }
                sum += average;
            }
            Score { blob, value: sum / count as f64 }
        };
        self.outputs.into_iter().map(mean).collect()
    }
}

/// The classes of an output, from rows.
trait Add {
    fn add(&mut self, rows: &[f64]);
}

impl Add for BTreeMap<i64, Class> {
    fn add(&mut self, rows: &[f64]) {
        for row in rows.chunks_exact(ROW) {
            let class = row[1] as i64;
            match (row[0], row[3] != 0.0, row[4] != 0.0) {
                // A row that is not used.
                _ if class < 0 => {}
                (-1.0, ..) => self.entry(class).or_default().positives += row[2],
                // What finds a difficult ground truth that does not count.
                (_, false, false) => {}
                (_, is_right, _) => self.entry(class).or_default().detections.push((row[2], is_right)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn average_precisions() {
        let average = |precision: Precision, right: &[bool], positives: f64| {
            let mut detections: Vec<(f64, bool)> =
                right.iter().enumerate().map(|(i, right)| (-(i as f64), *right)).collect();
            detections.reverse();
            precision.average(&mut detections, positives)
        };
        let (integral, most, eleven) = (Precision::Integral, Precision::MaxIntegral, Precision::ElevenPoint);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a}, not {b}");
        for precision in [integral, most, eleven] {
            near(average(precision, &[true, true], 2.0), 1.0);
            near(average(precision, &[false, false], 2.0), 0.0);
            near(average(precision, &[], 2.0), 0.0);
            near(average(precision, &[false], 0.0), 0.0);
        }
        // Right, wrong, right, right: precisions 1, 1/2, 2/3, 3/4 at recalls 1/4, 1/4, 1/2, 3/4.
        let ranked = [true, false, true, true];
        near(average(integral, &ranked, 4.0), (1.0 + 2.0 / 3.0 + 0.75) / 4.0);
        near(average(most, &ranked, 4.0), (1.0 + 0.75 + 0.75) / 4.0);
        near(average(eleven, &ranked, 4.0), (3.0 + 5.0 * 0.75) / 11.0);
        let mut unordered = [(f64::NAN, true), (0.5, false), (0.9, true)];
        near(integral.average(&mut unordered, 2.0), (1.0 + 2.0 / 3.0) / 2.0);
    }

    #[test]
    fn classes_without_detections_count_as_zero() {
        let mut classes = BTreeMap::new();
        classes.add(
            &[
                [-1.0, 1.0, 2.0, -1.0, -1.0],
                [-1.0, 2.0, 1.0, -1.0, -1.0],
                [0.0, 1.0, 0.9, 1.0, 0.0],
                [0.0, 1.0, 0.8, 0.0, 0.0],
                [-1.0; 5],
            ]
            .concat(),
        );
        classes.add(&[[-1.0, 1.0, 1.0, -1.0, -1.0], [3.0, 1.0, 0.7, 0.0, 1.0]].concat());
        assert_eq!(classes[&1].positives, 3.0);
        assert_eq!(classes[&1].detections, [(0.9, true), (0.7, false)]);
        let scores = Evaluation { outputs: vec![("d".into(), classes)] }.scores(Precision::Integral, true);
        assert!((scores[0].value - 1.0 / 3.0 / 2.0).abs() < 1e-6);
    }

    #[test]
    fn names() {
        assert_eq!(Precision::named("11point").unwrap(), Precision::ElevenPoint);
        let text = Precision::named("12point").unwrap_err().to_string();
        lgm_testkit::says(&text, &["12point", "did you mean '11point'", "MaxIntegral"]);
    }
}
