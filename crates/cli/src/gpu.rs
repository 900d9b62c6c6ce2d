//! The choice between CPU and GPU.

use std::rc::Rc;

use anyhow::{Context, Result, bail};
use lgm_core::ConvolutionPass;
use lgm_cuda::sim::{Order, Sim};
use lgm_cuda::{Cuda, Device, NoDevice, Precision};
use lgm_cuda::{Gpu, sim::Simulated};
use lgm_proto::SolverParameter;
use lgm_proto::solver_parameter::SolverMode;

use crate::args::{DeviceFlags, Gpus};

/// The variable that replaces GPUs by a simulated one, for tests: `sim`, `sim:BYTES` for one with that much memory, or
/// `sim-library` for one with a library of convolutions.
const SIMULATE: &str = "LGM_GPU";

/// Chooses the device of a run from its flags and its solver's file, if it has one, and logs it: the GPU returned, or the CPU.
///
/// `-gpu` is required, `solver_mode: GPU` is preferred: without a usable GPU the first is an error, the second a warning.
///
/// # Errors
/// When `-gpu` is given: with no usable GPU, the text lists what was looked for and where. When the solver's precision is
/// unknown.
pub fn choose_device(flags: &DeviceFlags, solver: Option<&SolverParameter>) -> Result<Option<Rc<dyn Gpu>>> {
    let gpus = flags.gpus.gpu.as_ref();
    let preferred = solver.filter(|p| p.solver_mode.is_some() && p.solver_mode() == SolverMode::Gpu);
    let preferred_precision = solver.and_then(|p| p.precision.as_deref()).map(str::parse::<Precision>).transpose();
    let preferred_precision = preferred_precision.context("solver field 'precision'")?;
    let precision = flags.precision.or(preferred_precision).unwrap_or_default();
    if gpus.is_none() && preferred.is_none() {
        tracing::info!("Use CPU.");
        return Ok(None);
    }
    if let Some(wanted) = std::env::var(SIMULATE).ok().as_deref().and_then(Simulation::of) {
        tracing::warn!("{SIMULATE}=sim: computing on a simulated GPU, which is slow and only for tests");
        tracing::info!("{}", products_in(precision));
        return Ok(Some(Rc::new(wanted.open(precision)?)));
    }
    let open = |id: u32| open(id, precision);
    let preferred_id = preferred.map_or(0, SolverParameter::device_id);
    let gpu = choose_one(gpus, preferred_id, solver.is_some(), lgm_cuda::devices(), &open)?;
    if gpu.is_none() {
        tracing::info!("Use CPU.");
    }
    Ok(gpu)
}

fn products_in(precision: Precision) -> String {
    format!("Matrix products and convolutions in {precision}")
}

/// A simulated GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Simulation {
    /// Bytes of memory, if limited.
    capacity: Option<u64>,
    /// Convolutions are a library's, not the layer's own.
    library: bool,
}

impl Simulation {
    /// The simulation that a value of the variable asks for.
    fn of(value: &str) -> Option<Self> {
        let rest = value.strip_prefix("sim")?;
        let (library, rest) = rest.strip_prefix("-library").map_or((false, rest), |rest| (true, rest));
        let capacity = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?.parse().ok()?) };
        Some(Simulation { capacity, library })
    }

    fn open(self, precision: Precision) -> lgm_core::Result<Simulated> {
        let sim = match self.capacity {
            Some(bytes) => Sim::with_capacity(Order::Forward, bytes),
            None => Sim::new(Order::Forward),
        };
        let passes: &[ConvolutionPass] = if self.library { &ConvolutionPass::ALL } else { &[] };
        Ok(Simulated::of(sim?.in_precision(precision).with_library(passes)))
    }
}

fn open(id: u32, precision: Precision) -> lgm_core::Result<Rc<dyn Gpu>> {
    let gpu = Cuda::open(id, precision)?;
    tracing::info!("Use GPU with device ID {id}");
    gpu.report().iter().for_each(|line| tracing::info!("{line}"));
    tracing::info!("{}", products_in(precision));
    Ok(Rc::new(gpu))
}

