//! Rewrites flags from Caffe's (gflags') syntax to clap's.
//!
//! Caffe reads its command line with gflags: a flag has one dash or two, takes its value after `=` or as the next
//! argument, stands before or after the command, counts `-` and `_` in its name as the same, is true by its bare name
//! and false as `-noname`, and of a flag given twice the last one holds; `-flagfile` names files of flags. Every command
//! takes every flag; one that the command has no use for is left out here with a warning. The flags themselves are read
//! from clap's definition.

mod glog;
mod names;
mod split;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Arg, Command};

pub use self::names::command_of;
use self::names::{did_you_mean, flag_of, long, takes_value, underscored, unknown};
use self::split::{Given, Split, split};
use crate::args::UsageError;

/// Caffe's own commands; they share one set of flags.
const CAFFE: [&str; 4] = ["train", "test", "time", "device_query"];

/// A command line in clap's form.
#[derive(Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// The program's name, the command, its flags as `--name=value`, then what is no flag.
    pub args: Vec<OsString>,
    /// Warnings to log.
    pub warnings: Vec<String>,
}

/// Names of Caffe's older tools, and what replaces them.
const OLDER: [(&str, &str); 4] = [
    ("train_net", "train -solver SOLVER [-snapshot STATE]"),
    ("finetune_net", "train -solver SOLVER -weights WEIGHTS"),
    ("test_net", "test -model NET -weights WEIGHTS [-iterations N] [-gpu ID]"),
    ("net_speed_benchmark", "time -model NET [-iterations N] [-gpu ID]"),
];

/// Rewrites a command line for a built clap command.
///
/// # Errors
/// When a command or flag is unknown, with the nearest known one; when a file of flags cannot be read.
pub fn rewrite(argv: impl IntoIterator<Item = OsString>, cli: &Command) -> Result<Rewritten, UsageError> {
    let mut argv = argv.into_iter();
    let program = argv.next().unwrap_or_else(|| cli.get_name().into());
    let mut argv = tool_of(&program, cli).into_iter().chain(argv).peekable();
    let command_first = argv.peek().is_some_and(|first| !first.as_bytes().starts_with(b"-"));
    let Split { mut flags, words, unknown: strange, mut warnings } = split(argv, cli)?;
    if let (Some(flag), false) = (strange.first(), command_first) {
        let command = words.iter().find_map(|word| command_of(cli, word));
        return Err(unknown(flag, command.unwrap_or(cli)));
    }
    let mut words = words.into_iter();

    let Some(word) = words.next() else {
        let help = |name| flags.contains_key(name).then(|| OsString::from(format!("--{name}")));
        return match help("help").or_else(|| help("version")) {
            Some(flag) => Ok(Rewritten { args: vec![program, flag], warnings: Vec::new() }),
            None if flags.is_empty() => Ok(Rewritten { args: vec![program, "--help".into()], warnings: Vec::new() }),
            None => Err(UsageError(format!("which command? (commands: {})", commands(cli)))),
        };
    };
    // A command that is unknown is told before its flags, which then are unknown too.
    let command = command_of(cli, &word).ok_or_else(|| unknown_command(&word, cli))?;
    if let Some(flag) = strange.first() {
        return Err(unknown(flag, command));
    }
    if command.get_name() == "help" {
        let about = words.map(|word| match command_of(cli, &word) {
            Some(command) => Ok(command.get_name().into()),
            None => Err(unknown_command(&word, cli)),
        });
        let args = [Ok(program), Ok("help".into())].into_iter().chain(about).collect::<Result<_, _>>()?;
        return Ok(Rewritten { args, warnings: Vec::new() });
    }

    if flags.remove("version").is_some() && !flags.contains_key("help") {
        return Ok(Rewritten { args: vec![program, "--version".into()], warnings: Vec::new() });
    }
    let mut args = vec![program, command.get_name().into()];
    for (name, given) in flags {
        let has_none = |place: &str| format!("{place}flag {} has no effect on '{}'", given.written, command.get_name());
        match (flag_of(command, &name), &given.place) {
            (Some(arg), _) => args.extend(emit(arg, given)?),
            (None, Some(place)) => warnings.push(has_none(&format!("{place}: "))),
            (None, None) if CAFFE.contains(&command.get_name()) && of_caffe(cli, &name) => warnings.push(has_none("")),
            (None, None) => return Err(unknown(&given.written, command)),
        }
    }
    // What is no flag keeps its meaning even where it begins with a dash.
    let words: Vec<_> = words.collect();
    if !words.is_empty() {
        args.push("--".into());
        args.extend(words);
    }
    Ok(Rewritten { args, warnings })
}

