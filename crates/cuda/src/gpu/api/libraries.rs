//! The functions and codes of each library.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::mem::{offset_of, size_of};

use super::cublas::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType};
use super::cudnn::{
    cudnnConvolutionBwdDataAlgo_t, cudnnConvolutionBwdFilterAlgo_t, cudnnConvolutionDescriptor_t,
    cudnnConvolutionFwdAlgo_t, cudnnConvolutionMode_t, cudnnDataType_t, cudnnFilterDescriptor_t,
    cudnnTensorDescriptor_t, cudnnTensorFormat_t,
};

use super::*;

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

/// What cuDNN says of one algorithm for a convolution; the same layout for all three passes.
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
