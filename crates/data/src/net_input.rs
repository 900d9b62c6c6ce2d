//! An image file as a net's input: read, brought to the input's channels and size, means taken off, scaled.
//!
//! As Caffe's `cpp_classification` does it: the file's own channels (OpenCV's IMREAD_UNCHANGED), gray from colour or colour
//! from gray, alpha dropped, the whole image resized in 8 bits without regard to its proportions, then
//! (x − mean) · scale. Ten crops are those of Caffe's `classify.py`: the corners and the middle of the resized image, and
//! the same mirrored.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lgm_core::{Error, Result, ensure, memory};

use crate::image::{self, BadImage, Color, Raster};
use crate::pixels::{Extent, Mean, Window, cut};
use crate::transform::{channel_means, read_mean};
use crate::warnings::{Alike, Flaw};

/// Crops of an image that [`Crops::Ten`] makes.
pub const TEN: usize = 10;

/// What is taken off an image's values.
#[derive(Clone, Debug, Default)]
pub enum InputMean {
    /// Nothing.
    #[default]
    None,
    /// One value for all channels or one for each, in the order blue, green, red.
    Values(Vec<f32>),
    /// The mean of each channel of a mean file (`binaryproto`), whatever its height and width.
    Channels(PathBuf),
    /// A mean file pixel by pixel.
    Pixels(PathBuf),
}

/// The parts of an image that a net sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crops {
    /// The whole image, resized to the input's size.
    Whole,
    /// Ten crops of the input's size from the image resized to a height and a width.
    Ten(usize, usize),
}

/// Reads images for one net's input.
#[derive(Clone, Debug)]
pub struct ImageInput {
    input: Extent,
    resized: Extent,
    crops: Crops,
    mean: Mean,
    scale: f32,
    /// Images that were cut short, told when all have been read.
    cut: Arc<Alike>,
}

impl ImageInput {
    /// A reader for an input of channels, height and width.
    ///
    /// # Errors
    /// When the input has neither one nor three channels, crops are larger than what they are cut from, or the mean does not
    /// fit the input.
    pub fn new([channels, height, width]: [usize; 3], crops: Crops, mean: InputMean, scale: f32) -> Result<Self> {
        let input = Extent { channels, height, width };
        ensure!(
            matches!(channels, 1 | 3),
            "an image has 1 channel or 3, but the net's input has {channels} (of shape {input})"
        );
        ensure!(height > 0 && width > 0, "the net's input is empty: {input}");
        let resized = match crops {
            Crops::Whole => input,
            Crops::Ten(height, width) => Extent { channels, height, width },
        };
        ensure!(
            resized.height >= height && resized.width >= width,
            "crops of {height} x {width}, the net's input, cannot be cut from images of {} x {}; resize the images to more",
            resized.height,
            resized.width
        );
        let mean = match mean {
            InputMean::None => Mean::None,
            InputMean::Values(values) if values.len() == 1 => Mean::Channels(vec![values[0]; channels]),
            InputMean::Values(values) => {
                let found = values.len();
                ensure!(
                    found == channels,
                    "expected 1 mean value, or {channels} as the input has channels, found {found}"
                );
                Mean::Channels(values)
            }
            InputMean::Channels(path) => Mean::Channels(channel_means(&path, channels)?),
            InputMean::Pixels(path) => Mean::Image(read_mean(&path, resized)?),
        };
        Ok(ImageInput { input, resized, crops, mean, scale, cut: Arc::default() })
    }

    /// Inputs that an image makes.
    pub fn count(&self) -> usize {
        if self.crops == Crops::Whole { 1 } else { TEN }
    }

