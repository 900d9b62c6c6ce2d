//! Where a command computes.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use lgm_core::{Error, Result, ensure};
use lgm_cuda::Precision;

/// The choice of GPUs.
#[derive(Args, Clone, Debug, Default)]
pub struct GpuFlag {
    /// GPUs to run on: one number, several separated by commas, or 'all'
    #[arg(long = "gpu", value_name = "IDS")]
    pub gpu: Option<Gpus>,
}

/// Flags of every command that runs a net.
#[derive(Args, Clone, Debug, Default)]
pub struct DeviceFlags {
    /// The GPUs.
    #[command(flatten)]
    pub gpus: GpuFlag,
    /// On a GPU, the precision of matrix products and convolutions: tf32 (unless given, or a solver gives another), fp32,
    /// or bf16, in which blobs are stored too
    #[arg(long = "precision", value_name = "PRECISION")]
    pub precision: Option<Precision>,
}

/// The GPUs that `-gpu` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gpus {
    /// Every one the driver sees.
    All,
    /// Those of these numbers.
    List(Vec<u32>),
}

impl FromStr for Gpus {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "all" {
            return Ok(Gpus::All);
        }
        let mut list = Vec::new();
        for part in text.split(',') {
            let expected = || format!("expected GPU numbers like '0' or '0,1', or 'all', found '{text}'");
            let id = part.trim().parse().map_err(|_| Error::Config(expected()))?;
            ensure!(!list.contains(&id), "GPU {id} is named twice");
            list.push(id);
        }
        Ok(Gpus::List(list))
    }
}

impl fmt::Display for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gpus::All => f.write_str("all"),
            Gpus::List(ids) => f.write_str(&ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpu_lists() {
        let parsed = |text: &str| text.parse::<Gpus>().map_err(|error| error.to_string());
        assert_eq!(parsed("all"), Ok(Gpus::All));
        assert_eq!(parsed("0"), Ok(Gpus::List(vec![0])));
        assert_eq!(parsed("2, 0"), Ok(Gpus::List(vec![2, 0])));
        for wrong in ["", "0,", "x", "-1", "ALL"] {
            assert!(parsed(wrong).unwrap_err().contains("expected GPU numbers"), "{wrong}");
        }
        assert_eq!(parsed("1,1").unwrap_err(), "GPU 1 is named twice");
    }
}
