//! Telling abnormal inputs: what `fold`, `likelihood` and `adversarial` share. A trained net's last layer models each class
//! as a Gaussian, so that an input has a likelihood, low where the net has learned nothing.

pub mod classifier;
pub mod kernel_density;
pub mod mixture;
pub mod roc;
pub mod run;
