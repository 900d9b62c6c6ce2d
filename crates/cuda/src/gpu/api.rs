//! The functions of NVIDIA's libraries that a GPU run calls, loaded from where they were found.
//!
//! Types and constants are cudarc's, generated from NVIDIA's headers: a declaration that differs from its does not compile.
//! Its own loader is not used: it panics where a library or a function is missing, takes a file of the right name from
//! wherever the system's loader has one rather than the one that was found, and reads statuses as enumerations, which a
//! newer library's may not fit.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::mem::{offset_of, size_of};

pub(crate) use cudarc::cublas::sys as cublas;
pub(crate) use cudarc::cudnn::sys as cudnn;
pub(crate) use cudarc::driver::sys as driver;
use cudarc::nvrtc::sys as nvrtc;

pub(crate) use cublas::cublasHandle_t;
pub(crate) use cudnn::cudnnHandle_t;
pub(crate) use driver::{CUcontext, CUevent, CUfunction, CUgraph, CUgraphExec, CUmodule, CUstream};
pub(crate) use nvrtc::nvrtcProgram;

use cublas::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType};
use cudnn::{
    cudnnConvolutionBwdDataAlgo_t, cudnnConvolutionBwdFilterAlgo_t, cudnnConvolutionDescriptor_t,
    cudnnConvolutionFwdAlgo_t, cudnnConvolutionMode_t, cudnnDataType_t, cudnnFilterDescriptor_t,
    cudnnTensorDescriptor_t, cudnnTensorFormat_t,
};

use crate::locate::{self, Loaded};
use crate::{Component, Found, SearchPath};
use lgm_core::{Error, Result};

/// A handle to something a library owns, which any thread may use: a stream, an event, a module, a descriptor.
#[repr(transparent)]
pub(crate) struct Handle<T>(pub(crate) *mut T);

impl<T> Handle<T> {
    /// No handle.
    pub(crate) const NULL: Self = Handle(std::ptr::null_mut());

    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Handle<T> {}

// SAFETY: a handle is a name; the driver's functions may be called with it from any thread, and the handles of cuBLAS
// and cuDNN are kept behind mutexes.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Handle<T> {}

/// Functions of a library.
pub(crate) trait Api: Sized {
    /// The library.
    const COMPONENT: Component;

    /// The functions of one that was loaded, or what it lacks.
    fn of(loaded: &Loaded) -> std::result::Result<Self, String>;

