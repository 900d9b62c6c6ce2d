//! The log file, named and headed as glog's.

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process;

use chrono::Local;
use lgm_core::{Error, Result};

/// A log file in the folder that `-log_dir` names.
#[derive(Debug)]
pub struct LogFile(File);

impl LogFile {
    /// Makes `lgm-caffe.HOST.USER.log.INFO.DATE-TIME.PID` and points the link `lgm-caffe.INFO` at it.
    ///
    /// # Errors
    /// When the folder does not exist or cannot be written.
    pub fn create(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let now = Local::now();
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let user = env::var("USER").or_else(|_| env::var("LOGNAME")).unwrap_or_else(|_| "unknown-user".into());
        // A name from the environment must not lead out of the folder.
        let name = format!("lgm-caffe.{host}.{user}.log.INFO.{}.{}", now.format("%Y%m%d-%H%M%S"), process::id())
            .replace('/', "_");
        let path = folder.join(&name);
        // A new file, and not one that a link of this name leads to.
        let mut file = File::create_new(&path).map_err(Error::io(&path, "make the log file"))?;
        let header = format!(
            "Log file created at: {}\nRunning on machine: {host}\n\
             Log line format: [IWEF]mmdd hh:mm:ss.uuuuuu threadid file:line] msg\n",
            now.format("%Y/%m/%d %H:%M:%S")
        );
        file.write_all(header.as_bytes()).map_err(Error::io(&path, "write the log file"))?;

        // The link is a convenience that some file systems do not have.
        let link = folder.join("lgm-caffe.INFO");
        let _ = fs::remove_file(&link);
        let _ = symlink(&name, &link);
        Ok(LogFile(file))
    }

    /// Adds lines. A full disk does not stop the training.
    pub fn write(&self, lines: &str) {
        let _ = (&self.0).write_all(lines.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_glogs_name_header_and_link() {
        let folder = tempfile::tempdir().unwrap();
        LogFile::create(folder.path()).unwrap().write("I1103 line\n");
        let link = folder.path().join("lgm-caffe.INFO");
        let name = fs::read_link(&link).unwrap().to_string_lossy().into_owned();
        let (head, tail) = name.split_once(".log.INFO.").unwrap();
        assert!(head.starts_with("lgm-caffe."), "{name}");
        let (date, pid) = tail.split_once('.').unwrap();
        assert_eq!((date.len(), pid), (15, process::id().to_string().as_str()), "{name}");
        let text = fs::read_to_string(link).unwrap();
        assert!(text.starts_with("Log file created at: 20") && text.ends_with("threadid file:line] msg\nI1103 line\n"));
    }

    #[test]
    fn nothing_is_written_through_a_planted_link() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, folder.path().join("lgm-caffe.INFO")).unwrap();
        LogFile::create(folder.path()).unwrap().write("line\n");
        let name = fs::read_link(folder.path().join("lgm-caffe.INFO")).unwrap();
        let log = folder.path().join(&name);
        assert!(fs::read_to_string(&log).unwrap().ends_with("line\n"));
        fs::remove_file(&log).unwrap();
        symlink(&victim, &log).unwrap();
        // The name holds the second, so the link is in the way if this is quick, as it is.
        let _ = LogFile::create(folder.path());
        assert_eq!(fs::read_to_string(victim).unwrap(), "precious");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = LogFile::create("/nonexistent/logs").unwrap_err().to_string();
        assert!(
            error.starts_with("/nonexistent/logs/lgm-caffe.") && error.contains("cannot make the log file"),
            "{error}"
        );
    }
}
