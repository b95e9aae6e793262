//! What a task is given of others: the output files of tasks that succeeded, as inputs of an attempt.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use grey_blob::BlobStore;
use grey_core::{BlobReference, Content, InputFile, OutputFile, Stage, TaskId, limits};
use grey_proof::Digest;
use tokio::sync::watch;

use crate::blobs::Blobs;
use crate::items::{Item, ItemLists};
use crate::records::Records;
use crate::views::LastReport;

/// How long a small file of another task stays as a blob: far longer than an attempt takes to begin.
const GATHERED_FOR: Duration = Duration::from_secs(24 * 3_600);

/// Why the inputs of an attempt are not at hand.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GatherError {
    /// They cannot be what was asked for, however often it is tried.
    #[error("{0}")]
    Refused(String),
    /// They could not be read now.
    #[error("{0}")]
    Failed(String),
}

/// Where output files of tasks that ended are found.
#[derive(Clone)]
pub(crate) struct Gatherer {
    pub(crate) records: Records,
    pub(crate) kept: watch::Receiver<u64>,
    pub(crate) blobs: Arc<BlobStore>,
}

/// Where the inputs of attempts come from.
#[derive(Clone)]
pub(crate) struct Inputs {
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) items: Arc<ItemLists>,
    /// Who finds what other tasks left; a server does, where there is none here.
    pub(crate) gatherer: Option<Gatherer>,
}

impl Inputs {
    /// As [`Gatherer::gather`]; `given` is there already.
    pub(crate) async fn gather(
        &self,
        stage: &Arc<Stage>,
        index: u64,
        given: &[InputFile],
    ) -> Result<Vec<InputFile>, GatherError> {
        if stage.inputs.is_empty() {
            return Ok(Vec::new());
        }
        let taken = given.iter().map(|input| input.path.clone());
        match (&self.gatherer, self.blobs.servers()) {
            (Some(gatherer), _) => gatherer.gather(stage, index, taken.collect()).await,
            (None, Some(servers)) => servers.gather(stage, index, &taken.collect::<Vec<_>>()).await,
            (None, None) => Err(GatherError::Failed("no server is known".to_owned())),
        }
    }

    /// Where a blob lies, fetched where it was not here, after its content was found right.
    pub(crate) async fn path(&self, digest: &Digest) -> Result<PathBuf, GatherError> {
        let failed = |error: &dyn core::fmt::Display| GatherError::Failed(error.to_string());
        self.blobs.ensure(digest).await.map_err(|error| failed(&error))?;
        self.blobs.local.verified_path(digest).await.map_err(|error| failed(&error))
    }

    /// The item of one task of an array.
    pub(crate) async fn item(&self, list: BlobReference, index: u32) -> Result<Item, GatherError> {
        let fetched = self.blobs.ensure(&list.digest).await;
        fetched.map_err(|error| GatherError::Failed(error.to_string()))?;
        self.items.item(&self.blobs.local, list, index).await
    }
}

impl Gatherer {
    /// The output files that a stage's tasks are given, as files to be laid into the working directory. History has
    /// everything up to `index`, the entry that assigned the attempt, before it is asked. The paths in `taken` are there already.
    pub(crate) async fn gather(
        &self,
        stage: &Arc<Stage>,
        index: u64,
        taken: BTreeSet<String>,
    ) -> Result<Vec<InputFile>, GatherError> {
        let mut kept = self.kept.clone();
        let caught_up = kept.wait_for(|kept| *kept >= index).await;
        caught_up.map_err(|_| GatherError::Failed("the node is stopping".to_owned()))?;
        let (records, wanted) = (self.records.clone(), stage.clone());
        let found = tokio::task::spawn_blocking(move || find(&records, &wanted, taken)).await;
        let found = found.map_err(|error| GatherError::Failed(error.to_string()))??;
        let mut inputs = Vec::with_capacity(found.len());
        for (path, file) in found {
            let blob = match file.content {
                Content::Blob(blob) => blob,
                Content::Inline(bytes) => {
                    let size_bytes = bytes.len() as u64;
                    // No record will name it: it is needed until the attempt has begun.
                    let until = Some(SystemTime::now() + GATHERED_FOR);
                    let digest = self.blobs.put(bytes.into(), until).await;
                    let digest = digest.map_err(|error| GatherError::Failed(error.to_string()))?;
                    BlobReference { digest, size_bytes }
                }
            };
            inputs.push(InputFile { path, blob, executable: file.executable });
        }
        Ok(inputs)
    }
}

fn find(
    records: &Records,
    stage: &Stage,
    mut places: BTreeSet<String>,
) -> Result<Vec<(String, OutputFile)>, GatherError> {
    let (mut found, mut reports) = (Vec::new(), LastReport::default());
    for outputs in &stage.inputs {
        for task in outputs.tasks.iter().flat_map(|range| range.tasks()) {
            for file in files_of(records, task, &mut reports)? {
                let name = core::str::from_utf8(&file.path)
                    .map_err(|_| GatherError::Refused(format!("{task} left a file whose name is no text")))?;
                let path = format!("{}/{name}", outputs.path);
                if !places.insert(path.clone()) {
                    let message = format!("`{path}` comes from {task} and is there already");
                    return Err(GatherError::Refused(message));
                }
                if found.len() >= limits::GATHERED_FILES {
                    let message =
                        format!("other tasks left more than {} files for it", limits::GATHERED_FILES);
                    return Err(GatherError::Refused(message));
                }
                found.push((path, file));
            }
        }
    }
    Ok(found)
}

/// The output files of the attempt with which a task succeeded. Neighbours are mostly in the same report, which is read
/// once for them.
fn files_of(
    records: &Records,
    task: TaskId,
    reports: &mut LastReport,
) -> Result<Vec<OutputFile>, GatherError> {
    let attempts = records.attempts(task).map_err(|error| GatherError::Failed(error.to_string()))?;
    for found in attempts.into_iter().rev() {
        let attempt =
            reports.attempt(records, found).map_err(|problem| GatherError::Failed(problem.detail))?;
        let result = attempt.run().map(|(run, _)| &run.finished.result);
        if let Some(result) = result.filter(|result| result.outcome.is_success()) {
            return Ok(result.files.clone());
        }
    }
    Err(GatherError::Refused(format!("{task} has no result that could be taken")))
}
