//! The part of a net that classifies: found in its prototxt, and cut out of it. What is left out keeps its number in the
//! message, so that errors name the right lines.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use lgm_core::{Error, Phase, Result, Shape, ensure};
use lgm_net::{Options, included};
use lgm_proto::class_distance_parameter::Metric;
use lgm_proto::{
    BlobShape, ClassDistanceParameter, InputParameter, LayerParameter, NetParameter, NetStateRule, Positions,
};

use super::mixture::Variances;
use crate::args::StateFlags;
use crate::models;

/// What makes the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Head {
    /// A mixture of Gaussians: LGMLoss, or ClassDistance of metric L2.
    Mixture(Variances),
    /// A product with each class's center: ClassDistance of metric IP.
    Product,
    /// Any other layer.
    Other,
}

/// A blob that a data layer fills.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The data layer's number in the message.
    layer: usize,
    /// Its name in the prototxt.
    pub top: String,
    /// Its name here: another one where a later layer writes over it.
    pub blob: String,
}

impl Source {
    /// Whether layer number `layer` fills it.
    pub fn is_of(&self, layer: usize) -> bool {
        self.layer == layer
    }
}

/// A net in the TEST phase, of which only what the logits need is kept.
pub struct Classifier {
    message: NetParameter,
    /// Where the message's layers stand.
    pub positions: Positions,
    /// What to build it with.
    pub options: Options,
    /// The numbers of the layers that are kept, in order.
    kept: Vec<usize>,
    /// The number of the layer that makes the logits.
    layer: usize,
    /// What that layer is.
    pub head: Head,
    /// That layer's bottom, [M, …].
    pub features: String,
    /// Its logits, [M, N].
    pub logits: String,
    /// The labels, if the net has them.
    pub label: Option<String>,
    /// What data layers fill.
    pub sources: Vec<Source>,
}

/// Which layers may make the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Among {
    /// Those that model classes as Gaussians.
    Mixtures,
    /// Any.
    All,
}

impl Classifier {
    /// Finds the classifier of a net: the layer `named`, or the only LGMLoss or ClassDistance, or the layer before the
    /// only SoftmaxWithLoss.
    ///
    /// # Errors
    /// When the prototxt cannot be read, or there is no such layer or more than one.
    pub fn read(model: &Path, flags: &StateFlags, named: Option<&str>, among: Among) -> Result<Classifier> {
        let (parsed, mut options) = models::read(model, Phase::Test, flags, false)?;
        // The same data in the same order in every run.
        options.seed = 0;
        let mut message = parsed.message;
        let kept = included(&message, &parsed.positions, &options.state)?;
        let layer = find(&message.layer, &kept, named, among)?;
        let head = &message.layer[layer];
        let (kind, name) = (head.r#type().to_string(), head.name().to_string());
        let Some(features) = head.bottom.first().cloned() else {
            return Err(Error::config(format!("layer '{name}' ({kind}) has no bottom, so it classifies nothing")));
        };
        let logits = match kind.as_str() {
            "LGMLoss" => head.top.get(1).cloned().unwrap_or_else(|| format!("{name}/logits")),
            _ => head.top.first().cloned().unwrap_or_default(),
        };
        let of_loss = |&&i: &&usize| {
            let layer = &message.layer[i];
            matches!(layer.r#type(), "SoftmaxWithLoss" | "Accuracy") && layer.bottom.first() == Some(&logits)
        };
        let of_loss = || kept.iter().find(of_loss).and_then(|&i| message.layer[i].bottom.get(1));
        let own = matches!(kind.as_str(), "LGMLoss" | "ClassDistance").then(|| head.bottom.get(1)).flatten();
        let label = own.or_else(of_loss).cloned();
        let head = kind_of(head)?;
        if among == Among::Mixtures && head == Head::Other {
            return Err(Error::config(format!(
                "layer '{name}' ({kind}) does not model classes as Gaussians; expected LGMLoss, or ClassDistance of \
                 metric L2"
            )));
        }

        let blobs: Vec<&str> = [Some(&features), label.as_ref()].into_iter().flatten().map(String::as_str).collect();
        let mut wanted = needed(&message.layer, &kept, layer, &blobs);
        let sources = sources(&mut message.layer, &wanted)?;
        wanted.insert(layer);
        for (_, layer) in message.layer.iter_mut().enumerate().filter(|(i, _)| !wanted.contains(i)) {
            leave_out(layer);
        }
        let (positions, kept) = (parsed.positions, wanted.into_iter().collect());
        Ok(Classifier { message, positions, options, kept, layer, head, features, logits, label, sources })
    }

    /// The name of the layer that makes the logits.
    pub fn layer(&self) -> &str {
        self.message.layer[self.layer].name()
    }

    /// The name of the net.
    pub fn name(&self) -> &str {
        self.message.name()
    }

    /// The net up to the logits, which need no labels here; with `source` in place of what its data layer reads.
    ///
    /// # Errors
    /// When `source` is given and there is not exactly one data layer that reads one.
    pub fn scoring(&self, source: Option<&str>) -> Result<NetParameter> {
        let mut message = self.message.clone();
        let logits = self.logits.clone();
        let head = &mut message.layer[self.layer];
        if head.r#type() == "LGMLoss" {
            let param = head.lgm_loss_param.take().unwrap_or_default();
            // The same parameters, and the logits without labels.
            head.r#type = Some("ClassDistance".into());
            head.class_distance_param = Some(ClassDistanceParameter {
                num_output: param.num_output,
                isotropic: param.isotropic,
                ..Default::default()
            });
            head.loss_weight.clear();
        }
        if head.r#type() == "ClassDistance" {
            head.bottom.truncate(1);
            head.top = vec![logits];
            head.propagate_down.clear();
        }
        if let Some(source) = source {
            let mut places = self.sources.iter().map(|s| s.layer).collect::<BTreeSet<_>>().into_iter();
            let (first, more) = (places.next(), places.next());
            let place = first.filter(|_| more.is_none()).and_then(|i| place_of(&mut message.layer[i]));
            let Some(place) = place else {
                return Err(Error::config(format!(
                    "'{source}' cannot take the place of the net's data: expected one data layer of type Data, HDF5Data \
                     or ImageData in the TEST phase"
                )));
            };
            *place = Some(source.into());
        }
        Ok(message)
    }

