//! A snapshot on its way into a file and out of it: looked through, or made a new cluster's first server.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::Path;
use std::sync::Arc;

use grey_blob::BlobStore;
use grey_core::{Command, Entry, Keeper, Recover, State};
use grey_proof::{Digest, Envelope, SigningKey, StreamDigest};
use grey_store::{
    DirectoryLock, Disk, Folder, Restoring, SnapshotFacts, SnapshotPart, SnapshotReader, Storage,
    StorageOptions, StoreError,
};
use grey_trust::Authority;
use serde::{Deserialize, Serialize};

use super::found::{FirstServer, Founded, Origin};
use super::papers::Papers;
use super::server::runtime;
use crate::clock::wall_ms;
use crate::config::ServerConfig;
use crate::error::NodeError;
use crate::format::check_format;
use crate::identity::{random, secret_in};
use crate::plane::certificate_id;

/// The only version of a header that is read.
const VERSION: u8 = 1;
/// How much is read of a file at once, in bytes.
const READ_BYTES: usize = 1024 * 1024;
/// Content that is being restored.
const CONTENT_FILE: &str = "restoring.part";

/// What a snapshot says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    version: u8,
    grey: String,
    cluster: Digest,
    server: u64,
    taken_wall_ms: u64,
    /// What signed the certificates of those whose reports it has.
    issuers: Vec<Envelope>,
}

impl Header {
    pub(crate) fn new(cluster: Digest, server: u64, issuers: Vec<Envelope>) -> Header {
        let grey = env!("CARGO_PKG_VERSION").to_owned();
        Header { version: VERSION, grey, cluster, server, taken_wall_ms: wall_ms(), issuers }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        // Serialising to memory fails only for types without a known length, of which there are none here.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// What is in a snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotSummary {
    /// The cluster.
    pub cluster: Digest,
    /// Index of the last entry in it.
    pub index: u64,
    /// When it was taken, milliseconds since 1970.
    pub taken_wall_ms: u64,
    /// Records of history.
    pub records: u64,
    /// Content: inputs, logs and files of tasks.
    pub contents: u64,
    /// Length of the file, in bytes.
    pub bytes: u64,
}

/// A cluster that goes on from a snapshot.
#[derive(Debug, Clone)]
pub struct Restored {
    /// Its first server.
    pub founded: Founded,
    /// The server's number.
    pub server: u64,
    /// What was in the snapshot.
    pub summary: SnapshotSummary,
}

/// What goes through a snapshot part by part.
trait Visitor {
    fn part(&mut self, part: &SnapshotPart) -> Result<(), NodeError>;
    /// The content that was begun last is whole.
    fn content(&mut self, digest: &Digest, size_bytes: u64) -> Result<(), NodeError>;
}

/// Looks only.
struct Looks;

impl Visitor for Looks {
    fn part(&mut self, _: &SnapshotPart) -> Result<(), NodeError> {
        Ok(())
    }

    fn content(&mut self, _: &Digest, _: u64) -> Result<(), NodeError> {
        Ok(())
    }
}

fn damaged(path: &Path, reason: &str) -> NodeError {
    NodeError::Damaged { file: path.display().to_string(), reason: reason.to_owned() }
}

/// Goes through a whole snapshot, and checks all of it on the way.
fn walk(path: &Path, visitor: &mut impl Visitor) -> Result<(Header, SnapshotSummary), NodeError> {
    let file = File::open(path).map_err(NodeError::io("open", path.display()))?;
    let bytes = file.metadata().map_err(NodeError::io("read", path.display()))?.len();
    let mut reader = SnapshotReader::begin(BufReader::with_capacity(READ_BYTES, file))?;
    let (mut header, mut facts): (Option<Header>, Option<SnapshotFacts>) = (None, None);
    let (mut records, mut contents) = (0, 0);
    let mut open: Option<(Digest, StreamDigest)> = None;
    let close = |open: &mut Option<(Digest, StreamDigest)>, visitor: &mut _| -> Result<(), NodeError> {
        let Some((digest, hash)) = open.take() else { return Ok(()) };
        let (size_bytes, found) = hash.finish();
        if found != digest {
            return Err(damaged(path, &format!("the content that is said to be {digest} is {found}")));
        }
        Visitor::content(visitor, &digest, size_bytes)
    };
    while let Some(part) = reader.next_part()? {
        match &part {
            SnapshotPart::Header(bytes) => {
                let read: Header = serde_json::from_slice(bytes)
                    .map_err(|error| damaged(path, &format!("its header: {error}")))?;
                if read.version != VERSION {
                    let (found, supported) = (u64::from(read.version), u64::from(VERSION));
                    let file = path.display().to_string();
                    return Err(StoreError::Version { file, found, supported }.into());
                }
                header = Some(read);
            }
            SnapshotPart::Facts(found) => facts = Some(found.clone()),
            SnapshotPart::Record(..) => records += 1,
            SnapshotPart::Content(digest) => {
                close(&mut open, visitor)?;
                open = Some((*digest, StreamDigest::new()));
                contents += 1;
            }
            SnapshotPart::Piece(piece) => match &mut open {
                Some((_, hash)) => hash.update(piece),
                None => return Err(damaged(path, "content without a beginning")),
            },
            SnapshotPart::Row(..) | SnapshotPart::Hashes(_) => {}
        }
        visitor.part(&part)?;
    }
    close(&mut open, visitor)?;
    let (Some(header), Some(facts)) = (header, facts) else {
        return Err(damaged(path, "it has no beginning"));
    };
    let (cluster, taken_wall_ms) = (header.cluster, header.taken_wall_ms);
    let summary = SnapshotSummary { cluster, index: facts.index, taken_wall_ms, records, contents, bytes };
    Ok((header, summary))
}

/// Looks a snapshot through from beginning to end.
///
/// # Errors
/// When it cannot be read, is damaged, or is of another version.
pub fn check_snapshot(path: &Path) -> Result<SnapshotSummary, NodeError> {
    walk(path, &mut Looks).map(|(_, summary)| summary)
}

/// Puts a snapshot into a directory.
struct Restores<'a> {
    directory: &'a Path,
    disk: Arc<dyn Disk>,
    runtime: &'a tokio::runtime::Runtime,
    blobs: BlobStore,
    restoring: Option<Restoring>,
    content: Option<File>,
}

