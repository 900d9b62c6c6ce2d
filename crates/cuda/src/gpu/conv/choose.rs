//! How a pass is run: cuDNN's algorithms for it, tried on blobs of zeros.

use std::ffi::c_int;
use std::sync::Arc;

use lgm_core::{ConvolutionPass, DeviceConvolution, DevicePtr, Element, Result, Shape};

use super::algorithms::{self, Algorithm, MOST_ALGORITHMS, Trial, workspace_limit};
use super::descriptors::Descriptors;
use super::status::check;
use super::{Choice, Convolutions};
use crate::gpu::api::*;
use crate::gpu::context::{Context, Stream, driver};
use crate::gpu::event::Event;
use crate::{Precision, Refusal};

/// Runs of an algorithm that is timed; the quickest counts.
const TIMED: usize = 3;

impl Convolutions {
    /// The first of cuDNN's algorithms, which it gives fastest first by its own estimate, that is deterministic and not too
    /// greedy and that runs when it is tried; timing them instead may choose otherwise from run to run, and so give other
    /// bits. The reason where there is none.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn choose(
        &self,
        handle: cudnnHandle_t,
        conv: &DeviceConvolution,
        pass: ConvolutionPass,
    ) -> Result<Result<Choice, Refusal>> {
        let precision = match conv.format.element {
            Element::F32 => self.precision.of_product(conv.multiply_adds()),
            _ => self.precision,
        };
        let descriptors = match Descriptors::new(&self.api, conv, precision) {
            Ok(descriptors) => descriptors,
            Err(error) => return Ok(Err(Arc::new(error).into())),
        };
        let algorithms = match self.propose(handle, &descriptors, pass, precision) {
            Ok(algorithms) => algorithms,
            Err(error) => return Ok(Err(Arc::new(error).into())),
        };
        let (proposed, mut reasons) = (algorithms.len(), Vec::new());
        let blobs = Blobs::of(&self.context, conv, pass)?;
        let algorithms = algorithms::tried(algorithms, |algorithm| {
            // A net that holds these blobs will not fit either, and that is an error of its own.
            let Some(blobs) = &blobs else { return Ok(Trial::NoRoom) };
            let trial = self.attempt(handle, &descriptors, (conv, pass), algorithm, blobs)?;
            if let Trial::Refused(error) = &trial {
                reasons.push(format!("{}: {error}", algorithm.name()));
            }
            Ok(trial)
        })?;
        let Some(algorithm) = algorithms.front() else {
            let refused = Refusal::Algorithms { proposed, reasons };
            return Ok(Err(if proposed == 0 { Refusal::NoAlgorithm } else { refused }));
        };
        if let Err(error) = descriptors.set_math(algorithm.math) {
            return Ok(Err(Arc::new(error).into()));
        }
        tracing::debug!(
            "{pass} of {conv} in {precision} by cuDNN's {algorithm}, {} more behind it",
            algorithms.len() - 1
        );
        let workspace = algorithms.iter().map(|algorithm| algorithm.workspace).max().unwrap_or(0);
        Ok(Ok(Choice { descriptors, algorithms, workspace }))
    }

    /// cuDNN's algorithms to run a pass, with the workspace that each wants.
    ///
    /// # Errors
    /// When cuDNN knows none.
    fn propose(
        &self,
        handle: cudnnHandle_t,
        descriptors: &Descriptors,
        pass: ConvolutionPass,
        precision: Precision,
    ) -> Result<Vec<Algorithm>> {
        let [first, second, result] = descriptors.in_order(pass);
        let (get, size) = match pass {
            ConvolutionPass::Forward => {
                (self.api.cudnnGetConvolutionForwardAlgorithm_v7, self.api.cudnnGetConvolutionForwardWorkspaceSize)
            }
            ConvolutionPass::Data => (
                self.api.cudnnGetConvolutionBackwardDataAlgorithm_v7,
                self.api.cudnnGetConvolutionBackwardDataWorkspaceSize,
            ),
            ConvolutionPass::Filter => (
                self.api.cudnnGetConvolutionBackwardFilterAlgorithm_v7,
                self.api.cudnnGetConvolutionBackwardFilterWorkspaceSize,
            ),
        };
        let mut found = [AlgorithmPerf::default(); MOST_ALGORITHMS];
        let mut count = 0;
        // SAFETY: the list has as many places as said; the descriptors are live.
        let status = unsafe {
            get(handle, first, second, descriptors.conv.0, result, found.len() as c_int, &mut count, found.as_mut_ptr())
        };
        check(&self.api, "cudnnGetConvolution…Algorithm_v7", status)?;
        let count = usize::try_from(count).unwrap_or(0).min(found.len());
        let limit = workspace_limit(self.context.gpu.memory);
        let mut algorithms = algorithms::listed(&found[..count], precision, limit);
        algorithms.retain_mut(|algorithm| {
            if descriptors.set_math(algorithm.math).is_err() {
                return false;
            }
            let (conv, number) = (descriptors.conv.0, algorithm.number);
            // SAFETY: the pointer is to a live integer; the descriptors are live.
            let status = unsafe { size(handle, first, second, conv, result, number, &mut algorithm.workspace) };
            status == CUDNN_STATUS_SUCCESS && algorithm.workspace <= limit
        });
        Ok(algorithms)
    }

    /// Runs a pass on blobs of zeros.
    ///
    /// # Errors
    /// When the device fails.
    fn attempt(
        &self,
        handle: cudnnHandle_t,
        descriptors: &Descriptors,
        (conv, pass): (&DeviceConvolution, ConvolutionPass),
        algorithm: Algorithm,
        blobs: &Blobs<'_>,
    ) -> Result<Trial> {
        let Some(workspace) = Block::new(&self.context, algorithm.workspace)? else { return Ok(Trial::NoRoom) };
        if let Err(error) = descriptors.set_math(algorithm.math) {
            return Ok(Trial::Refused(error));
        }
        let run = || {
            let room = (workspace.at, algorithm.workspace);
            self.call(handle, descriptors, (conv, pass), algorithm.number, blobs.result.at, blobs.operands(), room)
        };
        let status = run();
        // Before anything else: an error here is the device's, whatever cuDNN says.
        self.context.finish(Stream::Compute)?;
        if let Err(error) = check(&self.api, "cudnnConvolution…", status) {
            return Ok(Trial::Refused(error));
        }
        if !self.benchmark {
            return Ok(Trial::Ran(None));
        }
        let mut quickest = f32::INFINITY;
        for _ in 0..TIMED {
            let [before, after] = [Event::new(&self.context, true)?, Event::new(&self.context, true)?];
            before.record(Stream::Compute)?;
            let status = run();
            after.record(Stream::Compute)?;
            let time = before.milliseconds_to(&after)?;
            if let Err(error) = check(&self.api, "cudnnConvolution…", status) {
                return Ok(Trial::Refused(error));
            }
            quickest = quickest.min(time);
        }
        Ok(Trial::Ran(Some(quickest)))
    }
}

