//! Single bits flipped anywhere in a data directory: each is detected or hits unused room, and nothing wrong is served.
//!
//! `HIGHWATER_SEED` and `HIGHWATER_FLIPS` choose other and more of them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use highwater_broker_core::log::boot_record::{self, BootRecord};
use highwater_broker_core::log::clean_marker::CleanMarker;
use highwater_broker_core::log::envelope;
use highwater_broker_core::log::manifest::Manifest;
use highwater_broker_core::log::slot::{SLOT_BYTES, Slot};
use highwater_broker_core::producer::decode_file;
use highwater_tests::sim::disk::{Flushes, SimDisk};
use highwater_tests::sim::log_files::{Place, places};
use highwater_tests::sim::log_model::{Contents, Crash};
use highwater_tests::sim::log_world::{LogWorld, ROOT, contents, open, quarantined};
use highwater_tests::sim::random::Random;

/// Flips of one test run, over all images.
const FLIPS: u64 = 20_000;
/// Seed of the first flip.
const SEED: u64 = 1;
/// Flips that are shown to the offline verifier, for each image.
const VERIFIED: u64 = 100;
/// Bytes of batches in an image.
const SET_BYTES: u64 = 1 << 20;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// How the process before the flip ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Killed,
    PowerCut,
    Stopped,
}

/// A data directory and what is in it.
struct Image {
    end: End,
    disk: SimDisk,
    truth: Contents,
    places: Vec<Place>,
    files: Vec<(PathBuf, u64)>,
    /// The offset at which the last flush round began.
    last_round: u64,
}

fn image(end: End) -> Image {
    let mut world = LogWorld::new(0xf11b);
    world.config.limits.segment_bytes = 160 << 10;
    let config = world.config;
    world.log().configure(config);
    world.disk.set_flushes(Flushes::Inline);
    let store = std::sync::Arc::clone(&world.running.as_ref().unwrap().store);
    store.write_state("topics", &envelope::wrap(*b"TEST", 1, &[7; 900])).unwrap();
    drop(store);
    let mut last_round = 0;
    while world.log().bytes() < SET_BYTES {
        last_round = world.model.written_end;
        world.append(3, 700).unwrap();
        world.take_outcomes().unwrap();
        world.model.commit(world.model.flushed_end);
    }
    if end == End::PowerCut {
        // The slot of the last round is written when the round is over, and is not synced before the next one.
        last_round = world.model.written_end;
        world.disk.set_flushes(Flushes::Manual);
        world.append(3, 700).unwrap();
        assert!(world.disk.complete_round(0));
        world.take_outcomes().unwrap();
        world.disk.set_flushes(Flushes::Inline);
        world.model.commit(world.model.flushed_end);
    }
    match end {
        End::Killed => world.crash(Crash::Process),
        End::PowerCut => world.disk = cut_before_the_last_slot(&world),
        End::Stopped => world.stop_cleanly().unwrap(),
    }
    let disk = world.disk;
    let truth = contents(&mut open(&disk.fork(), config).unwrap().log).unwrap();
    assert!(truth.holes.is_empty() && truth.log_end == world.model.written_end);
    let (places, files) = (places(&disk), disk.files());
    Image { end, disk, truth, places, files, last_round }
}

/// A power cut that leaves every batch, but not the slot that tells of the last flush round.
fn cut_before_the_last_slot(world: &LogWorld) -> SimDisk {
    for seed in 0..100 {
        let disk = world.disk.fork();
        disk.power_cut(seed);
        let slots = disk.read(&Path::new(ROOT).join("slots")).unwrap();
        let known =
            slots.first_chunk::<SLOT_BYTES>().and_then(Slot::decode).map_or(0, |slot| slot.flushed_end.get());
        if known < world.model.flushed_end {
            return disk;
        }
    }
    panic!("no power cut loses the last slot");
}

/// What became of a flip.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// The directory or the log does not open, with an error that says why.
    Refused,
    /// A range of offsets is not served, the operator is told, everything else is served.
    Hole,
    /// The log ends earlier; what was cut is in quarantine and reported.
    Cut,
    /// A small file whose checksum says that it is bad, and without which everything is there.
    DoneWithout(&'static str),
    /// Reserved room that holds nothing.
    Slack,
}

