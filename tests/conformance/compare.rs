//! How far what was computed is from what was recorded.

use std::collections::BTreeMap;
use std::path::Path;

use lgm_testkit::Recorded;

/// The largest difference of a case.
#[derive(Debug, Default)]
pub struct Worst {
    pub error: f64,
    /// What differs so.
    pub what: String,
}

impl Worst {
    /// Takes up the largest difference between two arrays, relative to the largest recorded value (0.01 at least). One that
    /// is not finite, or another number of values, is infinitely far.
    pub fn compare(&mut self, what: impl Into<String>, got: &[f64], want: &[f64]) {
        let error = if got.len() != want.len() || got.iter().any(|x| !x.is_finite()) {
            f64::INFINITY
        } else {
            let largest = want.iter().fold(1e-2, |most: f64, x| most.max(x.abs()));
            got.iter().zip(want).fold(0.0, |most: f64, (g, w)| most.max((g - w).abs())) / largest
        };
        self.take(what, error);
    }

    /// Takes up a difference.
    pub fn take(&mut self, what: impl Into<String>, error: f64) {
        if error >= self.error {
            *self = Worst { error, what: what.into() };
        }
    }

    /// Compares what was recorded as `final_LAYER_INDEX`. A parameter that layers share is saved once, with its owner.
    pub fn compare_params(&mut self, after: &Params, recorded: &Recorded) {
        let mut compared = 0;
        for name in recorded.names().filter(|name| name.starts_with("final_")) {
            let (layer, index) = name["final_".len()..].rsplit_once('_').unwrap();
            if let Some(got) = after.get(&(layer.to_string(), index.parse().unwrap())) {
                self.compare(name, got, recorded.array(name).unwrap().1);
                compared += 1;
            }
        }
        if compared == 0 {
            self.take("no parameter of the snapshot", f64::INFINITY);
        }
    }
}

/// Parameters by layer and index.
pub type Params = BTreeMap<(String, usize), Vec<f64>>;

fn told<T>(path: &Path, result: hdf5_metno::Result<T>) -> Result<T, String> {
    result.map_err(|e| format!("{}: {e}", path.display()))
}

/// The parameters in a `.caffemodel.h5`.
pub fn params(path: &Path) -> Result<Params, String> {
    let file = told(path, hdf5_metno::File::open(path))?;
    let mut params = Params::new();
    let data = told(path, file.group("data"))?;
    for layer in told(path, data.member_names())? {
        let group = told(path, data.group(&layer))?;
        for index in told(path, group.member_names())? {
            let values = told(path, group.dataset(&index).and_then(|set| set.read_raw::<f64>()))?;
            params.insert((layer.clone(), index.parse().unwrap()), values);
        }
    }
    Ok(params)
}

/// Shape and values of a dataset.
pub fn dataset(path: &Path, name: &str) -> Result<(Vec<usize>, Vec<f64>), String> {
    let set = told(path, hdf5_metno::File::open(path).and_then(|file| file.dataset(name)))?;
    Ok((set.shape(), told(path, set.read_raw())?))
}

/// Writes datasets of single precision.
pub fn write_h5(path: &Path, sets: &[(&str, &[usize], &[f64])]) {
    let file = hdf5_metno::File::create(path).unwrap();
    for (name, shape, values) in sets {
        let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        let set = file.new_dataset::<f32>().shape(*shape).create(*name).unwrap();
        set.write_raw(&values).unwrap();
    }
    file.close().unwrap();
}
