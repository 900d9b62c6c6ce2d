//! The places where NVIDIA's libraries may lie, in the order they are tried.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Component;

/// Where one place is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spot {
    /// A folder that holds libraries itself.
    Folder(PathBuf),
    /// A Python's site-packages, in which each library has a folder of its own.
    SitePackages(PathBuf),
    /// The folders that the system's loader knows (ldconfig).
    Loader,
    /// Nowhere: a variable that could have named a folder is not set.
    Unset,
}

/// One place to look at, and what named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What named the place: an environment variable, "Python packages", or the like.
    pub origin: &'static str,
    /// Where it is.
    pub spot: Spot,
}

impl Place {
    /// The folder in which a component's files would lie here; `None` where no folder is known or it cannot be here.
    pub(crate) fn folder(&self, component: Component) -> Option<PathBuf> {
        match &self.spot {
            Spot::Folder(folder) => Some(folder.clone()),
            Spot::SitePackages(site) => component.pip_folder().map(|sub| site.join(sub)),
            Spot::Loader | Spot::Unset => None,
        }
    }
}

/// The places to look at, in order.
#[derive(Clone, Debug, Default)]
pub struct SearchPath {
    /// The places, the first tried first.
    pub places: Vec<Place>,
}

const SITES: &str = "Python packages";
const NO_SITES: &str = "VIRTUAL_ENV or a Python with packages on PATH";
const SYSTEM: &str = "usual folder";

impl SearchPath {
    /// The places of this process, in this order: `LD_LIBRARY_PATH`, `CUDA_PATH`, `CUDA_HOME`, the packages of the
    /// active Python (`VIRTUAL_ENV`, `CONDA_PREFIX`, the `python3` on `PATH`, `~/.local`), the system's loader,
    /// `/usr/local/cuda`, and the folders into which container runtimes and WSL put the driver.
    pub fn from_env() -> Self {
        Self::discover(&|name| env::var_os(name).filter(|value| !value.is_empty()), Path::new("/"))
    }

    /// The given folders alone.
    pub fn folders(folders: impl IntoIterator<Item = PathBuf>) -> Self {
        let place = |folder| Place { origin: "given folder", spot: Spot::Folder(folder) };
        SearchPath { places: folders.into_iter().map(place).collect() }
    }

    fn discover(var: &dyn Fn(&str) -> Option<OsString>, root: &Path) -> Self {
        let mut path = SearchPath::default();
        match var("LD_LIBRARY_PATH") {
            Some(list) => {
                let folders = env::split_paths(&list).filter(|folder| !folder.as_os_str().is_empty());
                folders.for_each(|folder| path.add("LD_LIBRARY_PATH", Spot::Folder(folder)));
            }
            None => path.add("LD_LIBRARY_PATH", Spot::Unset),
        }
        for name in ["CUDA_PATH", "CUDA_HOME"] {
            match var(name) {
                Some(toolkit) => path.add_toolkit(name, Path::new(&toolkit)),
                None => path.add(name, Spot::Unset),
            }
        }
        let sites = site_packages(var, root);
        if sites.is_empty() {
            path.add(NO_SITES, Spot::Unset);
        }
        sites.into_iter().for_each(|site| path.add(SITES, Spot::SitePackages(site)));
        path.add("system loader", Spot::Loader);
        path.add_toolkit(SYSTEM, &root.join("usr/local/cuda"));
        for folder in ["usr/local/nvidia/lib64", "usr/local/nvidia/lib", "usr/lib/wsl/lib"] {
            path.add(SYSTEM, Spot::Folder(root.join(folder)));
        }
        path
    }

    fn add(&mut self, origin: &'static str, spot: Spot) {
        let known = self.places.iter().any(|place| place.spot == spot && spot != Spot::Unset);
        if !known {
            self.places.push(Place { origin, spot });
        }
    }

    fn add_toolkit(&mut self, origin: &'static str, toolkit: &Path) {
        self.add(origin, Spot::Folder(toolkit.join("lib64")));
        // Conda and pip toolkits have no lib64; naming an absent lib folder for the others would only lengthen reports.
        if toolkit.join("lib").is_dir() {
            self.add(origin, Spot::Folder(toolkit.join("lib")));
        }
    }
}

/// The package folders of the active Pythons, nearest first, without running any of them.
fn site_packages(var: &dyn Fn(&str) -> Option<OsString>, root: &Path) -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|v| var(v)).map(Into::into).collect();
    let search = var("PATH").unwrap_or_default();
    let on_path = |name: &str| env::split_paths(&search).map(|dir| dir.join(name)).find(|file| file.is_file());
    if let Some(python) = on_path("python3").or_else(|| on_path("python")) {
        for python in links(python) {
            let bin = python.parent().unwrap_or(Path::new(""));
            let home = bin.parent().unwrap_or(Path::new(""));
            if bin.ends_with("shims") {
                prefixes.extend(pyenv_prefixes(var, home));
            } else {
                prefixes.push(home.to_path_buf());
            }
        }
    }
    let user = var("HOME").map(|home| PathBuf::from(home).join(".local"));
    prefixes.extend(user);
    prefixes.push(root.join("usr/local"));

    let mut sites = Vec::new();
    for prefix in prefixes {
        for version in python_folders(&prefix.join("lib")) {
            for packages in ["site-packages", "dist-packages"] {
                let site = version.join(packages);
                if site.is_dir() && !sites.contains(&site) {
                    sites.push(site);
                }
            }
        }
    }
    sites
}

