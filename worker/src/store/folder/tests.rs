use std::fs;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::kv::{Identity, Namespace};

const HOUR: Duration = Duration::from_secs(3600);
/// More than a tenth of any limit here, so that what is freed beside the new segment is at most one more.
const BYTES: usize = 61_000;
const ON_DISK: u64 = 61_440;

/// The segment with this number, after the one with that number; 0: after none.
fn id(parent: u8, number: u8) -> SegmentId {
    let parent = if parent == 0 { PrefixHash::ROOT } else { PrefixHash([parent; 32]) };
    SegmentId { namespace: Namespace::new(&Identity::example()), parent, last: PrefixHash([number; 32]) }
}

/// Its name would mean another folder if it were taken literally.
fn queue() -> Name {
    Name::new("..").expect("a name")
}

struct Place {
    root: tempfile::TempDir,
    folder: Arc<Folder>,
}

impl Place {
    fn new(limit: u64) -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        Self {
            folder: Folder::new(root.path().to_owned(), queue(), Some(limit), Surroundings::machine()),
            root,
        }
    }

    /// The same with another limit.
    fn limited(&self, limit: u64) -> Arc<Folder> {
        Folder::new(self.root.path().to_owned(), queue(), Some(limit), Surroundings::machine())
    }

    fn path(&self, id: &SegmentId) -> String {
        let path = SegmentName::from(id).path(&queue());
        self.root.path().join(path.as_ref()).display().to_string()
    }

    /// A segment that was written `hours` hours ago.
    fn write(&self, id: SegmentId, hours: u32) {
        let mut object =
            [&b"TMKV\x01\x00\x00\x00"[..], id.namespace.as_bytes(), &id.parent.0, &id.last.0].concat();
        object.resize(BYTES, 0);
        write(&self.path(&id), &object, hours);
    }

    fn has(&self, id: SegmentId) -> bool {
        Path::new(&self.path(&id)).exists()
    }

    async fn room(&self, id: SegmentId) -> bool {
        let look = self.folder.make_room(id, BYTES).await.expect("the folder can be read");
        look.is_none_or(|look| look.has_room.expect("everything can be removed"))
    }

    async fn tidy(&self) -> Look {
        self.folder.tidy().await.expect("the folder can be read").expect("it has a limit")
    }
}

fn write(path: &str, object: &[u8], hours: u32) {
    fs::create_dir_all(Path::new(path).parent().expect("it is in a folder")).expect("made");
    fs::write(path, object).expect("written");
    let file = fs::File::options().write(true).open(path).expect("opened");
    file.set_modified(SystemTime::now() - hours * HOUR).expect("dated");
}

/// Folders of `numbers` segments in one namespace: the queue's, the namespace's, and one for each.
fn folders(numbers: u64) -> u64 {
    (2 + numbers) * 4096
}

#[tokio::test]
async fn a_segment_that_was_read_stays_with_those_before_it() {
    let place = Place::new(4 * ON_DISK + folders(4));
    place.write(id(0, 1), 9);
    place.write(id(1, 2), 8);
    place.write(id(0, 3), 7);
    place.write(id(3, 4), 6);
    assert_eq!(place.tidy().await.trimmed, Trimmed::default());
    place.folder.used(&id(1, 2));
    assert!(place.room(id(0, 5)).await);
    assert_eq!([1, 2, 3, 4].map(|number| place.has(id(0, number))), [true, true, false, false]);
    assert_eq!(fs::read_dir(place.root.path().join("kv/%2E%2E")).expect("a folder").count(), 1);
    // Another worker, or this one after a restart, knows it too.
    let age = fs::metadata(place.path(&id(1, 2))).and_then(|file| file.modified());
    assert!(age.expect("it is there").elapsed().expect("it is dated now") < HOUR);
}

