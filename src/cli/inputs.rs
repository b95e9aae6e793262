//! What a task is given: files and standard input, sent to the cluster when it does not have them yet.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use grey_api::{BlobCreated, BlobQuery, BlobRequest, BlobsMissing, Client, InputRequest};
use grey_proof::StreamDigest;

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

    fn add_source(&mut self, path: &Path) -> Result<(u64, String), CliError> {
        let mut file = File::open(path).map_err(|error| unreadable(path, &error))?;
        let (length, digest) = digest_of(&mut file, |_| Ok(())).map_err(|error| unreadable(path, &error))?;
        self.sources.insert(digest.clone(), (Source::Path(path.to_path_buf()), length));
        Ok((length, digest))
    }

    /// Copies standard input to a file without a name: it can be read once only, and its digest is needed first.
    fn spool(&mut self) -> Result<(), CliError> {
        let name = format!("grey-stdin-{}", super::run::fresh_key()?);
        let path = std::env::temp_dir().join(name);
        let failed = |error: std::io::Error| CliError::io("copy", "standard input", &error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        std::fs::remove_file(&path).map_err(failed)?;
        let copied = digest_of(&mut std::io::stdin().lock(), |piece| file.write_all(piece));
        let (length, digest) = copied.map_err(failed)?;
        self.stdin = Some(BlobRequest { digest: digest.clone(), size_bytes: length });
        self.sources.insert(digest, (Source::Spooled(file), length));
        Ok(())
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
