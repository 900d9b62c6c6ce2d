//! `lgm-caffe time`.

use std::process::ExitCode;
use std::time::Instant;

use lgm_core::{Phase, Step};
use lgm_net::{Keep, Net, six_digits};
use tracing::info;

use crate::args::TimeArgs;
use crate::{gpu, models};

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Milliseconds of each layer's forward and backward, summed over iterations.
struct Times {
    forward: Vec<f64>,
    backward: Vec<f64>,
}

fn iteration(net: &mut Net, step: &Step, times: &mut Times) -> lgm_core::Result<()> {
    let layers = net.layers().len();
    for i in 0..layers {
        let start = Instant::now();
        net.forward_layer(i, step)?;
        times.forward[i] += ms(start);
    }
    for i in (0..layers).rev() {
        let start = Instant::now();
        net.backward_layer(i, step)?;
        times.backward[i] += ms(start);
    }
    Ok(())
}

/// Measures the forward and backward time of a net, layer by layer, with Caffe's lines; GFLOP/s besides for the layers
/// that count their operations.
///
/// # Errors
/// Whatever is wrong with the net or its data.
pub fn run(args: &TimeArgs) -> anyhow::Result<ExitCode> {
    gpu::use_cpu(args.device.gpu.as_ref(), false)?;
    let phase = args.phase.map_or(Phase::Train, Phase::from);
    let mut net = models::net(&args.model, phase, &args.state, true, Keep::Outputs)?;
    let mut step = Step { seed: 0, iter: 0, batch: 0 };
    info!("Performing Forward");
    let loss = net.forward(&step)?;
    info!("Initial loss: {}", six_digits(loss));
    info!("Performing Backward");
    net.backward(&step)?;
    info!("Blobs, gradients and scratch take {} bytes in one arena.", net.arena_bytes());
    info!("*** Benchmark begins ***");
    info!("Testing for {} iterations.", args.iterations);
    let layers = net.layers().len();
    let mut times = Times { forward: vec![0.0; layers], backward: vec![0.0; layers] };
    let start = Instant::now();
    for j in 0..args.iterations {
        let lap = Instant::now();
        step.batch += 1;
        iteration(&mut net, &step, &mut times)?;
        info!("Iteration: {} forward-backward time: {} ms.", j + 1, six_digits(ms(lap)));
    }
    let total = ms(start);
    let n = args.iterations as f64;
    info!("Average time per layer: ");
    for (i, (name, _)) in net.layers().enumerate() {
        // Backward of a layer with weights makes two products of forward's size.
        let rate = |time: f64, passes: f64| match net.layer_flops(i) {
            0 => String::new(),
            flops => format!(" {} GFLOP/s", six_digits(flops as f64 * passes * n / time / 1e6)),
        };
        let (forward, backward) = (times.forward[i], times.backward[i]);
        info!("{name:>10}\tforward: {} ms.{}", six_digits(forward / n), rate(forward, 1.0));
        info!("{name:>10}\tbackward: {} ms.{}", six_digits(backward / n), rate(backward, 2.0));
    }
    let sum = |times: &[f64]| six_digits(times.iter().sum::<f64>() / n);
    info!("Average Forward pass: {} ms.", sum(&times.forward));
    info!("Average Backward pass: {} ms.", sum(&times.backward));
    info!("Average Forward-Backward: {} ms.", six_digits(total / n));
    info!("Total Time: {} ms.", six_digits(total));
    info!("*** Benchmark ends ***");
    Ok(ExitCode::SUCCESS)
}
