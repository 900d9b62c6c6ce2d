//! How a device stores a blob: the type of its elements and their order. The host knows one format, [`Format::PLAIN`].

use std::fmt;

use smallvec::SmallVec;

use crate::{BlobSpec, DevicePtr, Shape};

/// What a device stores an element as. Kernels compute in single precision whatever it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE single precision.
    #[default]
    F32,
    /// The upper half of single precision: 8 bits of exponent, 7 of mantissa.
    Bf16,
}

impl Element {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 => 2,
        }
    }
}

/// In which order a blob's elements lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Axis by axis, as on the host: NCHW.
    #[default]
    ChannelsFirst,
    /// Axis 1 last: NHWC. The logical shape stays NCHW.
    ChannelsLast,
}

/// How a blob, and its diff, are stored on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Format {
    /// The type of an element.
    pub element: Element,
    /// The order of elements.
    pub layout: Layout,
}

impl Format {
    /// Single precision, axis by axis: what the host sees, and what a layer takes unless it says otherwise.
    pub const PLAIN: Format = Format { element: Element::F32, layout: Layout::ChannelsFirst };

    /// The same elements, axis by axis.
    #[must_use]
    pub fn channels_first(self) -> Format {
        Format { layout: Layout::ChannelsFirst, ..self }
    }

    /// Whether NCHW and NHWC differ in memory for this shape.
    fn is_moved(shape: &Shape) -> bool {
        shape.len() > 2 && shape[1] > 1 && shape.count_from(2) > 1
    }

    /// Whether a blob of a shape has the same bytes in both formats.
    pub fn is_same(self, other: Format, shape: &Shape) -> bool {
        self.element == other.element && (self.layout == other.layout || !Format::is_moved(shape))
    }

    /// Bytes of a blob.
    pub fn bytes(self, shape: &Shape) -> usize {
        shape.count() * self.element.bytes()
    }

    /// Where element `i` of the host's order lies.
    fn place(self, shape: &Shape, i: usize) -> usize {
        if self.layout == Layout::ChannelsFirst || !Format::is_moved(shape) {
            return i;
        }
        let (channels, inner) = (shape[1], shape.count_from(2));
        let (image, rest) = (i / (channels * inner), i % (channels * inner));
        (image * inner + rest % inner) * channels + rest / inner
    }

    /// A blob's bytes on the device from its values in the host's order, as many as the shape has.
    pub fn encode(self, shape: &Shape, values: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes(shape)];
        let size = self.element.bytes();
        for (i, &v) in values.iter().enumerate() {
            let to = &mut bytes[size * self.place(shape, i)..][..size];
            match self.element {
                Element::F32 => to.copy_from_slice(&v.to_ne_bytes()),
                Element::Bf16 => to.copy_from_slice(&bf16_bits(v).to_ne_bytes()),
            }
        }
        bytes
    }

    /// A blob's values in the host's order from its bytes on the device, as long as [`Format::bytes`] says.
    pub fn decode(self, shape: &Shape, bytes: &[u8]) -> Vec<f32> {
        let each = |i: usize| {
            let at = self.place(shape, i) * self.element.bytes();
            match self.element {
                Element::F32 => f32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]),
                Element::Bf16 => f32::from_bits(u32::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]])) << 16),
            }
        };
        (0..shape.count()).map(each).collect()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let element = if self.element == Element::F32 { "f32" } else { "bf16" };
        let layout = if self.layout == Layout::ChannelsFirst { "NCHW" } else { "NHWC" };
        write!(f, "{element} {layout}")
    }
}

/// Rounds to bf16, ties to even; NaN stays NaN.
fn bf16_bits(v: f32) -> u16 {
    let bits = v.to_bits();
    if v.is_nan() {
        return 0x7fff;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// A number rounded to what an element holds.
pub fn rounded(v: f32, element: Element) -> f32 {
    match element {
        Element::F32 => v,
        Element::Bf16 => f32::from_bits(u32::from(bf16_bits(v)) << 16),
    }
}

/// The formats in which a layer takes its bottoms and gives its tops; [`Format::PLAIN`] where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Formats {
    /// By bottom.
    pub bottoms: SmallVec<[Format; 4]>,
    /// By top.
    pub tops: SmallVec<[Format; 4]>,
}

impl Formats {
    /// One format for so many bottoms and tops.
    pub fn all(format: Format, bottoms: usize, tops: usize) -> Formats {
        Formats { bottoms: SmallVec::from_elem(format, bottoms), tops: SmallVec::from_elem(format, tops) }
    }

    /// That of bottom `i`.
    pub fn bottom(&self, i: usize) -> Format {
        self.bottoms.get(i).copied().unwrap_or_default()
    }

    /// That of top `i`.
    pub fn top(&self, i: usize) -> Format {
        self.tops.get(i).copied().unwrap_or_default()
    }
}

/// When convolutions have their channels last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelsLast {
    /// Never.
    #[default]
    Never,
    /// Where tensor cores take them so: large convolutions whose numbers of channels fill 16 bytes.
    WhereItPays,
    /// Wherever a layer can.
    Always,
}

