//! `transform_param`: crop, take off the mean, mirror, scale; Caffe's data transformation.
//!
//! The window of `crop_size`, or of `crop_h` and `crop_w` (of forks), is at random in TRAIN and centred in TEST. The mean is an image (`mean_file`, which must
//! have the size of the uncropped images), one value, or one a channel (`mean_value`). `mirror` flips one time in two,
//! in both phases, as in Caffe. Draws are made for each image from the run's seed.

use std::fmt;
use std::path::Path;

use lgm_core::{Error, Phase, Result, ensure, memory};
use lgm_proto::{BlobProto, FileKind, LayerParameter, TransformationParameter, strings};
use prost::Message;

use crate::image::{Color, Image, Pixels};
use crate::order::ImageDraw;
use crate::pixels::{Extent, Mean, Window, cut};

/// The transformation of a layer, for images of a given number of channels.
#[derive(Debug)]
pub(crate) struct Transformer {
    first: Extent,
    /// Height and width of the window.
    crop: Option<[usize; 2]>,
    random_crop: bool,
    mirror: bool,
    mean: Mean,
    scale: f32,
}

/// How the parameters ask for encoded images to be decoded.
pub(crate) fn color(param: &TransformationParameter) -> Result<Color> {
    Ok(match (param.force_color(), param.force_gray()) {
        (true, true) => return Err(Error::config("force_color and force_gray exclude each other")),
        (true, false) => Color::Force,
        (false, true) => Color::Gray,
        (false, false) => Color::Native,
    })
}

