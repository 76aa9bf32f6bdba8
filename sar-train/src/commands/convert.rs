//! `sar convert`: published weights become files that this program uses directly.

use crate::checkpoint::{
    self, Facts, Header, Kind, RawTensor, arrange, load_weights, read_pth, save_weights,
};
use crate::cli::{ConvertArgs, GlobalArgs};
use crate::config::{GeneratorSection, Positions};
use crate::files::has_extension;
use crate::model::generator::{Generator, GeneratorShape};
use crate::model::tokenizer::{Tokenizer, TokenizerConfig};
use crate::params::Layout;
use crate::run::class_names;
use anyhow::Context as _;
use sar_math::ScaleSchedule;
use std::collections::BTreeMap;

/// Groups of every published norm.
const PUBLISHED_GROUPS: usize = 32;

/// Shapes by name.
type Shapes<'a> = BTreeMap<&'a str, &'a [usize]>;

/// Reads `args.from`, derives the model's shape from its tensors, and writes `args.to`.
///
/// # Errors
/// A file cannot be read, is of no known model or lacks tensors of it; the target exists.
pub fn run(args: &ConvertArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    check_paths(args)?;
    let _place = super::place::ready(&args.to)?;
    let native = has_extension(&args.from, "safetensors");
    let (model, flat) = if native { of_safetensors(args)? } else { of_pth(args)? };
    let header =
        Header { classes: model.classes, ..Header::new(model.kind, model.step, &model.config)? };
    save_weights(&args.to, &header, &model.layout, &flat)?;
    if !global.quiet {
        println!(
            "{}: {}, {} parameters",
            args.to.display(),
            model.about,
            model.layout.parameters()
        );
        if let Some(assumed) = model.assumed {
            eprintln!("note: {assumed}");
        }
    }
    Ok(())
}

/// Fails if the two paths cannot be what is read and what is written.
fn check_paths(args: &ConvertArgs) -> anyhow::Result<()> {
    let (from, to) = (&args.from, &args.to);
    anyhow::ensure!(
        args.force || !to.exists(),
        "{} exists; choose another name, or replace it with --force",
        to.display()
    );
    let same = std::fs::canonicalize(from)
        .ok()
        .is_some_and(|from| std::fs::canonicalize(to).is_ok_and(|to| to == from));
    anyhow::ensure!(!same, "{} is both what is read and what is written", from.display());
    anyhow::ensure!(
        !from.is_dir(),
        "{} is a folder; name the file in it (what this program trained needs no conversion)",
        from.display()
    );
    anyhow::ensure!(from.is_file(), "{}: no such file", from.display());
    anyhow::ensure!(!to.exists() || to.is_file(), "{} is no file; name one to write", to.display());
    anyhow::ensure!(
        has_extension(to, "safetensors"),
        "{}: what is written is a safetensors file; name it so",
        to.display()
    );
    Ok(())
}

fn not_converted(args: &ConvertArgs) -> String {
    format!("{} cannot be converted", args.from.display())
}

/// Reads a model and its weights from safetensors; a file of this program's own says itself what it is.
fn of_safetensors(args: &ConvertArgs) -> anyhow::Result<(Model, Vec<f32>)> {
    let model = match checkpoint::read_header(&args.from)? {
        Some(header) => {
            let run = checkpoint::locate(&args.from, false)?.run;
            let run = run.filter(|_| header.kind == Kind::Generator);
            let named = run.as_deref().map(class_names).transpose()?.flatten();
            anyhow::ensure!(args.groups.is_none(), "--groups: the file says itself what it is");
            let model = Model::of_header(&header, args.schedule)?;
            let all = model.config["classes"].as_u64().unwrap_or(0);
            let named = named.filter(|names| names.len() as u64 == all);
            Model { classes: named.unwrap_or(header.classes), ..model }
        }
        None => {
            let shapes = checkpoint::read_shapes(&args.from)?;
            let shapes = shapes.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
            Model::of(&shapes, args, None).with_context(|| not_converted(args))?
        }
    };
    let flat = load_weights(&args.from, model.kind, &model.layout)?.flat;
    Ok((model, flat))
}

/// Reads a model and its weights from a published file.
fn of_pth(args: &ConvertArgs) -> anyhow::Result<(Model, Vec<f32>)> {
    let tensors = read_pth(&args.from)?;
    let shapes = tensors.iter().map(|(n, t)| (n.as_str(), t.shape.as_slice())).collect();
    let masked = tensors.get(MASK).and_then(masked_grids);
    let model = Model::of(&shapes, args, masked);
    let model = model.with_context(|| not_converted(args))?;
    let flat = arrange(&args.from, &model.layout, &tensors)?;
    Ok((model, flat))
}

/// A model as derived from its tensors.
struct Model {
    kind: Kind,
    config: serde_json::Value,
    layout: Layout,
    /// Optimiser steps it was trained for; 0 for published files, which do not say.
    step: u64,
    /// Names of a generator's classes, if they are known.
    classes: Vec<String>,
    about: String,
    /// What its tensors do not say and was assumed.
    assumed: Option<String>,
}

