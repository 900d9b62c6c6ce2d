//! Windows that slide along an axis, as those of a convolution or a pooling do.

use std::ops::Range;

use crate::{Result, ensure};

/// A window along one axis: the window of output `o` has its elements at `o·stride − pad + i·dilation`, i < `kernel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Extent of the input.
    pub input: usize,
    /// Number of outputs.
    pub output: usize,
    /// Elements of the window.
    pub kernel: usize,
    /// Distance between the windows of two outputs.
    pub stride: usize,
    /// Zeros added before the input; a negative number crops it.
    pub pad: isize,
    /// Zeros added behind it.
    pub pad_end: isize,
    /// Distance between the elements of a window; 1 is dense.
    pub dilation: usize,
}

impl Window {
    /// The one window of one element over an axis of one element.
    pub const UNIT: Window = Window { input: 1, output: 1, kernel: 1, stride: 1, pad: 0, pad_end: 0, dilation: 1 };

    /// [`Window::sided`] with the same padding at both sides.
    ///
    /// # Errors
    /// As there.
    pub fn new(input: usize, kernel: usize, stride: usize, pad: usize, dilation: usize) -> Result<Window> {
        Window::sided(input, kernel, stride, [pad; 2], dilation)
    }

    /// As many whole windows as the padded input holds, as Caffe counts those of a convolution:
    /// ⌊(input + padding − reach) / stride⌋ + 1 with a [`reach`](Self::reach) of dilation·(kernel − 1) + 1; `pad` is before
    /// and behind.
    ///
    /// # Errors
    /// When a kernel, stride or dilation is 0, or the window does not fit the padded input.
    #[warn(clippy::arithmetic_side_effects)]
    pub fn sided(input: usize, kernel: usize, stride: usize, pad: [usize; 2], dilation: usize) -> Result<Window> {
        let reach = reach_of(kernel, stride, dilation)?;
        let [before, behind] = pad;
        let padding =
            if before == behind { format!("{before} at each side") } else { format!("{before} and {behind}") };
        let padded = before.checked_add(behind).and_then(|pad| pad.checked_add(input));
        let (Some(reach), Some(padded)) = (reach, padded.filter(|&p| p <= isize::MAX as usize)) else {
            return Err(crate::Error::config(format!(
                "a window of {kernel} elements, {dilation} apart, over {input} with padding {padding} is too large"
            )));
        };
        ensure!(
            padded >= reach,
            "the kernel reaches over {reach} positions, but the input has {input} with padding {padding}"
        );
        let output = padded.saturating_sub(reach).checked_div(stride).unwrap_or(0).saturating_add(1);
        Ok(Window { input, output, kernel, stride, pad: before as isize, pad_end: behind as isize, dilation })
    }

    /// [`Window::sided`], and one window where it reaches beyond the padded input by less than a stride, as Caffe's division of a
    /// convolution has it, which rounds to zero; what it reaches is padding behind.
    ///
    /// # Errors
    /// As there, but for that.
    pub fn of_convolution(
        input: usize,
        kernel: usize,
        stride: usize,
        pad: [usize; 2],
        dilation: usize,
    ) -> Result<Window> {
        let [before, behind] = pad;
        let padded = before.saturating_add(behind).saturating_add(input);
        let beyond = reach_of(kernel, stride, dilation)?.map_or(0, |reach| reach.saturating_sub(padded));
        let more = if beyond < stride && input > 0 { beyond } else { 0 };
        Window::sided(input, kernel, stride, [before, behind.saturating_add(more)], dilation)
    }

    /// The window over the output of a transposed convolution of `input` positions, of which there are
    /// stride·(input − 1) + reach − 2·pad; `input` is the window's `output`.
    ///
    /// # Errors
    /// When a kernel, stride or dilation is 0, or there would be no position.
    #[warn(clippy::arithmetic_side_effects)]
    pub fn transposed(input: usize, kernel: usize, stride: usize, pad: usize, dilation: usize) -> Result<Window> {
        let reach = reach_of(kernel, stride, dilation)?;
        let all =
            input.saturating_sub(1).checked_mul(stride).zip(reach).and_then(|(all, reach)| all.checked_add(reach));
        let Some(all) = all.filter(|&all| all <= isize::MAX as usize) else {
            return Err(crate::Error::config(format!(
                "{input} windows of {kernel} elements, {dilation} apart, with stride {stride} are too large"
            )));
        };
        let Some(positions) = all.checked_sub(pad.saturating_mul(2)).filter(|&n| n > 0 && input > 0) else {
            return Err(crate::Error::config(format!(
                "{input} positions spread over {all}, of which padding {pad} at each side leaves none"
            )));
        };
        let pad = pad as isize;
        Ok(Window { input: positions, output: input, kernel, stride, pad, pad_end: pad, dilation })
    }

