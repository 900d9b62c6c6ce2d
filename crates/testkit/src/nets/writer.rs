//! A net in the making: its text, and the blobs that later layers can read.

use std::fmt::Write;
use std::sync::Arc;

/// The type of a layer without a device half, which the test must register ([`crate::HostOnly`]).
pub const HOST_ONLY: &str = "HostOnly";

/// Most elements of a blob: nets are to be quick.
const LARGEST: usize = 4096;

/// A blob as the layers so far leave it.
#[derive(Clone, Debug)]
pub struct Blob {
    pub name: String,
    pub shape: Vec<usize>,
    /// Somebody reads it, so that no layer may run in place on it.
    pub read: bool,
    /// Something learned is behind it.
    pub learned: bool,
}

/// See the module.
pub struct Writer {
    /// The types of element-wise layers.
    pub elementwise: Arc<[&'static str]>,
    text: String,
    pub blobs: Vec<Blob>,
    layers: usize,
    pub losses: usize,
}

/// How a layer is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Its top takes the place of its first bottom, if no other layer reads that.
    pub in_place: bool,
    /// Its top weighs in the loss.
    pub loss: bool,
    /// It passes no gradient to its bottoms.
    pub blocked: bool,
    /// It has parameters that are learned.
    pub learns: bool,
}

impl Manner {
    /// From a pick: plain, or in place, rarely with a loss of its own or without a gradient to its bottoms.
    pub fn of(pick: u8) -> Manner {
        let rare = pick >> 1;
        Manner { in_place: pick & 1 == 1, loss: rare % 16 == 9, blocked: rare % 32 == 23, learns: false }
    }

    pub fn learning(self) -> Manner {
        Manner { learns: true, ..self }
    }
}

impl Writer {
    /// A net with images x.
    pub fn new(elementwise: Arc<[&'static str]>, [batch, channels, height, width, force]: [u8; 5]) -> Writer {
        let mut writer = Writer { elementwise, text: String::new(), blobs: Vec::new(), layers: 0, losses: 0 };
        if force % 8 == 7 {
            writer.text.push_str("force_backward: true\n");
        }
        let channels = [4, 3, 8, 16, 1, 5][channels as usize % 6];
        writer.data(&[2 + batch as usize % 3, channels, 4 + height as usize % 5, 4 + width as usize % 5]);
        writer
    }

    pub fn finish(self) -> String {
        self.text
    }

    fn dims(shape: &[usize]) -> String {
        shape.iter().map(|d| format!("dim: {d} ")).collect()
    }

    /// A blob of gaussian numbers.
    pub fn data(&mut self, shape: &[usize]) -> usize {
        let body =
            format!("dummy_data_param {{ shape {{ {}}} data_filler {{ type: 'gaussian' }} }}", Self::dims(shape));
        self.layer("DummyData", &[], vec![shape.to_vec()], Manner::default(), &body)[0]
    }

    /// Labels of a class for each of so many.
    pub fn labels(&mut self, shape: &[usize], class: usize) -> usize {
        let filler = format!("data_filler {{ value: {class} }}");
        let body = format!("dummy_data_param {{ shape {{ {}}} {filler} }}", Self::dims(shape));
        let label = self.layer("DummyData", &[], vec![shape.to_vec()], Manner::default(), &body)[0];
        // For its loss alone.
        self.blobs[label].read = true;
        label
    }

    /// The blob that a pick chooses of those that suit: the latest, mostly.
    pub fn blob(&self, pick: u8, suits: impl Fn(&Blob) -> bool) -> Option<usize> {
        let found: Vec<usize> = (0..self.blobs.len()).filter(|&b| suits(&self.blobs[b])).collect();
        let back = if pick < 144 { 0 } else { pick as usize % found.len().max(1) };
        found.get(found.len().checked_sub(1 + back)?).copied()
    }

    /// As [`Writer::blob`], of images.
    pub fn image(&self, pick: u8) -> Option<usize> {
        self.blob(pick, |b| b.shape.len() == 4)
    }

    pub fn shape(&self, blob: usize) -> &[usize] {
        &self.blobs[blob].shape
    }

    /// Writes a layer; the tops, none where one would be empty or too large.
    pub fn try_layer(
        &mut self,
        kind: &str,
        bottoms: &[usize],
        shapes: Vec<Vec<usize>>,
        manner: Manner,
        body: &str,
    ) -> Option<Vec<usize>> {
        let count = |shape: &Vec<usize>| shape.iter().product::<usize>();
        let fits = shapes.iter().all(|shape| (1..=LARGEST).contains(&count(shape)));
        fits.then(|| self.layer(kind, bottoms, shapes, manner, body))
    }

    /// As [`Writer::try_layer`], for tops that are known to be of a good size.
    pub fn layer(
        &mut self,
        kind: &str,
        bottoms: &[usize],
        shapes: Vec<Vec<usize>>,
        manner: Manner,
        body: &str,
    ) -> Vec<usize> {
        self.layers += 1;
        let mut text = format!("layer {{ name: 'l{}' type: '{kind}'", self.layers);
        for &b in bottoms {
            let _ = write!(text, " bottom: '{}'", self.blobs[b].name);
        }
        let first = bottoms.first().copied();
        let twice = bottoms.iter().skip(1).any(|&b| Some(b) == first);
        let in_place =
            first.filter(|&b| manner.in_place && !twice && !self.blobs[b].read && shapes[0] == self.blobs[b].shape);
        let behind = bottoms.iter().any(|&b| self.blobs[b].learned);
        for &b in bottoms {
            self.blobs[b].read = true;
        }
        let mut tops = Vec::new();
        for (t, shape) in shapes.into_iter().enumerate() {
            let name = match in_place.filter(|_| t == 0) {
                // The earlier version is out of reach now.
                Some(b) => self.blobs.remove(b).name,
                None => format!("{}{}", if bottoms.is_empty() { "x" } else { "b" }, self.layers * 10 + t),
            };
            let _ = write!(text, " top: '{name}'");
            tops.push(Blob { name, shape, read: false, learned: behind || manner.learns });
        }
        if manner.loss && tops.len() == 1 {
            let count = tops[0].shape.iter().product::<usize>();
            let _ = write!(text, " loss_weight: {}", 0.1 / count as f32);
            self.losses += usize::from(tops[0].learned);
            // The loss reads it.
            tops[0].read = true;
        }
        if manner.blocked && !bottoms.is_empty() {
            text.push_str(&" propagate_down: false".repeat(bottoms.len()));
        }
        let _ = writeln!(self.text, "{text} {body} }}");
        let start = self.blobs.len();
        self.blobs.extend(tops);
        (start..self.blobs.len()).collect()
    }
}
