//! Rows that vary: layers whose tops have as many rows as the data of a pass says ([`Plan::rows_vary`]), and the layers
//! after them, which plan anew for what they are given before each forward.
//!
//! # Invariants
//!
//! - Memory is laid out for the most rows; nothing that is planned for fewer takes more bytes than that, so that what was
//!   verified when the net was built holds.
//! - Between two forwards of a layer its values, saved memory and scratch keep their extents: backward sees forward's.
//! - A layer whose bottoms are all empty computes nothing: its tops are empty too, and losses and scores are 0.

use lgm_core::{BlobSpec, Error, Node, Plan, Result, Shape, ensure};

use crate::graph::{Graph, LayerNode};

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

    /// Gives layer `i`'s tops the extents of this pass and plans it for those of its bottoms; `rows` are those of its tops
    /// where it chooses them itself.
    ///
    /// # Errors
    /// When the layer cannot compute what it is given; names the layer that made it so.
    pub fn follow(&self, graph: &mut Graph, i: usize, rows: Option<usize>) -> Result<()> {
        let Some(Varying { origin, most }) = &self.0[i] else { return Ok(()) };
        let specs: Vec<BlobSpec> = graph.layers[i].bottoms.iter().map(|&b| graph.values[b].spec.clone()).collect();
        let with_rows = |rows: usize| {
            let fewer = |top: &BlobSpec| if top.shape.is_empty() { top.clone() } else { in_rows(top, rows) };
            Plan { tops: most.tops.iter().map(fewer).collect(), ..most.clone() }
        };
        let node = &mut graph.layers[i].node;
        let plan = match (node, rows) {
            (_, Some(rows)) => Ok(with_rows(rows)),
            _ if specs.iter().all(is_empty) => Ok(with_rows(0)),
            (Node::Compute(layer), _) if !specs.iter().any(is_empty) => layer.plan(&specs, most.tops.len()),
            (Node::Sink(sink), _) if !specs.iter().any(is_empty) => sink.open(&specs).map(|()| most.clone()),
            (Node::Source(_), _) => Ok(most.clone()),
            _ => Err(Error::config(format!("some of its bottoms are empty ({})", shapes(&specs)))),
        };
        let plan = plan.and_then(|plan| fits(&plan, most).map(|()| plan)).map_err(|error| {
            let origin = &graph.layers[*origin];
            let (name, kind) = (origin.name(), origin.kind());
            let what =
                format!("cannot follow layer '{name}' ({kind}), whose tops have other rows in this pass: {error}");
            graph.layers[i].in_layer(Error::config(what))
        })?;
        for (&top, spec) in graph.layers[i].tops.iter().zip(&plan.tops) {
            graph.values[top].spec = spec.clone();
        }
        graph.layers[i].plan = plan;
        Ok(())
    }
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
