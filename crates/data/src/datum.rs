//! Records of databases: Caffe's `Datum`.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use lgm_core::{Error, Result};
use lgm_proto::Datum;
use prost::Message;

use crate::image::{self, BadImage, Color, Image, Pixels, Raster};
use crate::pixels::Extent;
use crate::warnings::Flaw;

/// A decoded record.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub image: Image,
    pub label: Option<i32>,
    /// The record held an image file.
    pub encoded: bool,
    /// What is amiss with it.
    pub flaw: Option<Flaw>,
}

/// What is wrong with a record; completes the sentence "the record …".
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadRecord {
    #[error("is not a Datum: {0}")]
    NotADatum(#[from] prost::DecodeError),
    #[error("has {what} {value}, expected a positive number")]
    Extent { what: &'static str, value: i32 },
    #[error("has {extent} {} but {found} values", match extent.count() {
        usize::MAX => "pixels, more than memory can hold,".to_string(),
        count => format!("= {count} pixels"),
    })]
    Values { extent: Extent, found: usize },
    #[error("has floating-point values, where 8-bit ones or an image file were expected")]
    Floats,
    #[error("its image {0}")]
    Image(#[from] BadImage),
}

/// Decodes a record.
pub(crate) fn decode(record: &[u8], color: Color) -> Result<Decoded, BadRecord> {
    let datum = Datum::decode(record)?;
    let (label, encoded) = (datum.label, datum.encoded());
    let (image, flaw) = if encoded { image::decode(datum.data(), color)? } else { values(datum)? };
    Ok(Decoded { image, label, encoded, flaw })
}

/// The image of a record of 8-bit values or an image file, its channels together; with what is amiss with it.
pub(crate) fn raster(datum: Datum, color: Color) -> Result<(Raster, Option<Flaw>), BadRecord> {
    if datum.encoded() {
        return Ok(image::decode_raster(datum.data(), color)?);
    }
    let (Image { extent, pixels }, flaw) = values(datum)?;
    let Pixels::U8(planes) = pixels else { return Err(BadRecord::Floats) };
    let mut raster = Raster::zeros(extent)?;
    let area = extent.count().checked_div(extent.channels).unwrap_or(0).max(1);
    for (c, plane) in planes.chunks_exact(area).enumerate() {
        raster.data.iter_mut().skip(c).step_by(extent.channels).zip(plane).for_each(|(to, &from)| *to = from);
    }
    Ok((raster, flaw))
}

/// The values of a record that holds no image file; Caffe leaves out those behind the last pixel.
fn values(datum: Datum) -> Result<(Image, Option<Flaw>), BadRecord> {
    let extent = Extent {
        channels: positive("channels", datum.channels())?,
        height: positive("height", datum.height())?,
        width: positive("width", datum.width())?,
    };
    let count = extent.count();
    let (pixels, found) = match datum.data {
        Some(mut data) if !data.is_empty() => {
            let found = data.len();
            data.truncate(count);
            (Pixels::U8(data), found)
        }
        _ => {
            let mut data = datum.float_data;
            let found = data.len();
            data.truncate(count);
            (Pixels::F32(data), found)
        }
    };
    if found < count {
        return Err(BadRecord::Values { extent, found });
    }
    Ok((Image { extent, pixels }, (found > count).then_some(Flaw::Surplus { extent, found })))
}

fn positive(what: &'static str, value: i32) -> Result<usize, BadRecord> {
    usize::try_from(value).ok().filter(|&v| v > 0).ok_or(BadRecord::Extent { what, value })
}

