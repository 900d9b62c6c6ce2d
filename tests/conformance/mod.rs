//! Every recorded case of `tests/golden` (its README has the formats), computed again by the binary: on the CPU, and
//! those that train or compute on a device.
//!
//! `LGM_CASES` picks cases by the start of their names (`layers/conv_,train/`). With `LGM_TEST_DEVICE=cuda` the second test
//! runs on the GPU of number `LGM_TEST_GPU`, else on the simulated device. A line is printed for each case
//! (`--nocapture` shows it as it comes).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;
use std::{env, fs, thread};

use lgm_testkit::{golden, has_simulator};
use tempfile::TempDir;

use crate::util;

mod compare;
mod data;
mod layers;
mod lgm;
mod probe;
mod tools;
mod training;

use compare::Worst;

/// The families of cases that a device runs: those that train or compute.
const ON_A_DEVICE: &[&str] = &["layers/", "lgm/", "train/", "resume/", "nets/"];

/// Largest difference, relative to the largest recorded value, after one pass in single precision, and after iterations.
const ONCE: f64 = 1e-4;
const TRAINED: f64 = 2e-3;

/// Cases at a time, at the most: each has the device's memory for itself.
const AT_ONCE: usize = 12;

/// Where cases run.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Cpu,
    Simulated,
    Gpu,
}

/// A case on its way: its recording and a folder of its own.
struct Trial {
    place: Place,
    /// The file or folder of `tests/golden`.
    recording: PathBuf,
    dir: TempDir,
}

/// Errors are texts: what the binary printed last, or what is not as it should be.
type Outcome = Result<Worst, String>;
type Runner = fn(&Trial) -> Outcome;

impl Trial {
    fn new(place: Place, recording: &Path) -> Trial {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("case")).unwrap();
        Trial { place, recording: recording.into(), dir }
    }

    /// A path in the folder that the case runs in.
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join("case").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }

    fn read(&self, name: &str) -> Result<String, String> {
        fs::read_to_string(self.at(name)).map_err(|e| format!("{name}: {e}"))
    }

    /// The recording's files, copied into the folder, and the data that lies beside it beside the folder.
    fn copy(&self) {
        copy_folder(&self.recording, &self.at(""));
        for entry in fs::read_dir(self.recording.parent().unwrap()).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), self.dir.path().join(entry.file_name())).unwrap();
            }
        }
    }

    /// `solver_mode` as this place wants it.
    fn mode(&self) -> &'static str {
        if self.place == Place::Cpu { "CPU" } else { "GPU" }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = util::command(&self.at(""), args);
        // Cases run side by side.
        command.env("LGM_NUM_THREADS", "1");
        if self.place == Place::Simulated {
            command.env("LGM_GPU", "sim");
        }
        command
    }

    /// Runs a command, which must succeed; all it printed.
    fn run(&self, args: &[&str]) -> Result<String, String> {
        let (code, printed) = self.run_any(args);
        if code == Some(0) { Ok(printed) } else { Err(printed) }
    }

    fn run_any(&self, args: &[&str]) -> (Option<i32>, String) {
        util::run_within(&mut self.command(args), Duration::from_secs(120))
    }

    /// Trains by `solver.prototxt`, with further flags; what was logged.
    fn train(&self, flags: &[&str]) -> Result<String, String> {
        let id = env::var("LGM_TEST_GPU").ok().filter(|id| !id.is_empty()).unwrap_or("0".into());
        let gpu: &[&str] = if self.place == Place::Cpu { &[] } else { &["-gpu", &id] };
        self.run(&[&["train", "-solver", "solver.prototxt"], flags, gpu].concat())
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A recorded case.
struct Case {
    name: String,
    recording: PathBuf,
    run: Runner,
    tolerance: f64,
}

/// All cases, or those that start so.
fn cases(starts: &[&str]) -> Vec<Case> {
    let folders: [(&str, Runner, f64); 7] = [
        ("layers", layers::run, ONCE),
        ("lgm", lgm::run, ONCE),
        ("train", training::train, TRAINED),
        ("resume", training::resume, TRAINED),
        ("nets", training::net, TRAINED),
        ("data", data::run, 0.0),
        ("tools", tools::run, 0.0),
    ];
    let mut cases = Vec::new();
    for (folder, run, tolerance) in folders {
        for entry in fs::read_dir(golden(folder)).unwrap().map(|entry| entry.unwrap().path()) {
            let name = format!("{folder}/{}", entry.file_stem().unwrap().to_str().unwrap());
            // Files are cases where folders are not; the others are data.
            let is_case = entry.is_dir() || entry.extension().is_some_and(|end| end == "npz");
            if is_case && (starts.is_empty() || starts.iter().any(|start| name.starts_with(start))) {
                cases.push(Case { name, recording: entry, run, tolerance });
            }
        }
    }
    cases.sort_by(|a, b| b.name.cmp(&a.name));
    cases
}

/// Runs cases, as many at a time as there are processors. Fails with all that went wrong.
fn check(place: Place, starts: &[&str]) {
    let picked = env::var("LGM_CASES").unwrap_or_default();
    let picked: Vec<&str> = picked.split([',', ' ']).filter(|start| !start.is_empty()).collect();
    let starts = if picked.is_empty() { starts } else { &picked };
    let queue = cases(starts);
    assert!(!queue.is_empty(), "no case starts with {}", starts.join(" or with "));
    let (queue, failures) = (Mutex::new(queue), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(thread::available_parallelism().map_or(1, usize::from)) {
            scope.spawn(|| {
                loop {
                    let Some(case) = queue.lock().unwrap().pop() else { break };
                    let trial = Trial::new(place, &case.recording);
                    let said = match (case.run)(&trial) {
                        Ok(worst) if worst.error <= case.tolerance => {
                            println!("ok   {:9.2e} {} {}", worst.error, case.name, worst.what);
                            continue;
                        }
                        Ok(worst) => format!("{} is off by {:.2e}", worst.what, worst.error),
                        Err(printed) => last(&printed),
                    };
                    println!("FAIL {}: {said}", case.name);
                    failures.lock().unwrap().push(format!("{}: {said}", case.name));
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of the recorded cases:\n{}", failures.len(), failures.join("\n"));
}

/// The last lines of what a command printed.
fn last(printed: &str) -> String {
    let lines: Vec<&str> = printed.lines().map(util::text).collect();
    lines[lines.len().saturating_sub(4)..].join(" | ")
}

#[test]
fn on_the_cpu() {
    check(Place::Cpu, &[]);
}

#[test]
fn on_a_device() {
    if env::var("LGM_TEST_DEVICE").is_ok_and(|device| device == "cuda") {
        check(Place::Gpu, ON_A_DEVICE);
    } else if has_simulator() {
        check(Place::Simulated, ON_A_DEVICE);
    }
}
