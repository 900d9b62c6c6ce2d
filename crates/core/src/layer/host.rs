//! A layer on the host.

use crate::space::{Host, View, ViewMut};
use crate::{Bwd, DType, Error, Float, Fwd, Layer, Result, Step, Views, ViewsMut, with_float};

/// A layer's host half, written once for every host element type.
pub trait HostLayer: Layer {
    /// Computes the tops from the bottoms and the parameters.
    ///
    /// # Errors
    /// When the bottoms hold values the layer cannot take (a label outside its classes, say).
    fn forward<T: Float>(&self, io: Fwd<'_, Host>) -> Result<()>;

    /// The rows of this pass's tops, no more than planned; asked before each forward of a layer that planned
    /// [`Plan::rows_vary`](crate::Plan::rows_vary). The tops and their diffs then have so many.
    ///
    /// # Errors
    /// As for forward.
    fn rows(&self, _bottoms: &[View<'_, Host>]) -> Result<usize> {
        Err(Error::internal("this layer's tops have as many rows as planned"))
    }

    /// Computes the bottoms' diffs (overwriting them) and adds to the parameters' diffs. Layers that set
    /// [`Plan::no_backward`](crate::Plan::no_backward) leave this out.
    ///
    /// # Errors
    /// As for forward.
    fn backward<T: Float>(&self, _io: Bwd<'_, Host>) -> Result<()> {
        Err(Error::internal("this layer has no backward pass"))
    }
}

/// A layer that runs on the host, whatever its blobs' element type; every [`HostLayer`] does.
pub trait Run: Layer {
    /// See [`HostLayer::forward`].
    ///
    /// # Errors
    /// See [`HostLayer::forward`].
    fn forward(&self, io: Fwd<'_, Host>) -> Result<()>;

    /// See [`HostLayer::rows`].
    ///
    /// # Errors
    /// See [`HostLayer::rows`].
    fn rows(&self, bottoms: &[View<'_, Host>]) -> Result<usize>;

    /// See [`HostLayer::backward`].
    ///
    /// # Errors
    /// See [`HostLayer::backward`].
    fn backward(&self, io: Bwd<'_, Host>) -> Result<()>;
}

impl<L: HostLayer> Run for L {
    fn forward(&self, io: Fwd<'_, Host>) -> Result<()> {
        with_float!(io.call.dtype, T => HostLayer::forward::<T>(self, io))
    }

    fn rows(&self, bottoms: &[View<'_, Host>]) -> Result<usize> {
        HostLayer::rows(self, bottoms)
    }

    fn backward(&self, io: Bwd<'_, Host>) -> Result<()> {
        with_float!(io.call.dtype, T => HostLayer::backward::<T>(self, io))
    }
}

/// What a host call is made with besides blobs.
#[derive(Clone, Copy, Debug)]
pub struct HostCall<'a> {
    /// Iteration, sub-batch and seed.
    pub step: &'a Step,
    /// The element type of every blob.
    pub dtype: DType,
}

fn need<'a, T: Float>(views: &Views<'a, Host>, i: usize, what: &str) -> Result<&'a [T]> {
    opt(views, i)?.ok_or_else(|| Error::internal(format!("{what} {i} is not among a layer's inputs")))
}

fn opt<'a, T: Float>(views: &Views<'a, Host>, i: usize) -> Result<Option<&'a [T]>> {
    views.get(i).copied().flatten().map(|v| v.slice()).transpose()
}

fn take_opt<'a, T: Float>(views: &mut ViewsMut<'a, Host>, i: usize) -> Result<Option<&'a mut [T]>> {
    views.get_mut(i).and_then(Option::take).map(ViewMut::into_slice).transpose()
}

fn take<'a, T: Float>(views: &mut ViewsMut<'a, Host>, i: usize, what: &str) -> Result<&'a mut [T]> {
    take_opt(views, i)?.ok_or_else(|| Error::internal(format!("{what} {i} is absent or was taken before")))
}

