//! Weights whose rows are brought to unit length before they are used: in TRAIN the parameter itself, so that the solver goes on from
//! there; in TEST a copy, so that testing changes nothing.

use lgm_core::{BlobSpec, DeviceCall, DevicePtr, Float, Grid, ParamSpec, Result, args};
use lgm_proto::FillerParameter;

use super::launch::extent;
use super::loops::{for_rows, sum};

/// Added to the sum of a row's squares, so that a row of zeros stays one.
const EPS: f32 = 1e-12;

/// Weights of `rows` rows of `width` elements.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UnitRows {
    /// How many rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// Whether the parameter itself is brought to unit length.
    pub train: bool,
}

impl UnitRows {
    /// The parameter.
    pub fn param(&self, filler: Option<&FillerParameter>) -> ParamSpec {
        ParamSpec { rescaled: self.train, ..ParamSpec::new([self.rows, self.width], filler) }
    }

    /// Memory for the copy, of one element where there is none.
    pub fn scratch(&self, like: &BlobSpec) -> BlobSpec {
        like.with_shape([if self.train { 1 } else { self.rows * self.width }])
    }

    /// Forward's weights, from the parameter and the scratch memory.
    pub fn forward<'a, T: Float>(&self, param: &'a mut [T], copy: &'a mut [T]) -> &'a [T] {
        if self.train {
            self.bring(param);
            return param;
        }
        self.backward(param, copy)
    }

    /// Backward's weights, from the parameter and the scratch memory.
    pub fn backward<'a, T: Float>(&self, param: &'a [T], copy: &'a mut [T]) -> &'a [T] {
        if self.train {
            return param;
        }
        copy.copy_from_slice(param);
        self.bring(copy);
        copy
    }

    fn bring<T: Float>(&self, w: &mut [T]) {
        for_rows(w, self.width, 2 * self.width, |_, row| {
            let scale = (sum(row, row, |a, b| a * b) + T::of(EPS.into())).sqrt().recip();
            row.iter_mut().for_each(|w| *w *= scale);
        });
    }

    /// [`UnitRows::forward`] on a device.
    pub fn forward_on(&self, call: DeviceCall<'_>, param: DevicePtr, copy: DevicePtr) -> Result<DevicePtr> {
        self.bring_on(call, if self.train { param } else { copy }, param)
    }

    /// [`UnitRows::backward`] on a device.
    pub fn backward_on(&self, call: DeviceCall<'_>, param: DevicePtr, copy: DevicePtr) -> Result<DevicePtr> {
        if self.train { Ok(param) } else { self.bring_on(call, copy, param) }
    }

    fn bring_on(&self, call: DeviceCall<'_>, to: DevicePtr, from: DevicePtr) -> Result<DevicePtr> {
        let args = args![to, from, extent(self.rows)?, extent(self.width)?, EPS];
        call.launch("unit_rows", Grid::elements(self.rows * 32), args)?;
        Ok(to)
    }
}
