//! Convolutions by cuDNN, where it is there.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use lgm_core::{ConvolutionPass, DeviceConvolution, DevicePtr, Element, Error, Format, Result};

use super::api::*;
use super::context::{Context, Stream};
use super::descriptors::{Descriptors, Geometry};
use crate::{Found, Precision};

/// The most workspace a convolution may want: a sixteenth of the device's memory, and no more than a GiB. It depends on
/// nothing but the device, so that the choice, and with it the result, is the same each time.
fn workspace_limit(memory: u64) -> usize {
    (memory / 16).min(1 << 30) as usize
}

/// More than cuDNN has ways to run any pass.
const MOST_ALGORITHMS: usize = 16;

pub(crate) struct Convolutions {
    context: Arc<Context>,
    api: Arc<CudnnApi>,
    precision: Precision,
    // cuDNN wants one caller of a handle at a time.
    state: Mutex<State>,
}

struct State {
    handle: Handle,
    choices: HashMap<(DeviceConvolution, ConvolutionPass), Option<Choice>>,
}

/// How to run one pass of one convolution.
struct Choice {
    descriptors: Descriptors,
    /// Ways to run it, the one that is taken first; the others are for when cuDNN does not support it after all.
    ways: VecDeque<Way>,
    /// Bytes, enough for all of them.
    workspace: usize,
}

/// One of cuDNN's ways.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Way {
    algorithm: c_int,
    math: c_int,
    workspace: usize,
}

/// Bytes of workspace that a way may want to be kept behind one that wants less.
const SPARE: usize = 8 << 20;

/// The first way and those after it that want no more memory than it, or little.
fn kept_ways(ways: impl IntoIterator<Item = Way>) -> VecDeque<Way> {
    let mut kept: VecDeque<Way> = VecDeque::new();
    for way in ways {
        if kept.front().is_none_or(|first| way.workspace <= first.workspace.max(SPARE)) {
            kept.push_back(way);
        }
    }
    kept
}

