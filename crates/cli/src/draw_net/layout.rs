//! Where the nodes of a directed graph lie: in rows (ranks) along its direction, each edge from a row to a later one, few
//! crossings, edges short and straight. The method is that of Sugiyama, Tagawa and Toda (1981): rows by longest paths,
//! orders within rows by barycenters, positions within rows by least squares.

mod order;
mod place;
mod ranks;

use std::collections::HashMap;

use lgm_core::{Error, Result};

/// A position: across the direction, and along it.
pub type At = [f64; 2];

/// Between neighbours of a row.
const GAP: f64 = 24.0;
/// Between rows, where edges bend and are labelled.
const ROW_GAP: f64 = 38.0;
/// What an edge takes in a row that it passes.
const LANE: f64 = 6.0;
/// Between two edges of the same two nodes, to and fro.
const APART: f64 = 10.0;
/// Nodes and the rows that edges pass, all together.
const MOST: usize = 200_000;

/// Nodes and edges with their places.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The extent of everything, from 0.
    pub size: At,
    /// The middle of each node.
    pub nodes: Vec<At>,
    /// The corners of each edge from its beginning to its end; it is to be drawn as a curve that passes each in the
    /// graph's direction.
    pub edges: Vec<Vec<At>>,
}

/// What is ordered and placed: nodes, and the rows that edges pass, which all edges from one node share.
struct Items {
    /// The row of each.
    rank: Vec<usize>,
    /// What each takes across.
    width: Vec<f64>,
    /// Number of nodes; the items after them are passed rows.
    nodes: usize,
    /// Pairs of items in neighbouring rows that an edge joins.
    segments: Vec<(usize, usize)>,
}

/// Places nodes of given sizes (across, along) and edges between them.
///
/// # Errors
/// When edges pass so many rows that no picture would show them.
pub fn place(sizes: &[At], edges: &[(usize, usize)]) -> Result<Layout> {
    let forward = ranks::acyclic(sizes.len(), edges);
    let rank = ranks::ranks(sizes.len(), &forward);
    let (items, chains) = items(sizes, rank, &forward)?;
    let rows = order::rows(&items);
    let across = place::across(&items, &rows);

    let heights: Vec<f64> = rows
        .iter()
        .map(|row| row.iter().filter(|&&i| i < items.nodes).map(|&i| sizes[i][1]).fold(0.0, f64::max))
        .collect();
    let mut middles = Vec::with_capacity(rows.len());
    let mut along = 0.0;
    for height in &heights {
        middles.push(along + height / 2.0);
        along += height + ROW_GAP;
    }
    let nodes: Vec<At> = (0..items.nodes).map(|i| [across[i], middles[items.rank[i]]]).collect();

    let mut parallel: HashMap<_, (usize, usize)> = HashMap::new();
    forward.iter().for_each(|ends| parallel.entry(*ends).or_default().0 += 1);
    let edges = edges.iter().zip(&forward).zip(&chains).map(|((&(from, _), &(a, b)), chain)| {
        if a == b {
            return vec![nodes[a]; 2];
        }
        let (all, earlier) = parallel.entry((a, b)).or_default();
        let aside = (*earlier as f64 - (*all as f64 - 1.0) / 2.0) * APART;
        *earlier += 1;
        let mut path = vec![[nodes[a][0] + aside, nodes[a][1] + sizes[a][1] / 2.0]];
        for &item in chain {
            let (middle, half) = (middles[items.rank[item]], heights[items.rank[item]] / 2.0);
            path.extend([middle - half, middle + half].map(|along| [across[item] + aside, along]));
        }
        path.push([nodes[b][0] + aside, nodes[b][1] - sizes[b][1] / 2.0]);
        if from != a {
            path.reverse();
        }
        path
    });
    let edges = edges.collect();
    let width = (0..items.width.len()).map(|i| across[i] + items.width[i] / 2.0).fold(0.0, f64::max);
    Ok(Layout { size: [width, (along - ROW_GAP).max(0.0)], nodes, edges })
}

/// The items, and of each edge those that it passes between its nodes.
fn items(sizes: &[At], rank: Vec<usize>, forward: &[(usize, usize)]) -> Result<(Items, Vec<Vec<usize>>)> {
    let mut items =
        Items { rank, width: sizes.iter().map(|size| size[0]).collect(), nodes: sizes.len(), segments: Vec::new() };
    let mut lanes: Vec<Vec<usize>> = vec![Vec::new(); sizes.len()];
    let mut chains = Vec::with_capacity(forward.len());
    for &(from, to) in forward {
        let passed = (items.rank[to] - items.rank[from]).saturating_sub(1);
        while lanes[from].len() < passed {
            let item = items.rank.len();
            if item >= MOST {
                return Err(Error::config(format!(
                    "the net's edges pass more than {MOST} rows of layers, too many for a picture; write a .dot file"
                )));
            }
            let before = lanes[from].last().copied().unwrap_or(from);
            items.rank.push(items.rank[before] + 1);
            items.width.push(LANE);
            items.segments.push((before, item));
            lanes[from].push(item);
        }
        let chain = lanes[from][..passed].to_vec();
        if from != to {
            items.segments.push((chain.last().copied().unwrap_or(from), to));
        }
        chains.push(chain);
    }
    items.segments.sort_unstable();
    items.segments.dedup();
    Ok((items, chains))
}

