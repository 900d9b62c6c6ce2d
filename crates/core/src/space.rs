//! Memory spaces and typed windows into them.
//!
//! A [`View`] is an address in one space with a shape and an element type. Only a view of [`Host`] memory can become a
//! slice, so host and device memory cannot be mixed up; copying between spaces is always a call that says so.

use std::fmt;
use std::marker::PhantomData;

use crate::{BlobSpec, DType, Error, Float, HostCall, Result, Shape};

/// A kind of memory that blobs can live in.
pub trait Space: Sized + 'static {
    /// The address of a byte in this space.
    type Addr: Copy + fmt::Debug;
    /// What a layer's call on this space is made with besides blobs.
    type Call<'a>: Copy;
}

/// The computer's own memory. Work on it runs at once, on the computer's cores.
#[derive(Clone, Copy, Debug)]
pub struct Host;

impl Space for Host {
    type Addr = *mut u8;
    type Call<'a> = HostCall<'a>;
}

/// A borrowed, read-only window on a blob.
pub struct View<'a, S: Space> {
    addr: S::Addr,
    spec: &'a BlobSpec,
    life: PhantomData<&'a [u8]>,
}

impl<S: Space> Clone for View<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Space> Copy for View<'_, S> {}

/// A borrowed, exclusive window on a blob.
pub struct ViewMut<'a, S: Space> {
    addr: S::Addr,
    spec: &'a BlobSpec,
    life: PhantomData<&'a mut [u8]>,
}

impl<'a, S: Space> View<'a, S> {
    /// A window on the elements described by `spec` at `addr`.
    ///
    /// # Safety
    /// For `'a`, the memory at `addr` holds `spec.shape.count()` initialised elements of `spec.dtype`, aligned for it,
    /// and nobody writes it.
    pub unsafe fn from_addr(addr: S::Addr, spec: &'a BlobSpec) -> Self {
        View { addr, spec, life: PhantomData }
    }

    /// The address of the first element.
    pub fn addr(&self) -> S::Addr {
        self.addr
    }

    /// The blob's extents.
    pub fn shape(&self) -> &'a Shape {
        &self.spec.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.spec.dtype
    }
}

impl<'a, S: Space> ViewMut<'a, S> {
    /// An exclusive window on the elements described by `spec` at `addr`.
    ///
    /// # Safety
    /// For `'a`, the memory at `addr` holds `spec.shape.count()` initialised elements of `spec.dtype`, aligned for it,
    /// and nobody else reads or writes it.
    pub unsafe fn from_addr(addr: S::Addr, spec: &'a BlobSpec) -> Self {
        ViewMut { addr, spec, life: PhantomData }
    }

    /// The address of the first element.
    pub fn addr(&self) -> S::Addr {
        self.addr
    }

    /// The blob's extents.
    pub fn shape(&self) -> &'a Shape {
        &self.spec.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.spec.dtype
    }

    /// The same window, for as long as this one is borrowed.
    pub fn reborrow(&mut self) -> ViewMut<'_, S> {
        ViewMut { addr: self.addr, spec: self.spec, life: PhantomData }
    }

    /// The same window, read only from now on.
    pub fn into_view(self) -> View<'a, S> {
        View { addr: self.addr, spec: self.spec, life: PhantomData }
    }
}

fn check<T: Float>(spec: &BlobSpec) -> Result<()> {
    if spec.dtype == T::DTYPE {
        return Ok(());
    }
    Err(Error::internal(format!("a blob of {} was opened as {}", spec.dtype, T::DTYPE)))
}

impl<'a> View<'a, Host> {
    /// A window on a slice. `spec` must describe exactly its elements.
    ///
    /// # Errors
    /// When the element type or the count differ.
    pub fn of_slice<T: Float>(data: &'a [T], spec: &'a BlobSpec) -> Result<Self> {
        check::<T>(spec)?;
        same_count(data.len(), spec)?;
        Ok(View { addr: data.as_ptr() as *mut u8, spec, life: PhantomData })
    }

    /// The elements.
    ///
    /// # Errors
    /// When the blob holds another element type.
    pub fn slice<T: Float>(&self) -> Result<&'a [T]> {
        check::<T>(self.spec)?;
        // SAFETY: whoever made the view vouched for address, count, type and lifetime.
        Ok(unsafe { std::slice::from_raw_parts(self.addr as *const T, self.spec.shape.count()) })
    }

    /// The elements, widened to double precision.
    pub fn to_f64(&self) -> Vec<f64> {
        crate::with_float!(self.dtype(), T => self.slice::<T>().map(|s| s.iter().map(|x| x.f64()).collect()).unwrap_or_default())
    }
}

impl<'a> ViewMut<'a, Host> {
    /// An exclusive window on a slice. `spec` must describe exactly its elements.
    ///
    /// # Errors
    /// When the element type or the count differ.
    pub fn of_slice<T: Float>(data: &'a mut [T], spec: &'a BlobSpec) -> Result<Self> {
        check::<T>(spec)?;
        same_count(data.len(), spec)?;
        Ok(ViewMut { addr: data.as_mut_ptr() as *mut u8, spec, life: PhantomData })
    }

    /// The elements, for as long as the window would have lived.
    ///
    /// # Errors
    /// When the blob holds another element type.
    pub fn into_slice<T: Float>(self) -> Result<&'a mut [T]> {
        check::<T>(self.spec)?;
        // SAFETY: whoever made the view vouched for address, count, type, lifetime and exclusiveness.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.addr as *mut T, self.spec.shape.count()) })
    }

    /// The elements, borrowed from the window.
    ///
    /// # Errors
    /// When the blob holds another element type.
    pub fn slice_mut<T: Float>(&mut self) -> Result<&mut [T]> {
        check::<T>(self.spec)?;
        // SAFETY: as for `into_slice`; the borrow of `self` keeps it exclusive.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.addr as *mut T, self.spec.shape.count()) })
    }

    /// Writes values rounded from double precision; `values` must have as many elements as the blob.
    ///
    /// # Errors
    /// When the counts differ.
    pub fn write_f64(&mut self, values: &[f64]) -> Result<()> {
        same_count(values.len(), self.spec)?;
        crate::with_float!(self.dtype(), T => {
            self.slice_mut::<T>()?.iter_mut().zip(values).for_each(|(d, &v)| *d = T::of(v));
        });
        Ok(())
    }
}

fn same_count(len: usize, spec: &BlobSpec) -> Result<()> {
    if len == spec.shape.count() {
        return Ok(());
    }
    Err(Error::internal(format!("{len} elements do not fill a blob of shape {}", spec.shape)))
}
