//! The functions of NVIDIA's libraries that a GPU run calls, loaded from where they were found.
//!
//! Types and constants are cudarc's, generated from NVIDIA's headers: a declaration that differs from its does not compile.
//! Its own loader is not used: it panics where a library or a function is missing, takes a file of the right name from
//! wherever the system's loader has one rather than the one that was found, and reads statuses as enumerations, which a
//! newer library's may not fit.

pub(crate) use cudarc::cublas::sys as cublas;
pub(crate) use cudarc::cudnn::sys as cudnn;
pub(crate) use cudarc::driver::sys as driver;
use cudarc::nvrtc::sys as nvrtc;

pub(crate) use cublas::cublasHandle_t;
pub(crate) use cudnn::cudnnHandle_t;
pub(crate) use driver::{CUcontext, CUevent, CUfunction, CUgraph, CUgraphExec, CUmodule, CUstream};
pub(crate) use nvrtc::nvrtcProgram;

use crate::locate::{self, Loaded};
use crate::{Component, Found, SearchPath, Unusable};
use lgm_core::{Error, Result};

/// A handle to something a library owns, which any thread may use: a stream, an event, a module, a descriptor.
#[repr(transparent)]
pub(crate) struct Handle<T>(pub(crate) *mut T);

impl<T> Handle<T> {
    /// No handle.
    pub(crate) const NULL: Self = Handle(std::ptr::null_mut());

    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Handle<T> {}

// SAFETY: a handle is a name; the driver's functions may be called with it from any thread, and the handles of cuBLAS
// and cuDNN are kept behind mutexes.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Handle<T> {}

/// Functions of a library.
pub(crate) trait Api: Sized {
    /// The library.
    const COMPONENT: Component;

    /// The functions of one that was loaded, or what it lacks.
    fn of(loaded: &Loaded) -> Result<Self, Unusable>;

    /// The functions of one that was loaded.
    ///
    /// # Errors
    /// When it lacks one.
    fn usable(loaded: &Loaded) -> Result<Self> {
        Self::of(loaded).map_err(|reason| {
            let (what, how) = (Self::COMPONENT.name(), Self::COMPONENT.how_to_get());
            Error::device(format!("{what} ({}) cannot be used: {reason}; {how}", loaded.found.path.display()))
        })
    }

    /// Loads the library from the first place that has a usable one.
    ///
    /// # Errors
    /// When none has.
    fn load(path: &SearchPath) -> Result<Self> {
        let loaded = locate::load(Self::COMPONENT, path).map_err(|missing| Error::device(missing.to_string()))?;
        Self::usable(&loaded)
    }
}

/// A parameter's type as our code gives it, where that is not the header's.
macro_rules! taken {
    ($type:ty,) => {
        $type
    };
    ($type:ty, $as:ty) => {
        $as
    };
}
/// What a function gives back as our code takes it: a status as the number it is, since a library newer than its bindings
/// may give one that their enumerations lack.
macro_rules! given {
    () => {
        c_int
    };
    ($type:ty) => {
        $type
    };
}
/// The same in the header.
macro_rules! given_there {
    ($status:ty,) => {
        $status
    };
    ($status:ty, $type:ty) => {
        $type
    };
}
/// The header's function of a name, or a newer one in its place.
macro_rules! there {
    ($sys:ident, $function:ident) => {
        $sys::$function
    };
    ($sys:ident, $function:ident $newer:ident) => {
        $sys::$newer
    };
}

/// Functions of a library and the type of its status, which they give unless another is written. `A as B` is a parameter
/// of the header's type A for which our code gives a B, and `f like g` a function with the type of another that took its
/// place in newer headers.
macro_rules! api {
    ($(#[$doc:meta])* $name:ident of $component:ident in $sys:ident, giving $status:ident {
        $(fn $function:ident $(like $newer:ident)? ($($type:ty $(as $as:ty)?),*) $(-> $ret:ty)?;)*
    }) => {
        $(#[$doc])*
        #[allow(non_snake_case)]
        pub(crate) struct $name {
            $(pub(crate) $function: unsafe extern "C" fn($(taken!($type, $($as)?)),*) -> given!($($ret)?),)*
            pub(crate) found: Found,
        }

        $(
            const _: unsafe fn($($type),*) -> given_there!($sys::$status, $($ret)?) = there!($sys, $function $($newer)?);
            $($(const _: () = assert!(size_of::<$type>() == size_of::<$as>());)?)*
        )*
        const _: () = assert!(size_of::<$sys::$status>() == size_of::<c_int>());

        impl Api for $name {
            const COMPONENT: Component = Component::$component;

            fn of(loaded: &Loaded) -> Result<Self, Unusable> {
                Ok($name {
                    // SAFETY: the types are the header's, but for numbers in place of enumerations, which are as wide.
                    $($function: unsafe { loaded.function(stringify!($function)) }?,)*
                    found: loaded.found.clone(),
                })
            }
        }
    };
}

mod libraries;

pub(crate) use libraries::*;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_is_in_the_libraries_found_here() {
        let path = SearchPath::from_env();
        let report = |what: Component, result: Result<()>| match result {
            Ok(()) => {}
            Err(error) if error.to_string().contains("was not found") => println!("skipped: {} is absent", what.name()),
            Err(error) => panic!("{error}"),
        };
        report(Component::Driver, DriverApi::load(&path).map(drop));
        report(Component::Driver, RunApi::load(&path).map(drop));
        report(Component::Nvrtc, NvrtcApi::load(&path).map(drop));
        report(Component::Cublas, CublasApi::load(&path).map(drop));
        report(Component::Cudnn, CudnnApi::load(&path).map(drop));
    }
}
