//! Image files to pixels: JPEG, PNG, BMP, TIFF, WebP, and PPM with its kin (PGM, PBM, PAM), told apart by their first bytes.
//!
//! Colours come in the order blue, green, red. Without alpha asked for, it is dropped; of 16 bits the upper 8 stay.
//! Gray is a JPEG's own luminance, and otherwise r · 0.299 + g · 0.587 + b · 0.114. Photographs are turned as the EXIF
//! data ask. All as OpenCV does for Caffe, with the same pixels; only the gray of a coloured PNG or WebP, and a
//! JPEG within a TIFF, may differ by 1. A JPEG that was cut short is an error.
//!
//! Differences from OpenCV: where a PPM's largest value is less than its bytes hold, values are scaled to the whole range;
//! a TIFF's colours are not multiplied by its alpha, as those of no other format are. Of several images in a file the first
//! is read. TIFFs of gray with alpha, with a palette or of floating-point values are not.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, guess_format};
use lgm_core::count;

use super::raster::{MOST_BYTES, check_size, luma};
use super::{BadImage, Color, Raster, jpeg};
use crate::pixels::Extent;

/// Decodes an image file in memory.
pub(crate) fn decode_raster(bytes: &[u8], color: Color) -> Result<Raster, BadImage> {
    let (raster, as_held) = match guess_format(bytes)? {
        ImageFormat::Jpeg => jpeg::decode(bytes, color)?,
        other => lossless(bytes, other, color)?,
    };
    if color == Color::Native { Ok(raster) } else { raster.oriented(as_held) }
}

fn lossless(bytes: &[u8], format: ImageFormat, color: Color) -> Result<(Raster, Orientation), BadImage> {
    if format == ImageFormat::WebP {
        check_chunks(bytes)?;
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MOST_BYTES as u64);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|e| match e {
        ImageError::Unsupported(why) if format == ImageFormat::Tiff => BadImage::Tiff(why.to_string()),
        e => e.into(),
    })?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    let whole = usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX);
    // What a decoder holds besides its result.
    let beside = match format {
        ImageFormat::Tiff | ImageFormat::WebP => whole.max(count(&[8, width, height])),
        _ => 0,
    };
    check_size(width, height, whole, beside)?;
    let as_held = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let raster = |channels: usize, data: Vec<u8>| Raster { extent: Extent { channels, height, width }, data };
    let image = match DynamicImage::from_decoder(decoder)? {
        image @ (DynamicImage::ImageLuma8(_)
        | DynamicImage::ImageLumaA8(_)
        | DynamicImage::ImageRgb8(_)
        | DynamicImage::ImageRgba8(_)) => image,
        deep @ (DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_)) => {
            return Err(BadImage::Floats(deep.color()));
        }
        deep if color == Color::Native => return Err(BadImage::Depth(deep.color())),
        deep => upper_bytes(deep),
    };
    let image = match (color, image) {
        (Color::Native | Color::Gray, DynamicImage::ImageLuma8(gray)) => raster(1, gray.into_raw()),
        (Color::Gray, DynamicImage::ImageLumaA8(gray)) => raster(1, gray.into_raw().into_iter().step_by(2).collect()),
        (Color::Native, image @ (DynamicImage::ImageRgba8(_) | DynamicImage::ImageLumaA8(_))) => {
            let mut data = image.into_rgba8().into_raw();
            data.as_chunks_mut::<4>().0.iter_mut().for_each(|p| p.swap(0, 2));
            raster(4, data)
        }
        (Color::Native, DynamicImage::ImageRgb8(rgb))
            if format == ImageFormat::Bmp && has_gray_palette(bytes, &rgb) =>
        {
            raster(1, rgb.into_raw().into_iter().step_by(3).collect())
        }
        (_, image) => from_rgb(raster(3, image.into_rgb8().into_raw()), color)?,
    };
    Ok((image, as_held))
}

