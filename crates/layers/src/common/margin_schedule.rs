//! A number that changes while a net trains: the margins of ClassDistance and LGMLoss, what LGMLoss multiplies its λ by, the
//! λ of MarginSoftmaxLoss;
//! `ParamParameter` in a prototxt.
//!
//! | policy | every `step` iterations |
//! | --- | --- |
//! | `CONSTANT` | nothing |
//! | `STEPUP` | value ← clamp(value · `gamma`, `min`, `max`) |
//! | `ADDUP` | value ← clamp(value + `gamma`, `min`, `max`) |
//!
//! The arithmetic is the L-GM fork's, in single precision. `iter` is the schedule's own count when a run starts; with
//! an `iter` other than 0 the value starts as clamp(value · gamma^⌊iter/step⌋) or clamp(value + gamma · ⌊iter/step⌋).
//! A count that is a positive multiple of `step` changes the value before the iteration is computed. A value that was
//! never changed is never clamped.
//!
//! Where we differ from the fork: the count goes up once an iteration of the solver, not once a forward pass, so a
//! schedule means the same whatever `iter_size` is; and it is part of a snapshot, where the fork starts again from
//! `iter` on every resume. A run resumed from a solver state that knows nothing of the schedule (Caffe's own) takes it
//! up where an uninterrupted run would be, unless `iter` says where that is, as the fork's users had to.

use lgm_core::{Error, Result, State, ensure};
use lgm_proto::param_parameter::Policy;
use lgm_proto::{ParamParameter, six_digits};

/// The largest count that a state keeps exactly.
const MOST: f64 = 9_007_199_254_740_992.0;

/// A margin and where it stands.
#[derive(Clone, Debug)]
pub struct MarginSchedule {
    field: &'static str,
    log_name: &'static str,
    policy: Policy,
    min: f32,
    max: f32,
    gamma: f32,
    step: i64,
    start: Mark,
    now: Mark,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Mark {
    value: f32,
    /// The schedule's own count at the next iteration.
    count: i64,
    /// The solver's next iteration, where known.
    next: Option<u64>,
}

impl MarginSchedule {
    /// A schedule as the prototxt's `field` describes it (zero for ever when absent); `log_name` is what the log calls
    /// the value.
    ///
    /// # Errors
    /// For a number that is not finite, a negative `iter`, and, unless the policy is CONSTANT, a `step` that is not
    /// positive or a `min` above `max`.
    pub fn new(field: &'static str, log_name: &'static str, param: Option<&ParamParameter>) -> Result<Self> {
        let default = ParamParameter::default();
        let param = param.unwrap_or(&default);
        let (value, min, max, gamma) = (param.value(), param.min(), param.max(), param.gamma());
        for (name, x) in [("value", value), ("gamma", gamma)] {
            ensure!(x.is_finite(), "{field}: {name} must be a finite number, found {x}");
        }
        let (policy, step, count) = (param.policy(), i64::from(param.step()), i64::from(param.iter()));
        ensure!(count >= 0, "{field}: iter must not be negative, found {count}");
        if policy != Policy::Constant {
            let name = policy.as_str_name();
            ensure!(step > 0, "{field}: step must be positive for policy {name}, found {step}");
            ensure!(min <= max, "{field}: min must not exceed max, found min {min} and max {max}");
        }
        let start = Mark { value, count, next: (count == 0).then_some(0) };
        let mut schedule = MarginSchedule { field, log_name, policy, min, max, gamma, step, start, now: start };
        if count != 0 {
            let changes = if policy == Policy::Constant { 0.0 } else { (count / step) as f32 };
            schedule.start.value = match policy {
                Policy::Constant => value,
                Policy::Stepup => schedule.clamp(value * gamma.powf(changes)),
                Policy::Addup => schedule.clamp(value + gamma * changes),
            };
            schedule.now = schedule.start;
        }
        Ok(schedule)
    }

    /// The margin of the present iteration.
    pub fn value(&self) -> f32 {
        self.now.value
    }

