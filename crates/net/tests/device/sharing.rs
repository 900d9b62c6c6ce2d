//! Test nets with the training net's parameters, and nets that do not fit or do not belong together.

use std::rc::Rc;

use lgm_core::{Phase, Storage};
use lgm_cuda::Gpu;
use lgm_cuda::sim::Order;
use lgm_net::{DeviceUpdate, Net, Options, Pass, SOLVER_WORDS};
use lgm_testkit::{device, says};

use crate::common::{self, gaussian, options, step};
use crate::nets::*;

#[test]
fn test_nets_use_the_training_nets_memory_on_the_device() {
    let Some(gpu) = device(Order::Forward, None, Storage::default()) else { return };
    let text = gaussian("x", &[3, 4]) + &product("ip", "x", 2, "");
    let mut train = try_net(&text, &on(&gpu, options())).unwrap();
    let more = text.clone() + &layer("own", "Scale", &["ip"], &["own"], "scale_param { filler { value: 3 } }");
    let in_test = on(&gpu, Options { seed: 9, ..Options::new(Phase::Test, 9) });
    let mut test = sharing(&train, &more, &in_test).unwrap();
    assert_eq!(test.layer_params("ip").unwrap(), train.layer_params("ip").unwrap(), "neither copied nor filled anew");
    assert_eq!(test.layer_params("own").unwrap()[0].1, [3.0; 2]);
    assert!(train.param_bytes() >= 2 * 40 && test.param_bytes() == 64, "{} bytes of its own", test.param_bytes());
    assert!(test.on_device().unwrap().params().is_none());
    let mut score = |train: &mut Net| {
        train
            .lend_params(&mut test, |net| {
                for batch in 0..3 {
                    let pass = Pass { clear: batch == 0, forward: true, accumulate: true, ..Default::default() };
                    net.pass(pass, &step(batch), None)?;
                }
                net.sums()
            })
            .unwrap()
            .1
    };
    let before = score(&mut train);
    assert_eq!((before[0].0.as_str(), before[0].1.len()), ("own", 6));
    let mut plain = try_net(&text, &Options::new(Phase::Test, 1)).unwrap();
    let mut want = vec![0.0; 6];
    for batch in 0..3 {
        plain.forward(&step(batch)).unwrap();
        want.iter_mut().zip(common::data(&plain, "ip")).for_each(|(sum, x)| *sum += 3.0 * x);
    }
    near("sums", &before[0].1, &want);
    // The recorded pass reads what training has changed, in place.
    let params = train.on_device().unwrap().params().unwrap();
    gpu.zero(params.data, params.bytes).unwrap();
    assert_eq!(score(&mut train)[0].1, [0.0; 6]);
    assert_eq!(test.layer_params("ip").unwrap()[0].1, [0.0; 8]);
    // The memory outlives the net that took it.
    drop(train);
    assert_eq!(test.layer_params("ip").unwrap()[0].1, [0.0; 8]);
    let stranger = try_net(&more, &in_test).unwrap();
    let mut train = try_net(&text, &on(&gpu, options())).unwrap();
    let mut lends = |net: &mut Net| train.lend_params(net, |_| Ok(()));
    assert!(lends(&mut test).is_err() && lends(&mut { stranger }).is_err());
}

/// Of one parameter of the training net, several of the test net's layers have the address.
#[test]
fn layers_that_share_in_training_alone_share_in_a_test_too() {
    let Some(gpu) = device(Order::Forward, None, Storage::default()) else { return };
    let pair = |share: &str| gaussian("x", &[3, 4]) + &product("one", "x", 4, share) + &product("two", "one", 4, share);
    let mut train = try_net(&pair("param { name: 'w' }"), &on(&gpu, options())).unwrap();
    let mut test = sharing(&train, &pair(""), &on(&gpu, options())).unwrap();
    let score = |net: &mut Net| net.forward(&step(0)).map(|_| common::data(net, "two"));
    let want = score(&mut train).unwrap();
    assert_eq!(train.lend_params(&mut test, score).unwrap(), want);
}

