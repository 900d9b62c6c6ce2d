//! Caffe's way of writing flags, made clap's.
//!
//! Caffe reads its command line with gflags: a flag has one dash or two, takes its value after `=` or as the next
//! argument, stands before or after the command, counts `-` and `_` in its name as the same, is true by its bare name
//! and false as `-noname`, and of a flag given twice the last one holds. Every command takes every flag; one that the
//! command has no use for is left out here with a warning. The flags themselves are read from clap's definition.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Arg, Command};

use crate::args::UsageError;

/// Caffe's own commands; they share one set of flags.
const CAFFE: [&str; 4] = ["train", "test", "time", "device_query"];

/// A command line in clap's form.
#[derive(Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// The program's name, the command, its flags as `--name=value`, then what is no flag.
    pub args: Vec<OsString>,
    /// What to tell the user besides.
    pub warnings: Vec<String>,
}

/// A flag as the user wrote it.
struct Given {
    written: String,
    value: Option<OsString>,
}

/// Rewrites a command line for a built clap command.
///
/// # Errors
/// When a command or flag is unknown, with the nearest known one.
pub fn rewrite(argv: impl IntoIterator<Item = OsString>, cli: &Command) -> Result<Rewritten, UsageError> {
    let mut argv = argv.into_iter();
    let program = argv.next().unwrap_or_else(|| cli.get_name().into());
    let (flags, words) = split(argv, cli)?;
    let mut words = words.into_iter();

    let Some(word) = words.next() else {
        let help = |name| flags.contains_key(name).then(|| OsString::from(format!("--{name}")));
        return match help("help").or_else(|| help("version")) {
            Some(flag) => Ok(Rewritten { args: vec![program, flag], warnings: Vec::new() }),
            None if flags.is_empty() => Ok(Rewritten { args: vec![program, "--help".into()], warnings: Vec::new() }),
            None => Err(UsageError(format!("which command? (commands: {})", commands(cli)))),
        };
    };
    let Some(command) = word.to_str().and_then(|word| cli.find_subcommand(word)) else {
        let word = word.to_string_lossy();
        let names = cli.get_subcommands().map(Command::get_name);
        let hint = did_you_mean(lgm_core::nearest(&word, names), "");
        return Err(UsageError(format!("unknown command '{word}'{hint} (commands: {})", commands(cli))));
    };
    if command.get_name() == "help" {
        let args = [program, "help".into()].into_iter().chain(words).collect();
        return Ok(Rewritten { args, warnings: Vec::new() });
    }

    let mut args = vec![program, command.get_name().into()];
    let mut warnings = Vec::new();
    for (name, given) in flags {
        match flag_of(command, &name) {
            Some(arg) => args.extend(emit(arg, given)),
            None if CAFFE.contains(&command.get_name()) && of_caffe(cli, &name) => {
                warnings.push(format!("flag {} has no effect on '{}'", given.written, command.get_name()));
            }
            None => return Err(unknown(&given.written, command)),
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

/// Parts flags, by their names as clap knows them, from the other words.
#[allow(clippy::type_complexity)]
fn split(
    mut argv: impl Iterator<Item = OsString>,
    cli: &Command,
) -> Result<(BTreeMap<String, Given>, Vec<OsString>), UsageError> {
    let mut flags = BTreeMap::new();
    let mut words = Vec::new();
    let mut strangers = Vec::new();
    while let Some(argument) = argv.next() {
        let bytes = argument.as_bytes();
        if bytes == b"--" {
            words.extend(argv);
            break;
        }
        let Some(rest) = bytes.strip_prefix(b"-").filter(|rest| !rest.is_empty()) else {
            words.push(argument);
            continue;
        };
        let rest = rest.strip_prefix(b"-").unwrap_or(rest);
        let (name, value) = match rest.iter().position(|&byte| byte == b'=') {
            Some(at) => (&rest[..at], Some(OsStr::from_bytes(&rest[at + 1..]).to_os_string())),
            None => (rest, None),
        };
        let name = String::from_utf8_lossy(name);
        let dashes = if bytes.starts_with(b"--") { "--" } else { "-" };
        let written = format!("{dashes}{name}");
        if let Some(arg) = anywhere(cli, &name) {
            let value = match value {
                None if takes_value(arg) => argv.next(),
                value => value,
            };
            flags.insert(long(arg).to_string(), Given { written, value });
        } else if let Some(arg) =
            name.strip_prefix("no").and_then(|name| anywhere(cli, name)).filter(|a| !takes_value(a))
        {
            flags.insert(long(arg).to_string(), Given { written, value: Some("false".into()) });
        } else {
            strangers.push(written);
        }
    }
    match strangers.first() {
        None => Ok((flags, words)),
        Some(stranger) => {
            let command = words.iter().find_map(|word| cli.find_subcommand(word));
            Err(unknown(stranger, command.unwrap_or(cli)))
        }
    }
}

/// A flag in clap's form; nothing for one that is as if not given.
fn emit(arg: &Arg, given: Given) -> Option<OsString> {
    let name = long(arg);
    if !takes_value(arg) {
        let off = given.value.is_some_and(|value| ["false", "f", "no", "n", "0"].iter().any(|no| value == *no));
        return (!off).then(|| format!("--{name}").into());
    }
    match given.value {
        // Clap says what value is missing.
        None => Some(format!("--{name}").into()),
        // An empty text is how gflags says "not set", as scripts with an unset variable do.
        Some(value) if value.is_empty() && arg.get_default_values().is_empty() => None,
        Some(value) => {
            let mut bytes = format!("--{name}=").into_bytes();
            bytes.extend(value.as_bytes());
            Some(OsString::from_vec(bytes))
        }
    }
}

fn long(arg: &Arg) -> &str {
    arg.get_long().unwrap_or_default()
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

/// A command's flag by its name, however that is spelt.
fn flag_of<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let plain = name.replace('-', "_");
    let name = match plain.as_str() {
        "h" | "helpfull" | "helpshort" => "help",
        "V" => "version",
        name => name,
    };
    command.get_arguments().find(|arg| arg.get_long().is_some_and(|long| long.replace('-', "_") == name))
}

/// A flag of any command.
fn anywhere<'a>(cli: &'a Command, name: &str) -> Option<&'a Arg> {
    std::iter::once(cli).chain(cli.get_subcommands()).find_map(|command| flag_of(command, name))
}

fn of_caffe(cli: &Command, name: &str) -> bool {
    CAFFE.iter().filter_map(|command| cli.find_subcommand(command)).any(|command| flag_of(command, name).is_some())
}

fn unknown(written: &str, command: &Command) -> UsageError {
    let name = written.trim_start_matches('-').replace('-', "_");
    let dashes = &written[..written.len() - written.trim_start_matches('-').len()];
    let names = command.get_arguments().filter_map(Arg::get_long);
    let below = command.get_subcommands().flat_map(Command::get_arguments).filter_map(Arg::get_long);
    let hint = did_you_mean(lgm_core::nearest(&name, names.chain(below)), dashes);
    let whose = match command.get_name() {
        "lgm-caffe" => "lgm-caffe COMMAND".to_string(),
        name => format!("lgm-caffe {name}"),
    };
    UsageError(format!("unknown flag '{written}'{hint} ('{whose} --help' tells the flags)"))
}

fn did_you_mean(name: Option<&str>, dashes: &str) -> String {
    name.map(|name| format!("; did you mean '{dashes}{name}'?")).unwrap_or_default()
}

fn commands(cli: &Command) -> String {
    let names = cli.get_subcommands().filter(|command| !command.is_hide_set()).map(Command::get_name);
    names.filter(|name| *name != "help").collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn cli() -> Command {
        let mut cli = Cli::command();
        cli.build();
        cli
    }

    fn rewritten(line: &[&str]) -> Result<(Vec<String>, Vec<String>), UsageError> {
        let argv = std::iter::once("lgm-caffe").chain(line.iter().copied()).map(OsString::from);
        let rewritten = rewrite(argv, &cli())?;
        let args = rewritten.args.into_iter().skip(1).map(|arg| arg.into_string().unwrap()).collect();
        Ok((args, rewritten.warnings))
    }

    #[test]
    fn caffes_spellings_become_claps() {
        let table: &[(&[&str], &[&str])] = &[
            (&["train", "-solver", "s"], &["train", "--solver=s"]),
            (&["train", "--solver", "s"], &["train", "--solver=s"]),
            (&["train", "-solver=s"], &["train", "--solver=s"]),
            (&["train", "--solver=s"], &["train", "--solver=s"]),
            (&["-solver", "s", "train"], &["train", "--solver=s"]),
            (&["--solver=s", "train", "-gpu", "0,1"], &["train", "--gpu=0,1", "--solver=s"]),
            (&["train", "-solver", "a", "-solver=b"], &["train", "--solver=b"]),
            (&["train", "-solver", "a=b"], &["train", "--solver=a=b"]),
            (&["train", "-solver=a=b"], &["train", "--solver=a=b"]),
            (&["train", "-solver", "-odd-name"], &["train", "--solver=-odd-name"]),
            (&["train", "-sigint-effect", "none"], &["train", "--sigint_effect=none"]),
            (&["train", "-solver", "s", "-snapshot="], &["train", "--solver=s"]),
            (&["train", "-solver", "s", "-weights", ""], &["train", "--solver=s"]),
            (&["train", "-sigint_effect="], &["train", "--sigint_effect="]),
            (&["train", "-solver"], &["train", "--solver"]),
            (&["time", "-model", "m", "-level", "-1"], &["time", "--level=-1", "--model=m"]),
            (&["train", "-logtostderr"], &["train", "--logtostderr"]),
            (&["-logtostderr=1", "train"], &["train", "--logtostderr"]),
            (&["train", "-logtostderr=false"], &["train"]),
            (&["train", "-logtostderr", "-nologtostderr"], &["train"]),
            (&["-alsologtostderr", "device_query", "-gpu", "all"], &["device_query", "--alsologtostderr", "--gpu=all"]),
            (&["-v", "1", "time"], &["time", "--v=1"]),
            (&["device-query"], &["device_query"]),
            (
                &["convert-mnist", "-backend", "hdf5", "i", "l", "o"],
                &["convert-mnist", "--backend=hdf5", "--", "i", "l", "o"],
            ),
            (
                &["convert_mnist_data", "i", "l", "-backend=lmdb", "o"],
                &["convert-mnist", "--backend=lmdb", "--", "i", "l", "o"],
            ),
            (&["convert-cifar", "--", "-i", "-o"], &["convert-cifar", "--", "-i", "-o"]),
            (&["convert-cifar", "-", "o"], &["convert-cifar", "--", "-", "o"]),
            (&[], &["--help"]),
            (&["-help"], &["--help"]),
            (&["-h"], &["--help"]),
            (&["--helpfull"], &["--help"]),
            (&["-version"], &["--version"]),
            (&["train", "-help"], &["train", "--help"]),
            (&["-h", "train"], &["train", "--help"]),
            (&["help", "train"], &["help", "train"]),
        ];
        for (line, expected) in table {
            let (args, warnings) = rewritten(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
            assert_eq!(&args, expected, "{line:?}");
            assert!(warnings.is_empty(), "{line:?}: {warnings:?}");
        }
    }

    #[test]
    fn a_flag_of_another_caffe_command_is_left_out_with_a_warning() {
        let (args, warnings) = rewritten(&["train", "-solver=s", "-iterations", "10", "--phase=TEST"]).unwrap();
        assert_eq!(args, ["train", "--solver=s"]);
        assert_eq!(warnings, ["flag -iterations has no effect on 'train'", "flag --phase has no effect on 'train'"]);
    }

    #[test]
    fn the_unknown_is_answered_with_the_nearest() {
        let table: &[(&[&str], &str)] = &[
            (
                &["trian"],
                "unknown command 'trian'; did you mean 'train'? (commands: train, test, time, summary, device_query, ",
            ),
            (&["device_querry", "-gpu", "0"], "unknown command 'device_querry'; did you mean 'device_query'?"),
            (&["xyzzy"], "unknown command 'xyzzy' (commands: train, "),
            (
                &["train", "-solvr", "s"],
                "unknown flag '-solvr'; did you mean '-solver'? ('lgm-caffe train --help' tells",
            ),
            (
                &["--solvr=s", "train"],
                "unknown flag '--solvr'; did you mean '--solver'? ('lgm-caffe train --help' tells",
            ),
            (&["-solvr"], "unknown flag '-solvr'; did you mean '-solver'? ('lgm-caffe COMMAND --help' tells"),
            (&["train", "-nosolver"], "unknown flag '-nosolver'"),
            (&["train", "--zzzzzz"], "unknown flag '--zzzzzz' ("),
            (&["convert-mnist", "-solver", "s", "i"], "unknown flag '-solver' ('lgm-caffe convert-mnist --help'"),
            (&["-solver", "s"], "which command? (commands: train, test, "),
        ];
        for (line, expected) in table {
            let error = rewritten(line).unwrap_err().0;
            assert!(error.starts_with(expected), "{line:?}: {error}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_pass_through() {
        let path = OsStr::from_bytes(b"-solver=\xff\xfe");
        let argv = ["lgm-caffe", "train"].map(OsString::from).into_iter().chain([path.to_os_string()]);
        let args = rewrite(argv, &cli()).unwrap().args;
        assert_eq!(args[2].as_bytes(), b"--solver=\xff\xfe");
    }

    #[test]
    fn a_flag_takes_a_value_in_every_command_or_in_none() {
        let cli = cli();
        for command in cli.get_subcommands() {
            for arg in command.get_arguments().filter(|arg| arg.get_long().is_some()) {
                let first = anywhere(&cli, long(arg)).unwrap();
                assert_eq!(takes_value(arg), takes_value(first), "{} of {}", long(arg), command.get_name());
            }
        }
    }
}
