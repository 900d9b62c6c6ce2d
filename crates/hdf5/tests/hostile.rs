//! Files that are damaged or mean harm, and files that cannot be put where they belong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use hdf5_metno::File;
use hdf5_metno::filters::ScaleOffset;
use lgm_core::Shape;
use lgm_hdf5::{H5File, H5Image, Values, write_f32};

fn made(dir: &Path, make: impl FnOnce(&File) -> hdf5_metno::Result<()>) -> PathBuf {
    let path = dir.join("x.h5");
    let file = File::create(&path).unwrap();
    make(&file).unwrap();
    file.close().unwrap();
    path
}

fn error<T>(result: lgm_core::Result<T>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn groups_that_contain_themselves_are_walked_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = made(dir.path(), |f| {
        let data = f.create_group("data")?;
        let conv = data.create_group("conv")?;
        conv.new_dataset::<f32>().shape([2]).create("0")?;
        conv.link_soft("/data", "up")?;
        f.link_hard("/data", "data/conv/itself")?;
        f.link_soft("/data/there", "data/there")?;
        f.link_soft("/nowhere", "data/dangling")
    });
    let file = H5File::open(&path).unwrap();
    assert_eq!(file.datasets().unwrap(), ["data/dangling", "data/there", "data/conv/0"]);
    let groups = file.groups("data").unwrap();
    let names: Vec<_> = groups.iter().map(|g| (g.name.as_str(), g.datasets.len())).collect();
    assert_eq!(names, [("", 2), ("conv", 1)]);
    let e = error(file.dataset("label"));
    assert!(e.contains("no dataset named 'label' (datasets found: data/dangling, data/there, data/conv/0)"), "{e}");
}

#[test]
fn a_walk_has_an_end() {
    let dir = tempfile::tempdir().unwrap();
    // Two ways from each group to the next: 2^20 paths.
    let path = made(dir.path(), |f| {
        for i in 0..20 {
            f.create_group(&format!("g{i}"))?;
        }
        for i in 0..19 {
            f.link_hard(&format!("/g{}", i + 1), &format!("/g{i}/a"))?;
            f.link_hard(&format!("/g{}", i + 1), &format!("/g{i}/b"))?;
        }
        Ok(())
    });
    let file = H5File::open(&path).unwrap();
    assert!(error(file.datasets()).contains("holds more than 100000 groups and datasets"));
    assert!(error(file.dataset("x")).contains("cannot be listed"));
    drop(file);
    let path = made(dir.path(), |f| f.create_group(&"g/".repeat(200)).map(|_| ()));
    let file = H5File::open(&path).unwrap();
    assert!(error(file.datasets()).contains("groups are nested"));
}

#[test]
fn virtual_datasets_and_those_of_other_files_are_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = made(dir.path(), |f| {
        f.new_dataset::<f32>().shape([4]).create("stored")?.write_raw(&[1f32, 2.0, 3.0, 4.0])?;
        for (name, source) in [("itself", "itself"), ("good", "stored")] {
            let builder = f.new_dataset::<f32>().shape([4]);
            builder.with_dcpl(|d| d.virtual_map(".", source, [4], .., [4], ..)).create(name)?;
        }
        std::fs::copy(f.filename(), dir.path().join("other.h5")).unwrap();
        f.link_external("other.h5", "/stored", "elsewhere")
    });
    let file = H5File::open(&path).unwrap();
    assert_eq!(file.dataset("stored").unwrap().read().unwrap().into_f32(), [1.0, 2.0, 3.0, 4.0]);
    for name in ["itself", "good"] {
        assert!(error(file.dataset(name)).contains("it is virtual"));
    }
    assert!(error(file.dataset("elsewhere")).contains("cannot be read as a dataset"));
}

/// A heap of names whose last free block says that it is followed by itself, in the root and in a group.
#[test]
fn free_blocks_in_a_circle_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.h5");
    let file = File::with_options().with_fapl(|p| p.libver_earliest()).create(&path).unwrap();
    file.create_group("data").unwrap().new_dataset::<f32>().shape([2]).create("x").unwrap();
    file.close().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let number = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().unwrap()) as usize;
    let heaps = whole.windows(4).enumerate().filter(|(_, bytes)| *bytes == b"HEAP");
    let free: Vec<usize> = heaps.map(|(heap, _)| number(heap + 24) + number(heap + 16)).collect();
    assert_eq!(free.len(), 2);
    for (i, at) in free.into_iter().enumerate() {
        let mut bytes = whole.clone();
        let heap = whole.windows(4).enumerate().filter(|(_, bytes)| *bytes == b"HEAP").nth(i).unwrap().0;
        bytes[at..at + 8].copy_from_slice(&(number(heap + 16) as u64).to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let found = H5File::open(&path).and_then(|file| {
            assert!(!file.contains("data/x"));
            assert!(file.members("data").is_err());
            file.datasets()
        });
        let e = error(found);
        assert!(e.contains("is damaged: the free blocks of its names are a circle"), "{e}");
    }
}

