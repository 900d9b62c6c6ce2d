use lgm_core::rng::{Philox, stream_id};
use lgm_testkit::Recorded;

use super::super::{FORMATS, ImageFile, Pixels, decode};
use super::*;

/// Every file of `tests/golden/images`, by OpenCV's three ways of reading it.
#[test]
fn pixels_are_opencvs() {
    assert!(compare("images/opencv") > 80);
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
        let (raster, flaw) = decode_raster(&file_of(&recorded, file), color).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(flaw, None, "{name}");
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

/// The rest of a file is gray from some row on, in blocks; the end marker alone is not missed.
#[test]
fn what_a_jpeg_lacks_at_its_end_is_gray() {
    let recorded = Recorded::golden("images/opencv");
    let mut cuts = 0;
    for name in recorded.names().filter_map(|name| name.strip_prefix("file_")).filter(|name| name.ends_with("jpg")) {
        let file = file_of(&recorded, name);
        let whole = decode_raster(&file, Color::Force).unwrap();
        if name == "cut_short.jpg" {
            assert_eq!(whole.1, Some(Flaw::CutShort));
            let (last, other) = (whole.0.data.last_chunk::<3>().unwrap(), whole.0.data.first_chunk::<3>().unwrap());
            assert!(last == &[128; 3] && other != last);
            continue;
        }
        for without in [1, 2] {
            for color in [Color::Native, Color::Force, Color::Gray] {
                let all = decode_raster(&file, color).unwrap();
                assert_eq!(decode_raster(&file[..file.len() - without], color).unwrap(), all, "{name}, {color:?}");
            }
        }
        let scan = file.windows(2).rposition(|pair| pair == [0xff, 0xda]).unwrap();
        for without in [4, 5, 7, 15, 40, (file.len() - scan) / 2] {
            let len = file.len().saturating_sub(without);
            if len < scan + 30 || file[len - 1] == 0xff {
                continue;
            }
            let (raster, flaw) = decode_raster(&file[..len], Color::Force).unwrap();
            assert_eq!(flaw, Some(Flaw::CutShort), "{name} without {without} bytes");
            assert_eq!(raster.extent, whole.0.extent);
            cuts += 1;
        }
        let header = &file[..file.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap()];
        assert!(decode_raster(header, Color::Force).is_err(), "{name} without rows");
    }
    assert!(cuts > 60, "{cuts}");
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
    let (image, _) = decode(&png(image), color).unwrap();
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
