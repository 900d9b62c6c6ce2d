//! A layer's device half on the simulated device or a GPU, and its comparison with the host's.

use std::sync::{Arc, Once};

use lgm_core::{
    BlobSpec, Bwd, ChannelsLast, ConvolutionPass, DType, DeviceCall, DeviceLayer, Element, Error, Format, Fwd, Layout,
    Offer, Phase, Plan, Registry, Result, Shape, Step, Storage, rounded,
};
use lgm_cuda::sim::{Order, Sim};

use crate::compare::{added, finite, same};
use crate::gpu::shared_gpu;
use crate::harness::{data_homes, shared_diffs};
use crate::pool::{Block, Pool, Stored, blocks, empty, poisoned, read, stored, views, views_mut};
use crate::{Case, Harness, Inputs, Outputs, Sharing, assert_close};

/// Largest difference between device and host, as [`assert_close`] measures it: sums in other orders, of up to some thousand
/// terms, each rounded by 2^-24 of itself.
const TOLERANCE: f64 = 2e-5;
/// The same on a GPU. Its expf, tanhf and powf are off by up to 2, 2 and 4 units of the last place where the host's are by
/// one, which is still within the above; but cuDNN may use Winograd's algorithm for a convolution, whose transforms have numbers
/// grow that cancel again, so that it is off by ten times as much as plain sums and more.
const GPU_TOLERANCE: f64 = 1e-4;
/// The same where blobs are stored in bf16, which has eight bits: sums of rounded factors.
const NARROW_TOLERANCE: f64 = 2e-2;

/// A layer with its plan for the device, and the device.
pub struct DeviceHarness {
    /// The layer, its plan as the device half changed it.
    pub harness: Harness,
    pool: Arc<Pool>,
    /// A simulated device's library of convolutions does passes of the layer.
    by_library: bool,
    on_gpu: bool,
}

/// A kind of device.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    /// In which order a simulated one's threads take turns.
    order: Order,
    /// Its preferred storage of blobs; the bottoms are stored so.
    storage: Storage,
    /// The passes of convolutions that a simulated one's library does.
    library: &'a [ConvolutionPass],
}

impl DeviceHarness {
    /// As [`Harness::new`], in single precision, prepared for the simulated device or, where
    /// `LGM_TEST_DEVICE` is `cuda`, for a GPU (see [`crate::gpu`]); `None` when the layer has no device half
    /// or, with a message, there is no C++ compiler.
    ///
    /// # Errors
    /// As for [`Harness::new`], and when the device half refuses its plan.
    pub fn new(
        registry: &Registry,
        text: &str,
        phase: Phase,
        shapes: &[Shape],
        order: Order,
    ) -> Result<Option<DeviceHarness>> {
        DeviceHarness::stored(registry, text, phase, shapes, order, Storage::default())
    }

    /// As [`DeviceHarness::new`] on a device with this preferred storage of blobs, in which the bottoms are stored.
    ///
    /// # Errors
    /// As for [`DeviceHarness::new`].
    pub fn stored(
        registry: &Registry,
        text: &str,
        phase: Phase,
        shapes: &[Shape],
        order: Order,
        storage: Storage,
    ) -> Result<Option<DeviceHarness>> {
        DeviceHarness::on(registry, text, phase, shapes, &Wanted { order, storage, library: &[] })
    }

    /// As [`DeviceHarness::new`], on a device of this kind.
    fn on(
        registry: &Registry,
        text: &str,
        phase: Phase,
        shapes: &[Shape],
        wanted: &Wanted<'_>,
    ) -> Result<Option<DeviceHarness>> {
        let Wanted { order, storage, library } = *wanted;
        let mut harness = Harness::new(registry, text, phase, DType::F32, shapes)?;
        if harness.layer.device().is_none() {
            return Ok(None);
        }
        let mut simulated = None;
        let pool = match shared_gpu(storage.element)? {
            Some(gpu) => gpu,
            None => match Sim::new(order) {
                Ok(device) => {
                    let device = simulated.insert(Arc::new(device.with_library(library)));
                    Arc::new(Pool::new(device.clone()))
                }
                Err(why @ lgm_core::Error::Config(_)) => {
                    static LOGGED: Once = Once::new();
                    LOGGED.call_once(|| crate::skipped("simulator", format!("device runs on the host: {why}")));
                    return Ok(None);
                }
                Err(e) => return Err(e),
            },
        };
        let mut plan = harness.plan.clone();
        let half = harness.layer.device_mut().expect("a device half");
        let last = storage.channels_last != ChannelsLast::Never;
        let layout = if last { Layout::ChannelsLast } else { Layout::ChannelsFirst };
        let arriving = vec![Format { element: storage.element, layout }; harness.bottoms.len()];
        let offer = Offer { bottoms: &harness.bottoms, arriving: &arriving, tops: plan.tops.len(), storage };
        plan.formats = half.formats(&offer);
        half.prepare(pool.device(), &mut plan)?;
        let specs = plan.tops.iter().chain(&plan.saved).chain(&plan.scratch);
        assert!(specs.clone().all(|s| s.dtype == DType::F32), "the device plan has blobs of another element type");
        assert_eq!(plan.tops, harness.plan.tops, "the device half changed the tops");
        harness.plan = plan;
        let on_gpu = simulated.is_none();
        let by_library = simulated.is_some_and(|sim| sim.plans_convolutions());
        Ok(Some(DeviceHarness { harness, pool, by_library, on_gpu }))
    }

