//! The kind of a file, by its contents: the one place that distinguishes nets, solvers, weights and states, from each other
//! and from what a download that went wrong left under a model's name.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use prost_reflect::ReflectMessage;

use crate::binary::{HDF5_SIGNATURE, outline};
use crate::error::BinaryFault;
use crate::text::top_level_names;
use crate::{Error, NetParameter, Result, SolverParameter};

/// Bytes at the start of a file that are looked at.
const HEAD: usize = 1 << 16;

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A net's prototxt.
    Net,
    /// A solver's prototxt.
    Solver,
    /// A net's learned values, binary or HDF5.
    Weights,
    /// A solver's state, binary or HDF5.
    State,
    /// What stands beside a solver's state under its name and `.lgm`.
    StateExtra,
    /// One array in Caffe's binary format: a mean image.
    Mean,
    /// HDF5; what is in it is not looked at here.
    Hdf5,
    /// HDF5 with datasets at its root: data for HDF5Data layers.
    Hdf5Data,
    /// Images in MNIST's format, idx.
    IdxImages,
    /// Labels in MNIST's format, idx.
    IdxLabels,
    /// What Python's pickle module wrote, CIFAR's batches among others.
    Pickle,
    /// The database file of an LMDB folder.
    Lmdb,
    /// A web page.
    Html,
    /// What Git has in place of a file kept by Git LFS.
    LfsPointer,
    /// Files packed or compressed, by the name of the format.
    Archive(&'static str),
    /// A picture, by the name of the format.
    Image(&'static str),
    /// NumPy's format.
    Numpy,
    /// Nothing at all.
    Empty,
    /// A folder.
    Folder,
    /// None of these, or damaged, or no plain file.
    Unknown,
}

impl FileKind {
    /// The kind of the file at a path. [`FileKind::Unknown`] for pipes and devices, which are not read.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn of(path: impl AsRef<Path>) -> Result<FileKind> {
        let path = path.as_ref();
        let about = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        if about.is_dir() {
            return Ok(FileKind::Folder);
        }
        if !about.is_file() {
            return Ok(FileKind::Unknown);
        }
        let mut head = Vec::new();
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        file.take(HEAD as u64).read_to_end(&mut head).map_err(Error::io(path, "read"))?;
        Ok(FileKind::of_head(&head))
    }

    /// The kind of a file that begins so.
    pub fn of_head(head: &[u8]) -> FileKind {
        let head = head.get(..HEAD).unwrap_or(head);
        if head.is_empty() {
            return FileKind::Empty;
        }
        if let Some((_, _, kind)) =
            SIGNATURES.iter().find(|(at, bytes, _)| head.get(*at..).is_some_and(|h| h.starts_with(bytes)))
        {
            return *kind;
        }
        // Comments may hold anything but this.
        let blank = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
        match head.iter().any(|byte| *byte < b' ' && !blank(byte)) {
            true => of_binary(head),
            false => of_text(&String::from_utf8_lossy(head)),
        }
    }

    /// Refuses a file of another kind than `wanted`. One that cannot be recognised or read passes: whoever reads it says
    /// what is wrong.
    ///
    /// # Errors
    /// [`Error::Binary`], which says what was found and what takes it.
    pub fn expect(self, wanted: FileKind, path: &Path) -> Result<()> {
        let passes = match (self, wanted) {
            (FileKind::Unknown, _) => true,
            (FileKind::Hdf5, FileKind::Weights | FileKind::State | FileKind::Hdf5Data) => true,
            _ => self == wanted,
        };
        if passes {
            return Ok(());
        }
        Err(Error::binary(path, BinaryFault::OtherKind { wanted, found: self }))
    }

    /// What it is, and what to do with it.
    pub fn described(self) -> String {
        format!("{self}{}", self.remedy())
    }

    fn remedy(self) -> &'static str {
        match self {
            FileKind::Net => ": -model takes it, and a solver's field 'net'",
            FileKind::Solver => ": -solver takes it",
            FileKind::Weights => ": -weights takes it",
            FileKind::State => ": train's -snapshot takes it",
            FileKind::StateExtra => ": train's -snapshot takes the solver state, whose name is this one without .lgm",
            FileKind::Mean => ": transform_param's mean_file takes it",
            FileKind::Hdf5Data => ": HDF5Data layers take it, by a list that names it",
            FileKind::IdxImages => ": convert-mnist takes it, before the labels",
            FileKind::IdxLabels => ": convert-mnist takes it, behind the images",
            FileKind::Pickle => ": convert-cifar takes the folder it is in, if it is CIFAR's",
            FileKind::Lmdb => ": Data layers take the folder it is in",
            FileKind::Html => ": a download that failed, or of the page about the file; get the file itself",
            FileKind::LfsPointer => ": 'git lfs pull' gets the file itself",
            FileKind::Archive(_) => ": unpack it",
            FileKind::Empty | FileKind::Image(_) | FileKind::Numpy | FileKind::Folder => "",
            FileKind::Hdf5 | FileKind::Unknown => "",
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileKind::Net => "a net's prototxt",
            FileKind::Solver => "a solver's prototxt",
            FileKind::Weights => "weights (.caffemodel)",
            FileKind::State => "a solver state (.solverstate)",
            FileKind::StateExtra => "the .lgm file beside a solver state",
            FileKind::Mean => "a mean image (.binaryproto)",
            FileKind::Hdf5 => "an HDF5 file",
            FileKind::Hdf5Data => "HDF5 data",
            FileKind::IdxImages => "images in MNIST's format (idx)",
            FileKind::IdxLabels => "labels in MNIST's format (idx)",
            FileKind::Pickle => "a Python pickle",
            FileKind::Lmdb => "an LMDB database",
            FileKind::Html => "a web page",
            FileKind::LfsPointer => "a Git LFS pointer",
            FileKind::Archive(format) => return write!(f, "an archive ({format})"),
            FileKind::Image(format) => return write!(f, "a picture ({format})"),
            FileKind::Numpy => "a NumPy array",
            FileKind::Empty => "an empty file",
            FileKind::Folder => "a folder",
            FileKind::Unknown => "a file of an unknown kind",
        })
    }
}

