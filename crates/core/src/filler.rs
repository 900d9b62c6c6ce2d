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
//! | `bilinear` | the kernel of bilinear upsampling, for Deconvolution |

use lgm_proto::FillerParameter;
use lgm_proto::filler_parameter::VarianceNorm;

use crate::rng::Sequence;
use crate::{Error, Float, Result, Shape, ensure, memory};

/// The names that [`fill`] knows.
pub const FILLERS: [&str; 7] = ["constant", "uniform", "gaussian", "positive_unitball", "xavier", "msra", "bilinear"];

/// Fills `out`, the elements of a blob of the given shape, as `filler` says with numbers from `rng`.
///
/// # Errors
/// As [`check`], and when `out` has another number of elements.
pub fn fill<T: Float>(filler: &FillerParameter, shape: &Shape, rng: &mut Sequence, out: &mut [T]) -> Result<()> {
    check(filler, shape)?;
    if out.len() != shape.count() {
        return Err(Error::internal(format!("{} elements do not fill a blob of shape {shape}", out.len())));
    }
    let mut draw = |f: &mut dyn FnMut(&mut Sequence) -> f64| out.iter_mut().for_each(|v| *v = T::of(f(rng)));
    match filler.r#type() {
        "constant" => out.fill(T::of(filler.value() as f64)),
        "uniform" => {
            let (lo, hi) = (filler.min() as f64, filler.max() as f64);
            draw(&mut |r| r.uniform(lo, hi));
        }
        "gaussian" => {
            let (mean, std) = (filler.mean() as f64, filler.std() as f64);
            draw(&mut |r| r.gaussian(mean, std));
            if filler.sparse() >= 0 {
                let keep = filler.sparse() as f64 / shape[0] as f64;
                out.iter_mut().for_each(|v| *v *= T::of((rng.unit() < keep) as u8 as f64));
            }
        }
        "positive_unitball" => {
            let mut values = Vec::new();
            let row = out.len() / shape[0];
            memory::reserve(&mut values, row, "a row of the positive_unitball filler")?;
            for row in out.chunks_mut(row) {
                values.clear();
                values.extend(row.iter().map(|_| rng.unit()));
                let sum: f64 = values.iter().sum();
                row.iter_mut().zip(&values).for_each(|(out, v)| *out = T::of(v / sum));
            }
        }
        "xavier" => {
            let s = (3.0 / fan(filler, shape)).sqrt();
            draw(&mut |r| r.uniform(-s, s));
        }
        "msra" => {
            let std = (2.0 / fan(filler, shape)).sqrt();
            draw(&mut |r| r.gaussian(0.0, std));
        }
        _ => {
            let side = shape[3];
            let f = side.div_ceil(2) as f64;
            let c = (side as f64 - 1.0) / (2.0 * f);
            let tent = |i: usize| 1.0 - (i as f64 / f - c).abs();
            out.iter_mut().enumerate().for_each(|(i, v)| *v = T::of(tent(i % side) * tent(i / side % side)));
        }
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
        "positive_unitball" | "xavier" | "msra" => {
            ensure!(has_axes, "the {kind} filler needs a blob with at least one axis");
        }
        "bilinear" => ensure!(
            shape.len() == 4 && shape[2] == shape[3],
            "the bilinear filler needs a 4-axis blob with square kernels, found shape {shape}"
        ),
        other => {
            let hint = crate::nearest(other, FILLERS).map(|n| format!("; did you mean '{n}'?")).unwrap_or_default();
            return Err(Error::config(format!(
                "unknown filler type '{other}'{hint} (known types: {})",
                FILLERS.join(", ")
            )));
        }
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
    use crate::rng::Philox;

    fn run(filler: FillerParameter, shape: impl Into<Shape>) -> Result<Vec<f64>> {
        let shape = shape.into();
        let mut values = vec![0.0; shape.count()];
        fill(&filler, &shape, &mut Philox::new(1, 2).from(0), &mut values).map(|()| values)
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
    fn mistakes_are_named() {
        let err = run(named("xavierr"), [2, 2]).unwrap_err().to_string();
        assert!(err.contains("did you mean 'xavier'"), "{err}");
        assert!(run(named("bilinear"), [2, 2]).is_err());
        assert!(run(FillerParameter { sparse: Some(3), ..named("uniform") }, [2]).is_err());
    }
}