#[tokio::test]
async fn nothing_is_removed_for_a_segment_that_finds_no_room_behind_its_parents() {
    let place = Place::new(3 * ON_DISK + folders(3));
    place.write(id(0, 1), 9);
    place.write(id(1, 2), 8);
    place.write(id(2, 3), 7);
    assert!(!place.room(id(3, 4)).await);
    assert!(!place.room(id(9, 8)).await, "nobody finds it");
    assert!([1, 2, 3].iter().all(|&number| place.has(id(0, number))));
    assert!(place.room(id(2, 3)).await, "it is there already");
    assert!(place.room(id(0, 4)).await);
    assert_eq!([1, 2, 3].map(|number| place.has(id(0, number))), [true, false, false]);
}

/// As in a folder that users share who may not remove each other's files.
#[tokio::test]
async fn a_file_that_cannot_be_removed_costs_only_the_room_that_it_takes() {
    let place = Place::new(4 * ON_DISK + 4096 + folders(5));
    for number in 1..=4 {
        place.write(id(0, number), 20 - u32::from(number));
    }
    // Nobody can use it, so it is the first that should go, every time.
    let stuck = place.path(&id(0, 9));
    write(&stuck, &[0; 100], 0);
    let refuse = |path: &str| {
        place.folder.disk.refused.lock().expect("no panic").insert(PathBuf::from(path));
    };
    refuse(&stuck);
    for number in 5..=7 {
        let look = place.folder.make_room(id(0, number), BYTES).await.expect("it can be read");
        let look = look.expect("the folder is full");
        assert_eq!(look.has_room, Ok(true), "{number}");
        let is_left = |number: u8| look.left.contains(&id(0, number).last);
        assert!(look.trimmed.bytes >= ON_DISK && !is_left(1) && is_left(4) == (number < 7), "{look:?}");
        place.write(id(0, number), 20 - u32::from(number));
    }
    assert!(Path::new(&stuck).exists() && place.has(id(0, 7)));

    (5..=7).for_each(|number| refuse(&place.path(&id(0, number))));
    let look = place.folder.make_room(id(0, 8), BYTES).await.expect("it can be read");
    let look = look.expect("the folder is full");
    let reason = look.has_room.expect_err("nothing can be removed");
    assert!(reason.contains("check who may write there"), "{reason}");
    assert_eq!((look.trimmed, look.left.len()), (Trimmed::default(), 4), "what is left is told all the same");
}

#[tokio::test]
async fn what_nobody_can_use_goes_first_and_what_is_not_ours_stays() {
    let place = Place::new(u64::MAX);
    let (wrong_header, damaged) =
        (place.path(&id(0, 2)), place.path(&id(0, 3)).replace("/kv/", "/kv-damaged/"));
    let (broken_off, under_way) = (place.path(&id(0, 4)) + "#1", place.path(&id(0, 5)) + "#12");
    let foreign = ["README", "README#1", "a/b/c"].map(|name| place.path(&id(0, 1)) + name);
    place.write(id(0, 1), 99);
    place.write(id(9, 6), 0);
    [&wrong_header, &damaged, &under_way].iter().for_each(|path| write(path, &[0; BYTES], 0));
    write(&broken_off, &[0; BYTES], 2);
    foreign.iter().for_each(|path| write(path, &[0; BYTES], 99));
    let useless = [wrong_header, damaged, broken_off, place.path(&id(9, 6))];
    let useful = || place.has(id(0, 1)) && Path::new(&under_way).exists();

    let all = place.folder.disk.list().expect("listed").bytes();
    let ends = (1..=useless.len() as u64).map(|goes| place.limited(all - goes * ON_DISK));
    for (goes, folder) in (1..).zip(ends) {
        folder.tidy().await.expect("it can be read");
        let gone = useless.iter().filter(|path| !Path::new(path).exists()).count();
        assert!(gone >= goes && useful(), "{gone} of {useless:?}");
    }
    let look = place.limited(0).tidy().await.expect("it can be read").expect("it has a limit");
    assert!(look.left.is_empty() && !place.has(id(0, 1)));
    assert!(foreign.iter().chain([&under_way]).all(|path| Path::new(path).exists()));
}
