//! The graph of a net: its layers, its blobs and who reads and makes which. Labels, shapes and colours are those of Caffe's
//! `draw.py`, so that a figure is read as users know it.

use std::collections::{HashMap, HashSet};

use lgm_proto::LayerParameter;
use lgm_proto::strings::readable;
use plotters::style::RGBColor;

use crate::args::Rankdir;

/// What a node is, and so its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A layer: a box.
    Layer,
    /// A blob that a layer reads: an octagon.
    Blob,
    /// A blob that no layer reads: an ellipse.
    Output,
}

/// A layer or a blob.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name in Graphviz's text, nobody else's.
    pub id: String,
    /// What is written in it.
    pub lines: Vec<String>,
    /// What it is.
    pub kind: Kind,
    /// What it is filled with.
    pub fill: RGBColor,
}

/// An arrow, and what is written at it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Edge {
    /// The node it begins at.
    pub from: usize,
    /// The node it points to.
    pub to: usize,
    /// A batch size or a number of outputs, or nothing.
    pub label: String,
}

/// Nodes and edges.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// The net's name.
    pub name: String,
    /// Layers and blobs in the order of the prototxt.
    pub nodes: Vec<Node>,
    /// Arrows in the order of the prototxt.
    pub edges: Vec<Edge>,
}

const IN_PLACE: RGBColor = RGBColor(0x90, 0xee, 0x90);
const BLOB: RGBColor = RGBColor(0xe0, 0xe0, 0xe0);
const WHITE: RGBColor = RGBColor(0xff, 0xff, 0xff);

