//! Opening a library wherever it lies and asking its version.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::fs;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use crate::{Component, Place, SearchPath, Spot, Version};

/// A library that was looked for.
#[derive(Debug)]
pub struct Library {
    /// Which one.
    pub component: Component,
    /// Where it is, or where it is not.
    pub found: Result<Found, Missing>,
}

impl Library {
    /// What came of loading a component.
    pub(crate) fn of(component: Component, loaded: &Result<Loaded, Missing>) -> Library {
        Library { component, found: loaded.as_ref().map(|loaded| loaded.found.clone()).map_err(Missing::clone) }
    }
}

/// A library that is there, loads and answers.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its file.
    pub path: PathBuf,
    /// What named the place: an environment variable, "Python packages", or the like.
    pub origin: &'static str,
    /// The version it gives.
    pub version: Version,
}

/// A library that could not be had, and everywhere it was looked for.
#[derive(Clone, Debug, thiserror::Error)]
pub struct Missing {
    /// Which one.
    pub component: Component,
    /// Every place, in the order tried.
    pub looked: Vec<Looked>,
}

/// What one place held.
#[derive(Clone, Debug)]
pub struct Looked {
    /// What named the place.
    pub origin: &'static str,
    /// The folder; `None` for the system's loader and for a variable that is not set.
    pub folder: Option<PathBuf>,
    /// What was there.
    pub outcome: Outcome,
}

/// What came of looking at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The variable is not set, or there are no Python packages.
    Unset,
    /// The folder does not exist.
    NoFolder,
    /// No file of the library's names is there.
    NoFile,
    /// A file is there and cannot be used, for this reason.
    Unusable {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: Unusable,
    },
}

/// Why a library's file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The system's loader refuses it, in these words.
    #[error("{0}")]
    Loader(String),
    /// It lacks a function.
    #[error("it has no function {0}")]
    NoFunction(String),
    /// It does not tell its version.
    #[error("{function} failed with code {code}")]
    Failed {
        /// What was called.
        function: &'static str,
        /// What it returned.
        code: i32,
    },
    /// It tells what is no version.
    #[error("{function} gave {value}")]
    NoVersion {
        /// What was called.
        function: &'static str,
        /// What it gave.
        value: i64,
    },
}

impl fmt::Display for Looked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        match (&self.outcome, &self.folder) {
            (Outcome::Unset, _) => f.write_str("not set"),
            (Outcome::Unusable { file, reason }, _) => write!(f, "{} cannot be used: {reason}", file.display()),
            (Outcome::NoFolder, Some(folder)) => write!(f, "{}: no such folder", folder.display()),
            (_, Some(folder)) => write!(f, "{}: not there", folder.display()),
            (_, None) => f.write_str("not known to it (ldconfig -p)"),
        }
    }
}

impl Missing {
    /// The error in one line, without the places: `NVRTC (libnvrtc.so.13) was not found`.
    pub fn summary(&self) -> String {
        let unusable = self.looked.iter().any(|looked| matches!(looked.outcome, Outcome::Unusable { .. }));
        let what = if unusable { "cannot be used" } else { "was not found" };
        format!("{} ({}) {what}", self.component.name(), self.component.file_names()[0])
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; looked in:", self.summary())?;
        for looked in &self.looked {
            write!(f, "\n  {looked}")?;
        }
        write!(f, "\nto get it: {}", self.component.how_to_get())
    }
}

/// A loaded library that stays loaded: unloading NVIDIA's libraries under their own threads is not safe.
pub(crate) struct Loaded {
    library: ManuallyDrop<libloading::Library>,
    pub(crate) found: Found,
}

impl Loaded {
    /// A function of the library by its name.
    ///
    /// # Safety
    /// `F` must be the C type of that function.
    pub(crate) unsafe fn function<F: Copy>(&self, name: &str) -> Result<F, Unusable> {
        // SAFETY: the caller vouches for the type.
        unsafe { function(&self.library, name) }
    }
}

/// # Safety
/// `F` must be the C type of the function of that name.
unsafe fn function<F: Copy>(library: &libloading::Library, name: &str) -> Result<F, Unusable> {
    // SAFETY: the caller vouches for the type.
    let symbol = unsafe { library.get::<F>(name) };
    symbol.map(|symbol| *symbol).map_err(|_| Unusable::NoFunction(name.into()))
}

/// Looks for a component, loads it and asks its version.
pub(crate) fn find(component: Component, path: &SearchPath) -> Library {
    Library::of(component, &load(component, path))
}

/// Loads a component from the first place that has a usable one.
pub(crate) fn load(component: Component, path: &SearchPath) -> Result<Loaded, Missing> {
    let mut looked = Vec::new();
    for place in &path.places {
        match look(component, place) {
            Some(Ok(loaded)) => return Ok(loaded),
            Some(Err(outcome)) => {
                looked.push(Looked { origin: place.origin, folder: place.folder(component), outcome });
            }
            None => {}
        }
    }
    Err(Missing { component, looked })
}

