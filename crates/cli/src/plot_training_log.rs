//! `plot_training_log`: what trainings logged, as curves: the chart types of Caffe's script of this name.

use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use lgm_core::Error;
use plotters::prelude::*;

use crate::args::{ChartType, PlotTrainingLogArgs};
use crate::output;
use crate::plot::{self, Area, Axes, Drawing, Drawn, Entry, Legend, Sign, px, series};
use crate::training_log::{Row, Table, TrainingLog};

/// The chart without its legend, in pixels.
const SIZE: (u32, u32) = (1000, 700);
/// Curves of no more points show each.
const MARKED: usize = 60;

/// One curve: a name, and its points, apart where a training began anew or a value is not finite.
struct Curve {
    name: String,
    parts: Vec<Vec<(f64, f64)>>,
}

/// The figure.
struct Chart {
    title: String,
    names: [&'static str; 2],
    curves: Vec<Curve>,
}

/// Runs the command.
///
/// # Errors
/// When a log cannot be read or has nothing to draw, or the figure cannot be written.
pub fn run(args: &PlotTrainingLogArgs) -> Result<ExitCode> {
    plot::Format::of(&args.output)?;
    let kind = args.chart_type;
    let mut curves = Vec::new();
    for path in &args.logs {
        let log = TrainingLog::read(path)?;
        let columns = columns(&log, kind, &args.outputs).map_err(|what| Error::data(path, what))?;
        let run = name(path);
        let several = columns.len() > 1;
        for (column, points) in columns {
            let name = if several { format!("{run}: {column}") } else { run.clone() };
            let curve = Curve { name, parts: parts(&points, args.smooth as usize) };
            if curve.parts.is_empty() {
                return Err(Error::data(path, format!("has no finite value of '{column}' to draw")).into());
            }
            curves.push(curve);
        }
    }
    let chart = Chart { title: kind.title(), names: [kind.across(), kind.upward()], curves };
    plot::write(&args.output, &chart)?;
    let count: usize = chart.curves.iter().flat_map(|curve| &curve.parts).map(Vec::len).sum();
    output::print(&format!(
        "{}: {} curve{} of {count} point{}: {}\n",
        chart.title,
        chart.curves.len(),
        if chart.curves.len() == 1 { "" } else { "s" },
        if count == 1 { "" } else { "s" },
        args.output.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// A point and the run that it belongs to.
type Point = (usize, f64, f64);

/// The columns of a log that a chart type shows, with their names.
fn columns(
    log: &TrainingLog,
    kind: ChartType,
    outputs: &[String],
) -> std::result::Result<Vec<(String, Vec<Point>)>, String> {
    let across = |row: &Row| if kind.by_seconds() { row.seconds } else { row.iteration as f64 };
    let of = |table: &Table, name: &str| -> Option<Vec<Point>> {
        Some(table.column(name)?.map(|(row, value)| (row.run, across(row), value)).collect())
    };
    let (table, usual) = match kind {
        ChartType::RateIters | ChartType::RateSeconds => {
            ensure_none(outputs)?;
            let rates = log.loss.rows.iter().map(|row| (row.run, across(row), row.rate)).collect();
            return Ok(vec![("learning rate".to_string(), rates)]);
        }
        ChartType::LossIters | ChartType::LossSeconds if outputs.is_empty() => (&log.loss, "loss"),
        ChartType::LossIters | ChartType::LossSeconds => (&log.train, "loss"),
        ChartType::TestAccuracyIters | ChartType::TestAccuracySeconds => (&log.test, "accuracy"),
        ChartType::TestLossIters | ChartType::TestLossSeconds => (&log.test, "loss"),
    };
    let usual = [usual.to_string()];
    let wanted = if outputs.is_empty() { &usual[..] } else { outputs };
    let found = wanted.iter().map(|name| {
        let known = if table.names.is_empty() { "none".to_string() } else { table.names.join(", ") };
        let points = of(table, name).ok_or_else(|| {
            let net = if std::ptr::eq(table, &log.test) { "test" } else { "training" };
            format!("the {net} net logged no output '{name}'; choose with -output (logged: {known})")
        })?;
        Ok((name.clone(), points))
    });
    found.collect()
}

fn ensure_none(outputs: &[String]) -> std::result::Result<(), String> {
    match outputs {
        [] => Ok(()),
        _ => Err("the learning rate is no output; leave -output out".to_string()),
    }
}

/// The name of a log in a legend: its file's, without `.log`.
fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    name.strip_suffix(".log").unwrap_or(&name).to_string()
}

/// Points by their runs, each the mean of itself and those before it, `smooth` in all.
fn parts(points: &[Point], smooth: usize) -> Vec<Vec<(f64, f64)>> {
    let whole = |(_, x, y): &Point| x.is_finite() && y.is_finite();
    let together = |a: &Point, b: &Point| a.0 == b.0 && whole(a) && whole(b);
    let runs = points.chunk_by(together).filter(|run| run.iter().all(whole));
    let mean = |run: &[Point], i: usize| {
        let window = &run[(i + 1).saturating_sub(smooth.max(1))..=i];
        window.iter().map(|point| point.2).sum::<f64>() / window.len() as f64
    };
    runs.map(|run| (0..run.len()).map(|i| (run[i].1, mean(run, i))).collect()).collect()
}

impl Chart {
    fn legend(&self) -> Legend {
        let entry = |(i, curve): (usize, &Curve)| Entry { name: curve.name.clone(), sign: Sign::Line(series(i)) };
        Legend::new(self.curves.iter().enumerate().map(entry).collect(), SIZE.1)
    }

    /// The extent of all points along an axis, with a margin.
    fn range(&self, of: impl Fn(&(f64, f64)) -> f64, margin: f64) -> Range<f64> {
        let values = self.curves.iter().flat_map(|curve| curve.parts.iter().flatten()).map(of);
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        let least = 0.05 * low.abs().max(high.abs()).max(1e-9);
        let around = (margin * (high - low)).max(if high > low { 0.0 } else { least });
        low - around..high + around
    }
}

impl Drawing for Chart {
    fn size(&self) -> (u32, u32) {
        (SIZE.0 + self.legend().width(), SIZE.1)
    }

    fn draw<B: DrawingBackend>(&self, area: &Area<B>) -> Drawn<(), B> {
        let (area, beside) = area.split_horizontally(px(SIZE.0));
        self.legend().draw(&beside)?;
        let axes = Axes {
            title: &self.title,
            names: self.names,
            x: self.range(|point| point.0, 0.0),
            y: self.range(|point| point.1, 0.05),
        };
        let mut chart = axes.draw(&area)?;
        for (i, curve) in self.curves.iter().enumerate() {
            chart.draw_series(curve.parts.iter().map(|part| series(i).line(part.clone())))?;
            let points = curve.parts.iter().map(Vec::len).sum::<usize>();
            let marked = curve.parts.iter().filter(|part| points <= MARKED || part.len() == 1).flatten();
            chart.draw_series(marked.map(|&point| series(i).point(point, 4, 1.0)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_smoothed_within_their_run() {
        let points = [(0, 0.0, 1.0), (0, 10.0, 3.0), (0, 20.0, 8.0), (1, 20.0, 7.0), (1, 30.0, 9.0)];
        assert_eq!(parts(&points, 1), [vec![(0.0, 1.0), (10.0, 3.0), (20.0, 8.0)], vec![(20.0, 7.0), (30.0, 9.0)]]);
        assert_eq!(parts(&points, 2), [vec![(0.0, 1.0), (10.0, 2.0), (20.0, 5.5)], vec![(20.0, 7.0), (30.0, 8.0)]]);
        let broken = [(0, 0.0, 1.0), (0, 10.0, f64::NAN), (0, 20.0, 8.0)];
        assert_eq!(parts(&broken, 9), [vec![(0.0, 1.0)], vec![(20.0, 8.0)]]);
        assert!(parts(&broken[1..2], 1).is_empty());
    }

    #[test]
    fn ranges_hold_every_point_and_are_never_empty() {
        let chart =
            |parts| Chart { title: String::new(), names: ["", ""], curves: vec![Curve { name: String::new(), parts }] };
        assert_eq!(chart(vec![vec![(0.0, 1.0), (10.0, 3.0)], vec![(20.0, -1.0)]]).range(|p| p.1, 0.25), -2.0..4.0);
        let flat = chart(vec![vec![(0.0, 2.0)]]).range(|p| p.1, 0.05);
        assert!(flat.start < 2.0 && flat.end > 2.0);
        let zero = chart(vec![vec![(0.0, 0.0)]]).range(|p| p.0, 0.0);
        assert!(zero.start < 0.0 && zero.end > 0.0);
    }
}