/// The error of a command that there is not, with the nearest that there is.
pub fn unknown_command(word: &OsStr, cli: &Command) -> UsageError {
    let word = word.to_string_lossy();
    if let Some(today) = todays(word.strip_suffix(".bin").unwrap_or(&word)) {
        return UsageError(format!("unknown command '{word}', an older tool of Caffe's; use 'lgm-caffe {today}'"));
    }
    let names: Vec<String> = cli.get_subcommands().map(|command| underscored(command.get_name())).collect();
    let near = lgm_core::nearest(&underscored(&word), names.iter().map(String::as_str));
    let near = near.and_then(|name| command_of(cli, OsStr::new(name))).map(Command::get_name);
    UsageError(format!("unknown command '{word}'{} (commands: {})", did_you_mean(near, ""), commands(cli)))
}

/// What replaces one of Caffe's older tools.
fn todays(name: &str) -> Option<&'static str> {
    let name = underscored(name);
    OLDER.iter().find(|(older, _)| *older == name).map(|(_, today)| *today)
}

/// The command that a program's name stands for: a link to the binary, or a copy, under the name of one of Caffe's tools
/// (`convert_imageset`, `compute_image_mean.bin`) is that tool, also an older one, which is told what replaces it. Names without
/// an underscore are those of `caffe`'s own commands.
fn tool_of(program: &OsStr, cli: &Command) -> Option<OsString> {
    let name = std::path::Path::new(program).file_name()?.to_str()?;
    let name = name.strip_suffix(".bin").unwrap_or(name);
    let known = todays(name).is_some() || name.contains('_') && command_of(cli, OsStr::new(name)).is_some();
    known.then(|| name.into())
}

/// A flag in clap's form; `None` for one that counts as not given.
///
/// # Errors
/// When the value of a switch is neither true nor false, of which gflags knows five words each.
fn emit(arg: &Arg, given: Given) -> Result<Option<OsString>, UsageError> {
    let name = long(arg);
    let switch = || Some(format!("--{name}").into());
    if !takes_value(arg) {
        let Some(value) = given.value else { return Ok(switch()) };
        let is = |words: [&str; 5]| words.iter().any(|word| value.eq_ignore_ascii_case(word));
        if is(["true", "t", "yes", "y", "1"]) {
            return Ok(switch());
        }
        if is(["false", "f", "no", "n", "0"]) {
            return Ok(None);
        }
        let found = value.to_string_lossy();
        return Err(UsageError(format!("flag {}: expected true or false, found '{found}'", given.written)));
    }
    Ok(match given.value {
        // Clap reports the missing value.
        None => switch(),
        // An empty text is how gflags says "not set", as scripts with an unset variable do.
        Some(value) if value.is_empty() && arg.get_default_values().is_empty() => None,
        Some(value) => {
            let mut bytes = format!("--{name}=").into_bytes();
            bytes.extend(value.as_bytes());
            Some(OsString::from_vec(bytes))
        }
    })
}

fn of_caffe(cli: &Command, name: &str) -> bool {
    CAFFE.iter().filter_map(|command| cli.find_subcommand(command)).any(|command| flag_of(command, name).is_some())
}

fn commands(cli: &Command) -> String {
    let names = cli.get_subcommands().filter(|command| !command.is_hide_set()).map(Command::get_name);
    names.filter(|name| *name != "help").collect::<Vec<_>>().join(", ")
}
