//! What a task is given: files and standard input, sent to the cluster when it does not have them yet.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use grey_api::{BlobCreated, BlobQuery, BlobRequest, BlobsMissing, Client, InputRequest};
use grey_proof::{Digest, StreamDigest};

use super::error::CliError;
use super::output::Output;
use super::units;

/// The most files that a task is given.
const MOST_FILES: usize = 1_024;
/// How many digests are asked for at once.
const DIGESTS_AT_ONCE: usize = 1_000;
const PIECE_BYTES: usize = 1 << 20;

/// Everything that a task is given, by digest, and where to read it from.
#[derive(Default)]
pub struct Inputs {
    /// Files for the request.
    pub files: Vec<InputRequest>,
    /// Standard input for the request.
    pub stdin: Option<BlobRequest>,
    sources: BTreeMap<String, (Source, u64)>,
}

enum Source {
    Path(PathBuf),
    /// Made here.
    Bytes(Vec<u8>),
    /// A copy of what came over this process's standard input; it has no name any more.
    Spooled(File),
}

fn unreadable(path: &Path, error: &std::io::Error) -> CliError {
    CliError { exit_status: super::error::USAGE, ..CliError::io("read", path.display(), error) }
}

/// Length and digest of what a reader gives; each piece is passed on.
fn digest_of(
    reader: &mut impl Read,
    mut pass_on: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<(u64, String)> {
    let (mut digest, mut piece) = (StreamDigest::new(), vec![0; PIECE_BYTES]);
    loop {
        let read = reader.read(&mut piece)?;
        let found = piece.get(..read).unwrap_or_default();
        if found.is_empty() {
            let (length, digest) = digest.finish();
            return Ok((length, digest.to_string()));
        }
        digest.update(found);
        pass_on(found)?;
    }
}

/// A file without a name that holds what is written, to be read from its beginning.
fn unnamed(write: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<File, CliError> {
    let path = std::env::temp_dir().join(format!("grey-input-{}", super::run::fresh_key()?));
    let made = || {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        write(&mut file)?;
        file.rewind()?;
        Ok(file)
    };
    made().map_err(|error| CliError::io("write a copy of an input to", path.display(), &error))
}

impl Inputs {
    /// Gathers files and directories, each under its own name, and standard input, `-` for this process's.
    pub fn gather(paths: &[PathBuf], stdin: Option<&Path>) -> Result<Inputs, CliError> {
        let mut inputs = Inputs::default();
        for path in paths {
            let whole = path.canonicalize().map_err(|error| unreadable(path, &error))?;
            let name = whole.file_name().ok_or_else(|| CliError::usage("--in / is not possible"))?;
            inputs.add(&whole, Path::new(name))?;
        }
        match stdin {
            Some(path) if path == Path::new("-") => inputs.spool()?,
            Some(path) => inputs.read_stdin(path)?,
            None => {}
        }
        Ok(inputs)
    }

    /// Takes a file as standard input.
    pub fn read_stdin(&mut self, path: &Path) -> Result<(), CliError> {
        let (size_bytes, digest) = self.add_source(path)?;
        self.stdin = Some(BlobRequest { digest, size_bytes });
        Ok(())
    }

    /// Takes over what another one would send; the request's parts stay with it.
    pub fn absorb(&mut self, other: &mut Inputs) {
        self.sources.append(&mut other.sources);
    }

    /// Adds a file or directory at a place in the working directory.
    pub fn add(&mut self, path: &Path, place: &Path) -> Result<(), CliError> {
        let facts = path.metadata().map_err(|error| unreadable(path, &error))?;
        if facts.is_dir() {
            let entries = std::fs::read_dir(path).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
            let mut entries = entries.map_err(|error| unreadable(path, &error))?;
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
                if is_link && entry.path().is_dir() {
                    let shown = entry.path().display().to_string();
                    return Err(CliError::usage(format!(
                        "{shown} is a link to a directory; give that with --in"
                    )));
                }
                self.add(&entry.path(), &place.join(entry.file_name()))?;
            }
            return Ok(());
        }
        if !facts.is_file() {
            return Err(CliError::usage(format!("{} is neither a file nor a directory", path.display())));
        }
        if self.files.len() >= MOST_FILES {
            return Err(CliError::usage(format!("more than {MOST_FILES} files are given with --in"))
                .hint("pack them into an archive"));
        }
        let text = place.to_str().ok_or_else(|| {
            CliError::usage(format!("the name of {} is no text, which an input's must be", path.display()))
        })?;
        let (size_bytes, digest) = self.add_source(path)?;
        let executable = facts.permissions().mode() & 0o100 != 0;
        self.files.push(InputRequest { path: text.to_owned(), digest, size_bytes, executable });
        Ok(())
    }

    /// Takes content that was made here.
    pub fn add_bytes(&mut self, bytes: Vec<u8>) -> BlobRequest {
        let (digest, size_bytes) = (Digest::of(&bytes).to_string(), bytes.len() as u64);
        self.sources.insert(digest.clone(), (Source::Bytes(bytes), size_bytes));
        BlobRequest { digest, size_bytes }
    }

    /// Takes a file that is one of many of which each task gets one.
    pub fn add_item(&mut self, path: &Path, place: &str) -> Result<InputRequest, CliError> {
        let facts = path.metadata().map_err(|error| unreadable(path, &error))?;
        let (size_bytes, digest) = self.add_source(path)?;
        let executable = facts.permissions().mode() & 0o100 != 0;
        Ok(InputRequest { path: place.to_owned(), digest, size_bytes, executable })
    }

    fn add_source(&mut self, path: &Path) -> Result<(u64, String), CliError> {
        let mut file = File::open(path).map_err(|error| unreadable(path, &error))?;
        let (length, digest) = digest_of(&mut file, |_| Ok(())).map_err(|error| unreadable(path, &error))?;
        self.sources.insert(digest.clone(), (Source::Path(path.to_path_buf()), length));
        Ok((length, digest))
    }

    /// Copies standard input to a file without a name: it can be read once only, and its digest is needed first.
    fn spool(&mut self) -> Result<(), CliError> {
        let mut copied = (0, String::new());
        let file = unnamed(|file| {
            copied = digest_of(&mut std::io::stdin().lock(), |piece| file.write_all(piece))?;
            Ok(())
        })?;
        let (length, digest) = copied;
        self.stdin = Some(BlobRequest { digest: digest.clone(), size_bytes: length });
        self.sources.insert(digest, (Source::Spooled(file), length));
        Ok(())
    }

    /// Content that was made here, as text.
    #[cfg(test)]
    pub fn bytes(&self, digest: &str) -> Option<&str> {
        match self.sources.get(digest)? {
            (Source::Bytes(bytes), _) => core::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Sends what the cluster does not have.
    pub async fn send(&mut self, client: &Client, output: &Output) -> Result<(), CliError> {
        let digests: Vec<String> = self.sources.keys().cloned().collect();
        let (mut sent, mut sent_bytes) = (0u64, 0u64);
        for digests in digests.chunks(DIGESTS_AT_ONCE) {
            let query = BlobQuery { digests: digests.to_vec() };
            let answer: BlobsMissing = client.post("/v1/blobs/missing", &query, None).await?;
            for digest in answer.missing {
                let Some((source, length)) = self.sources.remove(&digest) else { continue };
                let file = match source {
                    Source::Bytes(bytes) => unnamed(|file| file.write_all(&bytes))?,
                    Source::Path(path) => File::open(&path).map_err(|error| unreadable(&path, &error))?,
                    Source::Spooled(mut file) => {
                        file.rewind().map_err(|error| CliError::io("read", "standard input", &error))?;
                        file
                    }
                };
                let kept: BlobCreated = client.post_file("/v1/blobs", file, length).await?;
                if kept.digest != digest {
                    return Err(CliError::failed("an input changed while it was sent").hint("run it again"));
                }
                (sent, sent_bytes) = (sent + 1, sent_bytes + length);
            }
        }
        if sent > 0 {
            output.note(&format!("sent {sent} file(s), {}", units::shown_size(sent_bytes)));
        }
        Ok(())
    }
}
