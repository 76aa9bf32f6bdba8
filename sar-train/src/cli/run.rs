//! Commands that create or continue a run.

use super::GlobalArgs;
use crate::checkpoint::any_in;
use crate::config::{self, Config, ConfigError, Decode, Mode, Preset};
use crate::run_files::CHECKPOINTS;
use anyhow::Context as _;
use clap::Args;
use sar_math::rollout::{Extent, StudentTarget};
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Flags of every command that creates or continues a run folder.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Configuration in TOML, whose keys `sar config` explains; absent ones have their defaults (for `refine`: what the
    /// generator's run has).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override one key of the configuration; may be repeated; an empty value removes an optional
    /// key (train.lr=). With --resume only these may be set: how long and how often (train.steps, train.save_every
    /// and the like; of a tokenizer, tokenizer_train.steps), where images and latents are (data.path, train.latents)
    /// and how they are read, how samples are drawn and measured; the error for another key lists them.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// The run folder; must be new or empty unless --resume or --requeue is given.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Continue the run in --out from its last checkpoint, bit for bit.
    #[arg(long)]
    pub resume: bool,
    /// Continue the run in --out if it has a checkpoint, and begin it otherwise: one command for a
    /// job that may be started again at any time. Settings and images must be those that the run
    /// began with, except for what --resume may change; weights and tokenizer are those that it
    /// began with.
    #[arg(long, conflicts_with = "resume")]
    pub requeue: bool,
    /// Images: class folders, a list file, tar archives, a glyph sheet or `builtin:glyphs10`.
    #[arg(long, value_name = "SOURCE")]
    pub data: Option<String>,
    /// Start from these weights: a run folder, a checkpoint folder or a .safetensors file.
    #[arg(long, value_name = "PATH")]
    pub init_from: Option<PathBuf>,
    /// Seed of everything random; overrides the configuration.
    #[arg(long, value_name = "N", value_parser = super::seed)]
    pub seed: Option<u64>,
    /// Leave out images that cannot be read, and count them, instead of stopping; class folders without images
    /// likewise.
    #[arg(long)]
    pub skip_bad_images: bool,
    /// A flag of `sar data check`; accepted here only to explain the mistake.
    #[arg(long, hide = true)]
    pub unlabelled: bool,
    /// Keys of the file of --config, which may be a pipe and is read only once.
    #[arg(skip)]
    pub(crate) keys: Arc<OnceLock<toml::Table>>,
}

impl RunArgs {
    /// Returns the configuration of a new run: `base`, overridden by the keys of the file, those of
    /// `--set`, then the flags.
    ///
    /// # Errors
    /// The file or a `--set` cannot be used.
    pub fn config(&self, mut base: Config) -> Result<Config, ConfigError> {
        // The latents of another run are of its own images.
        let inherited = base.train.latents.take();
        let mut config = match &self.config {
            Some(path) => {
                let text = config::read(path)?;
                let config = base.with_text(&text, path)?;
                self.keys.get_or_init(|| text.parse().unwrap_or_default());
                config
            }
            None => base,
        };
        if let Some(source) = &self.data {
            config.data = config.data.with_source(source);
        }
        if let Some(source) = &self.data
            && let Some(key) = ["path", "builtin"].into_iter().find(|key| self.sets("data", key))
        {
            return Err(ConfigError::Invalid {
                place: format!("--set data.{key}"),
                key: String::new(),
                reason: format!("--data {source} names the images already; leave one of them out"),
            });
        }
        config = config.set(&self.set)?;
        let own = |section, key| self.names(section, key);
        let others = self.data.is_some() || own("data", "path") || own("data", "builtin");
        if !(others || own("train", "latents")) {
            config.train.latents = inherited;
        }
        config.data.skip_bad_images |= self.skip_bad_images;
        if let Some(seed) = self.seed {
            (config.train.seed, config.tokenizer_train.seed) = (seed, seed);
        }
        whole_path(&mut config);
        Ok(config)
    }

