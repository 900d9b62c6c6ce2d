//! What streams get: copies, fills and kernels.

use std::ffi::c_void;

use lgm_core::Grid;
use lgm_cuda::sim::Order;

use crate::gpu::Gpu;
use crate::status::{INVALID_HANDLE, INVALID_VALUE, NOT_FOUND, Refusal};

impl Gpu {
    pub fn copy_from_host(&mut self, to: u64, from: usize, bytes: usize, stream: usize) -> Result<(), Refusal> {
        self.host_copy(from, bytes, stream, "cuMemcpyHtoDAsync")?;
        let dry = self.settings.dry;
        self.put(stream, "copy from the host", move |gpu| {
            if gpu.must_be_memory(to, bytes, "the target of a copy from the host") && !dry {
                // SAFETY: pinned when it was asked for and, since giving that back runs this first, now.
                unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
            }
        })
    }

    pub fn copy_to_host(&mut self, to: usize, from: u64, bytes: usize, stream: usize) -> Result<(), Refusal> {
        self.host_copy(to, bytes, stream, "cuMemcpyDtoHAsync")?;
        let dry = self.settings.dry;
        self.put(stream, "copy to the host", move |gpu| {
            if gpu.must_be_memory(from, bytes, "the source of a copy to the host") {
                // SAFETY: as for the other way.
                unsafe {
                    match dry {
                        true => (to as *mut u8).write_bytes(0, bytes),
                        false => std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes),
                    }
                }
            }
        })
    }

    fn host_copy(&mut self, host: usize, bytes: usize, stream: usize, call: &str) -> Result<(), Refusal> {
        if !self.is_pinned(host, bytes) {
            self.violation(&format!("{call} with host memory that is not pinned"));
            return Err(INVALID_VALUE);
        }
        if self.is_recorded(stream) {
            self.violation(&format!("{call} recorded: its host memory is another's when it is replayed"));
        }
        self.counted().copies += 1;
        self.counted().bytes += bytes as u64;
        Ok(())
    }

    pub fn fill(&mut self, at: u64, value: Box<[u8]>, count: usize, stream: usize) -> Result<(), Refusal> {
        self.counted().fills += 1;
        let dry = self.settings.dry;
        self.put(stream, "fill", move |gpu| {
            let bytes = count * value.len();
            if gpu.must_be_memory(at, bytes, "memory to fill") && !dry {
                // SAFETY: it is memory of the device.
                let memory = unsafe { std::slice::from_raw_parts_mut(at as *mut u8, bytes) };
                memory.chunks_exact_mut(value.len()).for_each(|to| to.copy_from_slice(&value));
            }
        })
    }

    /// # Safety
    /// `arguments` has a pointer for each parameter of the kernel.
    pub unsafe fn launch(
        &mut self,
        function: usize,
        grid: Grid,
        stream: usize,
        arguments: *mut *mut c_void,
    ) -> Result<(), Refusal> {
        let (_, name) = self.functions.get(&function).cloned().ok_or(INVALID_HANDLE)?;
        let kernels = self.kernels.as_ref().copied().map_err(|why| {
            eprintln!("fake GPU: no kernels: {why}");
            NOT_FOUND
        })?;
        let Some(signature) = kernels.signature(&name) else { return Err(NOT_FOUND) };
        let ([x, y, z], [tx, ty, tz]) = (grid.blocks, grid.threads);
        let threads = u64::from(tx) * u64::from(ty) * u64::from(tz);
        if [x, y, z].contains(&0)
            || x > i32::MAX as u32
            || y > 65535
            || z > 65535
            || tz > 64
            || !(1..=1024).contains(&threads)
        {
            self.violation(&format!("kernel {name}: no device takes {grid:?}"));
            return Err(INVALID_VALUE);
        }
        let wide = |letter: u8| b"plm".contains(&letter);
        // SAFETY: the caller's promise; a parameter's letter tells its size.
        let words: Vec<u64> = (signature.bytes().enumerate())
            .map(|(i, letter)| unsafe {
                let at = *arguments.add(i);
                if wide(letter) { at.cast::<u64>().read_unaligned() } else { at.cast::<u32>().read_unaligned().into() }
            })
            .collect();
        let pointers =
            signature.bytes().zip(&words).enumerate().filter(|(_, (letter, word))| *letter == b'p' && **word != 0);
        let pointers: Vec<(usize, u64)> = pointers.map(|(i, (_, word))| (i, *word)).collect();
        self.counted().launches += 1;
        let dry = self.settings.dry;
        let kernel = name.clone();
        self.put(stream, &name, move |gpu| {
            for &(i, at) in &pointers {
                if !gpu.must_be_memory(at, 0, &format!("argument {i} of kernel {kernel}")) {
                    return;
                }
            }
            if dry {
                return;
            }
            let mut words = words.clone();
            let mut arguments: Vec<*mut c_void> =
                words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
            // SAFETY: a word of each of the kernel's types; that it stays within its blocks is checked below.
            if let Err(error) = unsafe { kernels.run(&kernel, grid, Order::Forward, &mut arguments) } {
                gpu.violation(&error.to_string());
            }
            gpu.check_zones(&format!("kernel {kernel}"));
        })
    }
}
