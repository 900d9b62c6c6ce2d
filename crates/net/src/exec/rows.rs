//! Rows that vary: layers whose tops have as many rows as the data of a pass says ([`Plan::rows_vary`]), and the layers
//! after them, which plan anew for what they are given before each forward.
//!
//! # Invariants
//!
//! - Memory is laid out for the most rows; nothing that is planned for fewer takes more bytes than that, so that what was
//!   verified when the net was built holds.
//! - Between two forwards of a layer its values, saved memory and scratch keep their extents: backward sees forward's.
//! - A layer whose bottoms are all empty computes nothing: its tops are empty too, and losses and scores are 0.
//! - On a device a layer's own memory is laid out for whatever it wants at any number of rows ([`VaryingRows::make_room`]).

use lgm_core::{BlobSpec, Compute, Error, Node, Plan, Result, Shape, ensure};

use crate::graph::{Graph, LayerNode};

/// Up to how many rows room is made for each number of them; beyond, where sums come in one part, for each that is twice the last.
const EACH: usize = 1024;

/// Changes the plan of the layer of a number for where it runs: given its plan of the most rows, too.
pub(crate) type Settle<'a> = dyn Fn(usize, &mut Compute, &mut Plan, &Plan) -> Result<()> + 'a;

/// A layer whose bottoms' or tops' rows vary.
struct Varying {
    /// The layer that it depends on and that makes them vary; the layer itself if it does.
    origin: usize,
    /// What was planned for the most rows.
    most: Plan,
}

/// The layers of a net whose extents may change from pass to pass.
pub(crate) struct VaryingRows(Vec<Option<Varying>>);

