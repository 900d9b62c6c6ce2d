//! `fold`: the net to deploy, with an InnerProduct in place of its L-GM layer, for programs that know no L-GM.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use lgm_core::fs::{Staged, publish_all};
use lgm_core::{Error, Shape};
use lgm_proto::{BlobProto, InnerProductParameter, LayerParameter, NetParameter, TransformationParameter};

use crate::args::FoldArgs;
use crate::detect::classifier::{Among, Classifier, Head, input};
use crate::detect::run::Trained;
use crate::output;

/// Runs the command.
///
/// # Errors
/// When the net cannot be built, its logits are not linear in the features, or the files cannot be written.
pub fn run(args: &FoldArgs) -> Result<ExitCode> {
    let net = &args.net;
    let classifier = Classifier::read(&net.model, &net.state, net.classifier.as_deref(), Among::All)?;
    let message = classifier.scoring(None)?;
    let trained = Trained::new(&classifier, &message, &net.weights, false, None)?;
    let (weight, bias) = head(&classifier, &trained)?;
    let (deployed, notes) = deploy(&classifier, &message, &trained, (weight, bias))?;

    let [prototxt, caffemodel] = [".prototxt", ".caffemodel"].map(|end| {
        let mut name = OsString::from(&args.out);
        name.push(end);
        std::path::PathBuf::from(name)
    });
    let structure = NetParameter { layer: deployed.layer.iter().map(without_blobs).collect(), ..deployed.clone() };
    let mut text = String::new();
    notes.iter().for_each(|note| text += &format!("# {note}\n"));
    text += &lgm_proto::to_text(&structure);
    publish_all([
        Staged::bytes(&caffemodel, &lgm_proto::encode(&deployed))?,
        Staged::bytes(&prototxt, text.as_bytes())?,
    ])?;
    let mut said = format!("{}\n{}\n", prototxt.display(), caffemodel.display());
    notes.iter().for_each(|note| said += &format!("{note}\n"));
    output::print(&said)?;
    Ok(ExitCode::SUCCESS)
}

/// The InnerProduct's weights [N, K] and biases.
fn head(classifier: &Classifier, trained: &Trained<'_>) -> Result<(Vec<f32>, Vec<f32>)> {
    let name = classifier.layer();
    match (trained.mixture(), classifier.head) {
        (Some(mixture), _) => Ok(mixture.fold().map_err(|e| Error::config(format!("layer '{name}': {e}")))?),
        (None, Head::Product) => {
            let params = trained.net.layer_params(name)?;
            let Some((shape, centers)) = params.first() else { bail!("layer '{name}' has no centers") };
            Ok((centers.iter().map(|&w| w as f32).collect(), vec![0.0; shape[0]]))
        }
        (None, _) => bail!(
            "layer '{name}': its logits are not linear in the features; expected LGMLoss, or ClassDistance of metric L2 or \
             IP"
        ),
    }
}

/// The net to deploy with its weights, and what whoever runs it must know.
fn deploy(
    classifier: &Classifier,
    message: &NetParameter,
    trained: &Trained<'_>,
    (weight, bias): (Vec<f32>, Vec<f32>),
) -> Result<(NetParameter, Vec<String>)> {
    let weights = trained.net.to_proto(false)?;
    let blobs_of = |layer: &LayerParameter| {
        let same = |l: &&LayerParameter| l.name() == layer.name() && l.r#type() == layer.r#type();
        weights.layer.iter().find(same).map(|l| l.blobs.clone()).unwrap_or_default()
    };
    let numbers = classifier.layers();
    let mut notes = Vec::new();
    let mut layers = Vec::new();
    for &i in &numbers {
        let layer = &message.layer[i];
        if classifier.is_source(i) {
            let read = classifier.inputs().into_iter().filter(|s| s.is_of(i)).map(|s| s.blob.clone());
            let tops: Vec<String> = read.collect();
            let mut shapes = Vec::new();
            for top in &tops {
                let (shape, _) = trained.net.blob(top)?;
                // A batch of one, whatever the test data's.
                let shape = if shape.is_empty() { shape } else { shape.splice(0..1, [1]) };
                notes.push(format!("{top}: {shape}, {}", prepared(layer)));
                shapes.push(shape);
            }
            layers.push(input(layer.name(), tops, shapes.iter()));
        } else {
            let plain = |l: &LayerParameter| LayerParameter {
                include: Vec::new(),
                exclude: Vec::new(),
                phase: None,
                ..l.clone()
            };
            layers.push(LayerParameter { blobs: blobs_of(layer), ..plain(layer) });
        }
    }
    let classes = bias.len();
    if let Some(head) = layers.last_mut() {
        let shape = Shape::from([classes, weight.len() / classes]);
        *head = LayerParameter {
            name: Some(classifier.layer().into()),
            r#type: Some("InnerProduct".into()),
            bottom: vec![classifier.features.clone()],
            top: vec![classifier.logits.clone()],
            inner_product_param: Some(InnerProductParameter { num_output: Some(classes as u32), ..Default::default() }),
            blobs: vec![
                BlobProto::from_f32(&shape, weight, None),
                BlobProto::from_f32(&Shape::from([classes]), bias, None),
            ],
            ..Default::default()
        };
    }
    let mut prob = "prob".to_string();
    while layers.iter().any(|l| l.name() == prob || l.top.contains(&prob)) {
        prob.push('_');
    }
    layers.push(LayerParameter {
        name: Some(prob.clone()),
        r#type: Some("Softmax".into()),
        bottom: vec![classifier.logits.clone()],
        top: vec![prob.clone()],
        ..Default::default()
    });
    notes.push(format!("{prob}: the probability of each of {classes} classes"));
    Ok((NetParameter { name: message.name.clone(), layer: layers, ..Default::default() }, notes))
}

fn without_blobs(layer: &LayerParameter) -> LayerParameter {
    LayerParameter { blobs: Vec::new(), ..layer.clone() }
}

/// What a data layer does to what it reads, which an Input layer leaves to whoever fills it.
fn prepared(layer: &LayerParameter) -> String {
    let mut done = Vec::new();
    let transform = layer.transform_param.clone().unwrap_or_default();
    let hdf5 = layer.hdf5_data_param.clone().unwrap_or_default();
    let TransformationParameter { mean_file, mean_value, .. } = &transform;
    if let Some(file) = mean_file {
        done.push(format!("less the mean of '{}'", Path::new(file).display()));
    }
    let means: Vec<String> = mean_value.iter().chain(&hdf5.mean_value).map(f32::to_string).collect();
    if !means.is_empty() {
        done.push(format!("less the mean {}", means.join(", ")));
    }
    let crop = transform.crop_size.or(hdf5.crop_size).filter(|&side| side > 0);
    if let Some(side) = crop {
        done.push(format!("cropped to the middle {side}×{side}"));
    }
    let scale = transform.scale.or(hdf5.scale).filter(|&scale| scale != 1.0);
    if let Some(scale) = scale {
        done.push(format!("times {scale}"));
    }
    if done.is_empty() { "as it was read".into() } else { format!("prepared as in training: {}", done.join(", then ")) }
}
