//! A layer on a device.

use crate::{
    Arg, Bwd, Device, DevicePtr, DeviceQueue, Error, Fault, Format, Formats, Fwd, Grid, Kernel, Layer, Offer, Plan,
    PreparedConvolution, Result, View, ViewMut, Views, ViewsMut,
};

/// A layer's device half.
pub trait DeviceLayer: Layer {
    /// Whether a device can run the layer as it was planned. Where it cannot, the host does, between two copies.
    fn is_supported(&self) -> bool {
        true
    }

    /// The formats in which the layer takes the bottoms and gives the tops. Asked for after [`Layer::plan`], perhaps more
    /// than once; what comes otherwise is converted.
    fn formats(&self, _offer: &Offer<'_>) -> Formats {
        Formats::default()
    }

    /// Called after each [`Layer::plan`], the first time before memory is laid out, with that plan: changes what the device
    /// needs otherwise (saved memory, scratch, what backward reads).
    ///
    /// # Errors
    /// When the device cannot run the layer.
    fn prepare(&mut self, _queue: &dyn DeviceQueue, _plan: &mut Plan) -> Result<()> {
        Ok(())
    }

    /// The convolutions that its passes make for each bottom, as [`DeviceLayer::prepare`] settled them.
    fn convolutions(&self) -> Vec<PreparedConvolution> {
        Vec::new()
    }

    /// The numbers, always as many, that schedules change from one iteration to the next; kernels find them at
    /// [`DeviceCall::dynamic`]. Asked for after [`Layer::begin_iteration`].
    fn dynamic(&self) -> Vec<f32> {
        Vec::new()
    }

    /// The numbers that kernels read and that never change; they find them at [`DeviceCall::constants`]. Asked for once,
    /// after [`DeviceLayer::prepare`].
    fn constants(&self) -> Vec<f32> {
        Vec::new()
    }

    /// What a fault that a kernel wrote to [`DeviceCall::fault`] means; the first word is not zero.
    fn explain(&self, fault: Fault) -> Error {
        Error::internal(format!("a kernel reported the fault {fault:?}"))
    }

    /// How many rows (first extent) the tops have in this pass, as [`HostLayer::rows`](crate::HostLayer::rows); asked before
    /// each forward of a layer that planned [`Plan::rows_vary`], and may wait for the device: passes of such a net are not
    /// recorded.
    ///
    /// # Errors
    /// As for forward.
    fn rows(&self, _queue: &dyn DeviceQueue, _bottoms: &[View<'_, Device>]) -> Result<usize> {
        Err(Error::internal("this layer's tops have as many rows as planned"))
    }

    /// Puts on the queue what computes the tops from the bottoms and the parameters.
    ///
    /// # Errors
    /// When the device refuses it.
    fn forward(&self, io: Fwd<'_, Device>) -> Result<()>;

    /// Puts on the queue what computes the bottoms' diffs (overwriting them) and adds to the parameters' diffs. Layers that
    /// set [`Plan::no_backward`] leave this out.
    ///
    /// # Errors
    /// When the device refuses it.
    fn backward(&self, _io: Bwd<'_, Device>) -> Result<()> {
        Err(Error::internal("this layer has no backward pass"))
    }
}

/// What a device call is made with besides blobs. The step is in device memory alone, since the work may be recorded and
/// replayed at another.
#[derive(Clone, Copy)]
pub struct DeviceCall<'a> {
    /// What runs the work.
    pub queue: &'a dyn DeviceQueue,
    /// How bottoms and tops, and their diffs, are stored.
    pub formats: &'a Formats,
    /// Six 32-bit words that hold the [`Step`](crate::Step): seed, iteration and batch, the low word of each first. Random
    /// draws are keyed by them.
    pub clock: DevicePtr,
    /// The layer's [`DeviceLayer::dynamic`] numbers; null where it has none.
    pub dynamic: DevicePtr,
    /// The layer's [`DeviceLayer::constants`]; null where it has none.
    pub constants: DevicePtr,
    /// The layer's fault record, four words, to be written when the first is zero.
    pub fault: DevicePtr,
}

impl DeviceCall<'_> {
    /// Runs a kernel; one that exists for several types of elements, for that of the first top.
    ///
    /// # Errors
    /// See [`DeviceQueue::launch`].
    pub fn launch(&self, kernel: impl Into<Kernel>, grid: Grid, args: &[Arg]) -> Result<()> {
        self.queue.launch(kernel.into().of(self.format().element), grid, args)
    }

    /// How the first top, and with it its diff, is stored.
    pub fn format(&self) -> Format {
        self.formats.top(0)
    }
}

fn need(views: &Views<'_, Device>, i: usize, what: &str) -> Result<DevicePtr> {
    opt(views, i).ok_or_else(|| Error::internal(format!("{what} {i} is not among a layer's inputs")))
}

fn opt(views: &Views<'_, Device>, i: usize) -> Option<DevicePtr> {
    views.get(i).copied().flatten().map(|v| v.addr())
}

