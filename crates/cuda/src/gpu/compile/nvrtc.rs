//! The run-time compiler of CUDA C++.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::PathBuf;

use lgm_core::{Error, Result};

use crate::gpu::api::{Api, NVRTC_ERROR_COMPILATION, NvrtcApi, nvrtcProgram};
use crate::{SearchPath, Version, kernels};

/// What is compiled at a time: a source of `kernels/`, or one for a test.
#[derive(Clone, Copy, Debug)]
pub struct Unit<'a> {
    /// The file's name without its extension.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// What is put before it, one list after the other.
    pub headers: [&'a [kernels::Header]; 2],
}

impl From<&kernels::Source> for Unit<'static> {
    fn from(source: &kernels::Source) -> Self {
        Unit { name: source.name, text: source.text, headers: [kernels::COMMON, source.headers] }
    }
}

impl Unit<'_> {
    /// The text that the compiler gets: each line numbered as in its own file.
    fn assembled(&self) -> String {
        let headers = self.headers.iter().copied().flatten();
        let mut text: String = headers.map(kernels::Header::numbered).collect();
        text += &format!("#line 1 \"{}.cu\"\n{}\n", self.name, self.text);
        text
    }
}

/// What came of compiling a source.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Machine code for one architecture.
    pub cubin: Vec<u8>,
    /// What the compiler had to say: warnings, and with [`Nvrtc::VERBOSE`] the use of registers and memory.
    pub log: String,
}

/// NVRTC, loaded. Its functions may be called from several threads at a time.
pub struct Nvrtc {
    api: NvrtcApi,
}

impl Nvrtc {
    /// Options of every compilation besides the architecture. Fast mathematics stay off: they would round division and
    /// square roots otherwise than the host. Products and sums are fused, as on the host.
    pub const OPTIONS: &[&str] = &["--std=c++17", "-default-device", "--fmad=true", "--generate-line-info"];
    /// An option that makes the log list each kernel's registers, shared memory and spills.
    pub const VERBOSE: &str = "--ptxas-options=-v";

    /// Loads NVRTC from the first place of a search path that has it.
    ///
    /// # Errors
    /// When it is nowhere, or not usable; the text says where it was looked for and how to get it.
    pub fn load(path: &SearchPath) -> Result<Nvrtc> {
        let api = NvrtcApi::load(path)?;
        load_builtins(&api);
        Ok(Nvrtc { api })
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.api.found.version
    }

    /// Its file.
    pub fn path(&self) -> &PathBuf {
        &self.api.found.path
    }

    /// The architectures it compiles for, as the numbers of `sm_75`.
    ///
    /// # Errors
    /// When it does not say.
    pub fn architectures(&self) -> Result<Vec<u32>> {
        let mut count = 0;
        // SAFETY: the pointer is to a live integer.
        self.check("nvrtcGetNumSupportedArchs", unsafe { (self.api.nvrtcGetNumSupportedArchs)(&mut count) })?;
        let mut list = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the list has as many places as NVRTC asked for.
        self.check("nvrtcGetSupportedArchs", unsafe { (self.api.nvrtcGetSupportedArchs)(list.as_mut_ptr()) })?;
        Ok(list.into_iter().map(|arch: c_int| arch.unsigned_abs()).collect())
    }

    /// Compiles a unit to machine code for an architecture (75 for `sm_75`).
    ///
    /// # Errors
    /// When it has errors, shown with the lines of its own file, or NVRTC cannot run.
    pub fn compile(&self, unit: &Unit<'_>, architecture: u32, options: &[&str]) -> Result<Compiled> {
        let text = c_string(&unit.assembled())?;
        let name = c_string(&format!("{}.cu", unit.name))?;
        let architecture = format!("--gpu-architecture=sm_{architecture}");
        let options: Vec<CString> =
            options.iter().chain([&architecture.as_str()]).map(|o| c_string(o)).collect::<Result<_>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();

        let mut program = Program { api: &self.api, handle: std::ptr::null_mut() };
        let none = std::ptr::null();
        // SAFETY: text and name end in zero and live through the call; there are no headers.
        let status =
            unsafe { (self.api.nvrtcCreateProgram)(&mut program.handle, text.as_ptr(), name.as_ptr(), 0, none, none) };
        self.check("nvrtcCreateProgram", status)?;
        // SAFETY: as many pointers as said, each to a text that ends in zero.
        let status =
            unsafe { (self.api.nvrtcCompileProgram)(program.handle, pointers.len() as c_int, pointers.as_ptr()) };
        let log = self.log(&program)?;
        if status == NVRTC_ERROR_COMPILATION {
            return Err(Error::internal(format!(
                "NVRTC {} refuses kernels/{}.cu with {}:\n{}",
                self.version(),
                unit.name,
                options.iter().map(|o| o.to_string_lossy()).collect::<Vec<_>>().join(" "),
                log.trim()
            )));
        }
        if status != 0 {
            return Err(self.failure(&format!("nvrtcCompileProgram of kernels/{}.cu", unit.name), status, log.trim()));
        }
        let mut size = 0;
        // SAFETY: the pointer is to a live integer.
        let status = unsafe { (self.api.nvrtcGetCUBINSize)(program.handle, &mut size) };
        self.check("nvrtcGetCUBINSize", status)?;
        let mut cubin = vec![0u8; size];
        // SAFETY: the buffer is as long as NVRTC asked for.
        let status = unsafe { (self.api.nvrtcGetCUBIN)(program.handle, cubin.as_mut_ptr().cast()) };
        self.check("nvrtcGetCUBIN", status)?;
        if cubin.is_empty() {
            return Err(Error::internal(format!("NVRTC gave no code for kernels/{}.cu", unit.name)));
        }
        Ok(Compiled { cubin, log })
    }

