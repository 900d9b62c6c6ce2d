//! A graph drawn.

use lgm_core::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::graph::{Graph, Kind, Node};
use super::layout::{self, At, Layout};
use crate::args::Rankdir;
use crate::plot::{Area, Drawing, Drawn, px, text, text_width};

const MARGIN: f64 = 16.0;
/// The height of a line of text.
const LINE: u32 = 17;
const EDGE_LINE: u32 = 14;
/// Pieces that a bend of an edge is drawn in.
const PIECES: usize = 12;

/// A graph and where its parts lie.
pub struct Picture<'a> {
    graph: &'a Graph,
    sizes: Vec<At>,
    layout: Layout,
    rankdir: Rankdir,
}

impl<'a> Picture<'a> {
    /// Lays a graph out.
    ///
    /// # Errors
    /// When it is too large.
    pub fn of(graph: &'a Graph, rankdir: Rankdir) -> Result<Picture<'a>> {
        let sizes: Vec<At> = graph.nodes.iter().map(size).collect();
        // Across the direction is first in a layout.
        let turned: Vec<At> = sizes.iter().map(|&[w, h]| if rankdir.is_vertical() { [w, h] } else { [h, w] }).collect();
        let edges: Vec<_> = graph.edges.iter().map(|edge| (edge.from, edge.to)).collect();
        Ok(Picture { graph, sizes, layout: layout::place(&turned, &edges)?, rankdir })
    }

    /// A place in pixels.
    fn at(&self, [across, along]: At) -> At {
        let forward = matches!(self.rankdir, Rankdir::Tb | Rankdir::Lr);
        let along = if forward { along } else { self.layout.size[1] - along };
        let [x, y] = if self.rankdir.is_vertical() { [across, along] } else { [along, across] };
        [x + MARGIN, y + MARGIN]
    }

    fn draw_node<B: DrawingBackend>(&self, area: &Area<B>, index: usize) -> Drawn<(), B> {
        let node = &self.graph.nodes[index];
        let ([x, y], [w, h]) = (self.at(self.layout.nodes[index]), self.sizes[index]);
        let (w, h) = (w / 2.0, h / 2.0);
        let corners: Vec<At> = match node.kind {
            Kind::Layer => vec![[-w, -h], [w, -h], [w, h], [-w, h]],
            Kind::Blob => {
                let cut = 0.3 * h * 2.0;
                let quarter = [[w, h - cut], [w - cut, h], [cut - w, h], [-w, h - cut]];
                quarter.into_iter().chain(quarter.map(|[x, y]| [-x, -y])).collect()
            }
            Kind::Output => (0..64)
                .map(|i| f64::from(i) / 64.0 * std::f64::consts::TAU)
                .map(|angle| [w * angle.cos(), h * angle.sin()])
                .collect(),
        };
        let mut outline: Vec<_> = corners.iter().map(|[dx, dy]| units([x + dx, y + dy])).collect();
        area.draw(&Polygon::new(outline.clone(), node.fill.filled()))?;
        outline.extend(outline.first().copied());
        area.draw(&PathElement::new(outline, BLACK.stroke_width(px(1))))?;
        let style = text(LINE).pos(Pos::new(HPos::Center, VPos::Center));
        let top = y - f64::from(LINE) * (node.lines.len() as f64 - 1.0) / 2.0;
        for (i, line) in node.lines.iter().enumerate() {
            area.draw(&Text::new(line.as_str(), units([x, top + (i as u32 * LINE) as f64]), style.clone()))?;
        }
        Ok(())
    }

    fn draw_edge<B: DrawingBackend>(&self, area: &Area<B>, index: usize) -> Drawn<(), B> {
        let path = &self.layout.edges[index];
        let curve: Vec<At> = bent(path).into_iter().map(|at| self.at(at)).collect();
        let [.., before, end] = curve[..] else { return Ok(()) };
        area.draw(&PathElement::new(curve.iter().map(|&at| units(at)).collect::<Vec<_>>(), BLACK.stroke_width(px(1))))?;
        let (dx, dy) = (end[0] - before[0], end[1] - before[1]);
        let length = dx.hypot(dy);
        if length > 0.0 {
            let (dx, dy) = (dx / length, dy / length);
            let side = |s: f64| units([end[0] - 9.0 * dx - 3.5 * s * dy, end[1] - 9.0 * dy + 3.5 * s * dx]);
            area.draw(&Polygon::new(vec![units(end), side(1.0), side(-1.0)], BLACK.filled()))?;
        }
        let label = &self.graph.edges[index].label;
        if !label.is_empty() {
            let [a, b] = [curve[0], curve[PIECES.min(curve.len() - 1)]];
            let middle = [(a[0] + b[0]) / 2.0, (a[1] + b[1]) / 2.0];
            let (aside, style) = match self.rankdir.is_vertical() {
                true => ([6.0, 0.0], text(EDGE_LINE)),
                false => ([0.0, -9.0], text(EDGE_LINE).pos(Pos::new(HPos::Center, VPos::Center))),
            };
            area.draw(&Text::new(label.as_str(), units([middle[0] + aside[0], middle[1] + aside[1]]), style))?;
        }
        Ok(())
    }
}

impl Drawing for Picture<'_> {
    fn size(&self) -> (u32, u32) {
        let [across, along] = self.layout.size;
        let [w, h] = if self.rankdir.is_vertical() { [across, along] } else { [along, across] };
        // Labels of edges may stand out on the right.
        let out = if self.rankdir.is_vertical() { self.label_width() } else { 0.0 };
        ((w + out + 2.0 * MARGIN).ceil() as u32, (h + 2.0 * MARGIN).ceil() as u32)
    }

    fn draw<B: DrawingBackend>(&self, area: &Area<B>) -> Drawn<(), B> {
        (0..self.graph.edges.len()).try_for_each(|i| self.draw_edge(area, i))?;
        (0..self.graph.nodes.len()).try_for_each(|i| self.draw_node(area, i))
    }
}

impl Picture<'_> {
    fn label_width(&self) -> f64 {
        let widest = self.graph.edges.iter().map(|edge| text_width(&edge.label, EDGE_LINE)).max();
        f64::from(widest.unwrap_or(0))
    }
}

/// Width and height of a node in pixels.
fn size(node: &Node) -> At {
    let width = f64::from(node.lines.iter().map(|line| text_width(line, LINE)).max().unwrap_or(0));
    let height = f64::from(node.lines.len() as u32 * LINE);
    match node.kind {
        Kind::Layer => [width + 20.0, height + 12.0],
        Kind::Blob => [width + 28.0, height + 12.0],
        Kind::Output => [1.2 * width + 24.0, 1.2 * height + 12.0],
    }
}

fn units([x, y]: At) -> (i32, i32) {
    let scale = f64::from(px(1));
    ((x * scale).round() as i32, (y * scale).round() as i32)
}

/// A path with a smooth bend between each two corners, which leaves and enters them along the direction.
fn bent(corners: &[At]) -> Vec<At> {
    let mut out: Vec<At> = corners.first().copied().into_iter().collect();
    for pair in corners.windows(2) {
        let [[x0, y0], [x1, y1]] = [pair[0], pair[1]];
        if x0 != x1 {
            out.extend((1..PIECES).map(|i| {
                let t = i as f64 / PIECES as f64;
                // Bézier's cubic curve with the inner corners half the way along.
                let ease = t * t * (3.0 - 2.0 * t);
                let along = 1.5 * t * (1.0 - t) + t * t * t;
                [x0 + (x1 - x0) * ease, y0 + (y1 - y0) * along]
            }));
        }
        out.push([x1, y1]);
    }
    out
}
