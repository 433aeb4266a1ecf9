//! The power goes at every single write and flush of the disk, and what was acknowledged is there.
//!
//! The disk is simulated: what was not flushed is lost, or there, or there in part, in any mixture.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::oneshot;

use super::core::{Core, Request};
use super::{Durability, Limits};
use crate::{Entry, Op, Range, Result, Revision, Txn};

#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What is there after the power went.
    flushed: Vec<u8>,
    /// What is there as long as it does not.
    seen: Vec<u8>,
    since_flush: Vec<Change>,
    /// Writes, changes of length and flushes so far.
    done: usize,
    /// At this one the power goes.
    ends_at: Option<usize>,
    /// So many bytes and no more.
    room: Option<usize>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(length) => bytes.resize(*length, 0),
            Self::Write(at, data) => {
                bytes.resize(bytes.len().max(at + data.len()), 0);
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
        }
    }
}

impl Disk {
    /// With an empty store, whose file gets its name only when it is whole.
    fn new() -> Self {
        let disk = Self::default();
        disk.open().unwrap().close();
        disk.state().done = 0;
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let state = &mut *self.state();
        if let (Some(room), Change::Length(length)) = (state.room, &change)
            && *length > room.max(state.seen.len())
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.since_flush.push(change.clone());
        // The one the power goes at may still get there.
        state.step()?;
        change.make(&mut state.seen);
        Ok(())
    }

    /// The disk of a machine that was switched on again: `seed` says which changes since the last flush got there.
    fn after_power_loss(&self, seed: u64) -> Self {
        let state = &mut *self.state();
        let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut roll = |below: usize| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            usize::try_from(dice % below as u64).unwrap()
        };
        let mut bytes = state.flushed.clone();
        for change in &state.since_flush {
            match (seed, roll(3), change) {
                // None of them, and all of them.
                (0, ..) | (2.., 0, _) => {}
                (2.., 1, Change::Write(at, data)) => {
                    Change::Write(*at, data[..roll(data.len() + 1)].to_vec()).make(&mut bytes);
                }
                _ => change.make(&mut bytes),
            }
        }
        let fresh = State { flushed: bytes.clone(), seen: bytes, ..State::default() };
        Self(Arc::new(Mutex::new(fresh)))
    }

    fn open(&self) -> Result<Core> {
        let disk = self.clone();
        let open = move || {
            redb::Database::builder().set_cache_size(1 << 20).create_with_backend(disk.clone())
        };
        let limits = Limits { reserve_bytes: 0, ..Limits::default() };
        Core::open("/nowhere/store".into(), limits, Box::new(open))
    }
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        self.done += 1;
        if self.ends_at.is_some_and(|at| self.done > at) {
            return Err(io::Error::other("the power went"));
        }
        Ok(())
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let at = usize::try_from(offset).unwrap();
        let bytes = state.seen.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(Change::Length(usize::try_from(length).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let state = &mut *self.state();
        state.step()?;
        state.flushed = state.seen.clone();
        state.since_flush.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write(usize::try_from(offset).unwrap(), data.to_vec()))
    }
}

/// What the store held after each acknowledged commit, and what the one in progress would have made of it.
type States = Vec<(Revision, Vec<Entry>)>;

fn put(core: &mut Core, keys: &[String], value: &str) -> Result<Revision> {
    let mut answers = Vec::new();
    let requests = keys.iter().map(|key| {
        let (answer, answered) = oneshot::channel();
        answers.push(answered);
        let ops = [
            Op::Put { key: key.clone().into(), value: value.to_owned().into(), lease: None },
            Op::Put {
                key: format!("{key}/pair").into(),
                value: value.to_owned().into(),
                lease: None,
            },
        ];
        Request::Txn(Txn::default().then(ops), answer)
    });
    let requests = requests.collect();
    core.commit(requests, Instant::now());
    let mut last = Revision::NONE;
    for mut answered in answers {
        last = answered.try_recv().unwrap()?.revision;
    }
    Ok(last)
}

fn all(core: &Core) -> Result<(Revision, Vec<Entry>)> {
    let page = core.shared().read(|tables| tables.page(&Range::all()))?;
    Ok((page.revision, page.entries))
}

/// Writes, rewrites, removes and compacts until the power goes, or to the end: how many commits were acknowledged.
fn work(disk: &Disk) -> (States, bool) {
    let mut states = States::new();
    let mut run = || -> Result<()> {
        let mut core = disk.open()?;
        states.push(all(&core)?);
        for round in 0..6_u32 {
            let keys: Vec<_> = (0..3).map(|key| format!("/{}", (key + round) % 5)).collect();
            put(&mut core, &keys, &format!("{round}").repeat(700))?;
            states.push(all(&core)?);
            let (answer, mut answered) = oneshot::channel();
            let revision = states.last().map_or(Revision::NONE, |state| Revision(state.0.0 - 1));
            core.commit(vec![Request::Compact(revision, answer)], Instant::now());
            answered.try_recv().unwrap()?;
        }
        Ok(())
    };
    let finished = run().is_ok();
    (states, finished)
}

