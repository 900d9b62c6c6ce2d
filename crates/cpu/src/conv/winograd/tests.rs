use lgm_core::Window;

use super::*;
use crate::conv::{Algorithm, ConvGeometry};
use crate::kernel::Kernel;
use crate::testing::{noise, relative_error, same_bits_on_any_threads};

fn geometry(c: usize, o: usize, group: usize, input: [usize; 2], pad: [usize; 2]) -> ConvGeometry {
    square(3, c, o, group, input, pad)
}

fn square(k: usize, c: usize, o: usize, group: usize, input: [usize; 2], pad: [usize; 2]) -> ConvGeometry {
    let windows = [0, 1].map(|d| Window::new(input[d], k, 1, pad[d], 1).unwrap());
    ConvGeometry::new(c, o, group, windows.to_vec()).unwrap()
}

fn cases() -> Vec<(usize, ConvGeometry)> {
    vec![
        (2, geometry(16, 16, 1, [8, 8], [1, 1])),
        (5, geometry(20, 35, 1, [7, 9], [1, 1])),
        (1, geometry(33, 16, 1, [13, 30], [0, 2])),
        (3, geometry(32, 48, 2, [14, 14], [1, 0])),
        (2, geometry(17, 18, 1, [33, 5], [2, 1])),
        (9, geometry(40, 70, 1, [4, 4], [1, 1])),
        (1, geometry(600, 16, 1, [8, 9], [1, 1])),
        (1, geometry(16, 24, 1, [40, 80], [1, 1])),
        (2, geometry(16, 16, 1, [6, 6], [3, 4])),
        (3, geometry(180, 176, 1, [8, 8], [1, 1])),
        (4, geometry(20, 16, 1, [64, 68], [1, 1])),
        (7, square(5, 20, 50, 1, [12, 12], [0, 0])),
        (37, square(5, 20, 50, 1, [12, 12], [0, 0])),
        (64, square(5, 20, 50, 1, [12, 12], [0, 0])),
        (79, square(5, 20, 36, 2, [9, 11], [2, 0])),
        (64, geometry(20, 17, 1, [13, 21], [1, 2])),
        (75, geometry(40, 34, 2, [9, 7], [0, 1])),
        (2, square(5, 96, 64, 2, [13, 11], [2, 1])),
        (1, square(5, 33, 16, 1, [31, 70], [4, 5])),
        (5, square(5, 34, 50, 2, [11, 13], [0, 1])),
        (2, square(5, 16, 40, 1, [12, 12], [0, 0])),
        (3, square(5, 160, 180, 1, [9, 8], [2, 2])),
        (2, square(2, 16, 40, 1, [12, 12], [0, 0])),
        (3, square(2, 70, 36, 2, [9, 17], [1, 0])),
        (64, square(2, 20, 34, 1, [11, 8], [0, 1])),
        (1, square(2, 180, 176, 1, [32, 30], [1, 1])),
    ]
}

fn operands<T: Float>(batch: usize, g: &ConvGeometry) -> [Vec<T>; 4] {
    let (x, y, w) = (batch * g.input_len(), batch * g.output_len(), g.weights_len());
    [noise(x, 1), noise(w, 2), noise(g.out_channels, 3), noise(y, 4)]
}

/// y, dx and dw by Winograd's algorithm.
fn winograd<T: Float>(kernel: Kernel, batch: usize, g: &ConvGeometry) -> [Vec<T>; 3] {
    let [x, w, b, dy] = operands::<T>(batch, g);
    let (mut y, mut dx) = (vec![T::nan(); dy.len()], vec![T::nan(); x.len()]);
    let mut dw: Vec<T> = noise(w.len(), 5);
    let conv = g.planar(Algorithm { kernel, winograd: true }, batch).unwrap();
    forward(&conv, &x, &w, Epilogue::bias(&b), &mut y);
    backward_data(&conv, &w, &dy, Epilogue::default(), &mut dx);
    backward_weights(&conv, &x, &dy, &mut dw);
    [y, dx, dw]
}

