//! Whatever changes a net between its prototxt and its running computes what the prototxt says: layers computed together,
//! a ReLU taken over by the layer before it, memory that blobs share one after another, formats on a device, recorded
//! passes. Nets that nobody wrote by hand are trained some iterations plainly, in double precision, one layer after
//! another, each blob in memory of its own, and in every other way; losses, outputs, parameters and statistics must agree.
//!
//! `LGM_RANDOM_NETS=10000` (and `LGM_RANDOM_SEED=2`) draws as many nets, others than those of every run;
//! `scripts/random-nets` calls it so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fmt::Debug;
use std::path::Path;
use std::rc::Rc;

use lgm_core::{ChannelsLast, DType, Element, Float, Node, Phase, Registry, Result, Step, Storage};
use lgm_cuda::Gpu;
use lgm_cuda::sim::Order;
use lgm_net::{Keep, Net, Options, Placement};
use lgm_proto::NetParameter;
use lgm_solver::Solver;
use lgm_testkit::{HostOnly, RandomNet, device, random_nets};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};

/// On a device the first runs launch by launch, the second is recorded, and what comes after is replayed.
const ITERATIONS: u64 = 4;
const RATE: f64 = 0.01;
const MOMENTUM: f64 = 0.9;
/// Values beyond this have lost the digits that a comparison needs.
const LARGEST: f64 = 1e6;

fn registry() -> Registry {
    let mut registry = common::registry();
    registry.add("HostOnly", |_, _| Node::host_only(HostOnly));
    registry
}

fn parse(net: &RandomNet) -> (NetParameter, lgm_proto::Positions) {
    let parsed = lgm_proto::parse_net(net.prototxt().as_bytes(), Path::new("net.prototxt")).unwrap();
    (parsed.message, parsed.positions)
}

/// What a run leaves, by name.
#[derive(Debug, PartialEq)]
struct Outcome(Vec<(String, Vec<f64>)>);

impl Outcome {
    fn of(net: &Net, losses: Vec<f64>) -> Result<Outcome> {
        let mut all = vec![("the losses".to_string(), losses)];
        all.extend(net.output_values()?.into_iter().map(|(name, values)| (format!("output {name}"), values)));
        for (layer, _) in net.layers() {
            for (i, (_, values)) in net.layer_params(layer).unwrap_or_default().into_iter().enumerate() {
                all.push((format!("parameter {i} of {layer}"), values));
            }
        }
        Ok(Outcome(all))
    }

    fn is_usable(&self) -> bool {
        self.0.iter().flat_map(|(_, values)| values).all(|v| v.abs() < LARGEST)
    }

    /// The first thing that differs by more than `tolerance` of the greatest of its values.
    fn difference(&self, want: &Outcome, tolerance: f64) -> Option<String> {
        self.0.iter().zip(&want.0).find_map(|((name, found), (wanted_name, wanted))| {
            assert_eq!((name, found.len()), (wanted_name, wanted.len()));
            let scale = wanted.iter().fold(0.1f64, |most, w| most.max(w.abs()));
            // A NaN is far from everything.
            let far = |(f, w): &(&f64, &f64)| (*f - *w).is_nan() || (*f - *w).abs() > tolerance * scale;
            let (f, w) = found.iter().zip(wanted).find(far)?;
            Some(format!("{name}: {f} against {w}, of at most {scale}"))
        })
    }
}

/// How a net runs on the host.
#[derive(Clone, Debug)]
struct Host {
    seed: u64,
    phase: Phase,
    dtype: DType,
    fuse: bool,
    keep: Keep,
}

impl Host {
    /// Plainly, in double precision.
    fn plain(seed: u64, phase: Phase) -> Host {
        Host { seed, phase, dtype: DType::F64, fuse: false, keep: Keep::Apart }
    }

    fn build(&self, net: &RandomNet) -> Result<Net> {
        let (message, positions) = parse(net);
        let options = Options {
            dtype: self.dtype,
            fuse: self.fuse,
            keep: self.keep.clone(),
            poison: self.keep != Keep::Apart,
            ..Options::new(self.phase, self.seed)
        };
        Net::new(&message, &positions, &registry(), &options)
    }

    fn run(&self, net: &RandomNet) -> std::result::Result<(Net, Outcome), TestCaseError> {
        let run = || {
            let mut net = self.build(net)?;
            let outcome = match self.dtype {
                DType::F32 => self.iterate::<f32>(&mut net),
                DType::F64 => self.iterate::<f64>(&mut net),
            };
            outcome.map(|outcome| (net, outcome))
        };
        run().map_err(|error: lgm_core::Error| fail(self, error.to_string()))
    }

