//! The Python form of CIFAR: pickled dictionaries of a NumPy array of pixels and a list of labels.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod guard;

use std::collections::BTreeMap;
use std::path::Path;

use lgm_core::{Error, Result};
use lgm_proto::FileKind;
use serde_pickle::{DeOptions, HashableValue, Value};

/// The pixels and labels of a batch file: images × `image_len` 8-bit values, channel-major, and one label an image.
pub(super) fn read_batch(path: &Path, label_key: &str, image_len: usize) -> Result<(Vec<u8>, Vec<usize>)> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    FileKind::of_head(&bytes).expect(FileKind::Pickle, path)?;
    guard::check(&bytes).map_err(|why| Error::data(path, format!("is not a pickled CIFAR batch: it {why}")))?;
    // NumPy's classes are unknown to the reader; what it keeps of an array is the tuple of its state.
    let options = DeOptions::new().replace_unresolved_globals();
    let value = serde_pickle::value_from_slice(&bytes, options)
        .map_err(|e| Error::data(path, format!("is not a pickled CIFAR batch: {e}")))?;
    let Value::Dict(mut dict) = value else {
        return Err(Error::data(path, "is not a pickled CIFAR batch: expected a dictionary"));
    };
    let pixels = take(&mut dict, "data")
        .and_then(|v| array(v, image_len))
        .ok_or_else(|| Error::data(path, format!("expected 'data', an array of images x {image_len} bytes")))?;
    let labels = take(&mut dict, label_key)
        .and_then(integers)
        .ok_or_else(|| Error::data(path, format!("expected '{label_key}', a list of class numbers")))?;
    let images = pixels.chunks_exact(image_len).len();
    if labels.len() != images {
        return Err(Error::data(path, format!("holds {} labels for {images} images", labels.len())));
    }
    Ok((pixels, labels))
}

/// A value by its key, which is bytes as written by Python 2 and text as written by Python 3.
fn take(dict: &mut BTreeMap<HashableValue, Value>, key: &str) -> Option<Value> {
    dict.remove(&HashableValue::Bytes(key.as_bytes().to_vec()))
        .or_else(|| dict.remove(&HashableValue::String(key.into())))
}

/// The elements of a NumPy array of bytes with `width` columns, from its state: (version, shape, dtype, in Fortran
/// order, elements).
fn array(value: Value, width: usize) -> Option<Vec<u8>> {
    let Value::Tuple(state) = value else { return None };
    let [_, Value::Tuple(shape), _, Value::Bool(fortran), Value::Bytes(bytes)] = &state[..] else { return None };
    let [Value::I64(rows), Value::I64(columns)] = shape[..] else { return None };
    let rows = usize::try_from(rows).ok()?;
    if usize::try_from(columns).ok()? != width || rows.checked_mul(width)? != bytes.len() {
        return None;
    }
    if !fortran {
        return Some(bytes.clone());
    }
    let row = |row| bytes.iter().skip(row).step_by(rows.max(1));
    Some((0..rows).flat_map(row).copied().collect())
}

