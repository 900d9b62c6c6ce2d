//! What libraries do for a net on a device, and what they take of its memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use common::{options, try_net};
use lgm_core::{Arg, ConvolutionPass, DeviceConvolution, DevicePtr, DeviceQueue, Error, Gemm, Grid, Result};
use lgm_cuda::sim::{Order, Sim};
use lgm_cuda::{Allocator, Gpu, Refusal};
use lgm_net::{Net, Options, Placement};
use lgm_testkit::{says, skip};

const MIB: u64 = 1 << 20;

/// A device with a library that loads 40 MiB for each convolution it plans and 8 MiB for its first product, and makes of
/// 3x3 convolutions all but the gradient of the filters.
struct Loading {
    sim: Sim,
    planned: RefCell<BTreeMap<String, Result<String, Refusal>>>,
    products: RefCell<u64>,
}

fn loading(capacity: u64) -> Option<Rc<Loading>> {
    match Sim::with_capacity(Order::Forward, capacity) {
        Ok(sim) => Some(Rc::new(Loading { sim, planned: RefCell::default(), products: RefCell::default() })),
        Err(error) => skip("simulator", error),
    }
}

fn key(conv: &DeviceConvolution, pass: ConvolutionPass) -> String {
    format!("{pass} of {conv}")
}

impl Loading {
    fn loaded(&self) -> u64 {
        let planned = self.planned.borrow().values().filter(|way| way.is_ok()).count() as u64;
        40 * MIB * planned + *self.products.borrow()
    }
}

impl Allocator for Loading {
    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        self.sim.alloc(bytes)
    }

    fn free(&self, block: DevicePtr) -> Result<()> {
        self.sim.free(block)
    }

    fn free_bytes(&self) -> Result<(u64, u64)> {
        let (free, total) = self.sim.free_bytes()?;
        Ok((free.saturating_sub(self.loaded()), total))
    }
}

impl DeviceQueue for Loading {
    fn launch(&self, kernel: &'static str, grid: Grid, args: &[Arg]) -> Result<()> {
        self.sim.launch(kernel, grid, args)
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        *self.products.borrow_mut() = 8 * MIB;
        // Of these only what they take matters, and they are large for a simulated device.
        if gemm.m * gemm.n * gemm.k > 1 << 16 { Ok(()) } else { self.sim.gemm(gemm) }
    }

    fn convolution_workspace(&self, conv: &DeviceConvolution, pass: ConvolutionPass) -> Result<Option<usize>> {
        let way = match (conv.windows.map(|w| w.kernel), pass) {
            ([3, 3], ConvolutionPass::Filter) => Err(Refusal::NoAlgorithm),
            ([3, 3], _) => Ok("algorithm 1".to_string()),
            _ => Err(Refusal::from(Arc::new(Error::config("it makes 3x3 convolutions only")))),
        };
        let workspace = way.is_ok().then_some(0);
        self.planned.borrow_mut().insert(key(conv, pass), way);
        Ok(workspace)
    }

    fn convolution(
        &self,
        _conv: &DeviceConvolution,
        _pass: ConvolutionPass,
        _result: DevicePtr,
        _operands: [DevicePtr; 2],
        _workspace: DevicePtr,
    ) -> Result<()> {
        Err(Error::internal("no net runs here"))
    }

    fn copy(&self, from: DevicePtr, to: DevicePtr, bytes: usize) -> Result<()> {
        self.sim.copy(from, to, bytes)
    }

    fn zero(&self, at: DevicePtr, bytes: usize) -> Result<()> {
        self.sim.zero(at, bytes)
    }

    fn upload(&self, from: &[u8], to: DevicePtr) -> Result<()> {
        self.sim.upload(from, to)
    }

    fn download(&self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        self.sim.download(from, to)
    }

    fn finish(&self) -> Result<()> {
        self.sim.finish()
    }
}

impl Gpu for Loading {
    fn name(&self) -> String {
        "the loading GPU".into()
    }