    /// Moves to an iteration of the solver, counted from 0, and gives the line to log if the value changed with it.
    ///
    /// An iteration later than the next one is caught up with silently; an earlier one is gone back to.
    pub fn begin_iteration(&mut self, iter: u64) -> Option<String> {
        let next = self.now.next.unwrap_or(iter);
        if iter < next {
            self.now = self.start;
        }
        let mut next = self.now.next.unwrap_or(iter);
        if self.start.next.is_none() && self.now.count == self.start.count {
            self.start.next = Some(iter);
        }
        while next < iter {
            self.advance();
            next += 1;
        }
        let before = self.now.value;
        self.advance();
        self.now.next = Some(iter.saturating_add(1));
        let value = self.now.value;
        (value != before).then(|| format!("{} changed to {}", self.log_name, six_digits(value)))
    }

    /// Adds where the schedule stands to a layer's state, as `FIELD.value` and `FIELD.iter`.
    pub fn save(&self, state: &mut State) {
        let [value, iter] = self.keys();
        state.insert(value, f64::from(self.now.value));
        state.insert(iter, self.now.count as f64);
    }

    /// Takes up what [`MarginSchedule::save`] wrote. The next iteration begun, whatever its number, goes on from there.
    ///
    /// # Errors
    /// When the state lacks the schedule or holds an impossible count.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        let find = |key: &str| {
            state.get(key).copied().ok_or_else(|| {
                Error::config(format!("the saved state of the layer has no '{key}'; was {} added since?", self.field))
            })
        };
        let [value, iter] = self.keys();
        let (value, iter) = (find(&value)?, find(&iter)?);
        let whole = iter.fract() == 0.0 && (0.0..=MOST).contains(&iter);
        ensure!(whole && value.is_finite(), "the saved {} is damaged: value {value}, iter {iter}", self.field);
        self.start = Mark { value: value as f32, count: iter as i64, next: None };
        self.now = self.start;
        Ok(())
    }

    /// The keys that [`MarginSchedule::save`] writes.
    pub fn keys(&self) -> [String; 2] {
        [format!("{}.value", self.field), format!("{}.iter", self.field)]
    }

    /// The schedule in the fork's words: `value 0 step 1000 gamma 1 min 0 max 1`.
    pub fn describe(&self) -> String {
        let [value, gamma, min, max] = [self.now.value, self.gamma, self.min, self.max].map(six_digits);
        format!("value {value} step {} gamma {gamma} min {min} max {max}", self.step)
    }

    fn advance(&mut self) {
        let old = self.now.value;
        if self.now.count > 0 && self.policy != Policy::Constant && self.now.count % self.step == 0 {
            self.now.value = match self.policy {
                Policy::Constant => old,
                Policy::Stepup => self.clamp(old * self.gamma),
                Policy::Addup => self.clamp(old + self.gamma),
            };
        }
        self.now.count += 1;
    }

    fn clamp(&self, value: f32) -> f32 {
        value.min(self.max).max(self.min)
    }
}

/// The margins of a layer, and the ramp of its likelihood term's weight if it has one.
#[derive(Clone, Debug)]
pub(crate) struct Margins {
    /// `margin_mul`, `margin_add` and perhaps `center_coef_ramp`.
    schedules: Vec<MarginSchedule>,
    /// Whether they apply: in training, to a layer that sees labels.
    active: bool,
}

impl Margins {
    pub fn new(mul: Option<&ParamParameter>, add: Option<&ParamParameter>) -> Result<Self> {
        let mul = MarginSchedule::new("margin_mul", "mul_margin", mul)?;
        let add = MarginSchedule::new("margin_add", "add_margin", add)?;
        Ok(Margins { schedules: vec![mul, add], active: false })
    }

    /// With the ramp of λ that the prototxt describes, if it does.
    pub fn with_ramp(mut self, ramp: Option<&ParamParameter>) -> Result<Self> {
        if ramp.is_some() {
            self.schedules.push(MarginSchedule::new("center_coef_ramp", "center_coef_ramp", ramp)?);
        }
        Ok(self)
    }

    /// Says whether they apply; margins are zero, the ramp is 1, and both stand still where they do not.
    pub fn activate(&mut self, active: bool) {
        self.active = active;
    }

    fn value(&self, number: usize, otherwise: f64) -> f64 {
        self.schedules.get(number).filter(|_| self.active).map_or(otherwise, |schedule| schedule.value().into())
    }