    /// The net with Input layers of these shapes, by the order of [`Classifier::sources`], in place of its data and with
    /// the cross-entropy of its logits without margin as its loss, whose gradient reaches the inputs.
    ///
    /// # Errors
    /// When the net has no labels.
    pub fn attacked(&self, shapes: &[Shape]) -> Result<NetParameter> {
        let Some(label) = &self.label else {
            return Err(Error::config(format!(
                "an attack wants labels; found none with layer '{}' of the net (SoftmaxWithLoss and LGMLoss have them as \
                 their second bottom)",
                self.layer()
            )));
        };
        let mut message = self.message.clone();
        message.force_backward = Some(true);
        let head = &mut message.layer[self.layer];
        if head.r#type() == "LGMLoss" {
            head.top = vec![format!("{}/loss", head.name()), self.logits.clone()];
            head.loss_weight.clear();
            if let Some(param) = &mut head.lgm_loss_param {
                param.center_coef = None;
            }
        } else {
            if head.r#type() == "ClassDistance" {
                head.bottom.truncate(1);
            }
            message.layer.push(LayerParameter {
                name: Some(format!("{}/loss", self.layer())),
                r#type: Some("SoftmaxWithLoss".into()),
                bottom: vec![self.logits.clone(), label.clone()],
                top: vec![format!("{}/loss", self.layer())],
                ..Default::default()
            });
        }
        for number in self.sources.iter().map(|s| s.layer).collect::<BTreeSet<_>>() {
            let here: Vec<_> = self.sources.iter().zip(shapes).filter(|(s, _)| s.layer == number).collect();
            let tops = here.iter().map(|(source, _)| source.blob.clone()).collect();
            message.layer[number] = input(message.layer[number].name(), tops, here.iter().map(|(_, shape)| *shape));
        }
        Ok(message)
    }

    /// The layers that the logits alone need, by number: the one that makes them last.
    pub fn layers(&self) -> Vec<usize> {
        let mut all: Vec<usize> =
            needed(&self.message.layer, &self.kept, self.layer, &[&self.features]).into_iter().collect();
        all.push(self.layer);
        all
    }

    /// The blobs of data that the logits depend on.
    pub fn inputs(&self) -> Vec<&Source> {
        let layers = self.layers();
        let read = |blob: &String| layers.iter().any(|&i| self.message.layer[i].bottom.contains(blob));
        self.sources.iter().filter(|s| read(&s.blob) && Some(&s.blob) != self.label.as_ref()).collect()
    }

    /// Whether a layer, by number, is a data layer.
    pub fn is_source(&self, layer: usize) -> bool {
        self.sources.iter().any(|s| s.is_of(layer))
    }
}

/// Leaves a layer out of the net; it keeps its number, by which errors find its line.
pub fn leave_out(layer: &mut LayerParameter) {
    let never = NetStateRule { min_level: Some(i32::MAX), max_level: Some(i32::MIN), ..Default::default() };
    (layer.include, layer.exclude) = (vec![never], Vec::new());
}

/// An Input layer.
pub fn input<'a>(name: &str, tops: Vec<String>, shapes: impl Iterator<Item = &'a Shape>) -> LayerParameter {
    let shape = shapes.map(|s| BlobShape { dim: s.iter().map(|&d| d as i64).collect() }).collect();
    LayerParameter {
        name: Some(name.into()),
        r#type: Some("Input".into()),
        top: tops,
        input_param: Some(InputParameter { shape }),
        ..Default::default()
    }
}