fn take_opt(views: &mut ViewsMut<'_, Device>, i: usize) -> Option<DevicePtr> {
    views.get_mut(i).and_then(Option::take).map(|v: ViewMut<'_, Device>| v.addr())
}

fn take(views: &mut ViewsMut<'_, Device>, i: usize, what: &str) -> Result<DevicePtr> {
    take_opt(views, i).ok_or_else(|| Error::internal(format!("{what} {i} is absent or was taken before")))
}

/// The device forms of the accessors; absences and errors as for the host's.
impl<'a> Fwd<'a, Device> {
    /// Runs a kernel: see [`DeviceCall::launch`].
    ///
    /// # Errors
    /// See [`DeviceQueue::launch`].
    pub fn launch(&self, kernel: impl Into<Kernel>, grid: Grid, args: &[Arg]) -> Result<()> {
        self.call.launch(kernel, grid, args)
    }

    /// What runs the work.
    pub fn queue(&self) -> &'a dyn DeviceQueue {
        self.call.queue
    }

    /// How the first top, and with it its diff, is stored.
    pub fn format(&self) -> Format {
        self.call.format()
    }

    /// Data of bottom `i`, which must not share memory with a top.
    ///
    /// # Errors
    /// When it does.
    pub fn bottom(&self, i: usize) -> Result<DevicePtr> {
        need(&self.bottoms, i, "bottom")
    }

    /// Data of bottom `i`, or `None` when it shares memory with a top.
    pub fn bottom_unless_shared(&self, i: usize) -> Option<DevicePtr> {
        opt(&self.bottoms, i)
    }

    /// Takes the data of top `i`.
    ///
    /// # Errors
    /// When it is a view of a bottom or was taken before.
    pub fn top(&mut self, i: usize) -> Result<DevicePtr> {
        take(&mut self.tops, i, "top")
    }

    /// Takes the data of top `i`; `None` when it is a view of a bottom and there is nothing to write.
    pub fn top_unless_view(&mut self, i: usize) -> Option<DevicePtr> {
        take_opt(&mut self.tops, i)
    }

    /// Takes parameter `i`.
    ///
    /// # Errors
    /// When it was taken before.
    pub fn param(&mut self, i: usize) -> Result<DevicePtr> {
        take(&mut self.params, i, "parameter")
    }

    /// Takes saved memory `i`; `None` in a net that runs no backward.
    pub fn saved(&mut self, i: usize) -> Option<DevicePtr> {
        take_opt(&mut self.saved, i)
    }

    /// Takes scratch memory `i`.
    ///
    /// # Errors
    /// When it was taken before.
    pub fn scratch(&mut self, i: usize) -> Result<DevicePtr> {
        take(&mut self.scratch, i, "scratch")
    }
}

/// The device forms of the accessors; absences and errors as for the host's.
impl<'a> Bwd<'a, Device> {
    /// Runs a kernel: see [`DeviceCall::launch`].
    ///
    /// # Errors
    /// See [`DeviceQueue::launch`].
    pub fn launch(&self, kernel: impl Into<Kernel>, grid: Grid, args: &[Arg]) -> Result<()> {
        self.call.launch(kernel, grid, args)
    }

    /// What runs the work.
    pub fn queue(&self) -> &'a dyn DeviceQueue {
        self.call.queue
    }

    /// How the first top, and with it its diff, is stored.
    pub fn format(&self) -> Format {
        self.call.format()
    }

    /// Data of bottom `i`, planned as read by backward.
    ///
    /// # Errors
    /// When it was not planned so.
    pub fn bottom(&self, i: usize) -> Result<DevicePtr> {
        need(&self.bottoms, i, "bottom")
    }

    /// Data of top `i`, planned as read by backward.
    ///
    /// # Errors
    /// When it was not planned so.
    pub fn top(&self, i: usize) -> Result<DevicePtr> {
        need(&self.tops, i, "top")
    }

    /// Diff of top `i`, which must not share memory with a bottom's diff.
    ///
    /// # Errors
    /// When it does.
    pub fn top_diff(&self, i: usize) -> Result<DevicePtr> {
        need(&self.top_diffs, i, "top diff")
    }

    /// Diff of top `i`, or `None` when it shares memory with a bottom's diff.
    pub fn top_diff_unless_shared(&self, i: usize) -> Option<DevicePtr> {
        opt(&self.top_diffs, i)
    }

    /// Diff of top `i`; where it shares memory with a bottom's diff, that: `bottom_diff`.
    ///
    /// # Errors
    /// When there is neither.
    pub fn top_diff_or(&self, i: usize, bottom_diff: Option<DevicePtr>) -> Result<DevicePtr> {
        let diff = self.top_diff_unless_shared(i).or(bottom_diff);
        diff.ok_or_else(|| Error::internal(format!("top diff {i} has no memory")))
    }

    /// Takes the diff of bottom `i`; `None` when nothing asks for it.
    pub fn bottom_diff(&mut self, i: usize) -> Option<DevicePtr> {
        take_opt(&mut self.bottom_diffs, i)
    }

    /// Parameter `i`.
    ///
    /// # Errors
    /// When there is none.
    pub fn param(&self, i: usize) -> Result<DevicePtr> {
        need(&self.params, i, "parameter")
    }

    /// Takes the diff of parameter `i`, to be added to; `None` when nothing asks for it.
    pub fn param_diff(&mut self, i: usize) -> Option<DevicePtr> {
        take_opt(&mut self.param_diffs, i)
    }

    /// What forward left in saved memory `i`.
    ///
    /// # Errors
    /// When there is none.
    pub fn saved(&self, i: usize) -> Result<DevicePtr> {
        need(&self.saved, i, "saved memory")
    }

    /// Takes scratch memory `i`.
    ///
    /// # Errors
    /// When it was taken before.
    pub fn scratch(&mut self, i: usize) -> Result<DevicePtr> {
        take(&mut self.scratch, i, "scratch")
    }
}
