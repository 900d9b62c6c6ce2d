//! The kernels as a library for this machine: written as one C++ file, compiled once, opened.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lgm_core::rng::fnv1a;
use lgm_core::{Error, Grid, Result};

use super::Order;

use crate::KernelCache;
use crate::kernels::{COMMON, Header, SIM, Source, sources};

/// How the compiler is called, but for the files.
const OPTIONS: [&str; 7] = ["-std=c++17", "-O2", "-g1", "-fPIC", "-shared", "-fno-strict-aliasing", "-Wno-attributes"];

/// Where and how a kernel runs, as `lgm_sim_launch` takes it.
#[repr(C)]
struct Launch {
    grid: [u32; 3],
    block: [u32; 3],
    reversed: u32,
}

type Run = unsafe extern "C" fn(*mut *mut c_void);
type Start = unsafe extern "C" fn(*const Launch, Run, *mut *mut c_void) -> *const c_char;

#[repr(C)]
struct Entry {
    name: *const c_char,
    signature: *const c_char,
    run: Option<Run>,
}

/// The kernels, compiled for this machine.
pub struct Kernels {
    start: Start,
    table: HashMap<String, (String, Run)>,
    _library: libloading::Library,
}

/// The kernels of this build, compiled by the first who asks.
///
/// # Errors
/// When there is no C++ compiler, or it refuses them.
pub fn kernels() -> Result<&'static Kernels> {
    static KERNELS: OnceLock<Result<Kernels, Arc<Error>>> = OnceLock::new();
    let made = KERNELS.get_or_init(|| load(sources()).map_err(Arc::new));
    made.as_ref().map_err(|error| error.clone().into())
}

impl Kernels {
    /// The letters of a kernel's parameter types: `p` pointer, `i` int, `u` unsigned, `l` long long, `m` unsigned long long,
    /// `f` float; `None` where there is no such kernel.
    pub fn signature(&self, kernel: &str) -> Option<&str> {
        self.table.get(kernel).map(|(signature, _)| signature.as_str())
    }

    /// Runs a kernel; who else wants to run one, of whatever instance of this, waits meanwhile.
    ///
    /// # Safety
    /// `args` holds a pointer to a value of each type of the kernel's signature, and what the kernel makes of them stays
    /// within memory that nobody else uses meanwhile.
    ///
    /// # Errors
    /// When there is no such kernel, or its threads wait for one another for ever.
    pub unsafe fn run(&self, kernel: &str, grid: Grid, order: Order, args: &mut [*mut c_void]) -> Result<()> {
        let Some((_, run)) = self.table.get(kernel) else {
            return Err(Error::internal(format!("there is no kernel '{kernel}'")));
        };
        let launch = Launch { grid: grid.blocks, block: grid.threads, reversed: u32::from(order == Order::Reversed) };
        // SAFETY: the caller's promise; the library's functions have these types.
        let said = unsafe { (self.start)(&launch, *run, args.as_mut_ptr()) };
        if said.is_null() {
            return Ok(());
        }
        // SAFETY: a text of the library, which this thread's next launch overwrites.
        let text = unsafe { CStr::from_ptr(said) }.to_string_lossy().into_owned();
        Err(Error::internal(format!("kernel '{kernel}' with {:?} x {:?} threads: {text}", grid.blocks, grid.threads)))
    }
}

/// All sources and the table of their kernels.
fn program(sources: &[Source]) -> String {
    let mut text: String = SIM.iter().chain(COMMON).map(Header::numbered).collect();
    for source in sources {
        // A namespace each, so that helpers may have the same name, as they may where every source is compiled alone.
        let headers: String = source.headers.iter().map(Header::numbered).collect();
        let _ = write!(text, "namespace {0} {{\n{headers}#line 1 \"{0}.cu\"\n{1}\n}}\n", source.name, source.text);
    }
    text.push_str("extern \"C\" const sim::Entry lgm_sim_entries[] = {\n");
    for (source, kernel) in sources.iter().flat_map(|s| s.kernels().map(move |k| (s.name, k))) {
        let call = format!("sim::Call<&{source}::{kernel}>");
        let _ = writeln!(text, "{{\"{kernel}\", {call}::signature, {call}::run}},");
    }
    text.push_str(
        "{nullptr, nullptr, nullptr}};\n\
         extern \"C\" const char* lgm_sim_launch(const sim::Launch* l, void (*run)(void**), void** args) {\n\
         return sim::launch(*l, run, args);\n}\n",
    );
    text
}

