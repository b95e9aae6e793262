//! The documentation keeps up: every code has its page, every page an example that reads, every link leads somewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use grey_api::{ErrorCode, Problem};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn pages(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pages(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn page_of(code: ErrorCode) -> String {
    let path = root().join(format!("docs/errors/{code}.md"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{code} has no page: {error}"))
}

/// What follows each `](` up to the `)` outside of code, where brackets are no links.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if !in_code {
            let targets = line.split("](").skip(1).filter_map(|part| part.split(')').next());
            found.extend(targets.map(str::to_owned));
        }
    }
    found
}

/// The anchor of a heading: lowercase, without punctuation, hyphens for spaces.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|character| character.is_alphanumeric() || " -_".contains(*character));
        kept.map(|character| if character == ' ' { '-' } else { character }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_code_has_its_page_and_every_page_its_code() {
    for code in ErrorCode::ALL {
        let page = page_of(*code);
        assert_eq!(page.lines().next(), Some(format!("# {code}").as_str()), "the page's title");
        assert!(page.contains(&format!("HTTP status {}.", code.status())), "{code} has another status");
    }
    for page in pages(&root().join("docs/errors")) {
        let name = page.file_stem().unwrap().to_str().unwrap().to_owned();
        let known = ErrorCode::ALL.iter().any(|code| code.name() == name);
        assert!(known || name == "README", "{name} is no code");
    }
}

#[test]
fn the_table_of_codes_has_each_with_its_status() {
    let table = std::fs::read_to_string(root().join("docs/errors/README.md")).unwrap();
    for code in ErrorCode::ALL {
        let row = format!("| [{code}]({code}.md) | {} |", code.status());
        assert_eq!(table.matches(&row).count(), 1, "`{row}` must stand once in the table");
    }
}

#[test]
fn the_example_of_a_page_is_a_refusal_of_its_code() {
    for code in ErrorCode::ALL {
        let page = page_of(*code);
        let example = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
        let example = example.unwrap_or_else(|| panic!("{code} has no example"));
        let read: Problem = serde_json::from_str(example).unwrap_or_else(|error| panic!("{code}: {error}"));
        let expected = Problem { detail: String::new(), ..Problem::new(*code, "") };
        let common = Problem {
            detail: String::new(),
            field: None,
            limit: None,
            usage: None,
            hint: None,
            retry_after_ms: None,
            ..read.clone()
        };
        assert_eq!(common, expected, "type, title, status and code of {code}");
        assert!(!read.detail.is_empty(), "{code} says nothing in particular");
        // Every member of the example must be one that a refusal has.
        let shown: serde_json::Value = serde_json::from_str(example).unwrap();
        assert_eq!(shown, serde_json::to_value(&read).unwrap(), "{code} shows a member that is not there");
    }
}

#[test]
fn every_link_leads_to_a_file_and_to_a_heading_of_it() {
    let mut all = pages(&root().join("docs"));
    all.extend(
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name)),
    );
    let mut followed = 0;
    for page in all {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in links(&text).iter().filter(|link| !link.contains("://")) {
            followed += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
            if !anchor.is_empty() {
                let headings = anchors(&std::fs::read_to_string(&target).unwrap());
                assert!(headings.iter().any(|heading| heading == anchor), "{}: {link}", page.display());
            }
        }
    }
    assert!(followed > 20, "only {followed} links were found");
}
