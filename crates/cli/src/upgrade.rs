//! `lgm-caffe upgrade_net_proto_text` and its like: files of older formats, written in today's.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use lgm_core::Error;
use lgm_core::fs::write_bytes;
use lgm_proto::{Fault, FileKind, Upgraded, upgrade_net_binary, upgrade_net_text, upgrade_solver_text};
use tracing::{error, info, warn};

use crate::args::UpgradeArgs;

/// The files that a command upgrades.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A net's prototxt.
    NetText,
    /// A binary net, with or without weights.
    NetBinary,
    /// A solver's prototxt.
    SolverText,
}

impl Kind {
    fn upgrade<'a>(self, bytes: &'a [u8], file: &Path) -> lgm_proto::Result<Upgraded<'a>> {
        match self {
            Kind::NetText => upgrade_net_text(bytes, file),
            Kind::NetBinary => upgrade_net_binary(bytes, file),
            Kind::SolverText => upgrade_solver_text(bytes, file),
        }
    }

    /// What the input must be.
    fn wanted(self) -> FileKind {
        match self {
            Kind::NetText => FileKind::Net,
            Kind::NetBinary => FileKind::Weights,
            Kind::SolverText => FileKind::Solver,
        }
    }

    fn form(self) -> &'static str {
        if matches!(self, Kind::NetBinary) { "binary" } else { "text" }
    }

    fn message(self) -> &'static str {
        if matches!(self, Kind::SolverText) { "SolverParameter" } else { "NetParameter" }
    }
}

/// The input cannot be read; ends the process with code 2, as in Caffe.
#[derive(Debug)]
pub struct Unreadable {
    input: PathBuf,
    form: &'static str,
    message: &'static str,
    source: Error,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failed to parse input {} file as {}: {}", self.form, self.message, self.input.display())
    }
}

impl std::error::Error for Unreadable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Writes the input in today's format. Ends with code 1 if settings of it had to be left out.
///
/// # Errors
/// [`Unreadable`]; when the input cannot be upgraded, or the output cannot be written.
pub fn run(args: &UpgradeArgs, kind: Kind) -> Result<ExitCode> {
    let input = &args.input;
    let (form, message) = (kind.form(), kind.message());
    let unreadable = |source| Unreadable { input: input.clone(), form, message, source };
    let bytes = std::fs::read(input).map_err(Error::io(input, "read")).map_err(unreadable)?;
    match FileKind::of_head(&bytes) {
        // A message without fields, for Caffe.
        FileKind::Empty => {}
        found => found.expect(kind.wanted(), input).map_err(|error| unreadable(error.into()))?,
    }
    let upgraded = kind.upgrade(&bytes, input).map_err(|error| match &error {
        lgm_proto::Error::Text { fault: Fault::Upgrade(_), .. } => anyhow::Error::from(error),
        _ => unreadable(error.into()).into(),
    })?;
    upgraded.notices.iter().for_each(|notice| info!("{notice}"));
    upgraded.ignored.iter().for_each(|ignored| error!("{ignored}"));
    if upgraded.notices.is_empty() {
        error!("File already in latest proto format: {}", input.display());
    }
    if !upgraded.ignored.is_empty() {
        error!("Encountered error(s) while upgrading the file; see details above.");
    }
    write_bytes(&args.output, &upgraded.bytes)?;
    info!("Wrote upgraded {message} {form} proto to {}", args.output.display());
    if upgraded.bytes.is_empty() {
        let (output, input) = (args.output.display(), input.display());
        warn!("{output} is empty: {input} holds nothing that today's format has a place for");
    }
    Ok(if upgraded.ignored.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