impl VaryingRows {
    /// Finds them.
    pub fn of(graph: &Graph) -> VaryingRows {
        let mut all: Vec<Option<Varying>> = Vec::with_capacity(graph.layers.len());
        for (i, layer) in graph.layers.iter().enumerate() {
            let inherited = layer.bottoms.iter().find_map(|&b| all[graph.values[b].producer.0].as_ref());
            let origin = if layer.plan.rows_vary { Some(i) } else { inherited.map(|before| before.origin) };
            all.push(origin.map(|origin| Varying { origin, most: layer.plan.clone() }));
        }
        VaryingRows(all)
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// Whether layer `i` is one of them.
    pub fn has(&self, i: usize) -> bool {
        self.0[i].is_some()
    }

    /// Gives layer `i`'s tops the extents of this pass and plans it for those of its bottoms; `rows` are those of its tops
    /// where it chooses them itself.
    ///
    /// # Errors
    /// When the layer cannot compute what it is given; names the layer that made it so.
    pub fn follow(&self, graph: &mut Graph, i: usize, rows: Option<usize>, settle: &Settle<'_>) -> Result<()> {
        let Some(Varying { origin, most }) = &self.0[i] else { return Ok(()) };
        let plan = planned(graph, i, most, rows, settle);
        let plan = plan.and_then(|plan| fits(&plan, most).map(|()| plan)).map_err(|error| {
            let origin = &graph.layers[*origin];
            let (name, kind) = (origin.name(), origin.kind());
            let what =
                format!("cannot follow layer '{name}' ({kind}), whose tops have other rows in this pass: {error}");
            graph.layers[i].in_layer(Error::config(what))
        })?;
        take(graph, i, plan);
        Ok(())
    }

    /// Enlarges what layers that follow others use for themselves to what they would at any number of rows, which on a device
    /// need not be most where the rows are: a sum of few is taken in more parts. [`VaryingRows::follow`] refuses what has no room.
    ///
    /// # Errors
    /// When a layer cannot be planned for the most rows again.
    pub fn make_room(&mut self, graph: &mut Graph, settle: &Settle<'_>) -> Result<()> {
        let rows =
            |graph: &Graph, i: usize| graph.layers[i].tops.first().map_or(0, |&t| rows_of(&graph.values[t].spec));
        let own = |i: usize, all: &[Option<Varying>]| all[i].as_ref().is_some_and(|varying| varying.origin == i);
        let most = (0..graph.layers.len()).filter(|&i| own(i, &self.0)).map(|i| rows(graph, i)).max().unwrap_or(0);
        let mut room: Vec<Plan> = graph.layers.iter().map(|layer| layer.plan.clone()).collect();
        let many =
            std::iter::successors(EACH.checked_mul(2), |rows| rows.checked_mul(2)).take_while(|&rows| rows < most);
        for fewer in (1..=most.min(EACH)).chain(many).chain([most]) {
            for i in 0..graph.layers.len() {
                let Some(Varying { most, .. }) = &self.0[i] else { continue };
                let chosen = own(i, &self.0).then(|| fewer.min(most.tops.first().map_or(0, rows_of)));
                // One that cannot follow says so when it has to.
                let Ok(plan) = planned(graph, i, most, chosen, settle) else { break };
                let Plan { saved, scratch, .. } = &mut room[i];
                for (room, plan) in [(saved, &plan.saved), (scratch, &plan.scratch)] {
                    room.iter_mut().zip(plan).filter(|(r, p)| r.bytes() < p.bytes()).for_each(|(r, p)| *r = p.clone());
                }
                take(graph, i, plan);
            }
        }
        for (i, room) in room.into_iter().enumerate() {
            let Some(Varying { most, .. }) = &self.0[i] else { continue };
            let chosen = own(i, &self.0).then(|| most.tops.first().map_or(0, rows_of));
            let plan = planned(graph, i, most, chosen, settle).map_err(|e| graph.layers[i].in_layer(e))?;
            take(graph, i, Plan { saved: room.saved, scratch: room.scratch, ..plan });
        }
        *self = VaryingRows::of(graph);
        Ok(())
    }
}

/// The plan of a layer for what it is given in this pass.
fn planned(graph: &mut Graph, i: usize, most: &Plan, rows: Option<usize>, settle: &Settle<'_>) -> Result<Plan> {
    let specs: Vec<BlobSpec> = graph.layers[i].bottoms.iter().map(|&b| graph.values[b].spec.clone()).collect();
    let with_rows = |rows: usize| {
        let fewer = |top: &BlobSpec| if top.shape.is_empty() { top.clone() } else { in_rows(top, rows) };
        Plan { tops: most.tops.iter().map(fewer).collect(), ..most.clone() }
    };
    let node = &mut graph.layers[i].node;
    let plan = match (node, rows) {
        (_, Some(rows)) => with_rows(rows),
        _ if specs.iter().all(is_empty) => with_rows(0),
        (Node::Compute(layer), _) if !specs.iter().any(is_empty) => {
            let mut plan = layer.plan(&specs, most.tops.len())?;
            settle(i, layer, &mut plan, most)?;
            plan
        }
        (Node::Sink(sink), _) if !specs.iter().any(is_empty) => {
            sink.open(&specs)?;
            most.clone()
        }
        (Node::Source(_), _) => most.clone(),
        _ => return Err(Error::config(format!("some of its bottoms are empty ({})", shapes(&specs)))),
    };
    Ok(plan)
}

/// Gives a layer a plan, and its tops their extents.
fn take(graph: &mut Graph, i: usize, plan: Plan) {
    for (&top, spec) in graph.layers[i].tops.iter().zip(&plan.tops) {
        graph.values[top].spec = spec.clone();
    }
    graph.layers[i].plan = plan;
}

fn rows_of(spec: &BlobSpec) -> usize {
    spec.shape.first().copied().unwrap_or_default()
}

impl LayerNode {
    /// Whether the layer has nothing to compute in this pass: it has bottoms, and all are empty.
    pub(super) fn is_idle(&self, graph: &Graph) -> bool {
        let empty = |&b: &usize| is_empty(&graph.values[b].spec);
        !self.bottoms.is_empty() && self.bottoms.iter().all(empty)
    }
}

fn is_empty(spec: &BlobSpec) -> bool {
    spec.shape.count() == 0
}

fn in_rows(top: &BlobSpec, rows: usize) -> BlobSpec {
    top.with_shape(top.shape.splice(0..1, [rows]))
}

fn shapes(specs: &[BlobSpec]) -> String {
    specs.iter().map(|spec| spec.shape.to_string()).collect::<Vec<_>>().join(", ")
}

/// Fails unless a plan differs from that for the most rows in smaller extents alone.
fn fits(plan: &Plan, most: &Plan) -> Result<()> {
    let params = |plan: &Plan| plan.params.iter().map(|p| p.shape.clone()).collect::<Vec<Shape>>();
    let (now, then) = (params(plan), params(most));
    ensure!(now == then, "its parameters would have the shapes {now:?} instead of {then:?}");
    for (what, now, most) in [
        ("tops", &plan.tops, &most.tops),
        ("saved", &plan.saved, &most.saved),
        ("scratch", &plan.scratch, &most.scratch),
    ] {
        let fit = now.len() == most.len() && now.iter().zip(most).all(|(now, most)| now.bytes() <= most.bytes());
        let (now, most) = (shapes(now), shapes(most));
        ensure!(fit, "its memory ({what}) of shapes {most} has no room for {now}");
    }
    let same = plan.share_data == most.share_data
        && plan.share_diff == most.share_diff
        && plan.backward_bottoms == most.backward_bottoms
        && plan.backward_tops == most.backward_tops
        && plan.no_gradient == most.no_gradient;
    ensure!(same, "it would share or read other memory than planned");
    Ok(())
}