/// A file and what its links lead to, one after the other: the first that lies in an environment names it.
fn links(file: PathBuf) -> Vec<PathBuf> {
    // A chain that goes round is broken off.
    const MOST: usize = 8;
    let next = |file: &PathBuf| {
        let target = fs::read_link(file).ok()?;
        Some(file.parent().unwrap_or(Path::new("")).join(target))
    };
    std::iter::successors(Some(file), next).take(MOST).collect()
}

/// The installations that pyenv's shims stand for: those of `PYENV_VERSION`, else of pyenv's own `version` file.
fn pyenv_prefixes(var: &dyn Fn(&str) -> Option<OsString>, home: &Path) -> Vec<PathBuf> {
    let chosen = match var("PYENV_VERSION") {
        Some(names) => names.to_string_lossy().replace(':', "\n"),
        None => fs::read_to_string(home.join("version")).unwrap_or_default(),
    };
    chosen.split_whitespace().map(|name| home.join("versions").join(name)).collect()
}

/// The folders `lib/python3.X`, the newest first.
fn python_folders(lib: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(lib).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let minor =
                entry.file_name().to_str()?.strip_prefix("python3")?.trim_start_matches('.').parse().unwrap_or(0);
            Some((minor, entry.path()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn discover(vars: &[(&str, &Path)], root: &Path) -> SearchPath {
        let vars: HashMap<&str, OsString> = vars.iter().map(|(k, v)| (*k, v.as_os_str().into())).collect();
        SearchPath::discover(&|name| vars.get(name).cloned(), root)
    }

    fn origins(path: &SearchPath) -> Vec<(&str, &Spot)> {
        path.places.iter().map(|place| (place.origin, &place.spot)).collect()
    }

    #[test]
    fn an_empty_machine_has_the_fixed_places_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = discover(&[], root.path());
        let usual = |sub: &str| Spot::Folder(root.path().join(sub));
        assert_eq!(
            origins(&path),
            [
                ("LD_LIBRARY_PATH", &Spot::Unset),
                ("CUDA_PATH", &Spot::Unset),
                ("CUDA_HOME", &Spot::Unset),
                (NO_SITES, &Spot::Unset),
                ("system loader", &Spot::Loader),
                (SYSTEM, &usual("usr/local/cuda/lib64")),
                (SYSTEM, &usual("usr/local/nvidia/lib64")),
                (SYSTEM, &usual("usr/local/nvidia/lib")),
                (SYSTEM, &usual("usr/lib/wsl/lib")),
            ]
        );
    }

    #[test]
    fn variables_name_places_once_and_in_order() {
        let root = tempfile::tempdir().unwrap();
        let cuda = root.path().join("cuda");
        fs::create_dir_all(cuda.join("lib")).unwrap();
        let path = discover(
            &[("LD_LIBRARY_PATH", Path::new("/a::/b")), ("CUDA_PATH", &cuda), ("CUDA_HOME", &cuda)],
            root.path(),
        );
        let folders: Vec<_> = path.places.iter().filter_map(|p| p.folder(Component::Driver)).collect();
        assert_eq!(folders[..4], [PathBuf::from("/a"), "/b".into(), cuda.join("lib64"), cuda.join("lib")]);
        assert_eq!(path.places.iter().filter(|p| p.origin == "CUDA_HOME").count(), 0);
    }

    #[test]
    fn a_linked_python_leads_to_its_environment() {
        let root = tempfile::tempdir().unwrap();
        let make = |folder: &str| {
            let path = root.path().join(folder);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (bin, venv) = (make("bin"), make("venv/bin"));
        let packages = make("venv/lib/python3.12/site-packages");
        fs::write(make("base").join("python3.12"), "").unwrap();
        std::os::unix::fs::symlink("../../base/python3.12", venv.join("python3")).unwrap();
        std::os::unix::fs::symlink("../venv/bin/python3", bin.join("python3")).unwrap();
        let path = discover(&[("PATH", &bin)], root.path());
        let found: Vec<_> = path.places.iter().filter(|p| p.origin == SITES).collect();
        let [Place { spot: Spot::SitePackages(site), .. }] = found[..] else { panic!("{found:?}") };
        assert_eq!(site.canonicalize().unwrap(), packages.canonicalize().unwrap());
    }

    #[test]
    fn python_packages_are_found_in_venvs_on_the_path_and_behind_pyenv_shims() {
        let root = tempfile::tempdir().unwrap();
        let make = |folder: &str| {
            let path = root.path().join(folder);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let venv = make("venv/lib/python3.11/site-packages");
        let newer = make("venv/lib/python3.13/site-packages");
        let pyenv = make("pyenv/versions/3.12.1/lib/python3.12/site-packages");
        make("pyenv/versions/3.9.0/lib/python3.9/site-packages");
        let shims = make("pyenv/shims");
        fs::write(shims.join("python3"), "#!/bin/sh\n").unwrap();
        fs::write(root.path().join("pyenv/version"), "3.12.1\n").unwrap();
        let debian = make("usr/local/lib/python3.11/dist-packages");

        let path = discover(&[("VIRTUAL_ENV", &root.path().join("venv")), ("PATH", &shims)], root.path());
        let sites: Vec<_> = path.places.iter().filter(|p| p.origin == SITES).map(|p| p.spot.clone()).collect();
        assert_eq!(sites, [newer, venv.clone(), pyenv, debian].map(Spot::SitePackages));
        let place = &Place { origin: SITES, spot: Spot::SitePackages(venv.clone()) };
        assert_eq!(place.folder(Component::Cudnn), Some(venv.join("nvidia/cudnn/lib")));
        assert_eq!(place.folder(Component::Nvrtc), Some(venv.join("nvidia/cu13/lib")));
        assert_eq!(place.folder(Component::Driver), None);
    }
}
