//! Initial values of parameters (and of DummyData's blobs), Caffe's fillers by name.
//!
//! With n the number of elements, fan_in = n / shape\[0\] and fan_out = n / shape\[1\] (n for a one-axis blob), and fan
//! chosen by `variance_norm`:
//!
//! | type | value |
//! | --- | --- |
//! | `constant` | `value` |
//! | `uniform` | U(`min`, `max`) |
//! | `gaussian` | N(`mean`, `std`²); with `sparse` ≥ 0, each is kept with probability `sparse` / shape\[0\], else 0 |
//! | `positive_unitball` | U(0, 1), each outermost row scaled to sum 1 |
//! | `xavier` | U(−√(3/fan), √(3/fan)) (Glorot & Bengio 2010) |
//! | `msra` | N(0, 2/fan) (He et al. 2015) |
//! | `bilinear`, `bilinear_upsampling` | the kernel of bilinear upsampling, for Deconvolution |
//! | `gaussian_unitball` | N(0, 1), each outermost row scaled to length 1 (NormFace) |
//! | `file` | the numbers of the text file `file`, as many as there are elements; more are not looked at (L-GM fork) |
//! | `value` | `values`, then zeros (L-GM fork) |
//! | `grid` | x and y of a grid of `grid_h_out` × `grid_w_out` points on an image of `grid_h_in` × `grid_w_in` (L-GM fork) |
//!
//! Every element is drawn from numbers of its own, so parts of a blob can be filled at once and in any order.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use lgm_proto::filler_parameter::VarianceNorm;
use lgm_proto::{FillerParameter, strings};

use crate::rng::{Philox, Sequence};
use crate::{Error, Float, Result, Shape, ensure};

/// The names that [`fill`] knows.
const FILLERS: [&str; 12] = [
    "constant",
    "uniform",
    "gaussian",
    "positive_unitball",
    "xavier",
    "msra",
    "bilinear",
    "bilinear_upsampling",
    "gaussian_unitball",
    "file",
    "value",
    "grid",
];

/// Where a blob's random numbers begin: a stream, and the counter of its first number.
pub type Draws = (Philox, u64);

