//! What stands in a line of a log.

use chrono::{NaiveDate, NaiveDateTime, NaiveTime};

/// The time at the beginning of a line: `I1126 18:51:09.098016`, or `I20261126 …` of newer glogs, which has the year.
pub fn time(line: &str, year: i32) -> Option<NaiveDateTime> {
    let (date, rest) = line.trim_start().split_once(char::is_whitespace)?;
    let date = date.strip_prefix(['I', 'W', 'E', 'F'])?;
    let clock = rest.split_whitespace().next()?;
    if date.len() == 8 {
        return NaiveDateTime::parse_from_str(&format!("{date} {clock}"), "%Y%m%d %H:%M:%S%.f").ok();
    }
    let (month, day) = (date.get(..2)?.parse().ok()?, date.get(2..)?.parse().ok()?);
    // The last day of February is one of a leap year.
    let date = (0..8).find_map(|back| NaiveDate::from_ymd_opt(year.checked_sub(back)?, month, day))?;
    let clock = NaiveTime::parse_from_str(clock, "%H:%M:%S%.f").ok()?;
    Some(date.and_time(clock))
}

/// What follows the first `mark` in a line.
pub fn after<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    line.find(mark).map(|at| &line[at + mark.len()..])
}

pub fn leading_number(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// The number at the beginning of a text, up to a space or comma.
pub fn value(text: &str) -> Option<f64> {
    match text.split([',', ' ', '\t', '\r', '\n']).next()? {
        "-nan" => Some(f64::NAN),
        number => number.parse().ok(),
    }
}

/// Number, name and value of `0: accuracy = 0.98`.
pub fn output(text: &str) -> Option<(usize, &str, f64)> {
    let (index, rest) = text.split_once(": ")?;
    let (name, number) = rest.split_once(" = ")?;
    Some((index.parse().ok()?, name, value(number)?))
}
