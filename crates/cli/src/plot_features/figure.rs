//! The scatter plot of features: points coloured by class, the centers marked, a legend.

use std::path::Path;

use lgm_core::{Error, Result, ensure};
use plotters::prelude::*;

use crate::plot::{self, Area, Axes, Drawing, Drawn, Entry, Legend, Sign, px, series};

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

/// The chart without its legend, in pixels.
const SIZE: (u32, u32) = (1090, 1000);

/// Draws a figure to a PNG or SVG file, which replaces an older one in one step.
///
/// # Errors
/// When there is nothing to draw, a label has no center, a number is not finite, or the file cannot be written.
pub fn draw(path: impl AsRef<Path>, figure: &Figure<'_>) -> Result<()> {
    check(figure)?;
    plot::write(path, figure)
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

impl Figure<'_> {
    fn legend(&self) -> Legend {
        let classes = (0..self.centers.len()).map(|k| Entry { name: k.to_string(), sign: Sign::Point(series(k)) });
        let center = Entry { name: "center".to_string(), sign: Sign::Center };
        Legend::new(classes.chain([center]).collect(), SIZE.1)
    }
}

impl Drawing for Figure<'_> {
    fn size(&self) -> (u32, u32) {
        (SIZE.0 + self.legend().width(), SIZE.1)
    }

    fn draw<B: DrawingBackend>(&self, area: &Area<B>) -> Drawn<(), B> {
        let (area, beside) = area.split_horizontally(px(SIZE.0));
        self.legend().draw(&beside)?;
        let (x, y) = ranges(self, plot::aspect(SIZE));
        let mut chart = Axes { title: self.title, names: self.axes, x, y }.draw(&area)?;
        // Fewer points can be drawn larger without hiding each other.
        let radius = if self.points.len() > 4000 { 2 } else { 3 };
        let points = self.points.iter().zip(self.labels);
        chart.draw_series(points.map(|(p, &class)| series(class).point((p[0], p[1]), radius, 0.5)))?;
        for (style, arm) in [(WHITE.stroke_width(px(6)), px(11)), (BLACK.stroke_width(px(3)), px(9))] {
            chart.draw_series(self.centers.iter().map(|c| Cross::new((c[0], c[1]), arm, style)))?;
        }
        Ok(())
    }
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
        let image = plot::pixels(&figure(&points, &labels, &centers)).unwrap();
        assert_eq!(image.height(), SIZE.1);
        let plot = SIZE.0 as usize;
        let count = |near: &dyn Fn([u8; 3]) -> bool, columns: std::ops::Range<usize>| {
            image.enumerate_pixels().filter(|(x, _, p)| columns.contains(&(*x as usize)) && near(p.0)).count()
        };
        for class in 0..10 {
            let c = series(class).color;
            let legend = |p: [u8; 3]| p == [c.0, c.1, c.2];
            assert!(count(&legend, plot..image.width() as usize) > 20, "class {class} is missing from the legend");
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
        plot::pixels(&figure(&[[3.0, 3.0]], &[0], &[[3.0, 3.0]])).unwrap();
    }

    #[test]
    fn every_class_of_many_is_in_the_legend() {
        for classes in [41, 100, 250] {
            let (points, labels, centers) = wheel(classes, 2);
            let svg = plot::svg(&figure(&points, &labels, &centers)).unwrap();
            let names = (0..classes).map(|class| format!("\n{class}\n")).filter(|name| svg.contains(name)).count();
            assert_eq!(names, classes);
        }
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
        assert_eq!(image::open(&path).unwrap().height(), SIZE.1);
    }
}