    /// As [`Harness::run`]. The step reaches the layer through device memory alone.
    ///
    /// # Errors
    /// What the layer refuses, or its kernels report.
    pub fn run(&self, inputs: &Inputs) -> Result<Outputs> {
        let (harness, plan, pool, device) = (&self.harness, &self.harness.plan, self.pool.as_ref(), self.pool.device());
        let layer = self.layer()?;
        let backward = !inputs.top_diffs.is_empty() || (plan.tops.is_empty() && !plan.no_backward);
        let formats = &plan.formats;
        let bottoms = stored(pool, &harness.bottoms, |b| formats.bottom(b), &inputs.bottoms)?;
        let params = blocks(pool, &inputs.params)?;
        let (tops, saved) = (empty(pool, &plan.tops, |t| formats.top(t))?, poisoned(pool, &plan.saved)?);
        let clock = clock(pool, &inputs.step)?;
        let numbers = |values: Vec<f32>| Block::of(pool, &values.into_iter().map(f64::from).collect::<Vec<_>>());
        let (dynamic, constants) = (numbers(layer.dynamic())?, numbers(layer.constants())?);
        let fault = Block::of_bytes(pool, &[0; 16])?;
        let call = DeviceCall {
            queue: device,
            formats,
            clock: clock.at,
            dynamic: dynamic.at,
            constants: constants.at,
            fault: fault.at,
        };
        let homes = data_homes(plan, inputs.sharing, backward);
        let in_place = |k: lgm_core::Sharing| k == lgm_core::Sharing::InPlace;

        let scratch = poisoned(pool, &plan.scratch)?;
        let shared = |b: usize| homes.iter().flatten().any(|&(b1, _)| b1 == b);
        let top_at = |t: usize| match homes[t] {
            None => &tops[t],
            Some((b, _)) => &bottoms[b],
        };
        layer.forward(Fwd {
            call,
            bottoms: bottoms
                .iter()
                .zip(&harness.bottoms)
                .enumerate()
                .map(|(b, (block, spec))| if shared(b) { None } else { block.view(spec) })
                .collect(),
            tops: (0..tops.len())
                .map(|t| match homes[t] {
                    Some((_, kind)) if !in_place(kind) => None,
                    _ => top_at(t).view_mut(&plan.tops[t]),
                })
                .collect(),
            params: views_mut(&params, &harness.params),
            saved: if backward { views_mut(&saved, &plan.saved) } else { saved.iter().map(|_| None).collect() },
            scratch: views_mut(&scratch, &plan.scratch),
        })?;
        self.check_fault(&fault)?;
        let mut out = Outputs {
            tops: (0..tops.len()).map(|t| top_at(t).to_f64()).collect::<Result<_>>()?,
            params: read(&params)?,
            ..Default::default()
        };
        for (b, block) in bottoms.iter().enumerate().filter(|&(b, _)| !shared(b)) {
            let kept = unchanged(&block.to_f64()?, &inputs.bottoms[b], formats.bottom(b));
            assert!(kept, "forward changed bottom {b}");
        }
        if !backward {
            return Ok(out);
        }

        let scratch = poisoned(pool, &plan.scratch)?;
        let top_diffs = stored(pool, &plan.tops, |t| formats.top(t), &inputs.top_diffs)?;
        let param_diffs = blocks(pool, &inputs.param_diffs)?;
        let mut bottom_diffs = empty(pool, &harness.bottoms, |b| formats.bottom(b))?;
        let shared = shared_diffs(plan, inputs);
        for &(t, b) in &shared {
            bottom_diffs[b] = Stored::of(pool, &harness.bottoms[b], formats.bottom(b), &inputs.top_diffs[t])?;
        }
        let wanted = |plan: &Plan, b: usize| inputs.want_bottoms[b] && !plan.no_gradient.contains(&b);
        let learned = |p: usize| inputs.want_params[p] && plan.params[p].is_learned();
        let mut io = Bwd {
            call,
            bottoms: bottoms.iter().map(|_| None).collect(),
            tops: tops.iter().map(|_| None).collect(),
            top_diffs: top_diffs.iter().zip(&plan.tops).map(|(d, s)| d.view(s)).collect(),
            bottom_diffs: bottom_diffs.iter().zip(&harness.bottoms).map(|(d, s)| d.view_mut(s)).collect(),
            params: views(&params, &harness.params),
            param_diffs: views_mut(&param_diffs, &harness.params),
            saved: views(&saved, &plan.saved),
            scratch: views_mut(&scratch, &plan.scratch),
        };
        plan.backward_bottoms.iter().for_each(|&b| io.bottoms[b] = bottoms[b].view(&harness.bottoms[b]));
        plan.backward_tops.iter().for_each(|&t| io.tops[t] = top_at(t).view(&plan.tops[t]));
        shared.iter().for_each(|&(t, _)| io.top_diffs[t] = None);
        (0..bottoms.len()).filter(|&b| !wanted(plan, b)).for_each(|b| io.bottom_diffs[b] = None);
        (0..params.len()).filter(|&p| !learned(p)).for_each(|p| io.param_diffs[p] = None);
        layer.backward(io)?;
        self.check_fault(&fault)?;
        for (t, block) in top_diffs.iter().enumerate() {
            let kept = unchanged(&block.to_f64()?, &inputs.top_diffs[t], formats.top(t));
            assert!(kept, "backward changed the diff of top {t}");
        }
        let each = bottom_diffs.iter().enumerate();
        out.bottom_diffs = each.map(|(b, d)| wanted(plan, b).then(|| d.to_f64()).transpose()).collect::<Result<_>>()?;
        let each = param_diffs.iter().enumerate();
        out.param_diffs = each.map(|(p, d)| learned(p).then(|| d.to_f64()).transpose()).collect::<Result<_>>()?;
        Ok(out)
    }

