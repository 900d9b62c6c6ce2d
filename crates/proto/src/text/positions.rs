//! Line and column of every field of a file.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::scan::Scan;
use crate::Position;

/// Where the fields of one message stand in the file it was read from.
///
/// A field is named by its path, as in `layer[3].convolution_param.kernel_size[1]`; an index of 0 may be left out.
/// `layer[i]` is the i-th layer of the message as it is now: when an upgrade adds, drops or renames layers, the paths
/// follow.
#[derive(Clone, Debug, Default)]
pub struct Positions {
    file: PathBuf,
    /// Paths as in the text, to line and column.
    places: HashMap<String, (usize, usize)>,
    /// For each layer of the net, its path in the text.
    layers: Vec<Option<String>>,
    /// Paths in the text of settings that would change results and are not supported, and why they are refused.
    refused: Vec<(String, String)>,
}

impl Positions {
    /// No position but the file, for messages that were not read from text.
    pub fn none(file: impl Into<PathBuf>) -> Self {
        Positions { file: file.into(), ..Positions::default() }
    }

    /// No position but the file, for a binary net of so many second-generation and so many of today's layers.
    pub(crate) fn of_layers(file: &Path, layers: usize, layer: usize) -> Self {
        let path = |name: &str, i: usize| Some(if i == 0 { name.to_owned() } else { format!("{name}[{i}]") });
        let paths = (0..layers).map(|i| path("layers", i)).chain((0..layer).map(|i| path("layer", i)));
        Positions { layers: paths.collect(), ..Positions::none(file) }
    }

    pub(super) fn new(file: &Path, text: &str, scan: &Scan) -> Self {
        let lines = Lines::new(text);
        let is_layer = |path: &str| matches!(path.split('[').next(), Some("layer" | "layers")) && !path.contains('.');
        let layers = scan.entries.iter().filter(|e| is_layer(&e.path)).map(|e| Some(e.path.clone())).collect();
        let places = scan.entries.iter().map(|e| (e.path.clone(), lines.place(e.at))).collect();
        Positions { file: file.into(), places, layers, refused: Vec::new() }
    }

    /// The file, as the user named it.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Where the net's i-th layer stands; `None` for a layer that no text describes.
    pub fn layer(&self, i: usize) -> Option<Position> {
        self.place(self.layers.get(i)?.as_deref()?)
    }

    /// Records the fields of the text that would change results and that the message does not have.
    pub(super) fn refuse(&mut self, refused: Vec<(String, String)>) {
        self.refused = refused;
    }

    /// The settings of the net's i-th layer that would change results and are not supported: where each stands, and the
    /// message for the user.
    pub fn refused_in_layer(&self, i: usize) -> Vec<(Position, &str)> {
        let Some(Some(layer)) = self.layers.get(i) else { return Vec::new() };
        let inside = |path: &str| path.strip_prefix(layer.as_str()).is_some_and(|rest| rest.starts_with('.'));
        self.refused_where(inside)
    }

    /// As [`refused_in_layer`](Self::refused_in_layer), of what belongs to no layer and to no net within a solver.
    pub fn refused_outside_layers(&self) -> Vec<(Position, &str)> {
        const APART: [&str; 5] = ["layer", "layers", "net_param", "train_net_param", "test_net_param"];
        self.refused_where(|path| !(path.contains('.') && APART.contains(&path.split(['[', '.']).next().unwrap_or(""))))
    }

    fn refused_where(&self, wanted: impl Fn(&str) -> bool) -> Vec<(Position, &str)> {
        let found = self.refused.iter().filter(|(path, _)| wanted(path));
        found.map(|(path, what)| (self.place(path).unwrap_or_else(|| self.start()), what.as_str())).collect()
    }

    /// Where the field stands, if it is in the text.
    pub fn get(&self, path: &str) -> Option<Position> {
        self.place(&self.in_text(path)?)
    }

    /// Where the field stands, or else the innermost message around it that is in the text.
    pub fn nearest(&self, path: &str) -> Option<Position> {
        let mut path = self.in_text(path)?;
        loop {
            if let Some(place) = self.place(&path) {
                return Some(place);
            }
            let parent = path.rfind('.')?;
            path.truncate(parent);
        }
    }

    /// The positions of a message inside this one, such as a solver's `net_param`.
    pub fn within(&self, path: &str) -> Positions {
        let prefix = format!("{}.", canonical(path));
        let places: HashMap<_, _> = self
            .places
            .iter()
            .filter_map(|(path, place)| Some((path.strip_prefix(&prefix)?.to_owned(), *place)))
            .collect();
        let mut layers: Vec<_> = places
            .iter()
            .filter(|(path, _)| {
                matches!(path.split(['[', '.']).next(), Some("layer" | "layers")) && !path.contains('.')
            })
            .map(|(path, place)| (*place, Some(path.clone())))
            .collect();
        layers.sort();
        let layers = layers.into_iter().map(|(_, path)| path).collect();
        let inside = |(path, what): &(String, String)| Some((path.strip_prefix(&prefix)?.to_owned(), what.clone()));
        let refused = self.refused.iter().filter_map(inside).collect();
        Positions { file: self.file.clone(), layers, places, refused }
    }

    /// The start of the file, for faults that have no better place.
    pub(crate) fn start(&self) -> Position {
        Position { file: self.file.clone(), line: 1, column: 1 }
    }

    /// The path in the text of the net's i-th layer, as in `layers[2]`.
    pub(crate) fn layer_path(&self, i: usize) -> Option<&str> {
        self.layers.get(i)?.as_deref()
    }

    /// The text paths of the layers, for an upgrade to rearrange.
    pub(crate) fn layers_mut(&mut self) -> &mut Vec<Option<String>> {
        &mut self.layers
    }

    fn place(&self, path: &str) -> Option<Position> {
        let (line, column) = *self.places.get(path)?;
        Some(Position { file: self.file.clone(), line, column })
    }

    /// The path that the text uses for a path of the message.
    fn in_text(&self, path: &str) -> Option<String> {
        let path = canonical(path);
        let (first, rest) = match path.find('.') {
            Some(dot) => path.split_at(dot),
            None => (path.as_str(), ""),
        };
        let (name, index) = match first.strip_suffix(']').and_then(|f| f.split_once('[')) {
            Some((name, index)) => (name, index.parse().ok()?),
            None => (first, 0),
        };
        if name != "layer" {
            return Some(path);
        }
        let layer: &Option<String> = self.layers.get::<usize>(index)?;
        Some(format!("{}{rest}", layer.as_deref()?))
    }
}

/// A path without its zero indices.
fn canonical(path: &str) -> String {
    path.replace("[0]", "")
}

/// Turns offsets into lines and columns.
pub(super) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at.saturating_add(1))).collect();
        Lines { text, starts }
    }

    /// Line and column, both from 1, the column in characters.
    pub fn place(&self, offset: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts[line.saturating_sub(1)];
        let before = self.text.get(start..offset.min(self.text.len())).unwrap_or_default();
        (line, before.chars().count().saturating_add(1))
    }
}
