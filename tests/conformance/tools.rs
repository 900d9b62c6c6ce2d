//! `tools/`: commands, what they write and what they log.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use heed::CommitOrAbort;
use heed::types::Bytes;
use lgm_proto::prost::Message;
use lgm_proto::{BlobProto, Datum, NetParameter, SolverParameter, parse};
use lgm_testkit::{Recorded, golden};
use regex::Regex;
use rusty_leveldb::LdbIterator;
use serde_json::Value;

use super::compare::Worst;
use super::{Outcome, Trial, copy_folder};
use crate::util;

pub fn run(trial: &Trial) -> Outcome {
    trial.copy();
    let case: Value = serde_json::from_str(&trial.read("case.json")?).unwrap();
    let commands: Vec<Vec<&str>> = case["run"].as_array().unwrap().iter().map(words).collect();
    let must_fail = case["fails"].as_bool().unwrap_or(false);
    let allowed = case["atol"].as_f64().unwrap_or(0.0);
    let mut log = String::new();
    for (i, args) in commands.iter().enumerate() {
        let (code, printed) = trial.run_any(args);
        if must_fail && i + 1 == commands.len() {
            let refused = code == Some(1) && printed.contains("error: ");
            return if refused {
                Ok(Worst::default())
            } else {
                Err(format!("{args:?} should have been refused: {printed}"))
            };
        }
        match code {
            Some(0) => log = printed,
            // Flags are looked at before the command that takes them is missed.
            Some(2) => return Err(format!("{}\n{printed}", trial.run_any(&args[..1]).1)),
            _ => return Err(printed),
        }
    }
    for (name, kind) in case["compare"].as_object().unwrap() {
        let want = trial.recording.join("want").join(name);
        let kind = kind.as_str().unwrap();
        let compared = match kind {
            "log" => same_log(&log, &text(&want)?),
            "lmdb" => same_records(&lmdb(&trial.at(name))?, &want, allowed),
            "leveldb" => same_records(&leveldb(&trial.at(name))?, &want, allowed),
            "text" => same_text(commands[0][0], &text(&trial.at(name))?, &text(&want)?),
            "csv" => same_table(&text(&trial.at(name))?, &text(&want)?),
            "wire" => same_net(&bytes(&trial.at(name))?, &bytes(&want)?),
            "blob" => same_blob(&bytes(&trial.at(name))?, &bytes(&want)?, allowed),
            _ => Err(format!("files of kind '{kind}' cannot be compared here")),
        };
        compared.map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(Worst { error: 0.0, what: commands[0][0].into() })
}

fn words(command: &Value) -> Vec<&str> {
    command.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn text(path: &Path) -> Result<String, String> {
    Ok(String::from_utf8_lossy(&bytes(path)?).into_owned())
}

fn near(got: f64, want: f64, relative: f64, absolute: f64) -> bool {
    got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= absolute + relative * want.abs()
}

/// Each wanted line must come after the one before it. `~` stands for any number, the others are compared, and a line may say
/// more at its end.
fn same_log(log: &str, want: &str) -> Result<(), String> {
    let number = Regex::new(r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)|~").unwrap();
    let spaces = Regex::new(r"\s+").unwrap();
    let literal = |text: &str| spaces.split(text).map(regex::escape).collect::<Vec<_>>().join(r"\s+");
    let mut lines = log.lines().map(util::text);
    for wanted in want.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let alone = |found: &regex::Match<'_>| {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let before =
                wanted[..found.start()].chars().next_back().is_some_and(|c| is_word(c) || c == '.' || c == '#');
            found.as_str() == "~" || (!before && !wanted[found.end()..].starts_with(is_word))
        };
        let (mut pattern, mut end, mut numbers) = (String::from(r"^\s*"), 0, Vec::new());
        for found in number.find_iter(wanted).filter(alone) {
            pattern += &literal(&wanted[end..found.start()]);
            pattern += r"([-+.\deE]+|nan|inf)";
            end = found.end();
            numbers.push(found.as_str());
        }
        pattern += &literal(&wanted[end..]);
        let pattern = Regex::new(&format!(r"{pattern}(?:\s.*)?$")).unwrap();
        let matches = |line: &str| {
            let Some(found) = pattern.captures(line) else { return false };
            let same = |(i, want): (usize, &&str)| {
                *want == "~" || near(found[i + 1].parse().unwrap_or(f64::INFINITY), want.parse().unwrap(), 2e-3, 2e-4)
            };
            numbers.iter().enumerate().all(same)
        };
        if !lines.any(matches) {
            return Err(format!("no line like '{wanted}' in its place"));
        }
    }
    Ok(())
}