fn flip(image: &Image, random: &mut Random) -> Result<Fate, String> {
    let (path, length) = if random.percent(30) {
        random.pick(&image.files).unwrap().clone()
    } else {
        let total: u64 = image.files.iter().map(|(_, length)| length).sum();
        let mut at = random.below(total);
        let found = image.files.iter().find(|(_, length)| {
            let inside = at < *length;
            at -= if inside { 0 } else { *length };
            inside
        });
        found.unwrap().clone()
    };
    if length == 0 {
        return Ok(Fate::Slack);
    }
    let (position, bit) = (random.below(length), random.below(8) as u8);
    let disk = image.disk.fork();
    disk.flip_bit(&path, position, bit, true).unwrap();
    fate(image, &disk, &path, position)
        .map_err(|wrong| format!("{:?}, {} bit {bit} at {position}: {wrong}", image.end, path.display()))
}

fn fate(image: &Image, disk: &SimDisk, path: &Path, position: u64) -> Result<Fate, String> {
    let config =
        highwater_tests::sim::log_world::small_log(highwater_broker_core::durability::Durability::Fsync);
    let flipped = disk.read(path).unwrap();
    let Ok(mut running) = open(disk, config) else { return Ok(Fate::Refused) };
    let there = contents(&mut running.log).map_err(|wrong| format!("something wrong is served: {wrong}"))?;
    for seen in &there.records {
        if image.truth.records.binary_search(seen).is_err() {
            return Err(format!("{seen:?} is served, which never was there"));
        }
    }
    let place = image.places.iter().find(|place| place.path == path && place.positions.contains(&position));
    if there.log_end < image.truth.log_end {
        let Some(place) = place else { return Err("the log ends earlier, and no batch was hit".to_owned()) };
        let cut = format!("{:?}", running.report.cut);
        if there.log_end != place.offsets.start || there.log_end < image.last_round {
            return Err(format!("the log ends at {} ({cut}), hit was {:?}", there.log_end, place.offsets));
        }
        let original = &flipped[place.positions.start as usize..place.positions.end as usize];
        // Zeroes at the end look like reserved room.
        let end = original.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let original = &original[..end];
        let kept = quarantined(disk);
        if !kept.iter().any(|bytes| bytes.windows(original.len()).any(|window| window == original)) {
            return Err(format!("what was cut ({cut}) is not in quarantine"));
        }
        return if running.report.cut.is_some() {
            Ok(Fate::Cut)
        } else {
            Err("a cut is not reported".to_owned())
        };
    }
    if there.log_end > image.truth.log_end || there.log_start != image.truth.log_start {
        return Err(format!("the log is {}..{}", there.log_start, there.log_end));
    }
    if !there.holes.is_empty() {
        let Some(place) = place else { return Err(format!("holes {:?}, and no batch was hit", there.holes)) };
        if there.holes != [place.offsets.clone()] {
            return Err(format!("holes {:?}, hit was {:?}", there.holes, place.offsets));
        }
        let expected = image.truth.records.len() as u64 - (place.offsets.end - place.offsets.start);
        if there.records.len() as u64 != expected {
            return Err(format!("{} records are served, not {expected}", there.records.len()));
        }
        let told = !running.report.new_holes.is_empty()
            || !running
                .log
                .maintain(highwater_broker_core::time::Wall(0), 0.into())
                .unwrap()
                .new_holes
                .is_empty();
        return if told { Ok(Fate::Hole) } else { Err("a hole is not reported".to_owned()) };
    }
    if there.records != image.truth.records {
        return Err("not all is served, and nothing is said".to_owned());
    }
    harmless(image, &flipped, path, position, place)
}

/// Why a flip may change nothing.
fn harmless(
    image: &Image,
    flipped: &[u8],
    path: &Path,
    position: u64,
    place: Option<&Place>,
) -> Result<Fate, String> {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let original = image.disk.read(path).unwrap();
    let done_without = |bad: bool, what| {
        if bad { Ok(Fate::DoneWithout(what)) } else { Err(format!("a flip in {name} goes unnoticed")) }
    };
    match name.as_str() {
        "slots" => {
            let slot = position as usize / SLOT_BYTES * SLOT_BYTES;
            let Some(bytes) = flipped.get(slot..slot + SLOT_BYTES).and_then(|slot| slot.try_into().ok())
            else {
                return Ok(Fate::Slack);
            };
            done_without(Slot::decode(bytes).is_none(), "slot")
        }
        "boot" => done_without(BootRecord::decode(flipped).is_err(), "boot record"),
        "clean" => done_without(CleanMarker::decode(flipped).is_err(), "clean marker"),
        "directory" => done_without(boot_record::decode_directory(flipped).is_err(), "directory id"),
        "manifest" => done_without(Manifest::decode(flipped).is_err(), "manifest"),
        "topics" => done_without(envelope::unwrap(*b"TEST", 1, flipped).is_err(), "state file"),
        name if name.ends_with(".index") => {
            let good = flipped
                .split_last_chunk::<4>()
                .is_some_and(|(rest, stored)| crc32fast::hash(rest) == u32::from_le_bytes(*stored));
            done_without(!good, "index")
        }
        name if name.ends_with(".producers") => done_without(decode_file(flipped).is_err(), "producers"),
        name if name.ends_with(".segment")
            && place.is_none()
            && original[position as usize..].iter().all(|byte| *byte == 0) =>
        {
            Ok(Fate::Slack)
        }
        name => Err(format!("a flip in {name} goes unnoticed")),
    }
}