/// Whether AddressSanitizer is to watch the kernels; see [the module](super).
pub(super) fn sanitized() -> bool {
    std::env::var_os("LGM_SIM_SANITIZE").is_some_and(|v| v == "1")
}

fn folder() -> PathBuf {
    let cache = KernelCache::from_env().folder().cloned();
    cache.unwrap_or_else(|| std::env::temp_dir().join(format!("lgm-caffe-{}", std::process::id()))).join("sim")
}

fn compiler() -> String {
    std::env::var("CXX").ok().filter(|c| !c.is_empty()).unwrap_or_else(|| "g++".into())
}

/// Compiles sources, unless that was done before, and opens the library.
pub(super) fn load(sources: &[Source]) -> Result<Kernels> {
    let text = program(sources);
    let compiler = compiler();
    let folder = folder();
    let watched = if sanitized() { "-sanitized" } else { "" };
    let name = format!("{:016x}{watched}", fnv1a(format!("{compiler} {} {text}", OPTIONS.join(" ")).bytes()));
    let library = folder.join(format!("{name}.so"));
    // One thread of the process compiles; of several processes each does, to a name of its own.
    static COMPILING: Mutex<()> = Mutex::new(());
    let _alone = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
    if !library.is_file() {
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "make the folder"))?;
        compile(&compiler, &text, &folder, &name)?;
    }
    open(&library)
}

/// Writes `name.so`, under another name until it is whole.
fn compile(compiler: &str, text: &str, folder: &Path, name: &str) -> Result<()> {
    let process = std::process::id();
    let source = folder.join(format!("{name}.{process}.cpp"));
    let partial = folder.join(format!("{name}.{process}.so"));
    std::fs::write(&source, text).map_err(Error::io(&source, "write"))?;
    let said = Command::new(compiler)
        .args(OPTIONS)
        .args(sanitized().then_some("-fsanitize=address"))
        .arg("-o")
        .arg(&partial)
        .arg(&source)
        .output();
    let said = said.map_err(|e| {
        Error::config(format!("cannot run the C++ compiler '{compiler}' ({e}); install g++ or name one in CXX"))
    })?;
    let _ = std::fs::remove_file(&source);
    if !said.status.success() {
        let text = String::from_utf8_lossy(&said.stderr);
        let first: Vec<&str> = text.lines().filter(|l| l.contains("error")).take(8).collect();
        return Err(Error::internal(format!("'{compiler}' cannot compile the kernels: {}", first.join("; "))));
    }
    let whole = folder.join(format!("{name}.so"));
    std::fs::rename(&partial, &whole).map_err(Error::io(&whole, "write"))
}

fn open(path: &Path) -> Result<Kernels> {
    let broken = |e: libloading::Error| Error::internal(format!("{}: {e}", path.display()));
    // SAFETY: the library was compiled from `program`, whose symbols have these types; it has no initializers.
    unsafe {
        let library = libloading::Library::new(path).map_err(broken)?;
        let start = *library.get::<Start>(b"lgm_sim_launch").map_err(broken)?;
        let mut entry = *library.get::<*const Entry>(b"lgm_sim_entries").map_err(broken)?;
        let mut table = HashMap::new();
        while let Some(run) = (*entry).run {
            let text = |at: *const c_char| CStr::from_ptr(at).to_string_lossy().into_owned();
            table.insert(text((*entry).name), (text((*entry).signature), run));
            entry = entry.add(1);
        }
        Ok(Kernels { start, table, _library: library })
    }
}
