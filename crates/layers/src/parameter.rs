//! Parameter: a learned blob as a top.
//!
//! y = W, of the shape that `parameter_param` gives, zero at first; dW = dy. No bottoms. Source: Caffe's layer of this name.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, DType, Device, DeviceLayer, Float, Fwd, Grid, Host, HostLayer, Layer, Node,
    ParamSpec, Plan, Result, Shape, args, ensure, kernel,
};
use lgm_cpu::elementwise;
use lgm_proto::{BlobShape, LayerParameter};

use crate::common::shapes::top_shapes;

/// The layer; see the module.
pub struct Parameter {
    given: BlobShape,
    dtype: DType,
    shape: Shape,
}

impl Parameter {
    pub(crate) fn build(param: &LayerParameter, cx: &BuildCx) -> Result<Node> {
        let given = param.parameter_param.clone().unwrap_or_default().shape;
        ensure!(given.is_some(), "parameter_param must give the shape of the parameter, as shape {{ dim: … }}");
        Node::compute(Parameter { given: given.unwrap_or_default(), dtype: cx.dtype, shape: Shape::scalar() })
    }
}

impl Layer for Parameter {
    fn arity(&self) -> Arity {
        Arity::exactly(0, 1)
    }

    fn plan(&mut self, _bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        self.shape = top_shapes(std::slice::from_ref(&self.given), 1)?.remove(0);
        let params = vec![ParamSpec::new(self.shape.clone(), None)];
        Ok(Plan { params, ..Plan::new(vec![BlobSpec::new(self.shape.clone(), self.dtype)]) })
    }
}

impl HostLayer for Parameter {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        elementwise::copy(io.param::<T>(0)?, io.top::<T>(0)?);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        if let Some(dw) = io.param_diff::<T>(0)? {
            elementwise::add(io.top_diff::<T>(0)?, dw);
        }
        Ok(())
    }
}

impl DeviceLayer for Parameter {
    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (w, y) = (io.param(0)?, io.top(0)?);
        io.queue().copy(w, y, io.format().bytes(&self.shape))
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dw) = io.param_diff(0) else { return Ok(()) };
        let n = self.shape.count();
        let args = args![dw, dw, io.top_diff(0)?, 1.0f32, 1.0f32, n as i64];
        io.launch(kernel!("eltwise_sum"), Grid::elements(n), args)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_testkit::{Case, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'p' type: 'Parameter' top: 'y' {param} }}")
    }

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/parameter_0"),
                Case::new(layer("parameter_param { shape { dim: 2 dim: 3 dim: 7 } }")),
                Case::new(layer("parameter_param { shape { } }")),
            ],
        );
    }

    #[test]
    fn mistakes_are_named() {
        config_error(&registry(), &layer(""), &[], &["parameter_param must give the shape"]);
        let negative = layer("parameter_param { shape { dim: -2 } }");
        config_error(&registry(), &negative, &[], &["negative extent"]);
    }
}