    /// Whether the run in --out is to be continued.
    ///
    /// # Errors
    /// With --requeue, the folder of checkpoints cannot be read, so that there may be some.
    pub(crate) fn goes_on(&self) -> anyhow::Result<bool> {
        let checkpoints = self.out.join(CHECKPOINTS);
        let there = || {
            any_in(&checkpoints)
                .with_context(|| format!("{}: cannot look for checkpoints", checkpoints.display()))
        };
        Ok(self.resume || self.requeue && there()?)
    }

    /// Returns the configuration of a continued run: the one in its file, changed by the flags. Both may differ from
    /// `began`, with which the run began, in the keys of `free` alone. With --requeue, `rest` applies the command's own
    /// flags.
    ///
    /// # Errors
    /// Another key is given another value, or a value cannot be used.
    pub(crate) fn continued(
        &self,
        (began, had): (&Config, &Config),
        free: &[&str],
        rest: impl FnOnce(&mut Config, &Config),
    ) -> anyhow::Result<Config> {
        let fixed = format!("a run goes on as it began, but for {}", free.join(", "));
        let path = self.out.display();
        if let Some((key, was, is)) = changed(began, had, free)? {
            anyhow::bail!(
                "{path}/config.toml was edited: the run began with {key}={was}, and it says {is}: {fixed}; to train \
                 with other settings, start a run from its weights with --init-from {path}"
            );
        }
        if self.requeue {
            let mut config = self.config(had.clone())?;
            rest(&mut config, had);
            if let Some((key, was, is)) = changed(had, &config, free)? {
                anyhow::bail!("{path} began with {key}={was}, and {is} is asked for now: {fixed}");
            }
            return Ok(config);
        }
        for setting in self.set.iter().filter(|setting| !within(setting, free)) {
            // Setting a key to the value that it already has changes nothing.
            let same = had.clone().set(std::slice::from_ref(setting))? == *had;
            anyhow::ensure!(same, "--set {setting}: {fixed}");
        }
        let mut config = had.clone().set(&self.set)?;
        config.data.skip_bad_images |= self.skip_bad_images;
        whole_path(&mut config);
        Ok(config)
    }

    /// Fails if `--set` names a key that the command does not use: `used` are sections or single
    /// keys of them, and `instead` says where to look.
    pub(crate) fn sets_only(&self, used: &[&str], instead: &str) -> anyhow::Result<()> {
        for setting in &self.set {
            let known = within(setting, used);
            anyhow::ensure!(known, "--set {setting}: it would change nothing here; {instead}");
        }
        Ok(())
    }

    /// Whether the user gave a value for `section.key`, in the file or by `--set`.
    pub(crate) fn names(&self, section: &str, key: &str) -> bool {
        let of = |table: &toml::Table| table.get(section).is_some_and(|s| s.get(key).is_some());
        self.keys.get().is_some_and(of) || self.sets(section, key)
    }

    /// Returns a section of the file of --config, as written there.
    pub(crate) fn file_section(&self, section: &str) -> Option<&toml::Table> {
        self.keys.get()?.get(section)?.as_table()
    }

    /// Whether `--set` names `section.key`.
    pub(crate) fn sets(&self, section: &str, key: &str) -> bool {
        self.set.iter().any(|setting| parts(setting).eq([section, key]))
    }
}

/// The first key outside of `free` whose value differs, with both values.
fn changed(
    began: &Config,
    now: &Config,
    free: &[&str],
) -> anyhow::Result<Option<(String, String, String)>> {
    let all = differences(&toml::Table::try_from(began)?, &toml::Table::try_from(now)?);
    Ok(all.into_iter().find(|(key, ..)| !within(key, free)))
}

/// Returns the keys that differ, with their values in both tables.
pub(crate) fn differences(was: &toml::Table, is: &toml::Table) -> Vec<(String, String, String)> {
    let told =
        |value: Option<&toml::Value>| value.map_or("nothing".to_owned(), ToString::to_string);
    let keys: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    let differ = keys.into_iter().filter(|key| was.get(*key) != is.get(*key));
    let parts = differ.flat_map(|key| match (was.get(key), is.get(key)) {
        (Some(toml::Value::Table(was)), Some(toml::Value::Table(is))) => {
            let below = differences(was, is).into_iter();
            below.map(|(name, was, is)| (format!("{key}.{name}"), was, is)).collect()
        }
        (was, is) => vec![(key.clone(), told(was), told(is))],
    });
    parts.collect()
}

