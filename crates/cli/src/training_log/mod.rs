//! Reads what a training logged: losses, learning rates and the outputs of the training and test nets, with the
//! iterations and times they belong to.
//!
//! Logs of this program, of Caffe of any year and of its forks are read: lines of glog's form with "Iteration N",
//! "lr = ", ", loss = ", "Train net output #K: NAME = ", "Test net output #K: NAME = " and, of 2013, "Test score #K: ".
//! Lines before the first iteration and lines without a time stamp are passed over.

mod line;
mod table;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use chrono::{DateTime, Datelike, Local, NaiveDateTime};
use lgm_core::{Error, Result};

use line::{after, leading_number, output, value};
use table::Builder;
pub use table::{Row, Table};

/// The longest line that is read; the rest of a longer one is passed over.
const LONGEST_LINE: u64 = 1 << 16;

/// What a log reports. Rows are in the order of the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainingLog {
    /// The training net's outputs: a row for each iteration displayed.
    pub train: Table,
    /// The test nets' outputs: a row for each test, which joins those of all test nets.
    pub test: Table,
    /// The displayed loss, averaged as `average_loss` says: one column, `loss`.
    pub loss: Table,
}

impl TrainingLog {
    /// Reads a log.
    ///
    /// # Errors
    /// When the file cannot be read, or reports no iteration.
    pub fn read(path: impl AsRef<Path>) -> Result<TrainingLog> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io(path, "open the log"))?;
        // Lines hold no year unless the log's head does.
        let modified = file.metadata().and_then(|about| about.modified()).map(DateTime::<Local>::from);
        let mut reader = LogReader::new(modified.unwrap_or_else(|_| Local::now()).year());
        let mut lines = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
            if read.map_err(Error::io(path, "read the log"))? == 0 {
                break;
            }
            let whole = line.last() == Some(&b'\n');
            if !whole && line.len() as u64 == LONGEST_LINE {
                lines.skip_until(b'\n').map_err(Error::io(path, "read the log"))?;
            } else if !whole {
                // The log was cut here, or is still being written: a number may lack digits.
                break;
            }
            reader.line(&String::from_utf8_lossy(&line));
        }
        if reader.iteration.is_none() {
            let what = "expected the log of a training, found no line with 'Iteration N' and a time stamp in it";
            return Err(Error::data(path, what));
        }
        Ok(reader.finish())
    }
}

/// The state between two lines of a log.
struct LogReader {
    year: i32,
    start: Option<NaiveDateTime>,
    last: Option<NaiveDateTime>,
    runs: usize,
    iteration: Option<u64>,
    rate: f64,
    /// The test net whose outputs come.
    test_net: usize,
    train: Builder,
    test: Builder,
    loss: Builder,
}

impl LogReader {
    fn new(year: i32) -> Self {
        LogReader {
            year,
            start: None,
            last: None,
            runs: 0,
            iteration: None,
            rate: f64::NAN,
            test_net: 0,
            train: Builder::default(),
            test: Builder::default(),
            loss: Builder::default(),
        }
    }

    fn line(&mut self, line: &str) {
        if let Some(year) = line.strip_prefix("Log file created at: ").and_then(leading_number) {
            self.year = i32::try_from(year).unwrap_or(self.year);
            return;
        }
        let solving = line.contains("] Solving");
        let iteration = after(line, "Iteration ").and_then(leading_number);
        if !solving && iteration.is_none() && self.iteration.is_none() {
            return;
        }
        let Some(time) = self.time(line) else { return };
        if solving {
            self.runs += 1;
        }
        self.iteration = iteration.or(self.iteration);
        let Some(iteration) = self.iteration else { return };

        let seconds = self.start.map_or(0, |start| (time - start).num_microseconds().unwrap_or(i64::MAX)) as f64 / 1e6;
        if let Some(rate) = after(line, "lr = ").and_then(value) {
            self.rate = rate;
        }
        if let Some(net) = after(line, "Testing net (#").and_then(leading_number) {
            self.test_net = net as usize;
        }
        let row = Row { run: self.runs.saturating_sub(1), iteration, seconds, rate: self.rate, values: Vec::new() };
        if let Some(loss) = after(line, ", loss = ").filter(|_| line.contains("Iteration ")).and_then(value) {
            self.loss.add(row, 0, 0, "loss", loss);
        } else if let Some((index, name, value)) = after(line, "Train net output #").and_then(output) {
            self.train.add(row, 0, index, name, value);
        } else if let Some((index, name, value)) = after(line, "Test net output #").and_then(output) {
            self.test.add(row, self.test_net, index, name, value);
        } else if let Some((index, score)) = after(line, "Test score #").and_then(|text| text.split_once(": "))
            && let (Ok(index), Some(score)) = (index.parse(), value(score))
        {
            self.test.add(row, self.test_net, index, &format!("score_{index}"), score);
        }
    }

