//! Files and directories of this machine: whose weights a conversion holds, and what is no
//! model.

use std::{
    fs::{self, File, FileTimes},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use sconce::hub::{FoundModel, HubError, HubOptions};

use crate::{Place, gguf, name_of, resolve};

/// Where the weights begin in the test's GGUF file: they are its last bytes.
fn with_weights(number: f32) -> Vec<u8> {
    let mut bytes = gguf();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The last number of `output_norm.weight`, the file's last tensor, after conversion.
fn last_number(dir: &Path) -> f32 {
    let bytes = fs::read(dir.join("model.safetensors")).expect("it is there");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("it is whole");
    let data = file.tensor("model.norm.weight").expect("it is there").data().to_vec();
    let bits = u32::from(u16::from_le_bytes([data[data.len() - 2], data[data.len() - 1]]));
    f32::from_bits(bits << 16)
}

fn find(path: &Path, options: &HubOptions) -> FoundModel {
    resolve(path.to_str().expect("UTF-8"), options).expect("it is converted")
}

fn write_at(path: &Path, bytes: &[u8], time: SystemTime) {
    fs::write(path, bytes).expect("it is written");
    let file = File::options().write(true).open(path).expect("it opens");
    file.set_times(FileTimes::new().set_modified(time).set_accessed(time)).expect("a time is set");
}

/// Two fine-tunes of one name, size and time are two models: in two directories, one after
/// the other in the same place, and one copied over the other's inode.
#[test]
fn a_file_is_served_with_its_own_weights() {
    let place = Place::new();
    let options = place.options("exit 1");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let paths: Vec<PathBuf> = ["a", "b"].map(|dir| place.path(dir).join("tune.gguf")).into();
    for (path, number) in paths.iter().zip([1.0, 2.0]) {
        fs::create_dir(path.parent().expect("a directory")).expect("it is made");
        write_at(path, &with_weights(number), time);
    }
    for (path, number) in paths.iter().zip([1.0, 2.0]) {
        let found = find(path, &options);
        assert_eq!((last_number(&found.path), &*found.name), (number, "tune"));
    }
    // Written over in place: the inode stays, and the time is put back.
    write_at(&paths[0], &with_weights(3.0), time);
    assert_eq!(last_number(&find(&paths[0], &options).path), 3.0);
    // A link that leads elsewhere now.
    let link = place.path("link.gguf");
    for (path, number) in paths.iter().zip([3.0, 2.0]) {
        fs::remove_file(&link).ok();
        std::os::unix::fs::symlink(path, &link).expect("it is linked");
        assert_eq!(last_number(&find(&link, &options).path), number);
    }
    // What did not change is not converted again, and may be moved.
    let before = find(&paths[1], &options).path;
    let made = fs::metadata(before.join("model.safetensors")).expect("it is there");
    let moved = place.path("moved").join("tune.gguf");
    fs::create_dir(place.path("moved")).expect("it is made");
    fs::rename(&paths[1], &moved).expect("it is moved");
    let after = find(&moved, &options).path;
    let kept = fs::metadata(after.join("model.safetensors")).expect("it is there");
    assert_eq!((&after, made.modified().ok()), (&before, kept.modified().ok()));
    let forced = HubOptions { force: true, ..options };
    assert_eq!(find(&moved, &forced).path, before, "force converts into the same place");
    assert_eq!(last_number(&before), 2.0);
}

#[test]
fn a_conversion_that_lost_a_file_is_made_again() {
    let place = Place::new();
    let options = place.options("exit 1");
    let path = place.path("tiny.gguf");
    fs::write(&path, with_weights(1.0)).expect("it is written");
    let found = find(&path, &options).path;
    for part in ["model.safetensors", "tokenizer.json", "config.json"] {
        fs::remove_file(found.join(part)).expect("it was there");
        assert_eq!(find(&path, &options).path, found);
        assert!(found.join(part).is_file(), "{part}");
    }
    let hidden = |name: &String| name.starts_with('.');
    assert!(!place.models().iter().any(hidden), "{:?}", place.models());
}

#[test]
fn conversions_at_once_are_one_conversion() {
    let place = Place::new();
    let options = place.options("exit 1");
    let path = place.path("tiny.gguf");
    fs::write(&path, with_weights(1.0)).expect("it is written");
    let found = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| find(&path, &options).path)).collect();
        all.into_iter().map(|one| one.join().expect("no panic")).collect::<Vec<_>>()
    });
    assert!(found.iter().all(|path| *path == found[0]));
    assert_eq!(place.models(), [name_of(&found[0])]);
    assert_eq!(last_number(&found[0]), 1.0);
}

