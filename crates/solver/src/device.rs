//! The solver's half on a device: histories, the update of all parameters in one launch, the norm of the gradients and
//! the latest losses, none of which the host waits for.

use std::ops::Range;
use std::rc::Rc;

use lgm_core::{DevicePtr, DeviceQueue, Error, Grid, Result, args};
use lgm_net::{Block, DeviceParams, Gpu, Net, Pass, SOLVER_WORDS, doubles_of, float_bytes, floats_of, six_digits};
use lgm_proto::SolverParameter;

use crate::rate::learning_rate;
use crate::rule;
use crate::solver::{Solver, log_clipping};

/// Numbers that one block of threads updates: enough that a block is worth its start, and few enough that small nets keep
/// a whole device busy.
const CHUNK: usize = 2048;
/// Iterations after which the host looks at the device even when nothing is to be shown: for faults, and the losses.
pub(crate) const CHECK_EVERY: usize = 100;

/// What every launch over the parameters needs.
struct Chunks {
    number: usize,
    /// By chunk: where its copy lies among the kept statistics, in numbers, or -1.
    keep: DevicePtr,
    first: DevicePtr,
    count: DevicePtr,
    lr: DevicePtr,
    decay: DevicePtr,
    _table: Block,
}

impl Chunks {
    fn new(gpu: &Rc<dyn Gpu>, net: &Net, params: &DeviceParams, weight_decay: f32) -> Result<Chunks> {
        let (mut first, mut count, mut lr, mut decay) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut keep, mut kept) = (Vec::new(), 0);
        for (info, span) in net.learnables().zip(&params.spans) {
            let (start, end) = (span.start / 4, span.end / 4);
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
        let number = count.len();
        let table = Block::of_words(gpu, &[first, count, lr, decay, keep].concat())?;
        let at = |words: usize| table.at().offset(4 * words);
        Ok(Chunks {
            number,
            first: at(0),
            count: at(2 * number),
            lr: at(3 * number),
            decay: at(4 * number),
            keep: at(5 * number),
            _table: table,
        })
    }
}

/// See the module.
pub(crate) struct OnDevice {
    gpu: Rc<dyn Gpu>,
    params: DeviceParams,
    histories: Vec<Block>,
    chunks: Chunks,
    /// Where the solver's words lie, and the pass's loss.
    words: DevicePtr,
    loss: DevicePtr,
    clipping: Option<Clipping>,
    ring: Block,
    /// Two words: whether a kernel has reported a fault, and the whole iterations since the host last looked.
    guard: Block,
    /// What layers report faults in, and the number of layers.
    faults: (DevicePtr, usize),
    /// The statistics that layers keep, of the last whole iteration: learnable parameter, and its place in the block.
    state: Vec<(usize, Range<usize>)>,
    kept_state: Block,
    /// Losses kept in the ring since the host last looked.
    kept: usize,
}

struct Clipping {
    parts: Block,
    /// The factor and the norm.
    result: Block,
}

