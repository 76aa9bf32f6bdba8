//! Which part of the data the members of archives belong to.

use super::super::folder::{self, is_image};
use super::Candidate;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Training,
    Validation,
    /// Not used here.
    Test,
}

impl Part {
    /// Returns the part that a folder of this name holds.
    pub(super) fn of_folder(name: &OsStr) -> Option<Self> {
        let path = Path::new(name);
        match (folder::is_training(path), folder::is_validation(path)) {
            (true, _) => Some(Self::Training),
            (_, true) => Some(Self::Validation),
            _ => None,
        }
    }

    /// Returns the part given by the last such word in an archive's name, as in
    /// `imagenet1k-validation-00.tar`.
    pub(super) fn of_archive(path: &Path) -> Option<Self> {
        let stem = path.file_stem()?.to_str()?;
        let words = stem.split(|c: char| !c.is_ascii_alphabetic());
        words.rev().find_map(|word| match word.to_ascii_lowercase().as_str() {
            "test" | "testing" => Some(Self::Test),
            word => Self::of_folder(OsStr::new(word)),
        })
    }
}

/// Strips the folders that the names of all images of a set share, and then the folder of a part,
/// as long as names of `depth` components remain: a class folder and a file, or a file.
pub(super) fn strip(candidates: &mut [Candidate], depth: usize) {
    let shared = shared(candidates, depth);
    for candidate in candidates.iter_mut() {
        candidate.name = candidate.name.iter().skip(shared).collect();
        if depth > 1 {
            candidate.file.call(candidate.name.clone());
        }
    }
    // A class may be called `train`: it is a part only if it holds class folders itself.
    let deep: BTreeSet<OsString> = images(candidates)
        .filter(|c| c.name.iter().count() > depth)
        .filter_map(|c| c.name.iter().next().map(OsStr::to_owned))
        .collect();
    let trains = deep.iter().any(|first| Part::of_folder(first) == Some(Part::Training));
    for candidate in candidates.iter_mut() {
        let Some(first) = candidate.name.iter().next().filter(|first| deep.contains(*first)) else {
            continue;
        };
        let Some(own) = Part::of_folder(first) else { continue };
        if trains || candidate.part == Some(own) || depth == 1 {
            candidate.name = candidate.name.iter().skip(1).collect();
            candidate.part = Some(own);
        }
    }
}

fn images(candidates: &[Candidate]) -> impl Iterator<Item = &Candidate> {
    // Other files say nothing about how the images are packed.
    let any = candidates.iter().any(|c| is_image(&c.name));
    candidates.iter().filter(move |c| !any || is_image(&c.name))
}

/// Number of leading folders that the names of all images share outside of the class folders.
fn shared(candidates: &[Candidate], depth: usize) -> usize {
    let below = |at: usize| {
        let first = images(candidates).next()?.name.iter().nth(at)?.to_owned();
        let mut files = false;
        let mut folders = BTreeSet::new();
        for candidate in images(candidates) {
            let mut rest = candidate.name.iter().skip(at);
            if rest.next() != Some(&first) {
                return None;
            }
            let rest: Vec<&OsStr> = rest.collect();
            match rest.as_slice() {
                [] => return None,
                [_file] => files = true,
                [folder, ..] => drop(folders.insert(folder.to_owned())),
            }
        }
        // Files next to a single folder belong to a class that has a subfolder; next to several
        // folders they are strays.
        let around = match depth {
            1 => true,
            _ => folders.len() > 1 || (folders.len() == 1 && !files),
        };
        (around && Part::of_folder(&first).is_none()).then_some(())
    };
    (0..).take_while(|&at| below(at).is_some()).count()
}

/// A set divided into its parts.
pub(super) struct Split {
    pub(super) train: Vec<Candidate>,
    pub(super) validation: Option<Vec<Candidate>>,
    /// Images of a part that is not used.
    pub(super) loose: Vec<PathBuf>,
}

/// Divides images into parts. Names matter only if they distinguish two parts.
pub(super) fn split(candidates: Vec<Candidate>) -> Split {
    let has = |part: Option<Part>| candidates.iter().any(|c| c.part == part);
    // Training uses what is named so, or else what is not named after a part, or else whatever
    // there is.
    let training = [Some(Part::Training), None, Some(Part::Validation), Some(Part::Test)];
    let training = training.into_iter().find(|part| has(*part)).unwrap_or_default();
    let (mut train, mut validation, mut loose) = (Vec::new(), Vec::new(), Vec::new());
    for candidate in candidates {
        match candidate.part {
            part if part == training => train.push(candidate),
            Some(Part::Validation) => validation.push(candidate),
            _ => loose.push(candidate.file.path().to_owned()),
        }
    }
    Split { train, validation: Some(validation).filter(|v| !v.is_empty()), loose }
}
