//! `debug_info`: the mean absolute value of every blob as it is computed, in Caffe's words.

use lgm_core::Result;
use lgm_proto::six_digits;
use tracing::info;

use crate::net::Net;

fn mean_abs(values: &[f64]) -> f64 {
    values.iter().map(|x| x.abs()).sum::<f64>() / values.len().max(1) as f64
}

impl Net {
    pub(crate) fn log_forward(&self, i: usize) -> Result<()> {
        let layer = &self.graph.layers[i];
        for &top in &layer.tops {
            let mean = six_digits(mean_abs(&self.exec.value(&self.graph, top)?));
            info!("    [Forward] Layer {}, top blob {} data: {mean}", layer.name(), self.graph.values[top].name);
        }
        if layer.params.is_empty() {
            return Ok(());
        }
        let params = self.exec.params(false)?;
        for &p in &layer.params {
            let mean = six_digits(mean_abs(&params.data(&self.graph, p)));
            info!("    [Forward] Layer {}, param blob {} data: {mean}", layer.name(), self.graph.params[p].display);
        }
        Ok(())
    }

    pub(crate) fn log_backward(&self, i: usize) -> Result<()> {
        let layer = &self.graph.layers[i];
        for (j, &bottom) in layer.bottoms.iter().enumerate() {
            if let Some(diff) = self.exec.gradient(&self.graph, bottom)?.filter(|_| layer.bottom_backward[j]) {
                let name = &self.graph.values[bottom].name;
                info!(
                    "    [Backward] Layer {}, bottom blob {name} diff: {}",
                    layer.name(),
                    six_digits(mean_abs(&diff))
                );
            }
        }
        if layer.params.is_empty() {
            return Ok(());
        }
        let params = self.exec.params(true)?;
        for &p in layer.params.iter().filter(|&&p| self.graph.params[p].backward) {
            if let Some(diff) = params.diff(&self.graph, p) {
                let index = self.graph.params[p].index;
                info!(
                    "    [Backward] Layer {}, param blob {index} diff: {}",
                    layer.name(),
                    six_digits(mean_abs(&diff))
                );
            }
        }
        Ok(())
    }

    /// Logs the norms of all parameters and their gradients, after a backward pass.
    pub(crate) fn log_params(&self) -> Result<()> {
        let (mut l1, mut l2) = ([0.0f64; 2], [0.0f64; 2]);
        let params = self.exec.params(true)?;
        for l in &self.graph.learnables {
            let values = [Some(params.data(&self.graph, l.owner)), params.diff(&self.graph, l.owner)];
            for (k, values) in values.into_iter().enumerate() {
                for x in values.unwrap_or_default() {
                    l1[k] += x.abs();
                    l2[k] += x * x;
                }
            }
        }
        let [a, b, c, d] = [l1[0], l1[1], l2[0].sqrt(), l2[1].sqrt()].map(six_digits);
        tracing::error!("    [Backward] All net params (data, diff): L1 norm = ({a}, {b}); L2 norm = ({c}, {d})");
        Ok(())
    }

    /// Logs every parameter and its update, before the update is made.
    ///
    /// # Errors
    /// When they cannot be read from a device.
    pub fn log_update(&self) -> Result<()> {
        let params = self.exec.params(true)?;
        for (p, param) in self.graph.params.iter().enumerate() {
            let layer = self.graph.layers[param.layer].name();
            let diff = params.diff(&self.graph, p).map_or(0.0, |d| mean_abs(&d));
            let (diff, name) = (six_digits(diff), &param.display);
            match param.owner {
                None => {
                    let data = six_digits(mean_abs(&params.data(&self.graph, p)));
                    info!("    [Update] Layer {layer}, param {name} data: {data}; diff: {diff}");
                }
                Some(owner) => {
                    let owner = &self.graph.params[owner];
                    let owned = self.graph.layers[owner.layer].name();
                    info!(
                        "    [Update] Layer {layer}, param blob {name} (owned by layer {owned}, param {}) diff: {diff}",
                        owner.display
                    );
                }
            }
        }
        Ok(())
    }
}
