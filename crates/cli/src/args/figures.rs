//! Flags of the commands that draw nets and trainings, or make tables of them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lgm_core::Error;

use super::StateFlags;

/// Flags of `draw_net`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  lgm-caffe draw_net net.prototxt net.svg -rankdir TB -phase TEST")]
pub struct DrawNetArgs {
    /// The net's prototxt
    pub input: PathBuf,
    /// The file to write: .svg, .png, or .dot or .gv for Graphviz
    pub output: PathBuf,
    /// The direction of the net: from left to right, top to bottom, or the reverse
    #[arg(long = "rankdir", value_name = "DIRECTION", value_enum, ignore_case = true, default_value_t = Rankdir::Lr)]
    pub rankdir: Rankdir,
    /// The phase to draw
    #[arg(long = "phase", value_name = "PHASE", value_enum, default_value_t = Layers::All)]
    pub phase: Layers,
    /// Also write the parameters' lr_mult into layers that give them
    #[arg(long = "display_lrm")]
    pub display_lrm: bool,
    /// The net's state, where a phase is chosen.
    #[command(flatten)]
    pub state: StateFlags,
}

/// The direction of a drawn net, by Graphviz's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rankdir {
    /// From left to right.
    #[value(name = "LR")]
    Lr,
    /// From top to bottom.
    #[value(name = "TB")]
    Tb,
    /// From bottom to top.
    #[value(name = "BT")]
    Bt,
    /// From right to left.
    #[value(name = "RL")]
    Rl,
}

impl Rankdir {
    /// Graphviz's name.
    pub fn name(self) -> &'static str {
        match self {
            Rankdir::Lr => "LR",
            Rankdir::Tb => "TB",
            Rankdir::Bt => "BT",
            Rankdir::Rl => "RL",
        }
    }

    /// Whether the net runs downward or upward.
    pub fn is_vertical(self) -> bool {
        matches!(self, Rankdir::Tb | Rankdir::Bt)
    }
}

/// The layers that are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layers {
    /// Those of the phase of training.
    #[value(name = "TRAIN")]
    Train,
    /// Those of the phase of testing.
    #[value(name = "TEST")]
    Test,
    /// All that the prototxt has.
    #[value(name = "ALL")]
    All,
}

/// Flags of `plot_training_log`.
#[derive(Args, Debug)]
#[command(after_help = "\
Chart types:
  0: Test accuracy vs. Iters            4: Train learning rate vs. Iters
  1: Test accuracy vs. Seconds          5: Train learning rate vs. Seconds
  2: Test loss vs. Iters                6: Train loss vs. Iters
  3: Test loss vs. Seconds              7: Train loss vs. Seconds
Example:
  lgm-caffe plot_training_log 6 loss.svg first.log second.log -smooth 10")]
pub struct PlotTrainingLogArgs {
    /// The chart's number, 0 to 7; see below
    #[arg(value_name = "CHART_TYPE", value_parser = chart_type)]
    pub chart_type: ChartType,
    /// The PNG or SVG file to draw, by the end of its name
    pub output: PathBuf,
    /// Logs of trainings, a curve each
    #[arg(required = true)]
    pub logs: Vec<PathBuf>,
    /// The outputs to draw, separated by commas, where a net's accuracy or loss has another name or there are several; of the
    /// training net for chart types 6 and 7
    #[arg(long = "output", value_name = "NAMES", value_delimiter = ',')]
    pub outputs: Vec<String>,
    /// Draw the mean of each value and those before it, so many in all
    #[arg(long = "smooth", value_name = "N", default_value_t = 1, value_parser = super::at_least_one())]
    pub smooth: u32,
}

/// What a chart of trainings shows, by the numbers of Caffe's script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ChartType {
    TestAccuracyIters,
    TestAccuracySeconds,
    TestLossIters,
    TestLossSeconds,
    RateIters,
    RateSeconds,
    LossIters,
    LossSeconds,
}

const CHART_TYPES: [ChartType; 8] = [
    ChartType::TestAccuracyIters,
    ChartType::TestAccuracySeconds,
    ChartType::TestLossIters,
    ChartType::TestLossSeconds,
    ChartType::RateIters,
    ChartType::RateSeconds,
    ChartType::LossIters,
    ChartType::LossSeconds,
];

impl ChartType {
    /// Whether points lie by seconds, not by iterations.
    pub fn by_seconds(self) -> bool {
        self as usize % 2 == 1
    }

    /// The name of the axis across.
    pub fn across(self) -> &'static str {
        if self.by_seconds() { "Seconds" } else { "Iters" }
    }

    /// The name of the axis upward.
    pub fn upward(self) -> &'static str {
        ["Test accuracy", "Test loss", "Train learning rate", "Train loss"][self as usize / 2]
    }

    /// Caffe's name of the chart.
    pub fn title(self) -> String {
        format!("{} vs. {}", self.upward(), self.across())
    }
}

fn chart_type(text: &str) -> Result<ChartType, String> {
    let known = text.trim().parse().ok().and_then(|number: usize| CHART_TYPES.get(number).copied());
    known.ok_or_else(|| {
        let types: Vec<_> = CHART_TYPES.iter().enumerate().map(|(i, kind)| format!("{i}: {}", kind.title())).collect();
        format!("expected the number of a chart type ({})", types.join(", "))
    })
}

/// Flags of `parse_log`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  lgm-caffe train -solver solver.prototxt 2> train.log
  lgm-caffe parse_log train.log .    # train.log.train and train.log.test")]
pub struct ParseLogArgs {
    /// The log of a training, of this program or of Caffe
    pub log: PathBuf,
    /// The folder to write LOG.train and LOG.test to
    pub output: PathBuf,
    /// Name the files written
    #[arg(long = "verbose")]
    pub verbose: bool,
    /// The character between columns
    #[arg(long = "delimiter", value_name = "C", default_value = ",", value_parser = delimiter)]
    pub delimiter: u8,
}

/// A character that no number in a table has.
fn delimiter(text: &str) -> Result<u8, Error> {
    match text.as_bytes() {
        &[c] if c == b'\t'
            || (c.is_ascii() && !c.is_ascii_control() && !c.is_ascii_alphanumeric() && !b"\"+-.".contains(&c)) =>
        {
            Ok(c)
        }
        _ => Err(Error::config("expected one character: a tab, a space, or a sign other than \" + - .")),
    }
}
