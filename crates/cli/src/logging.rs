//! The log: `tracing` events written as glog writes them, which Caffe's log scripts read.
//!
//! Lines go to stderr, and with `-log_dir` also to a file there. Each line of a message gets a prefix, since
//! the scripts expect a time at the start of every line with an iteration (and stop at an empty line).

mod file;
mod format;

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::args::LogFlags;
use crate::progress;
use file::LogFile;
use format::{Severity, Stamp};

/// Sets up the log for the process. Later calls change nothing. Unless the command `narrates`, which logs each step,
/// only warnings and errors are logged, or what `-v` adds.
///
/// A log file that was asked for and cannot be made is warned of, as glog does, and the log goes to stderr alone.
///
/// # Errors
/// When the log cannot be set up.
pub fn init(flags: &LogFlags, narrates: bool) -> anyhow::Result<()> {
    if tracing::dispatcher::has_been_set() {
        return Ok(());
    }
    let settings = Settings::new(flags, |name| env::var(name).ok().filter(|value| !value.is_empty()));
    let (file, error) = match settings.folder.as_ref().map(LogFile::create).transpose() {
        Ok(file) => (file, None),
        Err(error) => (None, Some(error)),
    };
    let glog = Glog { min: settings.min, verbosity: settings.verbosity, narrates, file };
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(glog))?;
    if let Some(error) = error {
        tracing::warn!("{error}; the log goes to stderr alone");
    }
    Ok(())
}

/// glog's settings, from flags or else from the environment.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    min: Severity,
    verbosity: i32,
    folder: Option<PathBuf>,
}

impl Settings {
    fn new(flags: &LogFlags, var: impl Fn(&str) -> Option<String>) -> Self {
        // A variable that is no number counts as not set.
        let number = |flag: Option<i32>, name: &str| flag.or_else(|| var(name)?.parse().ok()).unwrap_or(0);
        let yes = |name: &str| var(name).is_some_and(|v| ["1", "true", "t", "yes", "y"].contains(&v.as_str()));
        let stderr_only = flags.logtostderr || yes("GLOG_logtostderr");
        let folder = flags.log_dir.clone().or_else(|| var("GLOG_log_dir").map(PathBuf::from));
        Settings {
            min: Severity::from_number(number(flags.minloglevel, "GLOG_minloglevel")),
            verbosity: number(flags.v, "GLOG_v"),
            folder: folder.filter(|_| !stderr_only),
        }
    }
}

/// The layer that writes.
struct Glog {
    min: Severity,
    verbosity: i32,
    narrates: bool,
    file: Option<LogFile>,
}

impl Glog {
    fn most_verbose(&self) -> LevelFilter {
        match self.verbosity {
            ..=0 if self.narrates => LevelFilter::INFO,
            ..=0 => LevelFilter::WARN,
            1 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }
}

impl<S: Subscriber> Layer<S> for Glog {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        // Other libraries' events are about their own insides; only their warnings matter to a user.
        let limit = if metadata.target().starts_with("lgm_") { self.most_verbose() } else { LevelFilter::WARN };
        *metadata.level() <= limit
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.most_verbose())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut message = Message::default();
        event.record(&mut message);
        let severity = match *metadata.level() {
            Level::ERROR if message.fatal => Severity::Fatal,
            Level::ERROR => Severity::Error,
            Level::WARN => Severity::Warning,
            _ => Severity::Info,
        };
        if severity < self.min {
            return;
        }
        let lines =
            Stamp::now(severity, metadata.file(), metadata.line()).lines(&lgm_proto::strings::readable(&message.text));
        // A log that cannot be written must not stop the training.
        progress::above(|| {
            let _ = io::stderr().lock().write_all(lines.as_bytes());
        });
        if let Some(file) = &self.file {
            file.write(&lines);
        }
    }
}

/// An event's text: the message, then other fields as `name=value`.
#[derive(Default)]
struct Message {
    text: String,
    fatal: bool,
}

impl Visit for Message {
    fn record_bool(&mut self, field: &Field, value: bool) {
        match field.name() {
            "fatal" => self.fatal = value,
            _ => self.record_debug(field, &value),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.text.insert_str(0, value),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.text.insert_str(0, &format!("{value:?}")),
            name => self.text.push_str(&format!(" {name}={value:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(flags: &LogFlags, vars: &[(&str, &str)]) -> Settings {
        Settings::new(flags, |name| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn flags_come_before_variables() {
        let plain = LogFlags::default();
        assert_eq!(settings(&plain, &[]), Settings { min: Severity::Info, verbosity: 0, folder: None });
        let vars = [("GLOG_minloglevel", "1"), ("GLOG_v", "2"), ("GLOG_log_dir", "/a")];
        assert_eq!(
            settings(&plain, &vars),
            Settings { min: Severity::Warning, verbosity: 2, folder: Some("/a".into()) }
        );
        let flags = LogFlags { log_dir: Some("/b".into()), minloglevel: Some(9), v: Some(0), ..LogFlags::default() };
        assert_eq!(settings(&flags, &vars), Settings { min: Severity::Fatal, verbosity: 0, folder: Some("/b".into()) });
    }

    #[test]
    fn stderr_alone_means_no_file_and_nonsense_means_nothing() {
        let plain = LogFlags::default();
        assert_eq!(settings(&plain, &[("GLOG_log_dir", "/a"), ("GLOG_logtostderr", "1")]).folder, None);
        assert_eq!(settings(&plain, &[("GLOG_log_dir", "/a"), ("GLOG_logtostderr", "0")]).folder, Some("/a".into()));
        assert_eq!(settings(&plain, &[("GLOG_minloglevel", "loud")]).min, Severity::Info);
    }
}
