//! Blobs: what is read is what was written, or an error that says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::SystemTime;

use bytes::Bytes;
use futures_util::StreamExt;
use grey_blob::{BlobError, BlobStore};
use grey_proof::Digest;

fn noise(length: usize) -> Vec<u8> {
    let mut state = 7u64;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

async fn from(store: &BlobStore, digest: &Digest, offset: u64) -> Result<Vec<u8>, BlobError> {
    let (_, mut pieces) = store.reader(digest, offset).await?;
    let mut read = Vec::new();
    while let Some(piece) = pieces.next().await {
        read.extend_from_slice(&piece?);
    }
    Ok(read)
}

#[tokio::test]
async fn what_was_put_is_read_back_whole_and_from_any_offset() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path()).unwrap();
    for length in [0, 1, 4_096, 5 * 1024 * 1024 + 3, 20 * 1024 * 1024] {
        let content = noise(length);
        let digest = store.put(Bytes::from(content.clone()), None).await.unwrap();
        assert_eq!(digest, Digest::of(&content));
        assert_eq!(store.get(&digest, u64::MAX).await.unwrap(), content);
        for offset in [0, 1, length as u64 / 2, length as u64, length as u64 + 9] {
            let expected = content.get(offset as usize..).unwrap_or_default();
            assert_eq!(from(&store, &digest, offset).await.unwrap(), expected);
        }
        // A file of the same content ends in the same blob.
        let path = directory.path().join("file");
        std::fs::write(&path, &content).unwrap();
        store.put_file(&path, &digest, length as u64).await.unwrap();
        assert_eq!(store.get(&digest, u64::MAX).await.unwrap(), content);
    }
}

#[tokio::test]
async fn a_flipped_byte_a_cut_and_a_missing_blob_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path()).unwrap();
    let content = noise(3 * 1024 * 1024);
    let digest = store.put(Bytes::from(content.clone()), None).await.unwrap();
    let path = store.path_of(&digest);
    for position in [0, content.len() / 2, content.len() - 1] {
        let mut damaged = content.clone();
        damaged[position] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        assert!(matches!(store.get(&digest, u64::MAX).await, Err(BlobError::Damaged { .. })));
        assert!(matches!(
            from(&store, &digest, content.len() as u64 - 1).await,
            Err(BlobError::Damaged { .. })
        ));
    }
    std::fs::write(&path, &content[..100]).unwrap();
    assert!(matches!(store.get(&digest, u64::MAX).await, Err(BlobError::Damaged { .. })));
    // Putting it again mends it.
    store.put(Bytes::from(content.clone()), None).await.unwrap();
    assert_eq!(store.get(&digest, u64::MAX).await.unwrap(), content);
    assert!(matches!(store.get(&digest, 10).await, Err(BlobError::TooLarge { .. })));

    let absent = Digest::of(b"absent");
    assert!(matches!(store.get(&absent, 10).await, Err(BlobError::NotFound { .. })));
    assert_eq!(store.missing(&[digest, absent]).await.unwrap(), [absent]);
}

#[tokio::test]
async fn a_file_that_is_not_what_it_is_said_to_be_is_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(&directory.path().join("blobs")).unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, noise(9 * 1024 * 1024)).unwrap();
    let digest = Digest::of(&noise(9 * 1024 * 1024));
    for (digest, size_bytes) in [
        (Digest::of(b"other"), 9 * 1024 * 1024),
        (digest, 9 * 1024 * 1024 - 1),
        (digest, 9 * 1024 * 1024 + 1),
    ] {
        let refused = store.put_file(&path, &digest, size_bytes).await;
        assert!(matches!(refused, Err(BlobError::Mismatch { .. })), "{refused:?}");
        assert_eq!(store.missing(&[digest]).await.unwrap(), [digest]);
    }
    let left: usize = walk(&directory.path().join("blobs"));
    assert_eq!(left, 0, "nothing of it is left");
    assert!(store.put_file(&directory.path().join("absent"), &digest, 1).await.is_err());
}

#[tokio::test]
async fn content_that_comes_in_pieces_is_kept_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path()).unwrap();
    let content = noise(11 * 1024 * 1024 + 5);
    let pieces = |fails: bool| {
        let mut pieces: Vec<Result<Bytes, std::io::Error>> =
            content.chunks(70_001).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        if fails {
            pieces.push(Err(std::io::Error::other("the sender is gone")));
        }
        futures_util::stream::iter(pieces)
    };
    assert!(store.put_stream(pieces(true), u64::MAX, SystemTime::now()).await.is_err());
    let refused = store.put_stream(pieces(false), content.len() as u64 - 1, SystemTime::now()).await;
    assert!(matches!(refused, Err(BlobError::Oversized { .. })));
    assert_eq!(walk(directory.path()), 0, "nothing of what broke off is left");
    let (digest, length) =
        store.put_stream(pieces(false), content.len() as u64, SystemTime::now()).await.unwrap();
    assert_eq!((digest, length), (Digest::of(&content), content.len() as u64));
    assert_eq!(store.size_bytes(&digest).await.unwrap(), Some(length));
    assert_eq!(std::fs::read(store.verified_path(&digest).await.unwrap()).unwrap(), content);
    assert_eq!(store.get(&digest, u64::MAX).await.unwrap(), content);
}

fn walk(directory: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(directory).unwrap().flatten();
    entries.map(|entry| if entry.path().is_dir() { walk(&entry.path()) } else { 1 }).sum()
}
