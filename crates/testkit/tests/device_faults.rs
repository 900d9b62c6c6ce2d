//! The comparison of device and host fails when it should: y = 2x, right on the host, with one fault at a time on the
//! device.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Float, Fwd, Grid, Host, HostLayer, Layer, Node, Plan, Registry,
    Result, args,
};
use lgm_proto::LayerParameter;
use lgm_testkit::{Case, check};

/// The layer's name says what is wrong with it.
struct Double {
    fault: String,
    count: usize,
}

fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
    Node::compute(Double { fault: param.name().to_string(), count: 0 })
}

impl Double {
    fn has(&self, fault: &str) -> bool {
        self.fault == fault
    }
}

impl Layer for Double {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        self.count = bottoms[0].shape.count();
        Ok(Plan { saved: vec![bottoms[0].with_shape([1])], ..Plan::elementwise(&bottoms[0]) })
    }
}

impl HostLayer for Double {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, y) = (io.bottom_unless_shared::<T>(0)?, io.top::<T>(0)?);
        if let Some(x) = x {
            y.copy_from_slice(x);
        }
        y.iter_mut().for_each(|y| *y += *y);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let dy = io.top_diff_unless_shared::<T>(0)?;
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            if let Some(dy) = dy {
                dx.copy_from_slice(dy);
            }
            dx.iter_mut().for_each(|d| *d += *d);
        }
        Ok(())
    }
}

impl DeviceLayer for Double {
    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let shared = io.bottoms[0].is_none();
        let y = io.top(0)?;
        let x = io.bottom_unless_shared(0).unwrap_or(y);
        let factor = match () {
            () if self.has("wrong top") => 2.001f32,
            () if self.has("in place is off") && shared => 2.000_001,
            () if self.has("top depends on saving") && io.saved(0).is_none() => 2.000_001,
            () => 2.0,
        };
        let n = if self.has("leaves a top element") { self.count - 1 } else { self.count };
        if self.has("changes the bottom") && !shared {
            io.launch("eltwise_scale", Grid::elements(1), args![x, x, 2.0f32, 1i64])?;
        }
        if self.has("writes past the end") {
            io.launch("pointwise_fill", Grid::elements(1), args![y.floats(n), 0.0f32, 1i64])?;
        }
        if self.has("gives a wrong type") {
            return io.launch("eltwise_scale", Grid::elements(n), args![y, x, 2.0f32, n as i32]);
        }
        io.launch("eltwise_scale", Grid::elements(n), args![y, x, factor, n as i64])
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let shared = io.top_diffs[0].is_none();
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let dy = io.top_diff_unless_shared(0).unwrap_or(dx);
        if self.has("reads saved memory never written") {
            let args = args![dx, dy, io.saved(0)?, 2.0f32, 1.0f32, 1i64];
            return io.launch("eltwise_sum", Grid::elements(1), args);
        }
        let factor = if self.has("wrong gradient") {
            1.999f32
        } else if self.has("shared diffs are off") && shared {
            2.000_001
        } else {
            2.0
        };
        io.launch("eltwise_scale", Grid::elements(self.count), args![dx, dy, factor, self.count as i64])
    }
}

/// The message that the check ends with, if it fails.
fn outcome(fault: &str) -> Option<String> {
    let mut registry = Registry::default();
    registry.add("Double", build);
    let case = Case::new(format!("layer {{ name: '{fault}' type: 'Double' bottom: 'x' top: 'y' }}")).bottom([2, 3]);
    let run = AssertUnwindSafe(|| check(&registry, &[case]));
    let payload = catch_unwind(run).err()?;
    Some(payload.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn a_right_device_half_passes() {
    assert_eq!(outcome("right"), None);
}

#[test]
fn every_fault_is_found() {
    if !lgm_testkit::has_simulator() {
        return;
    }
    for (fault, needle) in [
        ("wrong top", "top 0 on the device: element"),
        ("leaves a top element", "was not written"),
        ("in place is off", "Sharing { data: true"),
        ("top depends on saving", "no backward"),
        ("changes the bottom", "forward changed bottom 0"),
        ("writes past the end", "past the end of a block of 24"),
        ("gives a wrong type", "takes arguments of types ppfl"),
        ("reads saved memory never written", "bottom diff 0 on the device was not written"),
        ("wrong gradient", "bottom diff 0 on the device: element"),
        ("shared diffs are off", "diff: true"),
    ] {
        let text = outcome(fault).unwrap_or_else(|| panic!("'{fault}' was not found"));
        assert!(text.contains(needle), "'{fault}' gave: {text}");
    }
}
