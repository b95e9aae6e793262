//! The documentation keeps up: every code has its page, every link leads somewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use grey_api::ErrorCode;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn pages(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(below).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(pages(&path));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn every_code_has_its_page_and_every_page_its_code() {
    let folder = root().join("docs/errors");
    for code in ErrorCode::ALL {
        let page = std::fs::read_to_string(folder.join(format!("{code}.md")));
        let page = page.unwrap_or_else(|error| panic!("{code}: {error}"));
        assert!(page.contains(&format!("HTTP status {}", code.status())), "{code} has another status");
    }
    for page in pages(&folder) {
        let name = page.file_stem().unwrap().to_str().unwrap().to_owned();
        let known = ErrorCode::ALL.iter().any(|code| code.name() == name);
        assert!(known || name == "README", "{name} is no code");
    }
}

#[test]
fn every_link_leads_to_a_file() {
    let mut all = pages(&root().join("docs"));
    all.extend(
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name)),
    );
    let mut links = 0;
    for page in all {
        let text = std::fs::read_to_string(&page).unwrap();
        for part in text.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            let path = page.parent().unwrap().join(target);
            assert!(path.exists(), "{}: {target} leads nowhere", page.display());
        }
    }
    assert!(links > 20, "only {links} links were found");
}
