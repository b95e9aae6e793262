//! Blobs in a local directory behind `object_store`.
//!
//! Its local backend syncs nothing: what is promised to be durable is synced here, before the finished file is put into
//! its place. Every read checks the digest, and putting a blob again replaces what is there.
//!
//! A blob's time of modification says until when somebody outside counts on it, where that lies ahead: whoever sent it, or
//! was told that it is here. Nothing else is read from it.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use grey_proof::{Digest, StreamDigest};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Location;
use object_store::{ObjectStoreExt, WriteMultipart};
use tokio::io::AsyncReadExt;

use crate::error::BlobError;
use crate::sweep::Watch;

/// How much of a file is read and written at once, in bytes.
const PIECE_BYTES: usize = 4 * 1024 * 1024;
/// Pieces that may be written at the same time.
const PIECES_AT_ONCE: usize = 4;

/// A blob's content piece by piece.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, BlobError>> + Send>>;

/// The blobs of one node.
#[derive(Debug)]
pub struct BlobStore {
    directory: PathBuf,
    store: LocalFileSystem,
    /// Numbers what is coming in.
    incoming: AtomicU64,
    pub(crate) watch: Arc<Watch>,
}

/// The folder of content that has not come to its end; what an earlier life left there is removed.
const INCOMING: &str = "incoming";

fn relative(digest: &Digest) -> String {
    let name = digest.to_string();
    let folder: String = name.chars().take(2).collect();
    format!("{folder}/{name}")
}

