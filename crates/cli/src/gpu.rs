//! The choice between CPU and GPU.

use anyhow::{Result, bail};
use lgm_cuda::{Device, NoDevice};

use crate::args::Gpus;

/// Settles that a run computes on the CPU, and says so in the log.
///
/// `asked` is the `-gpu` flag; `solver_asks` tells whether the solver's file has `solver_mode: GPU`. The flag is an
/// order and the file a wish: what cannot be done for the flag is an error, for the file a warning.
///
/// # Errors
/// When `-gpu` is given: with no usable GPU, the text says what was looked for and where.
pub fn use_cpu(asked: Option<&Gpus>, solver_asks: bool) -> Result<()> {
    if asked.is_some() || solver_asks {
        settle(asked, lgm_cuda::devices())?;
    }
    tracing::info!("Use CPU.");
    Ok(())
}

fn settle(asked: Option<&Gpus>, devices: Result<Vec<Device>, NoDevice>) -> Result<()> {
    let Some(gpus) = asked else {
        let why = match devices {
            Ok(devices) => format!("this version computes on the CPU only ({} is not used)", devices[0].name),
            Err(error) => format!("no GPU can be used: {} ('lgm-caffe device_query' tells more)", error.summary()),
        };
        tracing::warn!("the solver asks for solver_mode: GPU, but {why}; running on the CPU instead");
        return Ok(());
    };
    match devices {
        Err(error) => {
            bail!("-gpu {gpus} was given, but no GPU can be used: {error}\nto run on the CPU, leave out -gpu")
        }
        Ok(devices) => {
            let chosen = choose(gpus, &devices)?;
            let names: Vec<_> = chosen.iter().map(|device| format!("GPU {}: {}", device.id, device.name)).collect();
            bail!(
                "-gpu {gpus} was given ({}), but this version computes on the CPU only; leave out -gpu",
                names.join(", ")
            )
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

    #[test]
    fn the_flag_is_an_order_and_the_file_a_wish() {
        let error = settle(Some(&Gpus::List(vec![0])), none()).unwrap_err().to_string();
        assert!(
            error.starts_with("-gpu 0 was given, but no GPU can be used: CUDA driver (libcuda.so.1) was not"),
            "{error}"
        );
        assert!(error.contains("/nonexistent/cuda: no such folder"), "{error}");
        assert!(error.ends_with("to run on the CPU, leave out -gpu"), "{error}");
        settle(None, none()).unwrap();
        use_cpu(None, false).unwrap();
    }
}