    fn layer(&self) -> Result<&dyn DeviceLayer> {
        self.harness.layer.device().ok_or_else(|| Error::internal("the layer has no device half"))
    }

    fn check_fault(&self, fault: &Block<'_>) -> Result<()> {
        let words = fault.words()?;
        let fault = std::array::from_fn(|i| u32::from_ne_bytes(words[i]));
        if fault[0] == 0 { Ok(()) } else { Err(self.layer()?.explain(fault)) }
    }
}

/// Whether values are still what was stored; what is not a number equals itself.
fn unchanged(found: &[f64], values: &[f64], format: Format) -> bool {
    found.iter().zip(as_stored(values, format)).all(|(f, v)| *f == v || (f.is_nan() && v.is_nan()))
}

fn as_stored(values: &[f64], format: Format) -> Vec<f64> {
    values.iter().map(|&v| f64::from(rounded(v as f32, format.element))).collect()
}

fn clock<'a>(pool: &'a Pool, step: &Step) -> Result<Block<'a>> {
    let bytes: Vec<u8> = [step.seed, step.iter, step.batch].iter().flat_map(|v| v.to_le_bytes()).collect();
    Block::of_bytes(pool, &bytes)
}

/// Storages that a layer is checked in besides the plain one.
const STORAGES: [Storage; 3] = [
    Storage { element: Element::Bf16, channels_last: ChannelsLast::Never },
    Storage { element: Element::Bf16, channels_last: ChannelsLast::Always },
    Storage { element: Element::F32, channels_last: ChannelsLast::Always },
];

/// Passes that a simulated device's library does, so that every pass is made with and without it, beside others that are
/// made without. A GPU has its own library, which does what it can.
const LIBRARIES: [&[ConvolutionPass]; 3] =
    [&ConvolutionPass::ALL, &[ConvolutionPass::Forward], &[ConvolutionPass::Data, ConvolutionPass::Filter]];

/// The device half against the host's outputs, in every format that it has, with and without a library where that changes
/// it; the same bits whatever is shared, wanted or saved, and in both orders.
pub(crate) fn check(registry: &Registry, case: &Case, inputs: &Inputs, host: &Harness) -> Result<()> {
    for storage in [Storage::default()].into_iter().chain(STORAGES) {
        check_on(registry, case, inputs, host, (storage, &[]))?;
        LIBRARIES.into_iter().try_for_each(|library| check_on(registry, case, inputs, host, (storage, library)))?;
    }
    Ok(())
}