fn same_text(command: &str, got: &str, want: &str) -> Result<(), String> {
    fn fields<T: lgm_proto::prost_reflect::ReflectMessage + Default + PartialEq>(
        got: &str,
        want: &str,
    ) -> Result<bool, String> {
        let [got, want] = [got, want].map(|text| parse::<T>(text.as_bytes(), Path::new("out.prototxt")));
        let told = |e: lgm_proto::Error| e.to_string();
        Ok(got.map_err(told)?.message == want.map_err(told)?.message)
    }
    let same = if command.contains("solver") {
        fields::<SolverParameter>(got, want)
    } else {
        fields::<NetParameter>(got, want)
    };
    if same? { Ok(()) } else { Err(format!("fields differ: {got}")) }
}

fn same_table(got: &str, want: &str) -> Result<(), String> {
    let rows = |text: &str| -> Vec<Vec<String>> {
        text.lines().map(|line| line.split([',', ';', '\t']).map(|cell| cell.trim().to_string()).collect()).collect()
    };
    let (got, want) = (rows(got), rows(want));
    let numbers =
        |rows: &[Vec<String>]| rows.iter().skip(1).flatten().map(|x| x.parse().unwrap_or(f64::INFINITY)).collect();
    let (x, y): (Vec<f64>, Vec<f64>) = (numbers(&got), numbers(&want));
    let same =
        got.first() == want.first() && x.len() == y.len() && x.iter().zip(&y).all(|(x, y)| near(*x, *y, 1e-5, 1e-8));
    if same { Ok(()) } else { Err(format!("{got:?}, not {want:?}")) }
}

fn decoded<T: Message + Default>(bytes: &[u8]) -> Result<T, String> {
    T::decode(bytes).map_err(|e| e.to_string())
}

fn same_net(got: &[u8], want: &[u8]) -> Result<(), String> {
    let same = decoded::<NetParameter>(got)? == decoded::<NetParameter>(want)?;
    if same { Ok(()) } else { Err("fields differ".into()) }
}

fn same_blob(got: &[u8], want: &[u8], allowed: f64) -> Result<(), String> {
    let (mut got, mut want): (BlobProto, BlobProto) = (decoded(got)?, decoded(want)?);
    let (x, y) = (std::mem::take(&mut got.data), std::mem::take(&mut want.data));
    let values = x.len() == y.len() && x.iter().zip(&y).all(|(x, y)| near(*x as f64, *y as f64, 1e-5, allowed));
    if values && got == want { Ok(()) } else { Err("shape or values differ".into()) }
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// All records of an LMDB, read by the library itself.
fn lmdb(path: &Path) -> Result<Records, String> {
    let read = || -> heed::Result<Records> {
        // SAFETY: nothing writes the database any more.
        let env = unsafe { heed::EnvOpenOptions::new().map_size(1 << 30).open(path)? };
        let mut found = Records::new();
        env.open_databases_and_commit(env.read_txn()?, |opener, transaction| {
            if let Some(records) = opener.open_database::<Bytes, Bytes>(transaction, None)? {
                for record in records.iter(transaction)? {
                    let (key, value) = record?;
                    found.insert(key.to_vec(), value.to_vec());
                }
            }
            Ok::<_, heed::Error>(CommitOrAbort::<(), ()>::Abort(()))
        })?;
        Ok(found)
    };
    read().map_err(|e| format!("{}: {e}", path.display()))
}

/// All records of a LevelDB.
fn leveldb(path: &Path) -> Result<Records, String> {
    let options = rusty_leveldb::Options { create_if_missing: false, ..rusty_leveldb::Options::default() };
    let told = |e: rusty_leveldb::Status| format!("{}: {e}", path.display());
    let mut records = rusty_leveldb::DB::open(path, options).map_err(told)?;
    let mut at = records.new_iter().map_err(told)?;
    Ok(std::iter::from_fn(|| at.next()).collect())
}

/// Compares with the records in `want.npz`.
fn same_records(got: &Records, want: &Path, allowed: f64) -> Result<(), String> {
    let recorded = Recorded::read(&want.with_file_name(format!("{}.npz", want.file_name().unwrap().to_str().unwrap())));
    let values: Vec<u8> = recorded.array("values").unwrap().1.iter().map(|&byte| byte as u8).collect();
    let sizes = recorded.array("sizes").unwrap().1.iter().map(|&size| size as usize);
    let mut rest = &values[..];
    let mut wanted = Records::new();
    for (key, size) in recorded.texts("keys").unwrap().iter().zip(sizes) {
        let (value, more) = rest.split_at(size);
        wanted.insert(key.clone().into_bytes(), value.to_vec());
        rest = more;
    }
    let keys =
        |records: &Records| records.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect::<Vec<_>>();
    if keys(got) != keys(&wanted) {
        return Err(format!("keys {:?}, not {:?}", keys(got), keys(&wanted)));
    }
    for (key, value) in &wanted {
        same_datum(&decoded(&got[key])?, &decoded(value)?, allowed)
            .map_err(|why| format!("{}: {why}", String::from_utf8_lossy(key)))?;
    }
    Ok(())
}

fn same_datum(got: &Datum, want: &Datum, allowed: f64) -> Result<(), String> {
    if (got.label(), got.encoded()) != (want.label(), want.encoded()) {
        return Err("label or encoded differ".into());
    }
    let floats = got.float_data.iter().zip(&want.float_data).all(|(x, y)| near(*x as f64, *y as f64, 1e-4, 1e-5));
    if got.float_data.len() != want.float_data.len() || !floats {
        return Err("float_data differ".into());
    }
    let pixels = |datum: &Datum| -> Result<(Vec<i32>, Vec<u8>), String> {
        if !datum.encoded() {
            return Ok((vec![datum.channels(), datum.height(), datum.width()], datum.data().to_vec()));
        }
        let image = image::load_from_memory(datum.data()).map_err(|e| e.to_string())?;
        let shape = vec![image.color().channel_count() as i32, image.height() as i32, image.width() as i32];
        Ok((shape, image.into_bytes()))
    };
    let ((shape, got), (wanted, want)) = (pixels(got)?, pixels(want)?);
    if shape != wanted || got.len() != want.len() {
        return Err(format!("shape {shape:?}, not {wanted:?}"));
    }
    let far = got.iter().zip(&want).map(|(x, y)| x.abs_diff(*y)).max().unwrap_or(0);
    if f64::from(far) <= allowed { Ok(()) } else { Err(format!("pixels differ by {far}")) }
}

/// The same images written by Caffe's converter in both ways; in a copy, since a LevelDB is changed by looking.
#[test]
fn databases_are_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        copy_folder(&golden(&format!("db/{name}")), &folder.path().join(name));
        folder.path().join(name)
    };
    let (one, other) = (lmdb(&copy("mnist_200_lmdb")).unwrap(), leveldb(&copy("mnist_200_leveldb")).unwrap());
    assert!(one.len() == 200 && one == other);
    assert!(lmdb(&folder.path().join("none")).is_err() && leveldb(&folder.path().join("none")).is_err());
}