/// A record of 8-bit pixels, channel-major, as Caffe's converters make it.
pub(crate) fn record(extent: Extent, pixels: Vec<u8>, label: Option<i32>) -> Result<Datum> {
    let number =
        |v| i32::try_from(v).map(Some).map_err(|_| Error::config(format!("an image extent of {v} is too large")));
    Ok(Datum {
        channels: number(extent.channels)?,
        height: number(extent.height)?,
        width: number(extent.width)?,
        data: Some(pixels),
        label,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: Extent = Extent { channels: 1, height: 1, width: 2 };

    #[test]
    fn bytes_and_floats() {
        let bytes = decode(&record(PAIR, vec![7, 200], Some(9)).unwrap().encode_to_vec(), Color::Native).unwrap();
        assert_eq!(bytes.image, Image { extent: PAIR, pixels: Pixels::U8(vec![7, 200]) });
        assert_eq!((bytes.label, bytes.encoded), (Some(9), false));
        let datum = Datum {
            channels: Some(1),
            height: Some(1),
            width: Some(2),
            float_data: vec![0.5, -1.0],
            ..Default::default()
        };
        let floats = decode(&datum.encode_to_vec(), Color::Native).unwrap();
        assert_eq!((floats.image.pixels, floats.label), (Pixels::F32(vec![0.5, -1.0]), None));
    }

    #[test]
    fn values_behind_the_pixels_are_left_out() {
        let bytes = decode(&record(PAIR, vec![7, 200, 1, 2], None).unwrap().encode_to_vec(), Color::Native).unwrap();
        assert_eq!(bytes.image.pixels, Pixels::U8(vec![7, 200]));
        assert_eq!(bytes.flaw, Some(Flaw::Surplus { extent: PAIR, found: 4 }));
        let floats = Datum { data: None, float_data: vec![0.5, 2.0, 3.0], ..record(PAIR, vec![], None).unwrap() };
        let floats = decode(&floats.encode_to_vec(), Color::Native).unwrap();
        assert_eq!(floats.image.pixels, Pixels::F32(vec![0.5, 2.0]));
        assert!(floats.flaw.unwrap().to_string().contains("1 x 1 x 2 = 2 pixels but 3 values"));
        let (raster, flaw) = raster(record(PAIR, vec![7, 200, 1], None).unwrap(), Color::Force).unwrap();
        assert_eq!((raster.data, flaw), (vec![7, 200], Some(Flaw::Surplus { extent: PAIR, found: 3 })));
    }

    #[test]
    fn an_image_file_keeps_its_label() {
        let mut bytes = std::io::Cursor::new(Vec::new());
        ::image::DynamicImage::new_luma8(2, 1).write_to(&mut bytes, ::image::ImageFormat::Png).unwrap();
        let datum = Datum { data: Some(bytes.into_inner()), label: Some(3), encoded: Some(true), ..Default::default() };
        let Decoded { image, label, encoded, .. } = decode(&datum.encode_to_vec(), Color::Native).unwrap();
        assert_eq!((image.extent, label, encoded), (PAIR, Some(3), true));
    }

    #[test]
    fn damaged_records_are_described() {
        assert!(decode(&[0xff], Color::Native).unwrap_err().to_string().contains("is not a Datum"));
        let short = record(PAIR, vec![1], None).unwrap().encode_to_vec();
        assert!(decode(&short, Color::Native).unwrap_err().to_string().contains("1 x 1 x 2 = 2 pixels but 1 values"));
        // 2^64 + 28 pixels with 28 values, and 2^64 with none.
        for (channels, height, width, data) in
            [(1 << 20, 1 << 22, 1 << 22, vec![]), (3_735_391, 3_161_593, 1_561_988, vec![0; 28])]
        {
            let (channels, height, width, data) = (Some(channels), Some(height), Some(width), Some(data));
            let huge = Datum { channels, height, width, data, ..Default::default() }.encode_to_vec();
            let error = decode(&huge, Color::Native).unwrap_err().to_string();
            assert!(error.contains("pixels, more than memory can hold"), "{error}");
        }
        let empty = Datum::default().encode_to_vec();
        assert!(decode(&empty, Color::Native).unwrap_err().to_string().contains("channels 0"));
        let junk = Datum { data: Some(vec![1, 2, 3]), encoded: Some(true), ..Default::default() };
        assert!(
            decode(&junk.encode_to_vec(), Color::Native)
                .unwrap_err()
                .to_string()
                .contains("its image cannot be decoded")
        );
    }
}
