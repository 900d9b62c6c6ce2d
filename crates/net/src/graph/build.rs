//! Building a graph: every layer built, connected and planned in the order of the prototxt.

use std::collections::{HashMap, HashSet};

use lgm_core::{Arity, BlobSpec, BuildCx, DType, Error, Format, Node, Plan, Position, Registry, Result, ensure};
use lgm_proto::LayerParameter;
use tracing::info;

use super::filter::Placed;
use super::{Graph, LayerNode, Value};

impl Graph {
    /// Builds and plans every layer.
    ///
    /// # Errors
    /// For whatever a layer refuses, named after the layer and its place in the prototxt.
    pub fn build(layers: Vec<Placed>, registry: &Registry, cx: BuildCx) -> Result<Graph> {
        let mut graph = Graph::default();
        let mut names = HashMap::new();
        let mut data_bytes = 0;
        let keys = keys(layers.iter().map(|(l, _)| (l.name(), l.r#type())));
        for ((param, at), key) in layers.into_iter().zip(keys) {
            let (name, kind) = (param.name().to_string(), param.r#type().to_string());
            let name_layer = |e: Error| e.in_layer(&name, &kind, at.as_ref());
            let phase = param.phase.map_or(cx.phase, |_| param.phase());
            info!("Creating Layer {name}");
            // Layers name their random draws after themselves, so no two may go by one name.
            let keyed = LayerParameter { name: Some(key.clone()), ..param.clone() };
            let node = registry.build(&keyed, &BuildCx { phase, ..cx }).map_err(name_layer)?;
            graph.add(key, param, at.clone(), node, cx.dtype, &mut names).map_err(name_layer)?;
            let Some(layer) = graph.layers.last() else { continue };
            info!("Setting up {name}");
            for &top in &layer.tops {
                let value = &graph.values[top];
                info!("Top shape: {}", value.spec.shape.caffe());
                if value.loss_weight != 0.0 {
                    info!("    with loss weight {}", value.loss_weight);
                }
                data_bytes = value.spec.bytes().saturating_add(data_bytes);
            }
            info!("Memory required for data: {data_bytes}");
        }
        Ok(graph)
    }

    fn add(
        &mut self,
        key: String,
        mut param: LayerParameter,
        at: Option<Position>,
        mut node: Node,
        dtype: DType,
        names: &mut HashMap<String, usize>,
    ) -> Result<()> {
        ensure!(
            param.propagate_down.is_empty() || param.propagate_down.len() == param.bottom.len(),
            "propagate_down must be given never or once a bottom: expected {} values, found {}",
            param.bottom.len(),
            param.propagate_down.len()
        );
        let id = self.layers.len();
        let mut bottoms = Vec::with_capacity(param.bottom.len());
        for (j, blob) in param.bottom.iter().enumerate() {
            let Some(&value) = self.by_name.get(blob).filter(|&&v| self.values[v].consumer.is_none()) else {
                return Err(Error::config(format!("Unknown bottom blob '{blob}' (bottom index {j})")));
            };
            info!("{} <- {blob}", param.name());
            self.values[value].consumer = Some((id, j));
            bottoms.push(value);
        }
        let arity = match &node {
            Node::Compute(layer) => layer.arity(),
            Node::Source(_) => Arity::range(0..=0, 1..=usize::MAX),
            Node::Sink(_) => Arity::range(1..=usize::MAX, 0..=0),
        };
        let tops = check_arity(&arity, bottoms.len(), param.top.len())?;
        let specs: Vec<BlobSpec> = bottoms.iter().map(|&v| self.values[v].spec.clone()).collect();
        if let Some((j, spec)) = specs.iter().enumerate().find(|(_, s)| s.shape.count() == 0) {
            return Err(Error::config(format!("bottom {j} ('{}') is empty: shape {}", param.bottom[j], spec.shape)));
        }
        let plan = match &mut node {
            Node::Compute(layer) => layer.plan(&specs, tops)?,
            Node::Source(source) => {
                let shapes = source.open(tops)?;
                Plan::new(shapes.into_iter().map(|shape| BlobSpec { shape, dtype }).collect())
            }
            Node::Sink(sink) => {
                sink.open(&specs)?;
                Plan::default()
            }
        };
        ensure!(
            plan.tops.len() == tops,
            "{tops} tops are named, but this layer makes {} from what it is given",
            plan.tops.len()
        );
        check_sizes(&plan, dtype)?;
        let weights = loss_weights(&param, &plan)?;
        let mut top_ids = Vec::with_capacity(tops);
        for (j, spec) in plan.tops.iter().enumerate() {
            let blob = param.top.get(j).map_or("(automatic)", String::as_str);
            let in_place = param.bottom.get(j).is_some_and(|b| b == blob);
            ensure!(
                in_place || !self.by_name.contains_key(blob) || j >= param.top.len(),
                "Top blob '{blob}' produced by multiple sources: give this top another name"
            );
            info!("{} -> {blob}{}", param.name(), if in_place { " (in-place)" } else { "" });
            let value = self.values.len();
            self.values.push(Value {
                name: blob.into(),
                spec: spec.clone(),
                format: Format::PLAIN,
                producer: (id, j),
                consumer: None,
                loss_weight: weights[j],
            });
            if j < param.top.len() {
                self.by_name.insert(blob.into(), value);
            }
            top_ids.push(value);
        }
        let params = self.add_params(id, &mut param, &plan.params, dtype, names)?;
        let bottom_backward = vec![false; bottoms.len()];
        self.layers.push(LayerNode {
            key,
            param,
            at,
            node,
            plan,
            bottoms,
            tops: top_ids,
            exec_params: params.clone(),
            params,
            fused_into: None,
            internal: false,
            backward: false,
            bottom_backward,
        });
        Ok(())
    }
}

/// A key that identifies each layer, given their names and types in order: its name, or for a layer without a name
/// or with that of an earlier one, the name, type and number of such layers before it, as in `conv#ReLU0`. The same
/// layers have the same keys in the training net, a test net and a file of weights.
pub fn keys<'a>(layers: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let mut taken = HashSet::new();
    let mut count: HashMap<(&str, &str), usize> = HashMap::new();
    let each = |(name, kind): (&'a str, &'a str)| {
        let mut key = name.to_string();
        while key.is_empty() || !taken.insert(key.clone()) {
            let n = count.entry((name, kind)).or_default();
            key = format!("{name}#{kind}{n}");
            *n += 1;
        }
        key
    };
    layers.map(each).collect()
}

fn check_arity(arity: &Arity, bottoms: usize, tops: usize) -> Result<usize> {
    let say = |range: &std::ops::RangeInclusive<usize>| match (*range.start(), *range.end()) {
        (a, b) if a == b => format!("exactly {a}"),
        (a, usize::MAX) => format!("at least {a}"),
        (a, b) => format!("{a} to {b}"),
    };
    ensure!(arity.bottoms.contains(&bottoms), "takes {} bottom blob(s), found {bottoms}", say(&arity.bottoms));
    let wanted = if arity.auto_tops { tops.max(*arity.tops.start()) } else { tops };
    ensure!(arity.tops.contains(&wanted), "makes {} top blob(s), found {tops}", say(&arity.tops));
    ensure!(!arity.equal || bottoms == wanted, "makes one top a bottom: expected {bottoms} tops, found {tops}");
    Ok(wanted)
}

/// Fails for a plan with a blob that no memory can hold. A bottom has been a top, so no layer sees a count that is none.
pub fn check_sizes(plan: &Plan, dtype: DType) -> Result<()> {
    let numbered = |what: &'static str, specs: &[BlobSpec]| -> Result<()> {
        specs.iter().enumerate().try_for_each(|(i, spec)| spec.check(&format!("{what} {i}")))
    };
    let params: Vec<BlobSpec> = plan.params.iter().map(|p| BlobSpec { shape: p.shape.clone(), dtype }).collect();
    numbered("top", &plan.tops)?;
    numbered("parameter", &params)?;
    numbered("saved blob", &plan.saved)?;
    numbered("scratch", &plan.scratch)
}

fn loss_weights(param: &LayerParameter, plan: &Plan) -> Result<Vec<f32>> {
    let tops = plan.tops.len();
    if param.loss_weight.is_empty() {
        return Ok((0..tops).map(|j| if plan.losses.contains(&j) { 1.0 } else { 0.0 }).collect());
    }
    ensure!(
        param.loss_weight.len() == tops,
        "loss_weight must be given never or once a top: expected {tops} values, found {}",
        param.loss_weight.len()
    );
    Ok(param.loss_weight.clone())
}
