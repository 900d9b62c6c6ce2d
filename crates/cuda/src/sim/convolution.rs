//! Convolutions as a library would do them, in the place of cuDNN: by the definition, without thought of time.
//!
//! As cuDNN, it wants to be asked for its workspace first, overwrites that, and refuses what its 32-bit extents do not reach;
//! in [`Precision::Tf32`] it shortens the factors of what is large enough. It does the passes that it was made for and
//! refuses the others, as cuDNN refuses some.

use std::collections::HashSet;

use lgm_core::{ConvolutionPass, DeviceConvolution, DevicePtr, Element, Error, Result, Shape, Window};

use super::memory::Blocks;
use super::tf32;
use crate::Precision;

/// Bytes of workspace that every pass wants.
const WORKSPACE: usize = 1000;

/// The library.
#[derive(Default)]
pub(super) struct Library {
    passes: HashSet<ConvolutionPass>,
    planned: HashSet<(DeviceConvolution, ConvolutionPass)>,
}

/// Whether a convolution's extents fit one another, and 32 bits: what cuDNN describes.
pub fn is_known(c: &DeviceConvolution) -> bool {
    let grouped = c.groups > 0 && c.channels.is_multiple_of(c.groups) && c.outputs.is_multiple_of(c.groups);
    let fits = |w: &Window| {
        let whole =
            usize::try_from(w.pad).ok().and_then(|pad| Window::new(w.input, w.kernel, w.stride, pad, w.dilation).ok());
        whole == Some(*w)
    };
    let countable = |shape: &Shape| shape.count() > 0 && i32::try_from(shape.count()).is_ok();
    grouped && c.windows.iter().all(fits) && c.shapes().iter().all(countable)
}

impl Library {
    pub fn of(passes: &[ConvolutionPass]) -> Library {
        Library { passes: passes.iter().copied().collect(), planned: HashSet::new() }
    }

    pub fn has_plans(&self) -> bool {
        !self.planned.is_empty()
    }

    pub fn workspace(&mut self, conv: &DeviceConvolution, pass: ConvolutionPass) -> Option<usize> {
        if !self.passes.contains(&pass) || !is_known(conv) {
            return None;
        }
        self.planned.insert((*conv, pass));
        Some(WORKSPACE)
    }

    pub fn run(
        &self,
        blocks: &Blocks,
        precision: Precision,
        (conv, pass): (&DeviceConvolution, ConvolutionPass),
        result: DevicePtr,
        operands: [DevicePtr; 2],
        workspace: DevicePtr,
    ) -> Result<()> {
        if !self.planned.contains(&(*conv, pass)) {
            return Err(Error::internal(format!("{pass:?} of {conv:?} was not planned")));
        }
        let [x, w, y] = conv.shapes();
        let (read, written) = match pass {
            ConvolutionPass::Forward => ([x, w], y),
            ConvolutionPass::Data => ([y, w], x),
            ConvolutionPass::Filter => ([x, y], w),
        };
        let bytes = |shape: &Shape| conv.format.bytes(shape);
        for (at, shape) in operands.iter().zip(&read).chain([(&result, &written)]) {
            blocks.check(*at, bytes(shape), "a blob of a convolution")?;
        }
        blocks.check(workspace, WORKSPACE, "a convolution's workspace")?;
        let short =
            conv.format.element == Element::F32 && precision.of_product(conv.multiply_adds()) != Precision::Fp32;
        let values = |at: DevicePtr, shape: &Shape| -> Vec<f32> {
            // SAFETY: checked above.
            let raw = unsafe { std::slice::from_raw_parts(at.0 as *const u8, bytes(shape)) };
            conv.format.decode(shape, raw)
        };
        let factors = [0, 1].map(|i| -> Vec<f32> {
            let all = values(operands[i], &read[i]);
            if short { all.into_iter().map(tf32::rounded).collect() } else { all }
        });
        let added = pass == ConvolutionPass::Filter && conv.has_plain_filters();
        let mut sums = match added {
            true => values(result, &written).into_iter().map(f64::from).collect(),
            false => vec![0.0; written.count()],
        };
        add_products(conv, pass, [&factors[0], &factors[1]], &mut sums);
        let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
        let raw = conv.format.encode(&written, &sums);
        // SAFETY: checked above; the caller keeps result and workspace apart from the operands.
        unsafe {
            (workspace.0 as *mut u8).write_bytes(0xff, WORKSPACE);
            std::ptr::copy_nonoverlapping(raw.as_ptr(), result.0 as *mut u8, raw.len());
        }
        Ok(())
    }
}

