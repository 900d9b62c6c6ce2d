//! The solver updates on one parameter of 4 Mi weights: `cargo bench -p lgm-solver`.
//!
//! Throughput is in bytes that must move: weights, gradient and histories, each read and written once. Compare it with
//! `memory/copy` of lgm-cpu's benchmark.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use lgm_proto::SolverParameter;
use lgm_solver::{Arrays, Rule, Update};

const WEIGHTS: usize = 1 << 22;

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut group = c.benchmark_group("update");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for rule in Rule::ALL {
        let solver = SolverParameter { r#type: Some(rule.name().into()), momentum: Some(0.9), ..Default::default() };
        let update = Update { scale: 1.0, rate: 0.01, momentum: 0.9, decay: 5e-4, l1: false, iter: 10 };
        let (mut data, mut first) = (vec![0.5; WEIGHTS], vec![0.0; WEIGHTS]);
        let mut second = vec![0.0; WEIGHTS * (rule.histories() - 1)];
        // The update takes the gradient's place: small enough that what stands there next time is harmless.
        let mut diff = vec![1e-3; WEIGHTS];
        group.throughput(Throughput::Bytes((8 * WEIGHTS * (2 + rule.histories())) as u64));
        group.bench_function(rule.name(), |b| {
            b.iter(|| {
                let (data, diff) = (&mut data, &mut diff);
                rule.apply(&solver, update, Arrays { data, diff, first: &mut first, second: &mut second });
            });
        });
    }
    group.finish();
    c.final_summary();
}
