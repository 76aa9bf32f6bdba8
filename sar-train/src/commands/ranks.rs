//! Runs of several ranks: how rank 0 starts the others or waits for them, and `sar join`.

use super::inputs::{Inputs, tokenizer_loader};
use super::latents;
use super::resuming::tell_replaced;
use crate::backend::Compute;
use crate::checkpoint::Kind;
use crate::cli::{BackendName, GlobalArgs, JoinArgs, RanksArgs};
use crate::config::{Config, TokenizerTrainConfig, TrainConfig};
use crate::data::{self, Data};
use crate::model::generator::{Generator, GeneratorShape};
use crate::model::tokenizer::Tokenizer;
use crate::ranks::{Job, Leader, Meeting, Member, RanksError, SECRET};
use crate::run::Interrupt;
use crate::train::tokenizer::TokenizerReplica;
use crate::train::{GeneratorShare, Replica, TokenizerShare, TrainError, check_ranks, share};
use crate::trained::TrainedTokenizer;
use anyhow::Context as _;
use std::env::VarError;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a rank tries to reach rank 0, which may have to wait for its own start.
const PATIENCE: Duration = Duration::from_secs(600);
/// What a rank that has come for nothing says.
const NOT_NEEDED: &str = "the run does not need this process: it began with others, not at all, or has nothing left to do";
/// Time between two tries.
const AGAIN: Duration = Duration::from_millis(200);

/// How the images of a run's steps are split.
#[derive(Clone, Copy)]
pub(crate) struct Steps {
    /// The configuration's section that says so.
    section: &'static str,
    batch: usize,
    accumulate: usize,
}

impl From<&TrainConfig> for Steps {
    fn from(config: &TrainConfig) -> Self {
        Self { section: "train", batch: config.batch, accumulate: config.accumulate }
    }
}

impl From<&TokenizerTrainConfig> for Steps {
    fn from(config: &TokenizerTrainConfig) -> Self {
        Self { section: "tokenizer_train", batch: config.batch, accumulate: config.accumulate }
    }
}

impl Steps {
    /// Fails if a run that goes on has more ranks than micro-batches.
    pub(crate) fn can_go_on(self, args: &RanksArgs) -> anyhow::Result<()> {
        check_ranks(args.ranks, self.accumulate)
            .with_context(|| format!("{}.accumulate is {}", self.section, self.accumulate))
    }

    /// As [`Steps::can_go_on`], for a new run. The error says how its steps have enough micro-batches: the same steps, if
    /// their images can be split evenly.
    pub(crate) fn can_begin(self, args: &RanksArgs) -> anyhow::Result<()> {
        let (ranks, section) = (args.ranks, self.section);
        let images = self.batch.saturating_mul(self.accumulate);
        let (batch, made, images) = match images.is_multiple_of(ranks) {
            true => (format!("--set {section}.batch={} ", images / ranks), "of the same", images),
            false => (String::new(), "of", self.batch.saturating_mul(ranks)),
        };
        self.can_go_on(args).with_context(|| {
            format!(
                "more ranks than micro-batches; {batch}--set {section}.accumulate={ranks} makes steps {made} {images} \
                 images"
            )
        })
    }
}

/// Opens the meeting of a run whose ranks a launcher has started, before all else: the others wait already, and are told if
/// the run does not begin.
///
/// # Errors
/// An address that cannot be listened on; a secret that is not text.
pub(crate) fn listening(args: &RanksArgs, global: &GlobalArgs) -> anyhow::Result<Option<Meeting>> {
    if args.ranks_from_env { opened(args, global) } else { Ok(None) }
}

/// Opens the meeting of a run whose other ranks come from elsewhere, if they do.
fn opened(args: &RanksArgs, global: &GlobalArgs) -> anyhow::Result<Option<Meeting>> {
    let Some(address) = args.listen.as_ref().filter(|_| args.ranks > 1) else { return Ok(None) };
    let secret = secret(args.launched.as_ref().map(|launched| launched.run.as_str()))?;
    let open_to_all = secret.is_none();
    let mut meeting = Meeting::open(address, args.ranks, &global.computed(), secret)?;
    let at = meeting.address();
    let computing = crate::cli::computing(&GlobalArgs { device: 0, ..global.clone() });
    let how = match args.ranks_from_env {
        true => String::new(),
        false => format!(": each is `sar join HOST:{}{computing}`", at.port()),
    };
    let others = match args.ranks {
        2 => "rank 1".to_owned(),
        ranks => format!("ranks 1 to {}", ranks - 1),
    };
    eprintln!("waiting for {others} at {at}{how}");
    if open_to_all && !at.ip().is_loopback() {
        eprintln!(
            "note: whoever reaches {at} can take part and is sent the configuration and the weights; \
             {SECRET} keeps out those who do not know it"
        );
    }
    if args.ranks_from_env {
        meeting.expect_all();
    }
    Ok(Some(meeting))
}

