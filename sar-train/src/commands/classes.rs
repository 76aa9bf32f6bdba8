//! Classes by name and by number, as they are typed and as weights and images have them.

use crate::data::{Data, some_of};
use crate::trained::TrainedGenerator;
use anyhow::Context as _;

/// Returns the classes asked for, or all of them; images get them in turn.
pub(super) fn asked_classes(
    asked: &[String],
    generator: &TrainedGenerator,
) -> anyhow::Result<Vec<u32>> {
    let classes = generator.section.classes;
    let names = generator.classes.as_deref().unwrap_or_default();
    let index = |asked: &String| -> anyhow::Result<u32> {
        // A folder's name may begin or end with a blank.
        let asked = if names.contains(asked) { asked } else { asked.trim() };
        // Names come first, because a folder may be named by a number.
        if let Some(index) = names.iter().position(|name| name == asked) {
            if asked.parse().is_ok_and(|number: usize| number != index && number < classes) {
                eprintln!(
                    "note: {asked} is the class of that name, number {index}; class number {asked} is {}",
                    names[asked.parse().unwrap_or(index)]
                );
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

/// Puts the commas that belong to names back into what was typed: the longest run of adjacent
/// pieces that forms a known name is joined.
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

/// Describes the classes that exist.
pub(super) fn known_classes(generator: &TrainedGenerator) -> String {
    let classes = generator.section.classes;
    match generator.classes.as_deref().unwrap_or_default() {
        [] => format!("the generator has {classes}, by numbers from 0: their names were not kept"),
        names => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            format!("the generator has {classes}, by number from 0 or by name: {}", some_of(&names))
        }
    }
}

/// Gives classes that these images leave without a name the one that the generator's run has for them.
pub(super) fn name_classes(generator: &TrainedGenerator, data: &mut Data) {
    name_gaps(&mut data.classes, generator.classes.as_deref().unwrap_or_default());
}

/// Warns if a label means another class for these images than for those that the generator was trained on.
pub(super) fn compare_with_generator(generator: &TrainedGenerator, data: &Data) {
    let Some(before) = generator.classes.as_deref() else {
        eprintln!(
            "note: the names of the generator's classes were not kept; its classes are taken for those of the \
             images, in their order"
        );
        return;
    };
    if let Some(difference) = other_class(before, &data.classes) {
        eprintln!(
            "warning: the images have other classes than those that the generator was trained on: \
             {difference}"
        );
    }
}

/// Gives a generator the classes `names`: those whose names it has keep their weights, the others start anew.
pub(super) fn adopt_classes(
    generator: &mut TrainedGenerator,
    names: &[String],
    seed: u64,
) -> anyhow::Result<()> {
    let known = generator.classes.take().unwrap_or_default();
    let row = |(label, name): (usize, &String)| {
        let known = || known.iter().position(|k| k == name);
        is_named(label, name).then(known).flatten()
    };
    let rows: Vec<Option<usize>> = names.iter().enumerate().map(row).collect();
    (generator.generator, generator.weights) =
        generator.generator.with_classes(&generator.weights, &rows, seed)?;
    generator.section.classes = names.len();
    let (kept, all) = (rows.iter().flatten().count(), names.len());
    match known.as_slice() {
        [] => {
            eprintln!("note: no names of the weights' classes were kept, so all {all} begin anew")
        }
        _ => eprintln!(
            "note: {kept} of {all} classes keep what the weights know of them by name, the others \
             begin anew"
        ),
    }
    generator.classes = Some(names.to_vec());
    Ok(())
}

/// Whether a class has a name, rather than just the number that list files and classes without images have.
fn is_named(label: usize, name: &str) -> bool {
    name != label.to_string()
}

/// Gives labels without a name the known one, unless another label has that name.
fn name_gaps(names: &mut [String], known: &[String]) {
    for (label, known) in known.iter().enumerate().take(names.len()) {
        if !is_named(label, &names[label]) && !names.contains(known) {
            names[label].clone_from(known);
        }
    }
}

/// Describes the first label that means another class in `now` than in `before`.
pub(super) fn other_class(before: &[String], now: &[String]) -> Option<String> {
    let pairs = before.iter().zip(now).enumerate();
    let named = |(label, (a, b)): &(usize, (&String, &String))| {
        is_named(*label, a) && is_named(*label, b) && a != b
    };
    let changed = pairs.into_iter().find(named);
    let without = |all: &[String], others: &[String]| -> Vec<String> {
        let kept = all.iter().enumerate().filter(|(label, name)| is_named(*label, name));
        kept.filter(|(_, name)| !others.contains(name))
            .map(|(_, name)| format!("`{name}`"))
            .collect()
    };
    let told = |names: Vec<String>, what: &str| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        (!names.is_empty()).then(|| format!("{} {what}", some_of(&names)))
    };
    let mut parts: Vec<String> = changed
        .map(|(label, (was, is))| format!("class {label} was `{was}` and is `{is}` now"))
        .into_iter()
        .collect();
    if changed.is_some() || before.len() != now.len() {
        parts.extend(told(without(before, now), "missing"));
        parts.extend(told(without(now, before), "new"));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
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

    #[test]
    fn no_name_is_given_to_two_classes() {
        let named = |names: &[&str], known: &[&str]| {
            let own = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
            let mut names = own(names);
            name_gaps(&mut names, &own(known));
            names
        };
        assert_eq!(named(&["a", "1", "2"], &["x", "b", "c"]), ["a", "b", "c"]);
        // `a` is label 0 for these images, and stays only that.
        assert_eq!(named(&["a", "1", "2"], &["b", "a", "c", "d"]), ["a", "1", "c"]);
    }
}
