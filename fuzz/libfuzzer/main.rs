//! A target under libFuzzer; LGM_FUZZ_TARGET names it.

#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<&lgm_fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("LGM_FUZZ_TARGET").expect("LGM_FUZZ_TARGET names a target");
    lgm_fuzz::target(&name).expect("a known target")
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
