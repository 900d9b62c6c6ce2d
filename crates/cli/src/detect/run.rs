//! A trained classifier run over data, and what it makes of every item.

use std::path::PathBuf;
use std::rc::Rc;

use lgm_core::{Error, Result, Shape, Step, ensure};
use lgm_cuda::Gpu;
use lgm_net::{Keep, Net, Options, Placement};
use lgm_proto::NetParameter;

use super::classifier::{Classifier, Head};
use super::mixture::{Mixture, Verdict, most_probable};
use crate::models;

/// What a net makes of items.
#[derive(Clone, Debug, Default)]
pub struct Scored {
    /// The class of each.
    pub classes: Vec<usize>,
    /// The label of each, if the net has labels.
    pub labels: Vec<f64>,
    /// The softmax of the class's logit.
    pub probability: Vec<f64>,
    /// ln p(x | class), for a mixture.
    pub own: Vec<f64>,
    /// ln p(x), for a mixture.
    pub mixture: Vec<f64>,
    /// The features [M, K], where kept.
    pub features: Vec<f64>,
    /// K.
    pub width: usize,
}

impl Scored {
    /// The share of items whose class is their label; none without labels.
    pub fn accuracy(&self) -> Option<f64> {
        let right = self.classes.iter().zip(&self.labels).filter(|&(&class, &label)| class as f64 == label).count();
        (!self.labels.is_empty()).then(|| right as f64 / self.labels.len() as f64)
    }
}

/// A net with the weights of a trained classifier.
pub struct Trained<'a> {
    classifier: &'a Classifier,
    /// The net.
    pub net: Net,
    mixture: Option<Mixture>,
}

impl<'a> Trained<'a> {
    /// Builds one of the classifier's nets and loads its weights.
    ///
    /// # Errors
    /// Whatever is wrong with the net, its data or the weights.
    pub fn new(
        classifier: &'a Classifier,
        message: &NetParameter,
        weights: &[PathBuf],
        backward: bool,
        gpu: Option<Rc<dyn Gpu>>,
    ) -> Result<Self> {
        let own = [Some(&classifier.features), Some(&classifier.logits), classifier.label.as_ref()];
        let data = classifier.sources.iter().map(|s| &s.blob);
        let keep = Keep::Named(own.into_iter().flatten().chain(data).cloned().collect());
        let device = gpu.map(|gpu| Placement { gpu, histories: 0 });
        let options = Options { keep, backward, device, ..classifier.options.clone() };
        let mut net = Net::new(message, &classifier.positions, &models::registry(), &options)?;
        models::load_weights(&mut net, weights)?;
        let mixture = match classifier.head {
            Head::Mixture(how) => match &net.layer_params(classifier.layer())?[..] {
                [centers, variances] => Some(Mixture::new(centers, variances, how)?),
                other => return Err(Error::internal(format!("a mixture of {} parameters", other.len()))),
            },
            _ => None,
        };
        Ok(Trained { classifier, net, mixture })
    }

    /// The mixture that the net has learned, if its classes are Gaussians.
    pub fn mixture(&self) -> Option<&Mixture> {
        self.mixture.as_ref()
    }

    /// Runs batch number `batch`, and adds what the net makes of it.
    ///
    /// # Errors
    /// What a layer or its data refuses; when the logits have not one number a class and item.
    pub fn forward(&mut self, batch: u64, features: bool, to: &mut Scored) -> Result<()> {
        self.net.forward(&Step { seed: 0, iter: 0, batch })?;
        let (shape, logits) = self.net.blob(&self.classifier.logits)?;
        let name = &self.classifier.logits;
        ensure!(
            shape.len() >= 2 && shape.count() == shape[0] * shape[1] && shape.count() > 0,
            "blob '{name}' of shape {shape} is no item's logits; expected items × classes"
        );
        let items = shape[0];
        let (of_features, x) = self.net.blob(&self.classifier.features)?;
        ensure!(
            of_features.first() == Some(&items),
            "blob '{}' of shape {of_features} does not hold the features of {items} items",
            self.classifier.features
        );
        to.width = of_features.count_from(1);
        for (x, logits) in x.chunks(to.width).zip(logits.chunks(shape[1])) {
            let (class, probability) = match &self.mixture {
                Some(mixture) => {
                    let Verdict { class, probability, own, mixture } = mixture.judge(x);
                    to.own.push(own);
                    to.mixture.push(mixture);
                    (class, probability)
                }
                None => most_probable(logits),
            };
            to.classes.push(class);
            to.probability.push(probability);
        }
        if features {
            to.features.extend(x);
        }
        if let Some(label) = &self.classifier.label {
            let (of_labels, labels) = self.net.blob(label)?;
            ensure!(
                labels.len() == items,
                "blob '{label}' of shape {of_labels} does not hold one label for each of {items} items"
            );
            to.labels.extend(labels);
        }
        Ok(())
    }

    /// What data layers, or who takes their place, filled for the last batch.
    ///
    /// # Errors
    /// When it cannot be read from a device.
    pub fn data(&self) -> Result<Vec<(Shape, Vec<f64>)>> {
        self.classifier.sources.iter().map(|s| self.net.blob(&s.blob)).collect()
    }
}
