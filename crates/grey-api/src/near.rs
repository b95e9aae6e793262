//! What somebody probably meant who wrote a name that is not known.

/// How many letters may be wrong.
const MOST_WRONG: usize = 3;
/// Longer names are not compared: the work is the product of both lengths.
const LONGEST_BYTES: usize = 256;

/// How many letters have to be changed, added or left out (Levenshtein, by rows).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (number, letter) in left.chars().enumerate() {
        let mut next = vec![number + 1];
        for (other, (diagonal, above)) in right.iter().zip(row.iter().zip(row.iter().skip(1))) {
            let before = next.last().copied().unwrap_or(0);
            next.push((before + 1).min(above + 1).min(diagonal + usize::from(letter != *other)));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

/// The known name that is nearest to a given one, if any is near.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if given.len() > LONGEST_BYTES {
        return None;
    }
    let compared = known.into_iter().filter(|name| !name.is_empty() && name.len() <= LONGEST_BYTES);
    let nearest = compared.map(|name| (distance(given, name), name)).min();
    nearest.filter(|(distance, _)| *distance <= MOST_WRONG).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted_in_letters() {
        for (left, right, expected) in
            [("", "", 0), ("a", "", 1), ("comand", "command", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(left, right), expected);
        }
    }

    #[test]
    fn only_what_is_near_is_meant() {
        assert_eq!(nearest("limt", ["before", "limit", "tenant"]), Some("limit"));
        assert_eq!(nearest("colour", ["before", "limit", ""]), None);
        assert_eq!(nearest(&"x".repeat(10_000), ["x"]), None);
    }
}