/// Adds to each element of a pass's result the products that it is the sum of; all in the host's order, and of the extents
/// of a convolution that [is known](is_known).
pub fn add_products(c: &DeviceConvolution, pass: ConvolutionPass, [a, b]: [&[f32]; 2], sums: &mut [f64]) {
    let step = c.windows[1].stride;
    each_row(c, |x, w, y, len| match pass {
        ConvolutionPass::Forward => {
            let tap = f64::from(b[w]);
            let row = a[x..].iter().step_by(step);
            sums[y..y + len].iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v) * tap);
        }
        ConvolutionPass::Data => {
            let tap = f64::from(b[w]);
            let row = sums[x..].iter_mut().step_by(step);
            row.zip(&a[y..y + len]).for_each(|(sum, v)| *sum += f64::from(*v) * tap);
        }
        ConvolutionPass::Filter => {
            let row = a[x..].iter().step_by(step);
            sums[w] += row.zip(&b[y..y + len]).map(|(v, d)| f64::from(*v) * f64::from(*d)).sum::<f64>();
        }
    });
}

/// Calls `with`, for every tap and every row of the output, with the places, in the host's order, of the first element of the
/// input that the tap meets in that row, of the tap, and of the element of the output to which it contributes, and with the
/// number of such pairs; from one to the next the output's place grows by one and the input's by the stride.
fn each_row(c: &DeviceConvolution, mut with: impl FnMut(usize, usize, usize, usize)) {
    let (channels, outputs) = (c.channels / c.groups, c.outputs / c.groups);
    let [down, across] = &c.windows;
    for (image, output) in (0..c.batch).flat_map(|n| (0..c.outputs).map(move |o| (n, o))) {
        for channel in 0..channels {
            let plane_x = image * c.channels + output / outputs * channels + channel;
            let plane_y = image * c.outputs + output;
            let filter = output * channels + channel;
            for (r, s) in (0..down.kernel).flat_map(|r| (0..across.kernel).map(move |s| (r, s))) {
                let ((rows, top), (columns, left)) = (down.outputs_of(r), across.outputs_of(s));
                if columns.is_empty() {
                    continue;
                }
                for (n, p) in rows.enumerate() {
                    let x = (plane_x * down.input + top + n * down.stride) * across.input + left;
                    let y = (plane_y * down.output + p) * across.output + columns.start;
                    with(x, (filter * down.kernel + r) * across.kernel + s, y, columns.len());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lgm_core::{DeviceQueue, Format};

    use super::super::tests::sim;
    use super::*;
    use crate::Allocator;
    use crate::sim::Order;

    /// One image, one channel: a 2x2 input under a 2x2 filter, without padding, gives one number.
    fn least() -> DeviceConvolution {
        DeviceConvolution {
            batch: 1,
            channels: 1,
            outputs: 1,
            windows: [Window { input: 2, kernel: 2, ..Window::UNIT }; 2],
            groups: 1,
            format: Format::PLAIN,
        }
    }

    #[test]
    fn what_it_does_and_what_it_refuses() {
        let plans =
            |conv: DeviceConvolution| Library::of(&[ConvolutionPass::Data]).workspace(&conv, ConvolutionPass::Data);
        assert_eq!(plans(least()), Some(WORKSPACE));
        assert_eq!(Library::of(&[ConvolutionPass::Data]).workspace(&least(), ConvolutionPass::Forward), None);
        let rows = least().windows[0];
        let with_rows = |rows| DeviceConvolution { windows: [rows, least().windows[1]], ..least() };
        for bad in [
            with_rows(Window { output: 2, ..rows }),
            with_rows(Window { kernel: 3, ..rows }),
            with_rows(Window { stride: 0, ..rows }),
            DeviceConvolution { groups: 0, ..least() },
            DeviceConvolution { groups: 2, outputs: 2, ..least() },
            DeviceConvolution { batch: 0, ..least() },
            DeviceConvolution { batch: 1 << 29, ..least() },
            DeviceConvolution { batch: usize::MAX, ..least() },
        ] {
            assert_eq!(plans(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn blobs_and_workspace_lie_in_memory_and_plans_come_first() {
        let Some(sim) = sim(Order::Forward).map(|sim| sim.with_library(&ConvolutionPass::ALL)) else { return };
        let floats = |values: &[f32]| {
            let at = sim.alloc(4 * values.len()).unwrap();
            sim.upload(&values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<u8>>(), at).unwrap();
            at
        };
        let [x, w, y, room] =
            [&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0], &[0.0][..], &[0.0; WORKSPACE / 4]].map(floats);
        let run = |w, room| sim.convolution(&least(), ConvolutionPass::Forward, y, [x, w], room);
        assert!(run(w, room).unwrap_err().to_string().contains("was not planned"));
        assert_eq!(sim.convolution_workspace(&least(), ConvolutionPass::Forward).unwrap(), Some(WORKSPACE));
        run(w, room).unwrap();
        let mut raw = [0; 4];
        sim.download(y, &mut raw).unwrap();
        assert_eq!(f32::from_ne_bytes(raw), 70.0);
        assert!(run(w.offset(4), room).unwrap_err().to_string().contains("a blob of a convolution"));
        assert!(run(w, room.offset(4)).unwrap_err().to_string().contains("a convolution's workspace"));
    }
}
