//! `lgm-caffe`: Caffe's command line over the lgm crates. One file per subcommand; the rest is what they share: the
//! flags, the log, the progress bar and the signals.

mod adversarial;
mod args;
mod argv;
mod classify;
mod completions;
mod compute_image_mean;
mod convert_annoset;
mod convert_cifar;
mod convert_cifar_data;
mod convert_imageset;
mod convert_mnist;
mod convert_mnist_siamese_data;
mod detect;
mod device_query;
mod draw_net;
mod environment;
mod extract_features;
mod flagfile;
mod fold;
mod get_image_size;
mod gpu;
mod likelihood;
mod logging;
mod make_glyphs;
mod man;
mod models;
mod output;
mod parse_log;
mod peaks;
mod plot;
mod plot_features;
mod plot_training_log;
mod progress;
mod signals;
mod summary;
mod test;
mod time;
mod train;
mod training_log;
mod upgrade;

use std::process::ExitCode;

use args::{Cli, Command, UsageError};
use clap::{CommandFactory, FromArgMatches};

/// The exit code of a run that failed.
const FAILED: u8 = 1;
/// The exit code of a command line that makes no sense, and of an input that cannot be read where Caffe has it so.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    unlocked_hdf5();
    run().unwrap_or_else(|error| {
        if output::reader_left(&error) {
            return ExitCode::SUCCESS;
        }
        // A command line that could not be read has set up no log yet; then the environment's settings hold.
        let _ = logging::init(&args::LogFlags::default(), true);
        report(&error);
        let usage = error.is::<UsageError>() || error.is::<upgrade::Unreadable>();
        ExitCode::from(if usage { USAGE } else { FAILED })
    })
}

/// Disables HDF5's file locking unless the environment sets it: with locks, opening a file fails on file systems without
/// them (NFS) and while another process writes it. Files that we write have a temporary name until they are complete.
fn unlocked_hdf5() {
    const VARIABLE: &str = "HDF5_USE_FILE_LOCKING";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var(VARIABLE, "FALSE") };
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let mut command = Cli::command();
    command.build();
    let rewritten = argv::rewrite(std::env::args_os(), &command)?;
    let matches = match command.try_get_matches_from(rewritten.args) {
        Ok(matches) => matches,
        Err(error) if !error.use_stderr() => {
            error.print().map_err(output::StdoutError)?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(UsageError::from(error).into()),
    };
    let cli = Cli::from_arg_matches(&matches).map_err(UsageError::from)?;
    // Caffe's commands log each step, as in Caffe; the others print their result and log warnings only.
    let narrates = matches!(
        cli.command,
        Command::Train(_)
            | Command::Test(_)
            | Command::Time(_)
            | Command::ComputeImageMean(_)
            | Command::ExtractFeatures(_)
            | Command::ConvertImageset(_)
            | Command::ConvertAnnoset(_)
            | Command::GetImageSize(_)
            | Command::ConvertCifarData(_)
            | Command::ConvertMnistSiamese(_)
            | Command::UpgradeNetProtoText(_)
            | Command::UpgradeNetProtoBinary(_)
            | Command::UpgradeSolverProtoText(_)
    );
    logging::init(&cli.log, narrates)?;
    for warning in &rewritten.warnings {
        tracing::warn!("{warning}");
    }
    environment::check();
    match &cli.command {
        Command::Train(args) => train::run(args),
        Command::Test(args) => test::run(args),
        Command::Time(args) => time::run(args),
        Command::Summary(args) => summary::run(args),
        Command::DeviceQuery(args) => device_query::run(args),
        Command::ComputeImageMean(args) => compute_image_mean::run(args),
        Command::ExtractFeatures(args) => extract_features::run(args),
        Command::ConvertImageset(args) => convert_imageset::run(args),
        Command::ConvertMnist(args) => convert_mnist::run(args),
        Command::ConvertCifar(args) => convert_cifar::run(args),
        Command::ConvertCifarData(args) => convert_cifar_data::run(args),
        Command::ConvertMnistSiamese(args) => convert_mnist_siamese_data::run(args),
        Command::ConvertAnnoset(args) => convert_annoset::run(args),
        Command::GetImageSize(args) => get_image_size::run(args),
        Command::ParseLog(args) => parse_log::run(args),
        Command::UpgradeNetProtoText(args) => upgrade::run(args, upgrade::Kind::NetText),
        Command::UpgradeNetProtoBinary(args) => upgrade::run(args, upgrade::Kind::NetBinary),
        Command::UpgradeSolverProtoText(args) => upgrade::run(args, upgrade::Kind::SolverText),
        Command::MakeGlyphs(args) => make_glyphs::run(args),
        Command::PlotFeatures(args) => plot_features::run(args),
        Command::Classify(args) => classify::run(args),
        Command::Fold(args) => fold::run(args),
        Command::Likelihood(args) => likelihood::run(args),
        Command::Adversarial(args) => adversarial::run(args),
        Command::DrawNet(args) => draw_net::run(args),
        Command::PlotTrainingLog(args) => plot_training_log::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    }
}

/// Logs an error and its causes, a line each, the outermost first.
fn report(error: &anyhow::Error) {
    let mut logged = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // Many errors quote their cause in their own text already.
        if logged.contains(&text) {
            continue;
        }
        match logged.is_empty() {
            true => tracing::error!(fatal = true, "lgm-caffe: error: {text}"),
            false => tracing::error!(fatal = true, "lgm-caffe: caused by: {text}"),
        }
        logged = text;
    }
}
