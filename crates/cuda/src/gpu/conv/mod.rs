//! Convolutions by cuDNN, where it is there.

mod algorithms;
mod choose;
mod descriptors;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use lgm_core::{ConvolutionPass, DeviceConvolution, DevicePtr, Error, Result};

use crate::gpu::api::*;
use crate::gpu::context::{Context, Stream};
use crate::{Found, Precision, Refusal};
use algorithms::Algorithm;
use descriptors::Descriptors;
use status::{check, in_order};

/// The variable that has cuDNN's algorithms timed when it is 1.
const BENCHMARK: &str = "LGM_CUDNN_BENCHMARK";

pub(crate) struct Convolutions {
    context: Arc<Context>,
    api: Arc<CudnnApi>,
    precision: Precision,
    /// Algorithms are timed.
    benchmark: bool,
    // cuDNN wants one caller of a handle at a time.
    state: Mutex<State>,
}

struct State {
    handle: Handle<cudnn::cudnnContext>,
    /// How each pass is run, or why cuDNN does not do it.
    choices: HashMap<(DeviceConvolution, ConvolutionPass), Result<Choice, Refusal>>,
}

/// How to run one pass of one convolution.
struct Choice {
    descriptors: Descriptors,
    /// Algorithms for it, the one that is taken first; the others are for when cuDNN does not support it after all.
    algorithms: VecDeque<Algorithm>,
    /// Bytes, enough for all of them.
    workspace: usize,
}

impl Convolutions {
    pub(crate) fn new(context: &Arc<Context>, api: CudnnApi, precision: Precision) -> Result<Self> {
        context.make_current()?;
        let state = Mutex::new(State { handle: Handle::NULL, choices: HashMap::new() });
        let benchmark = std::env::var_os(BENCHMARK).is_some_and(|value| value == "1");
        let all = Convolutions { context: context.clone(), api: Arc::new(api), precision, benchmark, state };
        let mut handle = Handle::NULL;
        // SAFETY, of both calls: types are the header's, pointers and handles are live.
        check(&all.api, "cudnnCreate", unsafe { (all.api.cudnnCreate)(&mut handle.0) })?;
        all.state.lock().unwrap_or_else(PoisonError::into_inner).handle = handle;
        let stream = context.stream(Stream::Compute);
        check(&all.api, "cudnnSetStream", unsafe { (all.api.cudnnSetStream)(handle.0, stream) })?;
        Ok(all)
    }

    /// Where cuDNN is.
    pub(crate) fn found(&self) -> &Found {
        &self.api.found
    }

    pub(crate) fn workspace(&self, conv: &DeviceConvolution, pass: ConvolutionPass) -> Result<Option<usize>> {
        self.context.make_current()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.choices.contains_key(&(*conv, pass)) {
            let choice = self.choose(state.handle.0, conv, pass)?;
            state.choices.insert((*conv, pass), choice);
        }
        let choice = state.choices.get(&(*conv, pass));
        Ok(choice.and_then(|choice| choice.as_ref().ok()).map(|choice| choice.workspace))
    }

    /// The algorithm that a planned pass takes, or why cuDNN does not do it; `None` for one that was not planned.
    pub(crate) fn taken(&self, conv: &DeviceConvolution, pass: ConvolutionPass) -> Option<Result<String, Refusal>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let name = |choice: &Choice| choice.algorithms.front().map(Algorithm::name).unwrap_or_default();
        state.choices.get(&(*conv, pass)).map(|choice| choice.as_ref().map(name).map_err(Refusal::clone))
    }

    /// Puts a pass on the queue; cuDNN's status.
    #[allow(clippy::too_many_arguments)]
    fn call(
        &self,
        handle: cudnnHandle_t,
        descriptors: &Descriptors,
        (conv, pass): (&DeviceConvolution, ConvolutionPass),
        algorithm: c_int,
        result: DevicePtr,
        operands: [DevicePtr; 2],
        (workspace, bytes): (DevicePtr, usize),
    ) -> c_int {
        let [first, second] = in_order(pass, operands);
        let [d_first, d_second, d_result] = descriptors.in_order(pass);
        let run = match pass {
            ConvolutionPass::Forward => self.api.cudnnConvolutionForward,
            ConvolutionPass::Data => self.api.cudnnConvolutionBackwardData,
            ConvolutionPass::Filter => self.api.cudnnConvolutionBackwardFilter,
        };
        let at = |ptr: DevicePtr| ptr.0 as *const c_void;
        let factors = [1.0f32, kept(conv, pass)];
        let (alpha, beta): (*const f32, *const f32) = (&factors[0], &factors[1]);
        // SAFETY: the factors live through the call; the blobs are the caller's, of the geometry's extents, and the
        // workspace is as long as is said.
        unsafe {
            run(
                handle,
                alpha.cast(),
                d_first,
                at(first),
                d_second,
                at(second),
                descriptors.conv.0,
                algorithm,
                at(workspace).cast_mut(),
                bytes,
                beta.cast(),
                d_result,
                at(result).cast_mut(),
            )
        }
    }

    pub(crate) fn run(
        &self,
        conv: &DeviceConvolution,
        pass: ConvolutionPass,
        result: DevicePtr,
        operands: [DevicePtr; 2],
        workspace: DevicePtr,
    ) -> Result<()> {
        self.context.make_current()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = state.handle.0;
        let unplanned = || Error::internal(format!("{pass} of {conv} was not planned with cuDNN"));
        let choice = state.choices.get_mut(&(*conv, pass)).and_then(|choice| choice.as_mut().ok());
        let choice = choice.ok_or_else(unplanned)?;
        loop {
            let algorithm = *choice.algorithms.front().ok_or_else(unplanned)?;
            let room = (workspace, choice.workspace);
            let status = self.call(handle, &choice.descriptors, (conv, pass), algorithm.number, result, operands, room);
            let done = check(&self.api, "cudnnConvolution…", status)
                .map_err(|error| error.while_doing(format_args!("{pass} of {conv}")));
            // cuDNN may refuse what it proposed itself; nothing has run then.
            let refused = status / 1000 == CUDNN_STATUS_NOT_SUPPORTED / 1000;
            match (done, choice.algorithms.get(1)) {
                (Err(error), Some(next)) if refused => {
                    tracing::warn!("{error}: its next algorithm is taken");
                    choice.descriptors.set_math(next.math)?;
                    choice.algorithms.pop_front();
                }
                (done, _) => return done,
            }
        }
    }
}

impl Drop for Convolutions {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !state.handle.is_null() && self.context.make_current().is_ok() {
            // SAFETY: the handle is alive and not used again.
            unsafe { (self.api.cudnnDestroy)(state.handle.0) };
        }
    }
}

/// The factor on what the result holds: filter gradients are added to, where they are the parameter's own.
fn kept(conv: &DeviceConvolution, pass: ConvolutionPass) -> f32 {
    match pass {
        ConvolutionPass::Filter if conv.has_plain_filters() => 1.0,
        _ => 0.0,
    }
}
