use lgm_core::{Result, Shape};
use lgm_proto::BlobProto;
use lgm_proto::prost::Message;
use lgm_testkit::{Case, Fill, check, config_error};

fn text(bottoms: usize, tops: usize, fields: &str) -> String {
    let bottoms: String = ["x", "y", "h"].into_iter().take(bottoms).map(|b| format!("bottom: '{b}' ")).collect();
    let tops: String = ["l", "p"].into_iter().take(tops).map(|t| format!("top: '{t}' ")).collect();
    format!("layer {{ name: 'i' type: 'InfogainLoss' {bottoms} {tops} {fields} }}")
}

#[test]
fn cases() {
    let golden = [0, 1, 2, 3].map(|i| Case::golden(&format!("layers/infogain_{i}")));
    let mut cases = golden.to_vec();
    let labels = || Fill::Given(vec![0.0, 2.0, 1.0, 255.0, 1.0, 0.0]);
    for mode in ["FULL", "VALID", "BATCH_SIZE", "NONE"] {
        let fields = format!("loss_param {{ normalization: {mode} ignore_label: 255 }}");
        for tops in [1, 2] {
            let case = Case::new(text(3, tops, &fields)).bottom([2, 3, 3]).bottom_of([2, 3], labels());
            cases.push(case.bottom([3, 3]));
        }
    }
    let case = |fields: &str| Case::new(text(3, 1, fields));
    cases.extend([
        case("").bottom([5, 4]).bottom_of([5], Fill::Labels(4)).bottom([1, 1, 4, 4]),
        case("infogain_loss_param { axis: -1 }").bottom([2, 3, 4]).bottom_of([2, 3], Fill::Labels(4)).bottom([4, 4]),
        // Nothing counts.
        case("loss_param { ignore_label: 0 }").bottom([3, 2]).bottom_of([3], Fill::Given(vec![0.0; 3])).bottom([2, 2]),
        // Probabilities below those that count.
        case("")
            .bottom_of([1, 3], Fill::Given(vec![0.0, 100.0, 50.0]))
            .bottom_of([1], Fill::Given(vec![0.0]))
            .bottom_of([3, 3], Fill::Given(vec![1.0; 9]))
            .without_gradients(),
        case("").bottom([40, 70]).bottom_of([40], Fill::Labels(70)).bottom([70, 70]).without_gradients(),
        case("").bottom([2, 5, 400]).bottom_of([2, 400], Fill::Labels(5)).bottom([5, 5]).without_gradients(),
    ]);
    check(&crate::tests::registry(), &cases);
}

#[test]
fn mistakes_are_named() {
    let registry = crate::tests::registry();
    let fails = |text: &str, shapes: &[Shape], needles: &[&str]| config_error(&registry, text, shapes, needles);
    let two: [Shape; 2] = [[2, 3].into(), [2].into()];
    fails(&text(2, 1, ""), &two, &["infogain_loss_param.source", "third bottom"]);
    fails(&text(2, 1, "loss_param { normalize: true }"), &two, &["normalize", "normalization: VALID"]);
    fails(&text(2, 1, "infogain_loss_param { axis: 2 source: 'm' }"), &two, &["axis 2"]);
    fails(&text(2, 1, ""), &[[2, 3].into(), [3].into()], &["expected 2", "found 3"]);
    let three = [[2, 3].into(), [2].into(), [2, 3].into()];
    fails(&text(3, 1, ""), &three, &["infogain matrix", "(2, 3)", "3 × 3"]);
}

#[test]
fn a_file_that_is_no_matrix_of_the_classes_is_named() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("lgm-infogain-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(lgm_core::Error::io(&folder, "make"))?;
    let path = folder.join("matrix.binaryproto");
    let layer = text(2, 1, &format!("infogain_loss_param {{ source: '{}' }}", path.display()));
    let fails = |needles: &[&str]| {
        config_error(&crate::tests::registry(), &layer, &[[2, 3].into(), [2].into()], needles);
    };
    fails(&["matrix.binaryproto"]);
    for (bytes, needles) in [
        (BlobProto::from_f32(&[2, 3], vec![1.0; 6], None).encode_to_vec(), ["[2, 3]", "3 × 3"]),
        (BlobProto::from_f32(&[3, 3], vec![1.0; 8], None).encode_to_vec(), ["9", "8"]),
        (b"what is this".to_vec(), ["matrix.binaryproto", ""]),
    ] {
        std::fs::write(&path, bytes).map_err(lgm_core::Error::io(&path, "write"))?;
        fails(&needles);
    }
    std::fs::remove_dir_all(&folder).map_err(lgm_core::Error::io(&folder, "remove"))
}