#[cfg(test)]
mod tests {
    use lgm_core::rng::Philox;

    use super::*;

    fn boxes(count: usize) -> Vec<At> {
        (0..count).map(|i| [40.0 + (i % 7) as f64 * 15.0, 20.0 + (i % 3) as f64 * 12.0]).collect()
    }

    /// Nothing overlaps, nothing lies outside, and every edge joins the edges of its nodes.
    fn sound(sizes: &[At], edges: &[(usize, usize)], layout: &Layout) {
        let reach = |i: usize| {
            let ([x, y], [w, h]) = (layout.nodes[i], sizes[i]);
            [x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0]
        };
        for a in 0..sizes.len() {
            let [left, top, right, bottom] = reach(a);
            assert!(left > -1e-6 && top > -1e-6, "{a}");
            assert!(right < layout.size[0] + 1e-6 && bottom < layout.size[1] + 1e-6, "{a}");
            for b in 0..a {
                let [l, t, r, d] = reach(b);
                assert!(
                    left >= r + 1.0 || l >= right + 1.0 || top >= d + 1.0 || t >= bottom + 1.0,
                    "{a} lies over {b}"
                );
            }
        }
        for ((from, to), path) in edges.iter().zip(&layout.edges) {
            for (node, end) in [(from, path[0]), (to, path[path.len() - 1])] {
                let [left, top, right, bottom] = reach(*node);
                assert!(end[0] >= left && end[0] <= right, "{from} to {to}");
                assert!((end[1] - top).abs() < 1e-6 || (end[1] - bottom).abs() < 1e-6, "{from} to {to}");
            }
        }
    }

    #[test]
    fn graphs_drawn_at_random_lie_without_overlap() {
        let mut random = Philox::new(5, 1).from(0);
        let mut below = |n: usize| (random.uniform(0.0, n as f64) as usize).min(n - 1);
        for nodes in [1, 2, 5, 20, 60] {
            for _ in 0..6 {
                // Any ends: cycles, edges twice and nodes without edges are among them.
                let edges: Vec<_> =
                    (0..2 * nodes).map(|_| (below(nodes), below(nodes))).filter(|(a, b)| a != b).collect();
                let sizes = boxes(nodes);
                let layout = place(&sizes, &edges).unwrap();
                sound(&sizes, &edges, &layout);
                assert_eq!(place(&sizes, &edges).unwrap().nodes, layout.nodes);
            }
        }
        assert_eq!(place(&[], &[]).unwrap().size, [0.0, 0.0]);
    }

    #[test]
    fn a_chain_is_straight_and_a_layer_in_place_lies_below_its_blob() {
        // data, conv, its blob, a layer in place on it, the next layer.
        let edges = [(0, 1), (1, 2), (2, 3), (3, 2), (2, 4)];
        let sizes = [[50.0, 20.0]; 5];
        let layout = place(&sizes, &edges).unwrap();
        sound(&sizes, &edges, &layout);
        let rows: Vec<_> = layout.nodes.iter().map(|at| at[1]).collect();
        assert!(rows[0] < rows[1] && rows[1] < rows[2] && rows[2] < rows[3] && rows[3] == rows[4], "{rows:?}");
        assert!((layout.nodes[0][0] - layout.nodes[1][0]).abs() < 1.0);
        // The way back begins at the layer and ends at the blob above it.
        assert!(layout.edges[3][0][1] > layout.edges[3][1][1]);
        assert_ne!(layout.edges[2][0][0], layout.edges[3][1][0]);
    }

    #[test]
    fn branches_do_not_cross_and_long_edges_pass_beside_nodes() {
        // Four branches of two nodes between a source and a sink, and an edge past them all.
        let mut edges = vec![(0, 9)];
        for branch in 0..4 {
            edges.extend([(0, 1 + branch), (1 + branch, 8 - branch), (8 - branch, 9)]);
        }
        let sizes = vec![[60.0, 20.0]; 10];
        let layout = place(&sizes, &edges).unwrap();
        sound(&sizes, &edges, &layout);
        let order = |nodes: [usize; 4]| {
            let mut branches: Vec<usize> = (0..4).collect();
            branches.sort_by(|&a, &b| layout.nodes[nodes[a]][0].total_cmp(&layout.nodes[nodes[b]][0]));
            branches
        };
        assert_eq!(order([1, 2, 3, 4]), order([8, 7, 6, 5]));
        for node in 1..9 {
            let [x, y] = layout.nodes[node];
            let passed = layout.edges[0].iter().filter(|at| (at[1] - y).abs() <= 10.0);
            passed.for_each(|at| assert!((at[0] - x).abs() > 30.0, "the long edge passes through {node}"));
        }
    }

    #[test]
    fn what_no_picture_would_show_is_refused() {
        // Every node of a long chain is joined to the last one.
        let count = 700;
        let edges: Vec<_> = (0..count - 1).flat_map(|i| [(i, i + 1), (i, count - 1)]).collect();
        let error = place(&boxes(count), &edges).unwrap_err().to_string();
        assert!(error.contains("write a .dot file"), "{error}");
    }
}
