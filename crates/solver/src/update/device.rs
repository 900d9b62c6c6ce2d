//! The update of a net on a device: histories, the update of all parameters in one launch, the norm of the gradients and
//! the latest losses, none of which the host waits for.

use std::ops::Range;
use std::rc::Rc;

use lgm_core::{DevicePtr, Error, Grid, Result, Step, args};
use lgm_cuda::{Block, Gpu, Launch, doubles_of, float_bytes, floats_of};
use lgm_net::{DeviceParams, DeviceUpdate, Net, OnDevice, Pass, SOLVER_WORDS};
use lgm_proto::SolverParameter;

use super::{CHECK_EVERY, Histories, Updater, log_clipping};
use crate::local_rate::LocalRate;
use crate::rules::Rule;

/// Numbers that one block of threads updates: enough that a block is worth its start, and few enough that small nets keep
/// a whole device busy.
const CHUNK: usize = 2048;
/// What every launch over the parameters needs.
struct Chunks {
    number: usize,
    /// By chunk: where its copy lies among the kept statistics, in numbers, or -1.
    keep: DevicePtr,
    first: DevicePtr,
    count: DevicePtr,
    lr: DevicePtr,
    decay: DevicePtr,
    /// Parameters, and by parameter its first chunk and how many it has.
    parameters: usize,
    begin: DevicePtr,
    chunks: DevicePtr,
    _table: Block,
}

impl Chunks {
    fn new(gpu: &Rc<dyn Gpu>, net: &Net, params: &DeviceParams, weight_decay: f32) -> Result<Chunks> {
        let (mut first, mut count, mut lr, mut decay) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut keep, mut kept) = (Vec::new(), 0);
        let (mut begin, mut chunks) = (Vec::new(), Vec::new());
        for (info, span) in net.learnables().zip(&params.spans) {
            let (start, end) = (span.start / 4, span.end / 4);
            begin.push(count.len() as u32);
            chunks.push(end.saturating_sub(start).div_ceil(CHUNK) as u32);
            for at in (start..end).step_by(CHUNK) {
                first.extend([at as u32, (at as u64 >> 32) as u32]);
                let numbers = CHUNK.min(end - at) as u32;
                count.push(numbers);
                keep.push(if info.state { kept } else { -1i32 as u32 });
                kept += if info.state { numbers } else { 0 };
                lr.push(info.lr_mult.to_bits());
                decay.push((weight_decay * info.decay_mult).to_bits());
            }
        }
        let (number, parameters) = (count.len(), begin.len());
        let table = Block::of_words(gpu, &[first, count, lr, decay, keep, begin, chunks].concat())?;
        let at = |words: usize| table.at().offset(4 * words);
        Ok(Chunks {
            number,
            first: at(0),
            count: at(2 * number),
            lr: at(3 * number),
            decay: at(4 * number),
            keep: at(5 * number),
            parameters,
            begin: at(6 * number),
            chunks: at(6 * number + parameters),
            _table: table,
        })
    }
}

/// See the module.
pub(crate) struct DeviceUpdater {
    gpu: Rc<dyn Gpu>,
    param: SolverParameter,
    rule: Rule,
    params: DeviceParams,
    histories: Vec<Block>,
    _chunks: Chunks,
    clipping: Option<Clipping>,
    _local_rates: Option<LocalRates>,
    /// The losses of the latest iterations, in double precision.
    ring: Block,
    /// Two words: whether a kernel has reported a fault, and the completed iterations since the host last looked.
    guard: Block,
    /// The statistics that layers keep, of the last completed iteration: learnable parameter, and its place in the block.
    state: Vec<(usize, Range<usize>)>,
    kept_state: Block,
    /// Whether those are kept: the first time by the host, and then by every update.
    keeps_state: bool,
    /// What keeps an iteration's loss, and behind it what updates the parameters.
    launches: Vec<Launch>,
    /// For the coming update: the rate, its factor, and the place of the loss in the ring.
    words: [u32; SOLVER_WORDS],
    /// Losses in the ring since the host last looked.
    losses_pending: usize,
}

struct Clipping {
    parts: Block,
    /// The factor and the norm.
    result: Block,
}

/// What local rates need: the squares of each chunk's weights and gradients, and each chunk's factor on the learning rate.
struct LocalRates {
    weights: Block,
    gradients: Block,
    factors: Block,
}

