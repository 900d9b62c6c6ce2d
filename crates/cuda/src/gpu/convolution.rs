//! Convolutions by cuDNN, where it is there.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use lgm_core::{ConvolutionPass, DeviceConvolution, DevicePtr, Element, Error, Result};

use super::api::*;
use super::context::{Context, Stream, driver};
use super::descriptors::{Descriptors, Geometry};
use super::event::Event;
use super::ways::{self, MOST_ALGORITHMS, Trial, Way, workspace_limit};
use crate::{Found, Precision};

/// The variable that has cuDNN's ways timed when it is 1.
const BENCHMARK: &str = "LGM_CUDNN_BENCHMARK";

/// Runs of a way that is timed; the quickest counts.
const TIMED: usize = 3;

pub(crate) struct Convolutions {
    context: Arc<Context>,
    api: Arc<CudnnApi>,
    precision: Precision,
    /// Ways are timed.
    benchmark: bool,
    // cuDNN wants one caller of a handle at a time.
    state: Mutex<State>,
}

struct State {
    handle: Handle<cudnn::cudnnContext>,
    /// How each pass is run, or why cuDNN does not do it.
    choices: HashMap<(DeviceConvolution, ConvolutionPass), Result<Choice, String>>,
}

/// How to run one pass of one convolution.
struct Choice {
    descriptors: Descriptors,
    /// Ways to run it, the one that is taken first; the others are for when cuDNN does not support it after all.
    ways: VecDeque<Way>,
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

