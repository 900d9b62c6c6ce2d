//! Files of flags, `-flagfile`, as gflags reads them.
//!
//! A line is a flag with one dash or two, its value behind `=`. Empty lines and those that begin with `#` are passed over. A
//! line that begins with anything else holds names of programs, separated by spaces, in which `*`, `?` and `[…]` may stand:
//! the flags after it, up to the next such line, are for these programs alone. Here the names `caffe` and `lgm-caffe` count,
//! whatever folder stands before them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use glob::Pattern;
use lgm_core::memory::in_units;
use lgm_core::{Error, Result};
use lgm_proto::FileKind;

/// Names under which this program is meant.
const NAMES: [&str; 4] = ["caffe", "caffe.bin", "lgm-caffe", "lgm_caffe"];
/// Bytes of a file at the most.
const MOST_BYTES: u64 = 1 << 20;

/// A flag of a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// The line's number, from 1.
    pub number: usize,
    /// The flag as it stands there, dashes and all.
    pub text: Vec<u8>,
}

/// The flags of a file that are for this program.
///
/// # Errors
/// When the file cannot be read, is larger than any such file, or is of a kind that Caffe's other flags take.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let file = File::open(path).map_err(Error::io(path, "open the flags"))?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read the flags"))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(Error::data(path, format!("is larger than the {} of a file of flags", in_units(MOST_BYTES))));
    }
    match FileKind::of_head(&bytes) {
        FileKind::Unknown | FileKind::Empty => Ok(parse(&bytes)),
        other => Err(Error::data(path, format!("expected flags, one a line, found {}", other.described()))),
    }
}

fn parse(bytes: &[u8]) -> Vec<Line> {
    let mut flags = Vec::new();
    let (mut ours, mut among_names) = (true, false);
    for (line, number) in bytes.split(|&byte| byte == b'\n').zip(1..) {
        let line = line.trim_ascii();
        match line.first() {
            None | Some(b'#') => {}
            Some(b'-') => {
                among_names = false;
                if ours {
                    flags.push(Line { number, text: line.to_vec() });
                }
            }
            Some(_) => {
                ours = (ours && among_names) || line.split(u8::is_ascii_whitespace).any(is_ours);
                among_names = true;
            }
        }
    }
    flags
}

fn is_ours(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name);
    let name = name.rsplit('/').next().unwrap_or_default();
    Pattern::new(name).is_ok_and(|pattern| NAMES.iter().any(|known| pattern.matches(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(text: &str) -> Vec<(usize, String)> {
        let flags = parse(text.as_bytes()).into_iter();
        flags.map(|line| (line.number, String::from_utf8(line.text).unwrap())).collect()
    }

    #[test]
    fn flags_stand_on_lines_and_may_be_for_other_programs() {
        let table: &[(&str, &[(usize, &str)])] = &[
            ("", &[]),
            ("# -a\n\n  -b=1  \r\n--c=x y\n\t-d", &[(3, "-b=1"), (4, "--c=x y"), (5, "-d")]),
            ("-a\nconvert_imageset\n-b\ncaffe\n-c", &[(1, "-a"), (5, "-c")]),
            ("convert_imageset caffe\n-a", &[(2, "-a")]),
            ("convert_imageset\ncaffe\n-a\nother\n-b", &[(3, "-a")]),
            ("caffe\nconvert_imageset\n-a", &[(3, "-a")]),
            ("build/tools/caff?\n-a\n*\n-b\nlgm-*\n-c\n[\n-d", &[(2, "-a"), (4, "-b"), (6, "-c")]),
        ];
        for (text, want) in table {
            let want: Vec<_> = want.iter().map(|(number, flag)| (*number, flag.to_string())).collect();
            assert_eq!(flags(text), want, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_file_of_flags_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let fails = |what: &str| {
            let e = read(&path).unwrap_err().to_string();
            assert!(e.contains(what), "expected '{what}' in: {e}");
        };
        fails("cannot open the flags");
        std::fs::write(&path, "net: 'a' base_lr: 1").unwrap();
        fails("expected flags, one a line, found a solver's prototxt: -solver takes it");
        std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
        fails("is larger than the 1.0 MiB of a file of flags");
        std::fs::write(&path, "").unwrap();
        assert_eq!(read(&path).unwrap(), []);
    }
}
