//! RegionLoss, the loss of YOLO's second version: of a grid of cells with `num` boxes each, how wrong they are about where objects
//! are, whether one is there, and its class.
//!
//! A box has 5 + `num_class` channels: x, y, w, h, objectness o and a score for each class. Its centre is at
//! ((column + σ(x)) / columns, (row + σ(y)) / rows) of the image, its sides are eʷ · a / columns and eʰ · b / rows, where (a, b), a pair of
//! `biases`, is its anchor. With p = σ(o) and q the softmax of the scores, δ is 0 but for
//!
//! - every box that overlaps no object by more than `thresh` (0.2): δ(o) = `noobject_scale` · p · p (1 − p);
//! - for each object, the box of the cell where its centre is whose anchor (with `bias_match` 0, whose sides) is most like the
//!   object: δ(x) = s (σ(x) − t) σ(x) (1 − σ(x)) and so for y, δ(w) = s (w − t) and so for h, where t is what would be right;
//!   δ(o) = `object_scale` · (p − r) p (1 − p); and δ(k) = `class_scale` · (qₖ − \[k is its class\]). With `rescore` s is
//!   `coord_scale` and r the overlap of both, without s is `coord_scale` · (2 − the object's area) and r = 1.
//!
//! Top: Σ δ² / N. Gradient: dL/N · δ, which is that of half the squared errors of σ(x), σ(y), w, h and p and of the cross-entropy of q,
//! with what each box belongs to and its overlap held fixed; not that of the top.
//!
//! Bottoms: [N, `num` · (5 + `num_class`), rows, columns]; labels [N, …], for each image rows of (class, x, y, w, h), centre and sides as
//! shares of the image, the first of width 0 being the end.
//!
//! Source: Redmon and Farhadi, "YOLO9000: Better, Faster, Stronger" (2017); the layer of this name of MobileNet-YOLO's Caffe, in
//! which `side`, `softmax`, `jitter`, `absolute`, `random`, `softmax_tree` and `class_map` have no effect, as here. Where we differ:
//! `biases` must be given; a class or a centre that there is not is an error; an image has as many rows as its labels, not 300.

use lgm_core::{Arity, BlobSpec, BuildCx, Bwd, Error, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, ensure};
use lgm_cpu::elementwise::zip_into;
use lgm_cpu::for_each_row_of;
use lgm_cpu::math::{exp, sigmoid};
use lgm_proto::{LayerParameter, RegionLossParameter};

use super::boxes::{Corners, iou};

mod device;
#[cfg(test)]
mod tests;

/// The layer; see the module.
pub struct RegionLoss {
    param: RegionLossParameter,
    images: usize,
    rows: usize,
    columns: usize,
    objects: usize,
}

/// Channels of a box before its classes, and numbers of an object.
const BEFORE: usize = 5;
const OBJECT: usize = 5;
/// The channel of objectness.
const THERE: usize = 4;

/// An object: its class, centre and sides.
struct Object<T> {
    class: usize,
    place: [T; 4],
}

