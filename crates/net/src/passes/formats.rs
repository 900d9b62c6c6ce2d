//! The formats pass: how a device stores each value. Every layer says in which formats it takes its bottoms and gives its
//! tops; where a reader wants another than the writer gives, a conversion comes between them, a layer like any other that
//! no prototxt names. Outputs and what counts towards the loss are plain, and so is what layers on the host see.
//!
//! # Invariants
//!
//! - Afterwards every layer finds each bottom in the format that it asked for, and a name leads to a value that holds what
//!   the blob of that name holds.
//! - Layers keep their order, and whoever wrote or read a value still does or reads a conversion of it
//!   ([`Graph::check`], asserted in debug builds).

use std::fmt;

use lgm_core::{BlobSpec, ChannelsLast, Error, Format, Formats, Node, Offer, Plan, Registry, Result, Storage};
use lgm_proto::LayerParameter;

use super::memory::Role;
use crate::graph::{Graph, LayerNode, Value, ValueId};
use lgm_core::memory::in_units;

/// The conversions that a net's passes make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conversions {
    /// Of data, in a forward pass.
    pub forward: usize,
    /// Of gradients, in a backward pass.
    pub backward: usize,
    /// Bytes that both passes read and write for them.
    pub bytes: usize,
}

impl fmt::Display for Conversions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conversions { forward, backward, bytes } = *self;
        let bytes = in_units(bytes as u64);
        write!(f, "{forward} conversions forward and {backward} backward, which read and write {bytes}")
    }
}

impl Conversions {
    /// What a device would have stored, and what is converted for it.
    pub(crate) fn summary(&self, storage: Storage) -> String {
        let element = Format { element: storage.element, ..Format::PLAIN };
        let layout = match storage.channels_last {
            ChannelsLast::Never => "",
            ChannelsLast::WhereItPays => ", NHWC where tensor cores take it",
            ChannelsLast::Always => ", NHWC wherever a layer can",
        };
        format!("{element}{layout}; {}", self)
    }
}

/// The type that reports give conversions.
pub(crate) const KIND: &str = "Conversion";

/// What a device would have stored, or what the variable `LGM_LAYOUT` says of it: `nchw`, or `nhwc` wherever a layer can.
///
/// # Errors
/// When the variable says anything else.
pub fn storage(of_device: Storage) -> Result<Storage> {
    let Some(said) = std::env::var_os("LGM_LAYOUT") else { return Ok(of_device) };
    let channels_last = match said.to_str() {
        Some("nchw") => ChannelsLast::Never,
        Some("nhwc") => ChannelsLast::Always,
        _ => {
            let said = said.to_string_lossy();
            return Err(Error::config(format!("the variable LGM_LAYOUT is '{said}'; it can be nchw or nhwc")));
        }
    };
    Ok(Storage { channels_last, ..of_device })
}

/// What layer `i` takes and gives when its bottoms arrive so.
fn ask(graph: &Graph, roles: &[Role], i: usize, arriving: &[Format], storage: Storage) -> Formats {
    let layer = &graph.layers[i];
    let run = layer.compute().filter(|_| roles[i] == Role::Here).and_then(|c| c.device());
    let bottoms: Vec<BlobSpec> = layer.bottoms.iter().map(|&v| graph.values[v].spec.clone()).collect();
    let offer = Offer { bottoms: &bottoms, arriving, tops: layer.tops.len(), storage };
    run.map_or_else(Formats::default, |run| run.formats(&offer))
}

/// The format into which one conversion before a layer of several tops, whose readers would get `format`, does for all of
/// them: one that all want, or that some want and the rest, which take what comes, take too, if it is what the device would
/// have stored.
fn wanted_by_all(graph: &Graph, roles: &[Role], i: usize, format: Format, storage: Storage) -> Option<Format> {
    let wanted = |format: Format, &top: &ValueId| {
        let (reader, bottom) = graph.values[top].consumer?;
        let arriving = vec![format; graph.layers[reader].bottoms.len()];
        Some(ask(graph, roles, reader, &arriving, storage).bottom(bottom))
    };
    let tops = &graph.layers[i].tops;
    let other = tops.iter().filter_map(|top| wanted(format, top)).find(|wanted| *wanted != format)?;
    let all = |arriving: Format| tops.iter().all(|top| wanted(arriving, top) == Some(other));
    (tops.len() > 1 && (all(format) || other.element == storage.element && all(other))).then_some(other)
}

fn decide(graph: &mut Graph, roles: &[Role], storage: Storage) {
    for i in 0..graph.layers.len() {
        let mut arriving: Vec<Format> = graph.layers[i].bottoms.iter().map(|&v| graph.values[v].format).collect();
        if let [one] = arriving[..]
            && let Some(format) = wanted_by_all(graph, roles, i, one, storage)
        {
            arriving = vec![format];
        }
        let formats = ask(graph, roles, i, &arriving, storage);
        for (t, top) in graph.layers[i].tops.clone().into_iter().enumerate() {
            graph.values[top].format = formats.top(t);
        }
        graph.layers[i].plan.formats = formats;
    }
}

