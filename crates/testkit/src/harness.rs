//! One layer outside any net, with memory as planned.

use lgm_core::{
    BlobSpec, BuildCx, Bwd, Compute, DType, Error, Fwd, Host, HostCall, Node, Phase, Plan, Registry, Result, Shape,
    Step, ViewMut, Views, ViewsMut, filler, rng::Philox,
};
use lgm_proto::prost_reflect::{DynamicMessage, ReflectMessage};
use lgm_proto::{LayerParameter, NetParameter};

use crate::memory::Memory;

/// Which of the sharings that a plan allows are in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// Tops share memory with bottoms.
    pub data: bool,
    /// Diffs of tops and of bottoms share memory.
    pub diff: bool,
}

/// What one run of a layer starts from.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Data of each bottom.
    pub bottoms: Vec<Vec<f64>>,
    /// Each parameter.
    pub params: Vec<Vec<f64>>,
    /// Gradient by each top; empty for a forward pass alone, in which no memory is saved for backward. (A layer with no
    /// tops runs both.)
    pub top_diffs: Vec<Vec<f64>>,
    /// What the parameters' diffs hold before backward adds to them.
    pub param_diffs: Vec<Vec<f64>>,
    /// Whether the gradient by each bottom is wanted.
    pub want_bottoms: Vec<bool>,
    /// Whether the gradient by each parameter is wanted.
    pub want_params: Vec<bool>,
    /// Sharing of memory.
    pub sharing: Sharing,
    /// When.
    pub step: Step,
}

/// What one run of a layer left.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// Data of each top.
    pub tops: Vec<Vec<f64>>,
    /// Each parameter (state changes in forward).
    pub params: Vec<Vec<f64>>,
    /// Gradient by each bottom that was wanted.
    pub bottom_diffs: Vec<Option<Vec<f64>>>,
    /// What the parameters' diffs hold after backward.
    pub param_diffs: Vec<Option<Vec<f64>>>,
}

/// A layer with its plan.
pub struct Harness {
    /// The compute half.
    pub layer: Compute,
    /// What it planned.
    pub plan: Plan,
    /// The specs it was planned for.
    pub bottoms: Vec<BlobSpec>,
    /// Specs of its parameters.
    pub params: Vec<BlobSpec>,
    dtype: DType,
    seed: u64,
}

/// Reads one `layer { … }`.
///
/// # Errors
/// When the text is not one layer.
pub fn parse_layer(text: &str) -> Result<LayerParameter> {
    let message = DynamicMessage::parse_text_format(NetParameter::default().descriptor(), text)
        .map_err(|e| Error::config(format!("{e}: {text}")))?;
    let net: NetParameter = message.transcode_to().map_err(|e| Error::config(e.to_string()))?;
    match <[LayerParameter; 1]>::try_from(net.layer) {
        Ok([layer]) => Ok(layer),
        Err(layers) => Err(Error::config(format!("expected one layer, found {}: {text}", layers.len()))),
    }
}

