//! The place of a process among those that a launcher has started: `torchrun`, or Slurm's `srun`.

use std::ffi::OsString;

/// Port of rank 0 where the environment names none: this one, or one of those after it.
const PORT: u16 = 29500;
/// Number of such ports. A job's number chooses one, so that two jobs on a machine do not meet.
const PORTS: u64 = 1000;

/// Names of the variables by which a launcher says what a process is.
struct Launcher {
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
    local_size: &'static str,
    job: &'static str,
    /// Whether the processes of a machine share its cores.
    shares_cores: bool,
    /// Set where each process sees GPUs of its own.
    gpus_of_one: Option<&'static str>,
}

const TORCHRUN: Launcher = Launcher {
    rank: "RANK",
    size: "WORLD_SIZE",
    local_rank: "LOCAL_RANK",
    local_size: "LOCAL_WORLD_SIZE",
    job: "TORCHELASTIC_RUN_ID",
    shares_cores: true,
    gpus_of_one: None,
};
const SRUN: Launcher = Launcher {
    rank: "SLURM_PROCID",
    size: "SLURM_NTASKS",
    local_rank: "SLURM_LOCALID",
    local_size: "SLURM_NTASKS_PER_NODE",
    job: "SLURM_JOB_ID",
    shares_cores: false,
    gpus_of_one: Some("SLURM_GPUS_PER_TASK"),
};

/// A process among several that were started with the same command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct World {
    /// Number of this process.
    pub(crate) rank: usize,
    /// Number of processes.
    pub(crate) size: usize,
    /// Number of this process among those of its machine.
    pub(crate) local_rank: usize,
    /// Number of processes on this machine, as far as the environment says.
    pub(crate) local_size: usize,
    /// Number of processes that share the cores which this one sees. Slurm gives each task its own.
    pub(crate) sharing: usize,
    /// Name of the run, by which ranks of others are told apart.
    pub(crate) run: String,
    /// Host of rank 0.
    host: String,
    port: u16,
    /// Whether the GPUs that are visible to this process are its own, so that it takes the first of them.
    own_gpus: bool,
}

impl World {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub(crate) fn here() -> Result<Self, String> {
        Self::of(|name| std::env::var_os(name))
    }

    /// Reads an environment.
    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        let text = |name: &str| {
            let value = variable(name)?.into_string().ok()?;
            Some(value).filter(|value| !value.is_empty())
        };
        let number = |name: &str| -> Result<usize, String> {
            let value = text(name).ok_or_else(|| format!("{name} is not set"))?;
            value.parse().map_err(|_| format!("{name} is {value}, expected a whole number"))
        };
        let known = [TORCHRUN, SRUN].into_iter().find(|launcher| text(launcher.rank).is_some());
        let launcher = known.ok_or(
            "neither RANK (set by torchrun) nor SLURM_PROCID (set by srun) is in the environment; --ranks N starts the \
             ranks of one machine by itself",
        )?;
        let (rank, size) = (number(launcher.rank)?, number(launcher.size)?);
        if rank >= size {
            return Err(format!("{} is {rank}, of {size} processes", launcher.rank));
        }
        let nodes = || text("SLURM_STEP_NODELIST").or_else(|| text("SLURM_JOB_NODELIST"));
        let host = text("MASTER_ADDR").or_else(|| nodes().and_then(|list| first_host(&list)));
        let alone = || (size == 1).then(|| "localhost".to_owned());
        let host = host.or_else(alone).ok_or("MASTER_ADDR, the host of rank 0, is not set")?;
        let local_size = number(launcher.local_size).unwrap_or(1);
        let one_gpu = text("CUDA_VISIBLE_DEVICES").is_some_and(|all| !all.contains(','));
        // torchrun hands its own list to all of its processes: one GPU is not one for each.
        let inherited = text(TORCHRUN.job).is_some() && local_size > 1;
        let (job, step) = (text(launcher.job), text("SLURM_STEP_ID"));
        Ok(Self {
            rank,
            size,
            local_rank: number(launcher.local_rank).unwrap_or(0),
            local_size,
            sharing: if launcher.shares_cores { local_size } else { 1 },
            port: port(&text, job.as_deref())?,
            run: format!("{} {} {size}", job.unwrap_or_default(), step.unwrap_or_default()),
            host,
            own_gpus: launcher.gpus_of_one.and_then(text).is_some() || (one_gpu && !inherited),
        })
    }

    /// Returns where rank 0 waits for the others: if all of them are on its machine, where no other machine comes.
    pub(crate) fn listen(&self) -> String {
        let here = match self.host.as_str() {
            "localhost" => "127.0.0.1",
            host if host.starts_with("127.") => host,
            _ => "0.0.0.0",
        };
        format!("{here}:{}", self.port)
    }

    /// Returns where the others find it.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Returns which GPU this process takes, from GPU `first` on.
    pub(crate) fn gpu(&self, first: usize) -> usize {
        if self.own_gpus { first } else { first + self.local_rank }
    }
}