impl RegionLoss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.region_loss_param.as_deref().cloned().unwrap_or_default();
        let (boxes, biases) = (param.num() as usize, &param.biases);
        ensure!(boxes > 0 && param.num_class() > 0, "num and num_class must be at least 1");
        ensure!(param.coords() == 4, "coords must be 4, x, y, width and height of a box; found {}", param.coords());
        let (found, wanted) = (biases.len(), lgm_core::count(&[2, boxes]));
        ensure!(
            found >= wanted,
            "biases, the anchors' sides in cells, must be given {wanted} times for num {boxes}, found {found} times"
        );
        let wrong = biases.iter().find(|side| !(side.is_finite() && **side > 0.0));
        ensure!(wrong.is_none(), "biases must be positive, found {}", wrong.copied().unwrap_or_default());
        Node::compute(RegionLoss { param, images: 0, rows: 0, columns: 0, objects: 0 })
    }

    fn area(&self) -> usize {
        self.rows * self.columns
    }

    fn boxes(&self) -> usize {
        self.param.num() as usize
    }

    fn classes(&self) -> usize {
        self.param.num_class() as usize
    }

    /// Numbers of an image.
    fn numbers(&self) -> usize {
        self.boxes() * (BEFORE + self.classes()) * self.area()
    }

    /// Where channel 0 of box `n` of the cell `at` is.
    fn start(&self, n: usize, at: usize) -> usize {
        n * (BEFORE + self.classes()) * self.area() + at
    }

    /// The sides of an anchor as shares of the image.
    fn anchor<T: Float>(&self, n: usize) -> [T; 2] {
        [(0, self.columns), (1, self.rows)]
            .map(|(k, cells)| T::of(f64::from(self.param.biases[2 * n + k]) / cells as f64))
    }

    /// The centre and sides of box `n` of the cell `at`.
    fn place<T: Float>(&self, x: &[T], n: usize, at: usize) -> [T; 4] {
        let number = |c: usize| x[self.start(n, at) + c * self.area()];
        let [w, h] = self.anchor::<T>(n);
        let along =
            |c: usize, cell: usize, cells: usize| (T::of(cell as f64) + sigmoid(number(c))) / T::of(cells as f64);
        [
            along(0, at % self.columns, self.columns),
            along(1, at / self.columns, self.rows),
            exp(number(2)) * w,
            exp(number(3)) * h,
        ]
    }

    /// The objects of an image.
    fn objects<'a, T: Float>(&self, labels: &'a [T], image: usize) -> impl Iterator<Item = Object<T>> + use<'a, T> {
        let labels = &labels[image * self.objects * OBJECT..][..self.objects * OBJECT];
        let rows = labels.chunks_exact(OBJECT).take_while(|row| row[3] != T::zero());
        rows.map(|row| Object { class: row[0].f64() as usize, place: [row[1], row[2], row[3], row[4]] })
    }

    /// Checks the labels of an image.
    fn check<T: Float>(&self, labels: &[T], image: usize) -> Result<()> {
        let labels = &labels[image * self.objects * OBJECT..][..self.objects * OBJECT];
        for (i, row) in labels.chunks_exact(OBJECT).take_while(|row| row[3] != T::zero()).enumerate() {
            let (class, classes) = (row[0].trunc().f64(), self.classes());
            if !(0.0..classes as f64).contains(&class) {
                return Err(not_a_class(i, image, row[0].f64(), classes));
            }
            let share = |v: &T| (0.0..=1.0).contains(&v.f64());
            if !(row[1..].iter().all(share) && row[4] > T::zero()) {
                let found = format!("at ({}, {}) and {} by {} large", row[1], row[2], row[3], row[4]);
                return Err(not_a_place(i, image, &found));
            }
        }
        Ok(())
    }

    /// Writes δ of an image; gives Σ δ².
    fn delta<T: Float>(&self, x: &[T], labels: &[T], image: usize, delta: &mut [T]) -> T {
        let (p, area) = (&self.param, self.area());
        let of = |v: f32| T::of(v.into());
        delta.fill(T::zero());
        for n in 0..self.boxes() {
            for at in 0..area {
                let corners = corners(self.place(x, n, at));
                let overlap = self.objects(labels, image).map(|o| iou(corners, self::corners(o.place)));
                if overlap.fold(T::zero(), T::max) <= of(p.thresh()) {
                    let there = self.start(n, at) + THERE * area;
                    let sure = sigmoid(x[there]);
                    delta[there] = of(p.noobject_scale()) * sure * slope(sure);
                }
            }
        }
        for Object { class, place } in self.objects(labels, image) {
            let cell = |k: usize, cells: usize| ((place[k].f64() * cells as f64) as usize).min(cells - 1);
            let at = cell(1, self.rows) * self.columns + cell(0, self.columns);
            let alike = |n: usize| {
                let [w, h] = self.anchor(n);
                let [.., width, height] =
                    if p.bias_match() != 0 { [T::zero(), T::zero(), w, h] } else { self.place(x, n, at) };
                iou(corners([T::zero(), T::zero(), width, height]), corners([T::zero(), T::zero(), place[2], place[3]]))
            };
            let best = (1..self.boxes()).fold(0, |best, n| if alike(n) > alike(best) { n } else { best });
            let start = self.start(best, at);
            let number = |c: usize| x[start + c * area];
            let overlap = iou(corners(self.place(x, best, at)), corners(place));
            let (scale, sureness) = match p.rescore() != 0 {
                true => (of(p.coord_scale()), overlap),
                false => (of(p.coord_scale()) * (T::of(2.0) - place[2] * place[3]), T::one()),
            };
            let anchor = self.anchor::<T>(best);
            for (k, cells) in [(0, self.columns), (1, self.rows)] {
                let (found, wanted) =
                    (sigmoid(number(k)), place[k] * T::of(cells as f64) - T::of(cell(k, cells) as f64));
                delta[start + k * area] = scale * (found - wanted) * slope(found);
                delta[start + (2 + k) * area] = scale * (number(2 + k) - (place[2 + k] / anchor[k]).ln());
            }
            let sure = sigmoid(number(THERE));
            delta[start + THERE * area] = of(p.object_scale()) * (sure - sureness) * slope(sure);
            let scores = || (0..self.classes()).map(|k| number(BEFORE + k));
            let most = scores().fold(T::neg_infinity(), T::max);
            let sum: T = scores().map(|score| exp(score - most)).sum();
            for (k, score) in scores().enumerate() {
                let wanted = if k == class { T::one() } else { T::zero() };
                delta[start + (BEFORE + k) * area] = of(p.class_scale()) * (exp(score - most) / sum - wanted);
            }
        }
        delta.iter().map(|&d| d * d).sum()
    }
}