    /// Loads the library from the first place that has a usable one; it stays loaded.
    fn load(path: &SearchPath) -> Result<Self> {
        let component = Self::COMPONENT;
        let loaded = locate::load(component, path).map_err(|missing| Error::device(missing.to_string()))?;
        let api = Self::of(&loaded).map_err(|reason| {
            let (what, file, how) = (component.name(), loaded.found.path.display(), component.how_to_get());
            Error::device(format!("{what} ({file}) cannot be used: {reason}; {how}"))
        });
        // Unloading NVIDIA's libraries under their own threads is not safe.
        std::mem::forget(loaded);
        api
    }
}

/// A parameter's type as our code gives it, where that is not the header's.
macro_rules! taken {
    ($type:ty,) => {
        $type
    };
    ($type:ty, $as:ty) => {
        $as
    };
}
/// What a function gives back as our code takes it: a status as the number it is, since a library newer than its bindings
/// may give one that their enumerations lack.
macro_rules! given {
    () => {
        c_int
    };
    ($type:ty) => {
        $type
    };
}
/// The same in the header.
macro_rules! given_there {
    ($status:ty,) => {
        $status
    };
    ($status:ty, $type:ty) => {
        $type
    };
}
/// The header's function of a name, or a newer one in its place.
macro_rules! there {
    ($sys:ident, $function:ident) => {
        $sys::$function
    };
    ($sys:ident, $function:ident $newer:ident) => {
        $sys::$newer
    };
}

/// Functions of a library and the type of its status, which they give unless another is written. `A as B` is a parameter
/// of the header's type A for which our code gives a B, and `f like g` a function with the type of another that took its
/// place in newer headers.
macro_rules! api {
    ($(#[$doc:meta])* $name:ident of $component:ident in $sys:ident, giving $status:ident {
        $(fn $function:ident $(like $newer:ident)? ($($type:ty $(as $as:ty)?),*) $(-> $ret:ty)?;)*
    }) => {
        $(#[$doc])*
        #[allow(non_snake_case)]
        pub(crate) struct $name {
            $(pub(crate) $function: unsafe extern "C" fn($(taken!($type, $($as)?)),*) -> given!($($ret)?),)*
            pub(crate) found: Found,
        }

        $(
            const _: unsafe fn($($type),*) -> given_there!($sys::$status, $($ret)?) = there!($sys, $function $($newer)?);
            $($(const _: () = assert!(size_of::<$type>() == size_of::<$as>());)?)*
        )*
        const _: () = assert!(size_of::<$sys::$status>() == size_of::<c_int>());

        impl Api for $name {
            const COMPONENT: Component = Component::$component;

            fn of(loaded: &Loaded) -> std::result::Result<Self, String> {
                Ok($name {
                    // SAFETY: the types are the header's, but for numbers in place of enumerations, which are as wide.
                    $($function: unsafe { loaded.function(stringify!($function)) }?,)*
                    found: loaded.found.clone(),
                })
            }
        }
    };
}

api! {
    /// cuda.h: what lists devices and names errors, which drivers too old to run on have too.
    DriverApi of Driver in driver, giving CUresult {
        fn cuInit(u32);
        fn cuGetErrorName(driver::CUresult as c_int, *mut *const c_char);
        fn cuGetErrorString(driver::CUresult as c_int, *mut *const c_char);
        fn cuDeviceGetCount(*mut c_int);
        fn cuDeviceGet(*mut c_int, c_int);
        fn cuDeviceGetName(*mut c_char, c_int, c_int);
        fn cuDeviceTotalMem_v2(*mut usize, c_int);
        fn cuDeviceGetAttribute(*mut c_int, driver::CUdevice_attribute, c_int);
    }
}

api! {
    /// cuda.h: what runs work.
    RunApi of Driver in driver, giving CUresult {
        fn cuDevicePrimaryCtxRetain(*mut CUcontext, c_int);
        fn cuDevicePrimaryCtxRelease_v2(c_int);
        fn cuCtxSetCurrent(CUcontext);
        fn cuStreamCreate(*mut CUstream, u32);
        fn cuStreamDestroy_v2(CUstream);
        fn cuStreamSynchronize(CUstream);
        fn cuStreamWaitEvent(CUstream, CUevent, u32);
        fn cuStreamBeginCapture_v2(CUstream, driver::CUstreamCaptureMode);
        fn cuStreamEndCapture(CUstream, *mut CUgraph);
        fn cuEventCreate(*mut CUevent, u32);
        fn cuEventDestroy_v2(CUevent);
        fn cuEventRecord(CUevent, CUstream);
        fn cuEventQuery(CUevent);
        fn cuEventSynchronize(CUevent);
        fn cuEventElapsedTime like cuEventElapsedTime_v2 (*mut f32, CUevent, CUevent);
        fn cuMemAlloc_v2(*mut u64, usize);
        fn cuMemFree_v2(u64);
        fn cuMemGetInfo_v2(*mut usize, *mut usize);
        fn cuMemHostAlloc(*mut *mut c_void, usize, u32);
        fn cuMemFreeHost(*mut c_void);
        fn cuMemcpyHtoDAsync_v2(u64, *const c_void, usize, CUstream);
        fn cuMemcpyDtoHAsync_v2(*mut c_void, u64, usize, CUstream);
        fn cuMemcpyDtoDAsync_v2(u64, u64, usize, CUstream);
        fn cuMemsetD8Async(u64, u8, usize, CUstream);
        fn cuMemsetD32Async(u64, u32, usize, CUstream);
        fn cuModuleLoadData(*mut CUmodule, *const c_void);
        fn cuModuleUnload(CUmodule);
        fn cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
        fn cuLaunchKernel(CUfunction, u32, u32, u32, u32, u32, u32, u32, CUstream, *mut *mut c_void, *mut *mut c_void);
        fn cuGraphInstantiateWithFlags(*mut CUgraphExec, CUgraph, u64);
        fn cuGraphGetNodes(CUgraph, *mut driver::CUgraphNode, *mut usize);
        fn cuGraphUpload(CUgraphExec, CUstream);
        fn cuGraphLaunch(CUgraphExec, CUstream);
        fn cuGraphExecDestroy(CUgraphExec);
        fn cuGraphDestroy(CUgraph);
    }
}

api! {
    /// nvrtc.h
    NvrtcApi of Nvrtc in nvrtc, giving nvrtcResult {
        fn nvrtcGetErrorString(nvrtc::nvrtcResult as c_int) -> *const c_char;
        fn nvrtcGetNumSupportedArchs(*mut c_int);
        fn nvrtcGetSupportedArchs(*mut c_int);
        fn nvrtcCreateProgram(
            *mut nvrtcProgram, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
        );
        fn nvrtcDestroyProgram(*mut nvrtcProgram);
        fn nvrtcCompileProgram(nvrtcProgram, c_int, *const *const c_char);
        fn nvrtcGetCUBINSize(nvrtcProgram, *mut usize);
        fn nvrtcGetCUBIN(nvrtcProgram, *mut c_char);
        fn nvrtcGetProgramLogSize(nvrtcProgram, *mut usize);
        fn nvrtcGetProgramLog(nvrtcProgram, *mut c_char);
    }
}

api! {
    /// cublas_api.h
    CublasApi of Cublas in cublas, giving cublasStatus_t {
        fn cublasGetStatusName(cublas::cublasStatus_t as c_int) -> *const c_char;
        fn cublasGetStatusString(cublas::cublasStatus_t as c_int) -> *const c_char;
        fn cublasCreate_v2(*mut cublasHandle_t);
        fn cublasDestroy_v2(cublasHandle_t);
        fn cublasSetStream_v2(cublasHandle_t, cublas::cudaStream_t as CUstream);
        fn cublasSetWorkspace_v2(cublasHandle_t, *mut c_void, usize);
        fn cublasSetAtomicsMode(cublasHandle_t, cublas::cublasAtomicsMode_t);
        fn cublasSetMathMode(cublasHandle_t, cublas::cublasMath_t);
        fn cublasGemmEx_64(
            cublasHandle_t, cublasOperation_t, cublasOperation_t, i64, i64, i64, *const c_void, *const c_void,
            cudaDataType, i64, *const c_void, cudaDataType, i64, *const c_void, *mut c_void, cudaDataType, i64,
            cublasComputeType_t, cublasGemmAlgo_t
        );
        fn cublasGemmStridedBatchedEx_64(
            cublasHandle_t, cublasOperation_t, cublasOperation_t, i64, i64, i64, *const c_void, *const c_void,
            cudaDataType, i64, i64, *const c_void, cudaDataType, i64, i64, *const c_void, *mut c_void, cudaDataType,
            i64, i64, i64, cublasComputeType_t, cublasGemmAlgo_t
        );
    }
}

api! {
    /// cudnn_ops.h and cudnn_cnn.h
    CudnnApi of Cudnn in cudnn, giving cudnnStatus_t {
        fn cudnnGetErrorString(cudnn::cudnnStatus_t as c_int) -> *const c_char;
        fn cudnnGetLastErrorString(*mut c_char, usize) -> ();
        fn cudnnCreate(*mut cudnnHandle_t);
        fn cudnnDestroy(cudnnHandle_t);
        fn cudnnSetStream(cudnnHandle_t, cudnn::cudaStream_t as CUstream);
        fn cudnnCreateTensorDescriptor(*mut cudnnTensorDescriptor_t);
        fn cudnnDestroyTensorDescriptor(cudnnTensorDescriptor_t);
        fn cudnnSetTensor4dDescriptor(
            cudnnTensorDescriptor_t, cudnnTensorFormat_t, cudnnDataType_t, c_int, c_int, c_int, c_int
        );
        fn cudnnCreateFilterDescriptor(*mut cudnnFilterDescriptor_t);
        fn cudnnDestroyFilterDescriptor(cudnnFilterDescriptor_t);
        fn cudnnSetFilter4dDescriptor(
            cudnnFilterDescriptor_t, cudnnDataType_t, cudnnTensorFormat_t, c_int, c_int, c_int, c_int
        );
        fn cudnnCreateConvolutionDescriptor(*mut cudnnConvolutionDescriptor_t);
        fn cudnnDestroyConvolutionDescriptor(cudnnConvolutionDescriptor_t);
        fn cudnnSetConvolution2dDescriptor(
            cudnnConvolutionDescriptor_t, c_int, c_int, c_int, c_int, c_int, c_int, cudnnConvolutionMode_t,
            cudnnDataType_t
        );
        fn cudnnSetConvolutionMathType(cudnnConvolutionDescriptor_t, cudnn::cudnnMathType_t as c_int);
        fn cudnnSetConvolutionGroupCount(cudnnConvolutionDescriptor_t, c_int);
        fn cudnnGetConvolution2dForwardOutputDim(
            cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t, cudnnFilterDescriptor_t, *mut c_int, *mut c_int,
            *mut c_int, *mut c_int
        );
        fn cudnnGetConvolutionForwardAlgorithm_v7(
            cudnnHandle_t, cudnnTensorDescriptor_t as AnyDescriptor, cudnnFilterDescriptor_t as AnyDescriptor,
            cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t as AnyDescriptor, c_int, *mut c_int,
            *mut cudnn::cudnnConvolutionFwdAlgoPerf_t as *mut AlgorithmPerf
        );
        fn cudnnGetConvolutionBackwardDataAlgorithm_v7(
            cudnnHandle_t, cudnnFilterDescriptor_t as AnyDescriptor, cudnnTensorDescriptor_t as AnyDescriptor,
            cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t as AnyDescriptor, c_int, *mut c_int,
            *mut cudnn::cudnnConvolutionBwdDataAlgoPerf_t as *mut AlgorithmPerf
        );
        fn cudnnGetConvolutionBackwardFilterAlgorithm_v7(
            cudnnHandle_t, cudnnTensorDescriptor_t as AnyDescriptor, cudnnTensorDescriptor_t as AnyDescriptor,
            cudnnConvolutionDescriptor_t, cudnnFilterDescriptor_t as AnyDescriptor, c_int, *mut c_int,
            *mut cudnn::cudnnConvolutionBwdFilterAlgoPerf_t as *mut AlgorithmPerf
        );
        fn cudnnGetConvolutionForwardWorkspaceSize(
            cudnnHandle_t, cudnnTensorDescriptor_t as AnyDescriptor, cudnnFilterDescriptor_t as AnyDescriptor,
            cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t as AnyDescriptor,
            cudnnConvolutionFwdAlgo_t as c_int, *mut usize
        );
        fn cudnnGetConvolutionBackwardDataWorkspaceSize(
            cudnnHandle_t, cudnnFilterDescriptor_t as AnyDescriptor, cudnnTensorDescriptor_t as AnyDescriptor,
            cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t as AnyDescriptor,
            cudnnConvolutionBwdDataAlgo_t as c_int, *mut usize
        );
        fn cudnnGetConvolutionBackwardFilterWorkspaceSize(
            cudnnHandle_t, cudnnTensorDescriptor_t as AnyDescriptor, cudnnTensorDescriptor_t as AnyDescriptor,
            cudnnConvolutionDescriptor_t, cudnnFilterDescriptor_t as AnyDescriptor,
            cudnnConvolutionBwdFilterAlgo_t as c_int, *mut usize
        );
        fn cudnnConvolutionForward(
            cudnnHandle_t, *const c_void, cudnnTensorDescriptor_t as AnyDescriptor, *const c_void,
            cudnnFilterDescriptor_t as AnyDescriptor, *const c_void, cudnnConvolutionDescriptor_t,
            cudnnConvolutionFwdAlgo_t as c_int, *mut c_void, usize, *const c_void,
            cudnnTensorDescriptor_t as AnyDescriptor, *mut c_void
        );
        fn cudnnConvolutionBackwardData(
            cudnnHandle_t, *const c_void, cudnnFilterDescriptor_t as AnyDescriptor, *const c_void,
            cudnnTensorDescriptor_t as AnyDescriptor, *const c_void, cudnnConvolutionDescriptor_t,
            cudnnConvolutionBwdDataAlgo_t as c_int, *mut c_void, usize, *const c_void,
            cudnnTensorDescriptor_t as AnyDescriptor, *mut c_void
        );
        fn cudnnConvolutionBackwardFilter(
            cudnnHandle_t, *const c_void, cudnnTensorDescriptor_t as AnyDescriptor, *const c_void,
            cudnnTensorDescriptor_t as AnyDescriptor, *const c_void, cudnnConvolutionDescriptor_t,
            cudnnConvolutionBwdFilterAlgo_t as c_int, *mut c_void, usize, *const c_void,
            cudnnFilterDescriptor_t as AnyDescriptor, *mut c_void
        );
    }
}

/// A driver's error code, with its name and meaning where the driver gives them.
pub(crate) struct Code {
    pub(crate) number: c_int,
    pub(crate) name: Option<String>,
    pub(crate) meaning: Option<String>,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, &self.meaning) {
            (Some(name), Some(meaning)) => write!(f, "{name} ({}: {meaning})", self.number),
            (Some(name), None) => write!(f, "{name} ({})", self.number),
            _ => write!(f, "code {}", self.number),
        }
    }
}

