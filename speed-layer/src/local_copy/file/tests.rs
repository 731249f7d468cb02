//! The logs against a model: whatever is appended, cut off, damaged or written anew, each group is as it was after some
//! entry of its own, and after the last one where nothing was lost.

use super::*;
use proptest::prelude::*;
use shared_model::epoch::TrustedTime;
use shared_model::view::HEADER_VERSION;

const GROUPS: u32 = 3;

fn tp() -> TopicPartition {
    TopicPartition::new("page.views-1", 7)
}

fn header(to: i64) -> Header {
    Header {
        v: HEADER_VERSION,
        incarnation: 9,
        to,
        clock: 5,
        trusted: TrustedTime::default(),
        watermark: Some(3),
        panes_from: None,
        pane_holes: Vec::new(),
        cuts: vec![(0, 0)],
        metrics: BTreeMap::new(),
        seq: to as u64,
        gaps: Vec::new(),
        forgotten: Vec::new(),
    }
}

/// What one entry says.
#[derive(Debug, Clone)]
struct Entry {
    group: usize,
    whole: bool,
    deletes: Vec<Name>,
    segments: Vec<(Name, Vec<u8>)>,
}

/// What a group is, its segments' bytes included.
type Contents = (Option<Header>, BTreeMap<Name, Vec<u8>>);

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let name = (prop_oneof![(-2i64..3).prop_map(Slice::Epoch), (0i64..3).prop_map(Slice::Pane)], 0u64..5);
    let bytes = prop::collection::vec(any::<u8>(), 0..90);
    let entry = (
        0..GROUPS as usize,
        any::<bool>(),
        prop::collection::vec(name.clone(), 0..4),
        prop::collection::btree_map(name, bytes, 0..5),
    );
    let entry = entry.prop_map(|(group, whole, deletes, segments)| {
        let segments = segments.into_iter().collect();
        Entry { group, whole, deletes, segments }
    });
    prop::collection::vec(entry, 0..25)
}

/// The groups after each number of entries.
fn model(entries: &[Entry]) -> Vec<Vec<Contents>> {
    let mut states = vec![vec![Contents::default(); GROUPS as usize]];
    for (at, entry) in entries.iter().enumerate() {
        let mut groups = states[at].clone();
        let (head, segments) = &mut groups[entry.group];
        entry.deletes.iter().for_each(|name| drop(segments.remove(name)));
        segments.extend(entry.segments.iter().cloned());
        *head = entry.whole.then(|| header(at as i64));
        states.push(groups);
    }
    states
}

fn append(file: &mut CopyFiles, entries: &[Entry]) {
    for (at, entry) in entries.iter().enumerate() {
        let header = entry.whole.then(|| header(at as i64));
        file.append(entry.group, header.as_ref(), &entry.deletes, &entry.segments).expect("appended");
    }
}

fn contents(file: &CopyFiles) -> Vec<Contents> {
    let of = |(at, copied): (usize, &Copied)| {
        let bytes = |(&name, _): (&Name, _)| (name, file.read(at, name).expect("read"));
        (copied.header.clone(), copied.segments.iter().map(bytes).collect())
    };
    file.groups().enumerate().map(of).collect()
}

fn open(folder: &Path) -> CopyFiles {
    CopyFiles::open(folder, &tp(), GROUPS).expect("opened").expect("not locked")
}

proptest! {
    #[test]
    fn what_was_appended_is_read_back(entries in entries()) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = open(folder.path());
        append(&mut file, &entries);
        let expected = model(&entries).pop().expect("a state");
        prop_assert_eq!(&contents(&file), &expected);
        drop(file);
        prop_assert_eq!(&contents(&open(folder.path())), &expected);
    }

    #[test]
    fn a_damaged_end_leaves_an_older_state(entries in entries(), damaged in 0..GROUPS as usize, at in any::<prop::sample::Index>(), cut in any::<bool>()) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = open(folder.path());
        append(&mut file, &entries);
        let path = file.logs[damaged].path.clone();
        drop(file);
        let mut bytes = std::fs::read(&path).expect("read");
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 0x55 }
        std::fs::write(&path, bytes).expect("written");
        let mut file = open(folder.path());
        let found = contents(&file);
        let states = model(&entries);
        // A log that was written anew begins with each group as it was then.
        let is_a_state = |group: usize| {
            found[group].0.is_none() || states.iter().any(|state| state[group] == found[group])
        };
        prop_assert!((0..GROUPS as usize).all(is_a_state), "{:?}", found);
        // And it is gone on from.
        let more = Entry { group: 1, whole: true, deletes: Vec::new(), segments: vec![((Slice::Epoch(9), 9), vec![1])] };
        append(&mut file, std::slice::from_ref(&more));
        let after = contents(&file);
        prop_assert_eq!(after[1].1.get(&(Slice::Epoch(9), 9)), Some(&vec![1]));
        drop(file);
        prop_assert_eq!(contents(&open(folder.path())), after);
    }
}

#[test]
fn a_file_of_another_layout_is_emptied_and_a_locked_one_is_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut file = open(folder.path());
    let entry =
        Entry { group: 0, whole: true, deletes: Vec::new(), segments: vec![((Slice::Pane(1), 1), vec![7])] };
    append(&mut file, &[entry]);
    assert!(CopyFiles::open(folder.path(), &tp(), GROUPS).expect("looked at").is_none());
    drop(file);
    let other = CopyFiles::open(folder.path(), &tp(), GROUPS + 1).expect("opened").expect("not locked");
    assert_eq!(contents(&other), vec![Contents::default(); GROUPS as usize + 1]);
    drop(other);
    let fewer = CopyFiles::open(folder.path(), &tp(), 1).expect("opened").expect("not locked");
    assert_eq!(contents(&fewer), [Contents::default()]);
    let left = std::fs::read_dir(folder.path().join("page.views-1-7")).expect("a folder").count();
    assert_eq!(left, 2, "the one group's, and the lock");
}

#[test]
fn the_log_does_not_outgrow_what_it_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut file = open(folder.path());
    for at in 0..1_000u64 {
        let (old, new) = ((Slice::Epoch(0), at), (Slice::Epoch(0), at + 1));
        file.append(0, Some(&header(at as i64)), &[old], &[(new, vec![at as u8; 100])]).expect("appended");
        let size = std::fs::metadata(&file.logs[0].path).expect("a file").len();
        assert!(size < GARBAGE + 3 * 1_000, "{size} bytes after {at} entries");
    }
    let copied = file.group(0);
    assert_eq!((copied.header.as_ref().map(|header| header.to), copied.segments.len()), (Some(999), 1));
    assert_eq!(file.read(0, (Slice::Epoch(0), 1_000)).expect("read"), vec![999u32 as u8; 100]);
}