#[test]
fn filters_that_trust_their_chunks_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = made(dir.path(), |f| {
        let chunked = || f.new_dataset::<i32>().shape([4]).chunk([2]);
        chunked().nbit().create("bits")?.write_raw(&[1, 2, 3, 4])?;
        chunked().scale_offset(ScaleOffset::Integer(4)).deflate(1).create("offset")?.write_raw(&[1, 2, 3, 4])?;
        chunked().shuffle().deflate(1).fletcher32().create("others")?.write_raw(&[1, 2, 3, 4])
    });
    let file = H5File::open(&path).unwrap();
    for (name, filter) in [("bits", "N-bit"), ("offset", "scale-offset")] {
        let e = error(file.dataset(name));
        assert!(e.contains(&format!("dataset '{name}' cannot be read: of its filter {filter}, damage")), "{e}");
        assert!(e.contains("h5repack") && error(file.text(name)).contains(filter), "{e}");
    }
    assert_eq!(file.dataset("others").unwrap().read().unwrap().into_f32(), [1.0, 2.0, 3.0, 4.0]);
}

/// Headers of either version, in several blocks, in files with something before them.
#[test]
fn every_kind_of_header_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    for latest in [false, true] {
        for userblock in [0, 2048] {
            let path = dir.path().join(format!("{latest}{userblock}.h5"));
            let options = &mut File::with_options();
            options.with_fapl(|p| if latest { p.libver_latest() } else { p.libver_earliest() });
            options.with_fcpl(|p| p.userblock(userblock));
            let file = options.create(&path).unwrap();
            for (i, chunk) in [None, Some([2, 2])].into_iter().enumerate() {
                let builder = file.new_dataset::<i16>().shape([3, 4]);
                let builder = if let Some(chunk) = chunk { builder.chunk(chunk).deflate(3) } else { builder };
                let dataset = builder.create(format!("d{i}").as_str()).unwrap();
                dataset.write_raw(&(0..12).collect::<Vec<i16>>()).unwrap();
                for a in 0..30 {
                    dataset.new_attr::<f64>().shape([20]).create(format!("a{a}").as_str()).unwrap();
                }
            }
            file.close().unwrap();
            let file = H5File::open(&path).unwrap();
            for name in ["d0", "d1"] {
                let values = file.dataset(name).unwrap().read().unwrap().into_f32();
                assert_eq!(values, (0..12).map(|v| v as f32).collect::<Vec<_>>(), "{name} of {}", path.display());
            }
        }
    }
}

#[test]
fn the_librarys_reason_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = made(dir.path(), |f| {
        f.link_soft("/nowhere", "data")?;
        f.create_group("group")?;
        f.new_dataset::<hdf5_metno::types::VarLenUnicode>().shape([2]).create("words")?;
        Ok(())
    });
    let file = H5File::open(&path).unwrap();
    let e = error(file.dataset("data"));
    assert!(e.contains("'data' cannot be read as a dataset:") && e.contains("not found"), "{e}");
    assert!(error(file.dataset("group")).contains("'group' cannot be read as a dataset:"));
    assert!(
        error(file.dataset("words")).contains("expected integers or floating-point numbers, found the type 'string'")
    );
    assert!(error(file.groups("group/none")).contains("has no group 'group/none'"));
    assert!(error(file.text("words")).contains("'words' cannot be read as a string"));
    assert!(error(file.integer("iter")).contains("no dataset named 'iter'"));
}

#[test]
fn datasets_larger_than_memory_are_refused_before_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = made(dir.path(), |f| {
        f.new_dataset::<f32>().shape([1 << 20, 1 << 20]).chunk([64, 64]).create("chunked")?;
        f.new_dataset::<f32>().shape([1 << 28, 1 << 20]).create("contiguous")?;
        f.new_dataset::<i32>().shape([1 << 40]).chunk([64]).create("iter")?;
        Ok(())
    });
    let file = H5File::open(&path).unwrap();
    for name in ["chunked", "contiguous"] {
        let dataset = file.dataset(name).unwrap();
        let e = error(dataset.read());
        assert!(e.contains(&format!("what is read of dataset '{name}'")) && e.contains("there are only"), "{e}");
        let e = error(dataset.check_stored());
        assert!(e.contains("cannot be stored in a file of"), "{e}");
        assert!(error(dataset.read_into(&mut [0f32; 4])).contains("expected 4 numbers"));
    }
    assert_eq!(file.dataset("chunked").unwrap().read_rows(7..8).unwrap(), Values::F32(vec![0.0; 1 << 20]));
    assert!(error(file.integer("iter")).contains("expected 1 numbers"));
}

