//! `lgm-caffe device_query`: Caffe's table of each GPU, and NVIDIA's libraries.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use lgm_cuda::{Device, Library, probe};
use tracing::info;

use crate::args::DeviceQueryArgs;
use crate::{gpu, output};

/// Prints the libraries and the GPUs that `-gpu` names, all of them without it.
///
/// # Errors
/// When `-gpu` names a GPU that is not there.
pub fn run(args: &DeviceQueryArgs) -> Result<ExitCode> {
    let asked = args.gpus.gpu.as_ref();
    match asked {
        Some(gpus) => info!("Querying GPUs {gpus}"),
        None => info!("Querying all GPUs"),
    }
    let probe = probe();
    let mut text = vec!["NVIDIA's libraries:".to_string()];
    text.extend(probe.libraries.iter().map(row));
    text.extend(probe.libraries.iter().filter_map(|library| library.found.as_ref().err()).map(ToString::to_string));
    let found = match (&probe.devices, asked) {
        (Ok(devices), Some(gpus)) => gpu::choose(gpus, devices).map(|chosen| chosen.into_iter().map(table).collect()),
        (Ok(devices), None) => Ok(devices.iter().map(table).collect()),
        (Err(error), Some(gpus)) => Err(anyhow!("-gpu {gpus}: no GPU can be used: {}", error.summary())),
        (Err(error), None) => Ok(vec![format!("No GPU can be used: {}", error.summary())]),
    };
    // The libraries explain an error, so they are printed before it.
    let (devices, error): (Vec<String>, _) = found.map_or_else(|error| (Vec::new(), Some(error)), |d| (d, None));
    text.extend(devices);
    output::print(&(text.join("\n") + "\n"))?;
    error.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn row(library: &Library) -> String {
    let name = library.component.name();
    match &library.found {
        Ok(found) => {
            format!("  {name:<12} {:<10} {} ({})", found.version.to_string(), found.path.display(), found.origin)
        }
        Err(_) => format!("  {name:<12} missing"),
    }
}

/// A device's properties under Caffe's names and in Caffe's order.
fn table(device: &Device) -> String {
    let sizes = |sizes: [u32; 3]| sizes.map(|size| size.to_string()).join(", ");
    let yes = |is: bool| if is { "Yes" } else { "No" }.to_string();
    let rows = [
        ("Device id", device.id.to_string()),
        ("Major revision number", device.capability.0.to_string()),
        ("Minor revision number", device.capability.1.to_string()),
        ("Name", device.name.clone()),
        ("Total global memory", device.memory.to_string()),
        ("Total shared memory per block", device.shared_per_block.to_string()),
        ("Total registers per block", device.registers_per_block.to_string()),
        ("Warp size", device.warp.to_string()),
        ("Maximum memory pitch", device.pitch.to_string()),
        ("Maximum threads per block", device.threads_per_block.to_string()),
        ("Maximum dimension of block", sizes(device.block)),
        ("Maximum dimension of grid", sizes(device.grid)),
        ("Clock rate", device.clock.to_string()),
        ("Total constant memory", device.constant_memory.to_string()),
        ("Texture alignment", device.texture_alignment.to_string()),
        ("Concurrent copy and execution", yes(device.overlap)),
        ("Number of multiprocessors", device.multiprocessors.to_string()),
        ("Kernel execution timeout", yes(device.kernel_timeout)),
    ];
    rows.map(|(name, value)| format!("{:<31}{value}", format!("{name}:"))).join("\n")
}
