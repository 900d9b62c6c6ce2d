//! DummyData: blobs filled anew in every forward pass, each by a filler; zeros when none is given.
//!
//! Shapes: no bottoms; tops of the given `shape`s, or of `num` × `channels` × `height` × `width`; shapes and fillers one
//! for each top or one for all. Forward pass b draws top t from counter b · 2³² of that top's own random stream.
//!
//! On a device, tops that are all constant are written there; random numbers are drawn on the host.
//!
//! Source: Caffe's layer of this name. Caffe writes constants only once; here a top's memory may be used for something
//! else between passes, so they are written each time.

use lgm_core::rng::{Philox, stream_id};
use lgm_core::{
    Arity, BlobSpec, BuildCx, DType, Device, DeviceLayer, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result,
    Shape, ensure, filler,
};
use lgm_cpu::for_each_block;
use lgm_proto::{BlobShape, DummyDataParameter, FillerParameter, LayerParameter};

use crate::common::launch::fill;
use crate::common::shapes::top_shapes;

/// The layer; see the module.
pub struct DummyData {
    param: DummyDataParameter,
    name: String,
    dtype: DType,
    tops: Vec<Top>,
}

struct Top {
    shape: Shape,
    filler: FillerParameter,
    stream: u64,
}

impl DummyData {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let name = param.name().to_string();
        let param = param.dummy_data_param.clone().unwrap_or_default();
        Node::compute(DummyData { param, name, dtype: cx.dtype, tops: Vec::new() })
    }

    fn shapes(&self, tops: usize) -> Result<Vec<Shape>> {
        let p = &self.param;
        let legacy = [("num", &p.num), ("channels", &p.channels), ("height", &p.height), ("width", &p.width)];
        if legacy.iter().all(|(_, values)| values.is_empty()) {
            return top_shapes(&p.shape, tops);
        }
        ensure!(p.shape.is_empty(), "both shape and num, channels, height, width are given; keep one");
        for (name, values) in legacy {
            ensure!(
                values.len() == 1 || values.len() == tops,
                "{name} must be given once, or once for each of the {tops} tops; found {} times",
                values.len()
            );
        }
        let extent = |values: &[u32], t: usize| values[if values.len() == 1 { 0 } else { t }] as i64;
        let shapes: Vec<BlobShape> =
            (0..tops).map(|t| BlobShape { dim: legacy.map(|(_, values)| extent(values, t)).to_vec() }).collect();
        top_shapes(&shapes, tops)
    }
}

impl Layer for DummyData {
    fn arity(&self) -> Arity {
        Arity::range(0..=0, 1..=usize::MAX)
    }

    fn plan(&mut self, _bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let fillers = &self.param.data_filler;
        ensure!(
            fillers.len() <= 1 || fillers.len() == tops,
            "data_filler must be given once, or once for each of the {tops} tops; found {} times",
            fillers.len()
        );
        let top = |(t, shape): (usize, Shape)| {
            let filler = fillers.get(if fillers.len() > 1 { t } else { 0 }).cloned().unwrap_or_default();
            let stream = stream_id(&self.name, &format!("top {t}"));
            filler::check(&filler, &shape)?;
            Ok(Top { shape, filler, stream })
        };
        self.tops = self.shapes(tops)?.into_iter().enumerate().map(top).collect::<Result<_>>()?;
        let specs = self.tops.iter().map(|t| BlobSpec::new(t.shape.clone(), self.dtype)).collect();
        Ok(Plan { no_backward: true, ..Plan::new(specs) })
    }
}

impl HostLayer for DummyData {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        for (t, Top { shape, filler, stream }) in self.tops.iter().enumerate() {
            let y = io.top::<T>(t)?;
            let draws = (Philox::new(io.call.step.seed, *stream), io.call.step.batch << 32);
            filler::fill_shared(filler, shape, draws, y, |y, task| for_each_block(y, task))?;
        }
        Ok(())
    }
}

