//! The libraries by name: their files, where pip puts them and how their versions are read.

use std::fmt;

/// An NVIDIA library that a GPU run uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// The driver's user-mode library: devices, memory, kernel launches.
    Driver,
    /// The run-time compiler of CUDA C++.
    Nvrtc,
    /// Matrix products.
    Cublas,
    /// Convolutions and other layers' primitives.
    Cudnn,
    /// Sums across GPUs.
    Nccl,
}

impl Component {
    /// Every component, the driver first.
    pub const ALL: [Component; 5] =
        [Component::Driver, Component::Nvrtc, Component::Cublas, Component::Cudnn, Component::Nccl];

    /// The name people know it by.
    pub fn name(self) -> &'static str {
        match self {
            Component::Driver => "CUDA driver",
            Component::Nvrtc => "NVRTC",
            Component::Cublas => "cuBLAS",
            Component::Cudnn => "cuDNN",
            Component::Nccl => "NCCL",
        }
    }

    /// The file names it goes by, the preferred first.
    pub fn file_names(self) -> &'static [&'static str] {
        match self {
            // The unversioned name is left out for the driver: in a toolkit's folder it is a stub for linking.
            Component::Driver => &["libcuda.so.1"],
            Component::Nvrtc => &["libnvrtc.so.13", "libnvrtc.so"],
            Component::Cublas => &["libcublas.so.13", "libcublas.so"],
            Component::Cudnn => &["libcudnn.so.9", "libcudnn.so"],
            Component::Nccl => &["libnccl.so.2", "libnccl.so"],
        }
    }

    /// How to get it, as the end of a sentence.
    pub fn how_to_get(self) -> &'static str {
        match self {
            Component::Driver => {
                "install the NVIDIA driver, from your distribution (Debian: nvidia-driver) or \
                 https://www.nvidia.com/drivers; in a container, start it with the GPUs (docker run --gpus all)"
            }
            Component::Nvrtc => "pip install nvidia-cuda-nvrtc, or install the CUDA 13 toolkit",
            Component::Cublas => "pip install nvidia-cublas, or install the CUDA 13 toolkit",
            Component::Cudnn => "pip install nvidia-cudnn-cu13",
            Component::Nccl => "pip install nvidia-nccl-cu13 (needed for several GPUs only)",
        }
    }

    /// Its folder under a Python's site-packages when pip installed it; the driver never is.
    pub(crate) fn pip_folder(self) -> Option<&'static str> {
        match self {
            Component::Driver => None,
            Component::Nvrtc | Component::Cublas => Some("nvidia/cu13/lib"),
            Component::Cudnn => Some("nvidia/cudnn/lib"),
            Component::Nccl => Some("nvidia/nccl/lib"),
        }
    }
}

/// A library's version as the library itself reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number; the driver and NVRTC have none.
    pub patch: Option<u32>,
}

impl Version {
    /// From the driver's single number: 13000 is CUDA 13.0, 12040 is CUDA 12.4.
    pub(crate) fn from_driver(code: u32) -> Self {
        Version { major: code / 1000, minor: code % 1000 / 10, patch: None }
    }

    /// From the single number of cuDNN and NCCL: `major·10000 + minor·100 + patch` since cuDNN 9 and NCCL 2.9, and
    /// `major·1000 + minor·100 + patch` before.
    pub(crate) fn from_packed(code: u32) -> Self {
        let unit = if code >= 10_000 { 10_000 } else { 1000 };
        Version { major: code / unit, minor: code % unit / 100, patch: Some(code % 100) }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        self.patch.map_or(Ok(()), |patch| write!(f, ".{patch}"))
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn packed_versions_read_as_their_makers_write_them() {
        assert_eq!(Version::from_driver(13_000).to_string(), "13.0");
        assert_eq!(Version::from_driver(12_040).to_string(), "12.4");
        assert_eq!(Version::from_packed(91_300).to_string(), "9.13.0");
        assert_eq!(Version::from_packed(8_907).to_string(), "8.9.7");
        assert_eq!(Version::from_packed(22_703).to_string(), "2.27.3");
        assert_eq!(Version::from_packed(2_804).to_string(), "2.8.4");
    }
}
