//! What `classify` prints.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use crate::args::ScoresFormat;
use crate::{output, progress};

/// An image's scores.
pub struct Prediction {
    /// The image.
    pub image: PathBuf,
    /// A score for each class.
    pub scores: Vec<f32>,
}

/// Prints predictions in a format: text and CSV as they come, JSON at the end.
pub struct Report {
    format: ScoresFormat,
    labels: Option<Vec<String>>,
    top: usize,
    begun: bool,
    images: Vec<Image>,
}

#[derive(Serialize)]
struct Image {
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    predictions: Vec<Class>,
}

#[derive(Serialize)]
struct Class {
    class: usize,
    label: String,
    score: f32,
}

impl Report {
    /// A report with the names of classes (their numbers, if there are none) and so many classes of each image.
    pub fn new(format: ScoresFormat, labels: Option<Vec<String>>, top: usize) -> Report {
        Report { format, labels, top, begun: false, images: Vec::new() }
    }

    /// An image that has no prediction, and why.
    pub fn fails(&mut self, image: &Path, why: &str) {
        if self.format == ScoresFormat::Json {
            let image = image.to_string_lossy().into_owned();
            self.images.push(Image { image, error: Some(why.to_string()), predictions: Vec::new() });
        }
    }

    /// An image's scores.
    ///
    /// # Errors
    /// When standard output takes no more.
    pub fn add(&mut self, found: &Prediction) -> Result<()> {
        let name = found.image.to_string_lossy();
        let classes = self.top(&found.scores);
        let text = match self.format {
            ScoresFormat::Text => {
                let lines = classes.iter().map(|c| format!("{:.4} - \"{}\"\n", c.score, c.label));
                format!("---------- Prediction for {name} ----------\n{}", lines.collect::<String>())
            }
            ScoresFormat::Csv => {
                let mut csv = csv::Writer::from_writer(Vec::new());
                if !self.begun {
                    csv.write_record(["image", "rank", "class", "label", "score"])?;
                }
                for (rank, c) in (1..).zip(&classes) {
                    csv.serialize((&*name, rank, c.class, &c.label, c.score))?;
                }
                String::from_utf8_lossy(&csv.into_inner()?).into_owned()
            }
            ScoresFormat::Json => {
                self.images.push(Image { image: name.into_owned(), error: None, predictions: classes });
                return Ok(());
            }
        };
        self.begun = true;
        Ok(progress::above(|| output::print(&text))?)
    }

    /// Prints what is left.
    ///
    /// # Errors
    /// When standard output takes no more.
    pub fn finish(self) -> Result<()> {
        if self.format == ScoresFormat::Json {
            output::print(&format!("{}\n", serde_json::to_string_pretty(&self.images)?))?;
        }
        Ok(())
    }

    /// The classes of the highest scores, the highest first; of equal ones the lower number.
    fn top(&self, scores: &[f32]) -> Vec<Class> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let label = |class: usize| match &self.labels {
            Some(labels) => labels[class].clone(),
            None => class.to_string(),
        };
        order
            .into_iter()
            .take(self.top)
            .map(|class| Class { class, label: label(class), score: scores[class] })
            .collect()
    }
}
