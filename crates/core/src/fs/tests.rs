use super::*;

#[test]
fn a_failed_write_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    write_atomic::<Error>(&path, |t| fs::write(t, "old").map_err(Error::io(t, "write"))).unwrap();
    let failed = write_atomic::<Error>(&path, |t| {
        fs::write(t, "half").map_err(Error::io(t, "write"))?;
        Err(Error::config("stop"))
    });
    assert!(failed.is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let missing =
        write_atomic::<Error>(dir.path().join("no/b.txt"), |t| fs::write(t, "x").map_err(Error::io(t, "create")));
    assert!(missing.unwrap_err().to_string().contains("cannot create"));
}

#[test]
fn a_pipe_is_written_to_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let reader = std::thread::spawn({
        let path = path.clone();
        move || fs::read_to_string(path).unwrap()
    });
    write_bytes(&path, b"whole").unwrap();
    assert_eq!(reader.join().unwrap(), "whole");
    assert!(is_stream(&path));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn links_of_the_system_are_followed_and_what_they_lead_to_grows() {
    use std::os::fd::AsRawFd;
    let dir = tempfile::tempdir().unwrap();
    let (path, link) = (dir.path().join("redirected"), dir.path().join("link"));
    fs::write(&path, "before, ").unwrap();
    let file = File::open(&path).unwrap();
    let system = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    std::os::unix::fs::symlink(&system, &link).unwrap();
    write_bytes(&system, b"bytes, ").unwrap();
    write_atomic::<Error>(&link, |t| fs::write(t, "more").map_err(Error::io(t, "write"))).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "before, bytes, more");
    assert_eq!(fs::read_link(&link).unwrap(), system);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn names_are_new_each_time_and_planted_links_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (victim, path) = (dir.path().join("victim"), dir.path().join("a"));
    fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, &path).unwrap();
    let mut names = Vec::new();
    for _ in 0..2 {
        write_atomic::<Error>(&path, |t| {
            names.push(t.to_path_buf());
            fs::write(t, "new").map_err(Error::io(t, "write"))
        })
        .unwrap();
    }
    assert_ne!(names[0], names[1]);
    assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
    write_bytes(&path, b"bytes").unwrap();
    assert_eq!((fs::read(&path).unwrap(), fs::read(&victim).unwrap()), (b"bytes".to_vec(), b"precious".to_vec()));
    let plain = fs::File::create(dir.path().join("plain")).unwrap().metadata().unwrap().permissions();
    assert_eq!(fs::metadata(&path).unwrap().permissions(), plain, "as any file that this process makes");
}

#[test]
fn what_killed_processes_left_is_removed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in [".a_iter_1.x.tmp-123", ".b_iter_1.x.tmp-123", "a_iter_1.x.tmp-123", ".a_iter_1.x"] {
        fs::write(at(name), "").unwrap();
    }
    for name in [".db.tmp-123", ".db.tmp-124", ".db2.tmp-123"] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("data.mdb"), "half").unwrap();
    }
    std::os::unix::fs::symlink(at(".a_iter_1.x"), at(".a_iter_2.x.tmp-5")).unwrap();
    let under_way = Staged::bytes(&at("a_iter_3.x"), b"half").unwrap();
    assert_eq!(remove_unfinished(dir.path(), |name| name.starts_with("a_iter_")), [at(".a_iter_1.x.tmp-123")]);
    publish_all([under_way]).unwrap();
    assert_eq!(fs::read(at("a_iter_3.x")).unwrap(), b"half");
    assert!(at(".a_iter_1.x").exists() && at(".a_iter_2.x.tmp-5").is_symlink());
    // Whoever makes the same database clears away what was left of it, and nothing of one that is being made.
    let first = StagedFolder::create(&at("db")).unwrap();
    assert!(!at(".db.tmp-123").exists() && !at(".db.tmp-124").exists() && at(".db2.tmp-123/data.mdb").exists());
    let second = StagedFolder::create(&at("db")).unwrap();
    assert!(first.path().exists() && second.path().exists());
    let file = Staged::bytes(&at("b_iter_1.x"), b"whole").unwrap();
    assert!(!at(".b_iter_1.x.tmp-123").exists());
    publish_all([file, Staged::bytes(&at("b_iter_1.x"), b"whole").unwrap()]).unwrap();
}

#[test]
fn folders_appear_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    drop(StagedFolder::create(&path).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let folder = StagedFolder::create(&path).unwrap();
    fs::write(folder.path().join("f"), "1").unwrap();
    assert!(!path.exists());
    folder.publish().unwrap();
    assert!(path.join("f").exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(StagedFolder::create(&path).is_err());
}

#[test]
fn folders_made_for_nothing_are_removed_again() {
    let dir = tempfile::tempdir().unwrap();
    let (deep, new) = (dir.path().join("a/b"), dir.path().join("a"));
    let fail = || Err::<(), _>(Error::config("stop"));
    assert!(in_folder(&deep, fail).is_err() && !new.exists());
    fs::create_dir(&new).unwrap();
    assert!(in_folder(&deep, fail).is_err() && new.exists() && !deep.exists());
    let half = || fs::write(deep.join("f"), "1").map_err(Error::io(&deep, "write")).and_then(|()| fail());
    assert!(in_folder(&deep, half).is_err() && deep.join("f").exists(), "nothing that holds something goes");
    in_folder(&deep, || Ok(())).unwrap();
}