/// Warns where colours are forced for a layer of image files, which `instead` says how they are read: as in Caffe, that is for
/// the files in records alone.
pub(crate) fn ignore_forced_color(param: &TransformationParameter, layer: &LayerParameter, instead: &str) {
    for (field, _) in [("force_color", param.force_color()), ("force_gray", param.force_gray())].iter().filter(|f| f.1)
    {
        let (kind, name) = (layer.r#type(), layer.name());
        tracing::warn!("{kind} '{name}': {field} has no effect, as in Caffe: it is for the records of Data; {instead}");
    }
}

/// The height and width of the window, if one is asked for; `crop_size` comes first.
fn window(param: &TransformationParameter) -> Result<Option<[usize; 2]>> {
    let [side, height, width] = [param.crop_size(), param.crop_h(), param.crop_w()].map(|v| v as usize);
    if side > 0 {
        return Ok(Some([side; 2]));
    }
    ensure!(
        (height > 0) == (width > 0),
        "crop_h and crop_w are the height and width of a window and go together, found {height} and {width}"
    );
    Ok((height > 0).then_some([height, width]))
}

/// The mean of images of extents `of`.
fn mean(param: &TransformationParameter, of: Extent) -> Result<Mean> {
    ensure!(param.mean_file.is_none() || param.mean_value.is_empty(), "mean_file and mean_value exclude each other");
    Ok(match (&param.mean_file, &param.mean_value[..]) {
        (Some(file), _) => Mean::Image(read_mean(&strings::to_path(file), of)?),
        (None, []) => Mean::None,
        (None, &[m]) => Mean::Channels(vec![m; of.channels]),
        (None, m) => {
            ensure!(
                m.len() == of.channels,
                "mean_value must be given once or once for each of the {} channels, found {} times",
                of.channels,
                m.len()
            );
            Mean::Channels(m.to_vec())
        }
    })
}

/// The mean for windows of extents `of`: the middle of a mean image that is at least as large.
pub(crate) fn middle_of_mean(param: &TransformationParameter, of: Extent) -> Result<Mean> {
    let Some(file) = param.mean_file.as_deref().map(strings::to_path).filter(|_| param.mean_value.is_empty()) else {
        return mean(param, of);
    };
    let (extent, values) = load_mean(&file)?;
    if extent.channels != of.channels || extent.height < of.height || extent.width < of.width {
        let what = format!(
            "the mean image is {extent}, expected {} channels and at least {} x {} pixels",
            of.channels, of.height, of.width
        );
        return Err(Error::data(file, what));
    }
    let corner = ((extent.height - of.height) / 2, (extent.width - of.width) / 2);
    let window = Window { top: corner.0, left: corner.1, height: of.height, width: of.width, mirror: false };
    let mut middle = memory::zeros(of.count(), "a mean image")?;
    cut(&values, extent, window, &Mean::None, 1.0, &mut middle);
    Ok(Mean::Image(middle))
}

impl Transformer {
    /// The transformation of images that are like the first one, of extents `first`.
    pub fn new(param: &TransformationParameter, phase: Phase, first: Extent) -> Result<Self> {
        let of_annotated = [
            ("resize_param", !param.resize_param.is_empty()),
            ("noise_param", !param.noise_param.is_empty()),
            ("distort_param", param.distort_param.is_some()),
            ("expand_param", param.expand_param.is_some()),
            ("emit_constraint", param.emit_constraint.is_some()),
        ];
        if let Some((name, _)) = of_annotated.iter().find(|(_, given)| *given) {
            return Err(Error::config(format!("{name} is carried out by AnnotatedData alone")));
        }
        let mean = mean(param, first)?;
        Ok(Transformer {
            first,
            crop: window(param)?,
            random_crop: phase == Phase::Train,
            mirror: param.mirror(),
            mean,
            scale: param.scale(),
        })
    }

    /// Extents of every transformed image.
    pub fn output(&self) -> Extent {
        let [height, width] = self.crop.unwrap_or([self.first.height, self.first.width]);
        Extent { height, width, ..self.first }
    }

    /// Checks that an image can be transformed to [`Transformer::output`].
    pub fn check(&self, image: Extent) -> Result<(), Mismatch> {
        let (first, mean) = (self.first, matches!(self.mean, Mean::Image(_)));
        match self.crop {
            _ if image.channels != first.channels => Err(Mismatch::Channels { image, first: first.channels }),
            _ if mean && image != first => Err(Mismatch::Mean(image)),
            Some(window) if window[0] > image.height || window[1] > image.width => {
                Err(Mismatch::Crop { image, window: Asked(window) })
            }
            None if image != first => Err(Mismatch::Size { image, first }),
            _ => Ok(()),
        }
    }

    /// The window on an image that the net sees. The image must pass [`Transformer::check`].
    pub fn window(&self, of: Extent, draw: ImageDraw) -> Window {
        let Extent { height, width, .. } = of;
        let mirror = self.mirror && draw.mirror();
        let Some(window) = self.crop else { return Window::whole(of, mirror) };
        let (top, left) = match self.random_crop {
            true => draw.corner(window, height, width),
            false => ((height - window[0]) / 2, (width - window[1]) / 2),
        };
        Window { top, left, height: window[0], width: window[1], mirror }
    }

    /// Writes a transformed image to `out`. The image must pass [`Transformer::check`].
    pub fn apply(&self, image: &Image, draw: ImageDraw, out: &mut [f32]) {
        let window = self.window(image.extent, draw);
        match &image.pixels {
            Pixels::U8(p) => cut(p, image.extent, window, &self.mean, self.scale, out),
            Pixels::F32(p) => cut(p, image.extent, window, &self.mean, self.scale, out),
        }
    }
}

/// Why an image cannot be transformed; completes the sentence "the record …".
#[derive(Debug, thiserror::Error)]
pub(crate) enum Mismatch {
    #[error("is {image}, but the first image has {first} channels")]
    Channels { image: Extent, first: usize },
    #[error("is {0}, unlike the mean image")]
    Mean(Extent),
    #[error("is {image}, smaller than {window}")]
    Crop { image: Extent, window: Asked },
    #[error("is {image}, but the first image is {first}; images of several sizes need crop_size")]
    Size { image: Extent, first: Extent },
}

/// A window as the prototxt asks for it.
#[derive(Debug)]
pub(crate) struct Asked([usize; 2]);

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [height, width] if height == width => write!(f, "crop_size {height}"),
            [height, width] => write!(f, "crop_h {height} and crop_w {width}"),
        }
    }
}

/// Reads a mean image that must have the extents of the data.
pub(crate) fn read_mean(path: &Path, expected: Extent) -> Result<Vec<f32>> {
    let (found, mean) = load_mean(path)?;
    if found == expected {
        return Ok(mean);
    }
    Err(Error::data(path, format!("the mean image is {found}, expected {expected} like the data")))
}

/// The mean of each channel of a mean image of any height and width.
pub(crate) fn channel_means(path: &Path, channels: usize) -> Result<Vec<f32>> {
    let (found, mean) = load_mean(path)?;
    if found.channels != channels || mean.is_empty() {
        let what = format!("the mean image is {found}, expected {channels} channels as the net's input has");
        return Err(Error::data(path, what));
    }
    let planes = mean.chunks(mean.len() / channels);
    Ok(planes.map(|plane| (plane.iter().map(|&v| f64::from(v)).sum::<f64>() / plane.len() as f64) as f32).collect())
}