/// `None` where the component cannot be in such a place.
fn look(component: Component, place: &Place) -> Option<Result<Loaded, Outcome>> {
    if place.spot == Spot::Unset {
        // pip does not carry the driver, so the lack of packages says nothing about it.
        return (component.pip_folder().is_some() || place.origin == "LD_LIBRARY_PATH").then_some(Err(Outcome::Unset));
    }
    if place.spot == Spot::Loader {
        return Some(from_loader(component, place.origin));
    }
    let folder = place.folder(component)?;
    if !folder.is_dir() {
        return Some(Err(Outcome::NoFolder));
    }
    let mut worst = Outcome::NoFile;
    for name in component.file_names() {
        let file = folder.join(name);
        if !file.exists() {
            continue;
        }
        match open(component, &file, place.origin) {
            Ok(loaded) => return Some(Ok(loaded)),
            Err(reason) => worst = Outcome::Unusable { file, reason },
        }
    }
    Some(Err(worst))
}

fn from_loader(component: Component, origin: &'static str) -> Result<Loaded, Outcome> {
    let mut worst = Outcome::NoFile;
    for name in component.file_names() {
        match open(component, Path::new(name), origin) {
            Ok(loaded) => return Ok(loaded),
            // The loader gives one text for "nowhere" and, with the file's path in it, for "there but damaged".
            Err(Unusable::Loader(text)) if text.starts_with(&format!("{name}: cannot open shared object file")) => {}
            Err(reason) => worst = Outcome::Unusable { file: name.into(), reason },
        }
    }
    Err(worst)
}

fn open(component: Component, file: &Path, origin: &'static str) -> Result<Loaded, Unusable> {
    // SAFETY: the file goes by the name of an NVIDIA library in a place meant for libraries; running its initialisers
    // is what every program that uses it does.
    let library = unsafe { libloading::Library::new(file) }.map_err(|error| reason(&error))?;
    let (version, address) = version(component, &library)?;
    let path = mapped_file(address).unwrap_or_else(|| file.to_path_buf());
    // The name asked for says more than the file its links lead to.
    let path = if file.is_absolute() { file.to_path_buf() } else { path };
    Ok(Loaded { library: ManuallyDrop::new(library), found: Found { path, origin, version } })
}

/// The loader's own words.
fn reason(error: &libloading::Error) -> Unusable {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    Unusable::Loader(error.to_string())
}

/// The version, and the address of the function that gave it.
fn version(component: Component, library: &libloading::Library) -> Result<(Version, usize), Unusable> {
    type OneInt = unsafe extern "C" fn(*mut c_int) -> c_int;
    type TwoInts = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
    type Property = unsafe extern "C" fn(c_int, *mut c_int) -> c_int;
    type Plain = unsafe extern "C" fn() -> usize;

    let check = |function: &'static str, status: c_int| match status {
        0 => Ok(()),
        code => Err(Unusable::Failed { function, code }),
    };
    let unsigned =
        |function: &'static str, value: i64| u32::try_from(value).map_err(|_| Unusable::NoVersion { function, value });
    // SAFETY, of every block here: the types are those of NVIDIA's headers, and the pointers are to live integers.
    match component {
        Component::Driver | Component::Nccl => {
            let name = if component == Component::Driver { "cuDriverGetVersion" } else { "ncclGetVersion" };
            let get: OneInt = unsafe { function(library, name) }?;
            let mut code = 0;
            check(name, unsafe { get(&mut code) })?;
            let code = unsigned(name, code.into())?;
            let version = match component {
                Component::Driver => Version::from_driver(code),
                _ => Version::from_packed(code),
            };
            Ok((version, get as *const c_void as usize))
        }
        Component::Nvrtc => {
            let name = "nvrtcVersion";
            let get: TwoInts = unsafe { function(library, name) }?;
            let (mut major, mut minor) = (0, 0);
            check(name, unsafe { get(&mut major, &mut minor) })?;
            let version =
                Version { major: unsigned(name, major.into())?, minor: unsigned(name, minor.into())?, patch: None };
            Ok((version, get as *const c_void as usize))
        }
        Component::Cublas => {
            // cublasGetVersion wants a handle, and so a device; the library's properties do not.
            let name = "cublasGetProperty";
            let get: Property = unsafe { function(library, name) }?;
            let mut parts = [0u32; 3];
            for (kind, part) in (0..).zip(&mut parts) {
                let mut value = 0;
                check(name, unsafe { get(kind, &mut value) })?;
                *part = unsigned(name, value.into())?;
            }
            let [major, minor, patch] = parts;
            Ok((Version { major, minor, patch: Some(patch) }, get as *const c_void as usize))
        }
        Component::Cudnn => {
            let name = "cudnnGetVersion";
            let get: Plain = unsafe { function(library, name) }?;
            let code = unsafe { get() };
            let code = unsigned(name, i64::try_from(code).unwrap_or(i64::MAX))?;
            Ok((Version::from_packed(code), get as *const c_void as usize))
        }
    }
}

/// The file that the code at an address was loaded from, by the system's table of this process's mappings.
fn mapped_file(address: usize) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        // Permissions, offset, device and inode come before the path.
        let path = rest[rest.find('/')?..].trim_end();
        range.contains(&address).then(|| PathBuf::from(path))
    })
}
