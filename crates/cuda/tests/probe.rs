//! What probing says with nothing there, with damaged files, and with libraries that answer (small ones, compiled here
//! with the machine's C compiler).

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lgm_cuda::{Component, NoDevice, Outcome, SearchPath, probe_in};
use tempfile::TempDir;

const DRIVER: &str = r#"
#include <stddef.h>
#include <string.h>
int cuDriverGetVersion(int *v) { *v = 13010; return 0; }
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *n) { *n = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 7; return 0; }
int cuDeviceGetName(char *name, int room, int device) { memset(name, 'G', room); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)80 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int number, int device) { *value = number == 17 ? 0 : 100 * device + number; return number == 13; }
int cuGetErrorName(int code, const char **text) { *text = "CUDA_ERROR_NO_DEVICE"; return 0; }
int cuGetErrorString(int code, const char **text) { *text = "no CUDA-capable device is detected"; return 0; }
"#;

/// Compiles a library into a folder; `None`, said aloud, where the machine has no C compiler.
fn compile(folder: &Path, file: &str, source: &str, defines: &[&str]) -> Option<PathBuf> {
    let c = folder.join("source.c");
    fs::write(&c, source).unwrap();
    let out = folder.join(file);
    match Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&out).arg(&c).args(defines).status() {
        Ok(status) => {
            assert!(status.success(), "cc refused the test's source");
            Some(out)
        }
        Err(error) => {
            println!("skipped: no C compiler ({error})");
            None
        }
    }
}

fn in_folder(folder: &TempDir) -> SearchPath {
    SearchPath::folders([folder.path().to_path_buf()])
}

#[test]
fn nothing_anywhere_is_told_with_places_and_remedies() {
    let empty = tempfile::tempdir().unwrap();
    let absent = empty.path().join("absent");
    let probe = probe_in(&SearchPath::folders([empty.path().to_path_buf(), absent.clone()]));
    assert_eq!(probe.libraries.len(), Component::ALL.len());
    for library in &probe.libraries {
        let missing = library.found.as_ref().unwrap_err();
        assert_eq!(
            missing.looked.iter().map(|l| l.outcome.clone()).collect::<Vec<_>>(),
            [Outcome::NoFile, Outcome::NoFolder]
        );
        let text = missing.to_string();
        let first = format!("{} ({}) was not found", library.component.name(), library.component.file_names()[0]);
        assert!(text.starts_with(&first), "{text}");
        assert!(text.contains(&format!("{}: not there", empty.path().display())), "{text}");
        assert!(text.contains(&format!("{}: no such folder", absent.display())), "{text}");
        assert!(text.contains(library.component.how_to_get()), "{text}");
    }
    assert!(matches!(probe.devices, Err(NoDevice::NoDriver(_))));
}

#[test]
fn this_machine_can_be_probed_whatever_it_has() {
    let probe = lgm_cuda::probe();
    for library in &probe.libraries {
        match &library.found {
            Ok(found) => assert!(found.path.is_absolute() && found.version.major > 0, "{found:?}"),
            Err(missing) => assert!(missing.to_string().contains("to get it: ")),
        }
    }
    match probe.devices {
        Ok(devices) => assert!(!devices.is_empty()),
        Err(error) => assert!(error.to_string().contains("CUDA driver")),
    }
}

#[test]
fn a_file_that_is_no_library_is_named_with_the_loaders_reason() {
    let folder = tempfile::tempdir().unwrap();
    for component in Component::ALL {
        fs::write(folder.path().join(component.file_names()[0]), "not a library").unwrap();
    }
    for library in probe_in(&in_folder(&folder)).libraries {
        let text = library.found.unwrap_err().to_string();
        let file = folder.path().join(library.component.file_names()[0]);
        assert!(text.contains("cannot be used; looked in"), "{text}");
        assert!(text.contains(&format!("{} cannot be used: ", file.display())), "{text}");
        assert!(text.contains("too short") || text.contains("invalid ELF header"), "{text}");
    }
}

#[test]
fn a_foreign_library_is_passed_over_for_a_true_one() {
    let (foreign, good) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let name = "libcuda.so.1";
    let Some(file) = compile(foreign.path(), name, "int other(void) { return 0; }", &[]) else { return };
    let text = probe_in(&in_folder(&foreign)).devices.unwrap_err().to_string();
    assert!(
        text.contains(&format!("{} cannot be used: it has no function cuDriverGetVersion", file.display())),
        "{text}"
    );

    compile(good.path(), name, DRIVER, &["-DINIT=0", "-DCOUNT=2"]);
    let both = SearchPath::folders([foreign.path().to_path_buf(), good.path().to_path_buf()]);
    let probe = probe_in(&both);
    let found = probe.libraries[0].found.as_ref().unwrap();
    assert_eq!((found.path.clone(), found.version.to_string()), (good.path().join(name), "13.1".to_string()));
    let devices = probe.devices.unwrap();
    assert_eq!(devices.iter().map(|d| d.id).collect::<Vec<_>>(), [0, 1]);
    let second = &devices[1];
    assert_eq!(second.name, "G".repeat(255));
    assert_eq!(second.memory, 80 << 30);
    assert_eq!((second.capability, second.grid, second.multiprocessors), ((875, 876), [805, 806, 807], 816));
    assert_eq!((second.clock, second.overlap, second.kernel_timeout), (0, true, false));
}

#[test]
fn a_driver_without_a_gpu_says_why() {
    let (refused, none) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    if compile(refused.path(), "libcuda.so.1", DRIVER, &["-DINIT=100", "-DCOUNT=0"]).is_none() {
        return;
    }
    let error = probe_in(&in_folder(&refused)).devices.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("cuInit failed: CUDA_ERROR_NO_DEVICE (100: no CUDA-capable device is detected)"), "{text}");
    assert!(text.contains("for CUDA 13.1"), "{text}");

    compile(none.path(), "libcuda.so.1", DRIVER, &["-DINIT=0", "-DCOUNT=0"]);
    assert!(probe_in(&in_folder(&none)).devices.unwrap_err().to_string().contains("sees no GPU"));
}

#[test]
fn every_library_tells_its_version_its_own_way() {
    let folder = tempfile::tempdir().unwrap();
    let sources = [
        ("libnvrtc.so.13", "int nvrtcVersion(int *a, int *b) { *a = 13; *b = 0; return 0; }"),
        ("libcublas.so.13", "int cublasGetProperty(int k, int *v) { *v = 13 - k; return k > 2; }"),
        ("libcudnn.so.9", "#include <stddef.h>\nsize_t cudnnGetVersion(void) { return 91300; }"),
        ("libnccl.so.2", "int ncclGetVersion(int *v) { *v = 22703; return 0; }"),
    ];
    for (file, source) in sources {
        if compile(folder.path(), file, source, &[]).is_none() {
            return;
        }
    }
    let versions =
        probe_in(&in_folder(&folder)).libraries.into_iter().map(|l| l.found.map(|f| f.version.to_string()).ok());
    let expected = [None, Some("13.0"), Some("13.12.11"), Some("9.13.0"), Some("2.27.3")];
    assert_eq!(versions.collect::<Vec<_>>(), expected.map(|v| v.map(String::from)));
}
