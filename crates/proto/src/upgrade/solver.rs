//! Solvers.

use crate::solver_parameter::SolverType;
use crate::text::positions::Positions;
use crate::{Fault, Result, SolverParameter, strings};

/// Upgrades a solver: see [`upgrade_type`] and [`complete_prefix`]. Gives the steps, a line each, for the log.
pub(crate) fn upgrade_solver(solver: &mut SolverParameter, positions: &Positions) -> Result<Vec<String>> {
    let mut notices = upgrade_type(solver, positions)?;
    notices.extend(complete_prefix(solver, positions));
    Ok(notices)
}

/// Replaces the enum `solver_type` by the name `type`. Fails if both are given, and for a number that the enum lacks.
pub(super) fn upgrade_type(solver: &mut SolverParameter, positions: &Positions) -> Result<Vec<String>> {
    let Some(number) = solver.solver_type else { return Ok(Vec::new()) };
    let fault =
        |what: String| Fault::Upgrade(what).at(positions.get("solver_type").unwrap_or_else(|| positions.start()));
    if solver.r#type.is_some() {
        return Err(fault("both 'type' and the older 'solver_type' are given; remove solver_type".into()));
    }
    let kind = SolverType::try_from(number).map_err(|_| fault(format!("unknown value {number} for solver_type")))?;
    let name = match kind {
        SolverType::Sgd => "SGD",
        SolverType::Nesterov => "Nesterov",
        SolverType::Adagrad => "AdaGrad",
        SolverType::Rmsprop => "RMSProp",
        SolverType::Adadelta => "AdaDelta",
        SolverType::Adam => "Adam",
    };
    solver.r#type = Some(name.into());
    solver.solver_type = None;
    let file = positions.file().display();
    Ok(vec![
        format!("Attempting to upgrade input file specified using deprecated 'solver_type' field (enum): {file}"),
        format!(
            "Successfully upgraded file specified using deprecated 'solver_type' field (enum) to 'type' field \
             (string): solver_type: {} is type: \"{name}\"",
            kind.as_str_name()
        ),
    ])
}

/// Sets a missing `snapshot_prefix` to the solver's file without its extension, and puts the file's name behind one that
/// is a folder, or is written as one.
fn complete_prefix(solver: &mut SolverParameter, positions: &Positions) -> Option<String> {
    let file = positions.file();
    let given = solver.snapshot_prefix.as_deref().map(strings::to_path);
    let (prefix, why) = match given {
        None => (file.with_extension(""), "is not given"),
        Some(folder) if folder.is_dir() || folder.as_os_str().as_encoded_bytes().ends_with(b"/") => {
            (folder.join(file.file_stem().unwrap_or_default()), "is a folder")
        }
        Some(_) => return None,
    };
    solver.snapshot_prefix = Some(strings::from_path(&prefix));
    Some(format!("{}: snapshot_prefix {why}; using {}", file.display(), prefix.display()))
}