impl Model {
    /// Creates a model of which no more is known.
    fn new(kind: Kind, config: serde_json::Value, layout: Layout, about: String) -> Self {
        Self { kind, config, layout, step: 0, classes: Vec::new(), about, assumed: None }
    }

    fn of_header(header: &Header, schedule: Option<ScaleSchedule>) -> anyhow::Result<Self> {
        let mut model = match header.kind {
            Kind::Generator => {
                let section: GeneratorSection = header.config()?;
                let schedule = schedule.unwrap_or(section.schedule);
                Self::of_section(&GeneratorSection { schedule, ..section })?
            }
            Kind::Tokenizer => {
                no_schedule(schedule)?;
                Self::of_tokenizer(&header.config()?)?
            }
        };
        model.step = header.step;
        Ok(model)
    }

    /// Derives a model from its tensors' shapes; `masked` are the grids that the file's mask is
    /// for, if they are square.
    fn of(
        shapes: &Shapes<'_>,
        args: &ConvertArgs,
        masked: Option<ScaleSchedule>,
    ) -> anyhow::Result<Self> {
        let schedule = args.schedule;
        if let Some(name) = shapes.keys().find(|name| name.contains("shared_ada_lin")) {
            anyhow::bail!(
                "`{name}` is of a VAR whose blocks share a layer, as its 512 px model's do; this program reads those \
                 whose blocks have their own (depths 16 to 30, 256 px)"
            )
        } else if shapes.contains_key("pos_start") {
            anyhow::ensure!(
                args.groups.is_none(),
                "--groups is of a tokenizer's norms; {} is a generator's",
                args.from.display()
            );
            Self::generator(shapes, schedule, masked)
        } else if shapes.contains_key("quantize.embedding.weight") {
            no_schedule(schedule)?;
            Self::tokenizer(shapes, args.groups)
        } else {
            anyhow::bail!(
                "expected a generator (with `pos_start`) or a tokenizer (with \
                 `quantize.embedding.weight`), found {} tensors, the first is `{}`",
                shapes.len(),
                shapes.keys().next().unwrap_or(&"")
            )
        }
    }

    fn generator(
        shapes: &Shapes<'_>,
        schedule: Option<ScaleSchedule>,
        masked: Option<ScaleSchedule>,
    ) -> anyhow::Result<Self> {
        let facts = Facts::of(shapes.iter().map(|(n, s)| (*n, *s)));
        let need = |what: &str, value: Option<usize>| {
            value.with_context(|| format!("no tensor of the generator tells its {what}"))
        };
        anyhow::ensure!(
            facts.heads.is_some() || facts.depth.is_none(),
            "it has no `blocks.0.attn.scale_mul_1H11`: attention without L2-normalised queries and keys is not built"
        );
        let positions = if facts.levels.is_some() { Positions::Levels } else { Positions::Grid };
        let pos_side = match positions {
            Positions::Levels => GeneratorSection::default().pos_side,
            Positions::Grid => need("position table", facts.pos_side)?,
        };
        let section = GeneratorSection {
            depth: need("depth", facts.depth)?,
            width: need("width", facts.width)?,
            heads: need("heads", facts.heads)?,
            vocab: need("vocabulary", facts.vocab)?,
            channels: need("latent channels", facts.channels)?,
            classes: need("classes", facts.classes)?,
            positions,
            pos_side,
            mlp_ratio: need("FFN width", facts.mlp_ratio)?,
            // A table of positions fits any schedule; this is the one the published models were trained with.
            schedule: schedule
                .or(masked.filter(|_| positions == Positions::Levels))
                .unwrap_or_else(ScaleSchedule::published_256),
            ..GeneratorSection::default()
        };
        if let Some((tokens, scales)) = facts.levels {
            let s = &section.schedule;
            if let Some(masked) = masked {
                anyhow::ensure!(*s == masked, "the file's mask is of the grids {masked}, not {s}");
            }
            anyhow::ensure!(
                (s.tokens(), s.len()) == (tokens, scales),
                "the generator has positions for {tokens} tokens of {scales} scales, and {s} has {} of {}; name its \
                 grids with --schedule",
                s.tokens(),
                s.len()
            );
            return Self::of_section(&section);
        }
        let mut model = Self::of_section(&section)?;
        let (schedule_tokens, masked) = (section.schedule.tokens(), masked_tokens(shapes));
        if let Some(masked) = masked.filter(|masked| *masked != schedule_tokens) {
            model.assumed = Some(format!(
                "the file's mask is of {masked} tokens and {} has {schedule_tokens}: unless it was trained on \
                 random schedules, name its own grids with --schedule",
                section.schedule
            ));
            return Ok(model);
        }
        model.assumed = schedule.is_none().then(|| {
            format!(
                "the weights do not say which grids they were trained on; {} is taken, that of the \
                 published models (--schedule names another)",
                section.schedule
            )
        });
        Ok(model)
    }