#[test]
fn agrees_with_the_direct_algorithm() {
    for (batch, g) in cases() {
        let [x, w, b, dy] = operands::<f64>(batch, &g);
        let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
        let mut dw: Vec<f64> = noise(w.len(), 5);
        let direct = Algorithm { winograd: false, ..Algorithm::active() };
        g.forward_with(direct, batch, &x, &w, Epilogue::bias(&b), &mut y);
        g.backward_data_with(direct, batch, &w, &dy, &mut dx);
        g.backward_weights_with(direct, batch, &x, &dy, &mut dw);
        // Larger tiles round more.
        let allowed = if g.windows[0].kernel == 5 { 1e-4 } else { 2e-5 };
        for kernel in Kernel::ALL.into_iter().filter(|k| k.is_available()) {
            let found = winograd::<f64>(kernel, batch, &g);
            for (found, want) in found.iter().zip([&y, &dx, &dw]) {
                let e = relative_error(found, want);
                assert!(e < 1e-12, "{kernel:?} f64, batch {batch} of {g:?}: off by {e:e}");
            }
            let found = winograd::<f32>(kernel, batch, &g);
            for (found, want) in found.iter().zip([&y, &dx, &dw]) {
                let e = relative_error(found, want);
                assert!(e < allowed, "{kernel:?} f32, batch {batch} of {g:?}: off by {e:e}");
            }
        }
    }
}

#[test]
fn threads_do_not_change_the_bits() {
    for (batch, g) in [
        (4, geometry(48, 64, 1, [32, 32], [1, 1])),
        (16, geometry(96, 96, 1, [8, 8], [1, 1])),
        (33, square(5, 20, 50, 1, [12, 12], [0, 0])),
    ] {
        same_bits_on_any_threads(|| winograd::<f32>(Kernel::active(), batch, &g).concat());
    }
}

#[test]
fn it_is_used_where_it_suits_and_can_be_turned_off() {
    let suited = |c, o, input, batch| {
        suits::<f32>(&geometry(c, o, 1, input, [1, 1]).planar(Algorithm::active(), batch).unwrap())
    };
    assert!(suited(96, 96, [32, 32], 1) && suited(384, 384, [8, 8], 16) && suited(64, 64, [7, 7], 8));
    let five = |input, pad| suits::<f32>(&square(5, 20, 50, 1, input, pad).planar(Algorithm::active(), 4).unwrap());
    assert!(five([12, 12], [0, 0]) && !five([5, 5], [0, 0]));
    assert!(!suited(3, 96, [32, 32], 16) && !suited(96, 96, [8, 8], 1) && !suited(96, 96, [1, 1], 128));
    let strided = ConvGeometry::new(64, 64, 1, vec![Window::new(16, 3, 2, 1, 1).unwrap(); 2]).unwrap();
    assert!(!suits::<f32>(&strided.planar(Algorithm::active(), 16).unwrap()));
    let g = geometry(32, 32, 1, [16, 16], [1, 1]);
    assert!(!suits::<f64>(&g.planar(Algorithm::active(), 16).unwrap()));
    let [x, w, _, dy] = operands::<f32>(4, &g);
    let run = |winograd| {
        let algorithm = Algorithm { winograd, kernel: Kernel::active() };
        let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
        g.forward_with(algorithm, 4, &x, &w, Epilogue::default(), &mut y);
        g.backward_data_with(algorithm, 4, &w, &dy, &mut dx);
        g.backward_weights_with(algorithm, 4, &x, &dy, &mut dw);
        [y, dx, dw]
    };
    for (fast, direct) in run(true).iter().zip(&run(false)) {
        assert!(fast != direct, "the algorithms round alike");
        let direct: Vec<f64> = direct.iter().map(|v| v.f64()).collect();
        assert!(relative_error(fast, &direct) < 2e-5);
    }
}