/// Where the flag that stops updates at a loss that is not finite lies among the arguments of the launch that keeps a loss.
const STOP_ARGUMENT: usize = 7;
/// The word of an update that holds the place of its loss in the ring.
const RING_WORD: usize = 2;
/// The word of an update that holds the momentum.
const MOMENTUM_WORD: usize = 3;

impl DeviceUpdater {
    /// # Errors
    /// When the device has no room.
    pub fn new(net: &Net, on: OnDevice<'_>, param: &SolverParameter) -> Result<DeviceUpdater> {
        let rule = Rule::of(param)?;
        let gpu = on.gpu().clone();
        let params = on.params().ok_or_else(|| Error::internal("a net that trains owns its parameters"))?;
        let histories = (0..rule.histories()).map(|_| Block::new(&gpu, params.bytes)).collect::<Result<Vec<_>>>()?;
        let chunks = Chunks::new(&gpu, net, &params, param.weight_decay())?;
        let clip = || -> Result<Clipping> {
            Ok(Clipping { parts: Block::new(&gpu, 8 * chunks.number)?, result: Block::new(&gpu, 8)? })
        };
        let clipping = (param.clip_gradients() >= 0.0).then(clip).transpose()?;
        let local = || -> Result<LocalRates> {
            let bytes = |each: usize| Block::new(&gpu, each * chunks.number);
            Ok(LocalRates { weights: bytes(8)?, gradients: bytes(8)?, factors: bytes(4)? })
        };
        let local_rates = LocalRate::of(param).map(|_| local()).transpose()?;
        let ring = Block::new(&gpu, 8 * CHECK_EVERY)?;
        let guard = Block::new(&gpu, 8)?;
        let mut bytes = 0;
        let state = net.learnables().zip(&params.spans).enumerate().filter(|(_, (l, _))| l.state);
        let place = |(i, (_, span)): (usize, (_, &Range<usize>))| {
            bytes += span.len();
            (i, bytes - span.len()..bytes)
        };
        let state = state.map(place).collect();
        let kept_state = Block::new(&gpu, bytes)?;
        let words = on.solver_words();
        let (faults, layers) = on.faults();
        let (iter_size, l1) = (param.iter_size() as f32, i32::from(param.regularization_type() == "L1"));
        let (c, p, clip) = (&chunks, &params, clipping.as_ref().map(|clip| clip.result.at()));
        let mut launches = vec![Launch::new(
            "solver_keep_loss",
            Grid::rows(1, 32),
            args![
                ring.at(),
                words.offset(4 * RING_WORD),
                on.loss(),
                iter_size,
                guard.at(),
                faults,
                layers as i32,
                i32::from(true),
            ],
        )];
        if chunks.number > 0 {
            let rows = Grid::rows(chunks.number, Grid::THREADS);
            if let Some(Clipping { parts, result }) = &clipping {
                launches.push(Launch::new("solver_sumsq", rows, args![parts.at(), p.diff, c.first, c.count]));
                let clip = args![result.at(), parts.at(), c.number as i32, param.clip_gradients()];
                launches.push(Launch::new("solver_clip", Grid::rows(1, 1024), clip));
            }
            let mut factors = c.lr;
            if let (Some(local), Some(rates)) = (LocalRate::of(param), &local_rates) {
                let squares =
                    |of: DevicePtr, to: &Block| Launch::new("solver_sumsq", rows, args![to.at(), of, c.first, c.count]);
                launches.extend([squares(p.data, &rates.weights), squares(p.diff, &rates.gradients)]);
                factors = rates.factors.at();
                let args = args![
                    factors,
                    rates.weights.at(),
                    rates.gradients.at(),
                    c.begin,
                    c.chunks,
                    c.lr,
                    words,
                    clip,
                    iter_size,
                    local.trust,
                    local.decay,
                    i32::from(local.damped),
                    i32::from(local.clips),
                ];
                launches.push(Launch::new("solver_local_rates", Grid::rows(c.parameters, 128), args));
            }
            let (kernel, constant) = rule.kernel(param);
            let history = |k: usize| histories.get(k).map(Block::at);
            let update = args![
                p.data,
                p.diff,
                history(0),
                history(1),
                c.first,
                c.count,
                factors,
                c.decay,
                words,
                clip,
                iter_size,
                l1,
                constant,
                param.delta(),
                guard.at(),
                kept_state.at(),
                c.keep,
            ];
            launches.push(Launch::new(kernel, rows, update));
        }
        Ok(DeviceUpdater {
            gpu,
            param: param.clone(),
            rule,
            params,
            histories,
            _chunks: chunks,
            clipping,
            _local_rates: local_rates,
            ring,
            guard,
            state,
            kept_state,
            keeps_state: false,
            launches,
            words: [0; SOLVER_WORDS],
            losses_pending: 0,
        })
    }
}

