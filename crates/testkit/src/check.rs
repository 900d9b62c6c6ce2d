//! The checks that every case goes through.

use lgm_core::rng::{Philox, Sequence};
use lgm_core::{DType, Phase, Registry, Result, Shape};

use crate::compare::{added, assert_close, finite, same};
use crate::harness::{Harness, Inputs, Sharing};
use crate::{Case, device, parse_layer};

/// Puts every case through every check.
///
/// # Panics
/// At the first check that fails, naming the case, the blob and both values.
pub fn check(registry: &Registry, cases: &[Case]) {
    for case in cases {
        let run = || -> Result<()> {
            for dtype in [DType::F32, DType::F64] {
                let harness = harness(registry, case, dtype)?;
                let inputs = draw(&harness, case)?;
                check_plan(&harness, case, &inputs)?;
                check_threads(registry, case, dtype, &inputs)?;
                match dtype {
                    DType::F32 => {
                        check_recorded(&harness, case, &inputs)?;
                        device::check(registry, case, &inputs, &harness)?;
                    }
                    DType::F64 if case.gradients && !harness.plan.no_backward => {
                        check_gradients(&harness, case, &inputs)?
                    }
                    DType::F64 => {}
                }
            }
            Ok(())
        };
        run().unwrap_or_else(|e| panic!("{}: {e}", case.name));
    }
}

fn harness(registry: &Registry, case: &Case, dtype: DType) -> Result<Harness> {
    let shapes: Vec<Shape> = case.bottoms.iter().map(|(s, _)| s.clone()).collect();
    Harness::new(registry, &case.layer, case.phase, dtype, &shapes)
}

fn stream(purpose: &str) -> Sequence {
    Philox::new(20, lgm_core::rng::stream_id(purpose, "testkit")).from(0)
}

/// The case's numbers, rounded to single precision so that both element types see the same.
fn draw(harness: &Harness, case: &Case) -> Result<Inputs> {
    let round = |v: Vec<f64>| v.into_iter().map(|x| x as f32 as f64).collect::<Vec<f64>>();
    let mut rng = stream("bottoms");
    let bottoms = case.bottoms.iter().map(|(s, d)| round(d.values(s.count(), &mut rng))).collect();
    let mut rng = stream("params");
    let mut params = harness.filled()?;
    for (i, values) in params.iter_mut().enumerate() {
        let state = harness.plan.params[i].state;
        *values = round(match case.params.get(i).and_then(Option::as_ref) {
            Some(draw) => draw.values(values.len(), &mut rng),
            None if state => values.clone(),
            None => values.iter().map(|v| v + rng.uniform(-0.3, 0.3)).collect(),
        });
    }
    let mut rng = stream("diffs");
    let mut noise = |n: usize| round((0..n).map(|_| rng.uniform(0.25, 1.0) * [-1.0, 1.0][rng.below(2)]).collect());
    let recorded = |name: String| case.recorded.as_ref().and_then(|r| r.array(&name).map(|(_, v)| v.to_vec()));
    let weights = parse_layer(&case.layer)?.loss_weight;
    let is_loss = |t: usize| harness.plan.losses.contains(&t) && case.recorded.is_some();
    let top_diffs = harness.plan.tops.iter().enumerate().map(|(t, spec)| match recorded(format!("top_diff_{t}")) {
        _ if case.flat_tops.contains(&t) => vec![0.0; spec.shape.count()],
        Some(values) => values,
        None if is_loss(t) => vec![weights.get(t).copied().unwrap_or(1.0) as f64],
        None => noise(spec.shape.count()),
    });
    let top_diffs: Vec<Vec<f64>> = top_diffs.collect();
    Ok(Inputs {
        bottoms,
        params,
        top_diffs: if harness.plan.no_backward { Vec::new() } else { top_diffs },
        param_diffs: harness.params.iter().map(|p| noise(p.shape.count())).collect(),
        want_bottoms: vec![true; harness.bottoms.len()],
        want_params: vec![true; harness.params.len()],
        sharing: Sharing::default(),
        step: harness.step(),
    })
}

/// The plan is honest: outputs are whole, and the same bits whatever is shared, wanted or saved.
fn check_plan(harness: &Harness, case: &Case, inputs: &Inputs) -> Result<()> {
    let plain = harness.run(inputs)?;
    for (what, blobs) in [("top", &plain.tops), ("parameter", &plain.params)] {
        for (i, values) in blobs.iter().enumerate() {
            finite(case, &format!("{what} {i}"), values);
        }
    }
    for (what, blobs) in [("bottom diff", &plain.bottom_diffs), ("parameter diff", &plain.param_diffs)] {
        for (i, values) in blobs.iter().enumerate() {
            finite(case, &format!("{what} {i}"), values.as_deref().unwrap_or_default());
        }
    }
    for (i, (before, after)) in inputs.params.iter().zip(&plain.params).enumerate() {
        let spec = &harness.plan.params[i];
        let may = spec.state || spec.rescaled;
        assert!(may || before == after, "{}: forward changed parameter {i}, which is its solver's", case.name);
    }

    for (data, diff) in [(true, false), (false, true), (true, true)] {
        let sharing = Sharing { data, diff };
        let shared = harness.run(&Inputs { sharing, ..inputs.clone() })?;
        same(case, &format!("{sharing:?}"), &plain, &shared);
        let forward = Inputs { sharing, top_diffs: Vec::new(), ..inputs.clone() };
        same(case, &format!("{sharing:?}, no backward"), &plain, &harness.run(&forward)?);
    }
    let (bottoms, params) = (harness.bottoms.len(), harness.params.len());
    for only in 0..bottoms + params {
        for diff in [false, true] {
            let alone = Inputs {
                want_bottoms: (0..bottoms).map(|b| b == only).collect(),
                want_params: (0..params).map(|p| bottoms + p == only).collect(),
                sharing: Sharing { data: false, diff },
                ..inputs.clone()
            };
            same(case, &format!("gradient {only} alone, diffs shared: {diff}"), &plain, &harness.run(&alone)?);
        }
    }
    Ok(())
}

