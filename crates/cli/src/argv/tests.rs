use clap::CommandFactory;

use super::names::anywhere;
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
        // As Python writes them.
        (
            &["convert_imageset", "--gray=False", "--encoded=True", "r", "l", "d"],
            &["convert_imageset", "--encoded", "--", "r", "l", "d"],
        ),
        (&["train", "-logtostderr=NO"], &["train"]),
        (&["train", "-logtostderr", "-nologtostderr"], &["train"]),
        (&["-alsologtostderr", "device_query", "-gpu", "all"], &["device_query", "--gpu=all"]),
        (&["-v", "1", "time"], &["time", "--v=1"]),
        (&["time", "-v=-1", "-minloglevel", "-1"], &["time", "--minloglevel=-1", "--v=-1"]),
        (&["-colorlogtostderr", "-logbufsecs", "0", "train", "-nocolorlogtostderr"], &["train"]),
        (&["train", "-max_log_size=1800", "--stop-logging-if-full-disk", "-stderrthreshold", "2"], &["train"]),
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
        (&["train", "-solver", "s", "-version"], &["--version"]),
        (&["convert_imageset", "--version"], &["--version"]),
        (&["train", "-version", "-help"], &["train", "--help"]),
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
fn flags_of_the_log_that_are_not_carried_out_are_warned_of() {
    let (args, warnings) = rewritten(&["-vmodule", "net=2", "train", "-nolog_prefix", "--logemaillevel=3"]).unwrap();
    assert_eq!(args, ["train"]);
    let of = ["-vmodule", "-nolog_prefix", "--logemaillevel"];
    assert_eq!(warnings, of.map(|flag| format!("flag {flag} has no effect")));
}

#[test]
fn files_of_flags_stand_for_their_flags() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_string()
    };
    let more = file("more", "--gpu=1\n-nologtostderr\n-colorlogtostderr\nconvert_imageset\n-gray");
    let first =
        file("first", &format!("# the job\n-solver=of file\n\n-logtostderr\n-flagfile={more}\n-weights=a,b\r\n"));
    let lines: &[(&[&str], &[&str])] = &[
        (&["train", "-flagfile", &first], &["train", "--gpu=1", "--solver=of file", "--weights=a,b"]),
        (&["-solver", "mine", "train", "-flagfile", &more], &["train", "--gpu=1", "--solver=mine"]),
        (
            &["-solver", "mine", &format!("-flagfile={first},{more}"), "train", "-gpu=2"],
            &["train", "--gpu=2", "--solver=of file", "--weights=a,b"],
        ),
        (&["train", "-flagfile=", "-solver=s"], &["train", "--solver=s"]),
        (&["train", "-flagfile"], &["train", "--flagfile"]),
    ];
    for (line, expected) in lines {
        let (args, warnings) = rewritten(line).unwrap();
        assert_eq!(
            (&args.iter().map(String::as_str).collect::<Vec<_>>()[..], &warnings[..]),
            (*expected, &[][..]),
            "{line:?}"
        );
    }
    // What another program may make sense of is warned of, with its place.
    let others = file("others", "-backend=lmdb\n\n--solvr=s\n-iterations=3");
    let (args, warnings) = rewritten(&["train", "-flagfile", &others]).unwrap();
    assert_eq!(args, ["train"]);
    let of = |line: usize, what: &str| format!("{others}:{line}: {what}");
    assert_eq!(
        warnings,
        [
            of(3, "unknown flag '--solvr' is left out; did you mean '--solver'?"),
            of(1, "flag -backend has no effect on 'train'"),
            of(4, "flag -iterations has no effect on 'train'"),
        ]
    );
    let endless = file("endless", &format!("-flagfile={}", dir.path().join("endless").display()));
    let gone = dir.path().join("gone").display().to_string();
    let table = [
        (gone.clone(), format!("{gone}: cannot open the flags: ")),
        (file("space", "\n-solver s"), ":2: in a file, flags have '=' before their value: -solver=s".to_string()),
        (file("bare", "-logtostderr\n--solver"), ":2: flag --solver has no value; expected --solver=VALUE".to_string()),
        (endless, "endless:1: more than 16 files of flags name one another".to_string()),
    ];
    for (path, expected) in table {
        let error = rewritten(&["train", "-flagfile", &path]).unwrap_err().0;
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn caffes_older_tools_are_answered_with_todays() {
    let table = [
        ("train_net", "train -solver SOLVER [-snapshot STATE]"),
        ("finetune_net.bin", "train -solver SOLVER -weights WEIGHTS"),
        ("test-net", "test -model NET -weights WEIGHTS [-iterations N] [-gpu ID]"),
        ("net_speed_benchmark", "time -model NET [-iterations N] [-gpu ID]"),
    ];
    for (name, today) in table {
        let expected = format!("unknown command '{name}', an older tool of Caffe's; use 'lgm-caffe {today}'");
        for line in [&[name, "a.prototxt", "-x"][..], &["help", name]] {
            assert_eq!(rewritten(line).unwrap_err().0, expected);
        }
    }
    let linked = ["build/tools/train_net.bin", "s.prototxt"].map(OsString::from);
    let error = rewrite(linked, &cli()).unwrap_err().0;
    assert!(
        error.starts_with("unknown command 'train_net', an older tool of Caffe's; use 'lgm-caffe train"),
        "{error}"
    );
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
        (&["train", "-solvr", "s"], "unknown flag '-solvr'; did you mean '-solver'? ('lgm-caffe train --help' lists"),
        (&["--solvr=s", "train"], "unknown flag '--solvr'; did you mean '--solver'? ('lgm-caffe train --help' lists"),
        (&["-solvr"], "unknown flag '-solvr'; did you mean '-solver'? ('lgm-caffe COMMAND --help' lists"),
        (&["train", "-nosolver"], "unknown flag '-nosolver'"),
        (&["train", "--zzzzzz"], "unknown flag '--zzzzzz' ("),
        (&["convert-mnist", "-solver", "s", "i"], "unknown flag '-solver' ('lgm-caffe convert-mnist --help'"),
        (&["convert_imageset", "--gray=maybe", "r"], "flag --gray: expected true or false, found 'maybe'"),
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

#[test]
fn a_program_named_like_a_tool_is_that_tool() {
    let table: &[(&[&str], &[&str])] = &[
        (&["convert_imageset", "-gray", "r/", "l", "db"], &["convert_imageset", "--gray", "--", "r/", "l", "db"]),
        (&["/opt/bin/compute_image_mean.bin", "db"], &["compute_image_mean", "--", "db"]),
        (&["bin/upgrade_net_proto_text", "a", "b"], &["upgrade_net_proto_text", "--", "a", "b"]),
        (&["caffe", "train", "-solver=s"], &["train", "--solver=s"]),
        (&["caffe.bin", "test", "-model=m"], &["test", "--model=m"]),
        (&["/opt/time", "train", "-solver=s"], &["train", "--solver=s"]),
        (&["my_caffe", "train", "-solver=s"], &["train", "--solver=s"]),
    ];
    for (line, expected) in table {
        let args = rewrite(line.iter().map(OsString::from), &cli()).unwrap().args;
        assert_eq!(args[1..], expected.iter().map(OsString::from).collect::<Vec<_>>(), "{line:?}");
    }
    let error = rewrite(["./train_net.bin", "solver.prototxt"].map(OsString::from), &cli()).unwrap_err().0;
    assert!(
        error.starts_with("unknown command 'train_net', an older tool of Caffe's; use 'lgm-caffe train"),
        "{error}"
    );
}