/// The value that `filler` gives every element, if it is one.
pub fn constant(filler: &FillerParameter) -> Option<f32> {
    (filler.r#type() == "constant").then(|| filler.value())
}

/// Fills `out`, the elements of a blob of the given shape, as `filler` says with numbers from `draws`.
///
/// # Errors
/// As [`check`]; when a file cannot be read or has too few numbers; when `out` has another number of elements.
pub fn fill<T: Float>(filler: &FillerParameter, shape: &Shape, draws: Draws, out: &mut [T]) -> Result<()> {
    fill_shared(filler, shape, draws, out, |out, task| task(0, out))
}

/// As [`fill`]; `share` splits the elements and calls a task with each part and the number of its first element, which
/// must be even. However it splits them, the values are the same.
///
/// # Errors
/// As [`fill`].
pub fn fill_shared<T: Float>(
    filler: &FillerParameter,
    shape: &Shape,
    (philox, start): Draws,
    out: &mut [T],
    share: impl Fn(&mut [T], &(dyn Fn(usize, &mut [T]) + Sync)),
) -> Result<()> {
    check(filler, shape)?;
    if out.len() != shape.count() {
        return Err(Error::internal(format!("{} elements do not fill a blob of shape {shape}", out.len())));
    }
    // A uniform number takes two words of a counter's four, a normal one all.
    let halves = |first: usize| philox.from(start.wrapping_add(first as u64 / 2));
    let wholes = |first: usize| philox.from(start.wrapping_add(first as u64));
    let uniform = |out: &mut [T], lo: f64, hi: f64| {
        share(out, &|first, part| {
            let mut rng = halves(first);
            part.iter_mut().for_each(|v| *v = T::of(rng.uniform(lo, hi)));
        });
    };
    let gaussian = |out: &mut [T], mean: f64, std: f64| {
        share(out, &|first, part| {
            let mut rng = wholes(first);
            part.iter_mut().for_each(|v| *v = T::of(rng.gaussian(mean, std)));
        });
    };
    match filler.r#type() {
        "constant" => {
            let value = T::of(filler.value() as f64);
            share(out, &|_, part| part.fill(value));
        }
        "uniform" => uniform(out, filler.min() as f64, filler.max() as f64),
        "gaussian" => {
            gaussian(out, filler.mean() as f64, filler.std() as f64);
            if filler.sparse() >= 0 {
                let keep = filler.sparse() as f64 / shape[0] as f64;
                let behind = start.wrapping_add(out.len() as u64);
                share(out, &|first, part| {
                    let mut rng = philox.from(behind.wrapping_add(first as u64 / 2));
                    part.iter_mut().for_each(|v| *v *= T::of((rng.unit() < keep) as u8 as f64));
                });
            }
        }
        "positive_unitball" => {
            let mut rng = halves(0);
            by_rows(shape, out, &mut rng, Sequence::unit, |values| values.sum());
        }
        "gaussian_unitball" => {
            let draw = |rng: &mut Sequence| rng.gaussian(0.0, 1.0);
            by_rows(shape, out, &mut wholes(0), draw, |values| (values.map(|v| v * v).sum::<f64>() + 1e-12).sqrt());
        }
        "xavier" => {
            let s = (3.0 / fan(filler, shape)).sqrt();
            uniform(out, -s, s);
        }
        "msra" => gaussian(out, 0.0, (2.0 / fan(filler, shape)).sqrt()),
        "file" => from_file(&strings::to_path(filler.file()), out)?,
        "value" => {
            out.fill(T::zero());
            out.iter_mut().zip(&filler.values).for_each(|(v, &value)| *v = T::of(value.into()));
        }
        "grid" => {
            let step = |size: i32, points: i32| f64::from(size - 1) / f64::from((points - 1).max(1));
            let columns = filler.grid_w_out() as usize;
            let (x, y) = (step(filler.grid_w_in(), filler.grid_w_out()), step(filler.grid_h_in(), filler.grid_h_out()));
            for (i, point) in out.chunks_exact_mut(2).enumerate() {
                point[0] = T::of((i % columns) as f64 * x);
                point[1] = T::of((i / columns) as f64 * y);
            }
        }
        _ => {
            let side = shape[3];
            let f = side.div_ceil(2) as f64;
            let c = (side as f64 - 1.0) / (2.0 * f);
            let tent = |i: usize| 1.0 - (i as f64 / f - c).abs();
            share(out, &|first, part| {
                let elements = part.iter_mut().zip(first..);
                elements.for_each(|(v, i)| *v = T::of(tent(i % side) * tent(i / side % side)));
            });
        }
    }
    Ok(())
}

/// Fills row by row, each divided by what `norm` makes of its numbers, which are drawn twice rather than kept.
fn by_rows<T: Float>(
    shape: &Shape,
    out: &mut [T],
    rng: &mut Sequence,
    draw: impl Fn(&mut Sequence) -> f64,
    norm: impl Fn(&mut dyn Iterator<Item = f64>) -> f64,
) {
    for row in out.chunks_mut(shape.count() / shape[0]) {
        let mut again = rng.clone();
        let norm = norm(&mut row.iter().map(|_| draw(&mut again)));
        row.iter_mut().for_each(|v| *v = T::of(draw(rng) / norm));
    }
}

/// Fills from a text file of numbers with blanks between them.
fn from_file<T: Float>(path: &Path, out: &mut [T]) -> Result<()> {
    let text = BufReader::new(File::open(path).map_err(Error::io(path, "open"))?);
    let (mut found, wanted) = (0, out.len());
    for (i, line) in text.lines().enumerate() {
        let line = line.map_err(Error::io(path, "read"))?;
        for word in line.split_whitespace() {
            let Some(v) = out.get_mut(found) else { return Ok(()) };
            let number = word.parse().ok().filter(|x: &f64| x.is_finite());
            let number = number.ok_or_else(|| {
                Error::data(path, format!("line {}: expected a finite number, found '{word}'", i + 1))
            })?;
            *v = T::of(number);
            found += 1;
        }
    }
    if found < wanted {
        return Err(Error::data(path, format!("expected {wanted} numbers for the 'file' filler, found {found}")));
    }
    Ok(())
}

