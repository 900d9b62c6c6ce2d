//! What the tests share: the binary, run in a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
        std::thread::sleep(Duration::from_millis(2));
    };
    (code, String::from_utf8_lossy(&fs::read(printed.path()).unwrap()).into_owned())
}

/// The text of a log line, without its stamp.
pub fn text(line: &str) -> &str {
    line.split_once("] ").map_or(line, |(_, text)| text)
}
