//! Listings: page after page, as far as they were asked for.

use grey_api::{Client, JobList, JobStatus, TaskList, TaskStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::CliError;
use super::job::{jobs_header, jobs_rows};
use super::output::{Output, table};
use super::task::{tasks_header, tasks_rows};

/// The most items of a page.
const LARGEST_PAGE: u64 = 1_000;

/// A page of a listing.
pub trait Page: Serialize + DeserializeOwned {
    /// What it lists.
    type Item: Serialize;
    /// The parameter that asks for the page after it.
    const NEXT: &'static str;
    /// Its items and where the next page begins.
    fn parts(&mut self) -> (&mut Vec<Self::Item>, &mut Option<String>);
    /// The header of a table of them.
    fn header(wide: bool) -> Vec<&'static str>;
    /// A row for each.
    fn rows(items: &[Self::Item], wide: bool) -> Vec<Vec<String>>;
}

impl Page for JobList {
    type Item = JobStatus;
    const NEXT: &'static str = "before";
    fn parts(&mut self) -> (&mut Vec<JobStatus>, &mut Option<String>) {
        (&mut self.jobs, &mut self.next)
    }
    fn header(wide: bool) -> Vec<&'static str> {
        jobs_header(wide)
    }
    fn rows(items: &[JobStatus], wide: bool) -> Vec<Vec<String>> {
        jobs_rows(items, wide)
    }
}

impl Page for TaskList {
    type Item = TaskStatus;
    const NEXT: &'static str = "from";
    fn parts(&mut self) -> (&mut Vec<TaskStatus>, &mut Option<String>) {
        (&mut self.tasks, &mut self.next)
    }
    fn header(wide: bool) -> Vec<&'static str> {
        tasks_header(wide)
    }
    fn rows(items: &[TaskStatus], wide: bool) -> Vec<Vec<String>> {
        tasks_rows(items, wide)
    }
}

/// Fetches and prints at most `limit` items, 0 for all. A document is written when all of it is there; everything else page
/// by page, so that a listing may be of any length. Returns where it would go on.
pub async fn print<P: Page>(
    client: &Client,
    path: &str,
    limit: u64,
    output: &Output,
) -> Result<Option<String>, CliError> {
    let separator = if path.contains('?') { '&' } else { '?' };
    let (mut whole, mut printed, mut from): (Option<P>, u64, Option<String>) = (None, 0, None);
    loop {
        let left = if limit == 0 { LARGEST_PAGE } else { limit - printed };
        let next = from.as_ref().map(|next| format!("&{}={next}", P::NEXT)).unwrap_or_default();
        let page = format!("{path}{separator}limit={}{next}", left.min(LARGEST_PAGE));
        let mut page: P = client.get(&page).await?;
        let (items, next) = page.parts();
        printed += items.len() as u64;
        from = next.clone();
        if output.is_one_document() {
            let Some(whole) = &mut whole else {
                whole = Some(page);
                if ends(limit, printed, &from) {
                    break;
                }
                continue;
            };
            let (all, go_on) = whole.parts();
            all.append(items);
            *go_on = from.clone();
        } else {
            let header = if printed == items.len() as u64 { P::header(output.is_wide()) } else { Vec::new() };
            output.results(items, || table(&header, &P::rows(items, output.is_wide())))?;
        }
        if ends(limit, printed, &from) {
            break;
        }
    }
    if let Some(whole) = &whole {
        output.result(whole, String::new)?;
    }
    Ok(from)
}

fn ends(limit: u64, printed: u64, next: &Option<String>) -> bool {
    next.is_none() || (limit > 0 && printed >= limit)
}
