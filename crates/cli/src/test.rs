//! `lgm-caffe test`.

use std::process::ExitCode;

use lgm_core::{Phase, Step};
use lgm_net::{Keep, six_digits};
use lgm_solver::scores_of;
use tracing::{info, warn};

use crate::args::TestArgs;
use crate::{gpu, models, progress};

/// Runs a net in the TEST phase over some batches and logs each output and the means.
///
/// # Errors
/// Whatever is wrong with the net, its data or the weights.
pub fn run(args: &TestArgs) -> anyhow::Result<ExitCode> {
    let gpu = gpu::choose_device(&args.device, None)?;
    let mut net = models::net(&args.model, Phase::Test, &args.state, false, Keep::Outputs, gpu)?;
    models::load_weights(&mut net, &args.weights)?;
    let passes = args.iterations;
    info!("Running for {passes} iterations.");
    let (mut loss, mut sums) = (0.0, Vec::new());
    for pass in progress::each("batches", passes.into()) {
        loss += net.forward(&Step { seed: 0, iter: 0, batch: pass })?;
        let scores = scores_of(&net)?;
        for score in &scores {
            info!("Batch {pass}, {} = {}", score.blob, six_digits(score.value));
        }
        if pass == 0 {
            sums = scores;
        } else {
            sums.iter_mut().zip(scores).for_each(|(sum, s)| sum.value += s.value);
        }
    }
    if !loss.is_finite() {
        warn!("the loss is not finite: the data, or the weights, hold numbers that are not, or the net overflows");
    }
    info!("Loss: {}", six_digits(loss / passes as f64));
    for sum in &mut sums {
        sum.value /= passes as f64;
        info!("{} = {}{}", sum.blob, six_digits(sum.value), sum.as_loss(&net));
    }
    Ok(ExitCode::SUCCESS)
}
