//! The scatter plot of features: points coloured by class, the centers marked, the ellipses of equal likelihood around them,
//! a map of the likelihood behind, a legend.

use lgm_core::{Error, Result, ensure};
use plotters::prelude::*;

use crate::detect::mixture::Mixture;
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
    /// The Gaussian of each class, or none.
    pub gaussians: &'a [Gaussian],
    /// The mixture whose likelihood is drawn behind; its features are the plane's points.
    pub map: Option<&'a Mixture>,
    /// What is in view.
    pub view: View,
}

/// A Gaussian in the plane.
#[derive(Clone, Copy, Debug)]
pub struct Gaussian {
    center: Point,
    /// A lower triangular factor of its covariance.
    factor: [[f64; 2]; 2],
}

/// Mahalanobis distances from the center at which ellipses are drawn.
const DISTANCES: [f64; 2] = [1.0, 2.0];
/// Corners of an ellipse.
const CORNERS: usize = 72;

impl Gaussian {
    /// Of a center and a covariance.
    pub fn new(center: Point, [[xx, xy], [_, yy]]: [[f64; 2]; 2]) -> Gaussian {
        let first = xx.max(0.0).sqrt();
        let across = if first > 0.0 { xy / first } else { 0.0 };
        Gaussian { center, factor: [[first, 0.0], [across, (yy - across * across).max(0.0).sqrt()]] }
    }

    /// The closed line of points at a Mahalanobis distance from the center.
    fn ellipse(&self, distance: f64) -> impl Iterator<Item = Point> + use<> {
        let Gaussian { center, factor } = *self;
        (0..=CORNERS).map(move |corner| {
            let (sin, cos) = (corner as f64 / CORNERS as f64 * std::f64::consts::TAU).sin_cos();
            let along = |i: usize| center[i] + distance * (factor[i][0] * cos + factor[i][1] * sin);
            [along(0), along(1)]
        })
    }

    /// The outermost ellipse that is drawn.
    pub fn outline(&self) -> impl Iterator<Item = Point> + use<> {
        self.ellipse(DISTANCES[DISTANCES.len() - 1])
    }
}

/// A rectangle of the plane that holds points.
#[derive(Clone, Copy, Debug)]
pub struct View {
    least: Point,
    greatest: Point,
}

impl Default for View {
    fn default() -> Self {
        View { least: [f64::MAX; 2], greatest: [f64::MIN; 2] }
    }
}

impl View {
    /// Grows so that it holds points.
    pub fn hold(&mut self, points: impl IntoIterator<Item = Point>) {
        for point in points {
            for (axis, value) in point.into_iter().enumerate() {
                self.least[axis] = self.least[axis].min(value);
                self.greatest[axis] = self.greatest[axis].max(value);
            }
        }
    }

    /// Axis ranges that hold it with a margin, and have the plot's shape, so that a circle of features is drawn as a circle.
    fn ranges(&self, aspect: f64) -> (Range, Range) {
        let middle = |i: usize| (self.least[i] + self.greatest[i]) / 2.0;
        let half = |i: usize| (self.greatest[i] - self.least[i]) / 2.0;
        let half = 1.05 * half(1).max(half(0) / aspect).max(f64::MIN_POSITIVE.sqrt());
        let around = |middle: f64, half: f64| middle - half..middle + half;
        (around(middle(0), half * aspect), around(middle(1), half))
    }
}

type Range = std::ops::Range<f64>;

/// The chart without its legend, in pixels.
const SIZE: (u32, u32) = (1090, 1000);

/// Whether a figure can be drawn.
///
/// # Errors
/// When there is nothing to draw, a label has no center or a number is not finite.
pub fn check(figure: &Figure<'_>) -> Result<()> {
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
        let mut entries: Vec<Entry> = classes.collect();
        entries.push(Entry { name: "center".to_string(), sign: Sign::Center });
        if self.map.is_some() {
            entries.extend(
                (0..BANDS).map(|band| Entry {
                    name: format!("peak − {}", (band + 1) * BAND),
                    sign: Sign::Patch(shade(band)),
                }),
            );
        }
        Legend::new(entries, SIZE.1)
    }
}

impl Drawing for Figure<'_> {
    fn size(&self) -> (u32, u32) {
        (SIZE.0 + self.legend().width(), SIZE.1)
    }

    fn draw<B: DrawingBackend>(&self, area: &Area<B>) -> Drawn<(), B> {
        let (area, beside) = area.split_horizontally(px(SIZE.0));
        self.legend().draw(&beside)?;
        let (x, y) = self.view.ranges(plot::aspect(SIZE));
        let mut chart = Axes { title: self.title, names: self.axes, x: x.clone(), y: y.clone() }.draw(&area)?;
        if let Some(mixture) = self.map {
            let peak = self.centers.iter().map(|c| mixture.judge(c).mixture).fold(f64::NEG_INFINITY, f64::max);
            let patches = patches(&x, &y, |point| (peak - mixture.judge(&point).mixture) / BAND as f64);
            chart.draw_series(
                patches.into_iter().map(|(corners, band)| Rectangle::new(corners, shade(band).filled())),
            )?;
        }
        // Fewer points can be drawn larger without hiding each other.
        let radius = if self.points.len() > 4000 { 2 } else { 3 };
        let points = self.points.iter().zip(self.labels);
        chart.draw_series(points.map(|(p, &class)| series(class).point((p[0], p[1]), radius, 0.5)))?;
        for (class, gaussian) in self.gaussians.iter().enumerate() {
            let line = |distance| series(class).line(gaussian.ellipse(distance).map(|p| (p[0], p[1])).collect());
            chart.draw_series(DISTANCES.map(line))?;
        }
        for (style, arm) in [(WHITE.stroke_width(px(6)), px(11)), (BLACK.stroke_width(px(3)), px(9))] {
            chart.draw_series(self.centers.iter().map(|c| Cross::new((c[0], c[1]), arm, style)))?;
        }
        Ok(())
    }
}

