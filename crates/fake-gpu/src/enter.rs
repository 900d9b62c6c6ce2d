//! What every call goes through: the count, the failures asked for, and the rules that hold for all.

use std::cell::Cell;
use std::ffi::c_int;

use crate::gpu::Gpu;
use crate::process::lock;
use crate::status::Refusal;
use crate::stream::RECORDS;

/// Whose call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    Driver,
    Blas,
    Dnn,
    Nvrtc,
}

impl Library {
    /// What a call gives that fails for no reason of its own.
    fn failure(self) -> Refusal {
        match self {
            Library::Driver => 1,
            Library::Blas => 13,
            Library::Dnn => 5000,
            Library::Nvrtc => 11,
        }
    }

    /// What a call gives once the device is lost.
    fn loss(self, code: c_int) -> Refusal {
        if self == Library::Driver { code } else { self.failure() }
    }
}

/// Rules of a call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// It needs no current context.
    pub anywhere: bool,
    /// It may not be made by a thread that records a stream.
    pub not_recorded: bool,
    /// It gives something back: it is not counted, and does that whatever it answers.
    pub releases: bool,
    /// It ends the recording that it is called for, whatever it answers.
    pub ends: bool,
}

/// CUDA_ERROR_INVALID_CONTEXT
const INVALID_CONTEXT: Refusal = 201;
/// CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
const CAPTURE_UNSUPPORTED: Refusal = 900;
/// CUDA_ERROR_LAUNCH_FAILED
const LOST: Refusal = 719;

thread_local! {
    /// Whether the context is the thread's.
    pub static CURRENT: Cell<bool> = const { Cell::new(false) };
}

/// Makes a call: what `body` gives, unless the rules or the settings have it fail.
pub fn enter(
    library: Library,
    name: &'static str,
    rules: Rules,
    body: impl FnOnce(&mut Gpu) -> Result<(), Refusal>,
) -> c_int {
    let mut gpu = lock();
    let gpu = &mut *gpu;
    if let Some(status) = told_to_fail(gpu, library, name, rules) {
        if rules.ends {
            RECORDS.with_borrow(|streams| streams.iter().for_each(|&stream| gpu.spoil(stream)));
        }
        if rules.releases || rules.ends {
            let _ = body(gpu);
        }
        return status;
    }
    if !rules.anywhere && !CURRENT.get() {
        gpu.violation(&format!("{name} without a current context"));
        return if library == Library::Driver { INVALID_CONTEXT } else { library.failure() };
    }
    if rules.not_recorded && RECORDS.with_borrow(|streams| streams.iter().any(|&stream| gpu.is_recorded(stream))) {
        gpu.violation(&format!("{name} by a thread that records a stream"));
        RECORDS.with_borrow(|streams| streams.iter().for_each(|&stream| gpu.spoil(stream)));
        return CAPTURE_UNSUPPORTED;
    }
    let result = body(gpu);
    match (result, gpu.lost) {
        (_, Some(code)) if !rules.anywhere => library.loss(code),
        (Ok(()), _) => 0,
        (Err(status), _) => status,
    }
}

fn told_to_fail(gpu: &mut Gpu, library: Library, name: &'static str, rules: Rules) -> Option<c_int> {
    if !rules.releases {
        gpu.count_call(name);
        let call = gpu.made;
        if let Some((at, status)) = gpu.settings.fail
            && at == call
        {
            return Some(status.unwrap_or(library.failure()));
        }
        if gpu.settings.lose.is_some_and(|from| call >= from) {
            gpu.lost.get_or_insert(LOST);
        }
    }
    // What lists devices answers still.
    let code = gpu.lost.filter(|_| !rules.anywhere)?;
    Some(library.loss(code))
}

/// Functions of a library, each checked against the header's: `fn name(argument: Type, …) [rules] |gpu| body`, where the body
/// gives a `Result` whose error is the status.
macro_rules! functions {
    ($sys:ident, $library:ident, $status:ident; $(
        $(#[$doc:meta])*
        fn $name:ident $(like $newer:ident)? ($($arg:ident: $type:ty),* $(,)?) [$($rule:ident)*] |$gpu:pat_param| $body:block
    )*) => { $(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> std::ffi::c_int {
            #[allow(clippy::needless_update)]
            let rules = crate::enter::Rules { $($rule: true,)* ..crate::enter::Rules::default() };
            crate::enter::enter(
                crate::enter::Library::$library, stringify!($name), rules, |$gpu: &mut crate::gpu::Gpu| $body,
            )
        }
        const _: unsafe fn($($type),*) -> $sys::$status = crate::enter::there!($sys, $name $($newer)?);
    )* };
}
macro_rules! there {
    ($sys:ident, $name:ident) => {
        $sys::$name
    };
    ($sys:ident, $name:ident $newer:ident) => {
        $sys::$newer
    };
}
pub(crate) use {functions, there};
