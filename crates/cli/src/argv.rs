//! Rewrites flags from Caffe's (gflags') syntax to clap's.
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
    /// Warnings to log.
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
    let mut argv = tool_of(&program, cli).into_iter().chain(argv).peekable();
    let command_first = argv.peek().is_some_and(|first| !first.as_bytes().starts_with(b"-"));
    let Split { flags, words, unknown: strange } = split(argv, cli);
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

/// A command line taken apart.
struct Split {
    /// Flags by the names that clap gives them.
    flags: BTreeMap<String, Given>,
    /// What is no flag.
    words: Vec<OsString>,
    /// Flags of no command, as they are written.
    unknown: Vec<String>,
}

/// Separates flags from the other words.
fn split(mut argv: impl Iterator<Item = OsString>, cli: &Command) -> Split {
    let mut flags = BTreeMap::new();
    let mut words = Vec::new();
    let mut unknown_flags = Vec::new();
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
            unknown_flags.push(written);
        }
    }
    Split { flags, words, unknown: unknown_flags }
}

/// The command of a name, spelt with dashes or underscores.
pub fn command_of<'a>(cli: &'a Command, word: &OsStr) -> Option<&'a Command> {
    let word = underscored(word.to_str()?);
    let named = |command: &&Command| {
        std::iter::once(command.get_name()).chain(command.get_all_aliases()).any(|name| underscored(name) == word)
    };
    cli.get_subcommands().find(named)
}

fn underscored(name: &str) -> String {
    name.replace('-', "_")
}

/// The error of a command that there is not, with the nearest that there is.
pub fn unknown_command(word: &OsStr, cli: &Command) -> UsageError {
    let word = word.to_string_lossy();
    let names: Vec<String> = cli.get_subcommands().map(|command| underscored(command.get_name())).collect();
    let near = lgm_core::nearest(&underscored(&word), names.iter().map(String::as_str));
    let near = near.and_then(|name| command_of(cli, OsStr::new(name))).map(Command::get_name);
    UsageError(format!("unknown command '{word}'{} (commands: {})", did_you_mean(near, ""), commands(cli)))
}

/// The command that a program's name stands for: a link to the binary, or a copy, under the name of one of Caffe's tools
/// (`convert_imageset`, `compute_image_mean.bin`) is that tool. Names without an underscore are those of `caffe`'s own commands.
fn tool_of(program: &OsStr, cli: &Command) -> Option<OsString> {
    let name = std::path::Path::new(program).file_name()?.to_str()?;
    let name = name.strip_suffix(".bin").unwrap_or(name);
    command_of(cli, OsStr::new(name)).filter(|_| name.contains('_')).map(|command| command.get_name().into())
}

/// A flag in clap's form; `None` for one that counts as not given.
fn emit(arg: &Arg, given: Given) -> Option<OsString> {
    let name = long(arg);
    if !takes_value(arg) {
        let off = given.value.is_some_and(|value| ["false", "f", "no", "n", "0"].iter().any(|no| value == *no));
        return (!off).then(|| format!("--{name}").into());
    }
    match given.value {
        // Clap reports the missing value.
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
    let plain = underscored(name);
    let name = match plain.as_str() {
        "h" | "helpfull" | "helpshort" => "help",
        "V" => "version",
        name => name,
    };
    command.get_arguments().find(|arg| arg.get_long().is_some_and(|long| underscored(long) == name))
}

/// A flag of any command.
fn anywhere<'a>(cli: &'a Command, name: &str) -> Option<&'a Arg> {
    std::iter::once(cli).chain(cli.get_subcommands()).find_map(|command| flag_of(command, name))
}

fn of_caffe(cli: &Command, name: &str) -> bool {
    CAFFE.iter().filter_map(|command| cli.find_subcommand(command)).any(|command| flag_of(command, name).is_some())
}

fn unknown(written: &str, command: &Command) -> UsageError {
    let name = underscored(written.trim_start_matches('-'));
    let dashes = &written[..written.len() - written.trim_start_matches('-').len()];
    let names = command.get_arguments().filter_map(Arg::get_long);
    let below = command.get_subcommands().flat_map(Command::get_arguments).filter_map(Arg::get_long);
    let hint = did_you_mean(lgm_core::nearest(&name, names.chain(below)), dashes);
    let whose = match command.get_name() {
        "lgm-caffe" => "lgm-caffe COMMAND".to_string(),
        name => format!("lgm-caffe {name}"),
    };
    UsageError(format!("unknown flag '{written}'{hint} ('{whose} --help' lists the flags)"))
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
            (&["convert_mnist", "i", "l", "o"], &["convert-mnist", "--", "i", "l", "o"]),
            (&["help", "draw-net"], &["help", "draw_net"]),
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
                &["plot-trainin-log", "--no-such", "6"],
                "unknown command 'plot-trainin-log'; did you mean 'plot_training_log'?",
            ),
            (&["trian", "-solvr", "s", "train"], "unknown command 'trian'; did you mean 'train'?"),
            (&["help", "xyzzy"], "unknown command 'xyzzy'"),
            (
                &["train", "-solvr", "s"],
                "unknown flag '-solvr'; did you mean '-solver'? ('lgm-caffe train --help' lists",
            ),
            (
                &["--solvr=s", "train"],
                "unknown flag '--solvr'; did you mean '--solver'? ('lgm-caffe train --help' lists",
            ),
            (&["-solvr"], "unknown flag '-solvr'; did you mean '-solver'? ('lgm-caffe COMMAND --help' lists"),
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
