//! One log line: `I1123 13:00:00.000000 12345 solver.rs:239] text`.

use chrono::{DateTime, Local};

/// How grave a message is, the least first, as glog numbers them from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// What happens.
    Info,
    /// What may not be meant.
    Warning,
    /// What went wrong.
    Error,
    /// What ends the process.
    Fatal,
}

impl Severity {
    /// By glog's number; what is beyond the least or the gravest counts as that.
    pub fn from_number(number: i32) -> Self {
        match number {
            ..=0 => Severity::Info,
            1 => Severity::Warning,
            2 => Severity::Error,
            _ => Severity::Fatal,
        }
    }

    fn letter(self) -> char {
        match self {
            Severity::Info => 'I',
            Severity::Warning => 'W',
            Severity::Error => 'E',
            Severity::Fatal => 'F',
        }
    }
}

/// What stands before a message.
pub struct Stamp<'a> {
    severity: Severity,
    time: DateTime<Local>,
    thread: i32,
    file: &'a str,
    line: u32,
}

impl<'a> Stamp<'a> {
    /// The stamp of an event that this thread logs now from a line of a source file.
    pub fn now(severity: Severity, file: Option<&'a str>, line: Option<u32>) -> Self {
        let file = file.unwrap_or("unknown");
        Stamp {
            severity,
            time: Local::now(),
            thread: rustix::thread::gettid().as_raw_nonzero().get(),
            file: file.rsplit(['/', '\\']).next().unwrap_or(file),
            line: line.unwrap_or(0),
        }
    }

    /// The message's lines, each with the stamp before it and a line end after it.
    pub fn lines(&self, message: &str) -> String {
        let stamp = format!(
            "{}{} {:5} {}:{}] ",
            self.severity.letter(),
            self.time.format("%m%d %H:%M:%S%.6f"),
            self.thread,
            self.file,
            self.line
        );
        let mut lines = String::with_capacity(stamp.len() + message.len() + 1);
        // A carriage return would let the rest of the line overwrite its stamp on a terminal.
        for line in message.trim_end_matches(['\n', '\r']).split('\n') {
            lines.push_str(&stamp);
            lines.push_str(line.trim_end_matches('\r'));
            lines.push('\n');
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;

    fn stamp(severity: Severity, thread: i32) -> Stamp<'static> {
        let time = Local.with_ymd_and_hms(2026, 11, 3, 9, 5, 7).unwrap() + chrono::Duration::microseconds(42);
        Stamp { severity, time, thread, file: "solver.rs", line: 239 }
    }

    #[test]
    fn a_line_is_globs_of_glogs_form() {
        assert_eq!(
            stamp(Severity::Info, 12345).lines("Iteration 100, lr = 0.01"),
            "I1103 09:05:07.000042 12345 solver.rs:239] Iteration 100, lr = 0.01\n"
        );
        assert_eq!(stamp(Severity::Warning, 7).lines("x"), "W1103 09:05:07.000042     7 solver.rs:239] x\n");
        assert_eq!(stamp(Severity::Fatal, 1234567).lines("x"), "F1103 09:05:07.000042 1234567 solver.rs:239] x\n");
    }

    #[test]
    fn every_line_of_a_message_is_stamped_and_none_is_empty() {
        let text = stamp(Severity::Error, 1).lines("a\n\n  b\r\n");
        let ends: Vec<_> = text.lines().map(|line| line.split_once("] ").unwrap().1).collect();
        assert_eq!(ends, ["a", "", "  b"]);
        assert_eq!(stamp(Severity::Info, 1).lines("").lines().count(), 1);
    }

    #[test]
    fn a_source_path_is_cut_to_its_name() {
        let stamp = Stamp::now(Severity::Info, Some("crates/solver/src/solver.rs"), Some(3));
        assert!(stamp.lines("x").ends_with(" solver.rs:3] x\n"));
        assert!(Stamp::now(Severity::Info, None, None).lines("x").ends_with(" unknown:0] x\n"));
    }
}
