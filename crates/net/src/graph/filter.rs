//! Which layers of a prototxt a net has: the include and exclude rules, and the splits that Caffe inserts.

use std::collections::HashMap;

use lgm_core::{Error, Phase, Position, Registry, Result, ensure};
use lgm_proto::{LayerParameter, NetParameter, NetState, NetStateRule, Positions};
use tracing::info;

/// A layer's prototxt and where it stands in its file.
pub type Placed = (LayerParameter, Option<Position>);

/// The numbers of the layers that `state` (phase, level, stages) includes.
///
/// # Errors
/// When a layer gives both include and exclude rules.
pub fn filter(param: &NetParameter, positions: &Positions, state: &NetState) -> Result<Vec<usize>> {
    let mut kept = Vec::new();
    for (i, layer) in param.layer.iter().enumerate() {
        let at = positions.layer(i);
        let check = || -> Result<bool> {
            ensure!(
                layer.include.is_empty() || layer.exclude.is_empty(),
                "give either include rules or exclude rules, not both"
            );
            let meets = |rule: &NetStateRule| {
                broken(state, rule).map_or(Some(()), |why| {
                    info!("The NetState {why} specified by a rule in layer {}", layer.name());
                    None
                })
            };
            Ok(match layer.include.is_empty() {
                true => layer.exclude.iter().all(|r| meets(r).is_none()),
                false => layer.include.iter().any(|r| meets(r).is_some()),
            })
        };
        if check().map_err(|e| e.in_layer(layer.name(), layer.r#type(), at.as_ref()))? {
            kept.push(i);
        }
    }
    Ok(kept)
}

/// The layers of these numbers, or those that the registry builds in their place.
///
/// # Errors
/// When such a layer sets what is not known.
pub fn placed(
    param: &NetParameter,
    kept: &[usize],
    positions: &Positions,
    registry: &Registry,
    phase: Phase,
) -> Result<Vec<Placed>> {
    let place = |&i: &usize| {
        let (layer, at) = (&param.layer[i], positions.layer(i));
        let phase = layer.phase.map_or(phase, |_| layer.phase());
        let built =
            registry.stand_in(layer, phase).map_err(|e| e.in_layer(layer.name(), layer.r#type(), at.as_ref()))?;
        Ok((built.unwrap_or_else(|| layer.clone()), at))
    };
    kept.iter().map(place).collect()
}

/// How a rule is broken, in Caffe's words; `None` when it is met.
fn broken(state: &NetState, rule: &NetStateRule) -> Option<String> {
    let level = state.level();
    if rule.phase.is_some() && rule.phase() != state.phase() {
        return Some(format!("phase ({}) differed from the phase ({})", state.phase() as i32, rule.phase() as i32));
    }
    if let Some(min) = rule.min_level.filter(|&min| level < min) {
        return Some(format!("level ({level}) is above the min_level ({min})"));
    }
    if let Some(max) = rule.max_level.filter(|&max| level > max) {
        return Some(format!("level ({level}) is above the max_level ({max})"));
    }
    if let Some(stage) = rule.stage.iter().find(|s| !state.stage.contains(s)) {
        return Some(format!("did not contain stage '{stage}'"));
    }
    let unwanted = rule.not_stage.iter().find(|s| state.stage.contains(s))?;
    Some(format!("contained a not_stage '{unwanted}'"))
}

/// Gives every use of a blob its own name: a blob used more than once (a loss weight given in the prototxt counts as a
/// use) goes through a Split layer named as Caffe names it, `blob_layer_0_split`.
///
/// # Errors
/// When a bottom names a blob that no earlier layer produces; the message says what to do.
pub fn insert_splits(layers: Vec<Placed>) -> Result<Vec<Placed>> {
    type Slot = (usize, usize);
    let mut last_top: HashMap<&str, Slot> = HashMap::new();
    let mut source: HashMap<Slot, Slot> = HashMap::new();
    let mut uses: HashMap<Slot, usize> = HashMap::new();
    let mut weights: HashMap<Slot, f32> = HashMap::new();
    for (i, (layer, at)) in layers.iter().enumerate() {
        for (j, blob) in layer.bottom.iter().enumerate() {
            let Some(&top) = last_top.get(blob.as_str()) else {
                let later = layers.iter().skip(i + 1).find(|(layer, _)| layer.top.contains(blob));
                let hint = match (later, lgm_core::nearest(blob, last_top.keys().copied())) {
                    (Some((later, _)), _) => format!("layer '{}' after it does: put that first", later.name()),
                    (None, Some(near)) => format!("did you mean '{near}'?"),
                    (None, None) => {
                        "add an Input or data layer for it, or include the layer that makes it in this phase".into()
                    }
                };
                let text = format!(
                    "Unknown bottom blob '{blob}' (bottom index {j}): no layer before this one makes it; {hint}"
                );
                return Err(Error::config(text).in_layer(layer.name(), layer.r#type(), at.as_ref()));
            };
            source.insert((i, j), top);
            *uses.entry(top).or_default() += 1;
        }
        for (j, blob) in layer.top.iter().enumerate() {
            last_top.insert(blob, (i, j));
        }
        for (j, (&weight, _)) in layer.loss_weight.iter().zip(&layer.top).enumerate() {
            if weight != 0.0 {
                weights.insert((i, j), weight);
                *uses.entry((i, j)).or_default() += 1;
            }
        }
    }
    let names: Vec<String> = layers.iter().map(|(l, _)| l.name().to_string()).collect();
    let split_name = |blob: &str, (layer, top): Slot| format!("{blob}_{}_{top}_split", names[layer]);
    let mut next: HashMap<Slot, usize> = HashMap::new();
    let mut out = Vec::with_capacity(layers.len());
    for (i, (mut layer, at)) in layers.into_iter().enumerate() {
        for (j, blob) in layer.bottom.iter_mut().enumerate() {
            let top = source[&(i, j)];
            if uses[&top] > 1 {
                let k = next.entry(top).or_default();
                *blob = format!("{}_{k}", split_name(blob, top));
                *k += 1;
            }
        }
        let mut splits = Vec::new();
        for (j, blob) in layer.top.iter().enumerate() {
            let Some(&count) = uses.get(&(i, j)).filter(|&&n| n > 1) else { continue };
            let name = split_name(blob, (i, j));
            let mut split = LayerParameter {
                name: Some(name.clone()),
                r#type: Some("Split".into()),
                bottom: vec![blob.clone()],
                top: (0..count).map(|k| format!("{name}_{k}")).collect(),
                ..Default::default()
            };
            if let Some(&weight) = weights.get(&(i, j)) {
                split.loss_weight = (0..count).map(|k| if k == 0 { weight } else { 0.0 }).collect();
                next.insert((i, j), 1);
            }
            splits.push((split, at.clone()));
        }
        for (j, weight) in layer.loss_weight.iter_mut().enumerate() {
            if weights.contains_key(&(i, j)) && uses[&(i, j)] > 1 {
                *weight = 0.0;
            }
        }
        out.push((layer, at));
        out.extend(splits);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lgm_core::Phase;

    fn layer(name: &str, bottoms: &[&str], tops: &[&str]) -> Placed {
        let strings = |s: &[&str]| s.iter().map(|x| x.to_string()).collect();
        let l = LayerParameter {
            name: Some(name.into()),
            bottom: strings(bottoms),
            top: strings(tops),
            ..Default::default()
        };
        (l, None)
    }

    #[test]
    fn a_blob_used_twice_is_split() {
        let mut loss = layer("loss", &["a"], &["l"]);
        loss.0.loss_weight = vec![0.5];
        let layers = insert_splits(vec![
            layer("in", &[], &["x"]),
            layer("a", &["x"], &["a"]),
            loss,
            layer("b", &["x", "l"], &["b"]),
        ]);
        let layers = layers.unwrap();
        let names: Vec<_> = layers.iter().map(|(l, _)| l.name()).collect();
        assert_eq!(names, ["in", "x_in_0_split", "a", "loss", "l_loss_0_split", "b"]);
        assert_eq!(layers[2].0.bottom, ["x_in_0_split_0"]);
        assert_eq!(layers[5].0.bottom, ["x_in_0_split_1", "l_loss_0_split_1"]);
        assert_eq!(
            (layers[3].0.loss_weight.as_slice(), layers[4].0.loss_weight.as_slice()),
            (&[0.0][..], &[0.5, 0.0][..])
        );
    }

    #[test]
    fn an_in_place_layer_after_a_split_stands_apart() {
        let layers = insert_splits(vec![
            layer("in", &[], &["x"]),
            layer("relu", &["x"], &["x"]),
            layer("a", &["x"], &["a"]),
            layer("b", &["x"], &["b"]),
        ])
        .unwrap();
        assert_eq!(layers[1].0.bottom, ["x"]);
        assert_eq!(layers[2].0.bottom, ["x"]);
        assert_eq!(layers[2].0.top, ["x_relu_0_split_0", "x_relu_0_split_1"]);
    }

    #[test]
    fn unknown_bottoms_suggest_a_name() {
        let err =
            insert_splits(vec![layer("in", &[], &["data"]), layer("a", &["dat"], &["a"])]).unwrap_err().to_string();
        assert!(err.contains("'dat'") && err.contains("did you mean 'data'"), "{err}");
    }

    #[test]
    fn rules_follow_phase_level_and_stage() {
        let state = |phase: Phase, level: i32, stages: &[&str]| NetState {
            phase: Some(phase as i32),
            level: Some(level),
            stage: stages.iter().map(|s| s.to_string()).collect(),
        };
        let train = state(Phase::Train, 0, &[]);
        let test = NetStateRule { phase: Some(Phase::Test as i32), ..Default::default() };
        assert!(broken(&train, &test).is_some());
        assert!(broken(&state(Phase::Test, 0, &[]), &test).is_none());
        let levels = NetStateRule { min_level: Some(2), max_level: Some(3), ..Default::default() };
        assert!(broken(&train, &levels).is_some() && broken(&state(Phase::Train, 4, &[]), &levels).is_some());
        assert!(broken(&state(Phase::Train, 2, &[]), &levels).is_none());
        let stages = NetStateRule { stage: vec!["a".into()], not_stage: vec!["b".into()], ..Default::default() };
        assert!(broken(&train, &stages).is_some() && broken(&state(Phase::Train, 0, &["a", "b"]), &stages).is_some());
        assert!(broken(&state(Phase::Train, 0, &["a"]), &stages).is_none());
    }

    #[test]
    fn include_and_exclude_choose_layers() {
        let mut only_test = layer("t", &[], &["x"]);
        only_test.0.include = vec![NetStateRule { phase: Some(Phase::Test as i32), ..Default::default() }];
        let mut not_test = layer("n", &[], &["x"]);
        not_test.0.exclude = only_test.0.include.clone();
        let param = NetParameter { layer: vec![only_test.0.clone(), not_test.0.clone()], ..Default::default() };
        let names = |phase: Phase| -> Vec<String> {
            let state = NetState { phase: Some(phase as i32), ..Default::default() };
            let kept = filter(&param, &Positions::default(), &state).unwrap();
            kept.into_iter().map(|i| param.layer[i].name().to_string()).collect()
        };
        assert_eq!((names(Phase::Train), names(Phase::Test)), (vec!["n".to_string()], vec!["t".to_string()]));
        let mut both = not_test.0;
        both.include = both.exclude.clone();
        let param = NetParameter { layer: vec![both], ..Default::default() };
        assert!(filter(&param, &Positions::default(), &NetState::default()).is_err());
    }
}
