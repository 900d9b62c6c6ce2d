//! Parameters of one net used by another, as Caffe's test nets use the training net's.
//!
//! On a device the other net is built with the first one's addresses ([`Net::sharing`]) and has no memory of its own for
//! what it shares. On the host each net owns its memory, and [`Net::lend_params`] changes places for the time of a call.

use lgm_core::{Error, Registry, Result};
use lgm_proto::{NetParameter, Positions};

use crate::exec::Shared;
use crate::graph::Graph;
use crate::net::Net;
use crate::options::Options;

impl Net {
    /// Builds a net that computes with this one's parameters, layer by layer of the same name, wherever training moves
    /// them; statistics that layers keep are among them. On a device, nothing of them is allocated, filled or loaded a
    /// second time. On the host they are lent by [`Net::lend_params`].
    ///
    /// # Errors
    /// As [`Net::new`]; when layers of one name disagree in their parameters, or the nets live in different memory.
    pub fn sharing(
        &self,
        param: &NetParameter,
        positions: &Positions,
        registry: &Registry,
        options: &Options,
    ) -> Result<Net> {
        if self.exec.as_device().is_some() != options.device.is_some() {
            return Err(Error::internal("nets in different memory cannot share parameters"));
        }
        Net::build(param, positions, registry, options, Some(self))
    }

    /// What a net of another graph shares with this one on a device; nothing on the host.
    pub(crate) fn shared_with(&self, other: &Graph) -> Result<Option<Shared>> {
        let Some(device) = self.exec.as_device() else { return Ok(None) };
        let mut at = vec![None; other.learnables.len()];
        for (mine, theirs) in matching(&self.graph, other)? {
            at[theirs] = Some(device.param_address(mine));
        }
        Ok(Some(Shared { blocks: device.param_blocks(), at }))
    }

    /// Runs `body` with this net's parameters lent to `other`, layer by layer of the same name, as Caffe shares them
    /// with its test nets. Copied is only what two of `other`'s parameters take from one of this net's. On a device `other` must
    /// come from [`Net::sharing`].
    ///
    /// # Errors
    /// When layers of one name disagree in their parameters, or from `body`.
    pub fn lend_params<R>(&mut self, other: &mut Net, body: impl FnOnce(&mut Net) -> Result<R>) -> Result<R> {
        if self.exec.lends_always(other.exec.as_ref())? {
            return body(other);
        }
        let (mut pairs, mut copies) = (Vec::<(usize, usize)>::new(), Vec::new());
        for (mine, theirs) in matching(&self.graph, &other.graph)? {
            match pairs.iter().find(|pair| pair.0 == mine) {
                Some(&(_, first)) => copies.push((first, theirs)),
                None => pairs.push((mine, theirs)),
            }
        }
        self.exec.exchange_params(other.exec.as_mut(), &pairs)?;
        copies.iter().for_each(|&(from, to)| other.exec.copy_param(from, to));
        let result = body(other);
        self.exec.exchange_params(other.exec.as_mut(), &pairs)?;
        result
    }
}

/// Pairs of learnable parameters, of `graph` and of `other`, that belong together, each of `other` once.
fn matching(graph: &Graph, other: &Graph) -> Result<Vec<(usize, usize)>> {
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    for layer in &other.layers {
        let Some(mine) = graph.layers.iter().find(|l| l.key == layer.key) else { continue };
        let (ours, theirs) = (graph.shown(mine), other.shown(layer));
        if ours.len() != theirs.len() {
            return Err(layer.in_layer(Error::config(format!(
                "the training net's layer of this name has {} parameters, this one {}",
                ours.len(),
                theirs.len()
            ))));
        }
        for (&a, &b) in ours.iter().zip(theirs) {
            let (a, b) = (&graph.params[a], &other.params[b]);
            if a.spec.shape != b.spec.shape {
                let what = format!("parameter {} differs from the training net's", b.index);
                let (expected, found) = (a.spec.shape.clone(), b.spec.shape.clone());
                return Err(layer.in_layer(Error::Shape { what, expected, found }));
            }
            match pairs.iter().find(|pair| pair.1 == b.learnable) {
                None => pairs.push((a.learnable, b.learnable)),
                Some(pair) if pair.0 == a.learnable => {}
                Some(_) => {
                    return Err(layer.in_layer(Error::config(format!(
                        "parameter '{}' is shared with another layer here, but not in the training net: name it in both nets, \
                         or in neither",
                        b.display
                    ))));
                }
            }
        }
    }
    Ok(pairs)
}