    /// The way that a planned pass takes, or why cuDNN does not do it; `None` for one that was not planned.
    pub(crate) fn taken(&self, conv: &DeviceConvolution, pass: ConvolutionPass) -> Option<Result<String, String>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let name = |choice: &Choice| choice.ways.front().map(Way::name).unwrap_or_default();
        state.choices.get(&(*conv, pass)).map(|choice| choice.as_ref().map(name).map_err(String::clone))
    }

    /// The first of cuDNN's ways, which it gives fastest first by its own estimate, that is deterministic and not too
    /// greedy and that runs when it is tried; timing them instead may choose otherwise from run to run, and so give other
    /// bits. The reason where there is none.
    ///
    /// # Errors
    /// When the device fails.
    fn choose(
        &self,
        handle: cudnnHandle_t,
        conv: &DeviceConvolution,
        pass: ConvolutionPass,
    ) -> Result<Result<Choice, String>> {
        let Some(geometry) = Geometry::of(conv) else { return Ok(Err("it is too large for cuDNN".into())) };
        let precision = match conv.format.element {
            Element::F32 => self.precision.of_product(conv.multiply_adds()),
            _ => self.precision,
        };
        let descriptors = match self.describe(&geometry, conv, precision) {
            Ok(descriptors) => descriptors,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let ways = match self.propose(handle, &descriptors, pass, precision) {
            Ok(ways) => ways,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let (proposed, mut refusals) = (ways.len(), Vec::new());
        let blobs = Blobs::of(&self.context, conv, pass)?;
        let ways = ways::tried(ways, |way| {
            // A net that holds these blobs will not fit either, which is told then.
            let Some(blobs) = &blobs else { return Ok(Trial::NoRoom) };
            let trial = self.attempt(handle, &descriptors, (conv, pass), way, blobs)?;
            if let Trial::Refused(error) = &trial {
                refusals.push(format!("{}: {error}", way.name()));
            }
            Ok(trial)
        })?;
        let Some(way) = ways.front() else {
            let each = refusals.iter().map(|refusal| format!("\n  {refusal}"));
            let refused = format!("it refuses all of the {proposed} deterministic ones{}", each.collect::<String>());
            return Ok(Err(if proposed == 0 { "it has no deterministic way".into() } else { refused }));
        };
        if let Err(error) = descriptors.set_math(way.math) {
            return Ok(Err(error.to_string()));
        }
        tracing::debug!("{pass} of {conv} in {precision} by cuDNN's {way}, {} more behind it", ways.len() - 1);
        let workspace = ways.iter().map(|way| way.workspace).max().unwrap_or(0);
        Ok(Ok(Choice { descriptors, ways, workspace }))
    }

    /// # Errors
    /// When cuDNN refuses the convolution, or has its output other extents.
    fn describe(&self, geometry: &Geometry, conv: &DeviceConvolution, precision: Precision) -> Result<Descriptors> {
        let descriptors = Descriptors::new(&self.api, geometry, conv.format, precision)?;
        let output = descriptors.output()?;
        lgm_core::ensure!(output == geometry.y, "cuDNN gives the output the extents {output:?}");
        Ok(descriptors)
    }

    /// cuDNN's ways to run a pass, with the workspace that each wants.
    ///
    /// # Errors
    /// When cuDNN knows none.
    fn propose(
        &self,
        handle: cudnnHandle_t,
        descriptors: &Descriptors,
        pass: ConvolutionPass,
        precision: Precision,
    ) -> Result<Vec<Way>> {
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
        let mut ways = ways::listed(&found[..count], precision, limit);
        ways.retain_mut(|way| {
            if descriptors.set_math(way.math).is_err() {
                return false;
            }
            let (conv, algorithm) = (descriptors.conv.0, way.algorithm);
            // SAFETY: the pointer is to a live integer; the descriptors are live.
            let status = unsafe { size(handle, first, second, conv, result, algorithm, &mut way.workspace) };
            status == CUDNN_STATUS_SUCCESS && way.workspace <= limit
        });
        Ok(ways)
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
        way: Way,
        blobs: &Blobs<'_>,
    ) -> Result<Trial> {
        let Some(workspace) = Block::new(&self.context, way.workspace)? else { return Ok(Trial::NoRoom) };
        if let Err(error) = descriptors.set_math(way.math) {
            return Ok(Trial::Refused(error));
        }
        let run = || {
            let room = (workspace.at, way.workspace);
            self.call(handle, descriptors, (conv, pass), way.algorithm, blobs.result.at, blobs.operands(), room)
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
            let way = *choice.ways.front().ok_or_else(unplanned)?;
            let room = (workspace, choice.workspace);
            let status = self.call(handle, &choice.descriptors, (conv, pass), way.algorithm, result, operands, room);
            let done = check(&self.api, "cudnnConvolution…", status)
                .map_err(|error| Error::config(format!("{pass} of {conv}: {error}")));
            // cuDNN may refuse what it proposed itself; nothing has run then.
            let refused = status / 1000 == CUDNN_STATUS_NOT_SUPPORTED / 1000;
            match (done, choice.ways.get(1)) {
                (Err(error), Some(next)) if refused => {
                    tracing::warn!("{error}: its next way is taken");
                    choice.descriptors.set_math(next.math)?;
                    choice.ways.pop_front();
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

pub(super) fn check(api: &CudnnApi, call: &str, status: c_int) -> Result<()> {
    if status == CUDNN_STATUS_SUCCESS {
        return Ok(());
    }
    // SAFETY: cuDNN gives a static text for every number.
    let meaning = unsafe {
        let text = (api.cudnnGetErrorString)(status);
        if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy() }
    };
    let mut detail = [0u8; 1024];
    // SAFETY: the buffer is longer than the length given, so the text ends whatever cuDNN writes.
    unsafe { (api.cudnnGetLastErrorString)(detail.as_mut_ptr().cast(), detail.len() - 1) };
    let detail =
        CStr::from_bytes_until_nul(&detail).map(|d| d.to_string_lossy().trim().to_string()).unwrap_or_default();
    let detail = if detail.is_empty() { detail } else { format!("; {detail}") };
    let (file, version) = (api.found.path.display(), api.found.version);
    Err(Error::config(format!("cuDNN {version} ({file}): {call} failed: {meaning} ({status}){detail}")))
}

/// cuDNN's order of a pass's operands: the filter comes last forward and first backward to the data.
pub(super) fn in_order<T>(pass: ConvolutionPass, [first, second]: [T; 2]) -> [T; 2] {
    match pass {
        ConvolutionPass::Forward | ConvolutionPass::Filter => [first, second],
        ConvolutionPass::Data => [second, first],
    }
}

/// The factor on what the result holds: filter gradients are added to, where they are the parameter's own.
fn kept(conv: &DeviceConvolution, pass: ConvolutionPass) -> f32 {
    match pass {
        ConvolutionPass::Filter if conv.has_plain_filters() => 1.0,
        _ => 0.0,
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
        let c = conv;
        let x = c.batch * c.channels * c.input[0] * c.input[1];
        let w = c.outputs * (c.channels / c.groups) * c.kernel[0] * c.kernel[1];
        let y = c.batch * c.outputs * c.output[0] * c.output[1];
        let ([first, second], result) = match pass {
            ConvolutionPass::Forward => ([x, w], y),
            ConvolutionPass::Data => ([y, w], x),
            ConvolutionPass::Filter => ([x, y], w),
        };
        let block = |count: usize| Block::new(context, count * c.format.element.bytes());
        let (Some(first), Some(second), Some(result)) = (block(first)?, block(second)?, block(result)?) else {
            return Ok(None);
        };
        Ok(Some(Blobs { first, second, result }))
    }

    fn operands(&self) -> [DevicePtr; 2] {
        [self.first.at, self.second.at]
    }
}

#[cfg(test)]
mod tests {
    use lgm_core::{Format, Layout};

    use super::*;
    use crate::SearchPath;

    fn conv() -> DeviceConvolution {
        DeviceConvolution {
            batch: 2,
            channels: 6,
            outputs: 4,
            input: [9, 11],
            output: [4, 9],
            kernel: [3, 2],
            stride: [2, 1],
            pad: [1, 0],
            dilation: [2, 2],
            groups: 2,
            format: Format::PLAIN,
        }
    }

    #[test]
    fn extents_go_where_cudnn_wants_them() {
        let expected = Geometry {
            x: [2, 6, 9, 11],
            w: [4, 3, 3, 2],
            y: [2, 4, 4, 9],
            pad: [1, 0],
            stride: [2, 1],
            dilation: [2, 2],
            groups: 2,
        };
        assert_eq!(Geometry::of(&conv()), Some(expected));
        let long = DeviceConvolution { batch: 1 << 20, input: [64, 64], ..conv() };
        assert_eq!(Geometry::of(&long), None, "more elements than an int counts");
        assert_eq!(Geometry::of(&DeviceConvolution { batch: usize::MAX, ..conv() }), None);
        assert_eq!(Geometry::of(&DeviceConvolution { groups: 0, ..conv() }), None);
    }

    #[test]
    fn operands_and_factors_are_those_of_each_pass() {
        assert_eq!(in_order(ConvolutionPass::Forward, ["x", "w"]), ["x", "w"]);
        assert_eq!(in_order(ConvolutionPass::Data, ["dy", "w"]), ["w", "dy"]);
        assert_eq!(in_order(ConvolutionPass::Filter, ["x", "dy"]), ["x", "dy"]);
        let passes = [ConvolutionPass::Forward, ConvolutionPass::Data, ConvolutionPass::Filter];
        assert_eq!(passes.map(|pass| kept(&conv(), pass)), [0.0, 0.0, 1.0]);
        let last = Format { element: Element::Bf16, layout: Layout::ChannelsLast };
        assert_eq!(passes.map(|pass| kept(&DeviceConvolution { format: last, ..conv() }, pass)), [0.0; 3]);
        // Filters of one tap lie the same in both orders, so that their gradient is the parameter's own.
        let last = Format { element: Element::F32, ..last };
        let point = DeviceConvolution { kernel: [1, 1], format: last, ..conv() };
        assert_eq!(passes.map(|pass| kept(&point, pass)), [0.0, 0.0, 1.0]);
        assert_eq!(passes.map(|pass| kept(&DeviceConvolution { format: last, ..conv() }, pass)), [0.0; 3]);
    }

    /// cuDNN makes descriptors without a GPU.
    #[test]
    fn cudnn_takes_the_descriptors_and_finds_the_same_output() {
        let api = match CudnnApi::load(&SearchPath::from_env()) {
            Ok(api) => Arc::new(api),
            Err(error) => return println!("skipped: {}", error.to_string().lines().next().unwrap_or_default()),
        };
        let last = Format { element: Element::Bf16, layout: Layout::ChannelsLast };
        for (precision, format) in [
            (Precision::Fp32, Format::PLAIN),
            (Precision::Tf32, Format::PLAIN),
            (Precision::Tf32, Format { element: Element::F32, ..last }),
            (Precision::Bf16, last.channels_first()),
            (Precision::Bf16, last),
        ] {
            for conv in [conv(), DeviceConvolution { outputs: 12, groups: 6, ..conv() }] {
                let geometry = Geometry::of(&conv).unwrap();
                let descriptors = Descriptors::new(&api, &geometry, format, precision).unwrap();
                assert_eq!(descriptors.output().unwrap(), geometry.y);
            }
        }
        let bad = Geometry { stride: [0, 1], ..Geometry::of(&conv()).unwrap() };
        let text = Descriptors::new(&api, &bad, Format::PLAIN, Precision::Fp32).map(drop).unwrap_err().to_string();
        assert!(text.contains("cudnnSetConvolution2dDescriptor failed: CUDNN_STATUS_BAD_PARAM"), "{text}");
    }
}
