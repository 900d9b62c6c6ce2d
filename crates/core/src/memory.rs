//! How much memory there is, and buffers that say what wanted how much where it does not suffice.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Sizes below this are not held against what there is, which takes some files to read.
const SMALL: usize = 4 << 20;

/// Memory that can still be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Available {
    /// Bytes.
    pub bytes: u64,
    /// What ends it, as in "there are 2 GiB ...".
    pub limit: &'static str,
}

impl fmt::Display for Available {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", in_units(self.bytes), self.limit)
    }
}

/// What this process can still allocate: the least of the system's available memory and swap space, the rest of its limits
/// on address space and data (`ulimit -v`, `ulimit -d`), and the rest of what its control groups may use. What the system
/// does not tell counts as unlimited.
pub fn available() -> Available {
    let none = Available { bytes: u64::MAX, limit: "of memory" };
    sources::all().into_iter().flatten().fold(none, |least, next| if next.bytes < least.bytes { next } else { least })
}

/// Bytes of all [`Reserved`].
static RESERVED: AtomicU64 = AtomicU64::new(0);

/// Notes bytes that are allocated and not all written yet: the system gives memory when it is first written, so until then
/// they count as available there.
#[derive(Debug)]
pub struct Reserved(u64);

impl Reserved {
    /// Notes so many bytes until it is dropped.
    pub fn new(bytes: usize) -> Self {
        RESERVED.fetch_add(bytes as u64, Ordering::Relaxed);
        Reserved(bytes as u64)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        RESERVED.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Fails unless `bytes` more can be had; `what` wants them.
///
/// # Errors
/// [`Error::Memory`].
pub fn check(bytes: usize, what: impl fmt::Display) -> Result<()> {
    if bytes < SMALL {
        return Ok(());
    }
    let available = available();
    if bytes as u64 > available.bytes { Err(too_much(bytes, what, available)) } else { Ok(()) }
}

/// The error of an allocation of `bytes` for `what` that the system refused.
pub fn refused(bytes: usize, what: impl fmt::Display) -> Error {
    too_much(bytes, what, available())
}

fn too_much(bytes: usize, what: impl fmt::Display, available: Available) -> Error {
    Error::Memory { what: what.to_string(), wanted: bytes as u64, available }
}

/// Room for so many elements, none of them there yet; `what` they are is for the message.
///
/// # Errors
/// [`Error::Memory`].
pub fn room<T>(count: usize, what: impl fmt::Display) -> Result<Vec<T>> {
    let mut room = Vec::new();
    reserve(&mut room, count, what)?;
    Ok(room)
}

/// Makes room for so many more elements and no more.
///
/// # Errors
/// [`Error::Memory`]; the elements stay as they are.
pub fn reserve<T>(buffer: &mut Vec<T>, more: usize, what: impl fmt::Display) -> Result<()> {
    let bytes = more.saturating_mul(size_of::<T>());
    check(bytes, &what)?;
    buffer.try_reserve_exact(more).map_err(|_| refused(bytes, what))
}

/// So many zeros; `what` they are for is for the message.
///
/// # Errors
/// [`Error::Memory`].
pub fn zeros<T: Clone + Default>(count: usize, what: impl fmt::Display) -> Result<Vec<T>> {
    let mut buffer = room(count, what)?;
    buffer.resize(count, T::default());
    Ok(buffer)
}

/// Has the allocator keep blocks of up to 16 MiB that are freed. Work that needs such blocks over and over calls it first: most of
/// what they cost is the system's time to give memory, page by page.
pub fn keep_freed() {
    // glibc gives memory back once twice the largest block that was freed so far lies free at the end of a heap.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(16 << 20)));
}

/// A number of bytes in the unit that suits it: `bytes`, `KiB`, `MiB`, `GiB` or `TiB`.
pub fn in_units(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "bytes");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{value:.1} {unit}") }
}

/// Where Linux tells; elsewhere the files are missing, and only an allocation that fails says no.
mod sources {
    use std::path::Path;
    use std::sync::atomic::Ordering;

    use rustix::process::{Resource, getrlimit};

    use super::{Available, RESERVED};

    pub fn all() -> [Option<Available>; 4] {
        [system(), limit(Resource::As, "VmSize:"), limit(Resource::Data, "VmData:"), groups()]
    }

    fn text(path: impl AsRef<Path>) -> Option<String> {
        std::fs::read_to_string(path).ok()
    }

    /// The number that stands behind `key` at the start of a line.
    pub fn number(text: &str, key: &str) -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    }

