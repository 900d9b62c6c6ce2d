//! Flags of the commands that draw.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

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