    /// What a label's logit is multiplied by, less one, and what is taken off it.
    pub fn values(&self) -> (f64, f64) {
        (self.value(0, 0.0), self.value(1, 0.0))
    }

    /// What λ is multiplied by.
    pub fn ramp(&self) -> f64 {
        self.value(2, 1.0)
    }

    /// See [`lgm_core::Layer::begin_iteration`].
    pub fn begin_iteration(&mut self, iter: u64) -> Vec<String> {
        let schedules = self.schedules.iter_mut().filter(|_| self.active);
        schedules.filter_map(|schedule| schedule.begin_iteration(iter)).collect()
    }

    /// See [`lgm_core::Layer::state`].
    pub fn state(&self) -> State {
        let mut state = State::new();
        self.schedules.iter().filter(|_| self.active).for_each(|schedule| schedule.save(&mut state));
        state
    }

    /// See [`lgm_core::Layer::restore`].
    pub fn restore(&mut self, state: &State) -> Result<()> {
        let known: Vec<String> = self.schedules.iter().filter(|_| self.active).flat_map(MarginSchedule::keys).collect();
        if let Some(unknown) = state.keys().find(|k| !known.contains(k)) {
            let known = if known.is_empty() { "nothing".into() } else { known.join(", ") };
            return Err(Error::config(format!("the saved state holds '{unknown}', but this layer keeps {known}")));
        }
        self.schedules.iter_mut().filter(|_| self.active).try_for_each(|schedule| schedule.restore(state))
    }

