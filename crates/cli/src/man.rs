//! `man`: the manual page, of the program or of one command.

use std::ffi::OsStr;
use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;

use crate::args::{Cli, ManArgs, UsageError};
use crate::{argv, output};

/// Prints a page in troff's language: `lgm-caffe man | man -l -`.
///
/// # Errors
/// When there is no such command, or standard output takes no more.
pub fn run(args: &ManArgs) -> Result<ExitCode> {
    output::print(&page(args.command.as_deref())?)?;
    Ok(ExitCode::SUCCESS)
}

fn page(name: Option<&str>) -> Result<String> {
    let mut cli = Cli::command();
    cli.build();
    let command = match name {
        None => cli,
        Some(name) => match argv::command_of(&cli, OsStr::new(name)) {
            Some(command) => command.clone(),
            None => return Err(argv::unknown_command(OsStr::new(name), &cli).into()),
        },
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(command).manual("lgm-caffe").render(&mut text).map_err(|e| UsageError(e.to_string()))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_name_commands_and_flags() {
        let all = page(None).unwrap();
        for part in [".TH lgm-caffe ", "plot_training_log", "convert\\-mnist"] {
            assert!(all.contains(part), "{part} is missing in:\n{all}");
        }
        let train = page(Some("train")).unwrap();
        for part in [".TH lgm-caffe-train", "\\-\\-solver", "Solver state to resume from"] {
            assert!(train.contains(part), "{part} is missing in:\n{train}");
        }
        assert_eq!(page(Some("draw-net")).unwrap(), page(Some("draw_net")).unwrap());
        assert!(page(Some("trian")).unwrap_err().to_string().contains("did you mean 'train'"));
    }
}