/// Makes the paths of images and latents absolute, so that they hold wherever the run is continued
/// or measured.
fn whole_path(config: &mut Config) {
    // An empty path means that the run trains on its images.
    config.train.latents = config.train.latents.take().filter(|path| !path.as_os_str().is_empty());
    let paths = [config.data.path.as_mut(), config.train.latents.as_mut()];
    for path in paths.into_iter().flatten() {
        if let Ok(absolute) = std::path::absolute(without_parents(path)) {
            *path = absolute;
        }
    }
}

/// Resolves `..` in a path, so that it does not depend on the folders that it leads out of; links
/// after it are kept.
fn without_parents(path: &Path) -> PathBuf {
    let parts: Vec<_> = path.components().collect();
    let Some(last) = parts.iter().rposition(|part| *part == Component::ParentDir) else {
        return path.to_owned();
    };
    let (out, rest) = parts.split_at(last + 1);
    match out.iter().collect::<PathBuf>().canonicalize() {
        Ok(found) => found.join(rest.iter().collect::<PathBuf>()),
        // A missing folder is reported when the path is opened.
        Err(_) => path.to_owned(),
    }
}

/// Whether a setting belongs to one of the sections or single keys in `names`.
fn within(setting: &str, names: &[&str]) -> bool {
    let key: Vec<&str> = parts(setting).collect();
    names.iter().any(|name| key.starts_with(&name.split('.').collect::<Vec<_>>()))
}

/// Returns `section` and `key` of `section.key=value`.
fn parts(setting: &str) -> impl Iterator<Item = &str> {
    setting.split('=').next().unwrap_or_default().split('.').map(str::trim)
}

/// Ranks that train together.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Several processes or GPUs")]
pub struct RanksArgs {
    /// Processes that share the micro-batches of each step (train.accumulate; of a tokenizer,
    /// tokenizer_train.accumulate), this one included. The others are started
    /// on this machine, with --backend cuda on the GPUs after --device. To --resume, any number will do.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = ranks)]
    pub ranks: usize,
    /// Wait here for the other ranks in place of starting them: `sar join HOST:PORT` on any machine that has the images
    /// (and latents) in the same place. SAR_RANKS_SECRET, set to the same for all, keeps out processes that do not know
    /// it; nothing is encrypted.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// This process is one of several that were started by this same command, as torchrun and Slurm's srun do: their
    /// environment says which and where rank 0 is (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; SLURM_PROCID
    /// and the like). Each takes the GPU of its place on its machine.
    #[arg(long, conflicts_with_all = ["ranks", "listen"])]
    pub ranks_from_env: bool,
    /// What the environment says with --ranks-from-env.
    #[arg(skip)]
    pub launched: Option<Launched>,
}

/// What a launcher says of the ranks that it has started.
#[derive(Clone, Debug)]
pub struct Launched {
    /// The name of their run.
    pub run: String,
    /// How many of them are on this machine.
    pub here: usize,
}

impl RanksArgs {
    /// Returns the number of ranks on this machine, as far as this process knows.
    pub(crate) fn here(&self) -> usize {
        match (&self.launched, &self.listen) {
            (Some(launched), _) => launched.here,
            (None, Some(_)) => 1,
            (None, None) => self.ranks,
        }
    }

    /// Returns what computes the run: a run goes on bit for bit with the same.
    pub(crate) fn computed(&self, global: &GlobalArgs) -> String {
        match self.ranks {
            1 => global.computed(),
            ranks => format!("{}, {ranks} ranks", global.computed()),
        }
    }

    /// Returns the flags as typed, with a space before each.
    pub(crate) fn typed(&self) -> String {
        if self.ranks_from_env {
            return " --ranks-from-env".to_owned();
        }
        let ranks =
            if self.ranks == 1 { String::new() } else { format!(" --ranks {}", self.ranks) };
        let listen = |at: &String| format!(" --listen {}", super::in_shell(at.as_ref()));
        let listen = self.listen.as_ref().map_or(String::new(), listen);
        ranks + &listen
    }
}