#[test]
fn whatever_the_bytes_say_reading_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.h5");
    let image = H5Image::new(&path).unwrap();
    let ramp: Vec<f32> = (0..600).map(|i| i as f32).collect();
    image.dataset::<f32>("data/conv/0", &[20, 30].into(), None).unwrap().write(&ramp).unwrap();
    image.dataset::<f32>("data/conv/1", &[20, 30].into(), Some(4)).unwrap().write(&ramp).unwrap();
    image.text("learned_net", "x.caffemodel").unwrap();
    let whole = image.bytes().unwrap();
    let heads: Vec<usize> = ["TREE", "HEAP", "SNOD", "\u{1}\0"]
        .iter()
        .flat_map(|s| whole.windows(s.len()).enumerate().filter(|(_, w)| *w == s.as_bytes()).map(|(i, _)| i))
        .collect();
    let mut seed = 3u64;
    let mut next = |n: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % n
    };
    for _ in 0..1000 {
        let mut bytes = whole.clone();
        for _ in 0..=next(3) {
            let at = (heads[next(heads.len())] + next(200)).min(bytes.len() - 9);
            match next(4) {
                0 => bytes[at] = next(256) as u8,
                1 => bytes[at] ^= 1 << next(8),
                2 => bytes[at..at + 8].fill([0, 0x7f, 0xff][next(3)]),
                _ => bytes.truncate(at),
            }
            if bytes.len() < 200 {
                break;
            }
            bytes.resize(whole.len(), 0);
        }
        std::fs::write(&path, bytes).unwrap();
        let Ok(file) = H5File::open(&path) else { continue };
        let _ = (file.groups("data"), file.text("learned_net"), file.datasets());
        for name in ["data/conv/0", "data/conv/1"] {
            let Ok(dataset) = file.dataset(name) else { continue };
            let _ = dataset.check_stored().and_then(|()| dataset.read_rows(0..dataset.rows().min(20)));
        }
    }
}

#[test]
fn images_are_files_that_every_version_reads_and_disks_may_be_full() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.h5");
    let (a, b) = (H5Image::new(&path).unwrap(), H5Image::new(&path).unwrap());
    a.dataset::<f32>("x", &Shape::from([2]), None).unwrap().write(&[1f32, 2.0]).unwrap();
    a.dataset::<f32>("loss", &Shape::scalar(), None).unwrap().write(&[3f32]).unwrap();
    a.group("data/none").unwrap();
    b.dataset::<u8>("y", &Shape::from([3, 2]), Some(2)).unwrap().append(&[1u8, 2, 3, 4]).unwrap();
    let bytes = a.bytes().unwrap();
    assert_eq!(bytes[8], 0, "a superblock newer than HDF5 1.8");
    std::fs::write(&path, bytes).unwrap();
    let file = H5File::open(&path).unwrap();
    assert_eq!(file.dataset("x").unwrap().read().unwrap().into_f32(), [1.0, 2.0]);
    assert_eq!(file.dataset("loss").unwrap().read().unwrap().into_f32(), [3.0]);
    assert!(file.contains("data/none") && !file.contains("data/other"));
    drop(file);
    b.write_atomic().unwrap();
    assert_eq!(H5File::open(&path).unwrap().dataset("y").unwrap().read().unwrap(), Values::U8(vec![1, 2, 3, 4, 0, 0]));

    let full = H5Image::new(Path::new("/dev/full")).unwrap();
    full.dataset::<f32>("x", &Shape::from([20_000]), None).unwrap().write(&[1f32; 20_000]).unwrap();
    let e = error(full.write_to(Path::new("/dev/full")));
    assert!(e.contains("/dev/full: cannot write: No space left on device"), "{e}");
    let e = error(write_f32(dir.path().join("no/x.h5"), &[("x", &Shape::from([1]), &[1.0])]));
    assert!(e.contains("no/x.h5: cannot") && e.contains("No such file"), "{e}");
    let huge = H5Image::new(&path).unwrap();
    assert!(error(huge.dataset::<f32>("x", &Shape::from([1 << 50]), None)).contains("there are only"));
}

#[test]
fn a_string_may_be_of_any_bytes() {
    use hdf5_metno::types::FixedAscii;
    let dir = tempfile::tempdir().unwrap();
    let bytes = b"caf\xe9_iter_5.caffemodel";
    let path = made(dir.path(), |f| {
        // SAFETY: the bytes go to the file as they are; nothing takes them for text.
        let text = unsafe { FixedAscii::<64>::from_ascii_unchecked(bytes) };
        f.new_dataset::<FixedAscii<64>>().create("learned_net")?.write_scalar(&text)
    });
    let text = H5File::open(&path).unwrap().text("learned_net").unwrap();
    assert_eq!(*lgm_proto::strings::to_bytes(&text), *bytes);
}
