//! Nets and solvers from text, upgraded to today's format.

use std::fs;
use std::path::Path;

use crate::numbers::check_numbers;
use crate::text::{Parsed, Positions, parse};
use crate::upgrade::upgrade_solver;
use crate::{Error, Fault, NetParameter, Result, SolverParameter};

/// Reads a net from text and upgrades it to today's format.
///
/// # Errors
/// [`Error::Text`]: malformed text, a number that makes no sense, or an older net that cannot be upgraded.
pub fn parse_net(text: &[u8], file: &Path) -> Result<Parsed<NetParameter>> {
    let mut net: Parsed<NetParameter> = parse(text, file)?;
    check_numbers(&net.message, &net.positions)?;
    net.upgrade()?;
    Ok(net)
}

/// Reads a solver from text and upgrades it to today's format. A `snapshot_prefix` that is missing or a folder gets the
/// file's name.
///
/// # Errors
/// [`Error::Text`]: malformed text, two fields that contradict each other, or fields of forks that are not supported.
pub fn parse_solver(text: &[u8], file: &Path) -> Result<Parsed<SolverParameter>> {
    let mut solver: Parsed<SolverParameter> = parse(text, file)?;
    refuse(&solver.positions)?;
    solver.notices = upgrade_solver(&mut solver.message, &solver.positions)?;
    Ok(solver)
}

/// Reads a net's prototxt and upgrades it to today's format.
///
/// # Errors
/// [`Error::Io`], or as [`parse_net`].
pub fn read_net(path: impl AsRef<Path>) -> Result<Parsed<NetParameter>> {
    parse_net(&read(path.as_ref())?, path.as_ref())
}

/// Reads a solver's prototxt and upgrades it to today's format.
///
/// # Errors
/// [`Error::Io`], or as [`parse_solver`].
pub fn read_solver(path: impl AsRef<Path>) -> Result<Parsed<SolverParameter>> {
    parse_solver(&read(path.as_ref())?, path.as_ref())
}

/// Refuses settings of a solver, outside the nets in it, that would change results and are not supported.
fn refuse(positions: &Positions) -> Result<()> {
    let faults =
        positions.refused_outside_layers().into_iter().map(|(at, what)| (at, Fault::Unsupported(what.to_owned())));
    Error::all(faults.collect())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io(path, "read"))
}
