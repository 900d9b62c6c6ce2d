//! The files of ROC curves.

use std::fmt::Write as _;
use std::path::Path;

use lgm_core::Result;
use lgm_core::fs::write_bytes;

use super::{Detection, figure};
use crate::plot;

/// Writes `roc.csv` and `roc.png` to a folder; what to tell of it.
///
/// # Errors
/// When they cannot be written.
pub fn write(folder: &Path, net: &str, detections: &[Detection]) -> Result<String> {
    let (csv, png) = (folder.join("roc.csv"), folder.join("roc.png"));
    write_bytes(&csv, text(detections).as_bytes())?;
    plot::write(&png, &figure::Curves { title: &format!("Telling abnormal inputs of {net}"), detections })?;
    Ok(format!("{}\n{}\n", csv.display(), png.display()))
}

fn text(detections: &[Detection]) -> String {
    let mut text = "abnormal,score,area,false_positive_rate,true_positive_rate\n".to_string();
    for Detection { of, score, roc } in detections {
        // A name may hold commas and quotes.
        let of = format!("\"{}\"", of.replace('"', "\"\""));
        for [clean, abnormal] in &roc.points {
            let _ = writeln!(text, "{of},{},{},{clean},{abnormal}", score.name(), roc.area);
        }
    }
    text
}
