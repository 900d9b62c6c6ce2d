//! The GPUs, as the driver lists them.

use std::env;
use std::ffi::{CStr, c_int};

use cudarc::driver::sys::CUdevice_attribute as Attribute;

use super::api::{Api, DriverApi, RunApi};
use crate::locate::Loaded;
use crate::{Found, Missing, Unusable};

/// A GPU and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number, as `-gpu` takes it.
    pub id: u32,
    /// The product's name.
    pub name: String,
    /// Compute capability: major and minor.
    pub capability: (u32, u32),
    /// Global memory in bytes.
    pub memory: u64,
    /// Shared memory a block can have, in bytes.
    pub shared_per_block: u32,
    /// 32-bit registers a block can have.
    pub registers_per_block: u32,
    /// Threads in a warp.
    pub warp: u32,
    /// The longest pitch of a 2-D copy, in bytes.
    pub pitch: u32,
    /// Threads a block can have.
    pub threads_per_block: u32,
    /// The largest block, by dimension.
    pub block: [u32; 3],
    /// The largest grid, by dimension.
    pub grid: [u32; 3],
    /// Peak clock in kHz; 0 where the driver no longer reports it.
    pub clock: u32,
    /// Constant memory in bytes.
    pub constant_memory: u32,
    /// Alignment of textures in bytes.
    pub texture_alignment: u32,
    /// Whether copies overlap with kernels.
    pub overlap: bool,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Whether the driver stops long kernels.
    pub kernel_timeout: bool,
}

/// Why no GPU can be used.
#[derive(Debug, thiserror::Error)]
pub enum NoDevice {
    /// There is no driver.
    #[error("{0}")]
    NoDriver(#[from] Missing),
    /// The driver is there and refuses.
    #[error(
        "the CUDA driver ({}, for CUDA {}) is there but {call} failed: {code}{}",
        found.path.display(), found.version, hint(.visible)
    )]
    Refused {
        /// The driver.
        found: Found,
        /// The call that failed.
        call: &'static str,
        /// The driver's code, with its name and meaning where it gave them.
        code: String,
        /// `CUDA_VISIBLE_DEVICES`, if set.
        visible: Option<String>,
    },
    /// The driver works and sees no GPU.
    #[error(
        "the CUDA driver ({}, for CUDA {}) is there but sees no GPU{}",
        found.path.display(), found.version, hint(.visible)
    )]
    NoneSeen {
        /// The driver.
        found: Found,
        /// `CUDA_VISIBLE_DEVICES`, if set.
        visible: Option<String>,
    },
    /// The library that goes by the driver's name lacks one of its functions.
    #[error("the CUDA driver ({}) is there but {reason}", found.path.display())]
    Foreign {
        /// The library.
        found: Found,
        /// What it lacks.
        reason: Unusable,
    },
}

impl NoDevice {
    /// The error in one line, without the places that were looked at.
    pub fn summary(&self) -> String {
        match self {
            NoDevice::NoDriver(missing) => missing.summary(),
            other => other.to_string(),
        }
    }
}

fn visible_devices() -> Option<String> {
    env::var_os("CUDA_VISIBLE_DEVICES").map(|list| list.to_string_lossy().into_owned())
}

fn hint(value: &Option<String>) -> String {
    match value {
        Some(list) => format!("; CUDA_VISIBLE_DEVICES is set to '{list}', which hides every other GPU"),
        None => "; nvidia-smi -L lists the GPUs that the kernel's driver sees".into(),
    }
}

/// The driver, and its functions that list devices.
pub(crate) struct Driver {
    loaded: Loaded,
    api: DriverApi,
}

impl Driver {
    /// The driver, once loaded.
    ///
    /// # Errors
    /// When it was not, or lacks a function that lists devices.
    pub(crate) fn of(loaded: Result<Loaded, Missing>) -> Result<Self, NoDevice> {
        let loaded = loaded?;
        match DriverApi::of(&loaded) {
            Ok(api) => Ok(Driver { loaded, api }),
            Err(reason) => Err(NoDevice::Foreign { found: loaded.found, reason }),
        }
    }

    /// Its functions: those that list devices and those that run work.
    ///
    /// # Errors
    /// When it is too old to have all of the latter.
    pub(crate) fn functions(self) -> lgm_core::Result<(DriverApi, RunApi)> {
        Ok((self.api, RunApi::usable(&self.loaded)?))
    }

    fn check(&self, call: &'static str, status: c_int) -> Result<(), NoDevice> {
        if status == 0 {
            return Ok(());
        }
        let code = self.api.code(status).to_string();
        Err(NoDevice::Refused { found: self.api.found.clone(), call, code, visible: visible_devices() })
    }

    /// The devices; at least one.
    ///
    /// # Errors
    /// When the driver fails, or sees none.
    pub(crate) fn devices(&self) -> Result<Vec<Device>, NoDevice> {
        // SAFETY, of both calls: as the driver documents; the pointer is to a live integer.
        self.check("cuInit", unsafe { (self.api.cuInit)(0) })?;
        let mut count = 0;
        self.check("cuDeviceGetCount", unsafe { (self.api.cuDeviceGetCount)(&mut count) })?;
        if count == 0 {
            return Err(NoDevice::NoneSeen { found: self.api.found.clone(), visible: visible_devices() });
        }
        (0..count).map(|ordinal| self.device(ordinal)).collect()
    }

    fn device(&self, ordinal: c_int) -> Result<Device, NoDevice> {
        let mut handle = 0;
        // SAFETY: the pointer is to a live integer.
        self.check("cuDeviceGet", unsafe { (self.api.cuDeviceGet)(&mut handle, ordinal) })?;
        let mut name = [0u8; 256];
        // One byte less than the buffer has, so that the text ends whatever the driver writes.
        let room = name.len() as c_int - 1;
        // SAFETY: the buffer is longer than the length given.
        self.check("cuDeviceGetName", unsafe { (self.api.cuDeviceGetName)(name.as_mut_ptr().cast(), room, handle) })?;
        let name = CStr::from_bytes_until_nul(&name).map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let mut memory = 0;
        // SAFETY: the pointer is to a live integer.
        self.check("cuDeviceTotalMem", unsafe { (self.api.cuDeviceTotalMem_v2)(&mut memory, handle) })?;

        // An attribute that a driver no longer knows reads as 0.
        let attribute = |which: Attribute| {
            let mut value = 0;
            // SAFETY: the pointer is to a live integer.
            let status = unsafe { (self.api.cuDeviceGetAttribute)(&mut value, which, handle) };
            if status == 0 { u32::try_from(value).unwrap_or(0) } else { 0 }
        };
        Ok(Device {
            id: ordinal as u32,
            name,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
            ),
            memory: memory as u64,
            shared_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK),
            registers_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK),
            warp: attribute(Attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE),
            pitch: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_PITCH),
            threads_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK),
            block: [
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X),
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y),
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z),
            ],
            grid: [
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X),
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y),
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z),
            ],
            clock: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
            constant_memory: attribute(Attribute::CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY),
            texture_alignment: attribute(Attribute::CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT),
            overlap: attribute(Attribute::CU_DEVICE_ATTRIBUTE_GPU_OVERLAP) != 0,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
            kernel_timeout: attribute(Attribute::CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT) != 0,
        })
    }
}
