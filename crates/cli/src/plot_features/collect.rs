//! A net run over its data, and what it makes of every item.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use lgm_core::{Phase, State, Step};
use lgm_cuda::Gpu;
use lgm_net::{Keep, Net, Options, Placement, included};
use lgm_proto::{NetParameter, NetState, Positions};

use crate::args::{PhaseFlag, PlotFeaturesArgs};
use crate::detect::classifier::{Head, kind_of, leave_out};
use crate::detect::mixture::Mixture;
use crate::{models, progress};

/// What a net made of its data.
pub struct Collected {
    /// The net's name.
    pub net: String,
    /// Values of an item's features.
    pub dim: usize,
    /// The features, item after item.
    pub features: Vec<f64>,
    /// The class of each item.
    pub labels: Vec<usize>,
    /// How often the data were begun, where their layer counts that.
    pub rounds: Option<u64>,
    /// Outputs of one value, the accuracy and the loss mostly: the mean over batches.
    pub measures: BTreeMap<String, f64>,
    /// The layer with the centers.
    pub classifier: String,
    /// The centers, class after class.
    pub centers: Vec<f64>,
    /// Values of a center.
    pub width: usize,
    /// The Gaussians of the classes, where the layer models them.
    pub mixture: Option<Mixture>,
}

/// A net and its data, to be run with several files of weights.
pub struct Source<'a> {
    args: &'a PlotFeaturesArgs,
    message: NetParameter,
    positions: Positions,
    options: Options,
}

impl<'a> Source<'a> {
    /// Reads the net that the flags name.
    ///
    /// # Errors
    /// When the prototxt is wrong.
    pub fn read(args: &'a PlotFeaturesArgs, gpu: Option<Rc<dyn Gpu>>) -> Result<Self> {
        let (parsed, mut options) = models::read(&args.model, Phase::Test, &args.state, false)?;
        let (mut message, positions) = (parsed.message, parsed.positions);
        if args.phase == Some(PhaseFlag::Train) {
            data_of_training(&mut message, &positions, &options.state)?;
        }
        options.keep = Keep::Named(vec![args.blob.clone(), args.label.clone()]);
        options.device = gpu.map(|gpu| Placement { gpu, histories: 0 });
        Ok(Source { args, message, positions, options })
    }

    /// Runs the net with files of weights.
    ///
    /// # Errors
    /// When the net cannot be built or run, or has no centers or labels.
    pub fn collect(&self, weights: &[PathBuf]) -> Result<Collected> {
        let mut net = Net::new(&self.message, &self.positions, &models::registry(), &self.options)?;
        models::load_weights(&mut net, weights)?;
        let classifier = self.classifier(&net)?;
        let params = net.layer_params(&classifier)?;
        let (shape, centers) = params
            .first()
            .cloned()
            .with_context(|| format!("layer '{classifier}' has no parameters, so no centers"))?;
        ensure!(shape.len() == 2, "layer '{classifier}': centers have the shape classes × features, found {shape}");
        let layer = self.message.layer.iter().find(|layer| layer.name() == classifier);
        let mixture = match (layer.map(kind_of).transpose()?, &params[..]) {
            (Some(Head::Mixture(how)), [centers, variances]) => Some(Mixture::new(centers, variances, how)?),
            _ => None,
        };
        let mut out = Collected {
            net: net.name().to_string(),
            dim: 0,
            features: Vec::new(),
            labels: Vec::new(),
            rounds: None,
            measures: BTreeMap::new(),
            classifier,
            centers,
            width: shape[1],
            mixture,
        };
        self.run(&mut net, &mut out)?;
        Ok(out)
    }

    /// The layer with the centers.
    fn classifier(&self, net: &Net) -> Result<String> {
        if let Some(name) = &self.args.classifier {
            return Ok(name.clone());
        }
        let heads = net.layers().filter(|(_, kind)| matches!(*kind, "ClassDistance" | "LGMLoss"));
        let heads: Vec<&str> = heads.map(|(name, _)| name).collect();
        match heads[..] {
            [only] => Ok(only.to_string()),
            [] => {
                bail!("the net has no ClassDistance or LGMLoss layer; name the layer with the centers with -classifier")
            }
            _ => bail!("the net has several layers with centers ({}); choose one with -classifier", heads.join(", ")),
        }
    }

    fn run(&self, net: &mut Net, out: &mut Collected) -> Result<()> {
        let args = self.args;
        let single = |name: &&str| net.blob(name).is_ok_and(|(shape, _)| shape.count() == 1);
        let measures: Vec<String> = net.outputs().into_iter().filter(single).map(String::from).collect();
        for batch in progress::each("batches", args.iterations.into()) {
            net.forward(&Step { seed: 0, iter: 0, batch })?;
            let (shape, features) = net.blob(&args.blob)?;
            let (_, labels) = net.blob(&args.label)?;
            ensure!(
                !shape.is_empty() && shape[0] == labels.len(),
                "blob '{}' of shape {shape} needs one label an item; blob '{}' holds {}",
                args.blob,
                args.label,
                labels.len()
            );
            out.dim = shape.count_from(1);
            out.features.extend(features);
            for label in labels {
                ensure!(label >= 0.0 && label.fract() == 0.0, "{label} in blob '{}' is not a class number", args.label);
                out.labels.push(label as usize);
            }
            for name in &measures {
                let (_, value) = net.blob(name)?;
                *out.measures.entry(name.clone()).or_default() += value[0];
            }
        }
        out.rounds = net.state().values().filter_map(rounds).max();
        out.measures.values_mut().for_each(|sum| *sum /= f64::from(args.iterations));
        Ok(())
    }
}

/// How often a data layer has begun its data, by its position in them.
fn rounds(state: &State) -> Option<u64> {
    let under_way = ["file", "row", "taken"].iter().any(|place| state.get(*place).is_some_and(|&at| at > 0.0));
    state.get("epoch").map(|&whole| whole as u64 + u64::from(under_way))
}

/// Gives the net of the TEST phase the data of the TRAIN phase: the latter's layers without bottoms.
fn data_of_training(message: &mut NetParameter, positions: &Positions, state: &NetState) -> Result<()> {
    let of = |phase: lgm_proto::Phase| {
        included(message, positions, &NetState { phase: Some(phase.into()), ..state.clone() })
    };
    let (training, testing) = (of(lgm_proto::Phase::Train)?, of(lgm_proto::Phase::Test)?);
    for (i, layer) in message.layer.iter_mut().enumerate() {
        let kept = if layer.bottom.is_empty() { &training } else { &testing };
        if kept.contains(&i) {
            (layer.include, layer.exclude) = (Vec::new(), Vec::new());
        } else {
            leave_out(layer);
        }
    }
    Ok(())
}