#[test]
fn comparisons_see_what_differs() {
    let log = "I1127 00:00:00.000001 1 a.rs:1] Iteration 4, loss = 0.51 (* 1 = 0.51 loss)\nnext   a 3x3\nlast 7 ms.";
    for wanted in ["Iteration 4, loss = 0.5101\nlast ~ ms.", "  next a 3x3", "Iteration 4, loss = 0.51 (* 1 = ~ loss)"]
    {
        assert_eq!(same_log(log, wanted), Ok(()), "{wanted}");
    }
    for wanted in
        ["Iteration 5, loss = 0.51", "Iteration 4, loss = 0.52", "last 7 ms.\nnext a 3x3", "next a 3x4", "nex"]
    {
        assert!(same_log(log, wanted).is_err(), "{wanted}");
    }
    let table = "a,b\n1,2.5\n3,nan\n";
    assert_eq!(same_table(table, "a,b\n1.0,2.500001\n3,nan\n"), Ok(()));
    for other in ["a,c\n1,2.5\n3,nan\n", "a,b\n1,2.6\n3,nan\n", "a,b\n1,2.5\n"] {
        assert!(same_table(table, other).is_err(), "{other}");
    }
    assert_eq!(
        same_text("upgrade_net_proto_text", "name: 'a' layer { name: \"x\" }", "layer { name: 'x' }\nname: 'a'"),
        Ok(())
    );
    assert!(same_text("upgrade_net_proto_text", "name: 'a'", "name: 'b'").is_err());
    assert!(same_text("upgrade_solver_proto_text", "base_lr: 0.1", "base_lr: 0.2").is_err());
    assert_eq!(same_text("upgrade_solver_proto_text", "base_lr: 0.1", "base_lr: 1e-1"), Ok(()));
    let blob =
        |value: f32| BlobProto { data: vec![1.0, value], channels: Some(2), ..BlobProto::default() }.encode_to_vec();
    assert_eq!(same_blob(&blob(2.0), &blob(2.00001), 0.0), Ok(()));
    assert!(same_blob(&blob(2.0), &blob(2.1), 0.0).is_err());
    let net = |name: &str| NetParameter { name: Some(name.into()), ..NetParameter::default() }.encode_to_vec();
    assert!(same_net(&net("a"), &net("a")).is_ok() && same_net(&net("a"), &net("b")).is_err());
    let datum = |label: i32, pixel: u8| Datum { label: Some(label), data: Some(vec![pixel]), ..Datum::default() };
    assert_eq!(same_datum(&datum(1, 5), &datum(1, 6), 1.0), Ok(()));
    assert!(
        same_datum(&datum(1, 5), &datum(1, 7), 1.0).is_err() && same_datum(&datum(1, 5), &datum(2, 5), 1.0).is_err()
    );
}
