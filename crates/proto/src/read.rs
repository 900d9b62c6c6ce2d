//! Nets and solvers from text, brought up to date.

use std::fs;
use std::path::Path;

use crate::numbers::check_numbers;
use crate::text::{Parsed, parse};
use crate::upgrade::{upgrade_net, upgrade_solver};
use crate::{Error, NetParameter, Result, SolverParameter};

/// Reads a net from text and brings it up to date.
///
/// # Errors
/// [`Error::Text`]: malformed text, a number that makes no sense, or an older net that cannot be upgraded.
pub fn parse_net(text: &[u8], file: &Path) -> Result<Parsed<NetParameter>> {
    let mut net: Parsed<NetParameter> = parse(text, file)?;
    check_numbers(&net.message, &net.positions)?;
    net.notices = upgrade_net(&mut net.message, &mut net.positions)?;
    Ok(net)
}

/// Reads a solver from text and brings it up to date; see [`upgrade_solver`] for what the file's name does.
///
/// # Errors
/// [`Error::Text`]: malformed text, or two fields that contradict each other.
pub fn parse_solver(text: &[u8], file: &Path) -> Result<Parsed<SolverParameter>> {
    let mut solver: Parsed<SolverParameter> = parse(text, file)?;
    solver.notices = upgrade_solver(&mut solver.message, &solver.positions)?;
    Ok(solver)
}

/// Reads a net's prototxt and brings it up to date.
///
/// # Errors
/// [`Error::Io`], or as [`parse_net`].
pub fn read_net(path: impl AsRef<Path>) -> Result<Parsed<NetParameter>> {
    parse_net(&read(path.as_ref())?, path.as_ref())
}

/// Reads a solver's prototxt and brings it up to date.
///
/// # Errors
/// [`Error::Io`], or as [`parse_solver`].
pub fn read_solver(path: impl AsRef<Path>) -> Result<Parsed<SolverParameter>> {
    parse_solver(&read(path.as_ref())?, path.as_ref())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io(path, "read"))
}
