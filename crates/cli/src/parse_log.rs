//! `lgm-caffe parse_log`: a training's log to tables of comma-separated values, as Caffe's `parse_log.py` makes them.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use lgm_core::fs::write_bytes;

use crate::args::ParseLogArgs;
use crate::output;
use crate::training_log::{Table, TrainingLog};

/// Writes `LOG.train` and `LOG.test` into the folder. Where the training net has no output, its table has the displayed
/// loss.
///
/// # Errors
/// When the log cannot be read, is none, or a table cannot be written.
pub fn run(args: &ParseLogArgs) -> Result<ExitCode> {
    let log = TrainingLog::read(&args.log)?;
    let name = args.log.file_name().with_context(|| format!("{} names no file", args.log.display()))?;
    let train = if log.train.rows.is_empty() { &log.loss } else { &log.train };
    for (end, table) in [(".train", train), (".test", &log.test)] {
        let mut name = name.to_owned();
        name.push(end);
        let told = write(&args.output.join(name), table, args.delimiter)?;
        if args.verbose {
            output::print(&told)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a table that has rows. Returns what was done.
fn write(path: &Path, table: &Table, delimiter: u8) -> Result<String> {
    if table.rows.is_empty() {
        return Ok(format!("Not writing {}; no lines to write\n", path.display()));
    }
    let mut csv =
        csv::WriterBuilder::new().delimiter(delimiter).terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    let heads = ["NumIters", "Seconds", "LearningRate"].into_iter();
    csv.write_record(heads.chain(table.names.iter().map(String::as_str)))?;
    for row in &table.rows {
        let values = row.values.iter().map(|value| value.map(number).unwrap_or_default());
        csv.write_record([row.iteration as f64, row.seconds, row.rate].map(number).into_iter().chain(values))?;
    }
    write_bytes(path, &csv.into_inner()?)?;
    Ok(format!("Wrote {}\n", path.display()))
}

/// A number in Python's spelling: the fewest digits that give it back, with a point or an exponent of two digits.
fn number(value: f64) -> String {
    let text = format!("{value:?}").to_lowercase();
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
            format!("{}e{sign}{exponent:0>2}", digits.strip_suffix(".0").unwrap_or(digits))
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spelt_as_by_python() {
        for (value, text) in [
            (0.0, "0.0"),
            (100.0, "100.0"),
            (-0.25, "-0.25"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (2.5e-123, "2.5e-123"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
