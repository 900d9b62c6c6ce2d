//! Whether the types and numbers of [`super::api`] are those of NVIDIA's headers, asked of a C++ compiler where both
//! are at hand (the pip packages of cuBLAS, cuDNN and the CUDA runtime bring headers).

use std::fmt::Write;
use std::mem::size_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::api::*;
use crate::{Component, SearchPath, library};

/// What matters of a parameter's type at a call: its register class and size. Integers are their size, floating-point
/// numbers 200 and theirs, pointers 100, nothing 0.
pub(super) trait Class {
    const CLASS: i32;
}
macro_rules! class {
    ($($type:ty => $class:expr),+) => { $(impl Class for $type { const CLASS: i32 = $class; })+ };
}
class!(() => 0, u8 => 1, i32 => 4, u32 => 4, i64 => 8, u64 => 8, usize => size_of::<usize>() as i32, Handle => 100);
impl<T> Class for *const T {
    const CLASS: i32 = 100;
}
impl<T> Class for *mut T {
    const CLASS: i32 = 100;
}

const PRELUDE: &str = r"
#include <cstddef>
#include <type_traits>
template <class T> constexpr int cls() {
    if constexpr (std::is_void<T>::value) return 0;
    else if constexpr (std::is_pointer<T>::value) return 100;
    else if constexpr (std::is_floating_point<T>::value) return 200 + sizeof(T);
    else { static_assert(std::is_integral<T>::value || std::is_enum<T>::value, ``); return sizeof(T); }
}
template <class F> struct Sig;
template <class R, class... A> struct Sig<R(A...)> {
    template <int... E> static constexpr bool is() {
        constexpr int want[] = {E...}, have[] = {cls<R>(), cls<A>()...};
        if (sizeof want != sizeof have) return false;
        for (unsigned i = 0; i < sizeof want / sizeof *want; i++) if (want[i] != have[i]) return false;
        return true;
    }
};
";

/// Stands in for a header that only the compiler's package brings; nothing that is compared depends on it.
const HOST_DEFINES: &str = r"
#pragma once
#define __host__
#define __device__
#define __device_builtin__
#define __cudart_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline
#define CUDARTAPI
";

fn headers() -> Result<[PathBuf; 2], String> {
    let path = SearchPath::from_env();
    let include = |component: Component, header: &str| {
        let found = library::find(component, &path).found.map_err(|missing| missing.summary())?;
        let folders = found.path.ancestors().skip(2).take(2).map(|f| f.join("include"));
        folders
            .into_iter()
            .find(|f| f.join(header).is_file())
            .ok_or_else(|| format!("no {header} beside {}", found.path.display()))
    };
    Ok([include(Component::Cublas, "cublas_v2.h")?, include(Component::Cudnn, "cudnn.h")?])
}

fn compiles(source: &str, folder: &Path, headers: &[PathBuf]) -> Result<(), String> {
    let file = folder.join("abi.cpp");
    std::fs::write(&file, source).map_err(|e| e.to_string())?;
    let mut command = Command::new("c++");
    command.args(["-std=c++17", "-fsyntax-only", "-Wno-deprecated-declarations"]).arg(&file);
    headers.iter().for_each(|h| {
        command.arg("-I").arg(h);
    });
    let out = command.output().map_err(|e| e.to_string())?;
    out.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn types_and_numbers_are_those_of_the_headers() {
    let headers = match headers() {
        Ok(headers) if Command::new("c++").arg("--version").output().is_ok() => headers,
        Ok(_) => return println!("skipped: no C++ compiler"),
        Err(reason) => return println!("skipped: NVIDIA's headers are not at hand ({reason})"),
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("crt")).unwrap();
    std::fs::write(folder.path().join("crt/host_defines.h"), HOST_DEFINES).unwrap();
    // Last, so that the true one is taken where it is.
    let headers = [&headers[..], &[folder.path().to_path_buf()]].concat();
    let mut source = PRELUDE.replace("``", "\"\"");
    source += "#include <cuda.h>\n#include <nvrtc.h>\n#include <cublas_v2.h>\n#include <cudnn.h>\n";
    for (function, class) in
        [DriverApi::SIGNATURES, NvrtcApi::SIGNATURES, CublasApi::SIGNATURES, CudnnApi::SIGNATURES].concat()
    {
        let class: Vec<String> = class.iter().map(ToString::to_string).collect();
        writeln!(source, "static_assert(Sig<decltype({function})>::is<{}>(), \"{function}\");", class.join(", "))
            .unwrap();
    }
    for (name, value) in CONSTANTS {
        writeln!(source, "static_assert((int){name} == {value}, \"{name}\");").unwrap();
    }
    for pass in ["Fwd", "BwdData", "BwdFilter"] {
        let perf = format!("cudnnConvolution{pass}AlgoPerf_t");
        let size = size_of::<AlgorithmPerf>();
        writeln!(source, "static_assert(sizeof({perf}) == {size}, \"size of {perf}\");").unwrap();
        for (field, offset) in [
            ("algo", std::mem::offset_of!(AlgorithmPerf, algorithm)),
            ("status", std::mem::offset_of!(AlgorithmPerf, status)),
            ("time", std::mem::offset_of!(AlgorithmPerf, time)),
            ("memory", std::mem::offset_of!(AlgorithmPerf, memory)),
            ("determinism", std::mem::offset_of!(AlgorithmPerf, determinism)),
            ("mathType", std::mem::offset_of!(AlgorithmPerf, math)),
        ] {
            writeln!(source, "static_assert(offsetof({perf}, {field}) == {offset}, \"{perf}.{field}\");").unwrap();
        }
    }
    if let Err(errors) = compiles(&source, folder.path(), &headers) {
        panic!("{errors}");
    }
    // A wrong signature is seen: this one lacks a parameter.
    source += "static_assert(Sig<decltype(cuMemAlloc_v2)>::is<4, 100>(), \"seen\");\n";
    assert!(compiles(&source, folder.path(), &headers).unwrap_err().contains("seen"));
}

#[test]
fn every_function_is_in_the_libraries_found_here() {
    let path = SearchPath::from_env();
    let told = |what: &str, result: lgm_core::Result<()>| match result {
        Ok(()) => {}
        Err(error) if error.to_string().contains("was not found") => println!("skipped: {what} is absent"),
        Err(error) => panic!("{error}"),
    };
    told("the CUDA driver", DriverApi::load(&path).map(drop));
    told("NVRTC", NvrtcApi::load(&path).map(drop));
    told("cuBLAS", CublasApi::load(&path).map(drop));
    told("cuDNN", CudnnApi::load(&path).map(drop));
}
