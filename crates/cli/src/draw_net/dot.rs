//! A graph in Graphviz's language.

use super::graph::{Graph, Kind};
use crate::args::Rankdir;

/// The text of a `.dot` file.
pub fn text(graph: &Graph, rankdir: Rankdir) -> String {
    let mut out = format!("digraph {} {{\nrankdir={};\n", quoted(&graph.name), rankdir.name());
    for node in &graph.nodes {
        let fill = node.fill;
        let style = match node.kind {
            Kind::Output => "shape=ellipse".to_string(),
            kind => {
                let shape = if kind == Kind::Layer { "box" } else { "octagon" };
                format!("shape={shape}, fillcolor=\"#{:02X}{:02X}{:02X}\", style=filled", fill.0, fill.1, fill.2)
            }
        };
        out += &format!("{} [label={}, {style}];\n", quoted(&node.id), quoted(&node.lines.join("\n")));
    }
    for edge in &graph.edges {
        let [from, to] = [edge.from, edge.to].map(|node| quoted(&graph.nodes[node].id));
        let label = if edge.label.is_empty() { String::new() } else { format!(" [label={}]", quoted(&edge.label)) };
        out += &format!("{from} -> {to}{label};\n");
    }
    out + "}\n"
}

/// A text in quotes. Graphviz reads backslashes in labels, so that those of names are doubled.
fn quoted(words: &str) -> String {
    format!("\"{}\"", words.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