    fn iterate<T: Float>(&self, net: &mut Net) -> Result<Outcome> {
        let mut losses = Vec::new();
        let mut momenta: Vec<Vec<T>> = net.learnables().map(|l| vec![T::zero(); l.spec.shape.count()]).collect();
        let rates: Vec<T> = net.learnables().map(|l| T::of(RATE * f64::from(l.lr_mult))).collect();
        for iter in 0..ITERATIONS {
            let step = Step { seed: self.seed, iter, batch: iter };
            if self.phase == Phase::Test {
                losses.push(net.forward(&step)?);
                continue;
            }
            net.clear_param_diffs()?;
            net.begin_iteration(iter);
            losses.push(net.forward(&step)?);
            net.backward(&step)?;
            for (i, (momentum, &rate)) in momenta.iter_mut().zip(&rates).enumerate() {
                let (data, diff) = net.learnable::<T>(i)?;
                for ((w, &mut d), m) in data.iter_mut().zip(diff).zip(momentum) {
                    *m = T::of(MOMENTUM) * *m + rate * d;
                    *w -= *m;
                }
            }
        }
        Outcome::of(net, losses)
    }
}

/// Every third blob of a net, for those that are kept.
fn some_blobs(net: &RandomNet) -> Vec<String> {
    let tops = parse(net).0.layer.into_iter().flat_map(|l| l.top);
    tops.step_by(3).collect()
}

/// What those hold.
fn kept(net: &Net, drawn: &RandomNet) -> Vec<(String, Vec<f64>)> {
    some_blobs(drawn).iter().map(|name| (format!("blob {name}"), net.blob(name).unwrap().1)).collect()
}

/// Draws so many nets, or as many as the environment says, and shrinks the first that fails.
fn each_net(cases: u32, check: impl Fn(&RandomNet) -> std::result::Result<(), TestCaseError>) {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u32>().unwrap());
    let config = Config {
        cases: number("LGM_RANDOM_NETS").unwrap_or(cases),
        rng_seed: RngSeed::Fixed(number("LGM_RANDOM_SEED").unwrap_or(1).into()),
        failure_persistence: None,
        max_global_rejects: 10 * cases,
        max_shrink_iters: 3000,
        ..Config::default()
    };
    TestRunner::new(config).run(&random_nets(14, &registry()), |net| check(&net)).unwrap();
}

fn fail(how: &dyn Debug, difference: String) -> TestCaseError {
    TestCaseError::fail(format!("{how:?}: {difference}"))
}

/// The same bits for blobs that share memory, and values that agree to rounding for layers that are computed together.
#[test]
fn every_way_on_the_host_computes_the_same() {
    each_net(400, |net| {
        for phase in [Phase::Train, Phase::Test] {
            let plain = Host::plain(1, phase);
            let (reference, want) = plain.run(net)?;
            if !want.is_usable() {
                return Err(TestCaseError::reject("the values grow too large"));
            }
            let packed = Host { keep: Keep::Outputs, ..plain.clone() };
            let (_, found) = packed.run(net)?;
            if let Some(difference) = found.difference(&want, 0.0) {
                return Err(fail(&packed, difference));
            }
            for keep in [Keep::Outputs, Keep::Named(some_blobs(net)), Keep::All] {
                let fused = Host { keep, fuse: true, ..plain.clone() };
                let (made, found) = fused.run(net)?;
                if let Some(difference) = found.difference(&want, 1e-8) {
                    return Err(fail(&fused, difference));
                }
                if let Keep::Named(_) = &fused.keep {
                    let (found, want) = (Outcome(kept(&made, net)), Outcome(kept(&reference, net)));
                    if let Some(difference) = found.difference(&want, 1e-8) {
                        return Err(fail(&fused, difference));
                    }
                }
            }
        }
        Ok(())
    });
}

