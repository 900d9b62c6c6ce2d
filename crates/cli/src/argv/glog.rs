//! glog's flags that are nothing to this log, and are accepted because scripts written for Caffe pass them.

use super::names::underscored;

/// A flag without effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    name: &'static str,
    /// Whether it takes a value.
    pub takes_value: bool,
    /// Whether it asks for what is not done, so that a warning says so. The others ask for what is so anyway: the log goes
    /// to stderr, each line at once, and neither a full disk nor the size of its file stops the run.
    pub missed: bool,
}

const fn idle(name: &'static str, takes_value: bool, missed: bool) -> Idle {
    Idle { name, takes_value, missed }
}

const IDLE: [Idle; 24] = [
    idle("alsologtostderr", false, false),
    idle("stderrthreshold", true, false),
    idle("colorlogtostderr", false, false),
    idle("colorlogtostdout", false, false),
    idle("logbufsecs", true, false),
    idle("logbuflevel", true, false),
    idle("max_log_size", true, false),
    idle("stop_logging_if_full_disk", false, false),
    idle("drop_log_memory", false, false),
    idle("symbolize_stacktrace", false, false),
    idle("timestamp_in_logfile_name", false, false),
    idle("log_file_header", false, false),
    idle("logemaillevel", true, true),
    idle("alsologtoemail", true, true),
    idle("logmailer", true, true),
    idle("vmodule", true, true),
    idle("log_backtrace_at", true, true),
    idle("log_link", true, true),
    idle("log_prefix", false, true),
    idle("log_utc_time", false, true),
    idle("log_year_in_prefix", false, true),
    idle("logfile_mode", true, true),
    idle("logtostdout", false, true),
    idle("minlogfilelevel", true, true),
];

/// The flag of a name, also that of `noname` where that turns one off.
pub fn idle_flag(name: &str) -> Option<Idle> {
    let name = underscored(name);
    let off = name.strip_prefix("no");
    let is = |flag: &&Idle| flag.name == name || (!flag.takes_value && off == Some(flag.name));
    IDLE.iter().find(is).copied()
}
