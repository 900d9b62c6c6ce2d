//! Recorded values: NumPy's `.npz`, a zip archive of `.npy` arrays (NEP 1).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};

use lgm_core::Shape;

/// A file or folder of the recorded values, `tests/golden` of the repository.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// The arrays of a recorded case, numbers widened to double precision, and its texts.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    arrays: BTreeMap<String, (Shape, Vec<f64>)>,
    texts: BTreeMap<String, Vec<String>>,
}

impl Recorded {
    /// The recorded values of `tests/golden/{name}.npz`.
    ///
    /// # Panics
    /// When the file is absent or damaged.
    pub fn golden(name: &str) -> Recorded {
        Recorded::read(&golden(&format!("{name}.npz")))
    }

    /// The arrays of a file.
    ///
    /// # Panics
    /// When the file is absent or damaged.
    pub fn read(path: &Path) -> Recorded {
        let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut archive = zip::ZipArchive::new(file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut recorded = Recorded::default();
        for i in 0..archive.len() {
            let mut entry = archive.by_index(i).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let name = entry.name().trim_end_matches(".npy").to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap_or_else(|e| panic!("{}: {name}: {e}", path.display()));
            recorded.add(name, &bytes);
        }
        recorded
    }

    fn add(&mut self, name: String, npy: &[u8]) {
        assert!(npy.starts_with(b"\x93NUMPY"), "{name} is not an npy array");
        let (start, len) = match npy[6] {
            1 => (10, u16::from_le_bytes([npy[8], npy[9]]) as usize),
            _ => (12, u32::from_le_bytes([npy[8], npy[9], npy[10], npy[11]]) as usize),
        };
        let header = std::str::from_utf8(&npy[start..start + len]).expect("an npy header is text");
        let data = &npy[start + len..];
        let field = |key: &str| header.split_once(&format!("'{key}':")).expect("an npy header has its keys").1.trim();
        assert!(field("fortran_order").starts_with("False"), "{name} is in Fortran order");
        let dims = field("shape").trim_start_matches('(').split(')').next().unwrap_or("");
        let shape = Shape::new(dims.split(',').filter_map(|d| d.trim().parse().ok()));
        let kind = field("descr").trim_start_matches('\'').split('\'').next().unwrap_or("");
        let values = match kind {
            "<f4" => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b) as f64).collect(),
            "<f8" => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            "<i4" => data.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b) as f64).collect(),
            "<i8" => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
            "|b1" | "|u1" => data.iter().map(|&b| b as f64).collect(),
            _ if kind.starts_with("<U") => {
                let chars =
                    data.as_chunks().0.iter().map(|b| char::from_u32(u32::from_le_bytes(*b)).unwrap_or('\u{fffd}'));
                let chars: Vec<char> = chars.collect();
                let width = kind[2..].parse::<usize>().expect("a text's length").max(1);
                let text = |chars: &[char]| chars.iter().take_while(|&&c| c != '\0').collect();
                self.texts.insert(name, chars.chunks(width).map(text).collect());
                return;
            }
            _ => panic!("{name} has element type {kind}, which this reader does not know"),
        };
        self.arrays.insert(name, (shape, values));
    }

    /// The names of the arrays of numbers, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.arrays.keys().map(String::as_str)
    }

    /// An array's shape and values.
    pub fn array(&self, name: &str) -> Option<(&Shape, &[f64])> {
        self.arrays.get(name).map(|(s, v)| (s, v.as_slice()))
    }

    /// A recorded number or truth value.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn number(&self, name: &str) -> f64 {
        self.array(name).and_then(|(_, v)| v.first().copied()).unwrap_or_else(|| panic!("'{name}' is not recorded"))
    }

    /// A recorded text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.texts.get(name)?.first().map(String::as_str)
    }

    /// A layer's text with the files that it reads put in a temporary folder, under their contents' hash, and named there.
    ///
    /// # Panics
    /// When a file cannot be written.
    pub fn with_files(&self, layer: &str) -> String {
        let mut layer = layer.to_string();
        for name in self.names().filter_map(|name| name.strip_prefix("file_")) {
            let bytes: Vec<u8> = self.arrays[&format!("file_{name}")].1.iter().map(|&byte| byte as u8).collect();
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            let path = std::env::temp_dir().join(format!("lgm-recorded-{:x}-{name}", hasher.finish()));
            // Put there whole: other tests may read it.
            let written = path.with_extension(std::process::id().to_string());
            let put = fs::write(&written, bytes).and_then(|()| fs::rename(&written, &path));
            put.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            layer = layer.replace(&format!("\"{name}\""), &format!("\"{}\"", path.display()));
        }
        layer
    }

    /// All texts of an array of them.
    pub fn texts(&self, name: &str) -> Option<&[String]> {
        self.texts.get(name).map(Vec::as_slice)
    }
}