/// Runs a net in single precision from three seeds; fails if each differs from the plain run. Where a value lies within
/// rounding of a ReLU's or a maximum's edge, single precision may see it on the other side: that depends on the numbers
/// drawn, and a fault does not.
fn in_single_precision(
    net: &RandomNet,
    phase: Phase,
    how: &dyn Debug,
    run: impl Fn(u64) -> std::result::Result<Outcome, TestCaseError>,
) -> std::result::Result<(), TestCaseError> {
    let mut last = None;
    for seed in 1..=3 {
        let (plain, mut want) = Host::plain(seed, phase).run(net)?;
        if phase == Phase::Test {
            want.0.extend(kept(&plain, net));
        }
        if !want.is_usable() {
            return Err(TestCaseError::reject("the values grow too large"));
        }
        let found = run(seed)?;
        match found.difference(&want, 2e-3) {
            Some(difference) => last = Some(difference),
            None => return Ok(()),
        }
    }
    last.map_or(Ok(()), |difference| Err(fail(how, difference)))
}

#[test]
fn single_precision_follows_double_precision() {
    each_net(400, |net| {
        let phase = Phase::Train;
        let how = |seed| Host { seed, phase, dtype: DType::F32, fuse: true, keep: Keep::Outputs };
        in_single_precision(net, phase, &how(1), |seed| Ok(how(seed).run(net)?.1))
    });
}

/// Trains a net with the solver, on a device.
fn train_on(gpu: &Rc<dyn Gpu>, net: &RandomNet, seed: u64) -> std::result::Result<Outcome, TestCaseError> {
    iterate_on(gpu, net, seed).map_err(|error| fail(&gpu.storage(), error.to_string()))
}

fn iterate_on(gpu: &Rc<dyn Gpu>, net: &RandomNet, seed: u64) -> Result<Outcome> {
    let text = format!(
        "net_param {{ {} }} base_lr: {RATE} lr_policy: 'fixed' momentum: {MOMENTUM} random_seed: {seed} max_iter: 100 \
         snapshot_after_train: false",
        net.prototxt()
    );
    let parsed = lgm_proto::parse_solver(text.as_bytes(), Path::new("solver.prototxt"))?;
    let mut solver = Solver::new_on(&parsed, &registry(), Some(gpu))?;
    let mut losses = Vec::new();
    for _ in 0..ITERATIONS {
        solver.iterate()?;
        losses.push(solver.net().loss()?);
    }
    Outcome::of(solver.net(), losses)
}

/// Runs a net on a device forward in the TEST phase, with some blobs kept.
fn score_on(gpu: &Rc<dyn Gpu>, net: &RandomNet, seed: u64) -> Result<Outcome> {
    let (message, positions) = parse(net);
    let device = Some(Placement { gpu: gpu.clone(), histories: 0 });
    let keep = Keep::Named(some_blobs(net));
    let options = Options { device, keep, fuse: true, ..Options::new(Phase::Test, seed) };
    let mut device = Net::new(&message, &positions, &registry(), &options)?;
    let mut losses = Vec::new();
    for iter in 0..ITERATIONS {
        losses.push(device.forward(&Step { seed, iter, batch: iter })?);
    }
    let mut outcome = Outcome::of(&device, losses)?;
    outcome.0.extend(kept(&device, net));
    Ok(outcome)
}

#[test]
fn a_device_computes_what_the_host_does() {
    for channels_last in [ChannelsLast::Never, ChannelsLast::Always] {
        let storage = Storage { element: Element::F32, channels_last };
        let Some(gpu) = device(Order::Reversed, None, storage) else { return };
        each_net(100, |net| {
            in_single_precision(net, Phase::Train, &storage, |seed| train_on(&gpu, net, seed))?;
            in_single_precision(net, Phase::Test, &storage, |seed| {
                score_on(&gpu, net, seed).map_err(|error| fail(&storage, error.to_string()))
            })
        });
    }
}

/// In bf16 values have too few digits to be compared so: every net runs, and twice alike.
#[test]
fn a_device_in_bf16_runs_every_net_twice_alike() {
    let storage = Storage { element: Element::Bf16, channels_last: ChannelsLast::WhereItPays };
    let (Some(one), Some(other)) = (device(Order::Forward, None, storage), device(Order::Reversed, None, storage))
    else {
        return;
    };
    each_net(60, |net| {
        let [one, other] = [&one, &other].map(|gpu| train_on(gpu, net, 1));
        let bits = |outcome: Outcome| -> Vec<Vec<u64>> {
            outcome.0.into_iter().map(|(_, values)| values.into_iter().map(f64::to_bits).collect()).collect()
        };
        if bits(one?) != bits(other?) {
            return Err(fail(&storage, "the order of threads changes the bits".into()));
        }
        Ok(())
    });
}
