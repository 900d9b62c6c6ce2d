//! Every kernel, compiled for one GPU and loaded.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use lgm_core::{Arg, Error, Grid, Result};
use smallvec::SmallVec;

use crate::gpu::api::{Handle, driver::CUfunc_st, driver::CUmod_st};
use crate::gpu::compile::cache::{KernelCache, Key};
use crate::gpu::compile::nvrtc::{Nvrtc, Unit};
use crate::gpu::compile::ptxas;
use crate::gpu::context::{Context, Stream, driver};

/// The machine code of units, in their order, from the cache or else compiled, several at a time, and kept.
///
/// # Errors
/// When one does not compile. A cache that cannot be written is only warned of.
pub fn compile_all(nvrtc: &Nvrtc, architecture: u32, units: &[Unit<'_>], cache: &KernelCache) -> Result<Vec<Vec<u8>>> {
    let results: Vec<Mutex<Option<Result<Vec<u8>>>>> = units.iter().map(|_| Mutex::new(None)).collect();
    let (next, made) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let started = Instant::now();
    let threads = thread::available_parallelism().map_or(1, usize::from).min(units.len());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(unit) = units.get(i) else { break };
                    let result = compile_one(nvrtc, architecture, unit, cache, &made);
                    *results[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                }
            });
        }
    });
    let made = made.into_inner();
    if made > 0 {
        let seconds = started.elapsed().as_secs_f64();
        let kept = cache.folder().map(|folder| format!("; kept in {}", folder.display())).unwrap_or_default();
        tracing::info!("compiled {made} kernel sources for sm_{architecture} in {seconds:.1} s{kept}");
    }
    let taken = results.into_iter().map(|r| r.into_inner().unwrap_or_else(PoisonError::into_inner));
    taken.map(|r| r.unwrap_or_else(|| Err(Error::internal("a kernel source was not compiled")))).collect()
}

fn compile_one(
    nvrtc: &Nvrtc,
    architecture: u32,
    unit: &Unit<'_>,
    cache: &KernelCache,
    made: &AtomicUsize,
) -> Result<Vec<u8>> {
    let (target, version) = (format!("sm_{architecture}"), nvrtc.version().to_string());
    let headers = unit.headers.iter().copied().flatten().map(|header| header.text);
    let parts = headers.chain([unit.text, &target, &version]).chain(Nvrtc::OPTIONS.iter().copied());
    let key = Key::of(parts);
    if let Some(cubin) = cache.get(&key) {
        return Ok(cubin);
    }
    let compiled = nvrtc.compile(unit, architecture, Nvrtc::OPTIONS)?;
    made.fetch_add(1, Ordering::Relaxed);
    let remarks = ptxas::remarks(&compiled.log);
    if !remarks.is_empty() {
        tracing::debug!("kernels/{}.cu:\n{remarks}", unit.name);
    }
    if let Err(error) = cache.put(&key, &compiled.cubin) {
        tracing::warn!("compiled kernels cannot be kept, so every start compiles them: {error}");
    }
    Ok(compiled.cubin)
}

/// Loaded kernels by name.
pub(crate) struct Kernels {
    context: Arc<Context>,
    modules: Vec<Handle<CUmod_st>>,
    functions: HashMap<String, Handle<CUfunc_st>>,
}

impl Kernels {
    /// Loads machine code and looks up the kernels that each piece holds.
    pub(crate) fn load(context: &Arc<Context>, code: &[(Vec<u8>, &str, Vec<String>)]) -> Result<Kernels> {
        let mut kernels = Kernels { context: context.clone(), modules: Vec::new(), functions: HashMap::new() };
        for (cubin, file, names) in code {
            let mut module = Handle::NULL;
            driver!(context, cuModuleLoadData(&mut module.0, cubin.as_ptr().cast()))
                .map_err(|error| error.while_doing(format_args!("kernels/{file}.cu cannot be loaded")))?;
            kernels.modules.push(module);
            for name in names {
                let text =
                    CString::new(name.as_str()).map_err(|_| Error::internal("a kernel's name holds a zero byte"))?;
                let mut function = Handle::NULL;
                driver!(context, cuModuleGetFunction(&mut function.0, module.0, text.as_ptr()))
                    .map_err(|error| Error::internal(format!("kernels/{file}.cu has no kernel {name}: {error}")))?;
                kernels.functions.insert(name.clone(), function);
            }
        }
        Ok(kernels)
    }