/// Multiply-adds from which on tensor cores are used for factors of single precision: fewer take, without them, some
/// microseconds, which is what a launch takes.
pub const TENSOR_CORES_FROM: usize = 1 << 27;

/// What a device would have layers store, where they have the choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    /// The type of elements.
    pub element: Element,
    /// The order of a convolution's elements.
    pub channels_last: ChannelsLast,
}

/// What a layer chooses its formats from.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// The bottoms.
    pub bottoms: &'a [BlobSpec],
    /// The format that each bottom comes in.
    pub arriving: &'a [Format],
    /// How many tops there are.
    pub tops: usize,
    /// What the device would have.
    pub storage: Storage,
}

impl Offer<'_> {
    /// Everything as the first bottom comes: for layers that treat every element alone.
    pub fn follow(&self) -> Formats {
        Formats::all(self.arriving.first().copied().unwrap_or_default(), self.bottoms.len(), self.tops)
    }

    /// The same, axis by axis.
    pub fn follow_channels_first(&self) -> Formats {
        let first = self.arriving.first().copied().unwrap_or_default();
        Formats::all(first.channels_first(), self.bottoms.len(), self.tops)
    }
}

impl DevicePtr {
    /// The address `n` elements further on.
    #[must_use]
    pub fn elements(self, n: usize, element: Element) -> Self {
        self.offset(n * element.bytes())
    }
}

/// A kernel's name for each type of the elements it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// For single precision.
    pub f32: &'static str,
    /// For bf16.
    pub bf16: &'static str,
}

impl Kernel {
    /// The name for a type of elements.
    pub fn of(self, element: Element) -> &'static str {
        match element {
            Element::F32 => self.f32,
            Element::Bf16 => self.bf16,
        }
    }
}

impl From<&'static str> for Kernel {
    /// A kernel that does not depend on the type of the blobs' elements.
    fn from(name: &'static str) -> Kernel {
        Kernel { f32: name, bf16: name }
    }
}

/// A kernel that exists for every type of elements: `kernel!("relu_forward")` is `"relu_forward"` or
/// `"relu_forward_bf16"`, as its [`Kernel`] is asked for; `kernel!(element, "relu_forward")` is one of the names.
#[macro_export]
macro_rules! kernel {
    ($name:literal) => {
        $crate::Kernel { f32: $name, bf16: concat!($name, "_bf16") }
    };
    ($element:expr, $name:literal) => {
        $crate::kernel!($name).of($element)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: Format = Format { element: Element::Bf16, layout: Layout::ChannelsLast };

    #[test]
    fn numbers_round_to_the_nearest_even() {
        let one = |v: f32| rounded(v, Element::Bf16);
        assert_eq!(
            [one(1.0), one(-0.0), one(1.0 + 1.0 / 256.0), one(1.0 + 3.0 / 256.0)],
            [1.0, 0.0, 1.0, 1.0 + 4.0 / 256.0]
        );
        assert_eq!([one(f32::INFINITY), one(f32::MAX)], [f32::INFINITY; 2]);
        assert!(one(f32::NAN).is_nan() && one(f32::from_bits(0x7f80_0001)).is_nan());
        assert_eq!(one(1.1), 1.1015625);
        assert_eq!(rounded(1.1, Element::F32), 1.1);
    }

    #[test]
    fn blobs_go_there_and_back() {
        let shape = Shape::from([2, 3, 2, 2]);
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        for format in [Format::PLAIN, LAST, LAST.channels_first(), Format { element: Element::F32, ..LAST }] {
            let bytes = format.encode(&shape, &values);
            assert_eq!(bytes.len(), format.bytes(&shape));
            assert_eq!(format.decode(&shape, &bytes), values);
        }
        let moved = LAST.channels_first().decode(&shape, &LAST.encode(&shape, &values));
        assert_eq!(moved[..6], [0.0, 4.0, 8.0, 1.0, 5.0, 9.0]);
    }

    #[test]
    fn one_position_or_channel_lies_the_same_in_both_orders() {
        let same = |shape: Shape| LAST.is_same(LAST.channels_first(), &shape);
        assert!(same([4, 7].into()) && same([4, 7, 1, 1].into()) && same([4, 1, 5, 5].into()));
        assert!(!same([4, 7, 1, 2].into()) && !LAST.is_same(Format::PLAIN, &[1].into()));
    }
}
