//! Classes as they are typed: by name or by number.

use super::models::LoadedGenerator;
use super::output;
use crate::data::some_of;
use anyhow::Context as _;

/// The classes asked for, or all; images have them in turn.
pub(super) fn asked_classes(
    asked: &[String],
    generator: &LoadedGenerator,
) -> anyhow::Result<Vec<u32>> {
    let classes = generator.section.classes;
    let names = generator.classes.as_deref().unwrap_or_default();
    let index = |asked: &String| -> anyhow::Result<u32> {
        let asked = asked.trim();
        // Names first: a folder may be called by a number.
        if let Some(index) = names.iter().position(|name| name == asked) {
            if asked.parse().is_ok_and(|number: usize| number != index && number < classes) {
                output::note(format_args!(
                    "note: {asked} is the class of that name, number {index}; class number {asked} is {}",
                    names[asked.parse().unwrap_or(index)]
                ));
            }
            return Ok(index as u32);
        }
        let index = asked.parse().ok().filter(|index: &u32| (*index as usize) < classes);
        index.with_context(|| format!("class {asked} does not exist: {}", known_classes(generator)))
    };
    match asked {
        [] => Ok((0..classes as u32).collect()),
        asked => whole_names(asked, names).iter().map(index).collect(),
    }
}

/// What was typed, with the commas that belong to a name put back: of pieces that lie side by side, the most that
/// are a name are one.
fn whole_names(pieces: &[String], names: &[String]) -> Vec<String> {
    let most = names.iter().map(|name| name.matches(',').count() + 1).max().unwrap_or(1);
    let (mut all, mut rest) = (Vec::new(), pieces);
    while let Some((first, others)) = rest.split_first() {
        let name = (2..=most.min(rest.len())).rev().find_map(|count| {
            let name = rest[..count].join(",");
            names.iter().any(|known| *known == name.trim()).then_some((name, count))
        });
        match name {
            Some((name, count)) => {
                all.push(name);
                rest = &rest[count..];
            }
            None => {
                all.push(first.clone());
                rest = others;
            }
        }
    }
    all
}

/// The classes that there are, told.
pub(super) fn known_classes(generator: &LoadedGenerator) -> String {
    let classes = generator.section.classes;
    match generator.classes.as_deref().unwrap_or_default() {
        [] => format!("the generator has {classes}, by numbers from 0: their names were not kept"),
        names => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            format!("the generator has {classes}, by number from 0 or by name: {}", some_of(&names))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_of_names_are_told_from_those_between_them() {
        let names = ["tench, Tinca tinca", "cat", "cat, big", "a,b,c"].map(String::from);
        let whole = |typed: &str| {
            let pieces: Vec<String> = typed.split(',').map(String::from).collect();
            whole_names(&pieces, &names)
        };
        assert_eq!(whole("cat,tench, Tinca tinca,2"), ["cat", "tench, Tinca tinca", "2"]);
        assert_eq!(whole("cat, big,cat"), ["cat, big", "cat"]);
        assert_eq!(whole("a,b,c,dog"), ["a,b,c", "dog"]);
        assert_eq!(whole("a,b"), ["a", "b"]);
    }
}