/// Returns the meeting of a run's ranks, if it has several: the one that listens already, one that is opened now, or one with
/// processes that are started on this machine.
///
/// # Errors
/// As of [`listening`]; a process cannot be started.
pub(crate) fn meeting(
    listening: Option<Meeting>,
    args: &RanksArgs,
    steps: Steps,
    global: &GlobalArgs,
) -> anyhow::Result<Option<Meeting>> {
    let ranks = args.ranks;
    if listening.is_some() || ranks < 2 {
        return Ok(listening);
    }
    if args.listen.is_some() {
        return opened(args, global);
    }
    if !global.quiet {
        eprintln!("{ranks} ranks share the {} micro-batches of a step", steps.accumulate);
    }
    // Keeps other users of the machine out.
    let secret = format!("{:016x}", RandomState::new().build_hasher().finish());
    let (address, computed) = ("127.0.0.1:0", global.computed());
    let mut meeting = Meeting::open(address, ranks, &computed, Some(secret.clone()))?;
    for rank in 1..ranks {
        let process = started(&meeting.address().to_string(), &secret, rank, ranks, global);
        meeting.watch(process.map_err(|source| RanksError::Start { source })?);
    }
    Ok(Some(meeting))
}

/// Returns the secret of the environment, if there is one. The name that a launcher has given to all ranks of a `run`
/// belongs to it, so that those of another run are not taken in.
fn secret(run: Option<&str>) -> anyhow::Result<Option<String>> {
    match std::env::var(SECRET) {
        Ok(secret) => Ok(Some(run.map_or(String::new(), |run| format!("{run} ")) + &secret)),
        Err(VarError::NotPresent) => Ok(run.map(str::to_owned)),
        Err(error) => Err(anyhow::Error::from(error).context(format!("{SECRET} is not text"))),
    }
}

/// Starts the process of a rank on this machine, on a GPU of its own if it is to compute on one.
fn started(
    address: &str,
    secret: &str,
    rank: usize,
    ranks: usize,
    global: &GlobalArgs,
) -> std::io::Result<Child> {
    let device = match global.backend {
        BackendName::Cpu => global.device,
        BackendName::Cuda => global.device + rank,
    };
    Command::new(std::env::current_exe()?)
        .args(["join", address, "--at-once", "--quiet"])
        .args(["--backend", &global.backend.to_string(), "--dtype", &global.dtype().to_string()])
        .args(["--device", &device.to_string()])
        .args(["--threads", &global.threads_of_each(ranks).to_string()])
        .env(SECRET, secret)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
}

/// `sar join`: a rank of a run that another process leads.
///
/// # Errors
/// Rank 0 cannot be reached or does not take this process in; other images than rank 0's; see [`TrainError`].
pub fn run<B: Compute>(backend: &B, args: &JoinArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::listen_as_rank(global.quiet)?;
    let Some(mut member) = joined(args, global, &interrupt)? else {
        if !global.quiet {
            eprintln!("{NOT_NEEDED}");
        }
        return Ok(());
    };
    let worked = work(backend, &mut member, &interrupt, global.quiet);
    if let Err(error) = &worked {
        let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
        member.give_up(&causes.join(": "));
    }
    worked
}

