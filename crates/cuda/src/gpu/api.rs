//! The functions of NVIDIA's libraries that a GPU run calls, with the types of NVIDIA's headers, and the headers'
//! constants. Where the headers are at hand, a test lets a C++ compiler compare every type and number with them.

use std::ffi::{c_char, c_int, c_void};

use crate::library::{self, Loaded};
use crate::{Component, Found, SearchPath};
use lgm_core::{Error, Result};

/// A handle to something a library owns: a stream, an event, a module, a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Handle(pub(crate) *mut c_void);

impl Handle {
    /// No handle.
    pub(crate) const NULL: Handle = Handle(std::ptr::null_mut());
}

// SAFETY: a handle is a name; the driver's functions may be called with it from any thread, and the handles of cuBLAS
// and cuDNN are kept behind mutexes.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

macro_rules! api {
    ($(#[$doc:meta])* $name:ident of $component:ident { $(fn $function:ident($($type:ty),*) -> $ret:ty;)* }) => {
        $(#[$doc])*
        #[allow(non_snake_case)]
        pub(crate) struct $name {
            $(pub(crate) $function: unsafe extern "C" fn($($type),*) -> $ret,)*
            pub(crate) found: Found,
        }

        impl $name {
            /// Loads the library from the first place that has a usable one; it stays loaded.
            pub(crate) fn load(path: &SearchPath) -> Result<Self> {
                let loaded = library::load(Component::$component, path).map_err(|missing| {
                    Error::config(missing.to_string())
                })?;
                let api = Self::of(&loaded).map_err(|reason| {
                    let (what, file) = (Component::$component.name(), loaded.found.path.display());
                    Error::config(format!("{what} ({file}) cannot be used: {reason}; {}", Component::$component.how_to_get()))
                });
                // Unloading NVIDIA's libraries under their own threads is not safe.
                std::mem::forget(loaded);
                api
            }

            fn of(loaded: &Loaded) -> std::result::Result<Self, String> {
                Ok($name {
                    // SAFETY: the types are those of NVIDIA's headers.
                    $($function: unsafe { loaded.function(stringify!($function)) }?,)*
                    found: loaded.found.clone(),
                })
            }

            #[cfg(test)]
            pub(super) const SIGNATURES: &[(&str, &[i32])] = &[
                $((stringify!($function), &[<$ret as super::abi::Class>::CLASS, $(<$type as super::abi::Class>::CLASS),*]),)*
            ];
        }
    };
}

api! {
    /// cuda.h
    DriverApi of Driver {
        fn cuInit(u32) -> c_int;
        fn cuGetErrorName(c_int, *mut *const c_char) -> c_int;
        fn cuGetErrorString(c_int, *mut *const c_char) -> c_int;
        fn cuDeviceGet(*mut c_int, c_int) -> c_int;
        fn cuDevicePrimaryCtxRetain(*mut Handle, c_int) -> c_int;
        fn cuDevicePrimaryCtxRelease_v2(c_int) -> c_int;
        fn cuCtxSetCurrent(Handle) -> c_int;
        fn cuStreamCreate(*mut Handle, u32) -> c_int;
        fn cuStreamDestroy_v2(Handle) -> c_int;
        fn cuStreamSynchronize(Handle) -> c_int;
        fn cuStreamWaitEvent(Handle, Handle, u32) -> c_int;
        fn cuStreamBeginCapture_v2(Handle, c_int) -> c_int;
        fn cuStreamEndCapture(Handle, *mut Handle) -> c_int;
        fn cuEventCreate(*mut Handle, u32) -> c_int;
        fn cuEventDestroy_v2(Handle) -> c_int;
        fn cuEventRecord(Handle, Handle) -> c_int;
        fn cuEventQuery(Handle) -> c_int;
        fn cuEventSynchronize(Handle) -> c_int;
        fn cuEventElapsedTime(*mut f32, Handle, Handle) -> c_int;
        fn cuMemAlloc_v2(*mut u64, usize) -> c_int;
        fn cuMemFree_v2(u64) -> c_int;
        fn cuMemGetInfo_v2(*mut usize, *mut usize) -> c_int;
        fn cuMemHostAlloc(*mut *mut c_void, usize, u32) -> c_int;
        fn cuMemFreeHost(*mut c_void) -> c_int;
        fn cuMemcpyHtoDAsync_v2(u64, *const c_void, usize, Handle) -> c_int;
        fn cuMemcpyDtoHAsync_v2(*mut c_void, u64, usize, Handle) -> c_int;
        fn cuMemcpyDtoDAsync_v2(u64, u64, usize, Handle) -> c_int;
        fn cuMemsetD8Async(u64, u8, usize, Handle) -> c_int;
        fn cuMemsetD32Async(u64, u32, usize, Handle) -> c_int;
        fn cuModuleLoadData(*mut Handle, *const c_void) -> c_int;
        fn cuModuleUnload(Handle) -> c_int;
        fn cuModuleGetFunction(*mut Handle, Handle, *const c_char) -> c_int;
        fn cuLaunchKernel(Handle, u32, u32, u32, u32, u32, u32, u32, Handle, *mut *mut c_void, *mut *mut c_void) -> c_int;
        fn cuGraphInstantiateWithFlags(*mut Handle, Handle, u64) -> c_int;
        fn cuGraphGetNodes(Handle, *mut Handle, *mut usize) -> c_int;
        fn cuGraphUpload(Handle, Handle) -> c_int;
        fn cuGraphLaunch(Handle, Handle) -> c_int;
        fn cuGraphExecDestroy(Handle) -> c_int;
        fn cuGraphDestroy(Handle) -> c_int;
    }
}

api! {
    /// nvrtc.h
    NvrtcApi of Nvrtc {
        fn nvrtcGetErrorString(c_int) -> *const c_char;
        fn nvrtcGetNumSupportedArchs(*mut c_int) -> c_int;
        fn nvrtcGetSupportedArchs(*mut c_int) -> c_int;
        fn nvrtcCreateProgram(*mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> c_int;
        fn nvrtcDestroyProgram(*mut Handle) -> c_int;
        fn nvrtcCompileProgram(Handle, c_int, *const *const c_char) -> c_int;
        fn nvrtcGetCUBINSize(Handle, *mut usize) -> c_int;
        fn nvrtcGetCUBIN(Handle, *mut c_char) -> c_int;
        fn nvrtcGetProgramLogSize(Handle, *mut usize) -> c_int;
        fn nvrtcGetProgramLog(Handle, *mut c_char) -> c_int;
    }
}

api! {
    /// cublas_api.h
    CublasApi of Cublas {
        fn cublasGetStatusName(c_int) -> *const c_char;
        fn cublasGetStatusString(c_int) -> *const c_char;
        fn cublasCreate_v2(*mut Handle) -> c_int;
        fn cublasDestroy_v2(Handle) -> c_int;
        fn cublasSetStream_v2(Handle, Handle) -> c_int;
        fn cublasSetWorkspace_v2(Handle, *mut c_void, usize) -> c_int;
        fn cublasSetAtomicsMode(Handle, c_int) -> c_int;
        fn cublasSetMathMode(Handle, c_int) -> c_int;
        fn cublasGemmEx_64(
            Handle, c_int, c_int, i64, i64, i64, *const c_void, *const c_void, c_int, i64, *const c_void, c_int, i64,
            *const c_void, *mut c_void, c_int, i64, c_int, c_int
        ) -> c_int;
        fn cublasGemmStridedBatchedEx_64(
            Handle, c_int, c_int, i64, i64, i64, *const c_void, *const c_void, c_int, i64, i64, *const c_void, c_int,
            i64, i64, *const c_void, *mut c_void, c_int, i64, i64, i64, c_int, c_int
        ) -> c_int;
    }
}

api! {
    /// cudnn_ops.h and cudnn_cnn.h
    CudnnApi of Cudnn {
        fn cudnnGetErrorString(c_int) -> *const c_char;
        fn cudnnGetLastErrorString(*mut c_char, usize) -> ();
        fn cudnnCreate(*mut Handle) -> c_int;
        fn cudnnDestroy(Handle) -> c_int;
        fn cudnnSetStream(Handle, Handle) -> c_int;
        fn cudnnCreateTensorDescriptor(*mut Handle) -> c_int;
        fn cudnnDestroyTensorDescriptor(Handle) -> c_int;
        fn cudnnSetTensor4dDescriptor(Handle, c_int, c_int, c_int, c_int, c_int, c_int) -> c_int;
        fn cudnnCreateFilterDescriptor(*mut Handle) -> c_int;
        fn cudnnDestroyFilterDescriptor(Handle) -> c_int;
        fn cudnnSetFilter4dDescriptor(Handle, c_int, c_int, c_int, c_int, c_int, c_int) -> c_int;
        fn cudnnCreateConvolutionDescriptor(*mut Handle) -> c_int;
        fn cudnnDestroyConvolutionDescriptor(Handle) -> c_int;
        fn cudnnSetConvolution2dDescriptor(Handle, c_int, c_int, c_int, c_int, c_int, c_int, c_int, c_int) -> c_int;
        fn cudnnSetConvolutionMathType(Handle, c_int) -> c_int;
        fn cudnnSetConvolutionGroupCount(Handle, c_int) -> c_int;
        fn cudnnGetConvolution2dForwardOutputDim(
            Handle, Handle, Handle, *mut c_int, *mut c_int, *mut c_int, *mut c_int
        ) -> c_int;
        fn cudnnGetConvolutionForwardAlgorithm_v7(
            Handle, Handle, Handle, Handle, Handle, c_int, *mut c_int, *mut AlgorithmPerf
        ) -> c_int;
        fn cudnnGetConvolutionBackwardDataAlgorithm_v7(
            Handle, Handle, Handle, Handle, Handle, c_int, *mut c_int, *mut AlgorithmPerf
        ) -> c_int;
        fn cudnnGetConvolutionBackwardFilterAlgorithm_v7(
            Handle, Handle, Handle, Handle, Handle, c_int, *mut c_int, *mut AlgorithmPerf
        ) -> c_int;
        fn cudnnGetConvolutionForwardWorkspaceSize(Handle, Handle, Handle, Handle, Handle, c_int, *mut usize) -> c_int;
        fn cudnnGetConvolutionBackwardDataWorkspaceSize(
            Handle, Handle, Handle, Handle, Handle, c_int, *mut usize
        ) -> c_int;
        fn cudnnGetConvolutionBackwardFilterWorkspaceSize(
            Handle, Handle, Handle, Handle, Handle, c_int, *mut usize
        ) -> c_int;
        fn cudnnConvolutionForward(
            Handle, *const c_void, Handle, *const c_void, Handle, *const c_void, Handle, c_int, *mut c_void, usize,
            *const c_void, Handle, *mut c_void
        ) -> c_int;
        fn cudnnConvolutionBackwardData(
            Handle, *const c_void, Handle, *const c_void, Handle, *const c_void, Handle, c_int, *mut c_void, usize,
            *const c_void, Handle, *mut c_void
        ) -> c_int;
        fn cudnnConvolutionBackwardFilter(
            Handle, *const c_void, Handle, *const c_void, Handle, *const c_void, Handle, c_int, *mut c_void, usize,
            *const c_void, Handle, *mut c_void
        ) -> c_int;
    }
}

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

macro_rules! constants {
    ($($name:ident = $value:literal;)*) => {
        $(pub(crate) const $name: c_int = $value;)*
        #[cfg(test)]
        pub(super) const CONSTANTS: &[(&str, c_int)] = &[$((stringify!($name), $value),)*];
    };
}

constants! {
    CUDA_ERROR_OUT_OF_MEMORY = 2;
    CUDA_ERROR_DEINITIALIZED = 4;
    CUDA_ERROR_DEVICE_UNAVAILABLE = 46;
    CUDA_ERROR_INVALID_IMAGE = 200;
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209;
    CUDA_ERROR_ECC_UNCORRECTABLE = 214;
    CUDA_ERROR_NVLINK_UNCORRECTABLE = 220;
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222;
    CUDA_ERROR_CONTAINED = 226;
    CUDA_ERROR_NOT_READY = 600;
    CUDA_ERROR_ILLEGAL_ADDRESS = 700;
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701;
    CUDA_ERROR_LAUNCH_TIMEOUT = 702;
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709;
    CUDA_ERROR_ASSERT = 710;
    CUDA_ERROR_HARDWARE_STACK_ERROR = 714;
    CUDA_ERROR_ILLEGAL_INSTRUCTION = 715;
    CUDA_ERROR_MISALIGNED_ADDRESS = 716;
    CUDA_ERROR_INVALID_ADDRESS_SPACE = 717;
    CUDA_ERROR_INVALID_PC = 718;
    CUDA_ERROR_LAUNCH_FAILED = 719;
    CUDA_ERROR_TENSOR_MEMORY_LEAK = 721;
    CUDA_ERROR_SYSTEM_NOT_READY = 802;
    CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803;
    CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE = 804;
    CUDA_ERROR_MPS_CLIENT_TERMINATED = 810;
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900;
    CUDA_ERROR_EXTERNAL_DEVICE = 911;
    CUDA_ERROR_UNKNOWN = 999;
    CU_STREAM_NON_BLOCKING = 1;
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1;
    CU_EVENT_DEFAULT = 0;
    CU_EVENT_DISABLE_TIMING = 2;
    CU_MEMHOSTALLOC_PORTABLE = 1;
    NVRTC_ERROR_COMPILATION = 6;
    CUBLAS_OP_N = 0;
    CUBLAS_OP_T = 1;
    CUBLAS_ATOMICS_NOT_ALLOWED = 0;
    CUBLAS_DEFAULT_MATH = 0;
    CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16;
    CUBLAS_COMPUTE_32F = 68;
    CUBLAS_COMPUTE_32F_FAST_TF32 = 77;
    CUBLAS_GEMM_DEFAULT = -1;
    CUDA_R_32F = 0;
    CUDA_R_16BF = 14;
    CUDNN_STATUS_SUCCESS = 0;
    CUDNN_STATUS_NOT_SUPPORTED = 3000;
    CUDNN_TENSOR_NCHW = 0;
    CUDNN_TENSOR_NHWC = 1;
    CUDNN_DATA_FLOAT = 0;
    CUDNN_DATA_BFLOAT16 = 9;
    CUDNN_CROSS_CORRELATION = 1;
    CUDNN_DETERMINISTIC = 1;
    CUDNN_DEFAULT_MATH = 0;
    CUDNN_TENSOR_OP_MATH = 1;
    CUDNN_FMA_MATH = 3;
}
