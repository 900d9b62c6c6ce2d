//! The file of a threshold: a field a line, as in a prototxt.

use std::path::Path;

use lgm_core::fs::write_bytes;
use lgm_core::{Error, Result};

/// A threshold of the log-likelihood under a mixture, and where it is from.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// Below it, an item is abnormal.
    pub value: f64,
    /// The share of clean items below it.
    pub rate: f64,
    /// The clean items it was found with.
    pub items: usize,
    /// Of the mixture.
    pub classes: usize,
    /// Elements of an item's features.
    pub features: usize,
}

const FIELDS: [&str; 5] = ["threshold", "false_positive_rate", "items", "classes", "features"];

impl Threshold {
    /// Whether an item of this log-likelihood is abnormal.
    pub fn is_abnormal(&self, likelihood: f64) -> bool {
        likelihood.is_nan() || likelihood < self.value
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let Threshold { value, rate, items, classes, features } = self;
        let text = format!(
            "# Written by lgm-caffe likelihood -calibrate: inputs whose log-likelihood under the mixture lies below the \
             threshold are abnormal.\nthreshold: {value}\nfalse_positive_rate: {rate}\nitems: {items}\nclasses: \
             {classes}\nfeatures: {features}\n"
        );
        write_bytes(path, text.as_bytes())
    }

    /// Reads the file of a net of so many classes and features.
    ///
    /// # Errors
    /// When it cannot be read, is no such file, or is another net's.
    pub fn read(path: &Path, classes: usize, features: usize) -> Result<Threshold> {
        let text = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let what = "there is no such file; write it with -calibrate RATE, from clean data";
                return Err(Error::data(path, what));
            }
            text => text.map_err(Error::io(path, "read"))?,
        };
        let threshold = parse(&text).map_err(|(line, what)| Error::data(path, format!("line {line}: {what}")))?;
        if (threshold.classes, threshold.features) != (classes, features) {
            let what = format!(
                "the threshold is of a mixture of {} classes and {} features, the net's has {classes} and {features}; \
                 calibrate it with this net",
                threshold.classes, threshold.features
            );
            return Err(Error::data(path, what));
        }
        Ok(threshold)
    }
}

/// The threshold, or the line at which something is wrong.
fn parse(text: &str) -> Result<Threshold, (usize, String)> {
    let mut found: [Option<f64>; 5] = [None; 5];
    let mut end = 1;
    for (i, line) in text.lines().enumerate() {
        end = i + 1;
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (name, value) =
            line.split_once(':').ok_or_else(|| (end, format!("expected 'name: number', found '{line}'")))?;
        let place = FIELDS.iter().position(|field| *field == name.trim());
        let place =
            place.ok_or_else(|| (end, Error::unknown_among("unknown field", name.trim(), &FIELDS).to_string()))?;
        let number = value.trim().parse::<f64>().ok().filter(|v| v.is_finite());
        found[place] =
            Some(number.ok_or_else(|| (end, format!("{name}: expected a number, found '{}'", value.trim())))?);
    }
    let field = |place: usize| found[place].ok_or_else(|| (end, format!("the file ends without '{}'", FIELDS[place])));
    let count = |place: usize| field(place).map(|v| v as usize);
    Ok(Threshold { value: field(0)?, rate: field(1)?, items: count(2)?, classes: count(3)?, features: count(4)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let threshold = Threshold { value: -12.345678901234567, rate: 0.01, items: 2000, classes: 10, features: 2 };
        threshold.write(&path).unwrap();
        assert_eq!(Threshold::read(&path, 10, 2).unwrap(), threshold);
        let error = Threshold::read(&path, 10, 3).unwrap_err().to_string();
        assert!(error.contains("10 classes and 2 features, the net's has 10 and 3"), "{error}");
        let error = Threshold::read(&dir.path().join("none"), 10, 2).unwrap_err().to_string();
        assert!(error.contains("none") && error.contains("-calibrate"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, line, expected) in [
            ("threshold -1", 1, "expected 'name: number', found 'threshold -1'"),
            ("# a\nthreshhold: 1", 2, "did you mean 'threshold'"),
            ("threshold: x", 1, "expected a number, found 'x'"),
            ("threshold: nan", 1, "expected a number, found 'nan'"),
            ("threshold: 1\n", 1, "ends without 'false_positive_rate'"),
            ("", 1, "ends without 'threshold'"),
        ] {
            let (at, what) = parse(text).unwrap_err();
            assert!(at == line && what.contains(expected), "{text:?}: line {at}: {what}");
        }
    }
}