    /// Whether each output has its own element of the input for a window, and no other.
    pub fn is_pointwise(&self) -> bool {
        (self.kernel, self.stride, self.pad, self.pad_end) == (1, 1, 0, 0)
    }

    /// Whether the padding is the same at both sides.
    pub fn is_symmetric(&self) -> bool {
        self.pad == self.pad_end
    }

    /// Positions from the first element of a window to its last.
    pub fn reach(&self) -> usize {
        self.dilation * (self.kernel - 1) + 1
    }

    /// Positions from the first element of the first window to the last of the last.
    pub fn span(&self) -> usize {
        (self.output - 1) * self.stride + self.reach()
    }

    /// The window by which the gradient of the input is a convolution of the output's, its kernel turned round; of stride 1
    /// only.
    pub fn adjoint(&self) -> Window {
        let other = |pad: isize| (self.reach() - 1) as isize - pad;
        let (pad, pad_end) = (other(self.pad), other(self.pad_end));
        Window { input: self.output, output: self.input, pad, pad_end, ..*self }
    }

    /// The position of element `i` of the window of `output`, if it is one of the input's.
    pub fn position(&self, output: usize, i: usize) -> Option<usize> {
        let at = (output * self.stride + i * self.dilation) as isize - self.pad;
        (0..self.input as isize).contains(&at).then_some(at as usize)
    }

    /// The output whose element `i` is at a position of the input, if there is one.
    pub fn output_at(&self, position: usize, i: usize) -> Option<usize> {
        let at = usize::try_from(position as isize + self.pad - (i * self.dilation) as isize).ok()?;
        (at.is_multiple_of(self.stride) && at / self.stride < self.output).then_some(at / self.stride)
    }

    /// The outputs whose element `i` is one of the input's, and the position of the first one's.
    pub fn outputs_of(&self, i: usize) -> (Range<usize>, usize) {
        let shift = (i * self.dilation) as isize - self.pad;
        let first = (-shift).max(0).unsigned_abs().div_ceil(self.stride);
        let end = (self.input as isize - shift).max(0).unsigned_abs().div_ceil(self.stride).min(self.output);
        if first >= end { (0..0, 0) } else { (first..end, ((first * self.stride) as isize + shift) as usize) }
    }

    /// The positions of the input that a dense window covers.
    pub fn covered(&self, output: usize) -> Range<usize> {
        let start = (output * self.stride) as isize - self.pad;
        let end = ((start + self.kernel as isize).max(0) as usize).min(self.input);
        (start.max(0) as usize).min(end)..end
    }

    /// The outputs whose dense windows cover a position of the input: the inverse of [`covered`](Self::covered).
    pub fn covering(&self, position: usize) -> Range<usize> {
        let at = (position as isize + self.pad).max(0) as usize;
        let end = (at / self.stride + 1).min(self.output);
        ((at + 1).saturating_sub(self.kernel).div_ceil(self.stride)).min(end)..end
    }

    /// Positions of the padded input that a dense window covers.
    pub fn padded_len(&self, output: usize) -> usize {
        let end = (self.input as isize + self.pad + self.pad_end).max(0) as usize;
        self.kernel.min(end.saturating_sub(output * self.stride))
    }
}