/// Bands of the map, and how far ln p falls in each.
const BANDS: usize = 6;
const BAND: usize = 2;
/// Cells of the map along an axis.
const CELLS: usize = 200;

/// The grey of a band, the darkest where the likelihood is greatest.
fn shade(band: usize) -> RGBColor {
    let grey = (180 + band * 70 / BANDS) as u8;
    RGBColor(grey, grey, grey)
}

/// Rectangles of one band each, as two corners; `depth` says how many bands a point lies below the peak.
fn patches(x: &Range, y: &Range, depth: impl Fn(Point) -> f64) -> Vec<([(f64, f64); 2], usize)> {
    let at = |range: &Range, cell: f64| range.start + (range.end - range.start) * cell / CELLS as f64;
    let mut found = Vec::new();
    for row in 0..CELLS {
        let middle = at(y, row as f64 + 0.5);
        let bands: Vec<usize> =
            (0..CELLS).map(|column| depth([at(x, column as f64 + 0.5), middle]).max(0.0) as usize).collect();
        let mut start = 0;
        for same in bands.chunk_by(|a, b| a == b) {
            let end = start + same.len();
            if same[0] < BANDS {
                let corner = |column: usize, row: usize| (at(x, column as f64), at(y, row as f64));
                found.push(([corner(start, row), corner(end, row + 1)], same[0]));
            }
            start = end;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use lgm_core::Shape;

    use super::*;
    use crate::detect::mixture::Variances;

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
        let mut view = View::default();
        view.hold(points.iter().chain(centers).copied());
        Figure { title: "ip1 of net", axes: ["x", "y"], points, labels, centers, gaussians: &[], map: None, view }
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
        let (x, y) = figure(&points, &labels, &centers).view.ranges(1.25);
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
    fn ellipses_and_the_map_show_the_mixture() {
        let variances = Variances::Lgm { floor: 0.01 };
        let centers = [[-4.0, 0.0], [4.0, 1.0]];
        let shape = (Shape::from([2, 2]), vec![-4.0, 0.0, 4.0, 1.0]);
        let mixture = Mixture::new(&shape, &(Shape::from([2]), vec![1.0, 0.25]), variances).unwrap();
        let gaussians = [[[1.0, 0.0], [0.0, 1.0]], [[0.25, 0.0], [0.0, 0.25]]];
        let gaussians: Vec<Gaussian> = centers.iter().zip(gaussians).map(|(&c, v)| Gaussian::new(c, v)).collect();
        let plain = figure(&centers, &[0, 1], &centers);
        let all = Figure { gaussians: &gaussians, map: Some(&mixture), ..plain.clone() };
        let grey = |f: &Figure<'_>| {
            let image = plot::pixels(f).unwrap();
            image.pixels().filter(|p| p.0 == [shade(0).0; 3]).count()
        };
        assert!(grey(&all) > 1000 && grey(&plain) < 100, "{} and {}", grey(&all), grey(&plain));
        assert_eq!(plot::svg(&all).unwrap().matches("\npeak − ").count(), BANDS);
        // The narrower Gaussian has the peak; along every ellipse its likelihood is the same.
        let depth = |p: Point| mixture.judge(&centers[1]).mixture - mixture.judge(&p).mixture;
        for (distance, point) in DISTANCES.iter().flat_map(|&d| gaussians[1].ellipse(d).map(move |p| (d, p))) {
            assert!((depth(point) - 0.5 * distance * distance).abs() < 1e-6, "{point:?}");
        }
        let bands = patches(&(-8.0..8.0), &(-8.0..8.0), |p| depth(p) / BAND as f64);
        assert!(bands.iter().any(|(_, band)| *band == 0) && bands.iter().all(|(_, band)| *band < BANDS));
        // A slanted covariance: 2 along (1, 1), 1 across.
        let slanted = Gaussian::new([0.0; 2], [[1.5, 0.5], [0.5, 1.5]]);
        let lengths: Vec<f64> = slanted.ellipse(1.0).map(|[x, y]| x.hypot(y)).collect();
        let most = lengths.iter().copied().fold(0.0, f64::max);
        let least = lengths.iter().copied().fold(f64::INFINITY, f64::min);
        assert!((most - 2f64.sqrt()).abs() < 0.01 && (least - 1.0).abs() < 0.01, "{most} and {least}");
    }

    #[test]
    fn what_cannot_be_drawn_is_named() {
        let error = |f: Figure<'_>| check(&f).unwrap_err().to_string();
        assert!(error(figure(&[], &[], &[[0.0; 2]])).contains("no features"));
        assert!(error(figure(&[[0.0; 2]], &[0, 1], &[[0.0; 2]])).contains("1 features came with 2 labels"));
        assert!(error(figure(&[[0.0; 2]], &[3], &[[0.0; 2]])).contains("label 3 has no center"));
        assert!(error(figure(&[[f64::NAN, 0.0]], &[0], &[[0.0; 2]])).contains("not a number"));
    }
}