impl DriverApi {
    /// What the driver says of a status other than success.
    pub(crate) fn code(&self, number: c_int) -> Code {
        let text = |get: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = std::ptr::null();
            // SAFETY: the text that the driver gives is static.
            unsafe {
                (get(number, &mut text) == 0 && !text.is_null())
                    .then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        Code { number, name: text(self.cuGetErrorName), meaning: text(self.cuGetErrorString) }
    }
}

/// A descriptor of a tensor or of filters: which of the two, the pass decides.
pub(crate) type AnyDescriptor = *mut c_void;

/// What cuDNN says of one way to run a convolution; the same layout for all three passes.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct AlgorithmPerf {
    pub(crate) algorithm: c_int,
    pub(crate) status: c_int,
    pub(crate) time: f32,
    pub(crate) memory: usize,
    pub(crate) determinism: c_int,
    pub(crate) math: c_int,
    pub(crate) reserved: [c_int; 3],
}

macro_rules! same_layout {
    ($($theirs:ty),+) => { $(
        const _: () = assert!(
            size_of::<AlgorithmPerf>() == size_of::<$theirs>()
                && offset_of!(AlgorithmPerf, algorithm) == offset_of!($theirs, algo)
                && offset_of!(AlgorithmPerf, status) == offset_of!($theirs, status)
                && offset_of!(AlgorithmPerf, time) == offset_of!($theirs, time)
                && offset_of!(AlgorithmPerf, memory) == offset_of!($theirs, memory)
                && offset_of!(AlgorithmPerf, determinism) == offset_of!($theirs, determinism)
                && offset_of!(AlgorithmPerf, math) == offset_of!($theirs, mathType)
        );
    )+ };
}
same_layout!(
    cudnn::cudnnConvolutionFwdAlgoPerf_t,
    cudnn::cudnnConvolutionBwdDataAlgoPerf_t,
    cudnn::cudnnConvolutionBwdFilterAlgoPerf_t
);

