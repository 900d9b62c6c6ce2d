//! The order within each row, with few crossings.

use super::Items;

/// Sweeps without a gain before the best order so far is taken.
const PATIENCE: usize = 4;
const SWEEPS: usize = 40;

/// The items of each row in order.
pub fn rows(items: &Items) -> Vec<Vec<usize>> {
    let count = items.rank.len();
    let (mut up, mut down) = (vec![Vec::new(); count], vec![Vec::new(); count]);
    for &(a, b) in &items.segments {
        down[a].push(b);
        up[b].push(a);
    }
    let mut rows = first(items, &down);
    let mut best = (crossings(&rows, &down, count), rows.clone());
    let mut since = 0;
    for sweep in 0..SWEEPS {
        if best.0 == 0 || since == PATIENCE {
            break;
        }
        if sweep % 2 == 0 {
            for r in 1..rows.len() {
                arrange(&mut rows, r, r - 1, &up, count);
            }
        } else {
            for r in (0..rows.len().saturating_sub(1)).rev() {
                arrange(&mut rows, r, r + 1, &down, count);
            }
        }
        let found = crossings(&rows, &down, count);
        since += 1;
        if found < best.0 {
            best = (found, rows.clone());
            since = 0;
        }
    }
    best.1
}

/// An order to begin with: that of a walk from the sources, which keeps branches beside each other.
fn first(items: &Items, down: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut rows = vec![Vec::new(); items.rank.iter().max().map_or(0, |last| last + 1)];
    let mut seen = vec![false; items.rank.len()];
    let mut by_rank: Vec<usize> = (0..items.rank.len()).collect();
    by_rank.sort_by_key(|&item| items.rank[item]);
    for root in by_rank {
        let mut open = vec![root];
        while let Some(item) = open.pop() {
            if !std::mem::replace(&mut seen[item], true) {
                rows[items.rank[item]].push(item);
                open.extend(down[item].iter().rev());
            }
        }
    }
    rows
}

/// Where each item of a row stands.
fn standing(row: &[usize], count: usize) -> Vec<usize> {
    let mut at = vec![usize::MAX; count];
    row.iter().enumerate().for_each(|(i, &item)| at[item] = i);
    at
}

/// Orders a row by the mean position of each item's neighbours in another row.
fn arrange(rows: &mut [Vec<usize>], row: usize, beside: usize, neighbours: &[Vec<usize>], count: usize) {
    let at = standing(&rows[beside], count);
    let mean = |i: usize, item: usize| {
        let near = &neighbours[item];
        let sum: usize = near.iter().map(|&other| at[other]).sum();
        // What has no neighbour there keeps its place.
        if near.is_empty() { i as f64 } else { sum as f64 / near.len() as f64 }
    };
    let mut keyed: Vec<(f64, usize)> = rows[row].iter().enumerate().map(|(i, &item)| (mean(i, item), item)).collect();
    keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
    rows[row] = keyed.into_iter().map(|(_, item)| item).collect();
}

/// How many pairs of segments cross.
fn crossings(rows: &[Vec<usize>], down: &[Vec<usize>], count: usize) -> usize {
    let mut crossed = 0;
    for pair in rows.windows(2) {
        let at = standing(&pair[1], count);
        // Ends in the order of beginnings: each end crosses the earlier ones that lie beyond it, counted by a Fenwick tree.
        let mut tree = vec![0usize; pair[1].len() + 1];
        let mut earlier = 0;
        for item in &pair[0] {
            let mut ends: Vec<usize> = down[*item].iter().map(|&to| at[to]).collect();
            ends.sort_unstable();
            for &end in &ends {
                let mut upto = end + 1;
                let mut before = 0;
                while upto > 0 {
                    before += tree[upto];
                    upto &= upto - 1;
                }
                crossed += earlier - before;
            }
            for end in ends {
                earlier += 1;
                let mut i = end + 1;
                while i < tree.len() {
                    tree[i] += 1;
                    i += i & i.wrapping_neg();
                }
            }
        }
    }
    crossed
}