/// Reaches rank 0, which may not have come so far yet.
fn joined(
    args: &JoinArgs,
    global: &GlobalArgs,
    interrupt: &Interrupt,
) -> anyhow::Result<Option<Member>> {
    let (address, computing, secret) =
        (&args.address, global.computed(), secret(args.launch.as_deref())?);
    // Rank 0 listens before it starts others.
    let patience = if args.at_once { Duration::ZERO } else { PATIENCE };
    let (start, mut told) = (Instant::now(), global.quiet);
    loop {
        match Member::join(address, &computing, secret.clone(), interrupt) {
            Ok(member) => return Ok(member),
            Err(_) if interrupt.is_asked() => return Err(TrainError::NotBegun.into()),
            Err(RanksError::NobodyThere { source, .. }) if start.elapsed() < patience => {
                if !told {
                    let seconds = PATIENCE.as_secs();
                    eprintln!("nobody answers at {address} yet ({source}); trying for {seconds} s");
                    told = true;
                }
                std::thread::sleep(AGAIN);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes up what rank 0 sends, opens the images, and serves until the run ends.
fn work<B: Compute>(
    backend: &B,
    member: &mut Member,
    interrupt: &Interrupt,
    quiet: bool,
) -> anyhow::Result<()> {
    let job = member.job().clone();
    let config = Config::default().with_text(&job.config, Path::new("rank 0's configuration"))?;
    let tokenizer = Tokenizer::new(&config.tokenizer)?;
    let weights = match job.model {
        Kind::Generator => Some(member.tokenizer(tokenizer.layout().len())?),
        // They come with every step.
        Kind::Tokenizer => None,
    };
    let data = data::open(&config.data).context(
        "every rank reads the images itself, from where rank 0's configuration says that they are",
    )?;
    anyhow::ensure!(
        data.fingerprint() == job.images,
        "the images here are not those of rank 0, by their names and order"
    );
    let rank = Rank { backend, member, job, config: &config, data: &data, interrupt, quiet };
    let served = match weights {
        Some(weights) => rank.of_generator(&TrainedTokenizer::new(backend, tokenizer, weights, 0)?),
        None => rank.of_tokenizer(&tokenizer),
    };
    tell_replaced(&data);
    served
}

/// A process that has its job and its images.
struct Rank<'r, B: Compute> {
    backend: &'r B,
    member: &'r mut Member,
    job: Job,
    config: &'r Config,
    data: &'r Data,
    interrupt: &'r Interrupt,
    quiet: bool,
}

impl<B: Compute> Rank<'_, B> {
    /// Takes its share of a generator's steps.
    fn of_generator(mut self, tokenizer: &TrainedTokenizer<B>) -> anyhow::Result<()> {
        let (backend, config, data) = (self.backend, self.config, self.data);
        let latents = latents::of_run(backend, config, data, tokenizer)?;
        let generator = Generator::new(&GeneratorShape::from(&config.generator))?;
        let inputs = Inputs { backend, config, data, tokenizer, latents: latents.as_ref() };
        // The weights come with every step.
        let (quantizer, size) = (&tokenizer.quantizer, inputs.latent_size());
        let replica = Replica::new(backend, generator, config, quantizer, size)?;
        let Some((rank, share)) = self.begin(config.train.accumulate)? else { return Ok(()) };
        let batches = inputs.batches(self.job.step, share)?;
        let mut work = GeneratorShare { replica, batches };
        Ok(self.member.serve(rank, &mut work, self.interrupt)?)
    }

    /// Takes its share of a tokenizer's steps.
    fn of_tokenizer(mut self, tokenizer: &Tokenizer) -> anyhow::Result<()> {
        let (config, side) = (&self.config.tokenizer_train, self.data.train.side());
        let replica = TokenizerReplica::new(self.backend, tokenizer, config, (side, side))?;
        let Some((rank, share)) = self.begin(config.accumulate)? else { return Ok(()) };
        let loader = tokenizer_loader(self.data, config, self.job.step, share)?;
        let mut work = TokenizerShare { replica, loader };
        Ok(self.member.serve(rank, &mut work, self.interrupt)?)
    }

    /// Waits for the run to begin; returns this rank's number and its micro-batches of each step, or `None` if the run
    /// does not need it.
    fn begin(&mut self, accumulate: usize) -> anyhow::Result<Option<(usize, Range<usize>)>> {
        let Some(rank) = self.member.begin(self.interrupt)? else {
            anyhow::ensure!(!self.interrupt.is_asked(), TrainError::NotBegun);
            if !self.quiet {
                eprintln!("{NOT_NEEDED}");
            }
            return Ok(None);
        };
        if !self.quiet {
            eprintln!("rank {rank} of {}", self.job.ranks);
        }
        Ok(Some((rank, share(accumulate, rank, self.job.ranks))))
    }
}

/// Brings the other ranks of a run together, and gives them their job; `None` if the run has nothing left to do after
/// `steps` steps.
///
/// # Errors
/// Those of [`Meeting::gather`]; [`TrainError::NotBegun`] if the user stops it.
pub(crate) fn gather(
    meeting: Meeting,
    job: &Job,
    steps: u64,
    tokenizer: &[f32],
    parameters: usize,
    interrupt: &Interrupt,
    quiet: bool,
) -> anyhow::Result<Option<Leader>> {
    if job.step >= steps {
        meeting.turn_away(interrupt);
        return Ok(None);
    }
    let tell = move |text: &str| {
        if !quiet {
            eprintln!("{text}");
        }
    };
    let others = meeting.gather(job, tokenizer, parameters, interrupt, tell)?;
    Ok(Some(others.ok_or(TrainError::NotBegun)?))
}