/// Returns the port of rank 0 of a job.
fn port(text: &impl Fn(&str) -> Option<String>, job: Option<&str>) -> Result<u16, String> {
    let port = match text("MASTER_PORT") {
        Some(port) => port.parse().map_err(|_| format!("MASTER_PORT is {port}, not a port"))?,
        None => {
            let job = job.and_then(|job| job.parse::<u64>().ok()).unwrap_or(0);
            PORT + (job % PORTS) as u16
        }
    };
    // With torchrun, its own store listens there.
    let taken = text("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|says| says == "True");
    Ok(if taken { port.checked_add(1).unwrap_or(PORT) } else { port })
}

/// Returns the first host of Slurm's list: `node003` of `node[003-010,12],other`.
fn first_host(list: &str) -> Option<String> {
    let Some((prefix, rest)) = list.split_once('[').filter(|(prefix, _)| !prefix.contains(','))
    else {
        return list.split(',').next().map(str::to_owned);
    };
    let (numbers, rest) = rest.split_once(']')?;
    let first = numbers.split(['-', ',']).next()?;
    let suffix = rest.split(',').next()?;
    // A second list in brackets belongs to other hosts, too.
    let suffix = if suffix.contains('[') { first_host(suffix)? } else { suffix.to_owned() };
    Some(format!("{prefix}{first}{suffix}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<World, String> {
        World::of(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn torchruns_processes_know_their_places() {
        let own = [("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")];
        let meet = [("LOCAL_WORLD_SIZE", "4"), ("MASTER_ADDR", "n0"), ("MASTER_PORT", "1234")];
        let world = of(&[&own[..], &meet].concat()).unwrap();
        assert_eq!((world.rank, world.size, world.local_rank, world.local_size), (5, 8, 1, 4));
        assert_eq!((world.address(), world.listen()), ("n0:1234".into(), "0.0.0.0:1234".into()));
        assert_eq!(world.gpu(0), 1);
        let one_machine = [&own[..], &meet, &[("MASTER_ADDR", "localhost")]].concat();
        let one_machine: Vec<_> = one_machine.into_iter().filter(|(_, v)| *v != "n0").collect();
        assert_eq!(of(&one_machine).unwrap().listen(), "127.0.0.1:1234");
        let taken = [&own[..], &meet, &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(of(&taken).unwrap().address(), "n0:1235");
        let one = [&own[..], &meet, &[("CUDA_VISIBLE_DEVICES", "3")]].concat();
        assert_eq!(of(&one).unwrap().gpu(0), 0);
        // Not where torchrun gave it to all: then there is no GPU for this one.
        let shared = [&one[..], &[("TORCHELASTIC_RUN_ID", "none")]].concat();
        assert_eq!(of(&shared).unwrap().gpu(0), 1);
        let all = [&own[..], &meet, &[("CUDA_VISIBLE_DEVICES", "0,1,2,3")]].concat();
        assert_eq!(of(&all).unwrap().gpu(2), 3);
        // Slurm's task is then torchrun, whose processes share what it has.
        let within = [&all[..], &[("SLURM_GPUS_PER_TASK", "4")]].concat();
        assert_eq!(of(&within).unwrap().gpu(0), 1);
    }

    #[test]
    fn slurms_processes_find_the_first_node() {
        let own = [("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2"), ("SLURM_LOCALID", "0")];
        let world = of(&[&own[..], &[("SLURM_JOB_NODELIST", "gpu[07-09],cpu1")]].concat()).unwrap();
        assert_eq!((world.rank, world.address()), (1, "gpu07:29500".into()));
        let task = [&own[..2], &[("SLURM_LOCALID", "1"), ("SLURM_JOB_NODELIST", "n")]].concat();
        let node = [&task[..], &[("CUDA_VISIBLE_DEVICES", "0,1")]].concat();
        assert_eq!(of(&node).unwrap().gpu(0), 1, "all tasks see the GPUs of the node");
        let owned = [&node[..], &[("SLURM_GPUS_PER_TASK", "2")]].concat();
        assert_eq!(of(&owned).unwrap().gpu(0), 0);
        // Another job's ranks meet elsewhere, and are told apart where they do not.
        let job = [&own[..], &[("SLURM_JOB_NODELIST", "n"), ("SLURM_JOB_ID", "70012")]].concat();
        let job = of(&job).unwrap();
        assert_eq!(job.address(), "n:29512");
        assert_ne!(job.run, world.run);
        assert_eq!((world.local_size, world.sharing), (1, 1));
        let named = [&own[..], &[("SLURM_STEP_NODELIST", "b"), ("MASTER_ADDR", "c")]].concat();
        assert_eq!(of(&named).unwrap().address(), "c:29500");
        for (list, first) in [
            ("n1", "n1"),
            ("n1,n2", "n1"),
            ("n[3,5-6]", "n3"),
            ("a,n[3-4]", "a"),
            ("n[003-004].example,m", "n003.example"),
            ("rack[1-2]n[01-16]", "rack1n01"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(first));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(of(&[]).unwrap_err().contains("--ranks N"));
        let wrong = |variables: &[(&str, &str)]| of(variables).unwrap_err();
        assert!(wrong(&[("RANK", "0")]).contains("WORLD_SIZE is not set"));
        assert!(wrong(&[("RANK", "0"), ("WORLD_SIZE", "two")]).contains("WORLD_SIZE is two"));
        assert!(wrong(&[("RANK", "2"), ("WORLD_SIZE", "2")]).contains("RANK is 2, of 2"));
        assert!(wrong(&[("RANK", "0"), ("WORLD_SIZE", "2")]).contains("MASTER_ADDR"));
        let one = of(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap();
        assert_eq!((one.size, one.address()), (1, "localhost:29500".into()));
    }
}