    fn system() -> Option<Available> {
        let text = text("/proc/meminfo")?;
        let kib = |key| number(&text, key);
        let bytes = kib("MemAvailable:")?.saturating_add(kib("SwapFree:").unwrap_or(0)).saturating_mul(1024);
        Some(Available { bytes: bytes.saturating_sub(unwritten()), limit: "of memory and swap space available" })
    }

    /// Of what is reserved, what this process has not written yet.
    fn unwritten() -> u64 {
        let status = text("/proc/self/status").unwrap_or_default();
        let kib = |key| number(&status, key).unwrap_or(0);
        let unwritten =
            kib("VmData:").saturating_sub(kib("RssAnon:").saturating_add(kib("VmSwap:"))).saturating_mul(1024);
        unwritten.min(RESERVED.load(Ordering::Relaxed))
    }

    fn limit(resource: Resource, used: &str) -> Option<Available> {
        let most = getrlimit(resource).current?;
        let used = number(&text("/proc/self/status")?, used)?.saturating_mul(1024);
        Some(Available { bytes: most.saturating_sub(used), limit: "left of the limit on this process (ulimit -v, -d)" })
    }

    /// The tightest of the groups this process is in and those around them.
    fn groups() -> Option<Available> {
        let memberships = text("/proc/self/cgroup")?;
        let each = |line: &str| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?.trim_start_matches('/'));
            match controllers {
                "" => left(Path::new("/sys/fs/cgroup"), path, ["memory.max", "memory.current", ""]),
                c if c.split(',').any(|c| c == "memory") => {
                    let files = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_"];
                    left(Path::new("/sys/fs/cgroup/memory"), path, files)
                }
                _ => None,
            }
        };
        let bytes = memberships.lines().filter_map(each).min()?.saturating_sub(unwritten());
        Some(Available { bytes, limit: "left in this process's control group" })
    }

    /// What is left in the group at `path` under `root` and in every group around it. Files that the group has read count
    /// as used, but give way.
    pub fn left(root: &Path, path: &str, [most, used, prefix]: [&str; 3]) -> Option<u64> {
        let group = |folder: &Path| {
            let most: u64 = text(folder.join(most))?.trim().parse().ok()?;
            let used: u64 = text(folder.join(used))?.trim().parse().ok()?;
            let stat = text(folder.join("memory.stat")).unwrap_or_default();
            let files = |kind: &str| number(&stat, &format!("{prefix}{kind}_file ")).unwrap_or(0);
            Some(most.saturating_sub(used.saturating_sub(files("inactive").saturating_add(files("active")))))
        };
        let folder = root.join(path);
        folder.ancestors().take_while(|a| a.starts_with(root)).filter_map(group).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_there_is_is_refused_in_words() {
        let there = available();
        assert!(there.bytes > SMALL as u64, "{there}");
        let error = zeros::<f32>(1 << 50, "the batch").unwrap_err().to_string();
        assert!(error.contains("the batch takes 4096.0 TiB, but there are only"), "{error}");
        assert!(room::<u64>(usize::MAX, "the list").is_err());
        assert_eq!(zeros::<f64>(3, "three").unwrap(), [0.0; 3]);
        assert_eq!(in_units(1000), "1000 bytes");
    }

    #[test]
    fn what_is_allocated_and_not_written_is_not_available() {
        // More than other processes are likely to take and give meanwhile.
        let bytes = 4 << 30;
        let before = available();
        let untouched: Vec<u8> = Vec::with_capacity(bytes);
        let reserved = Reserved::new(bytes);
        let after = available();
        drop((untouched, reserved));
        assert!(after.bytes + (bytes as u64) / 2 < before.bytes, "{before}, then {after}");
    }

    #[test]
    fn the_tightest_control_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        let write = |folder: &std::path::Path, name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        let files = ["memory.max", "memory.current", ""];
        assert_eq!(sources::left(root.path(), "a/b", files), None);
        write(&inner, "memory.max", "max\n");
        write(&inner, "memory.current", "5\n");
        assert_eq!(sources::left(root.path(), "a/b", files), None);
        let outer = root.path().join("a");
        write(&outer, "memory.max", "1000\n");
        write(&outer, "memory.current", "700\n");
        write(&outer, "memory.stat", "anon 500\ninactive_file 150\nactive_file 50\n");
        assert_eq!(sources::left(root.path(), "a/b", files), Some(500));
        write(&inner, "memory.max", "100\n");
        assert_eq!(sources::left(root.path(), "a/b", files), Some(95));
    }

    #[test]
    fn numbers_are_found_behind_their_keys() {
        assert_eq!(sources::number("VmPeak:  9 kB\nVmSize:\t  12 kB\n", "VmSize:"), Some(12));
        assert_eq!(sources::number("VmSize:\n", "VmSize:"), None);
    }
}
