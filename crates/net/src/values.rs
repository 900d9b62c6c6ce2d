//! Reading and writing blobs and parameters from outside, wherever they live.

use lgm_core::{Error, Result, Shape};

use crate::exec::NamedValues;
use crate::graph::ValueId;
use crate::net::Net;

impl Net {
    fn blob_id(&self, name: &str) -> Result<ValueId> {
        let known = || self.graph.by_name.keys().map(String::as_str);
        self.graph.by_name.get(name).copied().ok_or_else(|| Error::unknown("the net has no blob", name, known()))
    }

    /// A blob's shape and data. Only outputs and blobs that [`crate::Options::keep`] names are sure to hold what the
    /// last pass made.
    ///
    /// # Errors
    /// When there is no such blob, or it cannot be read from a device.
    pub fn blob(&self, name: &str) -> Result<(Shape, Vec<f64>)> {
        let v = self.blob_id(name)?;
        Ok((self.graph.values[v].spec.shape.clone(), self.exec.value(&self.graph, v)?))
    }

    /// The outputs, by name in the order of [`Net::outputs`].
    ///
    /// # Errors
    /// When they cannot be read from a device, or its kernels found something wrong.
    pub fn output_values(&self) -> Result<Vec<NamedValues>> {
        let each = |v: ValueId| Ok((self.graph.values[v].name.clone(), self.exec.value(&self.graph, v)?));
        let values = self.graph.outputs().into_iter().map(each).collect::<Result<_>>()?;
        self.check()?;
        Ok(values)
    }

    /// A blob's gradient after a backward pass, if one is computed.
    ///
    /// # Errors
    /// When there is no such blob, or it cannot be read from a device.
    pub fn blob_diff(&self, name: &str) -> Result<Option<Vec<f64>>> {
        self.exec.gradient(&self.graph, self.blob_id(name)?)
    }

    /// Sets a blob's data: for the tops of Input layers.
    ///
    /// # Errors
    /// When there is no such blob or the count differs.
    pub fn set_blob(&mut self, name: &str, data: &[f64]) -> Result<()> {
        let v = self.blob_id(name)?;
        self.exec.set_value(&self.graph, v, data)
    }

    /// A layer's parameters: shape and values of each.
    ///
    /// # Errors
    /// When there is no such layer, or they cannot be read from a device.
    pub fn layer_params(&self, name: &str) -> Result<Vec<(Shape, Vec<f64>)>> {
        let known = || self.graph.layers.iter().map(|l| l.name());
        let layer = self.graph.layers.iter().find(|l| l.name() == name);
        let layer = layer.ok_or_else(|| Error::unknown("the net has no layer", name, known()))?;
        if layer.params.is_empty() {
            return Ok(Vec::new());
        }
        let values = self.exec.params(false)?;
        let each = |&p: &usize| (self.graph.params[p].spec.shape.clone(), values.data(&self.graph, p));
        Ok(layer.params.iter().map(each).collect())
    }
}
