//! Objects of an image, and what becomes of their boxes where the image is cut, padded or resized.

use lgm_proto::emit_constraint::EmitType;
use lgm_proto::{Annotation, AnnotationGroup, EmitConstraint, NormalizedBBox};

/// xmin, ymin, xmax, ymax as fractions of an image's width and height.
pub(crate) type Corners = [f32; 4];

/// An object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Object {
    /// Its class.
    pub class: i32,
    /// Its number among those of its class.
    pub instance: i32,
    /// Where it is.
    pub corners: Corners,
    /// Whether it is marked as hard to recognize.
    pub difficult: bool,
}

/// The objects of a record, in its order.
pub(super) fn objects(groups: &[AnnotationGroup]) -> Vec<Object> {
    let object = |class: i32, a: &Annotation| {
        let b = a.bbox.unwrap_or_default();
        let corners = [b.xmin(), b.ymin(), b.xmax(), b.ymax()];
        Object { class, instance: a.instance_id(), corners, difficult: b.difficult() }
    };
    groups.iter().flat_map(|g| g.annotation.iter().map(move |a| object(g.group_label(), a))).collect()
}

/// The objects as a record has them: those of a class together, in the order in which classes come.
pub(crate) fn groups(objects: &[(i32, Corners, bool)]) -> Vec<AnnotationGroup> {
    let mut groups: Vec<AnnotationGroup> = Vec::new();
    for &(class, [xmin, ymin, xmax, ymax], difficult) in objects {
        let bbox = NormalizedBBox {
            xmin: Some(xmin),
            ymin: Some(ymin),
            xmax: Some(xmax),
            ymax: Some(ymax),
            difficult: Some(difficult),
            ..Default::default()
        };
        let place = groups.iter().position(|g| g.group_label() == class).unwrap_or_else(|| {
            groups.push(AnnotationGroup { group_label: Some(class), annotation: Vec::new() });
            groups.len() - 1
        });
        let annotation = &mut groups[place].annotation;
        let instance_id = Some(annotation.len() as i32);
        annotation.push(Annotation { instance_id, bbox: Some(bbox), ..Default::default() });
    }
    groups
}

/// The area, 0 of a box whose corners are the wrong way round.
fn area([x1, y1, x2, y2]: Corners) -> f32 {
    if x2 < x1 || y2 < y1 { 0.0 } else { (x2 - x1) * (y2 - y1) }
}

/// The area that two boxes have in common.
fn common(a: Corners, b: Corners) -> f32 {
    let side = |k: usize| (a[k + 2].min(b[k + 2]) - a[k].max(b[k])).max(0.0);
    side(0) * side(1)
}

/// Intersection over union.
pub(super) fn iou(a: Corners, b: Corners) -> f32 {
    let common = common(a, b);
    if common > 0.0 { common / (area(a) + area(b) - common) } else { 0.0 }
}

/// The part of `a` that lies in `b`.
pub(super) fn coverage(a: Corners, b: Corners) -> f32 {
    let common = common(a, b);
    if common > 0.0 { common / area(a) } else { 0.0 }
}

/// A box with its corners in the image.
pub(super) fn clip(corners: Corners) -> Corners {
    corners.map(|v| v.clamp(0.0, 1.0))
}

/// What of a box lies in a window, as fractions of that; none where nothing does.
pub(super) fn project(window: Corners, corners: Corners) -> Option<Corners> {
    let outside = (0..2).any(|k| corners[k] >= window[k + 2] || corners[k + 2] <= window[k]);
    let within = clip(std::array::from_fn(|k| (corners[k] - window[k % 2]) / (window[k % 2 + 2] - window[k % 2])));
    (!outside && area(within) > 0.0).then_some(within)
}

/// Whether an object is kept that is seen through a window (`emit_constraint`).
fn is_kept(window: Corners, corners: Corners, constraint: Option<&EmitConstraint>) -> bool {
    match constraint.map(|c| (c.emit_type(), c.emit_overlap())) {
        None => true,
        Some((EmitType::Center, _)) => {
            let center = [0, 1].map(|k| (corners[k] + corners[k + 2]) / 2.0);
            (0..2).all(|k| (window[k]..=window[k + 2]).contains(&center[k]))
        }
        Some((EmitType::MinOverlap, least)) => coverage(corners, window) > least,
    }
}

/// Leaves of the objects those that are kept where the image becomes what a window shows of it, as fractions of that.
pub(super) fn see(objects: &mut Vec<Object>, window: Corners, constraint: Option<&EmitConstraint>) {
    objects.retain_mut(|object| {
        let seen = project(window, object.corners).filter(|_| is_kept(window, object.corners, constraint));
        object.corners = seen.unwrap_or(object.corners);
        seen.is_some()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(corners: Corners) -> Object {
        Object { class: 1, instance: 0, corners, difficult: false }
    }

    #[test]
    fn records_hold_objects_by_class() {
        let box_at = |x: f32| [x, 0.1, x + 0.1, 0.2];
        let list = [(2, box_at(0.0), false), (1, box_at(0.25), true), (2, box_at(0.5), false)];
        let found = objects(&groups(&list));
        let told: Vec<_> = found.iter().map(|o| (o.class, o.instance, o.corners[0], o.difficult)).collect();
        assert_eq!(told, [(2, 0, 0.0, false), (2, 1, 0.5, false), (1, 0, 0.25, true)]);
    }

    #[test]
    fn overlaps() {
        let (a, b) = ([0.0, 0.0, 0.5, 0.5], [0.25, 0.0, 0.75, 0.5]);
        assert_eq!((iou(a, b), coverage(a, b), coverage(b, [0.0, 0.0, 1.0, 1.0])), (1.0 / 3.0, 0.5, 1.0));
        assert_eq!((iou(a, [0.5, 0.0, 1.0, 1.0]), coverage([0.3; 4], a)), (0.0, 0.0));
    }

    #[test]
    fn objects_are_seen_through_windows() {
        let window = [0.5, 0.0, 1.0, 0.5];
        let seen = |corners, constraint: Option<&EmitConstraint>| {
            let mut objects = vec![object(corners)];
            see(&mut objects, window, constraint);
            objects.first().map(|o| o.corners)
        };
        assert_eq!(seen([0.25, 0.25, 0.75, 0.5], None), Some([0.0, 0.5, 0.5, 1.0]));
        assert_eq!(seen([0.0, 0.0, 0.5, 0.5], None), None, "an edge");
        let center = EmitConstraint { emit_type: Some(EmitType::Center as i32), emit_overlap: None };
        assert!(seen([0.25, 0.25, 0.75, 0.5], Some(&center)).is_some());
        assert_eq!(seen([0.2, 0.25, 0.75, 0.5], Some(&center)), None);
        let half = EmitConstraint { emit_type: Some(EmitType::MinOverlap as i32), emit_overlap: Some(0.5) };
        assert_eq!(seen([0.25, 0.25, 0.75, 0.5], Some(&half)), None);
        assert!(seen([0.26, 0.25, 0.75, 0.5], Some(&half)).is_some());
        // A larger window, as of an image that was padded.
        let mut objects = vec![object([0.0, 0.0, 1.0, 0.5])];
        see(&mut objects, [-1.0, -1.0, 1.0, 1.0], None);
        assert_eq!(objects[0].corners, [0.5, 0.5, 1.0, 0.75]);
    }
}
