//! What a solver's prototxt asks for, checked before anything is built.

use lgm_core::{Error, Result};
use lgm_net::expect_kind;
use lgm_proto::{FileKind, NetParameter, Parsed, Positions, SolverParameter, check_numbers, strings};
use tracing::warn;

use crate::detection::Precision;
use crate::rate::{MomentumPolicy, Policy};
use crate::rules::Rule;

/// An error about one field of the solver, with its place in the prototxt.
pub(crate) fn field_error(positions: &Positions, field: &str, source: Error) -> Error {
    let name = field.split('[').next().unwrap_or(field);
    source.in_field(name, positions.nearest(field))
}

/// Refuses settings that cannot work.
pub(crate) fn check(parsed: &Parsed<SolverParameter>) -> Result<()> {
    let (p, at) = (&parsed.message, &parsed.positions);
    let fail = |field: &str, text: String| Err(field_error(at, field, Error::Config(text)));
    check_numbers(p, at)?;
    Rule::of(p).map_err(|e| field_error(at, "type", e))?;
    if p.lr_policy.is_none() {
        return fail("lr_policy", "is missing; for a constant rate say \"fixed\"".into());
    }
    let policy = Policy::of(p).map_err(|e| field_error(at, "lr_policy", e))?;
    if !["L1", "L2"].contains(&p.regularization_type()) {
        let e = Error::unknown_among("unknown value", p.regularization_type(), &["L1", "L2"]);
        return Err(field_error(at, "regularization_type", e));
    }
    if !["classification", "detection"].contains(&p.eval_type()) {
        let e = Error::unknown_among("unknown value", p.eval_type(), &["classification", "detection"]);
        return Err(field_error(at, "eval_type", e));
    }
    Precision::named(p.ap_version()).map_err(|e| field_error(at, "ap_version", e))?;
    let positive = [("average_loss", p.average_loss()), ("iter_size", p.iter_size())];
    for (field, value) in positive {
        if value < 1 {
            return fail(field, format!("must be at least 1, found {value}"));
        }
    }
    let not_negative = [("display", p.display()), ("snapshot", p.snapshot()), ("test_interval", p.test_interval())];
    for (field, value) in not_negative {
        if value < 0 {
            return fail(field, format!("must not be negative, found {value}"));
        }
    }
    if matches!(policy, Policy::Step | Policy::Sigmoid) && p.stepsize() <= 0 {
        return fail(
            "stepsize",
            format!("lr_policy \"{}\" needs a positive stepsize, found {}", p.lr_policy(), p.stepsize()),
        );
    }
    if policy == Policy::MultiStep
        && let Some(i) = p.stepvalue.windows(2).position(|two| two[0] > two[1])
    {
        let text = format!("must ascend, found {} before {}", p.stepvalue[i], p.stepvalue[i + 1]);
        return fail(&format!("stepvalue[{}]", i + 1), text);
    }
    if policy == Policy::MultiFixed && (p.stagelr.is_empty() || p.stagelr.len() != p.stageiter.len()) {
        let (rates, ends) = (p.stagelr.len(), p.stageiter.len());
        let text = format!(
            "lr_policy \"multifixed\" needs as many stagelr as stageiter, found {rates} stagelr and {ends} stageiter"
        );
        return fail("stagelr", text);
    }
    check_forks(p).map_err(|(field, error)| field_error(at, field, error))?;
    if ["AdaGrad", "RMSProp"].contains(&p.r#type()) && p.momentum() != 0.0 {
        return fail("momentum", format!("momentum cannot be used with {}, found {}", p.r#type(), p.momentum()));
    }
    if p.snapshot() > 0 && p.snapshot_prefix.is_none() {
        return fail("snapshot", "is given but snapshot_prefix is not".into());
    }
    if p.max_iter.is_none() {
        warn!("solver: max_iter is not given, so there are 0 iterations and nothing will be trained, as in Caffe");
    }
    if p.base_lr.is_none() {
        warn!("solver: base_lr is not given, so the learning rate is 0 and nothing will be learned");
    }
    Ok(())
}

/// Refuses settings of forks that cannot work, with their field.
fn check_forks(p: &SolverParameter) -> std::result::Result<(), (&'static str, Error)> {
    let momentum = MomentumPolicy::of(p).map_err(|error| ("momentum_policy", error))?;
    if !["scale", "clip"].contains(&p.larc_policy()) {
        return Err(("larc_policy", Error::unknown_among("unknown value", p.larc_policy(), &["scale", "clip"])));
    }
    if p.larc() && p.local_lr_auto() {
        return Err(("larc", Error::config("and local_lr_auto are two ways to the same; take one out")));
    }
    let of_sgd = [
        ("larc", p.larc()),
        ("local_lr_auto", p.local_lr_auto()),
        ("momentum_policy", momentum != MomentumPolicy::Fixed),
    ];
    match of_sgd.into_iter().find(|(_, set)| *set && p.r#type() != Rule::Sgd.name()) {
        Some((field, _)) => {
            Err((field, Error::config(format!("works with type \"SGD\" only, found \"{}\"", p.r#type()))))
        }
        None => Ok(()),
    }
}

/// A net that a solver names, and what to say of where it came from.
pub(crate) struct NetSource {
    pub net: Parsed<NetParameter>,
    pub said: String,
}

/// Reads the net that a field names; an error in it says which field where none says which line of the net.
fn read(path: &str, positions: &Positions, field: &str) -> Result<Parsed<NetParameter>> {
    let path = strings::to_path(path);
    let of_field = |error: lgm_proto::Error| match error {
        of_text @ (lgm_proto::Error::Text { .. } | lgm_proto::Error::Several(_)) => of_text.into(),
        of_file => field_error(positions, field, of_file.into()),
    };
    expect_kind(&path, FileKind::Net).map_err(|error| field_error(positions, field, error))?;
    let net = lgm_proto::read_net(&path).map_err(of_field)?;
    net.notices.iter().for_each(|n| tracing::info!("{n}"));
    net.warnings.iter().for_each(|w| tracing::warn!("{w}"));
    Ok(net)
}

fn inline(param: &NetParameter, positions: &Positions, field: &str) -> Result<Parsed<NetParameter>> {
    let mut net = Parsed {
        message: param.clone(),
        positions: positions.within(field),
        notices: Vec::new(),
        warnings: Vec::new(),
    };
    net.upgrade()?;
    Ok(net)
}

/// The training net: exactly one of `net`, `net_param`, `train_net`, `train_net_param`.
pub(crate) fn train_net(parsed: &Parsed<SolverParameter>) -> Result<NetSource> {
    let (p, at) = (&parsed.message, &parsed.positions);
    let given = [p.net.is_some(), p.net_param.is_some(), p.train_net.is_some(), p.train_net_param.is_some()];
    if given.iter().filter(|g| **g).count() != 1 {
        return Err(field_error(
            at,
            "net",
            Error::config("give the training net with exactly one of net, net_param, train_net, train_net_param"),
        ));
    }
    let (net, said) = if let Some(path) = &p.net {
        (read(path, at, "net")?, format!("net file: {path}"))
    } else if let Some(param) = &p.net_param {
        (inline(param, at, "net_param")?, "net_param.".into())
    } else if let Some(path) = &p.train_net {
        (read(path, at, "train_net")?, format!("train_net file: {path}"))
    } else {
        (
            inline(p.train_net_param.as_ref().unwrap_or(&Default::default()), at, "train_net_param")?,
            "train_net_param.".into(),
        )
    };
    Ok(NetSource { net, said })
}

/// The test nets in Caffe's order: `test_net_param`, `test_net`, then the generic net for each `test_iter` left.
pub(crate) fn test_nets(parsed: &Parsed<SolverParameter>) -> Result<Vec<NetSource>> {
    let (p, at) = (&parsed.message, &parsed.positions);
    let mut nets = Vec::new();
    for (i, param) in p.test_net_param.iter().enumerate() {
        nets.push(NetSource {
            net: inline(param, at, &format!("test_net_param[{i}]"))?,
            said: "test_net_param".into(),
        });
    }
    for (i, path) in p.test_net.iter().enumerate() {
        nets.push(NetSource {
            net: read(path, at, &format!("test_net[{i}]"))?,
            said: format!("test_net file: {path}"),
        });
    }
    let generic = p.net.is_some() || p.net_param.is_some();
    if p.test_iter.len() < nets.len() || (!generic && p.test_iter.len() != nets.len()) {
        let text =
            format!("must be given once for each test net: expected {}, found {}", nets.len(), p.test_iter.len());
        return Err(field_error(at, "test_iter", Error::Config(text)));
    }
    while nets.len() < p.test_iter.len() {
        nets.push(match (&p.net, &p.net_param) {
            (Some(path), _) => NetSource { net: read(path, at, "net")?, said: format!("net file: {path}") },
            (None, Some(param)) => NetSource { net: inline(param, at, "net_param")?, said: "net_param".into() },
            (None, None) => break,
        });
    }
    if !p.test_state.is_empty() && p.test_state.len() != nets.len() {
        let text =
            format!("give it never or once for each test net: expected {}, found {}", nets.len(), p.test_state.len());
        return Err(field_error(at, "test_state", Error::Config(text)));
    }
    if !nets.is_empty() && p.test_interval() == 0 {
        return Err(field_error(
            at,
            "test_interval",
            Error::config("test_iter asks for tests, so test_interval must be positive"),
        ));
    }
    if let Some(bad) = p.test_iter.iter().find(|&&n| n < 0) {
        return Err(field_error(at, "test_iter", Error::Config(format!("must not be negative, found {bad}"))));
    }
    Ok(nets)
}
