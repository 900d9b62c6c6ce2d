//! The scatter plot of features: points coloured by class, the centers marked, a legend.

use std::path::Path;

use lgm_core::{Error, Result, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::picture::{self, SIZE, scaled};

/// A point of the plane: of features, or of their first two principal components.
pub type Point = [f64; 2];

/// What a figure shows.
#[derive(Clone, Debug)]
pub struct Figure<'a> {
    /// The headline.
    pub title: &'a str,
    /// The names of the two axes.
    pub axes: [&'a str; 2],
    /// Features.
    pub points: &'a [Point],
    /// The class of each point.
    pub labels: &'a [usize],
    /// The center of each class.
    pub centers: &'a [Point],
}

const LEGEND_WIDTH: u32 = 110;
/// Legends of more classes would not fit; their colours are hard to tell apart anyway.
const MAX_LEGEND: usize = 40;

/// Draws a figure to a PNG file, which replaces an older one in one step.
///
/// # Errors
/// When there is nothing to draw, a label has no center, a number is not finite, or the file cannot be written.
pub fn draw(path: impl AsRef<Path>, figure: &Figure<'_>) -> Result<()> {
    let path = path.as_ref();
    check(figure)?;
    picture::write(path, render(figure))
}

fn check(figure: &Figure<'_>) -> Result<()> {
    let (points, labels, classes) = (figure.points.len(), figure.labels.len(), figure.centers.len());
    ensure!(points > 0, "there are no features to plot");
    ensure!(points == labels, "{points} features came with {labels} labels; expected one label a feature");
    if let Some(label) = figure.labels.iter().find(|&&l| l >= classes) {
        return Err(Error::config(format!("label {label} has no center: the classifier has {classes} classes")));
    }
    let bad = figure.points.iter().chain(figure.centers).flatten().filter(|v| !v.is_finite()).count();
    ensure!(bad == 0, "{bad} coordinates are infinite or not a number; did the training diverge?");
    Ok(())
}

type Drawn<T, E> = std::result::Result<T, DrawingAreaErrorKind<E>>;

fn render(figure: &Figure<'_>) -> std::result::Result<image::RgbImage, Box<dyn std::error::Error>> {
    picture::render(|root| {
        let classes = figure.centers.len();
        let plot = if classes <= MAX_LEGEND {
            let (plot, legend) = root.split_horizontally(scaled(SIZE.0 - LEGEND_WIDTH));
            draw_legend(&legend, classes)?;
            plot
        } else {
            root.clone()
        };
        Ok(draw_plot(&plot, figure)?)
    })
}

fn draw_plot<B: DrawingBackend>(area: &DrawingArea<B, Shift>, figure: &Figure<'_>) -> Drawn<(), B::ErrorType> {
    let (title_height, tick_width) = (scaled(48), scaled(64));
    let margin = scaled(14);
    let (width, height) = area.dim_in_pixel();
    let inner = (width - tick_width - 2 * margin, height - title_height - tick_width - 2 * margin);
    let (x, y) = ranges(figure, inner.0 as f64 / inner.1 as f64);
    let mut chart = ChartBuilder::on(area)
        .margin(margin)
        .caption(figure.title, ("sans-serif", scaled(24)))
        .x_label_area_size(tick_width)
        .y_label_area_size(tick_width)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .bold_line_style(BLACK.mix(0.1))
        .light_line_style(TRANSPARENT)
        .x_desc(figure.axes[0])
        .y_desc(figure.axes[1])
        .label_style(("sans-serif", scaled(16)))
        .axis_desc_style(("sans-serif", scaled(18)))
        .draw()?;
    let classes = figure.centers.len();
    // Fewer points can be drawn larger without hiding each other.
    let radius = if figure.points.len() > 4000 { scaled(2) } else { scaled(3) };
    chart.draw_series(
        figure
            .points
            .iter()
            .zip(figure.labels)
            .map(|(p, &class)| Circle::new((p[0], p[1]), radius, color(class, classes).mix(0.5).filled())),
    )?;
    for (style, arm) in [(WHITE.stroke_width(scaled(6)), scaled(11)), (BLACK.stroke_width(scaled(3)), scaled(9))] {
        chart.draw_series(figure.centers.iter().map(|c| Cross::new((c[0], c[1]), arm, style)))?;
    }
    Ok(())
}

fn draw_legend<B: DrawingBackend>(area: &DrawingArea<B, Shift>, classes: usize) -> Drawn<(), B::ErrorType> {
    let (_, height) = area.dim_in_pixel();
    let step = (height as i32 - scaled(90) as i32) / (classes as i32 + 1).max(16);
    let size = (step as f64 * 0.7).min(scaled(18) as f64);
    let style = TextStyle::from(("sans-serif", size)).pos(Pos::new(HPos::Left, VPos::Center));
    let (left, text_left) = (scaled(14) as i32, scaled(30) as i32);
    for class in 0..=classes {
        let y = scaled(70) as i32 + class as i32 * step;
        let name = if class < classes {
            area.draw(&Circle::new((left, y), scaled(6), color(class, classes).filled()))?;
            class.to_string()
        } else {
            area.draw(&Cross::new((left, y), scaled(6), BLACK.stroke_width(scaled(3))))?;
            "center".to_string()
        };
        area.draw(&Text::new(name, (text_left, y), style.clone()))?;
    }
    Ok(())
}

type Range = std::ops::Range<f64>;

/// Axis ranges that hold every point and center with a margin, and have the plot's shape, so that a circle of features
/// is drawn as a circle.
fn ranges(figure: &Figure<'_>, aspect: f64) -> (Range, Range) {
    let span = |axis: usize| {
        let values = figure.points.iter().chain(figure.centers).map(|p| p[axis]);
        let (lo, hi) = values.fold((f64::MAX, f64::MIN), |(lo, hi), v| (lo.min(v), hi.max(v)));
        ((lo + hi) / 2.0, (hi - lo) / 2.0)
    };
    let ((x, half_x), (y, half_y)) = (span(0), span(1));
    let half = 1.05 * half_y.max(half_x / aspect).max(f64::MIN_POSITIVE.sqrt());
    (x - half * aspect..x + half * aspect, y - half..y + half)
}

/// Hues round the circle; neighbours differ in lightness too.
fn color(class: usize, classes: usize) -> RGBColor {
    let lightness = if class.is_multiple_of(2) { 0.42 } else { 0.6 };
    let (r, g, b) = HSLColor(class as f64 / classes.max(1) as f64, 0.85, lightness).rgb();
    RGBColor(r, g, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wheel(classes: usize, per_class: usize) -> (Vec<Point>, Vec<usize>, Vec<Point>) {
        let at = |class: usize, r: f64| {
            let (sin, cos) = (class as f64 / classes as f64 * std::f64::consts::TAU).sin_cos();
            [r * cos, r * sin]
        };
        let points =
            (0..classes * per_class).map(|i| at(i / per_class, 8.0 + 4.0 * (i % per_class) as f64 / per_class as f64));
        let labels = (0..classes * per_class).map(|i| i / per_class).collect();
        (points.collect(), labels, (0..classes).map(|class| at(class, 10.0)).collect())
    }

    fn figure<'a>(points: &'a [Point], labels: &'a [usize], centers: &'a [Point]) -> Figure<'a> {
        Figure { title: "ip1 of net", axes: ["x", "y"], points, labels, centers }
    }

    #[test]
    fn every_class_and_center_is_drawn() {
        let (points, labels, centers) = wheel(10, 8);
        let image = render(&figure(&points, &labels, &centers)).unwrap();
        assert_eq!(image.dimensions(), SIZE);
        let plot = (SIZE.0 - LEGEND_WIDTH) as usize;
        let count = |near: &dyn Fn([u8; 3]) -> bool, columns: std::ops::Range<usize>| {
            image.enumerate_pixels().filter(|(x, _, p)| columns.contains(&(*x as usize)) && near(p.0)).count()
        };
        for class in 0..10 {
            let c = color(class, 10);
            let legend = |p: [u8; 3]| p == [c.0, c.1, c.2];
            assert!(count(&legend, plot..SIZE.0 as usize) > 50, "class {class} is missing from the legend");
            // Half-transparent points lie between the colour and white.
            let half = |v: u8| (v as i32 + 255) / 2;
            let point = |p: [u8; 3]| [c.0, c.1, c.2].iter().zip(p).all(|(&v, q)| (half(v) - q as i32).abs() < 12);
            assert!(count(&point, 0..plot) > 50, "class {class} is missing from the plot");
        }
        assert!(count(&|p| p == [0, 0, 0], 0..plot) > 10 * 30, "the centers are missing");
    }

    #[test]
    fn a_circle_stays_a_circle_and_one_point_is_enough() {
        let (points, labels, centers) = wheel(4, 10);
        let (x, y) = ranges(&figure(&points, &labels, &centers), 1.25);
        assert!(((x.end - x.start) / (y.end - y.start) - 1.25).abs() < 1e-12);
        assert!(x.contains(&12.0) && y.contains(&-11.6));
        render(&figure(&[[3.0, 3.0]], &[0], &[[3.0, 3.0]])).unwrap();
        let (points, labels, centers) = wheel(MAX_LEGEND + 1, 2);
        render(&figure(&points, &labels, &centers)).unwrap();
    }

    #[test]
    fn what_cannot_be_drawn_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.png");
        let error = |f: Figure<'_>| draw(&path, &f).unwrap_err().to_string();
        assert!(error(figure(&[], &[], &[[0.0; 2]])).contains("no features"));
        assert!(error(figure(&[[0.0; 2]], &[0, 1], &[[0.0; 2]])).contains("1 features came with 2 labels"));
        assert!(error(figure(&[[0.0; 2]], &[3], &[[0.0; 2]])).contains("label 3 has no center"));
        assert!(error(figure(&[[f64::NAN, 0.0]], &[0], &[[0.0; 2]])).contains("not a number"));
        assert!(!path.exists());
        draw(&path, &figure(&[[0.0; 2]], &[0], &[[1.0; 2]])).unwrap();
        assert_eq!(image::open(&path).unwrap().width(), SIZE.0);
    }
}
