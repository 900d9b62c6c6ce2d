//! MemoryData: batches in turn, new arrays, resumption, errors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{cx, error, open, resumes_exactly};
use lgm_core::{Phase, Shape};
use lgm_data::MemoryFeed;
use lgm_proto::{LayerParameter, MemoryDataParameter};

/// Images of 1 x 2 x 3 pixels, two a batch. Each test has a name of its own: feeds are the process's.
fn layer(name: &str) -> LayerParameter {
    LayerParameter {
        name: Some(name.into()),
        r#type: Some("MemoryData".into()),
        top: vec!["data".into(), "label".into()],
        memory_data_param: Some(MemoryDataParameter {
            batch_size: Some(2),
            channels: Some(1),
            height: Some(2),
            width: Some(3),
        }),
        ..Default::default()
    }
}

/// Image n is n all over, its label n.
fn feed(name: &str, images: usize, first: f32) {
    let labels: Vec<f32> = (0..images).map(|n| first + n as f32).collect();
    MemoryFeed::of(name, Phase::Train).set(labels.iter().flat_map(|&l| [l; 6]).collect(), labels);
}

#[test]
fn batches_come_in_turn_and_new_arrays_from_their_first() {
    feed("turn", 6, 0.0);
    let mut run = open(&layer("turn"), &cx(Phase::Train, 1)).unwrap();
    assert_eq!(run.shapes, [Shape::from([2, 1, 2, 3]), Shape::from([2])]);
    assert_eq!(run.next(), [[[0.0; 6], [1.0; 6]].concat(), vec![0.0, 1.0]]);
    assert_eq!(run.collect(1, 3), [2.0, 3.0, 4.0, 5.0, 0.0, 1.0]);
    feed("turn", 4, 10.0);
    assert_eq!(run.collect(1, 3), [10.0, 11.0, 12.0, 13.0, 10.0, 11.0]);
    let one = LayerParameter { top: vec!["data".into()], ..layer("turn") };
    assert_eq!(open(&one, &cx(Phase::Train, 1)).unwrap().next().len(), 1);
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    feed("resumed", 10, 0.0);
    resumes_exactly(&|| open(&layer("resumed"), &cx(Phase::Train, 1)).unwrap(), 8);
}

#[test]
fn arrays_that_do_not_fit_are_described() {
    let fails = |name: &str, what: &str| {
        let e = error(&layer(name), &cx(Phase::Train, 1));
        assert!(e.contains(what), "{e}");
    };
    fails("absent", "no arrays were fed: MemoryData is for programs that feed it (lgm_data::MemoryFeed)");
    let bad = MemoryFeed::of("bad", Phase::Train);
    bad.set(vec![0.0; 18], vec![0.0; 3]);
    fails("bad", "must hold a whole number of batches of 2, found 3 labels");
    bad.set(vec![], vec![]);
    fails("bad", "must hold a whole number of batches of 2, found 0 labels");
    bad.set(vec![0.0; 13], vec![0.0; 2]);
    fails("bad", "the arrays fed hold 13 values for 2 images of 1 x 2 x 3 = 6 values");
    bad.clear();
    fails("bad", "no arrays were fed");
    for (field, change) in [
        ("batch_size", (|p| p.batch_size = None) as fn(&mut MemoryDataParameter)),
        ("channels", |p| p.channels = None),
        ("height", |p| p.height = Some(0)),
        ("width", |p| p.width = None),
    ] {
        let mut layer = layer("bad");
        change(layer.memory_data_param.as_mut().unwrap());
        let e = error(&layer, &cx(Phase::Train, 1));
        assert!(e.contains(&format!("memory_data_param needs a positive {field}")), "{e}");
    }
    let tops = LayerParameter { top: vec!["a".into(); 3], ..layer("bad") };
    assert!(error(&tops, &cx(Phase::Train, 1)).contains("MemoryData takes one top, the images, or two"));
}
