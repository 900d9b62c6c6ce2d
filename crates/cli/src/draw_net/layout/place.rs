//! Positions across the direction: every item near the mean of its neighbours, none over another.

use super::{GAP, Items, LANE};

const SWEEPS: usize = 48;

/// The middle of each item, the leftmost edge of all at 0.
pub fn across(items: &Items, rows: &[Vec<usize>]) -> Vec<f64> {
    let count = items.rank.len();
    let (mut up, mut down) = (vec![Vec::new(); count], vec![Vec::new(); count]);
    let mut degree = vec![0; count];
    items.segments.iter().for_each(|&(a, b)| [a, b].iter().for_each(|&end| degree[end] += 1));
    for &(a, b) in &items.segments {
        // Edges that pass rows are to be straight, for which their parts pull harder than edges between neighbours.
        // What hangs on one edge, as layers in place do, leaves the nodes of a path below each other.
        let hangs = degree[a].min(degree[b]) == 1;
        let pull = match usize::from(a >= items.nodes) + usize::from(b >= items.nodes) {
            _ if hangs => 0.05,
            0 => 1.0,
            1 => 2.0,
            _ => 8.0,
        };
        down[a].push((b, pull));
        up[b].push((a, pull));
    }
    let steps: Vec<Vec<f64>> = rows.iter().map(|row| steps(items, row)).collect();
    let mut at = vec![0.0; count];
    for (row, steps) in rows.iter().zip(&steps) {
        let half = steps.last().copied().unwrap_or(0.0) / 2.0;
        row.iter().zip(steps).for_each(|(&item, step)| at[item] = step - half);
    }
    for sweep in 0..SWEEPS {
        let settle = |row: usize, at: &mut [f64]| {
            let near = |item: usize| {
                let (above, below) = (up[item].iter(), down[item].iter());
                let pulls: Vec<_> = match sweep % 3 {
                    0 if !up[item].is_empty() => above.collect(),
                    1 if !down[item].is_empty() => below.collect(),
                    _ => above.chain(below).collect(),
                };
                let weight: f64 = pulls.iter().map(|(_, pull)| pull).sum();
                let sum: f64 = pulls.iter().map(|(other, pull)| at[*other] * pull).sum();
                if weight > 0.0 { (sum / weight, weight) } else { (at[item], 0.01) }
            };
            let wanted: Vec<_> = rows[row].iter().map(|&item| near(item)).collect();
            let found = nearest(&wanted, &steps[row]);
            rows[row].iter().zip(found).for_each(|(&item, x)| at[item] = x);
        };
        match sweep % 3 {
            1 => (0..rows.len()).rev().for_each(|row| settle(row, &mut at)),
            _ => (0..rows.len()).for_each(|row| settle(row, &mut at)),
        }
    }
    let left = (0..count).map(|i| at[i] - items.width[i] / 2.0).fold(f64::INFINITY, f64::min);
    at.iter().map(|x| x - left).collect()
}

/// How far each item of a row lies from the first when they stand as close as they may.
fn steps(items: &Items, row: &[usize]) -> Vec<f64> {
    let mut step = 0.0;
    let mut last: Option<usize> = None;
    row.iter()
        .map(|&item| {
            if let Some(last) = last.replace(item) {
                let lanes = last >= items.nodes && item >= items.nodes;
                step += (items.width[last] + items.width[item]) / 2.0 + if lanes { LANE } else { GAP };
            }
            step
        })
        .collect()
}

/// The positions nearest to those wanted (value and weight, by least squares) that are `steps` apart or more: isotonic
/// regression, by pooling neighbours that violate the order.
fn nearest(wanted: &[(f64, f64)], steps: &[f64]) -> Vec<f64> {
    let mut pools: Vec<(f64, f64, usize)> = Vec::with_capacity(wanted.len());
    for (&(value, weight), step) in wanted.iter().zip(steps) {
        let mut pool = (value - step, weight, 1);
        while let Some(&(value, weight, count)) = pools.last().filter(|last| last.0 > pool.0) {
            pools.pop();
            pool = ((value * weight + pool.0 * pool.1) / (weight + pool.1), weight + pool.1, count + pool.2);
        }
        pools.push(pool);
    }
    let values = pools.iter().flat_map(|&(value, _, count)| std::iter::repeat_n(value, count));
    values.zip(steps).map(|(value, step)| value + step).collect()
}
