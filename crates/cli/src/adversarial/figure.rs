//! The figure of ROC curves.

use std::error::Error as StdError;
use std::path::Path;

use lgm_core::Result;
use plotters::prelude::*;

use super::Detection;
use crate::picture::{self, Paper, scaled};

/// Colours of curves, by score.
const COLORS: [RGBColor; 4] =
    [RGBColor(31, 90, 180), RGBColor(60, 150, 220), RGBColor(220, 110, 20), RGBColor(40, 150, 60)];

/// Curves drawn at the most; the file of points has all of them.
const MOST: usize = 16;

/// Draws curves to a PNG file; those of one score have one colour, each kind of abnormal item its own width.
///
/// # Errors
/// When the file cannot be written.
pub fn draw(path: &Path, title: &str, detections: &[Detection]) -> Result<()> {
    picture::write(path, picture::render(|paper| curves(paper, title, &detections[..detections.len().min(MOST)])))
}

fn curves(paper: &Paper<'_>, title: &str, detections: &[Detection]) -> std::result::Result<(), Box<dyn StdError>> {
    let mut chart = ChartBuilder::on(paper)
        .margin(scaled(20))
        .caption(title, ("sans-serif", scaled(24)))
        .x_label_area_size(scaled(64))
        .y_label_area_size(scaled(64))
        .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
    chart
        .configure_mesh()
        .bold_line_style(BLACK.mix(0.1))
        .light_line_style(TRANSPARENT)
        .x_desc("clean inputs below the threshold")
        .y_desc("abnormal inputs below the threshold")
        .label_style(("sans-serif", scaled(16)))
        .axis_desc_style(("sans-serif", scaled(18)))
        .draw()?;
    chart.draw_series([PathElement::new([(0.0, 0.0), (1.0, 1.0)], BLACK.mix(0.3).stroke_width(scaled(1)))])?;
    let mut kinds: Vec<&str> = detections.iter().map(|d| d.of.as_str()).collect();
    kinds.dedup();
    for detection in detections {
        let kind = kinds.iter().position(|kind| *kind == detection.of).unwrap_or(0);
        let style = COLORS[detection.score as usize % COLORS.len()]
            .mix(1.0 - 0.7 * kind as f64 / kinds.len().max(1) as f64)
            .stroke_width(scaled(3));
        let points: Vec<(f64, f64)> = detection.roc.points.iter().map(|p| (p[0], p[1])).collect();
        chart
            .draw_series([PathElement::new(points, style)])?
            .label(format!("{}, {}: AUC {:.4}", detection.of, detection.score.name(), detection.roc.area))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + scaled(20) as i32, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .legend_area_size(scaled(26))
        .margin(scaled(12))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", scaled(16)))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adversarial::Score;
    use crate::detect::roc::roc;

    #[test]
    fn curves_are_drawn_in_their_colours() {
        let detection = |score, abnormal: &[f64]| Detection {
            of: "letters".into(),
            score,
            roc: roc(&[1.0, 2.0, 3.0, 4.0], abnormal).unwrap(),
        };
        let all = [detection(Score::Likelihood, &[0.0, 2.5]), detection(Score::Probability, &[2.5, 5.0])];
        let image = picture::render(|paper| curves(paper, "ROC", &all)).unwrap();
        for color in [Score::Likelihood, Score::Probability].map(|score| COLORS[score as usize]) {
            let found = image.pixels().filter(|p| p.0 == [color.0, color.1, color.2]).count();
            assert!(found > 300, "{color:?}: {found} pixels");
        }
    }
}