#[test]
fn a_gguf_file_is_known_by_its_ending_in_any_case_or_by_how_it_begins() {
    let place = Place::new();
    let options = place.options("exit 1");
    let long = format!("{}.gguf", "é".repeat(120));
    for name in ["a.gguf", "b.GGUF", "c.Gguf", "sha256-0123", &long] {
        fs::write(place.path(name), with_weights(1.0)).expect("it is written");
        let found = find(&place.path(name), &options);
        assert_eq!(last_number(&found.path), 1.0, "{name}");
    }
    for (name, bytes) in [("model.safetensors", &b"\x08\0\0\0\0\0\0\0{}"[..]), ("empty", b"")] {
        fs::write(place.path(name), bytes).expect("it is written");
        let told = resolve(place.path(name).to_str().expect("UTF-8"), &options);
        let told = told.expect_err("it is no model").to_string();
        assert!(told.contains(name) && told.contains("no GGUF file"), "{told}");
    }
    let error = resolve(place.path("x.gguf").to_str().expect("UTF-8"), &options);
    assert!(matches!(error, Err(HubError::Unknown(_))), "a file that is not there");
}

#[test]
fn a_directory_that_is_no_model_is_told_and_not_asked_for_elsewhere() {
    let place = Place::new();
    let options = place.options("exit 1");
    let dir = place.path("dir");
    fs::create_dir(&dir).expect("it is made");
    let told = || {
        let error = resolve(dir.to_str().expect("UTF-8"), &options).expect_err("it is no model");
        assert!(matches!(error, HubError::NoModel { .. } | HubError::LfsPointer { .. }), "{error}");
        error.to_string()
    };
    assert!(told().contains("no config.json"), "{}", told());
    fs::write(dir.join("adapter_config.json"), "{}").expect("it is written");
    assert!(told().contains("LoRA adapter"), "{}", told());
    fs::write(dir.join("x.GGUF"), "").expect("it is written");
    assert!(told().contains("dir/x.GGUF"), "{}", told());

    fs::write(dir.join("config.json"), "{}").expect("it is written");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "a-1.safetensors"] {
        let before = fs::read(dir.join(name)).unwrap_or_else(|_| b"{}".to_vec());
        fs::write(dir.join(name), pointer).expect("it is written");
        assert!(told().contains(name) && told().contains("git lfs pull"), "{}", told());
        fs::write(dir.join(name), before).expect("it is written");
    }
    resolve(dir.to_str().expect("UTF-8"), &options).expect("all are fetched");
}

/// The command's own words: the system's reason once.
#[test]
fn a_reason_is_told_once() {
    let place = Place::new();
    // Where the cache should be is a file.
    fs::write(place.path("cache"), "").expect("it is written");
    fs::write(place.path("tiny.gguf"), gguf()).expect("it is written");
    // A model without its tokenizer.
    fs::create_dir(place.path("dir")).expect("it is made");
    fs::write(place.path("dir/config.json"), "{}").expect("it is written");
    for arguments in [
        vec!["pull".into(), place.path("tiny.gguf"), "--cache-dir".into(), place.path("cache")],
        vec!["serve".into(), place.path("dir"), "--port".into(), "0".into()],
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_sconce"))
            .args(&arguments)
            .output()
            .expect("the binary runs");
        assert!(!output.status.success(), "{arguments:?}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(told.matches("os error").count(), 1, "{arguments:?}: {told}");
    }
}
