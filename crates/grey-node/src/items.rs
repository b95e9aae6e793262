//! Items of arrays that come as a list: a blob with one JSON text, or one file as a JSON object, a line.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use grey_api::InputRequest;
use grey_blob::BlobStore;
use grey_core::{BlobReference, InputFile, limits, validate};
use grey_proof::Digest;
use serde::Deserialize;

use crate::gather::GatherError;

/// How many lists are kept at hand. One of a million lines takes twelve megabytes.
const LISTS_KEPT: usize = 4;

/// What one line of a list says.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Text(String),
    File(InputRequest),
}

/// The item of one task.
pub(crate) struct Item {
    /// What `GREY_ITEM` says: the text, or the file's path.
    pub(crate) text: String,
    /// The file, where the item is one.
    pub(crate) file: Option<InputFile>,
}

/// A list whose content was checked: where each line begins, and its checksum, so that a line read later is the same.
struct List {
    file: File,
    lines: Vec<(u32, u32)>,
    size_bytes: u64,
}

/// The lists that were used last.
#[derive(Default)]
pub(crate) struct ItemLists(Mutex<VecDeque<(Digest, Arc<List>)>>);

fn failed(error: impl core::fmt::Display) -> GatherError {
    GatherError::Failed(error.to_string())
}

/// The item of one line, or what is wrong with it.
pub(crate) fn parse(line: &[u8]) -> Result<Item, String> {
    let line: Line = serde_json::from_slice(line)
        .map_err(|_| "is neither a JSON text nor a file with path, digest and size_bytes".to_owned())?;
    let item = match line {
        Line::Text(text) => Item { text, file: None },
        Line::File(request) => {
            validate::input_path(&request.path).map_err(|error| error.to_string())?;
            let digest = request.digest.parse().map_err(|_| "has a digest that is none".to_owned())?;
            let blob = BlobReference { digest, size_bytes: request.size_bytes };
            let file = InputFile { path: request.path.clone(), blob, executable: request.executable };
            Item { text: request.path, file: Some(file) }
        }
    };
    match &item {
        item if item.text.contains('\0') => Err("contains a NUL byte".to_owned()),
        item if item.text.len() > limits::COMMAND_BYTES => {
            Err(format!("is longer than {} bytes", limits::COMMAND_BYTES))
        }
        _ => Ok(item),
    }
}

/// Reads a list through, line by line; whatever `each` says of a line ends it. Returns how many lines there are.
fn walk<E>(file: &File, mut each: impl FnMut(u32, &[u8]) -> Result<(), E>) -> Result<u32, WalkError<E>> {
    let mut reader = BufReader::with_capacity(256 * 1024, file);
    let (mut line, mut number) = (Vec::new(), 0u32);
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(WalkError::Io)? == 0 {
            return Ok(number);
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        each(number, text).map_err(WalkError::Said)?;
        number = number.saturating_add(1);
    }
}

enum WalkError<E> {
    Io(std::io::Error),
    Said(E),
}