fn integers(value: Value) -> Option<Vec<usize>> {
    let Value::List(items) = value else { return None };
    items
        .into_iter()
        .map(|v| match v {
            Value::I64(n) => usize::try_from(n).ok(),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A batch as Python 2 and NumPy pickle it (protocol 2).
    pub fn python2_batch(label_key: &str, pixels: &[u8], columns: u16, labels: &[u8], fortran: bool) -> Vec<u8> {
        let mut p = b"\x80\x02}(".to_vec();
        let short = |p: &mut Vec<u8>, s: &str| p.extend([&[b'U', s.len() as u8], s.as_bytes()].concat());
        short(&mut p, "data");
        p.extend(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85");
        short(&mut p, "b");
        p.extend(b"\x87R(K\x01");
        let rows = pixels.chunks(columns.into()).count() as u16;
        p.extend([b'M', rows as u8, (rows >> 8) as u8, b'M', columns as u8, (columns >> 8) as u8, b'\x86']);
        p.extend(b"cnumpy\ndtype\n");
        short(&mut p, "u1");
        p.extend(b"K\x00K\x01\x87R(K\x03");
        short(&mut p, "|");
        p.extend(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb");
        p.push(if fortran { b'\x88' } else { b'\x89' });
        p.push(b'T');
        p.extend((pixels.len() as u32).to_le_bytes());
        p.extend(pixels);
        p.extend(b"tb");
        short(&mut p, label_key);
        p.extend(b"](");
        labels.iter().for_each(|&l| p.extend([b'K', l]));
        p.extend(b"eu.");
        p
    }

    fn read(bytes: &[u8]) -> Result<(Vec<u8>, Vec<usize>)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read_batch(file.path(), "labels", 3)
    }

    #[test]
    fn arrays_in_both_orders() {
        let pixels = [1, 2, 3, 4, 5, 6];
        let c = python2_batch("labels", &pixels, 3, &[7, 8], false);
        assert_eq!(read(&c).unwrap(), (pixels.to_vec(), vec![7, 8]));
        let f = python2_batch("labels", &[1, 4, 2, 5, 3, 6], 3, &[7, 8], true);
        assert_eq!(read(&f).unwrap(), (pixels.to_vec(), vec![7, 8]));
    }

    #[test]
    fn what_is_missing_is_named() {
        let fails = |bytes: &[u8], what: &str| {
            let e = read(bytes).unwrap_err().to_string();
            assert!(e.contains(what), "{e}");
        };
        fails(b"junk", "is not a pickled CIFAR batch");
        fails(b"\x80\x02K\x01.", "expected a dictionary");
        fails(b"\x80\x02}.", "expected 'data'");
        fails(&python2_batch("labels", &[1, 2], 2, &[7], false), "images x 3 bytes");
        fails(&python2_batch("other", &[1, 2, 3], 3, &[7], false), "expected 'labels'");
        fails(&python2_batch("labels", &[1, 2, 3], 3, &[7, 8], false), "2 labels for 1 images");
        fails(b"\0\0\x08\x01\0\0\0\0", "expected a Python pickle, found labels in MNIST's format (idx)");
    }

    #[test]
    fn pickles_that_would_take_all_there_is_are_refused() {
        let fails = |bytes: &[u8], what: &str| {
            let e = read(bytes).unwrap_err().to_string();
            assert!(e.contains(&format!("is not a pickled CIFAR batch: it {what}")), "{e}");
        };
        let many = |parts: &[u8]| parts.repeat(1_000_000);
        for nested in [
            [b"]".repeat(1_000_000), many(b"a"), b".".to_vec()].concat(),
            [b"N".to_vec(), many(b"\x85"), b".".to_vec()].concat(),
            [many(b"("), many(b"t"), b".".to_vec()].concat(),
            [many(b"(lp0\n"), many(b"a"), b".".to_vec()].concat(),
            [many(b"}K\0"), b"}".to_vec(), many(b"s"), b".".to_vec()].concat(),
        ] {
            fails(&nested, "holds more than 64 values inside each other");
        }
        fails(&[b"]".to_vec(), b"2a".repeat(60), b".".to_vec()].concat(), "copies a value on its stack");
        // Tuples of ten of the one before, and lists that each hold the next.
        let tuples = (0..20).flat_map(|i: u8| [b"(", &[b'h', i].repeat(10)[..], &[b't', b'q', i + 1]].concat());
        fails(&[b")q\0".to_vec(), tuples.collect(), b".".to_vec()].concat(), "refers to its values so often");
        let lists: Vec<u8> = (0..200).flat_map(|i: u8| [b']', b'q', i]).collect();
        fails(&[lists, b"h\0h\x01a.".to_vec()].concat(), "refers to a list or dictionary a second time");
        fails(
            &[b"U\xff".to_vec(), vec![0; 255], b"q\0".to_vec(), b"h\0".repeat(40_000)].concat(),
            "refers to its values so often",
        );
        let call = b"\x85r\0\0\0\0R".repeat(20_000);
        fails(
            &[many(b"c\n\n"), b"T\0\0\x10\0".to_vec(), vec![0; 1 << 20], call].concat(),
            "refers to its values so often",
        );
        fails(&[b"L".to_vec(), many(b"9"), b"L\n.".to_vec()].concat(), "holds a number of more than 64 bytes");
        fails(b"c\n\n]\x85R]a.", "puts something into a value that is whole");
    }

    #[test]
    fn what_python_writes_is_not_refused() {
        for protocol in ["protocol0", "protocol2", "protocol4"] {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/pickle").join(protocol);
            let bytes = std::fs::read(&file).unwrap();
            assert_eq!(guard::check(&bytes), Ok(()), "{protocol}");
            let (pixels, labels) = read_batch(&file, "fine_labels", 3072).unwrap();
            assert_eq!(pixels.len(), 3072 * labels.len());
        }
    }
}