/// Layers by number, those that were there first, and the order in which they run.
struct Rebuilt {
    layers: Vec<LayerNode>,
    order: Vec<usize>,
    conversions: Conversions,
}

impl Rebuilt {
    /// A conversion of `from` next in order; the value it makes, which nobody reads yet.
    fn convert(
        &mut self,
        graph: &mut Graph,
        registry: &Registry,
        from: ValueId,
        format: Format,
        backward: bool,
    ) -> Result<ValueId> {
        let value = &graph.values[from];
        let (spec, was) = (value.spec.clone(), value.format);
        let (id, made) = (self.layers.len(), graph.values.len());
        let mut node = registry.conversion(was, format)?;
        let plan = match &mut node {
            Node::Compute(layer) => layer.plan(std::slice::from_ref(&spec), 1)?,
            Node::Source(_) | Node::Sink(_) => Plan::default(),
        };
        let name = format!("{} to {format}", value.name);
        let bytes = was.bytes(&spec.shape) + format.bytes(&spec.shape);
        let times = 1 + usize::from(backward);
        self.conversions.forward += 1;
        self.conversions.backward += usize::from(backward);
        self.conversions.bytes += times * bytes;
        let param = LayerParameter { name: Some(name.clone()), r#type: Some(KIND.into()), ..Default::default() };
        self.layers.push(LayerNode {
            key: name.clone(),
            param,
            at: None,
            node,
            plan,
            bottoms: vec![from],
            tops: vec![made],
            params: Vec::new(),
            exec_params: Vec::new(),
            fused_into: None,
            internal: true,
            backward,
            bottom_backward: vec![backward],
        });
        self.order.push(id);
        graph.values[from].consumer = Some((id, 0));
        graph.values.push(Value { name, spec, format, producer: (id, 0), consumer: None, loss_weight: 0.0 });
        Ok(made)
    }

    /// Has everybody else see `made` in the place of `inner`, of which it is a conversion.
    fn show(&mut self, graph: &mut Graph, inner: ValueId, made: ValueId, reader: Option<(usize, usize)>) {
        let name = format!("{} in {}", graph.values[inner].name, graph.values[inner].format);
        let name = std::mem::replace(&mut graph.values[inner].name, name);
        if graph.by_name.get(&name) == Some(&inner) {
            graph.by_name.insert(name.clone(), made);
        }
        let weight = std::mem::take(&mut graph.values[inner].loss_weight);
        let value = &mut graph.values[made];
        (value.name, value.loss_weight, value.consumer) = (name, weight, reader);
        if let Some((reader, bottom)) = reader {
            self.layers[reader].bottoms[bottom] = made;
        }
    }
}

/// Decides every value's format and puts conversions where they are needed. `roles` by layer; conversions run here.
///
/// # Errors
/// Never for a graph that was built.
pub fn assign(graph: &mut Graph, registry: &Registry, roles: &[Role], storage: Storage) -> Result<Conversions> {
    if storage == Storage::default() {
        return Ok(Conversions::default());
    }
    decide(graph, roles, storage);
    let layers = std::mem::take(&mut graph.layers);
    let count = layers.len();
    let mut rebuilt = Rebuilt { layers, order: Vec::with_capacity(count), conversions: Conversions::default() };
    for i in 0..count {
        for b in 0..rebuilt.layers[i].bottoms.len() {
            let layer = &rebuilt.layers[i];
            let (bottom, format) = (layer.bottoms[b], layer.plan.formats.bottom(b));
            if !graph.values[bottom].format.is_same(format, &graph.values[bottom].spec.shape) {
                let backward = layer.backward && layer.bottom_backward[b];
                let made = rebuilt.convert(graph, registry, bottom, format, backward)?;
                graph.values[made].consumer = Some((i, b));
                rebuilt.layers[i].bottoms[b] = made;
            }
        }
        rebuilt.order.push(i);
        for top in rebuilt.layers[i].tops.clone() {
            let value = &graph.values[top];
            let seen = value.loss_weight != 0.0 || value.consumer.is_none();
            if seen && !value.format.is_same(Format::PLAIN, &value.spec.shape) {
                let (reader, backward) = (value.consumer, rebuilt.layers[i].backward);
                let made = rebuilt.convert(graph, registry, top, Format::PLAIN, backward)?;
                rebuilt.show(graph, top, made, reader);
            }
        }
    }
    let Rebuilt { layers, order, conversions } = rebuilt;
    let mut place = vec![0; layers.len()];
    order.iter().enumerate().for_each(|(at, &id)| place[id] = at);
    let mut layers: Vec<(usize, LayerNode)> = place.iter().copied().zip(layers).collect();
    layers.sort_by_key(|(at, _)| *at);
    graph.layers = layers.into_iter().map(|(_, layer)| layer).collect();
    for value in &mut graph.values {
        value.producer.0 = place[value.producer.0];
        value.consumer = value.consumer.map(|(reader, b)| (place[reader], b));
    }
    for layer in &mut graph.layers {
        layer.fused_into = layer.fused_into.map(|by| place[by]);
    }
    graph.params.iter_mut().for_each(|param| param.layer = place[param.layer]);
    if cfg!(debug_assertions) {
        graph.check();
    }
    Ok(conversions)
}
