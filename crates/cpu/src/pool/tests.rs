use super::*;
use crate::testing::{noise, same_bits_on_any_threads};

fn cases() -> Vec<PoolGeometry> {
    let mut all = Vec::new();
    for round in [Round::Ceil, Round::Floor] {
        for (input, kernel, stride, pad) in [
            ([1, 1], [1, 1], [1, 1], [0, 0]),
            ([24, 24], [2, 2], [2, 2], [0, 0]),
            ([6, 70], [2, 2], [2, 2], [0, 0]),
            ([2, 2], [2, 2], [2, 2], [0, 0]),
            ([7, 9], [2, 2], [2, 2], [0, 0]),
            ([55, 33], [3, 3], [2, 2], [0, 0]),
            ([32, 31], [3, 3], [2, 2], [1, 1]),
            ([57, 40], [3, 3], [2, 2], [1, 1]),
            ([40, 40], [40, 40], [1, 1], [0, 0]),
            ([9, 9], [3, 3], [1, 1], [1, 1]),
            ([13, 8], [4, 3], [3, 5], [2, 1]),
            ([7, 7], [7, 7], [1, 1], [0, 0]),
            ([6, 5], [2, 2], [3, 4], [1, 1]),
            ([5, 33], [5, 1], [1, 2], [0, 0]),
            ([10, 10], [3, 2], [3, 4], [0, 0]),
            ([6, 4], [3, 3], [2, 1], [0, 2]),
            ([70, 90], [3, 3], [1, 1], [1, 1]),
            ([40, 50], [2, 3], [1, 2], [1, 2]),
            // The last windows are beyond the input.
            ([5, 8], [1, 1], [3, 3], [0, 0]),
        ] {
            all.push(PoolGeometry::new(input, kernel, stride, pad, round).unwrap());
        }
    }
    all
}

/// The elements of a window, and its size with padding.
fn window(g: &PoolGeometry, i: usize, j: usize) -> (Vec<usize>, usize) {
    let axis = |d: usize, o: usize| {
        let w = &g.windows[d];
        let start = (o * w.stride) as isize - w.pad;
        let end = (start + w.kernel as isize).min(w.input as isize + w.pad);
        (start.max(0) as usize..end.min(w.input as isize) as usize, (end - start).max(1) as usize)
    };
    let ((rows, h), (cols, w)) = (axis(0, i), axis(1, j));
    (rows.flat_map(|r| cols.clone().map(move |c| r * g.windows[1].input + c)).collect(), h * w)
}

#[test]
fn agrees_with_the_definition() {
    for g in cases() {
        let planes = 5;
        let x: Vec<f32> = noise::<f32>(planes * g.input_area(), 1).iter().map(|v| (v * 6.0).round()).collect();
        let dy: Vec<f32> = noise(planes * g.output_area(), 2);
        let (mut y, mut index) = (vec![f32::NAN; dy.len()], vec![f32::NAN; dy.len()]);
        let mut dx = vec![f32::NAN; x.len()];
        g.max_forward(&x, &mut y, Some(&mut index));
        g.max_backward(&dy, &index, &mut dx);
        let (mut mean, mut dmean) = (vec![f32::NAN; dy.len()], vec![f32::NAN; x.len()]);
        g.average_forward(&x, &mut mean);
        g.average_backward(&dy, &mut dmean);
        let mut alone = vec![0.0; y.len()];
        g.max_forward(&x, &mut alone, None);
        assert_eq!(alone, y);
        let (mut dx_want, mut dmean_want) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        for p in 0..planes {
            let plane = p * g.input_area();
            for o in 0..g.output_area() {
                let (at, size) = window(&g, o / g.windows[1].output, o % g.windows[1].output);
                let first = at.iter().copied().reduce(|a, b| if x[plane + b] > x[plane + a] { b } else { a });
                let o = p * g.output_area() + o;
                let largest = first.map_or((-1.0, -f32::MAX), |at| (at as f32, x[plane + at]));
                assert_eq!((index[o], y[o]), largest, "{g:?}");
                first.into_iter().for_each(|at| dx_want[plane + at] += dy[o] as f64);
                let sum: f64 = at.iter().map(|&i| x[plane + i] as f64).sum();
                assert!((mean[o] as f64 - sum / size as f64).abs() < 1e-5, "{g:?}");
                at.iter().for_each(|&i| dmean_want[plane + i] += dy[o] as f64 / size as f64);
            }
        }
        for i in 0..x.len() {
            assert!(
                (dx[i] as f64 - dx_want[i]).abs() < 1e-5 && (dmean[i] as f64 - dmean_want[i]).abs() < 1e-5,
                "{g:?}"
            );
        }
    }
}

#[test]
fn windows_are_counted_as_caffe_does() {
    let out = |input, kernel, stride, pad, round| {
        PoolGeometry::new([input; 2], [kernel; 2], [stride; 2], [pad; 2], round).unwrap().windows[0].output
    };
    assert_eq!(out(32, 3, 2, 0, Round::Ceil), 16);
    assert_eq!(out(32, 3, 2, 0, Round::Floor), 15);
    assert_eq!(out(32, 3, 2, 1, Round::Ceil), 17);
    assert_eq!(out(3, 2, 2, 1, Round::Ceil), 2);
    assert_eq!(out(4, 2, 2, 1, Round::Ceil), 3);
    assert!(PoolGeometry::new([4, 4], [2, 2], [1, 1], [2, 0], Round::Ceil).is_err());
    assert!(PoolGeometry::new([4, 4], [5, 2], [1, 1], [0, 0], Round::Ceil).is_err());
    assert!(PoolGeometry::new([4, 4], [2, 2], [0, 1], [0, 0], Round::Ceil).is_err());
}

#[test]
fn a_window_of_nan_has_no_maximum() {
    let g = PoolGeometry::new([2, 2], [2, 2], [2, 2], [0, 0], Round::Ceil).unwrap();
    let (mut y, mut index, mut dx) = ([0.0f32], [0.0f32], [1.0f32; 4]);
    g.max_forward(&[f32::NAN; 4], &mut y, Some(&mut index));
    assert_eq!((y[0], index[0]), (-f32::MAX, -1.0));
    g.max_backward(&[1.0], &index, &mut dx);
    assert_eq!(dx, [0.0; 4]);
}

#[test]
fn threads_do_not_change_the_bits() {
    let g = PoolGeometry::new([33, 33], [3, 3], [2, 2], [1, 1], Round::Ceil).unwrap();
    let x: Vec<f32> = noise(40 * g.input_area(), 1);
    same_bits_on_any_threads(|| {
        let mut y = vec![0.0; 40 * g.output_area()];
        let mut index = y.clone();
        let mut dx = vec![0.0; x.len()];
        g.max_forward(&x, &mut y, Some(&mut index));
        g.max_backward(&y, &index, &mut dx);
        g.average_forward(&dx, &mut index);
        [y, index, dx].concat()
    });
}
