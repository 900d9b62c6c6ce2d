//! The row of each node.

/// The edges, those that close a cycle turned round, as those back to the blob from a layer that works in place.
pub fn acyclic(nodes: usize, edges: &[(usize, usize)]) -> Vec<(usize, usize)> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Not,
        Open,
        Done,
    }
    let mut leaving = vec![Vec::new(); nodes];
    let mut entered = vec![false; nodes];
    for (i, &(from, to)) in edges.iter().enumerate() {
        leaving[from].push(i);
        entered[to] |= from != to;
    }
    let mut seen = vec![Seen::Not; nodes];
    let mut out = edges.to_vec();
    // What nothing leads to first, so that edges are followed in the net's direction.
    let (first, then): (Vec<_>, Vec<_>) = (0..nodes).partition(|&node| !entered[node]);
    for root in first.into_iter().chain(then) {
        if seen[root] != Seen::Not {
            continue;
        }
        seen[root] = Seen::Open;
        let mut path = vec![(root, 0)];
        while let Some((node, next)) = path.last_mut() {
            let Some(&edge) = leaving[*node].get(*next) else {
                seen[*node] = Seen::Done;
                path.pop();
                continue;
            };
            *next += 1;
            let (from, to) = edges[edge];
            match seen[to] {
                Seen::Open => out[edge] = (to, from),
                Seen::Done => (),
                Seen::Not => {
                    seen[to] = Seen::Open;
                    path.push((to, 0));
                }
            }
        }
    }
    out
}

/// The row of each node: after all that leads to it, and what nothing leads to just before what it leads to.
pub fn ranks(nodes: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let mut leaving = vec![Vec::new(); nodes];
    let mut waits = vec![0usize; nodes];
    for &(from, to) in edges.iter().filter(|(from, to)| from != to) {
        leaving[from].push(to);
        waits[to] += 1;
    }
    let sources: Vec<usize> = (0..nodes).filter(|&node| waits[node] == 0).collect();
    let mut rank = vec![0; nodes];
    let mut ready = sources.clone();
    while let Some(node) = ready.pop() {
        for &to in &leaving[node] {
            rank[to] = rank[to].max(rank[node] + 1);
            waits[to] -= 1;
            if waits[to] == 0 {
                ready.push(to);
            }
        }
    }
    for source in sources {
        let nearest = leaving[source].iter().map(|&to| rank[to]).min();
        rank[source] = nearest.map_or(0, |nearest| nearest - 1);
    }
    rank
}
