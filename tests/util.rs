//! What the tests share: the binary, run in a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lgm_core::Registry;
use lgm_testkit::says;
use tempfile::TempDir;

/// The binary: the one that `LGM_CAFFE` names, else the one built with these tests.
pub fn binary() -> PathBuf {
    std::env::var_os("LGM_CAFFE").map_or_else(|| env!("CARGO_BIN_EXE_lgm-caffe").into(), PathBuf::from)
}

/// A command of the binary in a folder, with no setting of this process that changes what it logs or where it runs.
pub fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.current_dir(folder).args(args).stdin(Stdio::null());
    for name in ["GLOG_minloglevel", "GLOG_logtostderr", "GLOG_log_dir", "GLOG_v", "CUDA_PATH", "CUDA_HOME"] {
        command.env_remove(name);
    }
    // What .cargo/config.toml sets for the tests' own files, the binary does by itself.
    for name in ["HDF5_USE_FILE_LOCKING", "LGM_GPU", "LGM_LAYOUT"] {
        command.env_remove(name);
    }
    command
}

/// Runs a command that must end within a time; its exit code and all it printed.
pub fn run_within(command: &mut Command, time: Duration) -> (Option<i32>, String) {
    let printed = tempfile::NamedTempFile::new().unwrap();
    let out = || fs::File::options().append(true).open(printed.path()).unwrap();
    let mut child = command.stdout(out()).stderr(out()).spawn().unwrap();
    let until = Instant::now() + time;
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            let _ = fs::write(printed.path(), format!("no end within {} s", time.as_secs()));
            break None;
        }
        thread::sleep(Duration::from_millis(2));
    };
    (code, String::from_utf8_lossy(&fs::read(printed.path()).unwrap()).into_owned())
}

/// The text of a log line, without its stamp.
pub fn text(line: &str) -> &str {
    line.split_once("] ").map_or(line, |(_, text)| text)
}

/// Runs the binary and gives what it logged, without stamps.
pub fn run(folder: &Path, args: &[&str]) -> (Output, Vec<String>) {
    let output = command(folder, args).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).lines().map(|line| text(line).to_string()).collect();
    (output, log)
}

/// What a run logged that must succeed.
pub fn succeeds(folder: &Path, args: &[&str]) -> Vec<String> {
    let (output, log) = run(folder, args);
    assert!(output.status.success(), "{args:?}: {log:#?}");
    log
}

/// What a run printed on standard output that must succeed and log nothing.
pub fn prints(folder: &Path, args: &[&str]) -> String {
    let (output, log) = run(folder, args);
    assert!(output.status.success() && log.is_empty(), "{args:?}: {log:#?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The log of a run that must fail with code 1, and say all of `parts`, in order, after its last "error:".
pub fn fails(folder: &Path, args: &[&str], parts: &[&str]) -> Vec<String> {
    let (output, log) = run(folder, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {log:#?}");
    let from = log.iter().position(|l| l.starts_with("lgm-caffe: error: ")).expect("an error in the log");
    says(&log[from..].join("\n"), parts);
    log
}

/// Names in a folder that end in `end`, sorted by the iteration in them.
pub fn snapshots(folder: &Path, end: &str) -> Vec<(i32, String)> {
    let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let visible = names.filter(|n| n.ends_with(end) && !n.starts_with('.'));
    let iteration = |n: &str| n.split("_iter_").nth(1)?.split('.').next()?.parse().ok();
    let mut found: Vec<_> = visible.filter_map(|n| Some((iteration(&n)?, n))).collect();
    found.sort();
    found
}

pub fn registry() -> Registry {
    lgm_testkit::registry(&[lgm_layers::register, lgm_data::register])
}

pub const NET: &str = r#"
name: "tiny"
layer { name: "x" type: "DummyData" top: "x" top: "label"
  dummy_data_param { shape { dim: 8 dim: 12 } shape { dim: 8 } data_filler { type: "gaussian" } data_filler { value: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "y" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "y" bottom: "label" top: "accuracy" include { phase: TEST } }
"#;

pub const SOLVER: &str =
    "net: 'net.prototxt' base_lr: 0.01 lr_policy: 'fixed' random_seed: 1 snapshot_prefix: 'out' max_iter: 4\n";

/// A folder with `net.prototxt` and `solver.prototxt`.
pub fn job(net: &str, solver: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("net.prototxt"), net).unwrap();
    fs::write(folder.path().join("solver.prototxt"), solver).unwrap();
    folder
}

/// Files of MNIST's form, of forty images of 16 x 16, and of CIFAR-10's, of forty training and eight test images.
pub fn datasets(dir: &Path) {
    let mut pixels = (0u32..).map(|i| (i.wrapping_mul(2654435761) >> 11) as u8);
    let mut images = vec![0, 0, 8, 3, 0, 0, 0, 40, 0, 0, 0, 16, 0, 0, 0, 16];
    images.extend(pixels.by_ref().take(40 * 256));
    fs::write(dir.join("images"), images).unwrap();
    fs::write(dir.join("labels"), [&[0, 0, 8, 1, 0, 0, 0, 40][..], &[1; 40]].concat()).unwrap();
    fs::create_dir(dir.join("cifar")).unwrap();
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        let records = (0..8).flat_map(|label| [vec![label], pixels.by_ref().take(3072).collect()].concat());
        fs::write(dir.join(format!("cifar/{name}.bin")), records.collect::<Vec<u8>>()).unwrap();
    }
}

pub const TRAIN: [&str; 3] = ["train", "-solver", "solver.prototxt"];

/// A process that does not outlive its test.
pub struct Running(pub Child);

impl Running {
    pub fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.0.id());
        assert!(Command::new("sh").arg("-c").arg(command).status().unwrap().success());
    }

    /// Whether the process ends within a time.
    pub fn ends(&mut self, within: Duration) -> bool {
        let until = Instant::now() + within;
        while Instant::now() < until {
            if self.0.try_wait().unwrap().is_some() {
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
