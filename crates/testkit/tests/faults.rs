//! Every check fails when it should: y = 3x + b, right but for one fault at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, ParamSpec, Plan, Registry, Result, Shape,
};
use lgm_proto::LayerParameter;
use lgm_testkit::{Case, Harness, check, config_error};

/// The layer's name says what is wrong with it.
struct Triple {
    fault: String,
}

fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
    lgm_core::ensure!(param.name() != "refused", "this layer is refused");
    Node::host_only(Triple { fault: param.name().to_string() })
}

impl Triple {
    fn has(&self, fault: &str) -> bool {
        self.fault == fault
    }
}

impl Layer for Triple {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let mut plan = Plan::elementwise(&bottoms[0]);
        plan.params = vec![ParamSpec::constant([1], 0.5)];
        plan.scratch = vec![bottoms[0].with_shape([1])];
        plan.saved = vec![bottoms[0].with_shape([1])];
        Ok(plan)
    }
}

impl HostLayer for Triple {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, y) = (io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?);
        let (b, scratch, saved) = (io.param_mut::<T>(0)?, io.scratch::<T>(0)?, io.saved::<T>(0)?);
        if let Some(x) = x {
            y.copy_from_slice(x);
        } else if self.has("in place is off") {
            y[0] += T::one();
        }
        if self.has("top depends on saving") && saved.is_none() {
            y[0] += T::one();
        }
        if self.has("reads scratch") {
            y[0] += scratch[0];
        }
        if self.has("depends on threads") && lgm_cpu::num_threads() == 3 {
            y[0] += T::one();
        }
        y.iter_mut().for_each(|y| *y = T::of(3.0) * *y + b[0]);
        if self.has("leaves a top element") {
            y[0] = T::nan();
        }
        if self.has("changes a parameter") {
            b[0] += T::one();
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        if self.has("reads an unplanned bottom") {
            io.bottom::<T>(0)?;
        }
        if self.has("reads saved memory never written") {
            let kept = io.saved::<T>(0)?[0];
            if let Some(db) = io.param_diff::<T>(0)? {
                db[0] += kept;
            }
            return Ok(());
        }
        let own = io.top_diff_unless_shared::<T>(0)?;
        let dx = io.bottom_diff::<T>(0)?;
        if let (None, None) = (own, &dx) {
            return Ok(());
        }
        let dy: Vec<T> = own.unwrap_or_else(|| dx.as_deref().unwrap_or_default()).to_vec();
        let alone = dx.is_none();
        if let Some(dx) = dx {
            let slope = T::of(if self.has("wrong bottom gradient") { 3.001 } else { 3.0 });
            dx.iter_mut().zip(&dy).for_each(|(dx, &dy)| *dx = slope * dy);
            if self.has("adds to a bottom diff") && own.is_none() {
                dx[0] += dy[0];
            }
        }
        if let Some(db) = io.param_diff::<T>(0)? {
            let sum: T = dy.iter().copied().sum();
            if self.has("overwrites a parameter diff") {
                db[0] = T::zero();
            }
            if self.has("wrong alone") && alone {
                db[0] += T::one();
            }
            db[0] += if self.has("wrong parameter gradient") { sum + T::of(0.01) } else { sum };
        }
        Ok(())
    }
}

fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add("Triple", build);
    registry
}

fn layer(name: &str) -> String {
    format!("layer {{ name: '{name}' type: 'Triple' bottom: 'x' top: 'y' }}")
}

#[test]
fn a_right_layer_passes() {
    check(&registry(), &[Case::new(layer("right")).bottom([2, 3])]);
}

#[test]
fn faults_are_found_and_named() {
    let faults = [
        ("in place is off", "top 0 element 0"),
        ("top depends on saving", "no backward"),
        ("reads scratch", "never written"),
        ("depends on threads", "3 threads"),
        ("leaves a top element", "element 0 of top 0 was not written"),
        ("changes a parameter", "forward changed parameter 0"),
        ("reads an unplanned bottom", "bottom 0 is not among"),
        ("reads saved memory never written", "never written"),
        ("adds to a bottom diff", "bottom diff 0"),
        ("wrong alone", "gradient 1 alone"),
        ("wrong bottom gradient", "gradient by bottom 0 element 0"),
        ("wrong parameter gradient", "gradient by parameter 0 element 0"),
        ("overwrites a parameter diff", "gradient by parameter 0 element 0"),
    ];
    for (fault, needle) in faults {
        let case = Case::new(layer(fault)).bottom([2, 3]);
        let panic = catch_unwind(AssertUnwindSafe(|| check(&registry(), &[case]))).expect_err(fault);
        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(text.contains(needle) && text.contains(fault), "'{fault}' was reported as '{text}'");
    }
}

#[test]
fn errors_must_come_and_say_what_is_asked() {
    let shapes: [Shape; 1] = [[2].into()];
    config_error(&registry(), &layer("refused"), &shapes, &["refused"]);
    for (name, needle) in [("right", "x"), ("refused", "accepted")] {
        let run = AssertUnwindSafe(|| config_error(&registry(), &layer(name), &shapes, &[needle]));
        assert!(catch_unwind(run).is_err(), "{name}");
    }
}

#[test]
fn a_kink_is_left_out() {
    let case = Case::new(layer("wrong bottom gradient")).bottom([4]).kink(0, 0.0, 1e3);
    check(&registry(), &[case]);
    assert!(
        Harness::new(&registry(), "layer { type: 'Triple' }", lgm_core::Phase::Train, lgm_core::DType::F32, &[])
            .is_err()
    );
}
