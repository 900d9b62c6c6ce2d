//! Faster R-CNN's Python layers, which its nets and those after it name: each is built as the layer of ours that is in its place, with
//! what `param_str` sets, and what their code's configuration of end-to-end training sets otherwise.
//!
//! Source: Ren et al., "Faster R-CNN" (2015), and the configuration of their code (py-faster-rcnn).

use std::collections::BTreeMap;

use lgm_core::{Error, Phase, Result};
use lgm_proto::{AnchorTargetParameter, BBoxRegParameter, LayerParameter, ProposalParameter, ProposalTargetParameter};
use tracing::info;

/// Modules and the classes in them.
const CLASSES: [(&str, &str); 3] = [
    ("rpn.anchor_target_layer", "AnchorTargetLayer"),
    ("rpn.proposal_layer", "ProposalLayer"),
    ("rpn.proposal_target_layer", "ProposalTargetLayer"),
];

/// What is built in place of a layer, in a net of `phase`; `None` for any other layer than those above.
///
/// # Errors
/// When its `param_str` sets what is not known.
pub(crate) fn native(layer: &LayerParameter, phase: Phase) -> Result<Option<LayerParameter>> {
    let Some(python) = layer.python_param.as_ref().filter(|_| layer.r#type() == "Python") else { return Ok(None) };
    if !CLASSES.contains(&(python.module(), python.layer())) {
        return Ok(None);
    }
    let mut native = LayerParameter { python_param: None, ..layer.clone() };
    let mut settings = Settings::parse(python.param_str())?;
    let kind = match python.layer() {
        "AnchorTargetLayer" => {
            native.anchor_target_param = Some(AnchorTargetParameter {
                feat_stride: Some(settings.whole("feat_stride")?),
                allowed_border: settings.0.remove("allowed_border").and_then(|v| v.first().map(|&v| v as u32)),
                ratio: settings.numbers("ratios"),
                scale: settings.numbers("scales"),
                ..Default::default()
            });
            "AnchorTarget"
        }
        "ProposalLayer" => {
            let (best, taken) = if phase == Phase::Train { (12000, 2000) } else { (6000, 300) };
            native.proposal_param = Some(Box::new(ProposalParameter {
                feat_stride: Some(settings.whole("feat_stride")?),
                ratio: settings.numbers("ratios"),
                scale: settings.numbers("scales"),
                pre_nms_topn: Some(best),
                post_nms_topn: Some(taken),
                ..Default::default()
            }));
            settings.0.remove("num_classes");
            "Proposal"
        }
        _ => {
            let classes = settings.whole("num_classes")?;
            native.proposal_target_param = Some(Box::new(ProposalTargetParameter {
                cls_num: u32::try_from(classes).ok(),
                bg_thr_lw: Some(0.0),
                ..Default::default()
            }));
            // Nets of two classes regress all objects alike, whatever class the ground truth has (R-FCN).
            native.bbox_reg_param =
                Some(Box::new(BBoxRegParameter { cls_aware: Some(classes != 2), ..Default::default() }));
            "ProposalTarget"
        }
    };
    if let Some(name) = settings.0.keys().next() {
        return Err(Error::config(format!(
            "param_str sets '{name}', which {kind}, built in place of the Python class {}, does not take from there; write a \
             layer of type {kind}",
            python.layer()
        )));
    }
    info!("Layer {}: {kind} in place of the Python class {}", layer.name(), python.layer());
    native.r#type = Some(kind.into());
    Ok(Some(native))
}

/// What a `param_str` sets: numbers, or lists of them, by name.
struct Settings(BTreeMap<String, Vec<f32>>);

impl Settings {
    /// Reads a mapping in YAML, or as Python writes it: `'scales': [8, 16]`, in braces or without.
    fn parse(text: &str) -> Result<Settings> {
        let plain = text.replace("!!python/tuple", " ");
        let mut rest = plain.trim();
        rest = rest.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')).unwrap_or(rest).trim();
        let mut found = BTreeMap::new();
        while !rest.is_empty() {
            let (name, values, after) = entry(rest).ok_or_else(|| {
                Error::config(format!(
                    "param_str is not understood from \"{rest}\" on: expected 'name': number, or 'name': [number, …]"
                ))
            })?;
            found.insert(name.to_string(), values);
            rest = after.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
        }
        Ok(Settings(found))
    }

    /// A list; empty where it is not set.
    fn numbers(&mut self, name: &str) -> Vec<f32> {
        self.0.remove(name).unwrap_or_default()
    }

    /// A whole number that must be set.
    fn whole(&mut self, name: &str) -> Result<i32> {
        let found = self.numbers(name);
        match found[..] {
            [value] if value.fract() == 0.0 && value.abs() < 1e9 => Ok(value as i32),
            _ => Err(Error::config(format!("param_str must set '{name}' to a whole number, found {found:?}"))),
        }
    }
}

/// The first entry: its name, its numbers, and what comes after it.
fn entry(text: &str) -> Option<(&str, Vec<f32>, &str)> {
    let (name, after) = text.split_once(':')?;
    let after = after.trim_start();
    let (values, rest) = match after.strip_prefix(['[', '(']) {
        Some(list) => list.split_once([']', ')'])?,
        None => after.split_at(after.find([',', '\n']).unwrap_or(after.len())),
    };
    let each = values.split(',').map(str::trim).filter(|value| !value.is_empty());
    let numbers = each.map(|value| value.parse().ok()).collect::<Option<Vec<f32>>>()?;
    Some((name.trim().trim_matches(['\'', '"']), numbers, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lgm_testkit::{parse_layer, says};

    fn built(module: &str, class: &str, settings: &str, phase: Phase) -> Result<Option<LayerParameter>> {
        let text = format!(
            "layer {{ name: 'x' type: 'Python' bottom: 'a' top: 'b' include {{ phase: TRAIN }} \
             python_param {{ module: '{module}' layer: '{class}' param_str: \"{settings}\" }} }}"
        );
        native(&parse_layer(&text)?, phase)
    }

    #[test]
    fn each_is_built_as_its_own() {
        let of = |class, settings, phase| {
            let module = match class {
                "AnchorTargetLayer" => "rpn.anchor_target_layer",
                "ProposalLayer" => "rpn.proposal_layer",
                _ => "rpn.proposal_target_layer",
            };
            let layer = built(module, class, settings, phase).unwrap().unwrap();
            assert_eq!((layer.bottom.len(), layer.include.len()), (1, 1));
            assert!(layer.python_param.is_none());
            layer
        };
        let layer = of("AnchorTargetLayer", "'feat_stride': 16 \\n'scales': !!python/tuple [4, 8]", Phase::Train);
        let p = layer.anchor_target_param.clone().unwrap();
        assert_eq!(
            (layer.r#type(), p.feat_stride(), &p.scale[..], p.batch_size()),
            ("AnchorTarget", 16, &[4.0, 8.0][..], 256)
        );

        let layer = of("ProposalLayer", "{'feat_stride': 8, 'num_classes': 21, 'ratios': (0.333, 1,)}", Phase::Train);
        let p = layer.proposal_param.clone().unwrap();
        assert_eq!((layer.r#type(), p.feat_stride(), &p.ratio[..]), ("Proposal", 8, &[0.333, 1.0][..]));
        assert_eq!((p.pre_nms_topn(), p.post_nms_topn(), p.scale.len()), (12000, 2000, 0));
        let p = of("ProposalLayer", "feat_stride: 16", Phase::Test).proposal_param.unwrap();
        assert_eq!((p.pre_nms_topn(), p.post_nms_topn()), (6000, 300));

        for (settings, classes, aware) in [("'num_classes': 21", 21, true), ("'num_classes': 2", 2, false)] {
            let layer = of("ProposalTargetLayer", settings, Phase::Train);
            let (p, reg) = (layer.proposal_target_param.clone().unwrap(), layer.bbox_reg_param.clone().unwrap());
            assert_eq!((layer.r#type(), p.cls_num(), reg.cls_aware()), ("ProposalTarget", classes, aware));
            assert_eq!((p.batch_size(), p.bg_thr_lw()), (128, 0.0));
        }
    }

    #[test]
    fn others_stay_what_they_are() {
        for (module, class) in [("rpn.proposal_layer", "Other"), ("mine", "ProposalLayer")] {
            assert!(built(module, class, "", Phase::Train).unwrap().is_none());
        }
        let relu = parse_layer("layer { name: 'r' type: 'ReLU' bottom: 'a' top: 'b' }").unwrap();
        assert!(native(&relu, Phase::Train).unwrap().is_none());
    }

    #[test]
    fn mistakes_are_named() {
        for (settings, needles) in [
            ("", &["'feat_stride'", "whole number", "[]"][..]),
            ("'feat_stride': 16.5", &["'feat_stride'", "16.5"]),
            ("'feat_stride': 16, 'size': 3", &["'size'", "Proposal"]),
            ("'feat_stride': x", &["'feat_stride': x", "expected"]),
            ("'feat_stride': [1", &["[1", "expected"]),
            ("config.yml", &["config.yml", "expected"]),
        ] {
            let error = built("rpn.proposal_layer", "ProposalLayer", settings, Phase::Test).unwrap_err();
            says(&error.to_string(), needles);
        }
    }
}
