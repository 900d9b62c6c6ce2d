//! What to resume from when a run ends otherwise than it should.

use std::path::{Path, PathBuf};

use lgm_core::fs::folder_of;
use lgm_proto::strings;

/// What snapshots under a prefix there are to resume from, in words.
pub(crate) fn resume_from(prefix: &Path) -> String {
    match newest(prefix) {
        Some(state) => {
            let state = state.display();
            format!("the newest snapshot is {state}: resume with -snapshot {state}")
        }
        None => "there is no snapshot yet (the solver's 'snapshot' takes them on the way)".into(),
    }
}

/// The newest state file under a prefix whose weights are there.
fn newest(prefix: &Path) -> Option<PathBuf> {
    let start = format!("{}_iter_", strings::from_path(prefix.file_name()?));
    let each = std::fs::read_dir(folder_of(prefix)).ok()?.flatten().filter_map(|entry| {
        let name = strings::from_path(entry.file_name());
        let (iter, end) = name.strip_prefix(&start)?.split_once(".solverstate")?;
        let iter: i32 = iter.parse().ok()?;
        let weights = strings::to_path(&format!("{start}{iter}.caffemodel{end}"));
        if !["", ".h5"].contains(&end) || !prefix.with_file_name(weights).exists() {
            return None;
        }
        Some((entry.metadata().ok()?.modified().ok()?, iter, prefix.with_file_name(entry.file_name())))
    });
    each.max().map(|(_, _, path)| path)
}