/// Reads a mean image: a BlobProto of 1 × channels × height × width, or without the 1. Of several, as Caffe, the first.
fn load_mean(path: &Path) -> Result<(Extent, Vec<f32>)> {
    if let Ok(kind) = FileKind::of(path) {
        kind.expect(FileKind::Mean, path)?;
    }
    let bytes = std::fs::read(path).map_err(Error::io(path, "read the mean file"))?;
    let blob = BlobProto::decode(&bytes[..]).map_err(|e| Error::data(path, format!("is not a BlobProto: {e}")))?;
    let dims: Vec<i64> = match &blob.shape {
        Some(shape) => shape.dim.clone(),
        None => [blob.num(), blob.channels(), blob.height(), blob.width()].map(i64::from).to_vec(),
    };
    let sizes: Vec<usize> = dims.iter().filter_map(|&d| usize::try_from(d).ok()).collect();
    let (count, extent) = match sizes[..] {
        [count, channels, height, width] if sizes.len() == dims.len() && count > 0 => {
            (count, Extent { channels, height, width })
        }
        [channels, height, width] if sizes.len() == dims.len() => (1, Extent { channels, height, width }),
        _ => {
            let what = format!("the mean image has shape {dims:?}, expected [1, channels, height, width]");
            return Err(Error::data(path, what));
        }
    };
    let mut mean = if blob.data.is_empty() { blob.double_data.iter().map(|&v| v as f32).collect() } else { blob.data };
    let expected = lgm_core::count(&[count, extent.count()]);
    if mean.len() != expected {
        return Err(Error::data(path, format!("holds {} values, expected {expected}", mean.len())));
    }
    if count > 1 {
        tracing::warn!("{}: holds {count} images; the first is taken for the mean, as in Caffe", path.display());
        mean.truncate(extent.count());
    }
    Ok((extent, mean))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::Draws;

    const OF: Extent = Extent { channels: 2, height: 2, width: 3 };

    fn image() -> Image {
        Image { extent: OF, pixels: Pixels::U8((0..12).collect()) }
    }

    fn draw() -> ImageDraw {
        Draws::new(1, "data", Phase::Train).image(0)
    }

    fn apply(param: &TransformationParameter, phase: Phase) -> Vec<f32> {
        let t = Transformer::new(param, phase, OF).unwrap();
        t.check(OF).unwrap();
        let mut out = vec![0.0; t.output().count()];
        t.apply(&image(), draw(), &mut out);
        out
    }

    #[test]
    fn test_crops_are_centred_and_means_come_off_before_scaling() {
        let param = TransformationParameter {
            crop_size: Some(1),
            mean_value: vec![1.0, 2.0],
            scale: Some(2.0),
            ..Default::default()
        };
        assert_eq!(apply(&param, Phase::Test), [0.0, 10.0]);
        assert_eq!(
            apply(&TransformationParameter::default(), Phase::Test),
            (0..12).map(|v| v as f32).collect::<Vec<_>>()
        );
    }

    #[test]
    fn train_crops_and_mirrors_cover_every_possibility() {
        let param = TransformationParameter { crop_size: Some(2), mirror: Some(true), ..Default::default() };
        let t = Transformer::new(&param, Phase::Train, OF).unwrap();
        let draws = Draws::new(1, "data", Phase::Train);
        let mut seen = std::collections::BTreeMap::new();
        for n in 0..400 {
            let mut out = [0.0; 8];
            t.apply(&image(), draws.image(n), &mut out);
            *seen.entry([out[0] as i32, out[1] as i32]).or_insert(0) += 1;
        }
        assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [[0, 1], [1, 0], [1, 2], [2, 1]]);
        assert!(seen.values().all(|&n| n > 60), "{seen:?}");
    }

    #[test]
    fn windows_need_not_be_square() {
        let param = TransformationParameter { crop_h: Some(2), crop_w: Some(1), ..Default::default() };
        assert_eq!(apply(&param, Phase::Test), [1.0, 4.0, 7.0, 10.0]);
        let columns: std::collections::BTreeSet<u32> = (0..60)
            .map(|n| {
                let t = Transformer::new(&param, Phase::Train, OF).unwrap();
                let mut out = [0.0; 4];
                t.apply(&image(), Draws::new(1, "data", Phase::Train).image(n), &mut out);
                assert_eq!([out[1], out[2], out[3]], [out[0] + 3.0, out[0] + 6.0, out[0] + 9.0]);
                out[0] as u32
            })
            .collect();
        assert_eq!(columns.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
        let both = TransformationParameter { crop_size: Some(1), ..param.clone() };
        assert_eq!(apply(&both, Phase::Test).len(), 2);
        let one = TransformationParameter { crop_w: None, ..param.clone() };
        let e = Transformer::new(&one, Phase::Test, OF).unwrap_err().to_string();
        assert!(e.contains("crop_h and crop_w") && e.contains("found 2 and 0"), "{e}");
        let large = TransformationParameter { crop_h: Some(3), ..param };
        let e = Transformer::new(&large, Phase::Test, OF).unwrap().check(OF).unwrap_err().to_string();
        assert!(e.contains("is 2 x 2 x 3, smaller than crop_h 3 and crop_w 1"), "{e}");
    }

    #[test]
    fn mean_files_old_and_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mean.binaryproto");
        let param = TransformationParameter { mean_file: Some(path.to_str().unwrap().into()), ..Default::default() };
        let old = BlobProto {
            num: Some(1),
            channels: Some(2),
            height: Some(2),
            width: Some(3),
            data: (0..12).map(|v| v as f32 - 1.0).collect(),
            ..Default::default()
        };
        std::fs::write(&path, old.encode_to_vec()).unwrap();
        assert_eq!(apply(&param, Phase::Test), [1.0; 12]);
        let new = BlobProto {
            shape: Some(lgm_proto::BlobShape { dim: vec![2, 2, 3] }),
            double_data: (0..12).map(f64::from).collect(),
            ..Default::default()
        };
        std::fs::write(&path, new.encode_to_vec()).unwrap();
        assert_eq!(apply(&param, Phase::Test), [0.0; 12]);
        // Of several images the first.
        let two = BlobProto { num: Some(2), data: [&old.data[..], &[9.0; 12]].concat(), ..old.clone() };
        std::fs::write(&path, two.encode_to_vec()).unwrap();
        assert_eq!(apply(&param, Phase::Test), [1.0; 12]);

        let fails = |what: &str| {
            let e = Transformer::new(&param, Phase::Test, OF).unwrap_err().to_string();
            assert!(e.contains(what), "{e}");
        };
        std::fs::write(&path, BlobProto { double_data: vec![1.0], ..new.clone() }.encode_to_vec()).unwrap();
        fails("holds 1 values, expected 12");
        std::fs::write(&path, BlobProto { height: Some(9), ..old.clone() }.encode_to_vec()).unwrap();
        fails("holds 12 values, expected 54");
        std::fs::write(&path, BlobProto { num: Some(2), ..old.clone() }.encode_to_vec()).unwrap();
        fails("holds 12 values, expected 24");
        std::fs::write(&path, BlobProto { num: Some(0), ..old }.encode_to_vec()).unwrap();
        fails("the mean image has shape [0, 2, 2, 3]");
        let shape = |dim: Vec<i64>| Some(lgm_proto::BlobShape { dim });
        std::fs::write(&path, BlobProto { shape: shape(vec![2, 3, 2]), ..new.clone() }.encode_to_vec()).unwrap();
        fails("the mean image is 2 x 3 x 2, expected 2 x 2 x 3 like the data");
        std::fs::write(&path, BlobProto { shape: shape(vec![2, -3]), ..new.clone() }.encode_to_vec()).unwrap();
        fails("the mean image has shape [2, -3], expected [1, channels, height, width]");
        std::fs::write(&path, [0xff]).unwrap();
        fails("is not a BlobProto");
        std::fs::remove_file(&path).unwrap();
        fails("cannot read the mean file");
    }

    #[test]
    fn contradictions_and_misfits_are_errors() {
        let both = TransformationParameter { mean_value: vec![1.0], mean_file: Some("m".into()), ..Default::default() };
        assert!(Transformer::new(&both, Phase::Test, OF).unwrap_err().to_string().contains("exclude each other"));
        let means = TransformationParameter { mean_value: vec![1.0; 3], ..Default::default() };
        let e = Transformer::new(&means, Phase::Test, OF).unwrap_err().to_string();
        assert!(e.contains("each of the 2 channels, found 3"), "{e}");
        let colors = TransformationParameter { force_color: Some(true), force_gray: Some(true), ..Default::default() };
        assert!(color(&colors).is_err());
        let crop = TransformationParameter { crop_size: Some(3), ..Default::default() };
        let t = Transformer::new(&crop, Phase::Test, OF).unwrap();
        assert!(t.check(OF).unwrap_err().to_string().contains("is 2 x 2 x 3, smaller than crop_size 3"));
        assert!(
            t.check(Extent { channels: 1, ..OF }).unwrap_err().to_string().contains("the first image has 2 channels")
        );
        assert!(t.check(Extent { height: 9, ..OF }).is_ok());
        let whole = Transformer::new(&TransformationParameter::default(), Phase::Test, OF).unwrap();
        assert!(whole.check(Extent { height: 9, ..OF }).unwrap_err().to_string().contains("need crop_size"));
    }
}
