//! ShuffleChannel: the channels of `group` (1) groups in turn: first those that are first in their groups, then the second.
//!
//! With C channels in g groups, y\[n, j·g + i\] = x\[n, i·C/g + j\] for group i and j < C/g. Shapes: bottom [N, C, …], g
//! dividing C; top like it. Gradient: dy with the channels back in place. One group, or groups of one channel: the top is a
//! view of the bottom.
//!
//! Source: Zhang et al., "ShuffleNet" (2017); the layer of this name of several forks.

use lgm_core::{BuildCx, Node, Result, Shape, ensure};
use lgm_proto::LayerParameter;

use crate::common::rearrange::{self, Order, Rearrange};
use crate::common::strided::Strided;

/// The layer; see the module.
pub struct ShuffleChannel {
    group: usize,
}

impl ShuffleChannel {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let group = param.shuffle_channel_param.clone().unwrap_or_default().group() as usize;
        ensure!(group > 0, "group must be at least 1, found 0");
        rearrange::node(ShuffleChannel { group })
    }
}

impl Rearrange for ShuffleChannel {
    fn plan(&self, shape: &Shape) -> Result<(Shape, Order)> {
        let group = self.group;
        ensure!(shape.len() >= 2, "the bottom needs channels, on its second axis; found shape {shape}");
        let channels = shape[1];
        ensure!(channels.is_multiple_of(group), "group is {group}, which does not divide the {channels} channels");
        let members = channels / group;
        if group == 1 || members <= 1 {
            return Ok((shape.clone(), Order::Same));
        }
        let area = shape.count_from(2);
        let turned = |rows: usize, columns: usize| {
            let axes = [(shape[0], channels * area), (rows, area), (columns, rows * area), (area, 1)];
            Strided::new(axes, 0)
        };
        Ok((shape.clone(), Order::Other(turned(members, group), turned(group, members))))
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(group: u32) -> String {
        format!(
            "layer {{ name: 's' type: 'ShuffleChannel' bottom: 'x' top: 'y' shuffle_channel_param {{ group: {group} }} }}"
        )
    }

    #[test]
    fn cases() {
        let case = |group: u32, channels: usize| Case::new(layer(group)).bottom([2, channels, 3, 2]);
        check(&registry(), &[case(2, 6), case(3, 6), case(1, 4), case(4, 4), Case::new(layer(2)).bottom([3, 8])]);
    }

    #[test]
    fn groups_take_turns() {
        let harness = Harness::new(&registry(), &layer(2), Phase::Test, DType::F32, &[[1, 6].into()]).unwrap();
        let inputs = harness.forward_inputs(&[&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]).unwrap();
        assert_eq!(harness.run(&inputs).unwrap().tops[0], [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }

    #[test]
    fn mistakes_are_named() {
        config_error(&registry(), &layer(0), &[[2, 4].into()], &["group must be at least 1"]);
        config_error(&registry(), &layer(3), &[[2, 4].into()], &["group is 3", "4 channels"]);
        config_error(&registry(), &layer(2), &[[4].into()], &["second axis", "(4)"]);
    }
}