/// Whether a blob of the given shape can be filled as `filler` says.
///
/// # Errors
/// For an unknown type, or a shape or setting the type cannot take.
pub fn check(filler: &FillerParameter, shape: &Shape) -> Result<()> {
    let (kind, sparse) = (filler.r#type(), filler.sparse());
    ensure!(sparse == -1 || kind == "gaussian", "sparse is only for the gaussian filler, not for '{kind}'");
    let has_axes = !shape.is_empty() && shape.count() > 0;
    match kind {
        "constant" => {}
        "uniform" => {
            let (lo, hi) = (filler.min(), filler.max());
            ensure!(lo <= hi, "uniform filler: min {lo} exceeds max {hi}");
        }
        "gaussian" => {
            let std = filler.std();
            ensure!(std >= 0.0, "gaussian filler: std {std} is negative");
            let suits = sparse < 0 || !shape.is_empty();
            ensure!(suits, "a sparse gaussian filler needs a blob with at least one axis");
        }
        "positive_unitball" | "gaussian_unitball" | "xavier" | "msra" => {
            ensure!(has_axes, "the {kind} filler needs a blob with at least one axis");
        }
        "file" => ensure!(!filler.file().is_empty(), "the file filler needs a file of numbers: file: \"…\""),
        "value" => ensure!(
            filler.values.len() <= shape.count(),
            "the value filler has {} values for a blob of shape {shape}",
            filler.values.len()
        ),
        "grid" => {
            let sizes = [filler.grid_h_in(), filler.grid_w_in(), filler.grid_h_out(), filler.grid_w_out()];
            let count = sizes[2..].iter().try_fold(2_usize, |n, &side| n.checked_mul(usize::try_from(side).ok()?));
            ensure!(
                sizes.iter().all(|&side| side > 0) && count == Some(shape.count()),
                "the grid filler needs positive grid_h_in, grid_w_in, grid_h_out and grid_w_out and two elements for each \
                 of grid_h_out × grid_w_out points, found {sizes:?} and a blob of shape {shape}"
            );
        }
        "bilinear" | "bilinear_upsampling" => ensure!(
            shape.len() == 4 && shape[2] == shape[3],
            "the bilinear filler needs a 4-axis blob with square kernels, found shape {shape}"
        ),
        other => return Err(Error::unknown_among("unknown filler type", other, &FILLERS)),
    }
    Ok(())
}

fn fan(filler: &FillerParameter, shape: &Shape) -> f64 {
    let n = shape.count() as f64;
    let fan_in = n / shape[0] as f64;
    let fan_out = if shape.len() > 1 { n / shape[1] as f64 } else { n };
    match filler.variance_norm() {
        VarianceNorm::FanIn => fan_in,
        VarianceNorm::FanOut => fan_out,
        VarianceNorm::Average => (fan_in + fan_out) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(filler: FillerParameter, shape: impl Into<Shape>) -> Result<Vec<f64>> {
        let shape = shape.into();
        let mut values = vec![0.0; shape.count()];
        fill(&filler, &shape, (Philox::new(1, 2), 0), &mut values).map(|()| values)
    }

    fn named(kind: &str) -> FillerParameter {
        FillerParameter { r#type: Some(kind.into()), ..Default::default() }
    }

    #[test]
    fn random_fillers_have_the_spread_they_promise() {
        let var = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>() / v.len() as f64;
        let xavier = run(named("xavier"), [200, 50, 2, 2]).unwrap();
        assert!((var(&xavier) * 200.0 - 1.0).abs() < 0.05);
        assert!(xavier.iter().all(|x| x.abs() <= (3.0f64 / 200.0).sqrt()));
        let mut msra = named("msra");
        msra.set_variance_norm(VarianceNorm::FanOut);
        assert!((var(&run(msra, [200, 50, 2, 2]).unwrap()) * 400.0 - 1.0).abs() < 0.05);
        let sparse = FillerParameter { std: Some(1.0), sparse: Some(20), ..named("gaussian") };
        let kept = run(sparse, [200, 500]).unwrap().iter().filter(|x| **x != 0.0).count();
        assert!((9_000..11_000).contains(&kept), "{kept}");
        let ball = run(named("positive_unitball"), [3, 40]).unwrap();
        assert!(ball.chunks(40).all(|r| (r.iter().sum::<f64>() - 1.0).abs() < 1e-12));
    }

    #[test]
    fn bilinear_interpolates() {
        let k = run(named("bilinear"), [1, 1, 4, 4]).unwrap();
        let row = [0.25, 0.75, 0.75, 0.25];
        (0..16).for_each(|i| assert_eq!(k[i], row[i / 4] * row[i % 4]));
    }

    #[test]
    fn parts_give_what_the_whole_gives() {
        let shape: Shape = [7, 2, 3, 3].into();
        for kind in FILLERS.into_iter().filter(|kind| !["file", "value", "grid"].contains(kind)) {
            let sparse = if kind == "gaussian" { 3 } else { -1 };
            let filler = FillerParameter { sparse: Some(sparse), value: Some(2.0), ..named(kind) };
            let draws = (Philox::new(5, 6), 1 << 32);
            let (mut whole, mut parts) = (vec![0_f32; 126], vec![0_f32; 126]);
            fill(&filler, &shape, draws, &mut whole).unwrap();
            let backward = |out: &mut [f32], task: &(dyn Fn(usize, &mut [f32]) + Sync)| {
                out.chunks_mut(10).enumerate().rev().for_each(|(i, part)| task(10 * i, part));
            };
            fill_shared(&filler, &shape, draws, &mut parts, backward).unwrap();
            assert_eq!(whole, parts, "{kind}");
        }
    }

    #[test]
    fn numbers_follow_one_another() {
        let (philox, start) = (Philox::new(5, 6), 9);
        let shape: Shape = [3, 5].into();
        let filled = |filler: FillerParameter| {
            let mut values = vec![0.0; 15];
            fill(&filler, &shape, (philox, start), &mut values).unwrap();
            values
        };
        let mut rng = philox.from(start);
        let uniform: Vec<f64> = (0..15).map(|_| rng.uniform(0.0, 1.0)).collect();
        assert_eq!(filled(named("uniform")), uniform);
        let mut rng = philox.from(start);
        let normal: Vec<f64> = (0..15).map(|_| rng.gaussian(0.0, 1.0)).collect();
        let sparse: Vec<f64> = normal.iter().map(|v| v * f64::from(rng.unit() < 2.0 / 3.0)).collect();
        assert_eq!(filled(named("gaussian")), normal);
        assert_eq!(filled(FillerParameter { sparse: Some(2), ..named("gaussian") }), sparse);
    }

    #[test]
    fn given_numbers_are_taken() {
        let file = std::env::temp_dir().join(format!("lgm-filler-{}.txt", std::process::id()));
        std::fs::write(&file, "1 2.5\n-3e-1\n4 5 6 7").unwrap();
        let from_file =
            |shape: [usize; 2]| run(FillerParameter { file: file.to_str().map(String::from), ..named("file") }, shape);
        assert_eq!(from_file([2, 2]).unwrap(), [1.0, 2.5, -0.3, 4.0]);
        let error = from_file([2, 4]).unwrap_err().to_string();
        assert!(error.contains("expected 8 numbers") && error.contains("found 7"), "{error}");
        std::fs::write(&file, "1\n2 x").unwrap();
        let error = from_file([2, 2]).unwrap_err().to_string();
        assert!(error.contains("line 2: expected a finite number, found 'x'"), "{error}");
        std::fs::remove_file(&file).unwrap();
        let values = FillerParameter { values: vec![1.0, 2.0], ..named("value") };
        assert_eq!(run(values.clone(), [3]).unwrap(), [1.0, 2.0, 0.0]);
        assert!(run(values, [1]).is_err());
        let grid = |w_in, w_out| FillerParameter {
            grid_h_in: Some(5),
            grid_w_in: Some(w_in),
            grid_h_out: Some(2),
            grid_w_out: Some(w_out),
            ..named("grid")
        };
        assert_eq!(run(grid(7, 3), [2, 3, 2]).unwrap(), [0.0, 0.0, 3.0, 0.0, 6.0, 0.0, 0.0, 4.0, 3.0, 4.0, 6.0, 4.0]);
        assert!(run(grid(7, 0), [2, 3, 2]).is_err() && run(grid(7, -3), [2, 3, 2]).is_err());
        let ball = run(named("gaussian_unitball"), [3, 40]).unwrap();
        assert!(ball.chunks(40).all(|r| (r.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-12));
    }

    #[test]
    fn mistakes_are_named() {
        let err = run(named("xavierr"), [2, 2]).unwrap_err().to_string();
        assert!(err.contains("did you mean 'xavier'"), "{err}");
        assert!(run(named("bilinear"), [2, 2]).is_err());
        assert!(run(FillerParameter { sparse: Some(3), ..named("uniform") }, [2]).is_err());
    }
}
