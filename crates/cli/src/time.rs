//! `lgm-caffe time`.

use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

use lgm_core::{Phase, Step};
use lgm_cuda::Gpu;
use lgm_net::{Keep, Net, in_units, six_digits};
use lgm_solver::Solver;
use tracing::info;

use crate::args::TimeArgs;
use crate::peaks::{self, Floor, Peaks};
use crate::{gpu, models};

/// Milliseconds of each layer's forward and backward and of whole iterations, summed over iterations.
struct Times {
    forward: Vec<f64>,
    backward: Vec<f64>,
    whole: f64,
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Measures a net's passes layer by layer, or a solver's whole iterations.
///
/// # Errors
/// Whatever is wrong with the net, the solver or the data.
pub fn run(args: &TimeArgs) -> anyhow::Result<ExitCode> {
    match (&args.model, &args.solver) {
        (Some(model), _) => layers(args, model)?,
        (None, Some(solver)) => iterations(args, solver)?,
        (None, None) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Whole training iterations: data, forward, backward and update, nothing else.
fn iterations(args: &TimeArgs, solver: &Path) -> anyhow::Result<()> {
    let mut parsed = models::solver(solver)?;
    // A file's wish for a GPU is not one of `time`, which measures what its flags say.
    parsed.message.solver_mode = None;
    let gpu = gpu::settle(&args.device, Some(&parsed.message))?;
    let param = &mut parsed.message;
    // Tests and snapshots are not timed, so nothing is asked of them.
    (param.test_iter, param.test_net, param.test_net_param, param.test_state) = Default::default();
    (param.snapshot, param.snapshot_after_train) = (None, Some(false));
    let train_state = param.train_state.get_or_insert_default();
    let state = models::state(&args.state);
    train_state.level = state.level.or(train_state.level);
    train_state.stage.extend(state.stage);
    let before = free(gpu.as_deref())?;
    let mut solver = Solver::new_on(&parsed, &models::registry(), gpu.as_ref())?;
    // On a GPU the first compiles and chooses, the second records, the third is the first from the record.
    for _ in 0..3 {
        solver.iterate()?;
    }
    solver.net().finish()?;
    info!("{}", memory(solver.net()));
    report_conversions(solver.net());
    let histories = solver.rule().histories();
    peak(gpu.as_deref(), before, solver.net(), histories)?;
    let peaks = gpu.as_ref().and_then(ceilings);
    let iterations = warm_up(&mut solver, args.seconds)?.max(args.iterations);
    info!("*** Benchmark begins ***");
    info!("Testing for {iterations} iterations.");
    if gpu.is_some() {
        return stream(iterations, &mut solver, peaks.as_ref());
    }
    let mut times = Vec::new();
    let mut loss = 0.0;
    for _ in 0..iterations {
        let lap = Instant::now();
        loss = solver.iterate()?.unwrap_or(f64::NAN);
        times.push(ms(lap));
    }
    times.sort_by(f64::total_cmp);
    let n = times.len();
    info!("Last loss: {}", six_digits(loss));
    info!("Average iteration: {} ms.", six_digits(times.iter().sum::<f64>() / n as f64));
    info!(
        "Median iteration: {} ms (fastest {}, slowest {}).",
        six_digits(times[n / 2]),
        six_digits(times[0]),
        six_digits(times[n - 1])
    );
    info!("*** Benchmark ends ***");
    Ok(())
}

/// Iterates for so many seconds; the number of iterations that take as long.
fn warm_up(solver: &mut Solver, seconds: f64) -> lgm_core::Result<u32> {
    let (start, mut together, mut needed) = (Instant::now(), 1u32, 0.0);
    while start.elapsed().as_secs_f64() < seconds {
        let lap = Instant::now();
        for _ in 0..together {
            solver.iterate()?;
        }
        // Else the host would run ahead of a GPU without end.
        solver.net().finish()?;
        let lap = lap.elapsed().as_secs_f64();
        needed = (seconds * f64::from(together) / lap.max(1e-9)).ceil();
        if lap < seconds / 8.0 {
            together = together.saturating_mul(2);
        }
    }
    Ok(needed as u32)
}

/// Iterations on a GPU, one after another without waiting for any but the last, as training runs them.
fn stream(iterations: u32, solver: &mut Solver, peaks: Option<&Peaks>) -> anyhow::Result<()> {
    let start = Instant::now();
    for _ in 0..iterations {
        solver.iterate()?;
    }
    solver.net().finish()?;
    let total = ms(start);
    info!("Last loss: {}", six_digits(solver.net().loss()? / solver.param().iter_size() as f64));
    let average = total / f64::from(iterations);
    info!("Average iteration: {} ms.", six_digits(average));
    if let Some(peaks) = peaks {
        report_floor(solver, peaks, average);
    }
    report_convolutions(solver.net());
    info!("Total Time: {} ms.", six_digits(total));
    info!("*** Benchmark ends ***");
    Ok(())
}

/// How an iteration of so many milliseconds compares with what the GPU takes for its work at the least.
fn report_floor(solver: &Solver, peaks: &Peaks, average: f64) {
    let (passes, histories) = (solver.param().iter_size() as usize, solver.rule().histories());
    let Floor { ms, gflop, gbyte } = Floor::of(solver.net(), passes, histories, peaks);
    info!(
        "Its work ({gflop:.3} GFLOP and {gbyte:.3} GB, conversions aside) takes {} ms at these rates, layer by layer: {:.0}% of \
         its time.",
        six_digits(ms),
        100.0 * ms / average
    );
}

/// A GPU's ceilings, which are told; `None`, which is told too, where they cannot be measured.
fn ceilings(gpu: &Rc<dyn Gpu>) -> Option<Peaks> {
    match peaks::on(gpu) {
        Ok(peaks) => {
            let Peaks { gflops, gbytes } = peaks;
            info!("This GPU: {gflops:.0} GFLOP/s in a matrix product, {gbytes:.1} GB/s in a copy.");
            Some(peaks)
        }
        Err(error) => {
            info!("What this GPU can do is not measured: {error}");
            None
        }
    }
}

fn memory(net: &Net) -> String {
    let (arena, params) = (net.arena_bytes(), net.param_bytes());
    format!("Blobs, gradients and scratch take {arena} bytes in one arena, parameters and their gradients {params}.")
}

/// What passes on a GPU convert between formats, if they do.
fn report_conversions(net: &Net) {
    let made = net.conversions();
    if made.forward > 0 {
        info!("Between formats: {made}.");
    }
}

/// What makes the convolutions of a net on a GPU, if it has any.
pub fn report_convolutions(net: &Net) {
    if let Some(made) = net.convolutions().filter(|made| made.count() > 0) {
        info!("Convolutions of a forward and a backward pass: {made}.");
    }
}

/// Bytes free on a GPU.
fn free(gpu: Option<&dyn Gpu>) -> lgm_core::Result<u64> {
    gpu.map_or(Ok(0), |gpu| Ok(gpu.free_bytes()?.0))
}

/// Says what a run takes of a GPU that had so much free before it, and which part of it libraries do: all but the net with
/// so many histories. Nothing is given back while it lasts, so what is taken after the first passes is its peak.
fn peak(gpu: Option<&dyn Gpu>, before: u64, net: &Net, histories: usize) -> lgm_core::Result<()> {
    let Some(gpu) = gpu else { return Ok(()) };
    let (free, total) = gpu.free_bytes()?;
    let taken = before.saturating_sub(free);
    let own = net.device_memory().map_or(0, |memory| memory.total(histories) as u64);
    let libraries = in_units(taken.saturating_sub(own));
    let (taken, free, total) = (in_units(taken), in_units(free), in_units(total));
    info!(
        "Peak on {}: {taken} taken, {libraries} of it by libraries and recordings, {free} of {total} free.",
        gpu.name()
    );
    Ok(())
}

/// One forward and one backward pass, timed layer by layer.
fn pass(net: &mut Net, step: &Step, times: &mut Times) -> lgm_core::Result<()> {
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

/// So many forward and backward passes as training runs them, then each layer by itself as often. A layer is recorded and
/// its recording replayed without a pause, so that its time is the GPU's and not that of the host's calls.
fn passes_on(
    gpu: &dyn Gpu,
    net: &mut Net,
    step: &mut Step,
    iterations: u32,
    times: &mut Times,
) -> lgm_core::Result<()> {
    // The second pass of a kind is recorded, the third runs as the later ones do.
    for _ in 0..2 {
        net.forward(step)?;
        net.backward(step)?;
    }
    for j in 0..iterations {
        let lap = Instant::now();
        step.batch += 1;
        net.forward(step)?;
        net.backward(step)?;
        net.finish()?;
        info!("Iteration: {} forward-backward time: {} ms.", j + 1, six_digits(ms(lap)));
        times.whole += ms(lap);
    }
    let layers = net.layers().len();
    for i in 0..layers {
        times.forward[i] = alone(gpu, net, iterations, |net| net.forward_layer(i, step))?;
    }
    for i in (0..layers).rev() {
        times.backward[i] = alone(gpu, net, iterations, |net| net.backward_layer(i, step).map(drop))?;
    }
    Ok(())
}

/// Milliseconds of some repetitions of work on a GPU; work that cannot be recorded, a layer's on the host, is called each time.
fn alone(
    gpu: &dyn Gpu,
    net: &mut Net,
    repetitions: u32,
    mut work: impl FnMut(&mut Net) -> lgm_core::Result<()>,
) -> lgm_core::Result<f64> {
    let recorded = gpu.record(&mut || work(net)).ok().flatten();
    let mut run = |net: &mut Net| match &recorded {
        Some(recorded) => recorded.replay(),
        None => work(net),
    };
    run(net)?;
    net.finish()?;
    let start = Instant::now();
    for _ in 0..repetitions {
        run(net)?;
    }
    net.finish()?;
    Ok(ms(start))
}

/// Forward and backward of each layer, with Caffe's lines, and how near each comes to what the machine can do.
fn layers(args: &TimeArgs, model: &Path) -> anyhow::Result<()> {
    let phase = args.phase.map_or(Phase::Train, Phase::from);
    let gpu = gpu::settle(&args.device, None)?;
    let before = free(gpu.as_deref())?;
    let mut net = models::net(model, phase, &args.state, true, Keep::Outputs, gpu.clone())?;
    let mut step = Step { seed: 0, iter: 0, batch: 0 };
    info!("Performing Forward");
    let loss = net.forward(&step)?;
    info!("Initial loss: {}", six_digits(loss));
    info!("Performing Backward");
    net.backward(&step)?;
    info!("{}", memory(&net));
    report_conversions(&net);
    peak(gpu.as_deref(), before, &net, 0)?;
    let peaks = match &gpu {
        Some(gpu) => ceilings(gpu),
        None => {
            let peaks = peaks::measure();
            let Peaks { gflops, gbytes } = peaks;
            info!("This machine: {gflops:.0} GFLOP/s in a matrix product, {gbytes:.1} GB/s in a copy.");
            Some(peaks)
        }
    };
    info!("*** Benchmark begins ***");
    info!("Testing for {} iterations.", args.iterations);
    let layers = net.layers().len();
    let mut times = Times { forward: vec![0.0; layers], backward: vec![0.0; layers], whole: 0.0 };
    if let Some(gpu) = &gpu {
        passes_on(&**gpu, &mut net, &mut step, args.iterations, &mut times)?;
    } else {
        for j in 0..args.iterations {
            let lap = Instant::now();
            step.batch += 1;
            pass(&mut net, &step, &mut times)?;
            info!("Iteration: {} forward-backward time: {} ms.", j + 1, six_digits(ms(lap)));
            times.whole += ms(lap);
        }
    }
    let total = times.whole;
    let n = args.iterations as f64;
    info!("Average time per layer: ");
    for i in 0..layers {
        let layer = net.layer_report(i);
        let (forward, backward) = (times.forward[i] / n, times.backward[i] / n);
        let name = layer.name;
        let (f, b) = (
            rates(peaks.as_ref(), forward, layer.flops as f64, layer.forward_bytes),
            rates(peaks.as_ref(), backward, layer.backward_flops as f64, layer.backward_bytes),
        );
        info!("{name:>10}\tforward: {} ms.{f}", six_digits(forward));
        info!("{name:>10}\tbackward: {} ms.{b}", six_digits(backward));
    }
    let sum = |times: &[f64]| six_digits(times.iter().sum::<f64>() / n);
    info!("Average Forward pass: {} ms.", sum(&times.forward));
    info!("Average Backward pass: {} ms.", sum(&times.backward));
    info!("Average Forward-Backward: {} ms.", six_digits(total / n));
    report_convolutions(&net);
    info!("Total Time: {} ms.", six_digits(total));
    info!("*** Benchmark ends ***");
    Ok(())
}

/// Operations and bytes a second, each with its share of the machine's ceiling where that is known; nothing for a call too short to tell.
fn rates(peaks: Option<&Peaks>, ms: f64, flops: f64, bytes: usize) -> String {
    if ms < 0.01 || bytes == 0 {
        return String::new();
    }
    let share = |rate: f64, peak: Option<f64>| peak.map_or(String::new(), |p| format!(" ({:.0}%)", 100.0 * rate / p));
    let (gflops, gbytes) = (flops / ms / 1e6, bytes as f64 / ms / 1e6);
    let operations = match flops {
        0.0 => String::new(),
        _ => format!("{gflops:.1} GFLOP/s{}, ", share(gflops, peaks.map(|p| p.gflops))),
    };
    format!(" {operations}{gbytes:.1} GB/s{}", share(gbytes, peaks.map(|p| p.gbytes)))
}