    /// Reads an image; its inputs one behind the other.
    ///
    /// # Errors
    /// When the file cannot be read or decoded.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<f32>> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path, "read the image"))?;
        let bad = |e: BadImage| Error::data(path, format!("the image {e}"));
        let (image, flaw) = self.resized(&bytes).map_err(bad)?;
        flaw.iter().for_each(|flaw| self.cut.add(|| Error::data(path, format!("the image {flaw}")).to_string()));
        let image = image.planes().map_err(bad)?;
        let image::Pixels::U8(pixels) = &image.pixels else {
            return Err(Error::internal("a decoded image has 8 bits a channel"));
        };
        let count = lgm_core::count(&[self.count(), self.input.count()]);
        let mut inputs = memory::zeros(count, "an image as the net sees it")?;
        for (window, out) in self.windows().into_iter().zip(inputs.chunks_exact_mut(self.input.count())) {
            cut(pixels, image.extent, window, &self.mean, self.scale, out);
        }
        Ok(inputs)
    }

    fn windows(&self) -> Vec<Window> {
        let Extent { height, width, .. } = self.input;
        let (below, beside) = (self.resized.height - height, self.resized.width - width);
        if self.crops == Crops::Whole {
            return vec![Window::whole(self.resized, false)];
        }
        let corners = [(0, 0), (0, beside), (below, 0), (below, beside), (below / 2, beside / 2)];
        let cut = |mirror: bool| corners.map(|(top, left)| Window { top, left, height, width, mirror });
        [cut(false), cut(true)].concat()
    }

    fn resized(&self, bytes: &[u8]) -> Result<(Raster, Option<Flaw>), BadImage> {
        let (native, flaw) = match image::decode_raster(bytes, Color::Native) {
            // Of 16 bits a channel the upper 8 stay, as in training.
            Err(BadImage::Depth(_)) => {
                image::decode_raster(bytes, if self.input.channels == 1 { Color::Gray } else { Color::Force })?
            }
            read => read?,
        };
        let raster = native.with_channels(self.input.channels)?;
        let Extent { height, width, .. } = self.resized;
        if (raster.extent.height, raster.extent.width) == (height, width) {
            return Ok((raster, flaw));
        }
        Ok((raster.resized(height, width)?, flaw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of 2 x 4 pixels (height, width), each of channels.
    fn png(channels: usize, pixel: impl Fn(usize, usize) -> [u8; 4]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::with_suffix(".png").unwrap();
        let color =
            [::image::ColorType::L8, ::image::ColorType::L8, ::image::ColorType::Rgb8, ::image::ColorType::Rgba8];
        let mut bytes = Vec::new();
        for y in 0..2 {
            for x in 0..4 {
                bytes.extend(&pixel(y, x)[..channels]);
            }
        }
        ::image::save_buffer(file.path(), &bytes, 4, 2, color[channels - 1]).unwrap();
        file
    }

    fn read(file: &tempfile::NamedTempFile, input: [usize; 3], crops: Crops, mean: InputMean) -> Vec<f32> {
        ImageInput::new(input, crops, mean, 0.5).unwrap().read(file.path()).unwrap()
    }

    #[test]
    fn files_come_to_the_inputs_channels() {
        let rgba = |_, _| [10, 20, 30, 99];
        let means = || InputMean::Values(vec![10.0]);
        for channels in [3, 4] {
            let file = png(channels, rgba);
            let planes = [[10.0; 8], [5.0; 8], [0.0; 8]].concat();
            assert_eq!(read(&file, [3, 2, 4], Crops::Whole, means()), planes, "{channels}");
            // 10 · 0.299 + 20 · 0.587 + 30 · 0.114 is 18 in 8 bits.
            assert_eq!(read(&file, [1, 2, 4], Crops::Whole, means()), [4.0; 8], "{channels}");
        }
        let gray = png(1, |_, _| [30, 0, 0, 0]);
        let means = || InputMean::Values(vec![10.0, 20.0, 30.0]);
        assert_eq!(read(&gray, [3, 2, 4], Crops::Whole, means()), [[10.0; 8], [5.0; 8], [0.0; 8]].concat());
        assert_eq!(read(&gray, [1, 1, 1], Crops::Whole, InputMean::None), [15.0]);
    }

    #[test]
    fn ten_crops_are_corners_and_middle_and_their_mirror_images() {
        let file = png(1, |y, x| [(2 * (4 * y + x)) as u8, 0, 0, 0]);
        let crops = read(&file, [1, 1, 2], Crops::Ten(2, 4), InputMean::None);
        let straight = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1.0, 2.0];
        let mirrored = [1.0, 0.0, 3.0, 2.0, 5.0, 4.0, 7.0, 6.0, 2.0, 1.0];
        assert_eq!(crops, [straight, mirrored].concat());
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let error = |input, crops, mean| ImageInput::new(input, crops, mean, 1.0).unwrap_err().to_string();
        assert!(error([2, 4, 4], Crops::Whole, InputMean::None).contains("the net's input has 2"));
        assert!(error([1, 0, 4], Crops::Whole, InputMean::None).contains("empty"));
        let small = error([1, 4, 4], Crops::Ten(4, 3), InputMean::None);
        assert!(small.contains("crops of 4 x 4") && small.contains("from images of 4 x 3"), "{small}");
        let two = error([3, 4, 4], Crops::Whole, InputMean::Values(vec![1.0; 2]));
        assert!(two.contains("or 3 as the input has channels, found 2"), "{two}");
        let reader = ImageInput::new([1, 4, 4], Crops::Whole, InputMean::None, 1.0).unwrap();
        let text = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(text.path(), "no image").unwrap();
        let error = reader.read(text.path()).unwrap_err().to_string();
        assert!(error.contains("cannot be decoded") && error.contains(text.path().to_str().unwrap()), "{error}");
        assert!(reader.read("none.png").unwrap_err().to_string().contains("none.png"));
    }
}
