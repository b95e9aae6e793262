//! Sweeps: what nobody names goes, and nothing that anybody counts on, whatever happens at the same time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use grey_blob::{BlobError, BlobStore, FOLDERS, Sweep};
use grey_proof::Digest;

const DAY: Duration = Duration::from_secs(86_400);

fn opened() -> (tempfile::TempDir, Arc<BlobStore>) {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(BlobStore::open(directory.path()).unwrap());
    (directory, store)
}

fn content(number: u64) -> Bytes {
    format!("content {number}").into_bytes().into()
}

async fn put(store: &BlobStore, number: u64, until: Option<SystemTime>) -> Digest {
    store.put(content(number), until).await.unwrap()
}

/// Goes through every folder.
fn through(sweep: &mut Sweep, named: &BTreeSet<Digest>) {
    for folder in 0..FOLDERS {
        let named = |digest: &Digest| named.contains(digest);
        sweep.folder::<BlobError>(folder as u8, named, || Ok(()), || Ok(())).unwrap();
    }
}

fn is_there(store: &BlobStore, digest: &Digest) -> bool {
    store.path_of(digest).exists()
}

#[tokio::test]
async fn what_is_neither_named_nor_held_nor_counted_on_goes_and_all_else_stays() {
    let (_directory, store) = opened();
    let tomorrow = Some(SystemTime::now() + DAY);
    let (mut named, mut unnamed, mut counted_on) = (BTreeSet::new(), Vec::new(), Vec::new());
    for number in 0..300 {
        named.insert(put(&store, number, None).await);
        unnamed.push(put(&store, 1_000 + number, None).await);
        counted_on.push(put(&store, 2_000 + number, tomorrow).await);
    }
    let mut hold = store.hold();
    let held = hold.put(content(9_000)).await.unwrap();
    let mut sweep = store.begin_sweep();
    through(&mut sweep, &named);
    assert!(named.iter().chain(&counted_on).chain([&held]).all(|digest| is_there(&store, digest)));
    assert!(unnamed.iter().all(|digest| !is_there(&store, digest)));
    assert_eq!((sweep.swept.blobs, sweep.swept.removed), (601, 300));
    let bytes: u64 = (1_000..1_300).map(|number| content(number).len() as u64).sum();
    assert_eq!(sweep.swept.removed_bytes, bytes);
    // What was released while the sweep went on may be in a record that it did not see.
    drop(hold);
    through(&mut sweep, &named);
    assert!(is_there(&store, &held));
    drop(sweep);
    through(&mut store.begin_sweep(), &named);
    assert!(!is_there(&store, &held));
}

#[tokio::test]
async fn what_is_put_while_a_sweep_goes_on_stays_even_when_it_was_there_before() {
    let (_directory, store) = opened();
    let old = put(&store, 1, None).await;
    let mut sweep = store.begin_sweep();
    let mut hold = store.hold();
    assert_eq!(hold.put(content(1)).await.unwrap(), old);
    let new = hold.put(content(2)).await.unwrap();
    drop(hold);
    through(&mut sweep, &BTreeSet::new());
    assert!(is_there(&store, &old) && is_there(&store, &new));
}

#[tokio::test]
async fn a_promise_lasts_until_its_time_and_outlives_a_put_of_the_same_content() {
    let (_directory, store) = opened();
    let digest = put(&store, 1, None).await;
    let length = content(1).len() as u64;
    assert_eq!(store.count_on(&digest, SystemTime::now() + DAY).await.unwrap(), Some(length));
    assert_eq!(store.count_on(&Digest::of(b"absent"), SystemTime::now() + DAY).await.unwrap(), None);
    // When: the same content is put as an output, which nobody counts on.
    put(&store, 1, None).await;
    through(&mut store.begin_sweep(), &BTreeSet::new());
    assert!(is_there(&store, &digest), "the promise went with the file that was replaced");
    // A shorter promise takes nothing away.
    store.count_on(&digest, SystemTime::now()).await.unwrap();
    put(&store, 1, Some(SystemTime::now() + Duration::from_secs(1))).await;
    let until = std::fs::metadata(store.path_of(&digest)).unwrap().modified().unwrap();
    assert!(until > SystemTime::now() + DAY / 2);
    // Then: it goes when its time has come.
    let file = File::options().write(true).open(store.path_of(&digest)).unwrap();
    file.set_modified(SystemTime::now() - DAY).unwrap();
    through(&mut store.begin_sweep(), &BTreeSet::new());
    assert!(!is_there(&store, &digest));
    assert_eq!(store.count_on(&digest, SystemTime::now() + DAY).await.unwrap(), None);
}

#[tokio::test]
async fn what_stops_a_sweep_stops_it_before_anything_is_removed() {
    let (_directory, store) = opened();
    let digest = put(&store, 1, None).await;
    let mut sweep = store.begin_sweep();
    let stop = || Err(BlobError::Full { what: "stopped".to_owned() });
    for folder in 0..FOLDERS {
        let outcome = sweep.folder(folder as u8, |_| false, || Ok(()), stop);
        assert_eq!(outcome.is_err(), folder == u16::from(digest.0[0]));
    }
    assert!(is_there(&store, &digest));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_told_that_something_is_here_which_a_sweep_then_removes() {
    let (_directory, store) = opened();
    let (ended, promised) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let sweeper = {
        let (store, ended) = (store.clone(), ended.clone());
        std::thread::spawn(move || {
            let mut removed = 0;
            while !ended.load(Ordering::Relaxed) {
                let mut sweep = store.begin_sweep();
                through(&mut sweep, &BTreeSet::new());
                removed += sweep.swept.removed;
            }
            removed
        })
    };
    let asking = (0..4).map(|asker| {
        let (store, promised) = (store.clone(), promised.clone());
        tokio::spawn(async move {
            for number in 0..150 {
                let number = asker * 1_000 + number;
                let digest = put(&store, number, None).await;
                // It may be gone already; but who is told that it is here finds it.
                let told = store.count_on(&digest, SystemTime::now() + DAY).await.unwrap();
                tokio::task::yield_now().await;
                if told.is_some() {
                    promised.fetch_add(1, Ordering::Relaxed);
                    assert_eq!(store.get(&digest, 100).await.unwrap(), content(number));
                }
            }
        })
    });
    for one in asking.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    ended.store(true, Ordering::Relaxed);
    let removed = sweeper.join().unwrap();
    assert_eq!(removed + promised.load(Ordering::Relaxed), 600);
}