impl Visitor for Restores<'_> {
    fn part(&mut self, part: &SnapshotPart) -> Result<(), NodeError> {
        let path = self.directory.join(CONTENT_FILE);
        match part {
            SnapshotPart::Facts(facts) => {
                let begun = Restoring::begin(&self.disk, &StorageOptions::default(), facts.clone());
                self.restoring = Some(begun?);
            }
            SnapshotPart::Content(_) => {
                self.content = Some(File::create(&path).map_err(NodeError::io("write", path.display()))?);
            }
            SnapshotPart::Piece(piece) => {
                if let Some(content) = &mut self.content {
                    content.write_all(piece).map_err(NodeError::io("write", path.display()))?;
                }
            }
            part => {
                if let Some(restoring) = &mut self.restoring {
                    restoring.take(part)?;
                }
            }
        }
        Ok(())
    }

    fn content(&mut self, digest: &Digest, size_bytes: u64) -> Result<(), NodeError> {
        self.content = None;
        let path = self.directory.join(CONTENT_FILE);
        self.runtime.block_on(self.blobs.put_file(&path, digest, size_bytes))?;
        std::fs::remove_file(&path).map_err(NodeError::io("remove", path.display()))
    }
}

/// Makes a directory the first server of the cluster that a snapshot is of. The snapshot is looked through before anything is written.
///
/// # Errors
/// When the directory holds something, the snapshot is damaged, the key is not its cluster's, or the disk fails.
pub fn restore(config: &ServerConfig, snapshot: &Path, root_key: &Path) -> Result<Restored, NodeError> {
    let directory = config.data_dir.as_path();
    let root_key = SigningKey::from_seed(secret_in(root_key)?);
    let (header, summary) = walk(snapshot, &mut Looks)?;
    if root_key.verifying_key().id() != header.cluster {
        return Err(NodeError::ForeignRootKey { snapshot: snapshot.display().to_string() });
    }
    let _lock = DirectoryLock::take(directory)?;
    let held = std::fs::read_dir(directory).map_err(NodeError::io("read", directory.display()))?;
    // The lock is the only thing that an empty directory has by now.
    if held.flatten().any(|entry| entry.file_name() != "lock") {
        return Err(NodeError::NotEmpty { directory: directory.display().to_string() });
    }
    check_format(directory)?;
    let runtime = runtime()?;
    let disk: Arc<dyn Disk> =
        Arc::new(Folder::open(directory).map_err(NodeError::io("open", directory.display()))?);
    let blobs = BlobStore::open(&directory.join("blobs"))?;
    let (disk_of_parts, content) = (disk.clone(), None);
    let mut restores =
        Restores { directory, disk: disk_of_parts, runtime: &runtime, blobs, restoring: None, content };
    walk(snapshot, &mut restores)?;
    let Some(restoring) = restores.restoring else { return Err(damaged(snapshot, "it has no state")) };
    let rows = restoring.rows().iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
    let state = State::load(rows).map_err(|error| damaged(snapshot, &error.to_string()))?;
    let (time_ms, server) = (state.meta().time_ms, state.meta().servers_numbered.saturating_add(1));
    restoring.finish()?;

    let authority = Authority::found(&root_key, random()?, wall_ms())?;
    let [a, b, c, d, e, f, g, h, ..] = random()?;
    let serial = u64::from_le_bytes([a, b, c, d, e, f, g, h]) >> 12;
    let origin =
        Origin { authority, server, serial, token_name: "restored", made_by: "grey cluster restore" };
    let first = FirstServer::make(config, origin)?;
    let issuers: Result<Vec<(Digest, Vec<u8>)>, NodeError> = header
        .issuers
        .iter()
        .map(|issuer| Ok((certificate_id(issuer)?, serde_json::to_vec(issuer).unwrap_or_default())))
        .collect();
    let keeper = Keeper::Newcomer {
        node: Box::new(first.node.clone()),
        token: first.token.clone(),
        issuers: issuers?,
    };
    let command = Command::Recover(Recover { keeper, wall_ms: wall_ms() });
    let entry = Entry { time_ms, command }.encode().map_err(|error| damaged(snapshot, &error.to_string()))?;
    Storage::go_on_alone(disk, &StorageOptions::default(), server, entry)?;
    first.keep_token(directory)?;
    // The papers are written last: without them the directory is no server's.
    Papers::accepted(directory, grey_core::NodeRole::Server, &first.accept)?;
    Ok(Restored { founded: Founded::in_directory(directory, header.cluster, false), server, summary })
}
