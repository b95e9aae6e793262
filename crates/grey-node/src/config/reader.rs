//! Reads tables, and notes everything that is wrong with them instead of ending at the first.

use std::cell::RefCell;
use std::collections::BTreeMap;

use grey_api::nearest;
use toml::{Table, Value};

use super::ConfigProblem;

/// How much of what was written is repeated, in characters.
const LONGEST_SHOWN: usize = 64;

/// What is wrong so far.
#[derive(Default)]
pub(super) struct Problems(RefCell<Vec<ConfigProblem>>);

impl Problems {
    pub(super) fn note(&self, field: impl Into<String>, problem: impl Into<String>) {
        self.0.borrow_mut().push(ConfigProblem { field: field.into(), problem: problem.into() });
    }

    pub(super) fn into_list(self) -> Vec<ConfigProblem> {
        self.0.into_inner()
    }
}

/// A table of a configuration, and what of it was asked for.
pub(super) struct Section<'a> {
    path: String,
    table: Option<&'a Table>,
    known: Vec<&'static str>,
    problems: &'a Problems,
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

fn shown(text: &str) -> String {
    text.chars().take(LONGEST_SHOWN).collect()
}

impl<'a> Section<'a> {
    /// The whole of a file.
    pub(super) fn root(table: &'a Table, problems: &'a Problems) -> Section<'a> {
        Section { path: String::new(), table: Some(table), known: Vec::new(), problems }
    }

    /// Where a key of it stands, as a user would write it.
    pub(super) fn field(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Notes that something is wrong with a key of it.
    pub(super) fn wrong(&self, name: &str, problem: impl Into<String>) {
        self.problems.note(self.field(name), problem);
    }

    /// Whether it is there.
    pub(super) fn exists(&self) -> bool {
        self.table.is_some()
    }

    /// Whether a key of it is there, right or wrong.
    pub(super) fn has(&self, name: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(name))
    }

    fn value(&mut self, name: &'static str) -> Option<&'a Value> {
        self.known.push(name);
        self.table?.get(name)
    }

    fn expected(&self, name: &str, what: &str, found: &Value) {
        self.wrong(name, format!("{what} is expected, {} is there", kind(found)));
    }

    /// A table in it, which may be missing.
    pub(super) fn section(&mut self, name: &'static str) -> Section<'a> {
        let table = match self.value(name) {
            None => None,
            Some(Value::Table(table)) => Some(table),
            Some(other) => {
                self.expected(name, "a table", other);
                None
            }
        };
        Section { path: self.field(name), table, known: Vec::new(), problems: self.problems }
    }

    /// A text.
    pub(super) fn text(&mut self, name: &'static str) -> Option<&'a str> {
        match self.value(name)? {
            Value::String(text) => Some(text),
            other => {
                self.expected(name, "a text", other);
                None
            }
        }
    }

    /// A text that stands for something.
    pub(super) fn parsed<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match parse(self.text(name)?) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.wrong(name, problem);
                None
            }
        }
    }

    /// A text that stands for something and must be there; `example` shows one.
    pub(super) fn required<T>(
        &mut self,
        name: &'static str,
        example: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if !self.has(name) {
            self.known.push(name);
            self.wrong(name, format!("it must be there, such as {name} = {example}"));
            return None;
        }
        self.parsed(name, parse)
    }

    /// A whole number that is not negative; `i64` bounds it above.
    pub(super) fn number(&mut self, name: &'static str) -> Option<u64> {
        match self.value(name)? {
            Value::Integer(number) if *number >= 0 => u64::try_from(*number).ok(),
            Value::Integer(number) => {
                self.wrong(name, format!("it is {number}; it must not be negative"));
                None
            }
            other => {
                self.expected(name, "a whole number", other);
                None
            }
        }
    }

    /// A part of a whole, 0 to 1, in parts per million.
    pub(super) fn ratio_per_million(&mut self, name: &'static str) -> Option<u32> {
        let ratio = match self.value(name)? {
            Value::Float(ratio) => *ratio,
            Value::Integer(whole @ (0 | 1)) => *whole as f64,
            Value::Integer(_) => f64::NAN,
            other => {
                self.expected(name, "a number from 0 to 1", other);
                return None;
            }
        };
        if !(0.0..=1.0).contains(&ratio) {
            self.wrong(name, "it is a number from 0 to 1, such as 0.1 for a tenth");
            return None;
        }
        Some((ratio * 1_000_000.0).round() as u32)
    }

    /// A list of texts that stand for something; missing, it is empty.
    pub(super) fn list<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let values = match self.value(name) {
            None => return Vec::new(),
            Some(Value::Array(values)) => values,
            Some(other) => {
                self.expected(name, "a list", other);
                return Vec::new();
            }
        };
        let mut found = Vec::with_capacity(values.len());
        for (position, value) in values.iter().enumerate() {
            let item = format!("{name}[{position}]");
            match value {
                Value::String(text) => match parse(text) {
                    Ok(one) => found.push(one),
                    Err(problem) => self.wrong(&item, problem),
                },
                other => self.expected(&item, "a text", other),
            }
        }
        found
    }

    /// A table of the user's own keys.
    pub(super) fn entries<T>(
        &mut self,
        name: &'static str,
        what: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> BTreeMap<String, T> {
        let table = self.section(name);
        let mut found = BTreeMap::new();
        for (key, value) in table.table.into_iter().flatten() {
            match read(value) {
                Some(one) => {
                    found.insert(key.clone(), one);
                }
                None => table.expected(&shown(key), what, value),
            }
        }
        found
    }

    /// Notes every key that nobody asked for, with what was probably meant.
    pub(super) fn end(self) {
        for key in self.table.into_iter().flat_map(Table::keys) {
            if self.known.contains(&key.as_str()) {
                continue;
            }
            let meant = nearest(key, self.known.iter().copied());
            let hint = meant.map_or_else(
                || format!("there are: {}", self.known.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            self.wrong(&shown(key), format!("it is not known; {hint}"));
        }
    }
}