/// A block of device memory, given back when dropped.
struct Block<'a> {
    context: &'a Context,
    at: DevicePtr,
}

impl<'a> Block<'a> {
    /// A block of zeros; `None` where there is no room for it.
    ///
    /// # Errors
    /// When the device fails.
    fn new(context: &'a Context, bytes: usize) -> Result<Option<Self>> {
        if bytes as u64 > context.free_bytes()?.0 {
            return Ok(None);
        }
        let Ok(at) = context.alloc(bytes) else { return context.make_current().map(|()| None) };
        let block = Block { context, at };
        if bytes > 0 {
            driver!(context, cuMemsetD8Async(at.0, 0, bytes, context.stream(Stream::Compute)))?;
        }
        Ok(Some(block))
    }
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        // What a failed device holds is gone with it.
        let _ = self.context.free(self.at);
    }
}

/// Blobs to try a pass on.
struct Blobs<'a> {
    first: Block<'a>,
    second: Block<'a>,
    result: Block<'a>,
}

impl<'a> Blobs<'a> {
    /// `None` where there is no room for them.
    ///
    /// # Errors
    /// When the device fails.
    fn of(context: &'a Context, conv: &DeviceConvolution, pass: ConvolutionPass) -> Result<Option<Self>> {
        let [x, w, y] = conv.shapes();
        let ([first, second], result) = match pass {
            ConvolutionPass::Forward => ([x, w], y),
            ConvolutionPass::Data => ([y, w], x),
            ConvolutionPass::Filter => ([x, y], w),
        };
        let block = |shape: Shape| Block::new(context, conv.format.bytes(&shape));
        let (Some(first), Some(second), Some(result)) = (block(first)?, block(second)?, block(result)?) else {
            return Ok(None);
        };
        Ok(Some(Blobs { first, second, result }))
    }

    fn operands(&self) -> [DevicePtr; 2] {
        [self.first.at, self.second.at]
    }
}