impl BlobStore {
    /// Opens a directory of blobs, creating it where needed, readable by its owner only.
    pub fn open(directory: &Path) -> Result<BlobStore, BlobError> {
        let shown = directory.display().to_string();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(BlobError::failed("create", &shown))?;
        // What is durable in a directory is so only where the directory is.
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            let synced = File::open(parent).and_then(|parent| parent.sync_all());
            synced.map_err(BlobError::failed("create", &shown))?;
        }
        match std::fs::remove_dir_all(directory.join(INCOMING)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(BlobError::failed("clear", &shown)(error));
            }
            _ => {}
        }
        let store = LocalFileSystem::new_with_prefix(directory).map_err(BlobError::failed("open", shown))?;
        std::fs::create_dir(directory.join(INCOMING)).map_err(BlobError::failed("create", INCOMING))?;
        let directory = directory.to_path_buf();
        Ok(BlobStore { directory, store, incoming: AtomicU64::new(0), watch: Arc::default() })
    }

    /// Where blobs lie whose digest begins with a byte.
    pub(crate) fn folder(&self, first: u8) -> PathBuf {
        self.directory.join(format!("{first:02x}"))
    }

    /// Where a blob lies. Its content is unchecked.
    pub fn path_of(&self, digest: &Digest) -> PathBuf {
        self.directory.join(relative(digest))
    }

    fn next_incoming(&self) -> (Location, PathBuf) {
        let place = format!("{INCOMING}/{}", self.incoming.fetch_add(1, Ordering::Relaxed));
        (Location::from(place.as_str()), self.directory.join(place))
    }

    /// Keeps bytes; durable when this returns. It stays until a sweep finds that nobody names it, and at least until
    /// `counted_on_until`. What a later record will name is held, see [`BlobStore::hold`].
    pub async fn put(&self, bytes: Bytes, counted_on_until: Option<SystemTime>) -> Result<Digest, BlobError> {
        let digest = Digest::of(&bytes);
        let (location, path) = self.next_incoming();
        let put = self.store.put(&location, bytes.into()).await;
        put.map_err(BlobError::failed("write", format!("blob {digest}")))?;
        self.settle(path, digest, counted_on_until).await?;
        Ok(digest)
    }

    /// Keeps a finished file; durable when this returns. What is not of the announced length and digest is not kept.
    pub async fn put_file(&self, path: &Path, digest: &Digest, size_bytes: u64) -> Result<(), BlobError> {
        let shown = path.display().to_string();
        let mut file = tokio::fs::File::open(path).await.map_err(BlobError::failed("open", &shown))?;
        let (location, place) = self.next_incoming();
        let upload = self.store.put_multipart(&location).await;
        let upload = upload.map_err(BlobError::failed("write", format!("blob {digest}")))?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, PIECE_BYTES);
        let (mut hash, mut length) = (StreamDigest::new(), 0u64);
        let copied = loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            match (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece).await {
                Ok(0) => break Ok(()),
                Ok(read) => {
                    hash.update(&piece);
                    length += read as u64;
                    if length > size_bytes {
                        break Ok(());
                    }
                    if let Err(error) = writer.wait_for_capacity(PIECES_AT_ONCE).await {
                        break Err(BlobError::failed("write", format!("blob {digest}"))(error));
                    }
                    writer.put(piece.into());
                }
                Err(error) => break Err(BlobError::failed("read", &shown)(error)),
            }
        };
        let (_, found) = hash.finish();
        let checked = copied.and_then(|()| {
            if length == size_bytes && found == *digest {
                return Ok(());
            }
            let (expected_bytes, digest) = (size_bytes, *digest);
            Err(BlobError::Mismatch { what: shown, expected_bytes, digest, found_bytes: length, found })
        });
        if let Err(error) = checked {
            // What was written so far lies under another name and is removed; the blob never appears.
            drop(writer.abort().await);
            return Err(error);
        }
        writer.finish().await.map_err(BlobError::failed("write", format!("blob {digest}")))?;
        self.settle(place, *digest, None).await
    }

    /// Keeps content that comes piece by piece, at most `limit_bytes` of it; durable when this returns. Returns its digest
    /// and its length. Nothing is kept when it does not come to its end. It stays at least until `counted_on_until`.
    pub async fn put_stream<E>(
        &self,
        mut pieces: impl Stream<Item = Result<Bytes, E>> + Unpin,
        limit_bytes: u64,
        counted_on_until: SystemTime,
    ) -> Result<(Digest, u64), BlobError>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let (place, path) = self.next_incoming();
        let upload = self.store.put_multipart(&place).await;
        let upload = upload.map_err(BlobError::failed("write", "incoming content"))?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, PIECE_BYTES);
        let (mut hash, mut length) = (StreamDigest::new(), 0u64);
        let received = loop {
            match pieces.next().await {
                None => break Ok(()),
                Some(Err(error)) => break Err(BlobError::failed("receive", "content")(error)),
                Some(Ok(piece)) => {
                    length = length.saturating_add(piece.len() as u64);
                    if length > limit_bytes {
                        break Err(BlobError::Oversized { limit_bytes });
                    }
                    hash.update(&piece);
                    if let Err(error) = writer.wait_for_capacity(PIECES_AT_ONCE).await {
                        break Err(BlobError::failed("write", "incoming content")(error));
                    }
                    writer.put(piece);
                }
            }
        };
        if let Err(error) = received {
            drop(writer.abort().await);
            return Err(error);
        }
        writer.finish().await.map_err(BlobError::failed("write", "incoming content"))?;
        let (length, digest) = hash.finish();
        self.settle(path, digest, Some(counted_on_until)).await?;
        Ok((digest, length))
    }

    /// A blob's length; nothing when it is not here.
    pub async fn size_bytes(&self, digest: &Digest) -> Result<Option<u64>, BlobError> {
        match self.store.head(&Location::from(relative(digest))).await {
            Ok(found) => Ok(Some(found.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(other) => Err(BlobError::failed("look for", format!("blob {digest}"))(other)),
        }
    }

    /// Where a blob lies, after its content was read through and found right.
    pub async fn verified_path(&self, digest: &Digest) -> Result<PathBuf, BlobError> {
        let (_, mut pieces) = self.reader(digest, 0).await?;
        while let Some(piece) = pieces.next().await {
            piece?;
        }
        Ok(self.path_of(digest))
    }

    /// Says that somebody counts on a blob until then, and how long it is; nothing when it is not here. Either a sweep comes
    /// first and it is not here, or it stays.
    pub async fn count_on(&self, digest: &Digest, until: SystemTime) -> Result<Option<u64>, BlobError> {
        let (path, watch, digest) = (self.path_of(digest), self.watch.clone(), *digest);
        let counted = tokio::task::spawn_blocking(move || watch.count_on(&path, &digest, until)).await;
        let what = format!("blob {digest}");
        counted.map_err(BlobError::failed("look for", &what))?.map_err(BlobError::failed("look for", what))
    }

    /// [`BlobStore::count_on`] on a thread that may wait for the disk.
    pub fn count_on_now(&self, digest: &Digest, until: SystemTime) -> std::io::Result<Option<u64>> {
        self.watch.count_on(&self.path_of(digest), digest, until)
    }

    /// Puts a finished file into its place, durably.
    async fn settle(
        &self,
        incoming: PathBuf,
        digest: Digest,
        counted_on_until: Option<SystemTime>,
    ) -> Result<(), BlobError> {
        let (path, directory, watch) = (self.path_of(&digest), self.directory.clone(), self.watch.clone());
        let settle = move || -> std::io::Result<()> {
            let file = File::options().write(true).open(&incoming)?;
            if let Some(until) = counted_on_until {
                file.set_modified(until)?;
            }
            file.sync_all()?;
            let folder = path.parent().unwrap_or(&directory);
            if !folder.is_dir() {
                std::fs::create_dir_all(folder)?;
            }
            watch.put_in_place(&incoming, &path, &digest, counted_on_until)?;
            File::open(folder)?.sync_all()?;
            File::open(directory)?.sync_all()
        };
        let settled = tokio::task::spawn_blocking(settle).await;
        let what = format!("blob {digest}");
        settled.map_err(BlobError::failed("sync", &what))?.map_err(BlobError::failed("sync", what))
    }

    /// A whole blob of at most `limit_bytes`, verified.
    pub async fn get(&self, digest: &Digest, limit_bytes: u64) -> Result<Bytes, BlobError> {
        let (size_bytes, mut pieces) = self.reader(digest, 0).await?;
        if size_bytes > limit_bytes {
            return Err(BlobError::TooLarge { digest: *digest, size_bytes, limit_bytes });
        }
        let mut whole = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0));
        while let Some(piece) = pieces.next().await {
            whole.extend_from_slice(&piece?);
        }
        Ok(whole.into())
    }

    /// A blob's length, and its content from `offset` on. The last piece is given out only once the digest of the whole
    /// is known to be right; otherwise the stream ends in [`BlobError::Damaged`].
    pub async fn reader(&self, digest: &Digest, offset: u64) -> Result<(u64, Pieces), BlobError> {
        let digest = *digest;
        let opened = self.store.get(&Location::from(relative(&digest))).await;
        let opened = opened.map_err(|error| match error {
            object_store::Error::NotFound { .. } => BlobError::NotFound { digest },
            other => BlobError::failed("open", format!("blob {digest}"))(other),
        })?;
        let size_bytes = opened.meta.size;
        let reading = Reading {
            digest,
            pieces: opened.into_stream(),
            hash: Some(StreamDigest::new()),
            skip: offset,
            held: None,
        };
        Ok((size_bytes, stream::unfold(reading, Reading::next).boxed()))
    }

    /// Which of these blobs are not here.
    pub async fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, BlobError> {
        let mut missing = Vec::new();
        for digest in digests {
            if self.size_bytes(digest).await?.is_none() {
                missing.push(*digest);
            }
        }
        Ok(missing)
    }
}