    /// A line's time. A month before the last line's is one of the next year.
    fn time(&mut self, text: &str) -> Option<NaiveDateTime> {
        let mut time = line::time(text, self.year)?;
        if self.last.is_some_and(|last| time.month() < last.month()) && time.year() == self.year {
            self.year += 1;
            time = line::time(text, self.year)?;
        }
        // The 29th of February shows that the year was another than assumed.
        if time.year() < self.year {
            self.year = time.year();
            self.start = self.start.and_then(|start| start.with_year(self.year));
        }
        self.last = Some(time);
        self.start.get_or_insert(time);
        Some(time)
    }

    fn finish(self) -> TrainingLog {
        TrainingLog { train: self.train.finish(), test: self.test.finish(), loss: self.loss.finish() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<TrainingLog> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        TrainingLog::read(file.path())
    }

    type Row = (usize, u64, f64, f64, Vec<Option<f64>>);

    fn rows(table: &Table) -> Vec<Row> {
        table.rows.iter().map(|r| (r.run, r.iteration, r.seconds, r.rate, r.values.clone())).collect()
    }

    #[test]
    fn outputs_rates_and_times_of_the_lgm_forks_log() {
        let log = read(
            "Log file created at: 2018/12/31 23:59:50\n\
             I1231 23:59:58.000000 1 net.cpp:1] Iteration of nothing\n\
             I1231 23:59:59.500000 1 solver.cpp:279] Solving CIFAR100\n\
             I1231 23:59:59.600000 1 solver.cpp:337] Iteration 0, Testing net (#0)\n\
             I1231 23:59:59.700000 1 solver.cpp:404]     Test net output #0: accuracy = 0.01\n\
             I1231 23:59:59.700001 1 solver.cpp:404]     Test net output #1: lkd_loss = -nan (* 0.1 = nan loss)\n\
             I0101 00:00:00.000000 1 solver.cpp:228] Iteration 0, loss = 4.7\n\
             I0101 00:00:00.000001 1 solver.cpp:244]     Train net output #0: loss = 4.6 (* 1 = 4.6 loss)\n\
             I0101 00:00:00.000002 1 sgd_solver.cpp:106] Iteration 0, lr = 0.1, m = 0.9\n\
             I0101 00:00:01.000000 1 solver.cpp:228] Iteration 100 (100 iter/s, 1s/100 iter), loss = 4.5\n\
             I0101 00:00:01.500000 1 solver.cpp:244]     Train net output #0: loss = 4.4 (* 1 = 4.4 loss)\r\n\
             I0101 00:00:02.000000 1 sgd_solver.cpp:106] Iteration 100, lr = 1e-02\n",
        )
        .unwrap();
        assert_eq!(log.train.names, ["loss"]);
        assert_eq!(rows(&log.train), [(0, 0, 0.500001, 0.1, vec![Some(4.6)]), (0, 100, 2.0, 0.1, vec![Some(4.4)])]);
        assert_eq!(log.test.names, ["accuracy", "lkd_loss"]);
        let test = &log.test.rows[0];
        assert_eq!((test.iteration, test.seconds, test.values[0]), (0, 0.2, Some(0.01)));
        assert!(test.rate.is_nan() && test.values[1].is_some_and(f64::is_nan));
        assert_eq!(log.loss.column("loss").unwrap().map(|(_, loss)| loss).collect::<Vec<_>>(), [4.7, 4.5]);
        assert!(log.loss.column("accuracy").is_none());
    }

    #[test]
    fn outputs_of_one_name_have_columns_of_their_own() {
        let mut text =
            "I0228 12:00:00.000000 1 s.cpp:1] Solving x\nI0229 12:00:00.000000 1 s.cpp:1] Solving\n".to_owned();
        for iteration in [0, 5] {
            for net in [0, 1] {
                let stamp = ["I0301 12:00:00.000000 1 s.cpp:1]", "I0302 12:00:00.000000 1 s.cpp:1]"][iteration / 5];
                text += &format!("{stamp} Iteration {iteration}, Testing net (#{net})\n");
                for output in 0..2 {
                    text += &format!("{stamp} Test net output #{output}: a = {net}.{output}\n");
                }
            }
        }
        let log = read(&text).unwrap();
        assert_eq!(log.test.names, ["a", "a[1]", "a[2]", "a[3]"]);
        let day = 24.0 * 3600.0;
        assert_eq!(log.test.rows.iter().map(|row| row.seconds).collect::<Vec<_>>(), [2.0 * day, 3.0 * day]);
        for row in &log.test.rows {
            assert_eq!(row.values, [Some(0.0), Some(0.1), Some(1.0), Some(1.1)]);
        }
    }

    #[test]
    fn several_runs_follow_each_other() {
        let run = |second: u32, first: u32| {
            let mut text = format!("I0505 10:00:{second:02}.000000 7 solver.cpp:1] Solving net\n");
            for i in first..first + 2 {
                let at = second + i;
                text += &format!("I0505 10:00:{at:02}.000000 7 s.cpp:1] Iteration {i}, loss = {i}\n");
                text += &format!("I0505 10:00:{at:02}.000000 7 s.cpp:1]   Train net output #0: loss = {i}\n");
            }
            text
        };
        let log = read(&(run(10, 0) + "Ctrl-C\nI bad line Iteration x\n" + &run(20, 1))).unwrap();
        let seen: Vec<_> = log.train.rows.iter().map(|row| (row.run, row.iteration, row.seconds)).collect();
        assert_eq!(seen, [(0, 0, 0.0), (0, 1, 1.0), (1, 1, 11.0), (1, 2, 12.0)]);
    }

    #[test]
    fn a_log_of_2013_reports_scores_and_losses() {
        let log = read(
            "I0923 10:00:00.000000 1 solver.cpp:1] Solving LeNet\n\
             I0923 10:00:01.000000 1 solver.cpp:1] Iteration 100, lr = 0.01\n\
             I0923 10:00:01.000000 1 solver.cpp:1] Iteration 100, loss = 0.5\n\
             I0923 10:00:02.000000 1 solver.cpp:1] Iteration 100, Testing net\n\
             I0923 10:00:03.000000 1 solver.cpp:1] Test score #0: 0.97\n\
             I0923 10:00:03.000000 1 solver.cpp:1] Test score #1: 0.08\n",
        )
        .unwrap();
        assert_eq!(log.test.names, ["score_0", "score_1"]);
        assert_eq!(rows(&log.test), [(0, 100, 3.0, 0.01, vec![Some(0.97), Some(0.08)])]);
        assert_eq!(rows(&log.loss), [(0, 100, 1.0, 0.01, vec![Some(0.5)])]);
        assert!(log.train.rows.is_empty());
    }

    #[test]
    fn of_a_cut_log_whole_rows_are_read() {
        let head = "I20270310 10:00:00.000000 1 s.cpp:1] Iteration 3, Testing net (#0)\n";
        let row = |i: u32| {
            format!(
                "I20270310 10:00:0{i}.000000 1 s.cpp:1] Iteration {i}, Testing net (#0)\n\
                 I20270310 10:00:0{i}.000000 1 s.cpp:1]     Test net output #0: accuracy = 0.{i}\n\
                 I20270310 10:00:0{i}.000000 1 s.cpp:1]     Test net output #1: loss = 1.{i}"
            )
        };
        let log = read(&format!("{head}{}\n{}", row(4), row(5))).unwrap();
        let seen: Vec<_> = log.test.rows.iter().map(|row| (row.iteration, row.seconds)).collect();
        assert_eq!(seen, [(4, 4.0)], "no beginning, and an end within a number");
        let long = format!("{}\n{}\n", "I0310 ".repeat(30000), row(4));
        let log = read(&format!("{head}{long}{}\n", row(6))).unwrap();
        let seen: Vec<_> = log.test.rows.iter().map(|row| row.iteration).collect();
        assert_eq!(seen, [4, 6], "a line of 180 kB");
    }

    #[test]
    fn another_file_is_refused() {
        for text in ["", "name: 'net'\nlayer { }\n", "Iteration 5, loss = 3\n"] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("expected the log of a training, found no line with 'Iteration N'"), "{error}");
        }
        assert!(TrainingLog::read("/nonexistent.log").unwrap_err().to_string().contains("cannot open the log"));
    }
}
