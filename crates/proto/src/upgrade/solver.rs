//! Solvers.

use std::path::Path;

use crate::solver_parameter::SolverType;
use crate::text::positions::Positions;
use crate::{Error, Result, SolverParameter};

/// Brings a solver up to date: `solver_type` becomes `type`; a missing `snapshot_prefix` becomes the solver's file
/// without its extension, and one that is a folder gets the file's name behind it. Gives what was done, a sentence
/// each, for the log.
///
/// # Errors
/// [`Error::Text`] if both `solver_type` and `type` are given, `solver_type` is none of the known ones, or snapshots
/// would be named after a file whose name is not UTF-8.
pub fn upgrade_solver(solver: &mut SolverParameter, positions: &Positions) -> Result<Vec<String>> {
    let file = positions.file().to_path_buf();
    let mut notices = Vec::new();
    if let Some(number) = solver.solver_type {
        let at = || positions.get("solver_type").unwrap_or_else(|| positions.start());
        if solver.r#type.is_some() {
            let what = "both 'type' and the older 'solver_type' are given; remove solver_type".into();
            return Err(Error::Text { at: at(), what });
        }
        let kind = SolverType::try_from(number)
            .map_err(|_| Error::Text { at: at(), what: format!("unknown value {number} for solver_type") })?;
        let name = match kind {
            SolverType::Sgd => "SGD",
            SolverType::Nesterov => "Nesterov",
            SolverType::Adagrad => "AdaGrad",
            SolverType::Rmsprop => "RMSProp",
            SolverType::Adadelta => "AdaDelta",
            SolverType::Adam => "Adam",
        };
        notices.push(format!("{}: replaced solver_type: {} by type: \"{name}\"", file.display(), kind.as_str_name()));
        solver.r#type = Some(name.into());
        solver.solver_type = None;
    }
    let prefix = match &solver.snapshot_prefix {
        None => Some(file.with_extension("")),
        Some(prefix) if Path::new(prefix).is_dir() => {
            Some(Path::new(prefix).join(file.file_stem().unwrap_or_default()))
        }
        Some(_) => None,
    };
    if let Some(prefix) = prefix {
        let why = if solver.snapshot_prefix.is_some() { "is a folder" } else { "is not given" };
        let Some(prefix) = prefix.to_str().map(String::from) else {
            let at = positions.get("snapshot_prefix").unwrap_or_else(|| positions.start());
            let what =
                "the solver's file name, which snapshots are named after, is not UTF-8; give snapshot_prefix".into();
            return Err(Error::Text { at, what });
        };
        notices.push(format!("{}: snapshot_prefix {why}; using {prefix}", file.display()));
        solver.snapshot_prefix = Some(prefix);
    }
    Ok(notices)
}