impl Updater for DeviceUpdater {
    fn set(&mut self, rate: f32, momentum: f32, iter: i32) {
        self.words[MOMENTUM_WORD] = momentum.to_bits();
        self.words[0] = rate.to_bits();
        self.words[1] = self.rule.correction(&self.param, iter).to_bits();
        self.words[RING_WORD] = self.losses_pending as u32;
    }

    fn is_queued(&self) -> bool {
        true
    }

    fn queued(&self) -> Option<DeviceUpdate<'_>> {
        Some(DeviceUpdate { launches: &self.launches, words: self.words })
    }

    fn count(&mut self) -> bool {
        self.losses_pending += 1;
        self.losses_pending >= CHECK_EVERY
    }

    fn losses(&self) -> Result<Vec<f64>> {
        if self.losses_pending == 0 {
            return Ok(Vec::new());
        }
        let mut losses = doubles_of(&self.ring.download()?);
        losses.truncate(self.losses_pending);
        Ok(losses)
    }

    fn reset_losses(&mut self) {
        self.losses_pending = 0;
    }

    fn completed(&self) -> Result<(usize, Vec<f64>)> {
        self.gpu.finish()?;
        let guard = self.guard.download()?;
        let completed = u32::from_le_bytes([guard[4], guard[5], guard[6], guard[7]]) as usize;
        let mut losses = self.losses()?;
        losses.truncate(completed);
        Ok((self.losses_pending, losses))
    }

    fn apply(&mut self, net: &mut Net, step: &Step) -> Result<()> {
        if net.debug_info() {
            net.log_update()?;
        }
        let update = DeviceUpdate { launches: &self.launches[1..], words: self.words };
        net.pass(Pass::NOTHING, step, Some(&update))?;
        if let Some(clipping) = &self.clipping {
            let numbers = floats_of(&clipping.result.download()?);
            log_clipping(numbers[0], numbers[1], self.param.clip_gradients());
        }
        Ok(())
    }

    fn keep_statistics(&mut self, _net: &mut Net) -> Result<()> {
        if std::mem::replace(&mut self.keeps_state, true) {
            return Ok(());
        }
        self.state.iter().try_for_each(|(l, at)| {
            let from = self.params.data.offset(self.params.spans[*l].start);
            self.gpu.copy(from, self.kept_state.at().offset(at.start), at.len())
        })
    }

    fn statistics(&self) -> Result<Vec<(usize, Vec<f32>)>> {
        let all = self.kept_state.download()?;
        Ok(self.state.iter().map(|(l, at)| (*l, floats_of(&all[at.clone()]))).collect())
    }

    fn histories(&self) -> Result<Histories> {
        let mut all = vec![[Vec::new(), Vec::new()]; self.params.spans.len()];
        for (k, block) in self.histories.iter().enumerate() {
            let bytes = block.download()?;
            for (history, span) in all.iter_mut().zip(&self.params.spans) {
                history[k] = floats_of(&bytes[span.clone()]);
            }
        }
        Ok(all)
    }

    fn set_histories(&mut self, all: Histories) -> Result<()> {
        for (k, block) in self.histories.iter().enumerate() {
            let mut bytes = vec![0; self.params.bytes];
            for (history, span) in all.iter().zip(&self.params.spans) {
                if 4 * history[k].len() != span.len() {
                    return Err(Error::internal("a history has another length than its parameter"));
                }
                bytes[span.clone()].copy_from_slice(&float_bytes(history[k].iter().copied()));
            }
            block.upload(&bytes)?;
        }
        self.gpu.finish()
    }

    fn stop_at_not_finite(&mut self, yes: bool) {
        self.launches[0].args[STOP_ARGUMENT] = i32::from(yes).into();
    }
}
