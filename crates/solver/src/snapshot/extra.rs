//! What stands beside a state file: what Caffe's state has no place for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lgm_core::{Error, Result, State};
use serde::{Deserialize, Serialize};

/// What Caffe's solver state cannot hold.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Extra {
    pub version: u32,
    pub iter: i32,
    pub seed: u64,
    pub losses: Vec<Exact>,
    pub smoothed_loss: Exact,
    pub train: NetExtra,
    pub test: Vec<TestExtra>,
}

impl Extra {
    /// As JSON.
    ///
    /// # Errors
    /// Never, as far as is known.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|e| Error::internal(e.to_string()))
    }
}

/// By layer.
pub(crate) type NetExtra = BTreeMap<String, BTreeMap<String, Exact>>;

/// Where a test net stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TestExtra {
    pub batches: u64,
    pub state: NetExtra,
}

/// A number written as text that reads back as the same bits; JSON's numbers have no infinity and no NaN.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Exact(pub f64);

impl From<Exact> for String {
    fn from(Exact(number): Exact) -> String {
        number.to_string()
    }
}

impl TryFrom<String> for Exact {
    type Error = std::num::ParseFloatError;

    fn try_from(text: String) -> Result<Exact, Self::Error> {
        text.parse().map(Exact)
    }
}

pub(crate) fn exact(state: BTreeMap<String, State>) -> NetExtra {
    let layer = |(name, state): (String, State)| (name, state.into_iter().map(|(k, v)| (k, Exact(v))).collect());
    state.into_iter().map(layer).collect()
}

pub(crate) fn plain(state: NetExtra) -> BTreeMap<String, State> {
    state.into_iter().map(|(name, layer)| (name, layer.into_iter().map(|(k, Exact(v))| (k, v)).collect())).collect()
}

pub(crate) const EXTRA_VERSION: u32 = 1;

/// What stands beside a state file, if it is there.
///
/// # Errors
/// When it is there but cannot be read or makes no sense.
pub(crate) fn read_extra(state: &Path) -> Result<Option<Extra>> {
    let path = extra_path(state);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&path, "read")(e)),
    };
    let hint = format!("remove it to resume from {} alone", state.display());
    let extra: Extra =
        serde_json::from_str(&text).map_err(|e| Error::data(&path, format!("is damaged: {e}; {hint}")))?;
    if extra.version != EXTRA_VERSION {
        let what = format!("is of version {}, this program's is {EXTRA_VERSION}; {hint}", extra.version);
        return Err(Error::data(&path, what));
    }
    Ok(Some(extra))
}

pub(crate) fn extra_path(state: &Path) -> PathBuf {
    let mut name = state.as_os_str().to_owned();
    name.push(".lgm");
    name.into()
}