#[test]
fn what_was_acknowledged_survives_the_loss_of_power_at_every_write_and_flush() {
    let whole = Disk::new();
    let (expected, finished) = work(&whole);
    assert!(finished && expected.len() == 7);
    let steps = whole.state().done;
    assert!(steps > 100, "{steps}");
    for ends_at in 0..steps {
        let disk = Disk::new();
        disk.state().ends_at = Some(ends_at);
        let (acknowledged, finished) = work(&disk);
        assert!(!finished || ends_at + 20 > steps, "{ends_at} of {steps}");
        for seed in 0..4 {
            let core = disk.after_power_loss(seed).open().unwrap_or_else(|error| {
                panic!("opened after {ends_at} steps, seed {seed}: {error:?}");
            });
            let found = all(&core).unwrap();
            // The last acknowledged state, or that of the commit the power went in: never less, never a part.
            let known = acknowledged.len().saturating_sub(1);
            let possible = &expected[known..expected.len().min(known + 2)];
            assert!(possible.contains(&found), "after {ends_at} steps, seed {seed}: {:?}", found.0);
        }
    }
}

#[test]
fn a_disk_without_room_refuses_writes_and_goes_on_reading() {
    let disk = Disk::default();
    let mut core = disk.open().unwrap();
    put(&mut core, &["/kept".to_owned()], "1").unwrap();
    let before = all(&core).unwrap();
    disk.state().room = Some(0);
    let big = "x".repeat(200_000);
    let error = (0..100).find_map(|number| put(&mut core, &[format!("/{number}")], &big).err());
    let error = error.expect("a write that finds no room");
    assert!(matches!(error, crate::Error::Full { .. } | crate::Error::Unknown { .. }), "{error:?}");
    let (_, entries) = all(&core).unwrap();
    assert!(before.1.iter().all(|entry| entries.contains(entry)), "reads go on");
    disk.state().room = None;
    let after = put(&mut core, &["/more".to_owned()], &big).unwrap();
    assert!(after > before.0, "and writes, when there is room again, without a restart");
}

#[test]
fn a_quota_refuses_writes_and_takes_removals() {
    let disk = Disk::default();
    let open = {
        let disk = disk.clone();
        move || redb::Database::builder().set_cache_size(1 << 20).create_with_backend(disk.clone())
    };
    let limits = Limits { quota_bytes: 10_000, reserve_bytes: 0, ..Limits::default() };
    let mut core = Core::open("/nowhere/store".into(), limits, Box::new(open)).unwrap();
    put(&mut core, &["/a".to_owned()], &"x".repeat(6000)).unwrap();
    assert!(matches!(put(&mut core, &["/b".to_owned()], "1"), Err(crate::Error::Full { .. })));
    let (answer, mut answered) = oneshot::channel();
    let removal = Txn::default().then([Op::Delete(Range::prefix("/"))]);
    core.commit(vec![Request::Txn(removal, answer)], Instant::now());
    let revision = answered.try_recv().unwrap().unwrap().revision;
    let (answer, mut answered) = oneshot::channel();
    core.commit(vec![Request::Compact(revision, answer)], Instant::now());
    answered.try_recv().unwrap().unwrap();
    put(&mut core, &["/b".to_owned()], "1").unwrap();
    assert_eq!(core.shared().read(|tables| tables.bytes()).unwrap(), 2 * 24 + 2 + 7 + 2);
}

#[test]
fn a_relaxed_store_loses_the_last_commits_at_most() {
    let disk = Disk::default();
    let open = {
        let disk = disk.clone();
        move || redb::Database::builder().set_cache_size(1 << 20).create_with_backend(disk.clone())
    };
    let limits = Limits { durability: Durability::Relaxed, reserve_bytes: 0, ..Limits::default() };
    let mut core = Core::open("/nowhere/store".into(), limits, Box::new(open)).unwrap();
    let start = Instant::now();
    put(&mut core, &["/a".to_owned()], "1").unwrap();
    let flushes = core.wakes_at().expect("it is to be flushed");
    assert!(flushes <= start + std::time::Duration::from_secs(60));
    let lost = disk.after_power_loss(0).open().unwrap();
    assert_eq!(all(&lost).unwrap().1, [], "it was only said to be written");
    core.commit(Vec::new(), start + std::time::Duration::from_secs(60));
    let kept = disk.after_power_loss(0).open().unwrap();
    assert_eq!(all(&kept).unwrap(), all(&core).unwrap());
}
