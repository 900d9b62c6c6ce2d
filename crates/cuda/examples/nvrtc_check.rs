//! Compiles every kernel for every architecture with NVRTC, which needs no GPU, and prints what each uses: registers of
//! a thread by architecture, bytes of shared memory of a block, bytes of local memory of a thread. Fails on an error, a
//! warning or a spilled register.
//!
//!     scripts/nvrtc-check [NAME…]                  (part of a source's name; all without)
//!     scripts/nvrtc-check --keep 90 FOLDER         compiles for one architecture as running on it does, into a cache

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use lgm_core::{Error, Result};
use lgm_cuda::ptxas::{self, KernelUse};
use lgm_cuda::{KernelCache, Nvrtc, SearchPath, Unit, compile_all, kernels};

const ARCHITECTURES: [u32; 7] = [75, 80, 86, 89, 90, 100, 120];

/// What came of one source for one architecture.
struct Outcome {
    unit: usize,
    architecture: u32,
    kernels: Result<Vec<KernelUse>>,
    remarks: String,
}

fn check(nvrtc: &Nvrtc, units: &[Unit<'_>]) -> Vec<Outcome> {
    let jobs: Vec<(usize, u32)> = (0..units.len()).flat_map(|u| ARCHITECTURES.map(|a| (u, a))).collect();
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let options = [Nvrtc::OPTIONS, &[Nvrtc::VERBOSE]].concat();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(&(unit, architecture)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let compiled = nvrtc.compile(&units[unit], architecture, &options);
                    let remarks = compiled.as_ref().map(|c| ptxas::remarks(&c.log)).unwrap_or_default();
                    let kernels = compiled.map(|c| ptxas::kernels(&c.log));
                    let outcome = Outcome { unit, architecture, kernels, remarks };
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|outcome| (outcome.unit, outcome.architecture));
    done
}

/// Prints a table of kernels and gives the problems.
fn report(outcomes: &[Outcome], units: &[Unit<'_>]) -> Vec<String> {
    let mut problems = Vec::new();
    let columns: Vec<String> = ARCHITECTURES.iter().map(|a| format!("{:>6}", format!("sm_{a}"))).collect();
    println!("{:<44}{}  shared  local", "registers", columns.concat());
    for (u, unit) in units.iter().enumerate() {
        let mut table: BTreeMap<&str, BTreeMap<u32, &KernelUse>> = BTreeMap::new();
        for outcome in outcomes.iter().filter(|outcome| outcome.unit == u) {
            let place = format!("kernels/{}.cu for sm_{}", unit.name, outcome.architecture);
            if !outcome.remarks.is_empty() {
                problems.push(format!("{place}: the compiler remarks\n{}", outcome.remarks));
            }
            let found = match &outcome.kernels {
                Ok(found) => found,
                Err(error) => {
                    problems.push(format!("{place}: {error}"));
                    continue;
                }
            };
            for kernel in found {
                table.entry(&kernel.name).or_default().insert(outcome.architecture, kernel);
                if kernel.spills() > 0 {
                    let KernelUse { name, spill_stores: out, spill_loads: back, .. } = kernel;
                    problems.push(format!("{place}: {name} spills registers ({out} bytes out, {back} back)"));
                }
            }
        }
        for (name, uses) in &table {
            let registers = ARCHITECTURES.map(|a| match uses.get(&a) {
                Some(kernel) => format!("{:>6}", kernel.registers),
                None => format!("{:>6}", "-"),
            });
            let most = |value: fn(&KernelUse) -> u32| uses.values().map(|kernel| value(kernel)).max().unwrap_or(0);
            println!("{name:<44}{}{:>8}{:>7}", registers.concat(), most(|k| k.shared), most(|k| k.stack));
        }
    }
    problems
}

/// Fills a cache, for a machine that is not to compile.
fn keep(nvrtc: &Nvrtc, architecture: &str, folder: &str) -> Result<()> {
    let architecture =
        architecture.parse().map_err(|_| Error::config(format!("'{architecture}' is no architecture; 90 is")))?;
    let units: Vec<Unit<'_>> = kernels::sources().iter().map(Unit::from).collect();
    compile_all(nvrtc, architecture, &units, &KernelCache::in_folder(folder))?;
    println!("{} sources for sm_{architecture} in {folder}", units.len());
    Ok(())
}

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let nvrtc = match Nvrtc::load(&SearchPath::from_env()) {
        Ok(nvrtc) => nvrtc,
        Err(error) => {
            eprintln!("nvrtc-check: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("NVRTC {} ({})", nvrtc.version(), nvrtc.path().display());
    if let [keeps, architecture, folder] = &wanted[..]
        && keeps == "--keep"
    {
        return keep(&nvrtc, architecture, folder).map_or_else(
            |error| {
                eprintln!("nvrtc-check: {error}");
                ExitCode::FAILURE
            },
            |()| ExitCode::SUCCESS,
        );
    }
    let named = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let units: Vec<Unit<'_>> = kernels::sources().iter().filter(|s| named(s.name)).map(Unit::from).collect();
    if units.is_empty() {
        eprintln!("nvrtc-check: no kernel source is named so");
        return ExitCode::FAILURE;
    }
    let problems = report(&check(&nvrtc, &units), &units);
    problems.iter().for_each(|problem| eprintln!("{problem}"));
    match problems.len() {
        0 => {
            println!("{} sources for {} architectures: no error, warning or spill", units.len(), ARCHITECTURES.len());
            ExitCode::SUCCESS
        }
        count => {
            eprintln!("nvrtc-check: {count} problems");
            ExitCode::FAILURE
        }
    }
}