impl Graph {
    /// The graph of some layers of a net. As in Caffe, layers of one name and type are one node, drawn as the last of them,
    /// since a net has one of them in a phase.
    pub fn of(name: &str, layers: &[&LayerParameter], rankdir: Rankdir, display_lrm: bool) -> Graph {
        let mut graph = Graph { name: readable(if name.is_empty() { "Net" } else { name }).into(), ..Graph::default() };
        let mut known = HashMap::new();
        let mut edges = HashSet::new();
        for layer in layers {
            let in_place = layer.bottom.len() == 1 && layer.bottom == layer.top;
            let node = Node {
                id: format!("{}_{}", layer.name(), layer.r#type()),
                lines: lines(layer, rankdir, display_lrm),
                kind: Kind::Layer,
                fill: if in_place { IN_PLACE } else { color(layer.r#type()) },
            };
            let this = graph.node(&mut known, node);
            let ends = layer.bottom.iter().map(|blob| (blob, true)).chain(layer.top.iter().map(|blob| (blob, false)));
            for (blob, read) in ends {
                let (kind, fill) = if read { (Kind::Blob, BLOB) } else { (Kind::Output, WHITE) };
                let node = Node { id: format!("{blob}_blob"), lines: vec![blob.clone()], kind, fill };
                let blob = graph.node(&mut known, node);
                let edge = match read {
                    true => Edge { from: blob, to: this, label: String::new() },
                    false => Edge { from: this, to: blob, label: edge_label(layer) },
                };
                if edges.insert(edge.clone()) {
                    graph.edges.push(edge);
                }
            }
        }
        graph
    }

    /// How many nodes are layers.
    pub fn layers(&self) -> usize {
        self.nodes.iter().filter(|node| node.kind == Kind::Layer).count()
    }

    /// The number of a node, which is new or takes the place of an older one; a blob that is read stays one.
    fn node(&mut self, known: &mut HashMap<(bool, String), usize>, node: Node) -> usize {
        let shown = |text: &String| readable(text).into_owned();
        let node = Node { id: shown(&node.id), lines: node.lines.iter().map(shown).collect(), ..node };
        let at = *known.entry((node.kind == Kind::Layer, node.id.clone())).or_insert(self.nodes.len());
        match self.nodes.get_mut(at) {
            None => self.nodes.push(node),
            Some(_) if node.kind == Kind::Output => (),
            Some(old) => *old = node,
        }
        at
    }
}

/// What is written in a layer's box. Upward and downward there is room for wide boxes, otherwise for high ones.
fn lines(layer: &LayerParameter, rankdir: Rankdir, display_lrm: bool) -> Vec<String> {
    let mut kind = layer.r#type().to_string();
    let mut details = Vec::new();
    let mut window = |kernel: String, stride: String, pad: String| {
        details.extend([format!("kernel size: {kernel}"), format!("stride: {stride}"), format!("pad: {pad}")]);
    };
    if let Some(p) = layer.convolution_param.as_ref().filter(|_| is_convolution(layer)) {
        window(
            extents(&p.kernel_size, p.kernel_h, p.kernel_w, 1),
            extents(&p.stride, p.stride_h, p.stride_w, 1),
            extents(&p.pad, p.pad_h, p.pad_w, 0),
        );
    } else if let Some(p) = layer.pooling_param.as_ref().filter(|_| kind == "Pooling") {
        kind = format!("{} {kind}", p.pool().as_str_name());
        let one = |value: Option<u32>| value.into_iter().collect::<Vec<_>>();
        match p.global_pooling() {
            true => details.push("global".to_string()),
            false => window(
                extents(&one(p.kernel_size), p.kernel_h, p.kernel_w, 1),
                extents(&one(p.stride), p.stride_h, p.stride_w, 1),
                extents(&one(p.pad), p.pad_h, p.pad_w, 0),
            ),
        }
    }
    if display_lrm && !layer.param.is_empty() {
        let rates: Vec<_> = layer.param.iter().map(|param| param.lr_mult().to_string()).collect();
        details.push(format!("lr mult: {}", rates.join(", ")));
    }
    match rankdir {
        Rankdir::Tb | Rankdir::Bt => {
            let first = format!("{} ({kind})", layer.name());
            [first, details.join(" ")].into_iter().filter(|line| !line.is_empty()).collect()
        }
        Rankdir::Lr | Rankdir::Rl => {
            [layer.name().to_string(), format!("({kind})")].into_iter().chain(details).collect()
        }
    }
}

/// The extents of a window: one for all axes, or height × width.
fn extents(all: &[u32], height: Option<u32>, width: Option<u32>, default: u32) -> String {
    let of = |one: Option<u32>| one.or(all.first().copied()).unwrap_or(default);
    let each = if height.is_some() || width.is_some() { vec![of(height), of(width)] } else { all.to_vec() };
    match each.first() {
        None => default.to_string(),
        Some(first) if each.iter().all(|extent| extent == first) => first.to_string(),
        Some(_) => each.iter().map(u32::to_string).collect::<Vec<_>>().join("×"),
    }
}

fn is_convolution(layer: &LayerParameter) -> bool {
    matches!(layer.r#type(), "Convolution" | "Deconvolution" | "ConvolutionDepthwise" | "DepthwiseConvolution")
}

/// What is written where a layer's top leaves it.
fn edge_label(layer: &LayerParameter) -> String {
    let batch = |size: u32| format!("Batch {size}");
    let known = match layer.r#type() {
        "Data" => layer.data_param.as_ref().and_then(|p| p.batch_size).map(batch),
        "ImageData" => layer.image_data_param.as_ref().and_then(|p| p.batch_size).map(batch),
        "HDF5Data" => layer.hdf5_data_param.as_ref().and_then(|p| p.batch_size).map(batch),
        "InnerProduct" => layer.inner_product_param.as_ref().and_then(|p| p.num_output).map(|n| n.to_string()),
        _ if is_convolution(layer) => {
            layer.convolution_param.as_ref().and_then(|p| p.num_output).map(|n| n.to_string())
        }
        _ => None,
    };
    known.unwrap_or_default()
}

fn color(kind: &str) -> RGBColor {
    match kind {
        "Convolution" | "Deconvolution" | "ConvolutionDepthwise" | "DepthwiseConvolution" => RGBColor(0xff, 0x50, 0x50),
        "Pooling" => RGBColor(0xff, 0x99, 0x00),
        "InnerProduct" => RGBColor(0xcc, 0x33, 0xff),
        _ => RGBColor(0x64, 0x95, 0xed),
    }
}