/// Fails unless the chunks of a WebP lie within it: the library takes as much memory as they claim.
fn check_chunks(webp: &[u8]) -> Result<(), BadImage> {
    let size = |at: usize| {
        let bytes = webp.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    let cut_short = || BadImage::CutShort("WebP");
    let end = size(4).and_then(|size| size.checked_add(8)).filter(|&end| end <= webp.len()).ok_or_else(cut_short)?;
    let mut at = 12usize;
    while let Some(start) = at.checked_add(8).filter(|&start| start <= end) {
        let length = size(start.saturating_sub(4)).unwrap_or(usize::MAX);
        at = start.saturating_add(length).saturating_add(length % 2);
        if start.saturating_add(length) > end {
            return Err(cut_short());
        }
    }
    Ok(())
}

/// Whether a bitmap has a palette, and the colours in use are gray: bitmaps know no other gray.
fn has_gray_palette(bytes: &[u8], pixels: &[u8]) -> bool {
    let bits = bytes.get(28).copied().unwrap_or(24);
    bits <= 8 && pixels.as_chunks::<3>().0.iter().all(|[r, g, b]| r == g && g == b)
}

/// Red, green, blue as a raster has it.
fn from_rgb(mut rgb: Raster, color: Color) -> Result<Raster, BadImage> {
    let (pixels, _) = rgb.data.as_chunks_mut::<3>();
    if color == Color::Gray {
        let mut gray = Raster::zeros(Extent { channels: 1, ..rgb.extent })?;
        gray.data.iter_mut().zip(&*pixels).for_each(|(o, p)| *o = luma(*p));
        return Ok(gray);
    }
    pixels.iter_mut().for_each(|p| p.swap(0, 2));
    Ok(rgb)
}

/// The upper half of every value of 16 bits.
fn upper_bytes(deep: DynamicImage) -> DynamicImage {
    let upper = |values: &mut [u16]| values.iter_mut().for_each(|v| *v = (*v >> 8).saturating_mul(257));
    // What a value of equal bytes becomes in 8 bits is one of them.
    match deep {
        DynamicImage::ImageLuma16(mut image) => {
            upper(&mut image);
            DynamicImage::ImageLuma16(image).into_luma8().into()
        }
        DynamicImage::ImageLumaA16(mut image) => {
            upper(&mut image);
            DynamicImage::ImageLumaA16(image).into_luma_alpha8().into()
        }
        DynamicImage::ImageRgb16(mut image) => {
            upper(&mut image);
            DynamicImage::ImageRgb16(image).into_rgb8().into()
        }
        DynamicImage::ImageRgba16(mut image) => {
            upper(&mut image);
            DynamicImage::ImageRgba16(image).into_rgba8().into()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use lgm_core::rng::{Philox, stream_id};
    use lgm_testkit::Recorded;

    use super::super::{FORMATS, ImageFile, Pixels, decode};
    use super::*;

    /// Every file of `tests/golden/images`, by OpenCV's three ways of reading it.
    #[test]
    fn pixels_are_opencvs() {
        assert!(compare("images/opencv") > 80);
        let recorded = Recorded::golden("images/opencv");
        let cut = decode_raster(&file_of(&recorded, "cut_short.jpg"), Color::Force).unwrap_err().to_string();
        assert_eq!(cut, "cannot be decoded: it is cut short, the end of the JPEG is missing");
    }

    /// Formats of which the recorded pixels are what was written to the files, or Pillow's.
    #[test]
    fn pixels_are_those_of_the_formats() {
        assert!(compare("images/formats") > 90);
        let recorded = Recorded::golden("images/formats");
        for name in ["palette.tif", "float.tif", "gray_alpha.tif"] {
            let error = decode_raster(&file_of(&recorded, name), Color::Force).unwrap_err().to_string();
            assert!(error.starts_with("cannot be decoded: TIFFs of this kind are not read ("), "{name}: {error}");
            assert!(error.ends_with("; convert it to PNG"), "{name}: {error}");
        }
    }

    fn compare(recorded: &str) -> usize {
        let recorded = Recorded::golden(recorded);
        let mut compared = 0;
        for name in recorded.names() {
            let (color, file) = match name.split_once('_') {
                Some(("color", file)) => (Color::Force, file),
                Some(("gray", file)) if recorded.array(&format!("file_{file}")).is_some() => (Color::Gray, file),
                Some(("unchanged", file)) => (Color::Native, file),
                _ => continue,
            };
            let (shape, want) = recorded.array(name).unwrap();
            let raster = decode_raster(&file_of(&recorded, file), color).unwrap_or_else(|e| panic!("{name}: {e}"));
            let Extent { channels, height, width } = raster.extent;
            assert_eq!(shape[..], [height, width, channels], "{name}");
            let far = raster.data.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
            // A JPEG within a TIFF is decoded by another library than the others, whose DCT rounds otherwise.
            let by_one = color == Color::Gray && file.ends_with("png") || file == "jpeg.tif";
            assert!(far <= f64::from(u8::from(by_one)), "{name} is off by {far}: {:?} {want:?}", raster.data);
            compared += 1;
        }
        compared
    }

    fn file_of(recorded: &Recorded, name: &str) -> Vec<u8> {
        recorded.array(&format!("file_{name}")).unwrap().1.iter().map(|&byte| byte as u8).collect()
    }

    #[test]
    fn damaged_files_are_described() {
        let jpeg = file_of(&Recorded::golden("images/opencv"), "444.jpg");
        let fails = |bytes: &[u8]| decode_raster(bytes, Color::Force).unwrap_err().to_string();
        let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        let with = |at: usize, value: u8| {
            let mut changed = jpeg.clone();
            changed[at] = value;
            fails(&changed)
        };
        assert_eq!(with(frame + 4, 12), "cannot be decoded as a JPEG: Unsupported JPEG data precision 12");
        assert!(with(frame + 1, 0xc3).contains("Unsupported JPEG process"));
        assert!(fails(&jpeg[..40]).starts_with("cannot be decoded as a JPEG: "));
        let scans = [&jpeg[..2], &[0xff, 0xda].repeat(501)].concat();
        assert_eq!(fails(&scans), "cannot be decoded: the JPEG has 501 scans, more than 500");
        assert!(fails(b"GIF89a").contains(FORMATS), "{}", fails(b"GIF89a"));
        assert!(fails(b"").contains(FORMATS));
        let png = png(&DynamicImage::new_luma8(3, 3));
        assert!(fails(&png[..png.len() / 2]).contains("cannot be decoded"));
    }

    /// Bytes changed at random, ends cut off: some images and many errors. `LGM_FUZZ_IMAGES` asks for more rounds than one.
    #[test]
    fn changed_files_are_images_or_errors() {
        let rounds = std::env::var("LGM_FUZZ_IMAGES").ok().and_then(|n| n.parse().ok()).unwrap_or(1u64);
        let files: Vec<Vec<u8>> = ["images/opencv", "images/formats"]
            .map(Recorded::golden)
            .iter()
            .flat_map(|recorded| {
                let names = recorded.names().filter_map(|name| name.strip_prefix("file_"));
                names.map(|name| file_of(recorded, name)).collect::<Vec<_>>()
            })
            .collect();
        let (mut images, mut errors) = (0, 0);
        for round in 0..rounds {
            let mut draws = Philox::new(round, stream_id("images", "changed")).from(0);
            for file in &files {
                for _ in 0..8 {
                    let mut file = file.clone();
                    for _ in 0..1 + draws.below(6) {
                        let at = draws.below(file.len());
                        file[at] = draws.below(256) as u8;
                    }
                    if draws.below(4) == 0 {
                        file.truncate(draws.below(file.len()));
                    }
                    match decode(&file, [Color::Native, Color::Force, Color::Gray][draws.below(3)]) {
                        Ok(_) => images += 1,
                        Err(_) => errors += 1,
                    }
                }
            }
        }
        assert!(images > 10 && errors > 10, "{images} images, {errors} errors");
    }

    fn png(image: &DynamicImage) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn pixels(image: &DynamicImage, color: Color) -> (usize, Vec<u8>) {
        let image = decode(&png(image), color).unwrap();
        match image.pixels {
            Pixels::U8(p) => (image.extent.channels, p),
            Pixels::F32(_) => panic!("floats"),
        }
    }

    #[test]
    fn encoded_images_become_blue_green_red_planes() {
        let rgb = DynamicImage::ImageRgb8(image::RgbImage::from_raw(2, 1, vec![10, 20, 30, 40, 50, 60]).unwrap());
        assert_eq!(pixels(&rgb, Color::Native), (3, vec![30, 60, 20, 50, 10, 40]));
        assert_eq!(pixels(&rgb, Color::Gray), (1, vec![18, 48]));
        let gray = DynamicImage::ImageLuma8(image::GrayImage::from_raw(2, 1, vec![5, 6]).unwrap());
        assert_eq!(pixels(&gray, Color::Native), (1, vec![5, 6]));
        assert_eq!(pixels(&gray, Color::Force), (3, vec![5, 6, 5, 6, 5, 6]));
        let rgba = DynamicImage::ImageRgba8(image::RgbaImage::from_raw(1, 1, vec![1, 2, 3, 4]).unwrap());
        assert_eq!(pixels(&rgba, Color::Native), (4, vec![3, 2, 1, 4]));
        let deep = DynamicImage::ImageLuma16(image::ImageBuffer::from_raw(1, 1, vec![65535]).unwrap());
        assert!(decode(&png(&deep), Color::Native).unwrap_err().to_string().contains("expected 8 bits"));
        assert_eq!(pixels(&deep, Color::Force), (3, vec![255; 3]));
    }

    #[test]
    fn sizes_that_headers_claim_are_bounded() {
        // Less than the limit as decoded, far more as three planes.
        let one = Raster::zeros(Extent { channels: 1, height: 1, width: 1 }).unwrap();
        let mut large = one.encode(ImageFile::Jpeg).unwrap();
        let frame = large.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        large[frame + 5..frame + 9].copy_from_slice(&[0x40, 0, 0x40, 0]);
        for color in [Color::Native, Color::Force, Color::Gray] {
            let error = decode(&large, color).unwrap_err().to_string();
            assert!(error.contains("it claims to be 16384 x 16384 pixels, more than 512.0 MiB"), "{error}");
        }
        let recorded = Recorded::golden("images/formats");
        let with = |name: &str, at: &[u8], new: &[u8]| {
            let mut file = file_of(&recorded, name);
            let start = file.windows(at.len()).position(|part| part == at).unwrap() + at.len();
            file[start..start + new.len()].copy_from_slice(new);
            file
        };
        // A TIFF's tag of the width, and the bits of a lossless WebP's extents, both 16383 and stored less one.
        let width = |bytes: [u8; 4]| with("rgb.tif", &[0, 1, 4, 0, 1, 0, 0, 0], &bytes);
        let (wide, wider) = (width([0, 0, 1, 0]), width([0xff, 0xff, 0xff, 0x7f]));
        let webp = with(
            "lossless.webp",
            b"VP8L",
            &[file_of(&recorded, "lossless.webp")[16..20].to_vec(), vec![0x2f, 0xfe, 0xbf, 0xff, 0x0f]].concat(),
        );
        for file in [&b"P5 16384 16384 255\n"[..], b"P3 99999 99999 65535\n", b"P4 99999 99999\n", &wider, &webp] {
            for color in [Color::Native, Color::Force, Color::Gray] {
                let error = decode(file, color).unwrap_err().to_string();
                assert!(error.contains("it claims to be ") && error.contains(", more than 512.0 MiB"), "{error}");
            }
        }
        assert!(decode(&wide, Color::Force).unwrap_err().to_string().contains("cannot be decoded"));
        let error = decode(b"P3 14 0 255\n", Color::Force).unwrap_err().to_string();
        assert_eq!(error, "has no pixels: it is 14 x 0");
        let much = with("held_6.webp", b"EXIF", &[0, 0, 0, 0x7f]);
        let error = decode(&much, Color::Force).unwrap_err().to_string();
        assert_eq!(error, "cannot be decoded: it is cut short, the end of the WebP is missing");
    }

    #[test]
    fn files_that_were_cut_short_are_errors() {
        let recorded = Recorded::golden("images/formats");
        for name in ["ascii.pbm", "bits.pbm", "hundred_ascii.pgm", "rgb_16.ppm", "rgba.pam", "lzw.tif", "lossy.webp"] {
            let file = file_of(&recorded, name);
            for end in [3, 13, file.len() / 2, file.len() * 9 / 10] {
                let error = decode(&file[..end], Color::Force).map(|_| (name, end)).unwrap_err().to_string();
                assert!(error.starts_with("cannot be decoded"), "{error}");
            }
        }
    }
}