#[test]
fn every_flipped_bit_is_detected_or_hits_unused_room() {
    let (first, count) = (setting("HIGHWATER_SEED", SEED), setting("HIGHWATER_FLIPS", FLIPS));
    let images = [End::Killed, End::PowerCut, End::Stopped].map(image);
    let fates: Mutex<BTreeMap<(End, Fate), u64>> = Mutex::default();
    let wrong = Mutex::new(Vec::new());
    let next = AtomicU64::new(first);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let image = &images[seed as usize % images.len()];
                    match flip(image, &mut Random::new(seed)) {
                        Ok(fate) => *fates.lock().unwrap().entry((image.end, fate)).or_default() += 1,
                        Err(failure) => wrong.lock().unwrap().push(format!("seed {seed}: {failure}")),
                    }
                }
            });
        }
    });
    let fates = fates.into_inner().unwrap();
    println!("{count} flips: {fates:#?}");
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{} of {count} flips:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
    let seen = |end, fate| fates.get(&(end, fate)).copied().unwrap_or(0);
    for end in [End::Killed, End::PowerCut, End::Stopped] {
        assert!(seen(end, Fate::Hole) > count / 10, "most flips hit batches");
        assert!(seen(end, Fate::Slack) > 0 && seen(end, Fate::DoneWithout("index")) > 0);
    }
    assert!(seen(End::PowerCut, Fate::Cut) > 0, "the last flush round is hit");
}

/// A directory of the real file system with the files of an image.
fn export(image: &Image) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (path, _) in &image.files {
        let target = directory.path().join(path.strip_prefix(ROOT).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::write(target, image.disk.read(path).unwrap()).unwrap();
    }
    for name in ["topics", "trash", "state"] {
        std::fs::create_dir_all(directory.path().join(name)).unwrap();
    }
    directory
}

/// What `highwater log verify` says of a directory: whether all is good, and the faults.
fn log_verify(directory: &Path) -> (bool, Vec<serde_json::Value>) {
    let program = highwater_tests::cluster::highwater().unwrap();
    let output = std::process::Command::new(program)
        .args(["--output", "json", "log", "verify"])
        .arg(directory)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said: serde_json::Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text} {}", String::from_utf8_lossy(&output.stderr)));
    let good = said["ok"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(!good)), "{text}");
    (good, said["faults"].as_array().unwrap().clone())
}

#[test]
fn the_offline_verifier_names_file_position_and_offset() {
    for image in [End::Killed, End::Stopped].map(image) {
        let directory = export(&image);
        let (good, faults) = log_verify(directory.path());
        assert!(good, "{:?}: {faults:?}", image.end);
        let mut random = Random::new(SEED);
        let mut in_batches = 0;
        for _ in 0..VERIFIED {
            let (path, length) = random.pick(&image.files).unwrap().clone();
            if length == 0 {
                continue;
            }
            let position = random.below(length);
            let original = image.disk.read(&path).unwrap();
            let mut flipped = original.clone();
            flipped[position as usize] ^= 1 << random.below(8);
            let relative = path.strip_prefix(ROOT).unwrap();
            std::fs::write(directory.path().join(relative), &flipped).unwrap();
            let (good, faults) = log_verify(directory.path());
            std::fs::write(directory.path().join(relative), &original).unwrap();

            let place =
                image.places.iter().find(|place| place.path == path && place.positions.contains(&position));
            let is_slack = place.is_none() && original[position as usize..].iter().all(|byte| *byte == 0);
            let named = faults.iter().find(|fault| {
                let number = |name: &str| fault[name].as_u64().unwrap_or(u64::MAX);
                fault["file"].as_str().is_some_and(|file| Path::new(file) == relative)
                    && (number("position")..number("position_end")).contains(&position)
                    && place.is_none_or(|place| number("offset") == place.offsets.start)
            });
            in_batches += u32::from(place.is_some());
            let what =
                format!("{:?}, {} at {position}, {place:?}: {faults:?}", image.end, relative.display());
            assert!(is_slack || (!good && named.is_some()), "{what}");
        }
        assert!(in_batches > 20, "batches are hit");
    }
}