impl DeviceLayer for DummyData {
    fn is_supported(&self) -> bool {
        self.tops.iter().all(|top| filler::constant(&top.filler).is_some())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        for (t, top) in self.tops.iter().enumerate() {
            let value = filler::constant(&top.filler).unwrap_or_default();
            fill(io.call, io.top(t)?, value, top.shape.count())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::registry;
    use lgm_core::{Phase, Step};
    use lgm_testkit::{Case, Harness, Inputs, check, config_error};

    fn layer(tops: &str, param: &str) -> String {
        format!("layer {{ name: 'd' type: 'DummyData' {tops} dummy_data_param {{ {param} }} }}")
    }

    fn run(tops: &str, param: &str, batch: u64) -> (Vec<Shape>, Vec<Vec<f64>>) {
        let harness = Harness::new(&registry(), &layer(tops, param), Phase::Train, DType::F32, &[]).unwrap();
        let inputs = harness.forward_inputs(&[]).unwrap();
        let step = Step { batch, ..inputs.step };
        let tops = harness.run(&Inputs { step, ..inputs }).unwrap().tops;
        (harness.plan.tops.into_iter().map(|s| s.shape).collect(), tops)
    }

    const TWO: &str = "top: 'a' top: 'b'";

    #[test]
    fn fillers_and_shapes_go_to_their_tops() {
        let value = "data_filler { value: 2 } data_filler { type: 'uniform' min: 5 max: 6 }";
        let (shapes, tops) = run(TWO, &format!("shape {{ dim: 3 }} shape {{ dim: 2 dim: 2 }} {value}"), 0);
        assert_eq!(shapes, [Shape::from([3]), Shape::from([2, 2])]);
        assert_eq!(tops[0], [2.0; 3]);
        assert!(tops[1].iter().all(|v| (5.0..6.0).contains(v)));
        let (shapes, tops) = run(TWO, "num: 1 num: 2 channels: 3 height: 1 width: 2", 0);
        assert_eq!(shapes, [Shape::from([1, 3, 1, 2]), Shape::from([2, 3, 1, 2])]);
        assert_eq!((&tops[0], &tops[1]), (&vec![0.0; 6], &vec![0.0; 12]));
    }

    #[test]
    fn constants_are_written_on_a_device() {
        let one = |param: &str| Case::new(layer("top: 'a'", param)).without_gradients();
        let two = |param: &str| Case::new(layer(TWO, param)).without_gradients();
        check(
            &registry(),
            &[
                one("shape { dim: 3 dim: 5 }"),
                two("shape { dim: 7 } data_filler { value: -2.5 } data_filler { type: 'constant' value: 3 }"),
            ],
        );
        let on_device = |param: &str| {
            let mut harness = Harness::new(&registry(), &layer(TWO, param), Phase::Train, DType::F32, &[]).unwrap();
            harness.layer.device_mut().is_some()
        };
        assert!(on_device("shape { dim: 3 } data_filler { value: 1 }"));
        assert!(!on_device("shape { dim: 3 } data_filler { value: 1 } data_filler { type: 'uniform' }"));
    }

    #[test]
    fn random_tops_change_with_the_pass_and_differ_from_each_other() {
        let gaussian = "shape { dim: 50 } data_filler { type: 'gaussian' }";
        let (_, first) = run(TWO, gaussian, 0);
        assert_eq!(first, run(TWO, gaussian, 0).1);
        assert_ne!(first[0], first[1]);
        assert_ne!(first, run(TWO, gaussian, 1).1);
    }

    #[test]
    fn mistakes_are_named() {
        for (param, needles) in [
            ("", &["shape must be given once", "2 tops", "found 0"][..]),
            ("num: 1 channels: 1 height: 1", &["width must be given once"]),
            ("num: 1 channels: 1 height: 1 width: 1 shape { dim: 1 }", &["both shape and num"]),
            ("shape { dim: 1 } data_filler { } data_filler { } data_filler { }", &["data_filler", "found 3"]),
            ("shape { dim: 1 } data_filler { type: 'gausian' }", &["unknown filler", "'gaussian'"]),
        ] {
            config_error(&registry(), &layer(TWO, param), &[], needles);
        }
    }
}