    fn log(&self, program: &Program<'_>) -> Result<String> {
        let mut size = 0;
        // SAFETY: the pointer is to a live integer.
        let status = unsafe { (self.api.nvrtcGetProgramLogSize)(program.handle, &mut size) };
        self.check("nvrtcGetProgramLogSize", status)?;
        let mut log = vec![0u8; size];
        // SAFETY: the buffer is as long as NVRTC asked for.
        let status = unsafe { (self.api.nvrtcGetProgramLog)(program.handle, log.as_mut_ptr().cast()) };
        self.check("nvrtcGetProgramLog", status)?;
        Ok(String::from_utf8_lossy(&log).trim_end_matches('\0').to_string())
    }

    fn check(&self, call: &str, status: c_int) -> Result<()> {
        if status == 0 { Ok(()) } else { Err(self.failure(call, status, "")) }
    }

    fn failure(&self, call: &str, status: c_int, log: &str) -> Error {
        // SAFETY: NVRTC gives a static text for every number.
        let meaning = unsafe { (self.api.nvrtcGetErrorString)(status) };
        let meaning = if meaning.is_null() {
            "unknown".into()
        } else {
            // SAFETY: the text ends in zero.
            unsafe { CStr::from_ptr(meaning) }.to_string_lossy()
        };
        let log = if log.is_empty() { String::new() } else { format!("\n{log}") };
        let (file, version) = (self.api.found.path.display(), self.version());
        Error::device(format!("NVRTC {version} ({file}): {call} failed: {meaning} ({status}){log}"))
    }
}

/// The library of built-in functions that NVRTC opens by its bare name, which the loader does not find beside an NVRTC
/// that has no search path of its own (13.0 from pip): opened here first, it is found.
fn load_builtins(api: &NvrtcApi) {
    let Version { major, minor, .. } = api.found.version;
    let name = format!("libnvrtc-builtins.so.{major}.{minor}");
    let file = api.found.path.canonicalize().unwrap_or_else(|_| api.found.path.clone()).with_file_name(name);
    if file.is_file() {
        // SAFETY: NVRTC itself would load it. Should it fail, NVRTC says so when it compiles.
        if let Ok(library) = unsafe { libloading::Library::new(file) } {
            std::mem::forget(library);
        }
    }
}

struct Program<'a> {
    api: &'a NvrtcApi,
    handle: nvrtcProgram,
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: the program is alive and not used again.
            unsafe { (self.api.nvrtcDestroyProgram)(&mut self.handle) };
        }
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::internal("a kernel's source or name holds a zero byte"))
}