    pub(crate) fn launch(&self, kernel: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
        let Some(&function) = self.functions.get(kernel) else {
            let hint = lgm_core::nearest(kernel, self.functions.keys().map(String::as_str));
            let hint = hint.map(|n| format!("; did you mean {n}?")).unwrap_or_default();
            return Err(Error::internal(format!("there is no kernel {kernel}{hint}")));
        };
        let mut values: SmallVec<[u64; 24]> = args.iter().map(word).collect();
        let mut pointers: SmallVec<[*mut c_void; 24]> =
            values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let ([x, y, z], [tx, ty, tz]) = (grid.blocks, grid.threads);
        let stream = self.context.stream(Stream::Compute);
        let pointers = pointers.as_mut_ptr();
        driver!(
            self.context,
            cuLaunchKernel(function.0, x, y, z, tx, ty, tz, 0, stream, pointers, std::ptr::null_mut())
        )
        .map_err(|error| {
            error.while_doing(format_args!("kernel {kernel} with {:?} blocks of {:?}", grid.blocks, grid.threads))
        })
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        // What is queued may still run these, and be on its way from memory that goes next.
        for stream in [Stream::Copy, Stream::Compute] {
            let _ = self.context.finish(stream);
        }
        for &module in &self.modules {
            let _ = driver!(self.context, cuModuleUnload(module.0));
        }
    }
}

/// An argument as a kernel finds it in memory, at the word's own address; of a shorter one the rest is not read.
fn word(arg: &Arg) -> u64 {
    let short = |[a, b, c, d]: [u8; 4]| u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]);
    match *arg {
        Arg::Ptr(v) => v.0,
        Arg::I32(v) => short(v.to_ne_bytes()),
        Arg::U32(v) => short(v.to_ne_bytes()),
        Arg::I64(v) => u64::from_ne_bytes(v.to_ne_bytes()),
        Arg::U64(v) => v,
        Arg::F32(v) => short(v.to_ne_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use lgm_core::DevicePtr;

    use super::*;

    #[test]
    fn arguments_lie_as_the_kernel_reads_them() {
        let bytes = |arg: Arg| word(&arg).to_ne_bytes();
        assert_eq!(u64::from_ne_bytes(bytes(Arg::Ptr(DevicePtr(0x1234_5678_9abc)))), 0x1234_5678_9abc);
        assert_eq!(i64::from_ne_bytes(bytes(Arg::I64(-5))), -5);
        let first = |arg: Arg| <[u8; 4]>::try_from(&bytes(arg)[..4]).unwrap();
        assert_eq!(i32::from_ne_bytes(first(Arg::I32(-7))), -7);
        assert_eq!(u32::from_ne_bytes(first(Arg::U32(7))), 7);
        assert_eq!(f32::from_ne_bytes(first(Arg::F32(0.25))), 0.25);
    }

    #[test]
    fn compiled_code_is_kept_and_damaged_code_made_anew() {
        let nvrtc = match crate::gpu::tests::nvrtc() {
            Ok(nvrtc) => nvrtc,
            Err(reason) => return lgm_testkit::skipped("nvrtc", reason),
        };
        let folder = tempfile::tempdir().unwrap();
        let cache = KernelCache::in_folder(folder.path());
        let text = ["a", "b", "c"].map(|n| format!("extern \"C\" __global__ void {n}(float* y) {{ y[0] = 1; }}"));
        let units: Vec<Unit<'_>> = text.iter().map(|text| Unit { name: "t", text, headers: [&[], &[]] }).collect();
        let first = compile_all(&nvrtc, 75, &units, &cache).unwrap();
        let files = || {
            let mut files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().path()).collect();
            files.sort();
            files
        };
        assert_eq!(files().len(), 3);

        // What stands in the cache is what comes back: entries exchanged by hand show that nothing is compiled.
        let whole = fs::read(&files()[0]).unwrap();
        for file in files() {
            fs::write(file, &whole).unwrap();
        }
        let again = compile_all(&nvrtc, 75, &units, &cache).unwrap();
        assert!(again.iter().all(|code| code == &again[0]) && first.contains(&again[0]));

        for file in files() {
            fs::write(file, &whole[..whole.len() / 2]).unwrap();
        }
        assert_eq!(compile_all(&nvrtc, 75, &units, &cache).unwrap(), first);
        assert_eq!(files().len(), 3);

        // Another architecture is another entry.
        compile_all(&nvrtc, 80, &units[..1], &cache).unwrap();
        assert_eq!(files().len(), 4);

        let broken = Unit { name: "broken", text: "extern int;;; x", headers: [&[], &[]] };
        let mixed = [units[0], broken, units[1]];
        assert!(compile_all(&nvrtc, 75, &mixed, &cache).unwrap_err().to_string().contains("broken.cu"));
    }
}
