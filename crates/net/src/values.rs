//! Reading and writing blobs and parameters from outside, wherever they live.

use lgm_core::{DType, Error, Result, Shape, View, memory};

use crate::gpu::{float_bytes, floats_of};
use crate::graph::ValueId;
use crate::net::Net;
use crate::plan::Role;

/// An output by name, and its values.
pub type NamedValues<Name = String> = (Name, Vec<f64>);

/// Values to be filled in, in the precision they are kept in.
pub(crate) enum Numbers<'a> {
    F32(&'a mut [f32]),
    F64(&'a mut [f64]),
}

/// The parameters of a net: as they lie on the host, or copied from a device in one go.
pub(crate) enum ParamValues<'a> {
    Host(&'a Net),
    Device { net: &'a Net, data: Vec<u8>, diff: Option<Vec<u8>> },
}

impl ParamValues<'_> {
    /// Values of parameter `p`.
    pub fn data(&self, p: usize) -> Vec<f64> {
        match self {
            ParamValues::Host(net) => net.bound.param(&net.graph, p).to_f64(),
            ParamValues::Device { net, data, .. } => net.part(data, p),
        }
    }

    /// Gradients of parameter `p`, where there are any.
    pub fn diff(&self, p: usize) -> Option<Vec<f64>> {
        match self {
            ParamValues::Host(net) => net.bound.param_diff(&net.graph, p).map(|d| d.to_f64()),
            ParamValues::Device { net, diff, .. } => diff.as_ref().map(|diff| net.part(diff, p)),
        }
    }
}

fn widen(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

impl Net {
    /// The part of a copy of all parameters that is parameter `p`.
    fn part(&self, all: &[u8], p: usize) -> Vec<f64> {
        let span = self.device.as_ref().map_or(0..0, |d| d.span(self.graph.params[p].learnable));
        widen(floats_of(&all[span]))
    }

    /// Every parameter's values, and gradients if `diff`.
    pub(crate) fn param_values(&self, diff: bool) -> Result<ParamValues<'_>> {
        let Some(device) = &self.device else { return Ok(ParamValues::Host(self)) };
        let (data, diff) = device.download_params(diff)?;
        device.check(&self.graph)?;
        Ok(ParamValues::Device { net: self, data, diff })
    }

    /// Sets parameter `p`, wherever it lives, unless it is another net's: `read` fills its values, in `f64` where the net is
    /// in `f64`. On the host they are the parameter's own memory.
    pub(crate) fn fill_param(&mut self, p: usize, read: &mut dyn FnMut(Numbers<'_>) -> Result<()>) -> Result<()> {
        let param = &self.graph.params[p];
        let Some(device) = &self.device else {
            let (mut data, _) = self.bound.param_mut(&self.graph, p);
            return match data.dtype() {
                DType::F32 => read(Numbers::F32(data.slice_mut()?)),
                DType::F64 => read(Numbers::F64(data.slice_mut()?)),
            };
        };
        if device.is_shared(param.learnable) {
            return Ok(());
        }
        let mut values = memory::zeros(param.spec.shape.count(), "a parameter on its way to the device")?;
        read(Numbers::F32(&mut values))?;
        let view = device.bound.param(&self.graph, p);
        device.gpu.upload(&float_bytes(values), view.addr())
    }

    /// Data of a value as the last pass left it.
    pub(crate) fn value_f64(&self, v: ValueId) -> Result<Vec<f64>> {
        match &self.device {
            None => Ok(self.bound.value(&self.graph, v).to_f64()),
            Some(device) => self.download(device.bound.value(&self.graph, v), v),
        }
    }

    /// Diff of a value as the last pass left it, if it has one.
    pub(crate) fn diff_f64(&self, v: ValueId) -> Result<Option<Vec<f64>>> {
        match &self.device {
            None => Ok(self.bound.diff(&self.graph, v).map(|d| d.to_f64())),
            Some(device) => device.bound.diff(&self.graph, v).map(|d| self.download(d, v)).transpose(),
        }
    }

    /// Data or diff of a value, which is stored in its format.
    fn download(&self, view: View<'_, lgm_core::Device>, v: ValueId) -> Result<Vec<f64>> {
        let Some(device) = &self.device else { return Err(Error::internal("the net lives on the host")) };
        let format = self.graph.values[v].format;
        let mut bytes = vec![0; format.bytes(view.shape())];
        device.gpu.download(view.addr(), &mut bytes)?;
        Ok(widen(format.decode(view.shape(), &bytes)))
    }

    /// A blob's shape and data. Only outputs and blobs that [`crate::Options::keep`] names are sure to hold what the
    /// last pass made.
    pub fn blob(&self, name: &str) -> Option<(Shape, Vec<f64>)> {
        let &v = self.graph.by_name.get(name)?;
        Some((self.graph.values[v].spec.shape.clone(), said(self.value_f64(v))?))
    }

    /// The outputs, by name in the order of [`Net::outputs`].
    ///
    /// # Errors
    /// When they cannot be read from a device, or its kernels found something wrong.
    pub fn output_values(&self) -> Result<Vec<NamedValues>> {
        let each = |v: ValueId| Ok((self.graph.values[v].name.clone(), self.value_f64(v)?));
        let values = self.graph.outputs().into_iter().map(each).collect::<Result<_>>()?;
        self.check()?;
        Ok(values)
    }

    /// A blob's gradient after a backward pass, if one is computed.
    pub fn blob_diff(&self, name: &str) -> Option<Vec<f64>> {
        let &v = self.graph.by_name.get(name)?;
        said(self.diff_f64(v))?
    }

    /// Sets a blob's data: for the tops of Input layers.
    ///
    /// # Errors
    /// When there is no such blob or the count differs.
    pub fn set_blob(&mut self, name: &str, data: &[f64]) -> Result<()> {
        let Some(&v) = self.graph.by_name.get(name) else {
            let hint = lgm_core::nearest(name, self.graph.by_name.keys().map(String::as_str));
            let hint = hint.map(|n| format!("; did you mean '{n}'?")).unwrap_or_default();
            return Err(Error::config(format!("the net has no blob '{name}'{hint}")));
        };
        let Some(device) = &self.device else { return self.bound.value_mut(&self.graph, v).write_f64(data) };
        // What a layer brings in on the host is sent over by every pass, from there.
        if device.roles[self.graph.values[v].producer.0] == Role::Feed {
            return self.bound.value_mut(&self.graph, v).write_f64(data);
        }
        let view = device.bound.value(&self.graph, v);
        same_count(data.len(), view.shape())?;
        let data: Vec<f32> = data.iter().map(|&x| x as f32).collect();
        device.gpu.upload(&self.graph.values[v].format.encode(view.shape(), &data), view.addr())
    }

    /// A layer's parameters: shape and values of each.
    pub fn layer_params(&self, layer: &str) -> Option<Vec<(Shape, Vec<f64>)>> {
        let layer = self.graph.layers.iter().find(|l| l.name() == layer)?;
        if layer.params.is_empty() {
            return Some(Vec::new());
        }
        let values = said(self.param_values(false))?;
        let each = |&p: &usize| (self.graph.params[p].spec.shape.clone(), values.data(p));
        Some(layer.params.iter().map(each).collect())
    }
}

/// What was read, or nothing and a line in the log when the device refused.
fn said<T>(read: Result<T>) -> Option<T> {
    read.inspect_err(|error| tracing::error!("cannot read from the device: {error}")).ok()
}

fn same_count(found: usize, shape: &Shape) -> Result<()> {
    if found == shape.count() {
        return Ok(());
    }
    Err(Error::internal(format!("{found} elements do not fill a blob of shape {shape}")))
}