/// How files of some kinds begin: where, with what.
const SIGNATURES: [(usize, &[u8], FileKind); 24] = [
    (0, HDF5_SIGNATURE, FileKind::Hdf5),
    (0, b"version https://git-lfs.github.com/spec/", FileKind::LfsPointer),
    (0, b"PK\x03\x04", FileKind::Archive("zip")),
    (0, b"\x1f\x8b\x08", FileKind::Archive("gzip")),
    (0, b"BZh", FileKind::Archive("bzip2")),
    (0, b"\xfd7zXZ\x00", FileKind::Archive("xz")),
    (0, b"\x28\xb5\x2f\xfd", FileKind::Archive("zstd")),
    (0, b"7z\xbc\xaf\x27\x1c", FileKind::Archive("7z")),
    (0, b"Rar!\x1a\x07", FileKind::Archive("rar")),
    (257, b"ustar", FileKind::Archive("tar")),
    (0, b"\x89PNG\r\n\x1a\n", FileKind::Image("PNG")),
    (0, b"\xff\xd8\xff", FileKind::Image("JPEG")),
    (0, b"GIF8", FileKind::Image("GIF")),
    (0, b"II*\0", FileKind::Image("TIFF")),
    (0, b"MM\0*", FileKind::Image("TIFF")),
    (8, b"WEBPVP8", FileKind::Image("WebP")),
    (0, b"\x93NUMPY", FileKind::Numpy),
    (0, b"\x00\x00\x08\x03", FileKind::IdxImages),
    (0, b"\x00\x00\x08\x01", FileKind::IdxLabels),
    (0, b"\x80\x02", FileKind::Pickle),
    (0, b"\x80\x03", FileKind::Pickle),
    (0, b"\x80\x04", FileKind::Pickle),
    (0, b"\x80\x05", FileKind::Pickle),
    (16, b"\xde\xc0\xef\xbe", FileKind::Lmdb),
];

/// Caffe's binary messages, by the fields they have at their outermost level.
fn of_binary(head: &[u8]) -> FileKind {
    use prost::encoding::WireType::{
        self, LengthDelimited as Bytes, SixtyFourBit as Double, ThirtyTwoBit as Float, Varint,
    };
    let fields = outline(head);
    let only = |known: &[(u64, WireType)]| fields.iter().all(|field| known.contains(field));
    let any = |wanted: &[(u64, WireType)]| fields.iter().any(|field| wanted.contains(field));
    let net = [1, 2, 3, 6, 8, 100].map(|number| (number, Bytes));
    if only(&[&net[..], &[(4, Varint), (4, Bytes), (5, Varint), (7, Varint)]].concat())
        && any(&[(2, Bytes), (100, Bytes)])
    {
        return FileKind::Weights;
    }
    if only(&[(1, Varint), (2, Bytes), (3, Bytes), (4, Varint)])
        && any(&[(1, Varint)])
        && any(&[(2, Bytes), (3, Bytes)])
    {
        return FileKind::State;
    }
    let values = [(5, Bytes), (5, Float), (8, Bytes), (8, Double)];
    let others = [(6, Bytes), (6, Float), (7, Bytes), (9, Bytes), (9, Double)];
    let extents = [1, 2, 3, 4].map(|number| (number, Varint));
    if only(&[&values[..], &others, &extents].concat()) && any(&values) && any(&[&extents[..], &[(7, Bytes)]].concat())
    {
        return FileKind::Mean;
    }
    FileKind::Unknown
}