/// The architecture to compile for: the device's own where the compiler knows it, else the newest older one whose code
/// the device runs, which is one of the same major number.
///
/// # Errors
/// When there is none.
pub(crate) fn architecture(capability: (u32, u32), supported: &[u32], version: Version) -> Result<u32> {
    let own = capability.0 * 10 + capability.1;
    let fits = |arch: &&u32| **arch / 10 == capability.0 && **arch <= own;
    supported.iter().filter(fits).max().copied().ok_or_else(|| {
        let known: Vec<String> = supported.iter().map(|arch| format!("sm_{arch}")).collect();
        Error::config(format!(
            "NVRTC {version} does not compile for this GPU (sm_{own}), only for {}; install a newer one: pip install -U \
             nvidia-cuda-nvrtc",
            known.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::ptxas;

    const COMMON: &[kernels::Header] =
        &[kernels::Header { name: "t.cuh", text: "#define KERNEL(name) extern \"C\" __global__ void name\n" }];

    fn nvrtc() -> Option<Nvrtc> {
        match crate::gpu::tests::nvrtc() {
            Ok(nvrtc) => Some(nvrtc),
            Err(reason) => lgm_testkit::skip("nvrtc", reason),
        }
    }

    #[test]
    fn a_kernel_becomes_code_and_its_use_is_told() {
        let Some(nvrtc) = nvrtc() else { return };
        let text = "KERNEL(probe_scale)(float* y, int n) {\n __shared__ float s[64];\n s[threadIdx.x] = y[threadIdx.x];\n\
                    __syncthreads();\n if (threadIdx.x < n) y[threadIdx.x] = 2.f * s[63 - threadIdx.x];\n}";
        let source = Unit { name: "probe", text, headers: [COMMON, &[]] };
        let options = [Nvrtc::OPTIONS, &[Nvrtc::VERBOSE]].concat();
        let compiled = nvrtc.compile(&source, 80, &options).unwrap();
        assert_eq!(&compiled.cubin[..4], b"\x7fELF");
        let kernels = ptxas::kernels(&compiled.log);
        assert_eq!(kernels.len(), 1, "{}", compiled.log);
        assert_eq!((kernels[0].name.as_str(), kernels[0].shared, kernels[0].spills()), ("probe_scale", 256, 0));
        assert!(kernels[0].registers > 0);
        assert_eq!(ptxas::remarks(&compiled.log), "");
        assert!(nvrtc.architectures().unwrap().contains(&90));
    }

    #[test]
    fn errors_and_warnings_name_the_files_own_lines() {
        let Some(nvrtc) = nvrtc() else { return };
        let source =
            Unit { name: "broken", text: "\nKERNEL(a)(float* y) {\n  y[0] = absent;\n}", headers: [COMMON, &[]] };
        let text = nvrtc.compile(&source, 75, Nvrtc::OPTIONS).unwrap_err().to_string();
        assert!(text.contains("refuses kernels/broken.cu with --std=c++17"), "{text}");
        assert!(text.contains("broken.cu(3): error: identifier \"absent\" is undefined"), "{text}");

        let source = Unit { text: "KERNEL(a)(float* y) {\n  int idle;\n  y[0] = 1;\n}", ..source };
        let log = nvrtc.compile(&source, 75, Nvrtc::OPTIONS).unwrap().log;
        assert!(ptxas::remarks(&log).contains("broken.cu(2): warning"), "{log}");

        let bad = nvrtc.compile(&source, 75, &["--no-such-option"]).unwrap_err().to_string();
        assert!(bad.contains("nvrtcCompileProgram of kernels/broken.cu failed") && bad.contains("no-such"), "{bad}");
    }

    #[test]
    fn a_spill_is_seen() {
        let Some(nvrtc) = nvrtc() else { return };
        let text = "extern \"C\" __global__ void __launch_bounds__(1024) hungry(float* y) {\n float v[160];\n\
                    #pragma unroll\n for (int i = 0; i < 160; i++) v[i] = y[i * 1024 + threadIdx.x];\n __syncthreads();\n\
                    #pragma unroll\n for (int i = 0; i < 160; i++) y[(159 - i) * 1024 + threadIdx.x] = v[i] * v[(i * 7) % 160];\n}";
        let options = [Nvrtc::OPTIONS, &[Nvrtc::VERBOSE]].concat();
        let source = Unit { name: "hungry", text, headers: [&[], &[]] };
        let log = nvrtc.compile(&source, 80, &options).unwrap().log;
        assert!(ptxas::kernels(&log)[0].spills() > 0, "{log}");
    }

    #[test]
    fn the_architecture_is_the_devices_own_or_one_whose_code_it_runs() {
        let version = Version { major: 13, minor: 0, patch: None };
        let known = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121];
        for (capability, expected) in [((7, 5), 75), ((8, 9), 89), ((9, 0), 90), ((10, 0), 100), ((12, 0), 120)] {
            assert_eq!(architecture(capability, &known, version).unwrap(), expected);
        }
        assert_eq!(architecture((8, 9), &[75, 80, 86], version).unwrap(), 86);
        let text = architecture((13, 0), &[75, 120], version).unwrap_err().to_string();
        assert!(text.contains("NVRTC 13.0 does not compile for this GPU (sm_130), only for sm_75, sm_120"), "{text}");
    }
}
