//! Host memory of either element type, filled from and read as double precision.

use lgm_core::{BlobSpec, DType, Host, Result, View, ViewMut};

pub(crate) enum Memory {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl Memory {
    pub fn of(dtype: DType, values: &[f64]) -> Self {
        match dtype {
            DType::F32 => Memory::F32(values.iter().map(|&v| v as f32).collect()),
            DType::F64 => Memory::F64(values.to_vec()),
        }
    }

    /// Memory in which anything read before it is written shows.
    pub fn poisoned(spec: &BlobSpec) -> Self {
        Memory::of(spec.dtype, &vec![f64::NAN; spec.shape.count()])
    }

    pub fn view<'a>(&'a self, spec: &'a BlobSpec) -> Result<View<'a, Host>> {
        match self {
            Memory::F32(v) => View::of_slice(v, spec),
            Memory::F64(v) => View::of_slice(v, spec),
        }
    }

    pub fn view_mut<'a>(&'a mut self, spec: &'a BlobSpec) -> Result<ViewMut<'a, Host>> {
        match self {
            Memory::F32(v) => ViewMut::of_slice(v, spec),
            Memory::F64(v) => ViewMut::of_slice(v, spec),
        }
    }

    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Memory::F32(v) => v.iter().map(|&x| x as f64).collect(),
            Memory::F64(v) => v.clone(),
        }
    }
}
