//! Where numbers stop being finite.

use lgm_core::{Result, Step};

use crate::net::Net;

impl Net {
    /// Names the first thing that is not finite in a forward pass: a parameter that is not when the pass begins, else the
    /// first blob that a layer makes so; nothing where all are finite. Statistics that layers keep are passed over: the pass
    /// that fails has changed them already. Runs the pass again, layer by layer, so it takes its
    /// time, and data layers move on as in any pass.
    ///
    /// # Errors
    /// As for [`Net::forward`], and when a device cannot be read.
    pub fn first_not_finite(&mut self, step: &Step) -> Result<Option<String>> {
        let params = self.exec.params(false)?;
        for (p, param) in self.graph.params.iter().enumerate().filter(|(_, param)| !param.state) {
            if let Some(value) = odd(&params.data(&self.graph, p)) {
                let layer = &self.graph.layers[param.layer];
                let (index, name, kind) = (param.index, layer.name(), layer.kind());
                return Ok(Some(format!("parameter {index} of layer '{name}' ({kind}), which holds {value}")));
            }
        }
        drop(params);
        for i in 0..self.graph.layers.len() {
            self.forward_layer(i, step)?;
            let layer = &self.graph.layers[i];
            for &top in &layer.tops {
                if let Some(value) = odd(&self.exec.value(&self.graph, top)?) {
                    let (blob, name, kind) = (&self.graph.values[top].name, layer.name(), layer.kind());
                    return Ok(Some(format!("blob '{blob}' of layer '{name}' ({kind}), which holds {value}")));
                }
            }
        }
        Ok(None)
    }
}

/// The first number that is not finite.
fn odd(values: &[f64]) -> Option<f64> {
    values.iter().copied().find(|value| !value.is_finite())
}
