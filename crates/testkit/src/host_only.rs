//! A layer without a device half, which a net on a device runs on the host between two copies.

use lgm_core::{Arity, BlobSpec, Bwd, Float, Fwd, Host, HostLayer, Layer, ParamSpec, Plan, Result};

/// y = c · x, in place or not, with c learned and the number of passes kept as state: a layer without a device half.
pub struct HostOnly;

impl Layer for HostOnly {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let count = ParamSpec { state: true, ..ParamSpec::constant([1], 0.0) };
        Ok(Plan {
            params: vec![ParamSpec::constant([1], 1.5), count],
            saved: vec![bottoms[0].clone()],
            scratch: vec![bottoms[0].clone()],
            ..Plan::elementwise(&bottoms[0])
        })
    }
}

impl HostLayer for HostOnly {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let c = io.param::<T>(0)?[0];
        let passes = io.param_mut::<T>(1)?;
        passes[0] += T::of(1.0);
        let (bottom, saved, y) = (io.bottom_unless_shared::<T>(0)?, io.saved::<T>(0)?, io.top::<T>(0)?);
        if let Some(x) = bottom {
            y.copy_from_slice(x);
        }
        if let Some(saved) = saved {
            saved.copy_from_slice(y);
        }
        y.iter_mut().for_each(|y| *y *= c);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let c = io.param::<T>(0)?[0];
        let (top, dx) = (io.top_diff_unless_shared::<T>(0)?, io.bottom_diff::<T>(0)?);
        let dy = match (top, &dx) {
            (Some(dy), _) => dy.to_vec(),
            (None, Some(dx)) => dx.to_vec(),
            (None, None) => Vec::new(),
        };
        if let Some(dc) = io.param_diff::<T>(0)? {
            let x = io.saved::<T>(0)?;
            dc[0] = x.iter().zip(&dy).fold(dc[0], |sum, (x, d)| sum + *x * *d);
        }
        if let Some(dx) = dx {
            dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = dy * c);
        }
        Ok(())
    }
}