/// The GPU that the flag names, or without a flag the one that the solver's file prefers, if it can be used. Of several the
/// first, with a warning, but to train: Caffe's batch is as many times the net's then.
fn choose_one<G>(
    gpus: Option<&Gpus>,
    preferred_id: i32,
    trains: bool,
    devices: Result<Vec<Device>, NoDevice>,
    open: &dyn Fn(u32) -> lgm_core::Result<G>,
) -> Result<Option<G>> {
    let Some(gpus) = gpus else {
        let gpu = match devices {
            Ok(_) => open(preferred_id.max(0) as u32).map_err(|error| error.to_string()),
            Err(error) => Err(format!("{} (see 'lgm-caffe device_query')", error.summary())),
        };
        let warn = |why: &String| {
            let asks = "the solver asks for solver_mode: GPU";
            tracing::warn!("{asks}, but no GPU can be used: {why}; running on the CPU instead");
        };
        return Ok(gpu.inspect_err(warn).ok());
    };
    let unusable = |error: &dyn std::fmt::Display| {
        anyhow::anyhow!("-gpu {gpus} was given, but no GPU can be used: {error}\nto run on the CPU, leave out -gpu")
    };
    let devices = devices.map_err(|error| unusable(&error))?;
    match choose(gpus, &devices)?[..] {
        [] => bail!("-gpu {gpus} names no GPU; to run on the CPU, leave out -gpu"),
        [first, _, ..] if trains => {
            bail!("-gpu {gpus} names several GPUs, but a training uses one: give its number, as in -gpu {}", first.id)
        }
        [device, ref others @ ..] => {
            if !others.is_empty() {
                tracing::warn!("-gpu {gpus} names several GPUs: only {} is used", device.id);
            }
            Ok(Some(open(device.id).map_err(|error| unusable(&error))?))
        }
    }
}

/// The devices that `-gpu` names.
///
/// # Errors
/// When it names one that is not there.
pub fn choose<'a>(gpus: &Gpus, devices: &'a [Device]) -> Result<Vec<&'a Device>> {
    let Gpus::List(ids) = gpus else { return Ok(devices.iter().collect()) };
    let find = |id: &u32| match devices.iter().find(|device| device.id == *id) {
        Some(device) => Ok(device),
        None => {
            let known: Vec<_> = devices.iter().map(|device| format!("{} ({})", device.id, device.name)).collect();
            bail!("-gpu {gpus}: there is no GPU {id}; this machine has {}", known.join(", "))
        }
    };
    ids.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use lgm_cuda::{SearchPath, probe_in};

    use super::*;

    fn none() -> Result<Vec<Device>, NoDevice> {
        probe_in(&SearchPath::folders(["/nonexistent/cuda".into()])).devices
    }

    /// Devices, but none that opens.
    fn closed(_: u32) -> lgm_core::Result<u32> {
        Err(lgm_core::Error::config("NVRTC was not found"))
    }

    #[test]
    fn the_flag_is_an_order_and_the_file_a_wish() {
        let zero = Gpus::List(vec![0]);
        let error = choose_one(Some(&zero), 0, true, none(), &closed).unwrap_err().to_string();
        assert!(
            error.starts_with("-gpu 0 was given, but no GPU can be used: CUDA driver (libcuda.so.1) was not"),
            "{error}"
        );
        assert!(error.contains("/nonexistent/cuda: no such folder"), "{error}");
        assert!(error.ends_with("to run on the CPU, leave out -gpu"), "{error}");
        assert_eq!(choose_one(None, 0, true, none(), &closed).unwrap(), None);
        assert!(choose_device(&DeviceFlags::default(), None).unwrap().is_none());
    }

    #[test]
    fn a_simulated_gpu_may_be_small_and_have_a_library() {
        let plain = Simulation { capacity: None, library: false };
        let small = Simulation { capacity: Some(4096), ..plain };
        assert_eq!(["sim", "sim:4096"].map(Simulation::of), [Some(plain), Some(small)]);
        let with = |simulation| Some(Simulation { library: true, ..simulation });
        assert_eq!(["sim-library", "sim-library:4096"].map(Simulation::of), [with(plain), with(small)]);
        assert_eq!(["", "simple", "sim:x", "sim-lib"].map(Simulation::of), [None; 4]);
    }

    #[test]
    fn a_precision_nobody_knows_is_named() {
        let solver = SolverParameter { precision: Some("tf23".into()), ..Default::default() };
        let Err(error) = choose_device(&DeviceFlags::default(), Some(&solver)) else { panic!("tf23 was accepted") };
        let text = format!("{error:#}");
        assert!(text.contains("solver field 'precision'") && text.contains("did you mean 'tf32'"), "{text}");
    }
}