    /// The multiplicative margin in the fork's words.
    pub fn describe_mul(&self) -> String {
        self.schedules[0].describe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(policy: Policy, value: f32, gamma: f32, step: i32, max: f32) -> MarginSchedule {
        MarginSchedule::new("margin_mul", "mul_margin", Some(&param(policy, value, gamma, step, max))).unwrap()
    }

    fn param(policy: Policy, value: f32, gamma: f32, step: i32, max: f32) -> ParamParameter {
        let mut p = ParamParameter::default();
        p.set_policy(policy);
        ParamParameter { value: Some(value), gamma: Some(gamma), step: Some(step), max: Some(max), ..p }
    }

    fn run(s: &mut MarginSchedule, iters: std::ops::Range<u64>) -> (Vec<f32>, Vec<String>) {
        let mut log = vec![];
        let values = iters.map(|i| (log.extend(s.begin_iteration(i)), s.value()).1).collect();
        (values, log)
    }

    #[test]
    fn policies_step_and_clamp_as_the_fork_does() {
        let (values, log) = run(&mut schedule(Policy::Addup, 0.1, 0.1, 2, 0.3), 0..8);
        assert_eq!(values, [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3]);
        assert_eq!(log, ["mul_margin changed to 0.2", "mul_margin changed to 0.3"]);
        let (values, log) = run(&mut schedule(Policy::Stepup, 0.5, 1.5, 3, 1.0), 0..8);
        assert_eq!(values, [0.5, 0.5, 0.5, 0.75, 0.75, 0.75, 1.0, 1.0]);
        assert_eq!(log, ["mul_margin changed to 0.75", "mul_margin changed to 1"]);
        // Above `max`, but CONSTANT never clamps.
        let (values, log) = run(&mut schedule(Policy::Constant, 10.0, 2.0, 1, 1.0), 0..3);
        assert_eq!((values, log.len()), (vec![10.0; 3], 0));
        // Above `max` until the first change.
        assert_eq!(run(&mut schedule(Policy::Addup, 5.0, 0.1, 2, 1.0), 0..3).0, [5.0, 5.0, 1.0]);
    }

    #[test]
    fn absent_means_no_margin() {
        let mut s = MarginSchedule::new("margin_add", "add_margin", None).unwrap();
        assert_eq!(run(&mut s, 0..2001).0.last(), Some(&0.0));
        assert_eq!(s.describe(), "value 0 step 1000 gamma 1 min 0 max 1");
    }

    #[test]
    fn iter_starts_the_count_and_the_value_as_the_fork_does() {
        let p = ParamParameter { iter: Some(5), ..param(Policy::Addup, 0.0, 0.125, 2, 1.0) };
        let mut s = MarginSchedule::new("margin_mul", "mul_margin", Some(&p)).unwrap();
        assert_eq!(s.value(), 0.25);
        assert_eq!(run(&mut s, 0..3).0, [0.25, 0.375, 0.375]);
        // A count already at a multiple of `step` changes at once, after having been counted in the start.
        let p = ParamParameter { iter: Some(4), ..param(Policy::Stepup, 0.125, 2.0, 2, 10.0) };
        let mut s = MarginSchedule::new("margin_mul", "mul_margin", Some(&p)).unwrap();
        assert_eq!(s.value(), 0.5);
        assert_eq!(run(&mut s, 0..2).0, [1.0, 1.0]);
        // `iter` is where the run starts, even when the solver resumes at 100.
        let mut s = MarginSchedule::new("margin_mul", "mul_margin", Some(&p)).unwrap();
        assert_eq!(run(&mut s, 100..102).0, [1.0, 1.0]);
        assert_eq!(run(&mut s, 100..102).0, [1.0, 1.0]);
    }

    #[test]
    fn a_later_iteration_is_caught_up_with_silently() {
        let fresh = || schedule(Policy::Addup, 0.0, 0.001, 7, 1.0);
        let (values, _) = run(&mut fresh(), 0..200);
        for at in [1, 6, 7, 8, 150] {
            let mut s = fresh();
            let (got, log) = run(&mut s, at..200);
            assert_eq!(got, values[at as usize..]);
            assert_eq!(log.len(), (at..200).filter(|i| *i > 0 && i % 7 == 0).count());
            // Going back gives the same values again.
            assert_eq!(run(&mut s, 3..200).0, values[3..]);
        }
    }

    #[test]
    fn a_restored_schedule_equals_one_that_never_stopped() {
        let fresh = || schedule(Policy::Stepup, 0.1, 1.01, 5, 1.0);
        let (values, _) = run(&mut fresh(), 0..100);
        for stop in [1u64, 4, 5, 6, 50] {
            let mut first = fresh();
            run(&mut first, 0..stop);
            let mut state = State::new();
            first.save(&mut state);
            let mut second = fresh();
            second.restore(&state).unwrap();
            assert_eq!(run(&mut second, stop..100).0, values[stop as usize..]);
        }
        let err = fresh().restore(&State::new()).unwrap_err().to_string();
        assert!(err.contains("margin_mul.value"), "{err}");
        let bad = State::from([("margin_mul.value".into(), 0.1), ("margin_mul.iter".into(), 0.5)]);
        assert!(fresh().restore(&bad).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn mistakes_are_named() {
        let fails =
            |p: ParamParameter| MarginSchedule::new("margin_add", "add_margin", Some(&p)).unwrap_err().to_string();
        let err = fails(param(Policy::Addup, 0.0, 0.1, 0, 1.0));
        assert_eq!(err, "margin_add: step must be positive for policy ADDUP, found 0");
        assert!(fails(param(Policy::Stepup, 0.0, 0.1, -5, 1.0)).contains("found -5"));
        assert!(fails(param(Policy::Stepup, 0.0, 0.1, 5, -1.0)).contains("min 0 and max -1"));
        assert!(fails(param(Policy::Stepup, f32::NAN, 0.1, 5, 1.0)).contains("value must be a finite number"));
        assert!(fails(ParamParameter { iter: Some(-1), ..Default::default() }).contains("iter must not be negative"));
        // CONSTANT uses neither.
        assert!(MarginSchedule::new("m", "m", Some(&param(Policy::Constant, 0.0, 0.1, 0, -1.0))).is_ok());
    }

    #[test]
    fn numbers_are_written_as_streams_write_them() {
        let cases: [(f32, &str); 10] = [
            (0.2, "0.2"),
            (0.0, "0"),
            (1.0, "1"),
            (-0.375, "-0.375"),
            (0.1 + 0.2, "0.3"),
            (1234567.0, "1.23457e+06"),
            (999999.5, "1e+06"),
            (100000.0, "100000"),
            (0.00001, "1e-05"),
            (0.000123456, "0.000123456"),
        ];
        cases.iter().for_each(|(x, want)| assert_eq!(six_digits(*x), *want));
    }
}
