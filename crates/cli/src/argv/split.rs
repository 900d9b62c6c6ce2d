//! Takes a command line apart, and the files of flags that it names.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::Command;

use super::glog::idle_flag;
use super::names::{anywhere, long, nearest_flag, takes_value};
use crate::args::UsageError;
use crate::flagfile;

/// Files of flags within one another, at the most.
const DEEPEST: usize = 16;

/// A flag as the user gave it.
pub struct Given {
    /// Its dashes and its name.
    pub written: String,
    /// Its value.
    pub value: Option<OsString>,
    /// The file and line where it stands, if not on the command line.
    pub place: Option<String>,
}

/// A command line taken apart.
#[derive(Default)]
pub struct Split {
    /// Flags by the names that clap gives them.
    pub flags: BTreeMap<String, Given>,
    /// What is no flag.
    pub words: Vec<OsString>,
    /// Flags of no command, as they are written.
    pub unknown: Vec<String>,
    /// Warnings to log.
    pub warnings: Vec<String>,
}

/// Separates flags from the other words.
///
/// # Errors
/// When a file of flags cannot be read, or one of its lines makes no sense.
pub fn split(mut argv: impl Iterator<Item = OsString>, cli: &Command) -> Result<Split, UsageError> {
    let mut split = Split::default();
    while let Some(argument) = argv.next() {
        if argument.as_bytes() == b"--" {
            split.words.extend(argv);
            break;
        }
        match given(argument.as_bytes(), None) {
            Some(flag) => split.take(flag, &mut || argv.next(), cli, 0)?,
            None => split.words.push(argument),
        }
    }
    Ok(split)
}

/// A word that begins with a dash, as a flag.
fn given(word: &[u8], place: Option<String>) -> Option<Given> {
    let rest = word.strip_prefix(b"-").filter(|rest| !rest.is_empty())?;
    let (dashes, rest) = rest.strip_prefix(b"-").map_or(("-", rest), |rest| ("--", rest));
    let (name, value) = match rest.iter().position(|&byte| byte == b'=') {
        Some(at) => (&rest[..at], Some(OsStr::from_bytes(&rest[at + 1..]).to_os_string())),
        None => (rest, None),
    };
    Some(Given { written: format!("{dashes}{}", String::from_utf8_lossy(name)), value, place })
}

impl Split {
    /// Takes a flag, whose value may be the `next` word, from the command line or from a file so deep within others.
    fn take(
        &mut self,
        mut flag: Given,
        next: &mut dyn FnMut() -> Option<OsString>,
        cli: &Command,
        depth: usize,
    ) -> Result<(), UsageError> {
        let name = flag.written.trim_start_matches('-').to_string();
        if let Some(arg) = anywhere(cli, &name) {
            if takes_value(arg) && flag.value.is_none() {
                flag.value = next();
                // On the command line, clap reports the missing value.
                if let (None, Some(place)) = (&flag.value, &flag.place) {
                    let written = &flag.written;
                    return Err(UsageError(format!("{place}: flag {written} has no value; expected {written}=VALUE")));
                }
            }
            match (long(arg), &flag.value) {
                ("flagfile", Some(files)) => self.take_files(files.clone(), flag.place.as_deref(), cli, depth)?,
                (name, _) => drop(self.flags.insert(name.to_string(), flag)),
            }
        } else if let Some(arg) =
            name.strip_prefix("no").and_then(|name| anywhere(cli, name)).filter(|arg| !takes_value(arg))
        {
            flag.value = Some("false".into());
            self.flags.insert(long(arg).to_string(), flag);
        } else if let Some(idle) = idle_flag(&name) {
            if idle.takes_value && flag.value.is_none() {
                next();
            }
            if idle.missed {
                self.warnings.push(format!("flag {} has no effect", flag.written));
            }
        } else {
            match flag.place {
                Some(place) => {
                    let hint = nearest_flag(&flag.written, cli);
                    self.warnings.push(format!("{place}: unknown flag '{}' is left out{hint}", flag.written));
                }
                None => self.unknown.push(flag.written),
            }
        }
        Ok(())
    }

    /// Takes the flags of files, whose names are separated by commas.
    fn take_files(
        &mut self,
        files: OsString,
        named_at: Option<&str>,
        cli: &Command,
        depth: usize,
    ) -> Result<(), UsageError> {
        if depth == DEEPEST {
            let place = named_at.unwrap_or("-flagfile");
            return Err(UsageError(format!("{place}: more than {DEEPEST} files of flags name one another")));
        }
        for file in files.as_bytes().split(|&byte| byte == b',').filter(|file| !file.is_empty()) {
            let path = Path::new(OsStr::from_bytes(file));
            for line in flagfile::read(path).map_err(|e| UsageError(e.to_string()))? {
                let place = format!("{}:{}", path.display(), line.number);
                let Some(flag) = given(&line.text, Some(place.clone())) else { continue };
                if flag.written.contains(|c: char| c.is_ascii_whitespace()) {
                    let written = flag.written.split_ascii_whitespace().collect::<Vec<_>>().join("=");
                    return Err(UsageError(format!(
                        "{place}: in a file, flags have '=' before their value: {written}"
                    )));
                }
                self.take(flag, &mut || None, cli, depth + 1)?;
            }
        }
        Ok(())
    }
}