/// Positions from the first element of a window to its last, if they can be counted.
///
/// # Errors
/// When a kernel, stride or dilation is 0.
fn reach_of(kernel: usize, stride: usize, dilation: usize) -> Result<Option<usize>> {
    for (name, value) in [("kernel size", kernel), ("stride", stride), ("dilation", dilation)] {
        ensure!(value > 0, "every {name} must be positive, found {value}");
    }
    Ok(dilation.checked_mul(kernel.saturating_sub(1)).and_then(|reach| reach.checked_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_and_positions_agree_with_the_definition() {
        for input in [1, 5, 8] {
            for kernel in 1..4 {
                for (stride, pad, dilation) in [(1, 0, 1), (2, 1, 1), (1, 3, 2), (3, 2, 2)] {
                    let Ok(w) = Window::new(input, kernel, stride, pad, dilation) else {
                        assert!(input + 2 * pad < dilation * (kernel - 1) + 1);
                        continue;
                    };
                    assert!(w.span() <= input + 2 * pad && w.span() + stride > input + 2 * pad, "{w:?}");
                    for i in 0..kernel {
                        let inside: Vec<usize> = (0..w.output).filter(|&o| w.position(o, i).is_some()).collect();
                        let (outputs, first) = w.outputs_of(i);
                        assert_eq!(outputs.clone().collect::<Vec<_>>(), inside, "{w:?}");
                        assert!(inside.is_empty() || w.position(outputs.start, i) == Some(first), "{w:?}");
                        for at in 0..input {
                            let found = w.output_at(at, i);
                            assert_eq!(found, (0..w.output).find(|&o| w.position(o, i) == Some(at)), "{w:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn transposed_windows_are_those_over_their_output() {
        for (input, kernel, stride, pad, dilation) in
            [(1, 1, 1, 0, 1), (4, 3, 2, 1, 1), (3, 2, 5, 0, 3), (5, 4, 2, 3, 2)]
        {
            let w = Window::transposed(input, kernel, stride, pad, dilation).unwrap();
            assert_eq!(w, Window::new(w.input, kernel, stride, pad, dilation).unwrap());
            assert_eq!((w.output, w.span()), (input, w.input + 2 * pad));
        }
        let refusal =
            |input, kernel, stride, pad| Window::transposed(input, kernel, stride, pad, 1).unwrap_err().to_string();
        assert!(refusal(2, 3, 1, 2).contains("2 positions spread over 4, of which padding 2"));
        assert!(refusal(0, 3, 1, 0).contains("leaves none"));
        assert!(refusal(2, 3, 0, 0).contains("stride"));
        assert!(refusal(usize::MAX, 3, 2, 0).contains("too large"));
        assert!(refusal(2, 3, 1, usize::MAX).contains("leaves none"));
    }

    #[test]
    fn dense_windows_cover_what_covers_them() {
        for (input, kernel, stride, pad) in [(1, 1, 1, 0), (5, 2, 2, 1), (7, 3, 2, 0), (9, 3, 1, 2), (8, 2, 3, 1)] {
            // The last window hangs over the edge.
            let exact = Window::new(input, kernel, stride, pad, 1).unwrap();
            for w in [exact, Window { output: exact.output + 1, ..exact }] {
                for o in 0..w.output {
                    let inside: Vec<usize> = (0..kernel).filter_map(|i| w.position(o, i)).collect();
                    assert_eq!(w.covered(o).collect::<Vec<_>>(), inside, "{w:?}");
                    let padded = (0..kernel).filter(|i| o * stride + i < input + 2 * pad).count();
                    assert_eq!(w.padded_len(o), padded, "{w:?}");
                }
                for i in 0..input {
                    let over: Vec<usize> = (0..w.output).filter(|&o| w.covered(o).contains(&i)).collect();
                    assert_eq!(w.covering(i).collect::<Vec<_>>(), over, "{w:?}");
                }
            }
        }
    }

    #[test]
    fn a_convolution_may_reach_beyond_its_input_by_less_than_a_stride() {
        for (input, kernel, stride, pad, dilation) in
            [(3, 5, 3, 0, 1), (2, 3, 4, 1, 2), (1, 4, 9, 1, 1), (1, 2, 2, 0, 1)]
        {
            let w = Window::of_convolution(input, kernel, stride, [pad; 2], dilation).unwrap();
            assert_eq!((w.output, w.pad, w.pad_end as usize + pad + input), (1, pad as isize, w.reach()), "{w:?}");
            assert!(Window::new(input, kernel, stride, pad, dilation).is_err());
        }
        let refused = |input, stride| Window::of_convolution(input, 5, stride, [0; 2], 1).unwrap_err().to_string();
        assert!(refused(3, 2).contains("reaches over 5 positions, but the input has 3 with padding 0"));
        assert!(refused(3, 1).contains("reaches over 5"));
        assert!(refused(0, 9).contains("reaches over 5"));
        assert_eq!(Window::of_convolution(9, 3, 2, [1; 2], 2).unwrap(), Window::new(9, 3, 2, 1, 2).unwrap());
    }

    #[test]
    fn windows_that_cannot_be_are_refused() {
        let refusal = |input, kernel, stride, pad, dilation| {
            Window::new(input, kernel, stride, pad, dilation).unwrap_err().to_string()
        };
        assert!(refusal(5, 7, 1, 0, 1).contains("reaches over 7"));
        assert!(refusal(5, 0, 1, 0, 1).contains("kernel size"));
        assert!(refusal(5, 3, 0, 0, 1).contains("stride"));
        assert!(refusal(5, 3, 1, 0, 0).contains("dilation"));
        assert!(refusal(5, 3, 1, usize::MAX, 1).contains("too large"));
        assert!(refusal(5, usize::MAX, 1, 0, 3).contains("too large"));
    }
}