impl OnDevice {
    /// The half of a solver whose training net lives on a device; nothing for one on the host.
    pub fn new(net: &Net, param: &SolverParameter) -> Result<Option<OnDevice>> {
        let (Some(gpu), Some(params)) = (net.gpu(), net.device_params()) else { return Ok(None) };
        let (Some(words), Some(loss)) = (net.solver_words(), net.device_loss()) else { return Ok(None) };
        let Some(faults) = net.device_faults() else { return Ok(None) };
        let kinds = rule::histories(param.r#type());
        let histories = (0..kinds).map(|_| Block::new(&gpu, params.bytes)).collect::<Result<_>>()?;
        let chunks = Chunks::new(&gpu, net, &params, param.weight_decay())?;
        let clip = || -> Result<Clipping> {
            Ok(Clipping { parts: Block::new(&gpu, 8 * chunks.number)?, result: Block::new(&gpu, 8)? })
        };
        let clipping = (param.clip_gradients() >= 0.0).then(clip).transpose()?;
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
        let kept = 0;
        Ok(Some(OnDevice {
            gpu,
            params,
            histories,
            chunks,
            words,
            loss,
            clipping,
            ring,
            guard,
            faults,
            state,
            kept_state,
            kept,
        }))
    }

    /// What the device must know of the coming iteration.
    pub fn words(&self, param: &SolverParameter, rate: f32, iter: i32) -> [u32; SOLVER_WORDS] {
        let mut words = [0; SOLVER_WORDS];
        words[0] = rate.to_bits();
        words[1] = rule::correction(param, iter).to_bits();
        words[2] = self.kept as u32;
        words
    }

    /// Puts the update of all parameters on the queue.
    pub fn update(&self, queue: &dyn DeviceQueue, param: &SolverParameter) -> Result<()> {
        if self.chunks.number == 0 {
            return Ok(());
        }
        let (c, p) = (&self.chunks, &self.params);
        let rows = Grid::rows(c.number, Grid::THREADS);
        if let Some(Clipping { parts, result }) = &self.clipping {
            queue.launch("solver_sumsq", rows, args![parts.at(), p.diff, c.first, c.count])?;
            let clip = args![result.at(), parts.at(), c.number as i32, param.clip_gradients()];
            queue.launch("solver_clip", Grid::rows(1, 1024), clip)?;
        }
        let (kernel, b) = match param.r#type() {
            "Nesterov" => ("solver_nesterov", 0.0),
            "AdaGrad" => ("solver_adagrad", 0.0),
            "RMSProp" => ("solver_rmsprop", param.rms_decay()),
            "AdaDelta" => ("solver_adadelta", 0.0),
            "Adam" => ("solver_adam", param.momentum2()),
            _ => ("solver_sgd", 0.0),
        };
        let history = |k: usize| self.histories.get(k).map(Block::at);
        let args = args![
            p.data,
            p.diff,
            history(0),
            history(1),
            c.first,
            c.count,
            c.lr,
            c.decay,
            self.words,
            self.clipping.as_ref().map(|clip| clip.result.at()),
            param.iter_size() as f32,
            i32::from(param.regularization_type() == "L1"),
            param.momentum(),
            b,
            param.delta(),
            self.guard.at(),
            self.kept_state.at(),
            c.keep,
        ];
        queue.launch(kernel, rows, args)
    }

    /// Puts the keeping of the iteration's loss on the queue, and the look for faults in it: with `finite`, a loss that is
    /// not finite is one.
    pub fn keep_loss(&self, queue: &dyn DeviceQueue, param: &SolverParameter, finite: bool) -> Result<()> {
        let (faults, layers) = self.faults;
        let args = args![
            self.ring.at(),
            self.words.offset(8),
            self.loss,
            param.iter_size() as f32,
            self.guard.at(),
            faults,
            layers as i32,
            i32::from(finite),
        ];
        queue.launch("solver_keep_loss", Grid::rows(1, 32), args)
    }

    /// Counts a kept loss; says whether it is time to look at them.
    pub fn kept(&mut self) -> bool {
        self.kept += 1;
        self.kept >= CHECK_EVERY
    }

    /// The losses kept since [`OnDevice::start_anew`], the oldest first. Waits for the device.
    pub fn losses(&self) -> Result<Vec<f64>> {
        if self.kept == 0 {
            return Ok(Vec::new());
        }
        let mut losses = doubles_of(&self.ring.download()?);
        losses.truncate(self.kept);
        Ok(losses)
    }

    /// Begins the ring of losses anew.
    pub fn start_anew(&mut self) {
        self.kept = 0;
    }

    /// After a failure: the iterations queued since [`OnDevice::start_anew`], and the losses of those that were whole.
    pub fn whole(&self) -> Result<(usize, Vec<f64>)> {
        self.gpu.finish()?;
        let guard = self.guard.download()?;
        let whole = u32::from_le_bytes([guard[4], guard[5], guard[6], guard[7]]) as usize;
        let mut losses = self.losses()?;
        losses.truncate(whole);
        Ok((self.kept, losses))
    }

    /// Keeps the statistics of layers as they are now.
    pub fn keep_state(&self) -> Result<()> {
        self.state.iter().try_for_each(|(l, at)| {
            let from = self.params.data.offset(self.params.spans[*l].start);
            self.gpu.copy(from, self.kept_state.at().offset(at.start), at.len())
        })
    }

    /// The statistics of layers after the last whole iteration, by learnable parameter.
    pub fn kept_state(&self) -> Result<Vec<(usize, Vec<f32>)>> {
        let all = self.kept_state.download()?;
        Ok(self.state.iter().map(|(l, at)| (*l, floats_of(&all[at.clone()]))).collect())
    }