impl<'a> Fwd<'a, Host> {
    /// Data of bottom `i`, which must not share memory with a top.
    ///
    /// # Errors
    /// When it does, or has another element type.
    pub fn bottom<T: Float>(&self, i: usize) -> Result<&'a [T]> {
        need(&self.bottoms, i, "bottom")
    }

    /// Data of bottom `i`, or `None` when it shares memory with a top.
    ///
    /// # Errors
    /// When it has another element type.
    pub fn bottom_unless_shared<T: Float>(&self, i: usize) -> Result<Option<&'a [T]>> {
        opt(&self.bottoms, i)
    }

    /// Takes the data of top `i`.
    ///
    /// # Errors
    /// When it was taken before or has another element type.
    pub fn top<T: Float>(&mut self, i: usize) -> Result<&'a mut [T]> {
        take(&mut self.tops, i, "top")
    }

    /// Takes parameter `i` for reading.
    ///
    /// # Errors
    /// When it was taken before or has another element type.
    pub fn param<T: Float>(&mut self, i: usize) -> Result<&'a [T]> {
        self.param_mut(i).map(|p| &*p)
    }

    /// Takes parameter `i` for writing; for parameters planned as state.
    ///
    /// # Errors
    /// When it was taken before or has another element type.
    pub fn param_mut<T: Float>(&mut self, i: usize) -> Result<&'a mut [T]> {
        take(&mut self.params, i, "parameter")
    }

    /// Takes saved memory `i`; `None` in a net that runs no backward.
    ///
    /// # Errors
    /// When it has another element type.
    pub fn saved<T: Float>(&mut self, i: usize) -> Result<Option<&'a mut [T]>> {
        take_opt(&mut self.saved, i)
    }

    /// Takes scratch memory `i`.
    ///
    /// # Errors
    /// When it was taken before or has another element type.
    pub fn scratch<T: Float>(&mut self, i: usize) -> Result<&'a mut [T]> {
        take(&mut self.scratch, i, "scratch")
    }
}

impl<'a> Bwd<'a, Host> {
    /// Data of bottom `i`, planned as read by backward.
    ///
    /// # Errors
    /// When it was not planned so, or has another element type.
    pub fn bottom<T: Float>(&self, i: usize) -> Result<&'a [T]> {
        need(&self.bottoms, i, "bottom")
    }

    /// Data of top `i`, planned as read by backward.
    ///
    /// # Errors
    /// When it was not planned so, or has another element type.
    pub fn top<T: Float>(&self, i: usize) -> Result<&'a [T]> {
        need(&self.tops, i, "top")
    }

    /// Diff of top `i`, which must not share memory with a bottom's diff.
    ///
    /// # Errors
    /// When it does, or has another element type.
    pub fn top_diff<T: Float>(&self, i: usize) -> Result<&'a [T]> {
        need(&self.top_diffs, i, "top diff")
    }

    /// Diff of top `i`, or `None` when it shares memory with a bottom's diff.
    ///
    /// # Errors
    /// When it has another element type.
    pub fn top_diff_unless_shared<T: Float>(&self, i: usize) -> Result<Option<&'a [T]>> {
        opt(&self.top_diffs, i)
    }

    /// Takes the diff of bottom `i`; `None` when nothing asks for it.
    ///
    /// # Errors
    /// When it has another element type.
    pub fn bottom_diff<T: Float>(&mut self, i: usize) -> Result<Option<&'a mut [T]>> {
        take_opt(&mut self.bottom_diffs, i)
    }

    /// Parameter `i`.
    ///
    /// # Errors
    /// When it has another element type.
    pub fn param<T: Float>(&self, i: usize) -> Result<&'a [T]> {
        need(&self.params, i, "parameter")
    }

    /// Takes the diff of parameter `i`, to be added to; `None` when nothing asks for it.
    ///
    /// # Errors
    /// When it has another element type.
    pub fn param_diff<T: Float>(&mut self, i: usize) -> Result<Option<&'a mut [T]>> {
        take_opt(&mut self.param_diffs, i)
    }

    /// What forward left in saved memory `i`.
    ///
    /// # Errors
    /// When it has another element type.
    pub fn saved<T: Float>(&self, i: usize) -> Result<&'a [T]> {
        need(&self.saved, i, "saved memory")
    }

    /// Takes scratch memory `i`.
    ///
    /// # Errors
    /// When it was taken before or has another element type.
    pub fn scratch<T: Float>(&mut self, i: usize) -> Result<&'a mut [T]> {
        take(&mut self.scratch, i, "scratch")
    }
}
