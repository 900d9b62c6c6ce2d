//! The GPU that tests run on in the simulated device's place, where `LGM_TEST_DEVICE` is `cuda`: the one of number
//! `LGM_TEST_GPU`, 0 without it. There, what the simulated device does in reverse order is done once more, and must
//! give the same bits.

use std::sync::{Arc, OnceLock};

use lgm_core::{Element, Error, Result, Storage};
use lgm_cuda::{Cuda, Precision};

use crate::pool::Pool;

/// Whether tests are to run on a GPU.
fn wanted() -> Result<bool> {
    match std::env::var("LGM_TEST_DEVICE") {
        Err(_) => Ok(false),
        Ok(device) if device.is_empty() || device == "sim" => Ok(false),
        Ok(device) if device == "cuda" => Ok(true),
        Ok(device) => Err(Error::config(format!("LGM_TEST_DEVICE is '{device}'; it may be sim or cuda"))),
    }
}

/// In single precision, whose results can be compared closely with the host's, where blobs are stored so.
fn open(element: Element) -> Result<Cuda> {
    let id = std::env::var("LGM_TEST_GPU").unwrap_or_default();
    let id = if id.is_empty() { Ok(0) } else { id.parse() };
    let id = id.map_err(|error| Error::config(format!("LGM_TEST_GPU: {error}")))?;
    let precision = if element == Element::Bf16 { Precision::Bf16 } else { Precision::Fp32 };
    Cuda::open(id, precision)
}

/// One that lives as long as the process. Opening another is quick while there is one.
pub(crate) fn shared_gpu(element: Element) -> Result<Option<Arc<Pool>>> {
    static GPUS: [OnceLock<Result<Arc<Pool>, Arc<Error>>>; 2] = [const { OnceLock::new() }; 2];
    if !wanted()? {
        return Ok(None);
    }
    let gpu = GPUS[usize::from(element == Element::Bf16)].get_or_init(|| {
        let pool = open(element).map(|gpu| Arc::new(Pool::new(Arc::new(gpu.storing(Storage::default())))));
        pool.map_err(Arc::new)
    });
    Ok(Some(gpu.clone()?))
}

/// The GPU, opened for one test, as a device that would have blobs stored so; `None` where tests run on the simulated
/// device.
///
/// # Errors
/// When the GPU was asked for and cannot be had.
pub fn gpu(storage: Storage) -> Result<Option<Cuda>> {
    if shared_gpu(storage.element)?.is_none() {
        return Ok(None);
    }
    Ok(Some(open(storage.element)?.storing(storage)))
}
