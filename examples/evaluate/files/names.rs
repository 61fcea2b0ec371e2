//! What a file of many arrays holds, by name.

use glob::Pattern;

use super::{Parsed, Wrong};

/// Names listed where one is not found.
const NAMES_LISTED: usize = 8;

/// Which of `names` is asked for, by itself or by a pattern, such as `*.weight`, of which it has to be
/// the only one; or the only one there is. `file` is what the command line writes for the file.
pub(super) fn find<'a>(names: &'a [String], asked: Option<&str>, file: &str) -> Parsed<&'a str> {
    let Some(asked) = asked else {
        return match names {
            [only] => Ok(only),
            [] => Err(Wrong::new(
                "expected a file that holds an array, got none in it",
                "save one with an array",
            )),
            [_, _, ..] => {
                let why = format!("expected {file}:NAME, got no name");
                Err(Wrong::new(why, listed(names.iter())))
            }
        };
    };
    // Names may have the characters of patterns.
    if let Some(name) = names.iter().find(|name| *name == asked) {
        return Ok(name);
    }
    let pattern = Pattern::new(asked).ok();
    let matches = |name: &&String| {
        let pattern = pattern.as_ref();
        pattern.is_some_and(|pattern| pattern.matches(name))
    };
    let matching: Vec<&String> = names.iter().filter(matches).collect();
    match matching[..] {
        [name] => Ok(name),
        [] => {
            let why = format!("expected a name in the file or a pattern of one, got {asked:?}");
            Err(Wrong::new(why, listed(names.iter())))
        }
        _ => {
            let why = format!("expected a pattern of one name in the file, got {asked:?}");
            Err(Wrong::new(why, listed(matching.into_iter())))
        }
    }
}

fn listed<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let count = names.len();
    let first: Vec<&str> = names.take(NAMES_LISTED).map(String::as_str).collect();
    let more = if count > NAMES_LISTED { ", …" } else { "" };
    format!("choose one of {count}: {}{more}", first.join(", "))
}