fn not_a_class(i: usize, image: usize, class: f64, classes: usize) -> Error {
    Error::config(format!(
        "object {i} of image {image} of the batch has class {class}, which is not one of the {classes} of num_class, 0 to {}",
        classes - 1
    ))
}

fn not_a_place(i: usize, image: usize, found: &str) -> Error {
    Error::config(format!(
        "object {i} of image {image} of the batch is {found}, where a centre and sides as shares of the image, from 0 to 1, were \
         expected"
    ))
}

/// The corners of a box of a centre and sides.
fn corners<T: Float>([x, y, w, h]: [T; 4]) -> Corners<T> {
    let half = T::of(0.5);
    [x - half * w, y - half * h, x + half * w, y + half * h]
}

/// The derivative of a logistic function where its value is `v`.
fn slope<T: Float>(v: T) -> T {
    v * (T::one() - v)
}

impl Layer for RegionLoss {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=1).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (shape, labels) = (&bottoms[0].shape, &bottoms[1].shape);
        let channels = lgm_core::count(&[self.boxes(), BEFORE + self.classes()]);
        ensure!(
            shape.len() == 4 && shape[1] == channels && shape.count() > 0,
            "bottom 0 must be of shape (images, num · (5 + num_class) = {channels}, rows, columns), found {shape}"
        );
        (self.images, self.rows, self.columns) = (shape[0], shape[2], shape[3]);
        let found = labels.count();
        if labels.first() != Some(&self.images) || !found.is_multiple_of(self.images * OBJECT) {
            return Err(Error::config(format!(
                "bottom 1, the labels of {} images, must have rows of {OBJECT} numbers (class, x, y, width, height) for each, found \
                 shape {labels}",
                self.images
            )));
        }
        self.objects = found / (self.images * OBJECT);
        let flops =
            (shape.count() as u64 / channels as u64).saturating_mul((self.boxes() * (40 + 20 * self.objects)) as u64);
        Ok(Plan {
            saved: vec![bottoms[0].clone()],
            scratch: vec![bottoms[0].clone(), bottoms[0].with_shape([self.images])],
            flops,
            ..Plan::loss(bottoms[0].dtype)
        })
    }
}

impl HostLayer for RegionLoss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        (0..self.images).try_for_each(|image| self.check(labels, image))?;
        let delta = io.saved::<T>(0)?.map_or_else(|| io.scratch(0), Ok)?;
        let (sums, numbers) = (io.scratch::<T>(1)?, self.numbers());
        for_each_row_of([(delta, numbers), (&mut *sums, 1)], self.images, 1, |image, [delta, sum]| {
            sum[0] = self.delta(&x[image * numbers..][..numbers], labels, image, delta);
        });
        let loss: f64 = sums.iter().map(|sum| sum.f64()).sum();
        io.top::<T>(0)?[0] = T::of(loss / self.images as f64);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (delta, d_loss) = (io.saved::<T>(0)?, io.top_diff::<T>(0)?[0]);
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            let scale = d_loss / T::of(self.images as f64);
            zip_into(delta, dx, |_, d| scale * d);
        }
        Ok(())
    }
}
