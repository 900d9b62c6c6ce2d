//! `mutate [--seconds S] [--seed N] [--memory MIB] [TARGET…]`: varies each target's sound inputs, in the same way for the same
//! seed, and runs the target on them. `mutate --run TARGET FILE…` runs a target on files, `mutate --list` names the targets.
//!
//! Each target runs in a process of its own with a limit on memory; the input in hand lies in a file, which is kept under
//! `artifacts/` when the process dies or takes too long over it. Folders are those of the sources, unless LGM_FUZZ_CORPUS and
//! LGM_FUZZ_ARTIFACTS name others: then the program can be taken elsewhere.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use lgm_fuzz::{TARGETS, Target, target};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Longest that a target may take over one input.
const PATIENCE: Duration = Duration::from_secs(20);
/// Inputs grow no longer than this.
const LONGEST: usize = 1 << 16;

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// Bytes that readers treat in their own way: numbers at the ends of their ranges, in several encodings.
const ODD: &[&[u8]] = &[
    &[0],
    &[0x7f],
    &[0x80],
    &[0xff],
    &[0xff, 0xff],
    &[0xff, 0xff, 0xff, 0x7f],
    &[0xff, 0xff, 0xff, 0xff],
    &[0, 0, 0, 0x80],
    &[0, 0, 0xc0, 0x7f],
    &[0, 0, 0x80, 0x7f],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    b"nan",
    b"-inf",
    b"1e400",
    b"-1",
    b"2147483648",
    b"18446744073709551615",
    b"{",
    b"}",
    b"[",
    b"\"",
    b"\\",
    b"#",
    b"\xef\xbb\xbf",
];

/// A variation of one of the inputs.
fn vary(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = inputs[random.below(inputs.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        let longest = if random.below(4) == 0 { bytes.len() } else { 16 };
        let end = (at + 1 + random.below(longest)).min(bytes.len());
        match random.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                drop(bytes.splice(to..to, part));
            }
            5 => {
                let odd = random.of(ODD);
                drop(bytes.splice(at..at, odd.iter().copied()));
            }
            6 => {
                let odd = random.of(ODD);
                let end = (at + odd.len()).min(bytes.len());
                drop(bytes.splice(at..end, odd.iter().copied()));
            }
            7 => {
                // The rest from another input.
                let other = &inputs[random.below(inputs.len())];
                bytes.truncate(at);
                bytes.extend(&other[random.below(other.len() + 1)..]);
            }
            _ => {
                // A number in the text a little or much larger, smaller or longer.
                if let Some(digit) = (at..bytes.len()).find(|&i| bytes[i].is_ascii_digit()) {
                    let digits: &[&[u8]] = &[b"0", b"9", b"-1", b"99999999999", b"00", b".", b"1e9"];
                    let new = random.of(digits);
                    drop(bytes.splice(digit..digit + 1, new.iter().copied()));
                }
            }
        }
    }
    bytes.truncate(LONGEST);
    bytes
}

fn place(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(name), PathBuf::from)
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = place("LGM_FUZZ_CORPUS", "corpus").join(target.name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a readable input")).collect()
}

/// Runs a target on variations for some time; the input in hand lies in `hand`.
fn work(target: &Target, seconds: f64, seed: u64, memory: u64, hand: &Path) {
    let limit = Some(memory << 20);
    setrlimit(Resource::As, Rlimit { current: limit, maximum: limit }).expect("a limit on memory");
    // Also those of threads, whose panics come out as errors or not at all. The JPEG library's errors unwind without.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |about| {
        report(about);
        std::process::abort();
    }));
    // Each target has a sequence of its own.
    let name = target.name.bytes().fold(seed, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let (inputs, mut random) = (corpus(target), Random(name));
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let mut count = 0u64;
    for bytes in &inputs {
        fs::write(hand, bytes).expect("the input in hand can be written");
        (target.run)(bytes);
    }
    while Instant::now() < until {
        let bytes = vary(&inputs, &mut random);
        fs::write(hand, &bytes).expect("the input in hand can be written");
        (target.run)(&bytes);
        count += 1;
    }
    println!("{:<15} {count:>9} inputs", target.name);
}

/// Runs a target in a process of its own; says whether all is well.
fn supervise(target: &Target, seconds: f64, seed: u64, memory: u64) -> bool {
    let folder = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
    let hand = folder.join(format!("lgm-fuzz-{}-{}", target.name, std::process::id()));
    let arguments = ["--work", target.name, &seconds.to_string(), &seed.to_string(), &memory.to_string()];
    let mut command = Command::new(std::env::current_exe().expect("this program's path"));
    command.args(arguments).arg(&hand).stdin(Stdio::null());
    let mut child = command.spawn().expect("a process");
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break (!status.success()).then(|| status.to_string());
        }
        let since = fs::metadata(&hand).and_then(|about| about.modified()).ok();
        let since = since.and_then(|since| SystemTime::now().duration_since(since).ok()).unwrap_or_default();
        if since > PATIENCE {
            let _ = child.kill().and_then(|()| child.wait());
            break Some(format!("no answer within {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if let Some(status) = &status {
        let bytes = fs::read(&hand).unwrap_or_default();
        let sum = lgm_core::rng::fnv1a(bytes.iter().copied());
        let artifacts = place("LGM_FUZZ_ARTIFACTS", "artifacts");
        let kept = artifacts.join(format!("{}-{sum:016x}", target.name));
        let _ = fs::create_dir_all(&artifacts).and_then(|()| fs::write(&kept, &bytes));
        println!("{:<15} FAILED: {status}; the input: {}", target.name, kept.display());
        let _ = std::io::stdout().flush();
    }
    let _ = fs::remove_file(&hand);
    status.is_none()
}

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let known = |name: &str| {
        let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
        target(name).unwrap_or_else(|| panic!("no target '{name}'; there are {}", names()))
    };
    match args.first().map(String::as_str) {
        Some("--work") => {
            let number = |i: usize| args[i].parse::<f64>().expect("a number");
            work(known(&args[1]), number(2), number(3) as u64, number(4) as u64, Path::new(&args[5]));
            return ExitCode::SUCCESS;
        }
        Some("--run") => {
            for file in &args[2..] {
                (known(&args[1]).run)(&fs::read(file).expect("a readable input"));
            }
            return ExitCode::SUCCESS;
        }
        Some("--list") => {
            TARGETS.iter().for_each(|target| println!("{}", target.name));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let mut option = |name: &str, default: f64| match args.iter().position(|arg| arg == name) {
        Some(at) => {
            let value = args.drain(at..at + 2).next_back().and_then(|value| value.parse().ok());
            value.unwrap_or_else(|| panic!("{name} takes a number"))
        }
        None => default,
    };
    let (seconds, seed, memory) = (option("--seconds", 60.0), option("--seed", 1.0), option("--memory", 4096.0));
    let chosen: Vec<&Target> = match args.is_empty() {
        true => TARGETS.iter().collect(),
        false => args.iter().map(|name| known(name)).collect(),
    };
    let each = seconds / chosen.len() as f64;
    let sound: Vec<bool> = chosen.iter().map(|target| supervise(target, each, seed as u64, memory as u64)).collect();
    if sound.iter().all(|sound| *sound) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