    fn of_section(section: &GeneratorSection) -> anyhow::Result<Self> {
        section.validate()?;
        let layout = Generator::new(&GeneratorShape::from(section))?.layout().clone();
        let about = format!(
            "generator of depth {}, width {}, vocabulary {}, {} classes, schedule {}",
            section.depth, section.width, section.vocab, section.classes, section.schedule
        );
        let config = serde_json::to_value(section)?;
        Ok(Self::new(Kind::Generator, config, layout, about))
    }

    fn tokenizer(shapes: &Shapes<'_>, groups: Option<usize>) -> anyhow::Result<Self> {
        let rows = |name: &str| {
            let dim = shapes.get(name).and_then(|s| s.first()).copied();
            dim.with_context(|| format!("the tokenizer has no `{name}`"))
        };
        let facts = Facts::of(shapes.iter().map(|(n, s)| (*n, *s)));
        let ch = rows("encoder.conv_in.weight")?;
        let phis = (0..).take_while(|i| {
            shapes.contains_key(format!("quantize.quant_resi.qresi_ls.{i}.weight").as_str())
        });
        let residual = phis.count();
        anyhow::ensure!(
            residual > 0 || !shapes.contains_key("encoder.down.0.block.0.conv1.weight"),
            "its encoder is VAR's, but it has no `quantize.quant_resi.qresi_ls.0.weight`: of VAR's tokenizers those \
             whose scales share a few convolutions are read, as the released one (four)"
        );
        let block = |level: usize, i: usize, conv: usize| match residual {
            0 => format!("encoder.conv_blocks.{level}.res.{i}.conv{conv}.weight"),
            _ => format!("encoder.down.{level}.block.{i}.conv{conv}.weight"),
        };
        let channels = (0..facts.halvings.unwrap_or(0))
            .map(|level| rows(&block(level, 0, 2)))
            .collect::<anyhow::Result<Vec<usize>>>()?;
        let blocks = (0..).take_while(|&i| shapes.contains_key(block(0, i, 1).as_str()));
        let config = TokenizerConfig {
            ch,
            ch_mult: channels.iter().map(|c| c / ch.max(1)).collect(),
            num_res_blocks: blocks.count(),
            z_channels: rows("encoder.conv_out.weight")?,
            latent_channels: facts.channels.unwrap_or(0),
            vocab: facts.vocab.unwrap_or(0),
            groups: groups.unwrap_or(PUBLISHED_GROUPS),
            residual,
        };
        let built = Self::of_tokenizer(&config);
        let mut model = match groups {
            Some(_) => built?,
            None => built.context(
                "its tensors do not say how many groups its norms have; without --groups the published number is taken",
            )?,
        };
        model.assumed = (residual > 0).then(|| {
            "that half of each map is convolved (quant_resi 0.5) and codes are looked up by distance (no znorm), as \
             in the released tokenizer, is taken for granted: its tensors do not say it"
                .to_owned()
        });
        Ok(model)
    }

    fn of_tokenizer(config: &TokenizerConfig) -> anyhow::Result<Self> {
        let layout = Tokenizer::new(config)?.layout().clone();
        let about = format!(
            "tokenizer of {} base channels, {} levels, vocabulary {}",
            config.ch,
            config.ch_mult.len(),
            config.vocab
        );
        let config = serde_json::to_value(config)?;
        Ok(Self::new(Kind::Tokenizer, config, layout, about))
    }
}

/// The buffer of published generators that says which tokens a token sees.
const MASK: &str = "attn_bias_for_masking";

/// Returns the number of tokens of the grids that a published file's mask was made for.
fn masked_tokens(shapes: &Shapes<'_>) -> Option<usize> {
    shapes.get(MASK)?.last().copied()
}

/// Returns the grids that a mask `[1, 1, T, T]` is for, if they are square: a token sees all tokens
/// up to the end of its scale.
fn masked_grids(mask: &RawTensor) -> Option<ScaleSchedule> {
    let tokens = *mask.shape.last()?;
    let mut sides = Vec::new();
    let mut first = 0;
    while first < tokens {
        let row = mask.values.get(first * tokens..)?.get(..tokens)?;
        let end = row.iter().position(|seen| *seen != 0.0).unwrap_or(tokens);
        let scale = end.checked_sub(first).filter(|scale| *scale > 0)?;
        sides.push(scale.isqrt());
        first = (scale.isqrt().pow(2) == scale).then_some(end)?;
    }
    ScaleSchedule::from_sides(&sides).ok()
}

/// Fails if a schedule is given for a tokenizer: only a generator has one.
fn no_schedule(asked: Option<ScaleSchedule>) -> anyhow::Result<()> {
    anyhow::ensure!(asked.is_none(), "--schedule is for a generator, and this is a tokenizer");
    Ok(())
}
