//! What several layers share; no layer takes anything from another but from here.

pub(crate) mod affine;
pub(crate) mod angular;
pub(crate) mod broadcast;
pub(crate) mod by_channel;
pub(crate) mod convert;
pub(crate) mod diff;
pub(crate) mod fusable;
pub(crate) mod indices;
pub(crate) mod item_loss;
pub(crate) mod labels;
pub(crate) mod launch;
pub(crate) mod loops;
pub(crate) mod loss;
pub(crate) mod margin_schedule;
pub(crate) mod own_class;
pub(crate) mod pointwise;
pub(crate) mod rearrange;
pub(crate) mod repeat;
pub(crate) mod row_sums;
pub(crate) mod rows;
pub(crate) mod shapes;
pub(crate) mod softmax;
pub(crate) mod strided;
pub(crate) mod unit_rows;
pub(crate) mod view;