    /// The last factor and norm of clipping, where gradients are clipped.
    pub fn clip(&self) -> Result<Option<(f32, f32)>> {
        let Some(clipping) = &self.clipping else { return Ok(None) };
        let numbers = floats_of(&clipping.result.download()?);
        Ok(Some((numbers[0], numbers[1])))
    }

    /// Every parameter's histories, in one copy for each kind.
    pub fn download(&self) -> Result<Vec<[Vec<f32>; 2]>> {
        let mut all = vec![[Vec::new(), Vec::new()]; self.params.spans.len()];
        for (k, block) in self.histories.iter().enumerate() {
            let bytes = block.download()?;
            for (history, span) in all.iter_mut().zip(&self.params.spans) {
                history[k] = floats_of(&bytes[span.clone()]);
            }
        }
        Ok(all)
    }

    /// Sets every parameter's histories.
    pub fn upload(&self, all: &[[Vec<f32>; 2]]) -> Result<()> {
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
}

impl Solver {
    /// Forward and backward over every sub-batch on a device, without waiting for it; with `update`, the update too.
    pub(crate) fn passes_on_device(&mut self, update: bool) -> Result<()> {
        self.net.begin_iteration(self.iter as u64);
        let last = self.param.iter_size() - 1;
        for sub_batch in 0..=last {
            let step = self.step(sub_batch);
            let finish = update && sub_batch == last;
            let pass = Pass { clear: sub_batch == 0, forward: true, accumulate: false, backward: true, finish };
            let Solver { net, param, device, keep_going, .. } = self;
            let Some(device) = device else { return Err(Error::internal("the solver runs on the host")) };
            let work = |queue: &dyn DeviceQueue| {
                device.keep_loss(queue, param, !*keep_going)?;
                device.update(queue, param)
            };
            net.pass(pass, &step, Some(&work))?;
        }
        Ok(())
    }

    /// A whole iteration on a device, which nobody waits for; its loss is kept there.
    pub(crate) fn iterate_on_device(&mut self) -> Result<()> {
        self.tell_device()?;
        self.passes_on_device(true)?;
        self.iter += 1;
        if self.device.as_mut().is_some_and(OnDevice::kept) { self.catch_up() } else { Ok(()) }
    }

    /// Tells the device the iteration's learning rate and the like; returns the rate.
    pub(crate) fn tell_device(&mut self) -> Result<f32> {
        let rate = learning_rate(&self.param, self.iter, &mut self.current_step);
        if let Some(device) = &self.device {
            self.net.set_solver_words(device.words(&self.param, rate, self.iter))?;
        }
        Ok(rate)
    }

    /// Waits for the device and takes in what it kept: losses, and what its kernels found wrong.
    pub(crate) fn catch_up(&mut self) -> Result<()> {
        let Some(device) = &mut self.device else { return Ok(()) };
        let losses = device.losses()?;
        self.net.check()?;
        if let Some(k) = losses.iter().position(|loss| !loss.is_finite()) {
            let text =
                format!("iteration {}: the loss is {}", self.iter - (losses.len() - k) as i32, six_digits(losses[k]));
            self.not_finite(|_| Ok(text))?;
        }
        let Some(device) = &mut self.device else { return Ok(()) };
        device.start_anew();
        self.marks.clear();
        losses.into_iter().for_each(|loss| self.smooth(loss));
        Ok(())
    }

    /// The update on a device by itself, after a pass whose loss was looked at.
    pub(crate) fn update_on_device(&mut self) -> Result<()> {
        if self.net.debug_info() {
            self.net.log_update()?;
        }
        let step = self.step(self.param.iter_size() - 1);
        let Solver { net, param, device, .. } = self;
        let Some(device) = device else { return Err(Error::internal("the solver runs on the host")) };
        let work = |queue: &dyn DeviceQueue| device.update(queue, param);
        net.pass(Pass { finish: true, ..Default::default() }, &step, Some(&work))?;
        if let Some((factor, norm)) = device.clip()? {
            log_clipping(factor, norm, param.clip_gradients());
        }
        self.marks.clear();
        self.iter += 1;
        Ok(())
    }
}
