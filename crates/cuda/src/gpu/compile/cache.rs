//! Compiled kernels on disk, so that only the first run on a kind of GPU compiles.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use lgm_core::{Error, Result};
use sha2::{Digest, Sha256};

/// A folder of compiled kernels, or none.
#[derive(Clone, Debug)]
pub struct KernelCache {
    folder: Option<PathBuf>,
}

/// Opens each entry: what the file is, and the version of its layout.
const MAGIC: &[u8] = b"lgm-caffe kernels 1\n";
const SUM: usize = 32;

impl KernelCache {
    /// `$XDG_CACHE_HOME/lgm-caffe`, else `~/.cache/lgm-caffe`; nothing is kept where neither is known.
    pub fn from_env() -> Self {
        Self::discover(&|name| env::var_os(name))
    }

    fn discover(var: &dyn Fn(&str) -> Option<OsString>) -> Self {
        // The XDG specification has relative paths ignored.
        let absolute = |name| var(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || absolute("HOME").map(|home| home.join(".cache"));
        KernelCache { folder: absolute("XDG_CACHE_HOME").or_else(home).map(|cache| cache.join("lgm-caffe")) }
    }

    /// In this folder, made when needed.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        KernelCache { folder: Some(folder.into()) }
    }

    /// Where it is, if anywhere.
    pub fn folder(&self) -> Option<&PathBuf> {
        self.folder.as_ref()
    }

    fn file(&self, key: &Key) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(format!("{}.cubin", key.0)))
    }

    /// An entry, unless there is none or it is damaged.
    pub(crate) fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let entry = fs::read(self.file(key)?).ok()?;
        let (sum, cubin) = entry.strip_prefix(MAGIC)?.split_at_checked(SUM)?;
        (Sha256::digest(cubin).as_slice() == sum).then(|| cubin.to_vec())
    }

    /// Keeps an entry: written under another name, then renamed, so that no reader sees half of it.
    pub(crate) fn put(&self, key: &Key, cubin: &[u8]) -> Result<()> {
        let Some(file) = self.file(key) else { return Ok(()) };
        if let Some(folder) = &self.folder {
            fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
        }
        let entry = [MAGIC, Sha256::digest(cubin).as_slice(), cubin].concat();
        lgm_core::fs::write_bytes(&file, &entry)
    }
}

/// What an entry depends on, as one hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key(String);

impl Key {
    /// The key of parts; where one ends and the next begins counts.
    pub(crate) fn of<'a>(parts: impl IntoIterator<Item = &'a str>) -> Key {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Key(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_parts_apart() {
        let keys = [["ab", "c"], ["a", "bc"], ["abc", ""], ["", "abc"]].map(Key::of);
        for (i, a) in keys.iter().enumerate() {
            assert_eq!(a.0.len(), 64);
            assert!(keys[..i].iter().all(|b| a != b));
        }
        assert_eq!(Key::of(["x"]), Key::of(["x"]));
    }

    #[test]
    fn an_entry_comes_back_and_a_damaged_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = KernelCache::in_folder(folder.path().join("new"));
        let (key, cubin) = (Key::of(["k"]), b"code".repeat(100));
        assert_eq!(cache.get(&key), None);
        cache.put(&key, &cubin).unwrap();
        assert_eq!(cache.get(&key).unwrap(), cubin);
        assert_eq!(cache.get(&Key::of(["other"])), None);
        let file = cache.file(&key).unwrap();
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");

        let whole = fs::read(&file).unwrap();
        for damaged in [whole[..whole.len() - 1].to_vec(), whole[..10].to_vec(), vec![], {
            let mut flipped = whole.clone();
            *flipped.last_mut().unwrap() ^= 1;
            flipped
        }] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(cache.get(&key), None);
        }
        cache.put(&key, &cubin).unwrap();
        assert_eq!(cache.get(&key).unwrap(), cubin);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let text = KernelCache::in_folder(&file).put(&Key::of(["k"]), b"code").unwrap_err().to_string();
        assert!(text.contains(&file.display().to_string()), "{text}");
    }

    #[test]
    fn the_folder_is_xdgs_or_under_home() {
        let at = |vars: &'static [(&str, &str)]| {
            let var = move |name: &str| vars.iter().find(|v| v.0 == name).map(|v| OsString::from(v.1));
            KernelCache::discover(&var).folder.map(|f| f.display().to_string())
        };
        assert_eq!(at(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]).unwrap(), "/x/lgm-caffe");
        assert_eq!(at(&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")]).unwrap(), "/h/.cache/lgm-caffe");
        assert_eq!(at(&[("XDG_CACHE_HOME", "")]), None);
    }
}