/// Parses a number of ranks.
fn ranks(text: &str) -> Result<usize, String> {
    let number: Option<usize> = text.parse().ok();
    let possible = number.filter(|n| (1..=MOST_RANKS).contains(n));
    possible.ok_or_else(|| format!("expected a whole number from 1 to {MOST_RANKS}"))
}

/// More than any run has.
const MOST_RANKS: usize = 4096;

/// Parses the address of another machine, which may be its name.
fn host_and_port(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.and_then(|(_, port)| port.parse::<u16>().ok()) {
        Some(1..) => Ok(text.to_owned()),
        _ => Err("expected a host and a port, such as node0:29500".to_owned()),
    }
}

/// `sar join`.
#[derive(Clone, Debug, Args)]
pub struct JoinArgs {
    /// Where rank 0 waits: the host, and the port of its --listen.
    #[arg(value_name = "HOST:PORT", value_parser = host_and_port)]
    pub address: String,
    /// Do not wait for rank 0 to come: it has started this process.
    #[arg(long, hide = true)]
    pub at_once: bool,
    /// The name that a launcher has given to the run.
    #[arg(skip)]
    pub launch: Option<String>,
}

/// `sar train`.
#[derive(Clone, Debug, Args)]
pub struct TrainArgs {
    /// Folder, configuration, resume.
    #[command(flatten)]
    pub run: RunArgs,
    /// The trained tokenizer: a run folder (of a generator: the one that it keeps), a checkpoint folder or a
    /// .safetensors file; default: the one of the run that --init-from names.
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// The images have other classes than the weights of --init-from: those of the same name keep
    /// what they learned, the others begin anew. A class whose name is its own number counts as one
    /// without a name.
    #[arg(long, requires = "init_from")]
    pub new_classes: bool,
    /// Latents of the images, from `sar tokenizer encode --latents`, so that they are not encoded again.
    #[arg(long, value_name = "FILE")]
    pub latents: Option<PathBuf>,
    /// Way of training: teacher, ssr, student, hybrid:N, interleaved; overrides train.mode.
    #[arg(long)]
    pub mode: Option<Mode>,
    /// Several processes or GPUs.
    #[command(flatten)]
    pub ranks: RanksArgs,
}

/// `sar refine`.
#[derive(Clone, Debug, Args)]
pub struct RefineArgs {
    /// The place where other commands take the generator; accepted here only to explain the
    /// mistake.
    #[arg(hide = true, value_name = "GENERATOR")]
    pub generator: Option<PathBuf>,
    /// Folder, configuration, resume; `--init-from` names the trained generator.
    #[command(flatten)]
    pub run: RunArgs,
    /// The tokenizer; default: the one of the generator's run.
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// Latents of the images, from `sar tokenizer encode --latents`; default: those of the generator's run,
    /// if it has any, unless other images are named (--data, data.path, data.builtin).
    #[arg(long, value_name = "FILE")]
    pub latents: Option<PathBuf>,
    /// The switches of SAR.
    #[command(flatten)]
    pub sar: SarArgs,
    /// Several processes or GPUs.
    #[command(flatten)]
    pub ranks: RanksArgs,
}

/// The switches of SAR; each overrides the preset.
#[derive(Clone, Debug, Default, Args)]
pub struct SarArgs {
    /// All switches at once; default: release, or the switches of a run that was refined itself.
    #[arg(long)]
    pub preset: Option<Preset>,
    /// Which transitions the rollout staggers: all, last or random.
    #[arg(long)]
    pub extent: Option<Extent>,
    /// What the student is pulled towards: teacher-hard, teacher-soft or ground-truth.
    #[arg(long)]
    pub target: Option<StudentTarget>,
    /// How tokens are chosen from the teacher pass.
    #[arg(long)]
    pub decode: Option<Decode>,
    /// Rollout filter: keep the k most likely; 0 is off.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Rollout filter: keep this cumulative probability; 0 is off.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Rollout guidance; 0 is off.
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub guidance: Option<f64>,
    /// Weight of the contrastive loss.
    #[arg(long, allow_negative_numbers = true)]
    pub sigma: Option<f64>,
}
