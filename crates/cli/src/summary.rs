//! `lgm-caffe summary`.

use std::process::ExitCode;

use lgm_core::Phase;
use lgm_core::memory::available;
use lgm_cuda::Gpu;
use lgm_net::{Keep, LayerReport, Net, in_units};

use crate::args::SummaryArgs;
use crate::{gpu, models, output};

/// Prints a table of a net's layers and what the net takes in parameters, operations and memory.
///
/// # Errors
/// Whatever is wrong with the net or its data.
pub fn run(args: &SummaryArgs) -> anyhow::Result<ExitCode> {
    let phase = args.phase.map_or(Phase::Train, Phase::from);
    let backward = phase == Phase::Train;
    let gpu = gpu::choose_device(&args.device, None)?;
    let before = gpu.as_ref().map(|gpu| gpu.free_bytes()).transpose()?;
    let text = if let (Some(gpu), Some(before)) = (gpu, before) {
        let net = models::net(&args.model, phase, &args.state, backward, Keep::Outputs, Some(gpu.clone()))?;
        let layers: Vec<_> = (0..net.layers().len()).map(|i| net.layer_report(i)).collect();
        let table = table(&layers, net.arena_bytes(), net.param_bytes());
        format!("{table}{}", on_device(&net, gpu.as_ref(), before, backward))
    } else {
        let net = models::outline(&args.model, phase, &args.state, backward)?;
        let (arena, params) = (net.arena_bytes(), net.param_bytes());
        format!("{}{}", table(&net.layer_reports(), arena, params), lack(arena.saturating_add(params)))
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn shapes(layer: &LayerReport<'_>) -> String {
    match (layer.fused, layer.tops.is_empty()) {
        (true, _) => "(with a later layer)".into(),
        (false, true) => "-".into(),
        _ => layer.tops.iter().map(|s| s.to_string()).collect::<Vec<_>>().join(" "),
    }
}

fn mib(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

/// A line for a net that takes more than there is.
fn lack(bytes: usize) -> String {
    let there = available();
    if bytes as u64 <= there.bytes { String::new() } else { format!("more than there is: {there}\n") }
}

fn table(layers: &[LayerReport<'_>], arena: usize, weights: usize) -> String {
    let name = layers.iter().map(|l| l.name.len()).max().unwrap_or(0).max(5);
    let kind = layers.iter().map(|l| l.kind.len()).max().unwrap_or(0).max(4);
    let shape = layers.iter().map(|l| shapes(l).len()).max().unwrap_or(0).max(12);
    let row =
        |a: &str, b: &str, c: &str, d: &str, e: &str| format!("{a:name$}  {b:kind$}  {c:shape$}  {d:>12}  {e:>13}\n");
    let mut out = row("layer", "type", "output shape", "parameters", "forward GFLOP");
    for l in layers {
        let flops = if l.flops == 0 { String::new() } else { format!("{:.4}", l.flops as f64 / 1e9) };
        let params = if l.params == 0 { String::new() } else { l.params.to_string() };
        out += &row(l.name, l.kind, &shapes(l), &params, &flops);
    }
    let params = layers.iter().fold(0, |sum: usize, l| sum.saturating_add(l.params));
    let flops = layers.iter().fold(0, |sum: u64, l| sum.saturating_add(l.flops));
    let statistics = match layers.iter().fold(0, |sum: usize, l| sum.saturating_add(l.statistics)) {
        0 => String::new(),
        count => format!(", {count} of them statistics that layers set by themselves"),
    };
    out += &format!("\nparameters: {params}{statistics}\nforward: {:.3} GFLOP a batch\n", flops as f64 / 1e9);
    out += &format!("memory: {} for blobs, gradients and scratch in one arena, ", mib(arena));
    out + &format!(
        "{} for parameters and their gradients, {} in all\n",
        mib(weights),
        mib(arena.saturating_add(weights))
    )
}

/// The net's memory on a GPU, beside the bytes free and in total; for training, with the histories of solvers.
fn on_device(net: &Net, gpu: &dyn Gpu, (free, total): (u64, u64), training: bool) -> String {
    let Some(memory) = net.device_memory() else { return String::new() };
    let say = |bytes: usize| in_units(bytes as u64);
    let mut out = format!(
        "on {}: {} in the arena, {} for two batches on their way, {} for parameters{}; {} of {} were free\n",
        gpu.name(),
        say(memory.arena),
        say(memory.batches),
        say(memory.params),
        if training { " and their gradients" } else { "" },
        in_units(free),
        in_units(total),
    );
    if training {
        let needs = [("SGD, Nesterov, AdaGrad, RMSProp", 1), ("Adam, AdaDelta", 2)].map(|(solvers, histories)| {
            let needed = memory.total(histories);
            let fits = if needed as u64 > free { ", more than there is" } else { "" };
            format!("{} with {solvers}{fits}", say(needed))
        });
        out +=
            &format!("training needs {}; test nets come on top, without parameters of their own\n", needs.join(", "));
    }
    out
}