    fn convolution_algorithm(
        &self,
        conv: &DeviceConvolution,
        pass: ConvolutionPass,
    ) -> Option<Result<String, Refusal>> {
        self.planned.borrow().get(&key(conv, pass)).cloned()
    }
}

fn convolution(name: &str, bottom: &str, settings: &str) -> String {
    format!(
        "layer {{ name: '{name}' type: 'Convolution' bottom: '{bottom}' top: '{name}'
           convolution_param {{ num_output: 4 bias_term: false {settings} weight_filler {{ type: 'gaussian' }} }} }}\n"
    )
}

/// Three convolutions: 3x3, pointwise, 5x5.
fn three(batch: usize) -> String {
    let shape = format!("shape {{ dim: {batch} dim: 3 dim: 64 dim: 64 }}");
    format!("layer {{ name: 'x' type: 'DummyData' top: 'x' dummy_data_param {{ {shape} }} }}\n")
        + &convolution("square", "x", "kernel_size: 3")
        + &convolution("point", "square", "kernel_size: 1")
        + &convolution("large", "point", "kernel_size: 5")
        + "layer { name: 'sum' type: 'Reduction' bottom: 'large' top: 'sum' loss_weight: 1 }"
}

fn on(gpu: &Rc<Loading>, batch: usize) -> Result<Net> {
    try_net(&three(batch), &Options { device: Some(Placement { gpu: gpu.clone(), histories: 1 }), ..options() })
}

#[test]
fn a_net_tells_what_makes_its_convolutions() {
    let Some(gpu) = loading(64 << 30) else { return };
    let made = on(&gpu, 1).unwrap().convolutions().unwrap();
    // Nobody asks for the gradient of the input.
    assert_eq!(made.library, BTreeMap::from([("forward by algorithm 1".to_string(), 1)]));
    assert_eq!((made.products, made.count()), (3, 8));
    assert_eq!(made.own, ["square filter", "large forward", "large data", "large filter"]);
    assert_eq!(
        made.to_string(),
        "1 by cuDNN (1 forward by algorithm 1), 3 as matrix products by cuBLAS, 4 by our own kernels (square filter, \
         large forward, large data, large filter)"
    );
    let of = |layer, geometry, why| {
        format!(
            "layer '{layer}' (Convolution): cuDNN does not make, and our own kernels make slower, of 1 images of {geometry}, stride 1x1, pad 0x0, dilation 1x1, groups 1, f32 NCHW: {why}"
        )
    };
    let only = |pass| format!("{pass}: it makes 3x3 convolutions only");
    let large = ["forward", "data", "filter"].map(only).join("; ");
    assert_eq!(
        made.refusals,
        [
            of("square", "3 channels of 64x64 to 4 of 62x62, kernel 3x3", "filter: it has no deterministic algorithm"),
            of("large", "4 channels of 62x62 to 4 of 58x58, kernel 5x5", &large),
        ]
    );
    assert!(try_net(&three(1), &options()).unwrap().convolutions().is_none(), "on the host");
}

#[test]
fn memory_that_libraries_took_is_not_the_nets() {
    // Far from full, no product is made to see what it takes.
    let Some(gpu) = loading(64 << 30) else { return };
    let needed = on(&gpu, 16).unwrap().device_memory().unwrap().total(1) as u64;
    assert_eq!((gpu.loaded(), needed > 8 * MIB), (80 * MIB, true));
    // Two convolutions' kernels, and those of products once loaded and once more to come.
    let enough = needed + (80 + 16) * MIB + MIB / 2;
    let gpu = loading(enough).unwrap();
    assert!(on(&gpu, 16).is_ok());
    assert_eq!(gpu.loaded(), 88 * MIB);
    let Err(error) = on(&loading(enough - MIB).unwrap(), 16) else { panic!("it does not fit") };
    let loaded = "libraries have loaded kernels of 80.0 MiB for its convolutions and 8.0 MiB for products";
    says(
        &error.to_string(),
        &["does not fit on the loading GPU", loaded, "a batch of about 15 would fit, where it is 16"],
    );
}