#[test]
fn a_test_net_whose_layers_disagree_is_refused() {
    let Some(gpu) = device(Order::Forward, None, Storage::default()) else { return };
    let text = |outputs: usize| gaussian("x", &[3, 4]) + &product("ip", "x", outputs, "");
    let train = try_net(&text(2), &on(&gpu, options())).unwrap();
    let Err(error) = sharing(&train, &text(3), &on(&gpu, Options::new(Phase::Test, 1))) else {
        panic!("another shape was accepted")
    };
    says(&error.to_string(), &["layer 'ip' (InnerProduct)", "the training net's", "(2, 4)", "(3, 4)"]);
    assert!(sharing(&train, &text(2), &Options::new(Phase::Test, 1)).is_err(), "on the host");
}

#[test]
fn a_net_that_does_not_fit_says_what_would() {
    let Some(gpu) = device(Order::Forward, Some(100_000), Storage::default()) else { return };
    let text = |batch: usize| {
        gaussian("x", &[batch, 100])
            + &product("ip", "x", 100, "")
            + "layer { name: 'l' type: 'Reduction' bottom: 'ip' top: 'l' loss_weight: 1 }"
    };
    // 3 times 40 448 bytes for parameters, gradients and a history are too many as it is.
    let error = |batch: usize, gpu: &Rc<dyn Gpu>| match try_net(&text(batch), &on(gpu, options())) {
        Ok(_) => panic!("{batch} was accepted"),
        Err(error) => error.to_string(),
    };
    says(
        &error(100, &gpu),
        &["does not fit on the simulated GPU", "it needs ", "for parameters", "not even one image"],
    );
    let Some(gpu) = device(Order::Forward, Some(200_000), Storage::default()) else { return };
    let text = error(1000, &gpu);
    says(&text, &["does not fit", "KiB are free", "a batch of about ", " would fit, where it is 1000 now"]);
    let about: usize = text.split("about ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((20..200).contains(&about), "{about}");
    assert!(
        try_net(&(self::gaussian("x", &[about / 2, 100]) + &product("ip", "x", 100, "")), &on(&gpu, options())).is_ok()
    );
}

#[test]
fn a_label_outside_the_classes_names_the_layer() {
    let Some(gpu) = device(Order::Reversed, None, Storage::default()) else { return };
    let text = gaussian("x", &[4, 3])
        + "layer { name: 'label' type: 'Input' top: 'label' input_param { shape { dim: 4 } } }"
        + &layer("loss", "SoftmaxWithLoss", &["x", "label"], &["loss"], "");
    let mut net = try_net(&text, &on(&gpu, options())).unwrap();
    net.set_blob("label", &[0.0, 1.0, 2.0, 0.0]).unwrap();
    net.forward(&step(0)).unwrap();
    net.set_blob("label", &[0.0, 7.0, 2.0, 9.0]).unwrap();
    let error = net.forward(&step(1)).unwrap_err().to_string();
    says(&error, &["layer 'loss' (SoftmaxWithLoss)", "7"]);
}

#[test]
fn nets_of_other_types_and_mixed_memory_are_refused() {
    let Some(gpu) = device(Order::Forward, None, Storage::default()) else { return };
    let text = gaussian("x", &[3, 4]) + &product("ip", "x", 2, "");
    let double = Options { dtype: lgm_core::DType::F64, ..options() };
    let Err(error) = try_net(&text, &on(&gpu, double)) else { panic!("double precision was accepted") };
    says(&error.to_string(), &["run on the CPU only"]);
    let mut host = try_net(&text, &options()).unwrap();
    let mut device = try_net(&text, &on(&gpu, options())).unwrap();
    assert!(host.lend_params(&mut device, |_| Ok(())).is_err());
    assert!(device.learnable::<f32>(0).is_err());
    let update = DeviceUpdate { launches: &[], words: [0; SOLVER_WORDS] };
    assert!(host.pass(Pass::NOTHING, &step(0), Some(&update)).is_err(), "an update for a device");
    assert!(host.on_device().is_none() && host.loss().unwrap() == 0.0);
}