/// A verified read under way.
struct Reading {
    digest: Digest,
    pieces: BoxStream<'static, object_store::Result<Bytes>>,
    /// Taken when the stream has ended.
    hash: Option<StreamDigest>,
    skip: u64,
    /// The newest piece: given out when there is another one after it, or when the digest is right.
    held: Option<Bytes>,
}

impl Reading {
    async fn next(mut self) -> Option<(Result<Bytes, BlobError>, Reading)> {
        let mut hash = self.hash.take()?;
        loop {
            match self.pieces.next().await {
                Some(Ok(piece)) => {
                    hash.update(&piece);
                    let skipped = self.skip.min(piece.len() as u64);
                    self.skip -= skipped;
                    let rest = piece.slice(usize::try_from(skipped).unwrap_or(piece.len())..);
                    if rest.is_empty() {
                        continue;
                    }
                    if let Some(held) = self.held.replace(rest) {
                        self.hash = Some(hash);
                        return Some((Ok(held), self));
                    }
                }
                Some(Err(error)) => {
                    let what = format!("blob {}", self.digest);
                    return Some((Err(BlobError::failed("read", what)(error)), self));
                }
                None => {
                    let (digest, (_, found)) = (self.digest, hash.finish());
                    if found != digest {
                        return Some((Err(BlobError::Damaged { digest, found }), self));
                    }
                    return self.held.take().map(|held| (Ok(held), self));
                }
            }
        }
    }
}
