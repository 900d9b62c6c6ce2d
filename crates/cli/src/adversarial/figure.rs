//! The figure of ROC curves.

use plotters::prelude::*;

use super::Detection;
use crate::plot::{Area, Axes, Drawing, Drawn, Entry, Legend, Sign, px, series};

/// The chart without its legend, in pixels.
const SIZE: (u32, u32) = (900, 900);

/// ROC curves in one chart.
pub struct Curves<'a> {
    /// The headline.
    pub title: &'a str,
    /// A curve each.
    pub detections: &'a [Detection],
}

impl Curves<'_> {
    fn legend(&self) -> Legend {
        let entry = |(number, detection): (usize, &Detection)| Entry {
            name: format!("{:.4} {}, {}", detection.roc.area, detection.of, detection.score.name()),
            sign: Sign::Line(series(number)),
        };
        Legend::new(self.detections.iter().enumerate().map(entry).collect(), SIZE.1)
    }
}

impl Drawing for Curves<'_> {
    fn size(&self) -> (u32, u32) {
        (SIZE.0 + self.legend().width(), SIZE.1)
    }

    fn draw<B: DrawingBackend>(&self, area: &Area<B>) -> Drawn<(), B> {
        let (area, beside) = area.split_horizontally(px(SIZE.0));
        self.legend().draw(&beside)?;
        let names = ["clean inputs below the threshold", "abnormal inputs below the threshold"];
        let mut chart = Axes { title: self.title, names, x: 0.0..1.0, y: 0.0..1.0 }.draw(&area)?;
        chart.draw_series([PathElement::new([(0.0, 0.0), (1.0, 1.0)], BLACK.mix(0.3).stroke_width(px(1)))])?;
        for (number, detection) in self.detections.iter().enumerate() {
            let points = detection.roc.points.iter().map(|p| (p[0], p[1])).collect();
            chart.draw_series([series(number).line(points)])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adversarial::Score;
    use crate::detect::roc::roc;
    use crate::plot;

    #[test]
    fn every_curve_has_its_colour_and_its_area_in_the_legend() {
        let detection = |score, abnormal: &[f64]| Detection {
            of: "letters".into(),
            score,
            roc: roc(&[1.0, 2.0, 3.0, 4.0], abnormal).unwrap(),
        };
        let all = [detection(Score::Likelihood, &[0.0, 2.5]), detection(Score::Probability, &[2.5, 5.0])];
        let curves = Curves { title: "ROC", detections: &all };
        let image = plot::pixels(&curves).unwrap();
        for color in [0, 1].map(|number| series(number).color) {
            let found = image.pixels().filter(|p| p.0 == [color.0, color.1, color.2]).count();
            assert!(found > 300, "{color:?}: {found} pixels");
        }
        let svg = plot::svg(&curves).unwrap();
        assert!(svg.contains("0.7500 letters, likelihood"), "{svg}");
    }
}
