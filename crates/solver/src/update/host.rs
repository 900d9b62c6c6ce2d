//! The update of a net on the host.

use lgm_core::{Error, Result, Step, memory};
use lgm_cpu::elementwise::sumsq;
use lgm_net::{LearnableInfo, Net};
use lgm_proto::SolverParameter;

use super::{Histories, Updater, clip_factor, log_clipping};
use crate::local_rate::LocalRate;
use crate::rules::{Arrays, Rule, Update};

/// See the module.
pub(crate) struct HostUpdater {
    param: SolverParameter,
    rule: Rule,
    local: Option<LocalRate>,
    rate: f32,
    momentum: f32,
    iter: i32,
    /// The gradients' norm, once it is known for the iteration in hand.
    norm: Option<f32>,
    histories: Histories,
    /// Those parameters that layers set by themselves, before the iteration in hand.
    statistics: Vec<(usize, Vec<f32>)>,
}

impl HostUpdater {
    /// # Errors
    /// When there is no memory for the histories.
    pub fn new(net: &Net, param: &SolverParameter) -> Result<HostUpdater> {
        let rule = Rule::of(param)?;
        let each = |l: LearnableInfo<'_>| {
            let n = l.spec.shape.count();
            let zeros = |n| memory::zeros(n, format!("layer '{}': the solver's history", l.layer));
            Ok([zeros(n)?, zeros(if rule.histories() == 2 { n } else { 0 })?])
        };
        let histories = net.learnables().map(each).collect::<Result<_>>()?;
        let kept = net.learnables().enumerate().filter(|(_, l)| l.state);
        let statistics = kept.map(|(i, _)| (i, Vec::new())).collect();
        let (param, local) = (param.clone(), LocalRate::of(param));
        let (rate, momentum, iter, norm) = (0.0, 0.0, 0, None);
        Ok(HostUpdater { param, rule, local, rate, momentum, iter, norm, histories, statistics })
    }
}

impl Updater for HostUpdater {
    fn set(&mut self, rate: f32, momentum: f32, iter: i32) {
        (self.rate, self.momentum, self.iter, self.norm) = (rate, momentum, iter, None);
    }

    fn norm(&mut self, net: &mut Net) -> Result<Option<f32>> {
        if self.param.clip_gradients() < 0.0 {
            return Ok(None);
        }
        let mut squares = 0.0f64;
        for i in 0..self.histories.len() {
            squares += sumsq(net.learnable::<f32>(i)?.1) as f64;
        }
        self.norm = Some(squares.sqrt() as f32);
        Ok(self.norm)
    }

    fn apply(&mut self, net: &mut Net, _step: &Step) -> Result<()> {
        let limit = self.param.clip_gradients();
        let factor = self.norm.map_or(1.0, |norm| clip_factor(norm, limit));
        if let Some(norm) = self.norm {
            log_clipping(factor, norm, limit);
        }
        if net.debug_info() {
            net.log_update()?;
        }
        let scale = factor / self.param.iter_size() as f32;
        let mults: Vec<(f32, f32)> = net.learnables().map(|l| (l.lr_mult, l.decay_mult)).collect();
        for (i, (lr_mult, decay_mult)) in mults.into_iter().enumerate() {
            let (data, diff) = net.learnable::<f32>(i)?;
            let lr_mult = match self.local {
                None => lr_mult,
                Some(local) => {
                    let [weights, gradients] = [&*data, &*diff].map(|all| f64::from(sumsq(all)));
                    let gradients = gradients * f64::from(scale).powi(2);
                    local.factor(lr_mult, (weights, gradients), self.rate, self.momentum)
                }
            };
            let update = Update {
                scale,
                rate: self.rate * lr_mult,
                momentum: self.momentum,
                decay: self.param.weight_decay() * decay_mult,
                l1: self.param.regularization_type() == "L1",
                iter: self.iter,
            };
            let [first, second] = &mut self.histories[i];
            self.rule.apply(&self.param, update, Arrays { data, diff, first, second });
        }
        // The next iteration's are those of the net.
        self.statistics.iter_mut().for_each(|(_, kept)| kept.clear());
        Ok(())
    }

    fn first_not_finite(&self, net: &mut Net) -> Result<Option<usize>> {
        for i in 0..self.histories.len() {
            if !lgm_cpu::elementwise::all_finite(net.learnable::<f32>(i)?.0) {
                return Ok(Some(i));
            }
        }
        Ok(None)
    }

    fn keep_statistics(&mut self, net: &mut Net) -> Result<()> {
        for (i, kept) in &mut self.statistics {
            kept.clear();
            kept.extend_from_slice(net.learnable::<f32>(*i)?.0);
        }
        Ok(())
    }

    fn statistics(&self) -> Result<Vec<(usize, Vec<f32>)>> {
        Ok(self.statistics.iter().filter(|(_, kept)| !kept.is_empty()).cloned().collect())
    }

    fn histories(&self) -> Result<Histories> {
        Ok(self.histories.clone())
    }

    fn set_histories(&mut self, all: Histories) -> Result<()> {
        let fits = |(old, new): (&[Vec<f32>; 2], &[Vec<f32>; 2])| (0..2).all(|k| old[k].len() == new[k].len());
        if !self.histories.iter().zip(&all).all(fits) {
            return Err(Error::internal("a history has another length than its parameter"));
        }
        self.histories = all;
        Ok(())
    }

    /// The loss is looked at before the update.
    fn stop_at_not_finite(&mut self, _yes: bool) {}
}