impl Harness {
    /// Builds and plans the layer of a `layer { … }` text for bottoms of the given shapes. A `phase` in the text wins
    /// over `phase`.
    ///
    /// # Errors
    /// When the text is malformed, or the layer refuses its parameters or bottoms.
    pub fn new(registry: &Registry, text: &str, phase: Phase, dtype: DType, shapes: &[Shape]) -> Result<Harness> {
        let param = parse_layer(text)?;
        let phase = if param.phase.is_some() { param.phase() } else { phase };
        let seed = 1701;
        let Node::Compute(mut layer) = registry.build(&param, &BuildCx { phase, dtype, seed })? else {
            return Err(Error::config(format!("{} is not a compute layer", param.r#type())));
        };
        let arity = layer.arity();
        let tops = if arity.auto_tops { param.top.len().max(*arity.tops.start()) } else { param.top.len() };
        lgm_core::ensure!(
            arity.bottoms.contains(&shapes.len())
                && arity.tops.contains(&tops)
                && (!arity.equal || tops == shapes.len())
                && param.bottom.len() == shapes.len(),
            "{} bottoms ({} shapes) and {tops} tops do not suit {arity:?}",
            param.bottom.len(),
            shapes.len()
        );
        let bottoms: Vec<BlobSpec> = shapes.iter().map(|s| BlobSpec::new(s.clone(), dtype)).collect();
        let plan = layer.plan(&bottoms, tops)?;
        assert_eq!(plan.tops.len(), tops, "the plan has another number of tops than were asked for");
        let specs = plan.tops.iter().chain(&plan.saved).chain(&plan.scratch);
        assert!(specs.clone().all(|s| s.dtype == dtype), "the plan has blobs of another element type than the net's");
        for &(t, b, _) in &plan.share_data {
            assert_eq!(plan.tops[t].bytes(), bottoms[b].bytes(), "top {t} cannot share bottom {b}: sizes differ");
        }
        for &(t, b) in &plan.share_diff {
            assert_eq!(plan.tops[t].bytes(), bottoms[b].bytes(), "diffs of top {t} and bottom {b} differ in size");
        }
        let params = plan.params.iter().map(|p| BlobSpec::new(p.shape.clone(), dtype)).collect();
        let mut harness = Harness { layer, plan, bottoms, params, dtype, seed };
        if phase == Phase::Train {
            harness.layer.begin_iteration(0);
        }
        Ok(harness)
    }

    /// Each parameter as its filler starts it.
    ///
    /// # Errors
    /// When a filler is unsuitable.
    pub fn filled(&self) -> Result<Vec<Vec<f64>>> {
        let fill = |(i, p): (usize, &lgm_core::ParamSpec)| {
            let mut values = vec![0.0; p.shape.count()];
            filler::fill(&p.filler, &p.shape, (Philox::new(self.seed, i as u64), 0), &mut values)?;
            Ok(values)
        };
        self.plan.params.iter().enumerate().map(fill).collect()
    }

    /// The first step of the run.
    pub fn step(&self) -> Step {
        Step { seed: self.seed, iter: 0, batch: 0 }
    }

    /// Inputs of a forward pass alone, nothing shared, at the first step.
    ///
    /// # Errors
    /// When a parameter's filler is unsuitable.
    pub fn forward_inputs(&self, bottoms: &[&[f64]]) -> Result<Inputs> {
        Ok(Inputs {
            bottoms: bottoms.iter().map(|b| b.to_vec()).collect(),
            params: self.filled()?,
            top_diffs: Vec::new(),
            param_diffs: self.params.iter().map(|p| vec![0.0; p.shape.count()]).collect(),
            want_bottoms: vec![true; self.bottoms.len()],
            want_params: self.plan.params.iter().map(lgm_core::ParamSpec::is_learned).collect(),
            sharing: Sharing::default(),
            step: self.step(),
        })
    }

    /// Runs forward, and backward if the inputs have diffs of tops.
    ///
    /// # Errors
    /// What the layer refuses.
    pub fn run(&self, inputs: &Inputs) -> Result<Outputs> {
        let (plan, dtype) = (&self.plan, self.dtype);
        let call = HostCall { step: &inputs.step, dtype };
        let backward = !inputs.top_diffs.is_empty() || (plan.tops.is_empty() && !plan.no_backward);
        let mut bottoms: Vec<Memory> = inputs.bottoms.iter().map(|v| Memory::of(dtype, v)).collect();
        let mut tops: Vec<Memory> = plan.tops.iter().map(Memory::poisoned).collect();
        let mut params: Vec<Memory> = inputs.params.iter().map(|v| Memory::of(dtype, v)).collect();
        let mut saved: Vec<Memory> = plan.saved.iter().map(Memory::poisoned).collect();
        let mut scratch: Vec<Memory> = plan.scratch.iter().map(Memory::poisoned).collect();

        let in_place = |k: lgm_core::Sharing| k == lgm_core::Sharing::InPlace;
        let lives_in = data_homes(plan, inputs.sharing, backward);
        {
            let hosts: Vec<usize> = lives_in.iter().flatten().map(|&(b, _)| b).collect();
            let mut windows = ViewsMut::<Host>::new();
            let mut io_bottoms = Views::<Host>::new();
            let mut lent: Vec<Option<ViewMut<Host>>> = Vec::new();
            for (i, (memory, spec)) in bottoms.iter_mut().zip(&self.bottoms).enumerate() {
                let home = lives_in.iter().position(|l| l.is_some_and(|(b, k)| b == i && in_place(k)));
                lent.push(None);
                match home {
                    Some(t) => {
                        lent[i] = Some(memory.view_mut(&plan.tops[t])?);
                        io_bottoms.push(None);
                    }
                    None if hosts.contains(&i) => io_bottoms.push(None),
                    None => io_bottoms.push(Some(memory.view(spec)?)),
                }
            }
            for (t, (memory, spec)) in tops.iter_mut().zip(&plan.tops).enumerate() {
                windows.push(match lives_in[t] {
                    None => Some(memory.view_mut(spec)?),
                    Some((b, _)) => lent[b].take(),
                });
            }
            let io = Fwd {
                call,
                bottoms: io_bottoms,
                tops: windows,
                params: windows_mut(&mut params, &self.params)?,
                saved: if backward { windows_mut(&mut saved, &plan.saved)? } else { absent(plan.saved.len()) },
                scratch: windows_mut(&mut scratch, &plan.scratch)?,
            };
            self.layer.forward(io)?;
        }
        let top_data = |t: usize| match lives_in[t] {
            Some((b, _)) => &bottoms[b],
            None => &tops[t],
        };
        let mut out = Outputs {
            tops: (0..tops.len()).map(|t| top_data(t).to_f64()).collect(),
            params: params.iter().map(Memory::to_f64).collect(),
            ..Default::default()
        };
        if !backward {
            return Ok(out);
        }

        let mut scratch: Vec<Memory> = plan.scratch.iter().map(Memory::poisoned).collect();
        let top_diffs: Vec<Memory> = inputs.top_diffs.iter().map(|v| Memory::of(dtype, v)).collect();
        let mut bottom_diffs: Vec<Memory> = self.bottoms.iter().map(Memory::poisoned).collect();
        let mut param_diffs: Vec<Memory> = inputs.param_diffs.iter().map(|v| Memory::of(dtype, v)).collect();
        let absent_diffs = shared_diffs(plan, inputs);
        for &(t, b) in &absent_diffs {
            bottom_diffs[b] = Memory::of(dtype, &inputs.top_diffs[t]);
        }
        {
            let mut io = Bwd {
                call,
                bottoms: absent_views(bottoms.len()),
                tops: absent_views(tops.len()),
                top_diffs: Views::new(),
                bottom_diffs: windows_mut(&mut bottom_diffs, &self.bottoms)?,
                params: params.iter().zip(&self.params).map(|(m, s)| m.view(s).map(Some)).collect::<Result<_>>()?,
                param_diffs: windows_mut(&mut param_diffs, &self.params)?,
                saved: saved.iter().zip(&plan.saved).map(|(m, s)| m.view(s).map(Some)).collect::<Result<_>>()?,
                scratch: windows_mut(&mut scratch, &plan.scratch)?,
            };
            for &b in &plan.backward_bottoms {
                io.bottoms[b] = Some(bottoms[b].view(&self.bottoms[b])?);
            }
            for &t in &plan.backward_tops {
                io.tops[t] = Some(top_data(t).view(&plan.tops[t])?);
            }
            for (t, (memory, spec)) in top_diffs.iter().zip(&plan.tops).enumerate() {
                let shared = absent_diffs.iter().any(|&(t1, _)| t1 == t);
                io.top_diffs.push(if shared { None } else { Some(memory.view(spec)?) });
            }
            for (b, want) in inputs.want_bottoms.iter().enumerate() {
                if !want || plan.no_gradient.contains(&b) {
                    io.bottom_diffs[b] = None;
                }
            }
            for (p, want) in inputs.want_params.iter().enumerate() {
                if !want || !plan.params[p].is_learned() {
                    io.param_diffs[p] = None;
                }
            }
            self.layer.backward(io)?;
        }
        let wanted =
            |i: usize, m: &Memory| (inputs.want_bottoms[i] && !plan.no_gradient.contains(&i)).then(|| m.to_f64());
        out.bottom_diffs = bottom_diffs.iter().enumerate().map(|(i, m)| wanted(i, m)).collect();
        let wanted = |i: usize, m: &Memory| (inputs.want_params[i] && plan.params[i].is_learned()).then(|| m.to_f64());
        out.param_diffs = param_diffs.iter().enumerate().map(|(i, m)| wanted(i, m)).collect();
        Ok(out)
    }
}

/// For each top, the bottom whose data memory it lives in.
pub(crate) fn data_homes(plan: &Plan, sharing: Sharing, backward: bool) -> Vec<Option<(usize, lgm_core::Sharing)>> {
    let in_place = |k: lgm_core::Sharing| k == lgm_core::Sharing::InPlace;
    let read_later = |b: &usize| backward && plan.backward_bottoms.contains(b);
    let mut lives_in = vec![None; plan.tops.len()];
    for &(t, b, kind) in plan.share_data.iter().filter(|_| sharing.data) {
        let taken = in_place(kind) && lives_in.contains(&Some((b, kind)));
        if lives_in[t].is_none() && !taken && !(in_place(kind) && read_later(&b)) {
            lives_in[t] = Some((b, kind));
        }
    }
    lives_in
}

/// The (top, bottom) pairs whose diffs share the bottom's memory.
pub(crate) fn shared_diffs(plan: &Plan, inputs: &Inputs) -> Vec<(usize, usize)> {
    let mut shared: Vec<(usize, usize)> = Vec::new();
    for &(t, b) in plan.share_diff.iter().filter(|_| inputs.sharing.diff) {
        let taken = shared.iter().any(|&(t1, b1)| t1 == t || b1 == b);
        if inputs.want_bottoms[b] && !taken {
            shared.push((t, b));
        }
    }
    shared
}

fn windows_mut<'a>(memory: &'a mut [Memory], specs: &'a [BlobSpec]) -> Result<ViewsMut<'a, Host>> {
    assert_eq!(memory.len(), specs.len(), "as many blobs as the plan has");
    memory.iter_mut().zip(specs).map(|(m, s)| m.view_mut(s).map(Some)).collect()
}

fn absent<'a>(n: usize) -> ViewsMut<'a, Host> {
    (0..n).map(|_| None).collect()
}

fn absent_views<'a>(n: usize) -> Views<'a, Host> {
    (0..n).map(|_| None).collect()
}