/// The same bits with any number of threads.
fn check_threads(registry: &Registry, case: &Case, dtype: DType, inputs: &Inputs) -> Result<()> {
    let plain = harness(registry, case, dtype)?.run(inputs)?;
    for threads in [1, 3] {
        let other = lgm_cpu::with_threads(threads, || harness(registry, case, dtype)?.run(inputs))?;
        same(case, &format!("{threads} threads"), &plain, &other);
    }
    Ok(())
}

fn check_recorded(harness: &Harness, case: &Case, inputs: &Inputs) -> Result<()> {
    let Some(recorded) = &case.recorded else { return Ok(()) };
    let out = harness.run(inputs)?;
    let compare = |name: String, found: Option<&[f64]>| {
        if let (Some((_, want)), Some(found)) = (recorded.array(&name), found) {
            assert_close(&format!("{}: {name}", case.name), found, want, 2e-5);
        }
    };
    let layer = parse_layer(&case.layer)?;
    for (name, values) in layer.top.iter().zip(&out.tops) {
        assert!(recorded.array(name).is_some(), "{}: {name} is not recorded", case.name);
        compare(name.clone(), Some(values));
    }
    for (i, values) in out.params.iter().enumerate() {
        compare(format!("param_after_{i}"), Some(values));
        compare(format!("param_diff_{i}"), added(inputs, &out, i).as_deref());
    }
    for (i, values) in out.bottom_diffs.iter().enumerate() {
        compare(format!("bottom_diff_{i}"), values.as_deref());
    }
    Ok(())
}

/// Backward against central finite differences of Σ top · top diff, in double precision.
fn check_gradients(harness: &Harness, case: &Case, inputs: &Inputs) -> Result<()> {
    let out = harness.run(inputs)?;
    let objective = |inputs: &Inputs| -> Result<f64> {
        let out = harness.run(&Inputs { top_diffs: Vec::new(), ..inputs.clone() })?;
        let dot = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        Ok(out.tops.iter().zip(&inputs.top_diffs).map(dot).sum())
    };
    let slope = |pick: &dyn Fn(&mut Inputs) -> &mut f64| -> Result<f64> {
        let mut moved = inputs.clone();
        let x = *pick(&mut moved);
        let h = case.step * x.abs().max(1.0);
        // Four points: the error falls with h⁴, so a step large enough to drown rounding is still exact.
        let mut at = |d: f64| {
            *pick(&mut moved) = x + d;
            objective(&moved)
        };
        Ok((8.0 * (at(h)? - at(-h)?) - (at(2.0 * h)? - at(-2.0 * h)?)) / (12.0 * h))
    };
    let agree = |what: String, i: usize, found: f64, want: f64| {
        let scale = found.abs().max(want.abs()).max(1.0);
        assert!(
            (found - want).abs() <= case.tolerance * scale,
            "{}: gradient by {what} element {i}: backward gives {found}, finite differences {want}",
            case.name
        );
    };
    for (b, diff) in out.bottom_diffs.iter().enumerate() {
        for (i, &found) in diff.iter().flatten().enumerate() {
            let x = inputs.bottoms[b][i];
            if case.kinks.iter().any(|&(k, at, range)| k == b && (x - at).abs() <= range) {
                continue;
            }
            agree(format!("bottom {b}"), i, found, slope(&|m: &mut Inputs| &mut m.bottoms[b][i])?);
        }
    }
    for p in 0..harness.params.len() {
        for (i, &found) in added(inputs, &out, p).iter().flatten().enumerate() {
            agree(format!("parameter {p}"), i, found, slope(&|m: &mut Inputs| &mut m.params[p][i])?);
        }
    }
    Ok(())
}

/// Asserts that building or planning the layer fails, with a message that holds each of `needles`.
///
/// # Panics
/// When it succeeds, or the message lacks one.
pub fn config_error(registry: &Registry, layer: &str, shapes: &[Shape], needles: &[&str]) {
    match Harness::new(registry, layer, Phase::Train, DType::F32, shapes) {
        Ok(_) => panic!("{layer} was accepted; expected an error with {needles:?}"),
        Err(e) => {
            let text = e.to_string();
            for needle in needles {
                assert!(text.contains(needle), "the error for {layer} is '{text}', which lacks '{needle}'");
            }
        }
    }
}