fn of_text(head: &str) -> FileKind {
    let start = head.trim_start_matches('\u{feff}').trim_start().get(..64).unwrap_or(head).to_ascii_lowercase();
    if ["<!doctype html", "<html", "<head", "<?xml", "<!--"].iter().any(|tag| start.trim_start().starts_with(tag)) {
        return FileKind::Html;
    }
    if start.starts_with('{') && head.contains("\"smoothed_loss\"") {
        return FileKind::StateExtra;
    }
    let (net, solver) = (NetParameter::default().descriptor(), SolverParameter::default().descriptor());
    let names = top_level_names(head);
    let known = |message: &prost_reflect::MessageDescriptor| {
        names.iter().filter(|name| message.get_field_by_name(name).is_some()).count()
    };
    match known(&net).cmp(&known(&solver)) {
        std::cmp::Ordering::Greater => FileKind::Net,
        std::cmp::Ordering::Less => FileKind::Solver,
        std::cmp::Ordering::Equal => FileKind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlobProto, Datum, LayerParameter, SolverState, encode};

    #[test]
    fn files_are_told_apart_by_what_is_in_them() {
        let blob = || BlobProto::from_f32(&[2, 2], vec![1.0; 4], None);
        let layer = LayerParameter { name: Some("a".into()), blobs: vec![blob(); 3], ..Default::default() };
        let net = encode(&NetParameter { name: Some("n".into()), layer: vec![layer], ..Default::default() });
        let state =
            SolverState { iter: Some(3), learned_net: Some("n".into()), history: vec![blob()], current_step: Some(0) };
        let state = encode(&state);
        let old = BlobProto { num: Some(1), data: vec![1.0; 9], ..Default::default() };
        let datum =
            Datum { channels: Some(1), height: Some(1), width: Some(1), data: Some(vec![0]), ..Default::default() };
        let table: &[(&[u8], FileKind)] = &[
            (b"", FileKind::Empty),
            (b"# \xe9\nname: 'n' layer { name: 'a' }", FileKind::Net),
            (b"\xef\xbb\xbfinput: 'x' input_dim: [1, 2]", FileKind::Net),
            (b"net: 'a' base_lr: 0.1 lr_polcy: 'fixed'", FileKind::Solver),
            (b"net_param { name: 'n' layer {} }", FileKind::Solver),
            (b"a.h5\nb.h5\n", FileKind::Unknown),
            (b"\n  <!DOCTYPE html>\n<html>", FileKind::Html),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", FileKind::LfsPointer),
            (b"PK\x03\x04....", FileKind::Archive("zip")),
            (b"\x89HDF\r\n\x1a\n\0\0", FileKind::Hdf5),
            (b"{\n \"version\": 1,\n \"smoothed_loss\": \"0\"}", FileKind::StateExtra),
            (&net, FileKind::Weights),
            (&net[..net.len() / 2], FileKind::Weights),
            (&state, FileKind::State),
            (&state[..state.len() / 2], FileKind::State),
            (&encode(&blob()), FileKind::Mean),
            (&encode(&old), FileKind::Mean),
            (&encode(&datum), FileKind::Unknown),
            (&[0xff; 40], FileKind::Unknown),
            (b"MM\0*\0\0\0\x08", FileKind::Image("TIFF")),
            (b"RIFF\x1a\0\0\0WEBPVP8L", FileKind::Image("WebP")),
            (&[0, 0, 8, 3, 0, 0, 0, 1], FileKind::IdxImages),
            (&[0, 0, 8, 1, 0, 0, 0, 1], FileKind::IdxLabels),
            (&[0, 0, 8, 2, 0, 0, 0, 1], FileKind::Unknown),
            (b"\x80\x04}.", FileKind::Pickle),
            (&[&[0; 10][..], &[8, 0, 0, 0, 0, 0, 0xde, 0xc0, 0xef, 0xbe, 1, 0, 0, 0]].concat(), FileKind::Lmdb),
        ];
        for (head, kind) in table {
            assert_eq!(FileKind::of_head(head), *kind, "{}", String::from_utf8_lossy(head));
        }
        assert_eq!(FileKind::of(std::env::temp_dir()).unwrap(), FileKind::Folder);
    }

    #[test]
    fn another_kind_is_refused_with_what_takes_it() {
        let said = |kind: FileKind| kind.expect(FileKind::State, Path::new("x")).unwrap_err().to_string();
        assert_eq!(
            said(FileKind::Weights),
            "x: expected a solver state (.solverstate), found weights (.caffemodel): -weights takes it"
        );
        assert!(said(FileKind::Archive("zip")).ends_with("found an archive (zip): unpack it"));
        assert!(FileKind::Unknown.expect(FileKind::Net, Path::new("x")).is_ok());
        assert!(FileKind::Hdf5.expect(FileKind::State, Path::new("x")).is_ok());
        assert!(FileKind::Hdf5.expect(FileKind::IdxImages, Path::new("x")).is_err());
    }
}
