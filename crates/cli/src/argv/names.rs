//! Commands and flags by their names, however these are spelt.

use std::ffi::OsStr;

use clap::{Arg, Command};

use crate::args::UsageError;

/// The command of a name, spelt with dashes or underscores.
pub fn command_of<'a>(cli: &'a Command, word: &OsStr) -> Option<&'a Command> {
    let word = underscored(word.to_str()?);
    let named = |command: &&Command| {
        std::iter::once(command.get_name()).chain(command.get_all_aliases()).any(|name| underscored(name) == word)
    };
    cli.get_subcommands().find(named)
}

/// A name with underscores for its dashes.
pub fn underscored(name: &str) -> String {
    name.replace('-', "_")
}

/// A flag's name.
pub fn long(arg: &Arg) -> &str {
    arg.get_long().unwrap_or_default()
}

/// Whether a flag takes a value.
pub fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

/// A command's flag by its name, however that is spelt.
pub fn flag_of<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let plain = underscored(name);
    let name = match plain.as_str() {
        "h" | "helpfull" | "helpshort" => "help",
        "V" => "version",
        name => name,
    };
    command.get_arguments().find(|arg| arg.get_long().is_some_and(|long| underscored(long) == name))
}

/// A flag of any command.
pub fn anywhere<'a>(cli: &'a Command, name: &str) -> Option<&'a Arg> {
    std::iter::once(cli).chain(cli.get_subcommands()).find_map(|command| flag_of(command, name))
}

/// The error of a flag that a command does not have, with the nearest that it has.
pub fn unknown(written: &str, command: &Command) -> UsageError {
    let hint = nearest_flag(written, command);
    let whose = match command.get_name() {
        "lgm-caffe" => "lgm-caffe COMMAND".to_string(),
        name => format!("lgm-caffe {name}"),
    };
    UsageError(format!("unknown flag '{written}'{hint} ('{whose} --help' lists the flags)"))
}

/// What an error says of the flag, of a command or of those below it, that is nearest to one as it is written.
pub fn nearest_flag(written: &str, command: &Command) -> String {
    let bare = written.trim_start_matches('-');
    let dashes = &written[..written.len() - bare.len()];
    let names = command.get_arguments().filter_map(Arg::get_long);
    let below = command.get_subcommands().flat_map(Command::get_arguments).filter_map(Arg::get_long);
    did_you_mean(lgm_core::nearest(&underscored(bare), names.chain(below)), dashes)
}

/// What an error says of the nearest name, if one is near.
pub fn did_you_mean(name: Option<&str>, dashes: &str) -> String {
    name.map(|name| format!("; did you mean '{dashes}{name}'?")).unwrap_or_default()
}