/// Codes that are compared with what a library gave, as numbers.
macro_rules! codes {
    ($($of:path { $($name:ident),+ $(,)? })+) => { $($(
        pub(crate) const $name: c_int = { use $of as Of; Of::$name as c_int };
    )+)+ };
}
codes! {
    driver::CUresult {
        CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_DEINITIALIZED, CUDA_ERROR_DEVICE_UNAVAILABLE, CUDA_ERROR_INVALID_IMAGE,
        CUDA_ERROR_NO_BINARY_FOR_GPU, CUDA_ERROR_ECC_UNCORRECTABLE, CUDA_ERROR_NVLINK_UNCORRECTABLE,
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION, CUDA_ERROR_CONTAINED, CUDA_ERROR_NOT_READY, CUDA_ERROR_ILLEGAL_ADDRESS,
        CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, CUDA_ERROR_LAUNCH_TIMEOUT, CUDA_ERROR_CONTEXT_IS_DESTROYED, CUDA_ERROR_ASSERT,
        CUDA_ERROR_HARDWARE_STACK_ERROR, CUDA_ERROR_ILLEGAL_INSTRUCTION, CUDA_ERROR_MISALIGNED_ADDRESS,
        CUDA_ERROR_INVALID_ADDRESS_SPACE, CUDA_ERROR_INVALID_PC, CUDA_ERROR_LAUNCH_FAILED, CUDA_ERROR_TENSOR_MEMORY_LEAK,
        CUDA_ERROR_SYSTEM_NOT_READY, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE,
        CUDA_ERROR_MPS_CLIENT_TERMINATED, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
        CUDA_ERROR_EXTERNAL_DEVICE, CUDA_ERROR_UNKNOWN,
    }
    nvrtc::nvrtcResult { NVRTC_ERROR_COMPILATION }
    cudnn::cudnnStatus_t { CUDNN_STATUS_SUCCESS, CUDNN_STATUS_NOT_SUPPORTED }
    cudnn::cudnnDeterminism_t { CUDNN_DETERMINISTIC }
    cudnn::cudnnMathType_t { CUDNN_DEFAULT_MATH, CUDNN_TENSOR_OP_MATH, CUDNN_FMA_MATH }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_is_in_the_libraries_found_here() {
        let path = SearchPath::from_env();
        let report = |what: Component, result: Result<()>| match result {
            Ok(()) => {}
            Err(error) if error.to_string().contains("was not found") => println!("skipped: {} is absent", what.name()),
            Err(error) => panic!("{error}"),
        };
        report(Component::Driver, DriverApi::load(&path).map(drop));
        report(Component::Driver, RunApi::load(&path).map(drop));
        report(Component::Nvrtc, NvrtcApi::load(&path).map(drop));
        report(Component::Cublas, CublasApi::load(&path).map(drop));
        report(Component::Cudnn, CudnnApi::load(&path).map(drop));
    }
}