fn check_on(
    registry: &Registry,
    case: &Case,
    inputs: &Inputs,
    host: &Harness,
    (storage, library): (Storage, &[ConvolutionPass]),
) -> Result<()> {
    let shapes: Vec<Shape> = case.bottoms.iter().map(|(s, _)| s.clone()).collect();
    let harness =
        |order| DeviceHarness::on(registry, &case.layer, case.phase, &shapes, &Wanted { order, storage, library });
    let (Some(forward), Some(reversed)) = (harness(Order::Forward)?, harness(Order::Reversed)?) else { return Ok(()) };
    if !library.is_empty() && !forward.by_library {
        return Ok(());
    }
    let formats = &forward.harness.plan.formats;
    let moved = |spec: &BlobSpec, format: Format| !format.is_same(Format::PLAIN, &spec.shape);
    let changed = host.bottoms.iter().enumerate().any(|(b, spec)| moved(spec, formats.bottom(b)))
        || host.plan.tops.iter().enumerate().any(|(t, spec)| moved(spec, formats.top(t)));
    if storage != Storage::default() && !changed {
        return Ok(());
    }
    // The host gets the numbers that the device's memory can hold.
    let mut inputs = inputs.clone();
    for (b, values) in inputs.bottoms.iter_mut().enumerate() {
        *values = as_stored(values, formats.bottom(b));
    }
    for (t, values) in inputs.top_diffs.iter_mut().enumerate() {
        *values = as_stored(values, formats.top(t));
    }
    let inputs = &inputs;
    let narrow = formats.bottoms.iter().chain(&formats.tops).any(|format| format.element == Element::Bf16);
    let tolerance = match narrow {
        true => NARROW_TOLERANCE,
        false if forward.on_gpu => GPU_TOLERANCE,
        false => TOLERANCE,
    };
    let by = if forward.by_library { format!(", {library:?} by a library") } else { String::new() };
    let case = &Case { name: format!("{} ({}{by})", case.name, formats.top(0)), ..case.clone() };
    let plain = forward.run(inputs)?;
    close(case, inputs, &plain, &host.run(inputs)?, tolerance);

    // What a library does has no threads here, and shares nothing that the layer's own kernels do not.
    if library.is_empty() {
        same(case, "threads in reverse order", &plain, &reversed.run(inputs)?);
        for (data, diff) in [(true, false), (false, true), (true, true)] {
            let sharing = Sharing { data, diff };
            let how = format!("{sharing:?} on the device");
            let shared = Inputs { sharing, ..inputs.clone() };
            same(case, &how, &plain, &forward.run(&shared)?);
            same(case, &format!("{how}, reversed"), &plain, &reversed.run(&shared)?);
            let without = Inputs { top_diffs: Vec::new(), ..shared };
            same(case, &format!("{how}, no backward"), &plain, &forward.run(&without)?);
        }
    }
    let (bottoms, params) = (inputs.bottoms.len(), inputs.params.len());
    for only in 0..bottoms + params {
        for diff in [false, true] {
            let alone = Inputs {
                want_bottoms: (0..bottoms).map(|b| b == only).collect(),
                want_params: (0..params).map(|p| bottoms + p == only).collect(),
                sharing: Sharing { data: false, diff },
                ..inputs.clone()
            };
            let how = format!("gradient {only} alone on the device, diffs shared: {diff}");
            same(case, &how, &plain, &forward.run(&alone)?);
        }
    }
    Ok(())
}

fn close(case: &Case, inputs: &Inputs, device: &Outputs, host: &Outputs, tolerance: f64) {
    let agree = |what: String, found: &[f64], want: &[f64]| {
        finite(case, &format!("{what} on the device"), found);
        assert_close(&format!("{}: {what} on the device", case.name), found, want, tolerance);
    };
    for (t, (found, want)) in device.tops.iter().zip(&host.tops).enumerate() {
        agree(format!("top {t}"), found, want);
    }
    for (p, (found, want)) in device.params.iter().zip(&host.params).enumerate() {
        agree(format!("parameter {p}"), found, want);
    }
    assert_eq!(device.bottom_diffs.len(), host.bottom_diffs.len(), "{}", case.name);
    for (b, (found, want)) in device.bottom_diffs.iter().zip(&host.bottom_diffs).enumerate() {
        if let (Some(found), Some(want)) = (found, want) {
            agree(format!("bottom diff {b}"), found, want);
        }
    }
    for p in 0..host.param_diffs.len() {
        if let (Some(found), Some(want)) = (added(inputs, device, p), added(inputs, host, p)) {
            agree(format!("parameter diff {p}"), &found, &want);
        }
    }
}