fn is_mixture(layer: &LayerParameter) -> bool {
    matches!(layer.r#type(), "LGMLoss" | "ClassDistance")
}

/// What a layer is to a classifier.
///
/// # Errors
/// When an LGMLoss has no positive `sigma_floor`.
pub fn kind_of(layer: &LayerParameter) -> Result<Head> {
    Ok(match layer.r#type() {
        "LGMLoss" => {
            let floor = layer.lgm_loss_param.clone().unwrap_or_default().sigma_floor();
            ensure!(floor > 0.0, "layer '{}': sigma_floor must be positive, found {floor}", layer.name());
            Head::Mixture(Variances::Lgm { floor: floor.into() })
        }
        "ClassDistance" => match layer.class_distance_param.clone().unwrap_or_default().metric() {
            Metric::L2 => Head::Mixture(Variances::Distance),
            Metric::Ip => Head::Product,
            Metric::L1 => Head::Other,
        },
        _ => Head::Other,
    })
}

fn find(layers: &[LayerParameter], kept: &[usize], named: Option<&str>, among: Among) -> Result<usize> {
    if let Some(name) = named {
        let known = kept.iter().map(|&i| layers[i].name());
        let found = kept.iter().copied().find(|&i| layers[i].name() == name);
        return found.ok_or_else(|| Error::unknown("the net has no layer in the TEST phase", name, known));
    }
    let mut found: Vec<usize> = kept.iter().copied().filter(|&i| is_mixture(&layers[i])).collect();
    if found.is_empty() && among == Among::All {
        let losses = kept.iter().filter(|&&i| matches!(layers[i].r#type(), "SoftmaxWithLoss" | "Softmax"));
        let makers = losses.filter_map(|&loss| {
            let logits = layers[loss].bottom.first()?;
            kept.iter().rev().copied().find(|&i| i < loss && layers[i].top.contains(logits))
        });
        found = makers.collect::<BTreeSet<_>>().into_iter().collect();
    }
    match found[..] {
        [only] => Ok(only),
        [] if among == Among::Mixtures => Err(Error::config(
            "the net has no LGMLoss or ClassDistance layer in the TEST phase, so it models no likelihood; train it with one \
             (examples/quickstart), or name another layer with -classifier",
        )),
        [] => Err(Error::config(
            "the net has no LGMLoss, ClassDistance, SoftmaxWithLoss or Softmax layer in the TEST phase; name the layer that \
             makes the logits with -classifier",
        )),
        _ => {
            let names: Vec<_> = found.iter().map(|&i| layers[i].name()).collect();
            Err(Error::config(format!(
                "the net has several layers that classify ({}); choose one with -classifier",
                names.join(", ")
            )))
        }
    }
}

/// The layers before number `end` that make blobs, by number.
fn needed(layers: &[LayerParameter], kept: &[usize], end: usize, blobs: &[&str]) -> BTreeSet<usize> {
    let mut wanted: HashSet<&str> = blobs.iter().copied().collect();
    let mut found = BTreeSet::new();
    for &i in kept.iter().rev().filter(|&&i| i < end) {
        if layers[i].top.iter().any(|top| wanted.contains(top.as_str())) {
            found.insert(i);
            wanted.extend(layers[i].bottom.iter().map(String::as_str));
        }
    }
    found
}

/// What the data layers among `kept` fill. Where a later layer writes over such a blob, the data get a name of their own.
fn sources(layers: &mut [LayerParameter], kept: &BTreeSet<usize>) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for &i in kept {
        let layer = &layers[i];
        if !layer.bottom.is_empty() || layer.r#type() == "Parameter" {
            continue;
        }
        ensure!(
            layer.r#type() != "Input",
            "layer '{}' (Input) reads no data; expected a net with a data layer in the TEST phase, found one to deploy",
            layer.name()
        );
        for (at, top) in layer.top.clone().into_iter().enumerate() {
            let overwritten = kept.iter().find(|&&j| j > i && layers[j].top.contains(&top)).copied();
            let mut blob = top.clone();
            if let Some(end) = overwritten {
                blob = format!("{top}/data");
                layers[i].top[at] = blob.clone();
                for &j in kept.iter().filter(|&&j| j > i && j <= end) {
                    layers[j].bottom.iter_mut().filter(|b| **b == top).for_each(|b| b.clone_from(&blob));
                }
            }
            found.push(Source { layer: i, top, blob });
        }
    }
    Ok(found)
}

/// The field that says what a data layer reads.
fn place_of(layer: &mut LayerParameter) -> Option<&mut Option<String>> {
    match layer.r#type() {
        "Data" => layer.data_param.as_mut().map(|p| &mut p.source),
        "HDF5Data" => layer.hdf5_data_param.as_mut().map(|p| &mut p.source),
        "ImageData" => layer.image_data_param.as_mut().map(|p| &mut p.source),
        _ => None,
    }
}