impl Convolutions {
    pub(crate) fn new(context: &Arc<Context>, api: CudnnApi, precision: Precision) -> Result<Self> {
        context.make_current()?;
        let state = Mutex::new(State { handle: Handle::NULL, choices: HashMap::new() });
        let all = Convolutions { context: context.clone(), api: Arc::new(api), precision, state };
        let mut handle = Handle::NULL;
        // SAFETY, of both calls: types are the header's, pointers and handles are live.
        check(&all.api, "cudnnCreate", unsafe { (all.api.cudnnCreate)(&mut handle) })?;
        all.state.lock().unwrap_or_else(PoisonError::into_inner).handle = handle;
        let stream = context.stream(Stream::Compute);
        check(&all.api, "cudnnSetStream", unsafe { (all.api.cudnnSetStream)(handle, stream) })?;
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
            let choice = self.choose(state.handle, conv, pass)?;
            state.choices.insert((*conv, pass), choice);
        }
        let choice = state.choices.get(&(*conv, pass));
        Ok(choice.and_then(Option::as_ref).map(|choice| choice.workspace))
    }

    /// The first of cuDNN's ways, which it gives fastest first by its own estimate, that is deterministic and not too
    /// greedy; timing them instead would choose otherwise from run to run, and so give other bits. `None` when there is
    /// none.
    fn choose(&self, handle: Handle, conv: &DeviceConvolution, pass: ConvolutionPass) -> Result<Option<Choice>> {
        let Some(geometry) = Geometry::of(conv) else { return Ok(None) };
        let precision = match conv.format.element {
            Element::F32 => self.precision.of_product(multiply_adds(conv)),
            _ => self.precision,
        };
        let descriptors = match Descriptors::new(&self.api, &geometry, conv.format, precision) {
            Ok(descriptors) => descriptors,
            Err(error) => return self.declined(conv, &error),
        };
        let output = descriptors.output()?;
        if output != geometry.y {
            return Err(Error::internal(format!("{conv:?}: cuDNN gives the output the extents {output:?}")));
        }
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
            get(handle, first, second, descriptors.conv, result, found.len() as c_int, &mut count, found.as_mut_ptr())
        };
        if let Err(error) = check(&self.api, "cudnnGetConvolution…Algorithm_v7", status) {
            return self.declined(conv, &error);
        }
        let count = usize::try_from(count).unwrap_or(0).min(found.len());
        let limit = workspace_limit(self.context.gpu.memory);
        let mut ways = Vec::new();
        for perf in found[..count].iter().filter(|perf| admissible(perf, precision, limit)) {
            let math = math_type(precision, Some(perf.math));
            descriptors.set_math(math)?;
            let mut workspace = 0;
            // SAFETY: the pointer is to a live integer; the descriptors are live.
            let status =
                unsafe { size(handle, first, second, descriptors.conv, result, perf.algorithm, &mut workspace) };
            if status == CUDNN_STATUS_SUCCESS && workspace <= limit {
                ways.push(Way { algorithm: perf.algorithm, math, workspace });
            }
        }
        let ways = kept_ways(ways);
        if let Some(way) = ways.front() {
            descriptors.set_math(way.math)?;
            let workspace = ways.iter().map(|way| way.workspace).max().unwrap_or(0);
            return Ok(Some(Choice { descriptors, ways, workspace }));
        }
        tracing::info!("cuDNN has no deterministic way for {pass:?} of {conv:?}: our own is taken, slower");
        Ok(None)
    }

    fn declined(&self, conv: &DeviceConvolution, error: &Error) -> Result<Option<Choice>> {
        tracing::info!("{conv:?}: {error}: our own is taken, slower");
        Ok(None)
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
        let handle = state.handle;
        let unplanned = || Error::internal(format!("{pass:?} of {conv:?} was not planned with cuDNN"));
        let choice = state.choices.get_mut(&(*conv, pass)).and_then(Option::as_mut).ok_or_else(unplanned)?;
        let [first, second] = in_order(pass, operands);
        let [d_first, d_second, d_result] = choice.descriptors.in_order(pass);
        let run = match pass {
            ConvolutionPass::Forward => self.api.cudnnConvolutionForward,
            ConvolutionPass::Data => self.api.cudnnConvolutionBackwardData,
            ConvolutionPass::Filter => self.api.cudnnConvolutionBackwardFilter,
        };
        let at = |ptr: DevicePtr| ptr.0 as *const c_void;
        let factors = [1.0f32, kept(conv, pass)];
        let (alpha, beta): (*const f32, *const f32) = (&factors[0], &factors[1]);
        loop {
            let way = *choice.ways.front().ok_or_else(unplanned)?;
            // SAFETY: the factors live through the call; the blobs are the caller's, of the geometry's extents, and the
            // workspace is as long as was asked for.
            let status = unsafe {
                run(
                    handle,
                    alpha.cast(),
                    d_first,
                    at(first),
                    d_second,
                    at(second),
                    choice.descriptors.conv,
                    way.algorithm,
                    at(workspace).cast_mut(),
                    choice.workspace,
                    beta.cast(),
                    d_result,
                    at(result).cast_mut(),
                )
            };
            let done = check(&self.api, "cudnnConvolution…", status)
                .map_err(|error| Error::config(format!("{pass:?} of {conv:?}: {error}")));
            // cuDNN may refuse what it proposed itself; nothing has run then.
            let refused = status / 1000 == CUDNN_STATUS_NOT_SUPPORTED / 1000;
            match (done, choice.ways.get(1)) {
                (Err(error), Some(next)) if refused => {
                    tracing::info!("{error}: its next way is taken");
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
        if state.handle != Handle::NULL && self.context.make_current().is_ok() {
            // SAFETY: the handle is alive and not used again.
            unsafe { (self.api.cudnnDestroy)(state.handle) };
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
        ConvolutionPass::Filter if conv.format == Format::PLAIN => 1.0,
        _ => 0.0,
    }
}

/// Multiply-adds of a pass.
fn multiply_adds(conv: &DeviceConvolution) -> usize {
    let taps = conv.channels / conv.groups.max(1) * conv.kernel[0] * conv.kernel[1];
    conv.batch * conv.outputs * conv.output[0] * conv.output[1] * taps
}

/// In single precision nothing but fused multiply-adds; the default mathematics permit TF32, those of tensor cores what is
/// stored in 16 bits too, and one of cuDNN's ways may ask for its own.
pub(super) fn math_type(precision: Precision, way: Option<c_int>) -> c_int {
    match precision {
        Precision::Fp32 => CUDNN_FMA_MATH,
        Precision::Tf32 => way.unwrap_or(CUDNN_DEFAULT_MATH),
        Precision::Bf16 => way.unwrap_or(CUDNN_TENSOR_OP_MATH),
    }
}

fn admissible(perf: &AlgorithmPerf, precision: Precision, limit: usize) -> bool {
    // Conversions to half precision (CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION) are never wanted.
    let math = match precision {
        Precision::Fp32 => [CUDNN_FMA_MATH, CUDNN_DEFAULT_MATH, CUDNN_DEFAULT_MATH],
        Precision::Tf32 | Precision::Bf16 => [CUDNN_FMA_MATH, CUDNN_DEFAULT_MATH, CUDNN_TENSOR_OP_MATH],
    };
    perf.status == CUDNN_STATUS_SUCCESS
        && perf.determinism == CUDNN_DETERMINISTIC
        && perf.memory <= limit
        && math.contains(&perf.math)
}

#[cfg(test)]
mod tests {
    use lgm_core::Layout;

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
    }

    #[test]
    fn only_deterministic_ways_in_the_precision_asked_for_are_taken() {
        let way = AlgorithmPerf { memory: 100, determinism: CUDNN_DETERMINISTIC, ..AlgorithmPerf::default() };
        let (tf32, fp32) = (Precision::Tf32, Precision::Fp32);
        assert!(admissible(&way, tf32, 100) && admissible(&way, fp32, 100));
        assert!(!admissible(&way, tf32, 99));
        assert!(!admissible(&AlgorithmPerf { determinism: 0, ..way }, tf32, 100));
        assert!(!admissible(&AlgorithmPerf { status: 3000, ..way }, tf32, 100));
        let tensor = AlgorithmPerf { math: CUDNN_TENSOR_OP_MATH, ..way };
        assert!(admissible(&tensor, tf32, 100) && !admissible(&tensor, fp32, 100));
        // CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION
        let half = AlgorithmPerf { math: 2, ..way };
        assert!(!admissible(&half, tf32, 100) && !admissible(&half, fp32, 100));
        assert_eq!([math_type(fp32, Some(CUDNN_TENSOR_OP_MATH)), math_type(fp32, None)], [CUDNN_FMA_MATH; 2]);
        assert_eq!(math_type(tf32, Some(CUDNN_TENSOR_OP_MATH)), CUDNN_TENSOR_OP_MATH);
        assert_eq!([tf32, Precision::Bf16].map(|p| math_type(p, None)), [CUDNN_DEFAULT_MATH, CUDNN_TENSOR_OP_MATH]);
        assert_eq!((workspace_limit(8 << 30), workspace_limit(80 << 30)), (512 << 20, 1 << 30));
    }

    #[test]
    fn ways_kept_for_later_want_no_more_memory() {
        let way = |algorithm, workspace| Way { algorithm, math: CUDNN_DEFAULT_MATH, workspace };
        let kept = |ways: &[Way]| kept_ways(ways.iter().copied()).iter().map(|way| way.algorithm).collect::<Vec<_>>();
        assert_eq!(kept(&[way(1, 100 << 20), way(5, 200 << 20), way(0, 0), way(2, 100 << 20)]), [1, 0, 2]);
        assert_eq!(kept(&[way(0, 0), way(1, SPARE), way(2, SPARE + 1)]), [0, 1]);
        assert_eq!(kept(&[]), [0; 0]);
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
            (Precision::Bf16, last.channels_first()),
            (Precision::Bf16, last),
        ] {
            let geometry = Geometry::of(&conv()).unwrap();
            let descriptors = Descriptors::new(&api, &geometry, format, precision).unwrap();
            assert_eq!(descriptors.output().unwrap(), geometry.y);
        }
        let bad = Geometry { stride: [0, 1], ..Geometry::of(&conv()).unwrap() };
        let text = Descriptors::new(&api, &bad, Format::PLAIN, Precision::Fp32).map(drop).unwrap_err().to_string();
        assert!(text.contains("cudnnSetConvolution2dDescriptor failed: CUDNN_STATUS_BAD_PARAM"), "{text}");
    }
}