/// Goes through the files that a list names. A line that is no item names none.
pub(crate) fn files(path: &Path, mut each: impl FnMut(Digest)) -> std::io::Result<()> {
    let walked = walk(&File::open(path)?, |_, line| {
        if let Some(file) = parse(line).ok().and_then(|item| item.file) {
            each(file.blob.digest);
        }
        Ok::<(), core::convert::Infallible>(())
    });
    match walked {
        Err(WalkError::Io(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Why a list cannot be the items of an array.
pub(crate) enum ListProblem {
    /// A line, from one, is wrong.
    Line(u32, String),
    /// It has another number of lines.
    Count(u32),
    /// It cannot be read.
    Unreadable(String),
}

/// Checks that a list is the items of so many tasks, and that the files it names may be named, are there and stay until then.
pub(crate) async fn check(
    blobs: &Arc<BlobStore>,
    list: BlobReference,
    count: u32,
    counted_on_until: SystemTime,
    may_name: impl Fn(&Digest) -> bool + Send + 'static,
) -> Result<(), ListProblem> {
    let unreadable = |error: String| ListProblem::Unreadable(error);
    let path = blobs.verified_path(&list.digest).await.map_err(|error| unreadable(error.to_string()))?;
    let blobs = blobs.clone();
    let checked = tokio::task::spawn_blocking(move || {
        let file = File::open(path).map_err(|error| ListProblem::Unreadable(error.to_string()))?;
        let lines = walk(&file, |number, line| {
            let wrong = |what: String| (number.saturating_add(1), what);
            let item = parse(line).map_err(wrong)?;
            let Some(file) = item.file else { return Ok(()) };
            let found = blobs.count_on_now(&file.blob.digest, counted_on_until).ok().flatten();
            let found = found.filter(|size_bytes| *size_bytes == file.blob.size_bytes);
            match found.filter(|_| may_name(&file.blob.digest)) {
                Some(_) => Ok(()),
                None => Err(wrong(format!("names content {} that was not sent", file.blob.digest))),
            }
        });
        match lines {
            Ok(lines) if lines == count => Ok(()),
            Ok(lines) => Err(ListProblem::Count(lines)),
            Err(WalkError::Said((line, what))) => Err(ListProblem::Line(line, what)),
            Err(WalkError::Io(error)) => Err(ListProblem::Unreadable(error.to_string())),
        }
    });
    checked.await.map_err(|error| unreadable(error.to_string()))?
}

impl ItemLists {
    /// The item of the task at `index` of an array.
    pub(crate) async fn item(
        &self,
        blobs: &Arc<BlobStore>,
        list: BlobReference,
        index: u32,
    ) -> Result<Item, GatherError> {
        let found = self.kept(&list.digest);
        let list = match found {
            Some(found) => found,
            None => {
                let read = Arc::new(read(blobs, list).await?);
                self.keep(list.digest, read.clone());
                read
            }
        };
        let read = tokio::task::spawn_blocking(move || list.line(index)).await.map_err(failed)?;
        parse(&read?).map_err(|what| GatherError::Refused(format!("item {index} {what}")))
    }

    fn kept(&self, digest: &Digest) -> Option<Arc<List>> {
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let position = lists.iter().position(|(other, _)| other == digest)?;
        // The one that was used last goes last.
        let entry = lists.remove(position)?;
        let list = entry.1.clone();
        lists.push_front(entry);
        Some(list)
    }

    fn keep(&self, digest: Digest, list: Arc<List>) {
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lists.retain(|(other, _)| *other != digest);
        lists.push_front((digest, list));
        lists.truncate(LISTS_KEPT);
    }
}

async fn read(blobs: &Arc<BlobStore>, list: BlobReference) -> Result<List, GatherError> {
    if list.size_bytes > limits::ITEMS_BYTES {
        return Err(GatherError::Refused("its list of items is too long".to_owned()));
    }
    let path = blobs.verified_path(&list.digest).await.map_err(failed)?;
    let read = tokio::task::spawn_blocking(move || {
        let file = File::open(path).map_err(failed)?;
        let (mut lines, mut place) = (Vec::new(), 0usize);
        let walked = walk(&file, |_, line| {
            lines.push((u32::try_from(place).map_err(failed)?, crc32c::crc32c(line)));
            place = place.saturating_add(line.len() + 1);
            Ok(())
        });
        match walked {
            Ok(_) => Ok(List { file, lines, size_bytes: list.size_bytes }),
            Err(WalkError::Io(error)) => Err(failed(error)),
            Err(WalkError::Said(error)) => Err(error),
        }
    });
    read.await.map_err(failed)?
}

impl List {
    fn line(&self, index: u32) -> Result<Vec<u8>, GatherError> {
        let place = index as usize;
        let missing = || GatherError::Refused(format!("its list of items has no item {index}"));
        let (begins, checksum) = *self.lines.get(place).ok_or_else(missing)?;
        let next = self.lines.get(place + 1).map(|(next, _)| u64::from(*next));
        let ends = next.unwrap_or(self.size_bytes + 1).saturating_sub(1);
        let length = usize::try_from(ends.saturating_sub(u64::from(begins))).map_err(failed)?;
        let mut line = vec![0; length];
        self.file.read_exact_at(&mut line, u64::from(begins)).map_err(failed)?;
        let without = line.strip_suffix(b"\n").unwrap_or(&line);
        if crc32c::crc32c(without) != checksum {
            return Err(failed(format!("item {index} of its list is damaged")));
        }
        Ok(without.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn kept(text: &str) -> (tempfile::TempDir, Arc<BlobStore>, BlobReference) {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Arc::new(BlobStore::open(directory.path()).unwrap());
        let digest = blobs.put(text.to_owned().into(), None).await.unwrap();
        let size_bytes = text.len() as u64;
        (directory, blobs, BlobReference { digest, size_bytes })
    }

    #[tokio::test]
    async fn every_line_is_the_item_of_its_task_whether_or_not_the_last_one_ends() {
        for text in ["\"a b\"\n\"\"\n\"x\\ny\"\n", "\"a b\"\n\"\"\n\"x\\ny\""] {
            let (_directory, blobs, list) = kept(text).await;
            let lists = ItemLists::default();
            for (index, expected) in [(2, "x\ny"), (0, "a b"), (1, "")] {
                let item = lists.item(&blobs, list, index).await.ok().unwrap();
                assert_eq!(item.text, expected);
            }
            assert!(matches!(lists.item(&blobs, list, 3).await, Err(GatherError::Refused(_))));
            assert!(check(&blobs, list, 3, SystemTime::now(), |_| true).await.is_ok());
            let counted = check(&blobs, list, 4, SystemTime::now(), |_| true).await;
            assert!(matches!(counted, Err(ListProblem::Count(3))));
        }
    }

    #[tokio::test]
    async fn a_line_that_is_no_item_is_named() {
        let absent = format!(r#"{{"path":"a","digest":"{}","size_bytes":1}}"#, Digest::of(b"absent"));
        let outside = format!(r#"{{"path":"../a","digest":"{}","size_bytes":1}}"#, Digest::of(b"absent"));
        for wrong in ["7", "{}", "\"a", "", "\"a\\u0000b\"", absent.as_str(), outside.as_str()] {
            let (_directory, blobs, list) = kept(&format!("\"right\"\n{wrong}\n\"right\"\n")).await;
            let checked = check(&blobs, list, 3, SystemTime::now(), |_| true).await;
            assert!(matches!(checked, Err(ListProblem::Line(2, _))), "{wrong} was taken for an item");
        }
    }

    #[tokio::test]
    async fn a_file_that_may_not_be_named_is_as_if_it_were_not_there() {
        let (_directory, blobs, list) = kept("content").await;
        let line = format!(r#"{{"path":"a","digest":"{}","size_bytes":{}}}"#, list.digest, list.size_bytes);
        let digest = blobs.put(line.clone().into(), None).await.unwrap();
        let items = BlobReference { digest, size_bytes: line.len() as u64 };
        assert!(check(&blobs, items, 1, SystemTime::now(), |_| true).await.is_ok());
        let checked = check(&blobs, items, 1, SystemTime::now(), |_| false).await;
        let Err(ListProblem::Line(1, what)) = checked else { panic!("it was named") };
        assert!(what.ends_with("was not sent"), "{what}");
    }

    #[tokio::test]
    async fn a_line_that_changed_after_the_list_was_checked_is_not_taken() {
        let (_directory, blobs, list) = kept("\"one\"\n\"two\"\n").await;
        let lists = ItemLists::default();
        assert_eq!(lists.item(&blobs, list, 1).await.ok().unwrap().text, "two");
        let path = blobs.path_of(&list.digest);
        std::fs::write(path, "\"one\"\n\"tvo\"\n").unwrap();
        assert!(matches!(lists.item(&blobs, list, 1).await, Err(GatherError::Failed(_))));
    }
}
