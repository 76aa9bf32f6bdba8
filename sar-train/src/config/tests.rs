use super::*;
use sar_math::rollout::Extent;

/// f64 rounding errors of rates below 1.
const ROUNDING: f64 = 1e-12;

fn error(text: &str) -> String {
    Config::parse(text, "run.toml").unwrap_err().to_string()
}

#[test]
fn resolved_configuration_reads_back_equal() {
    let text = "[train]\nmode = \"hybrid:3\"\nlr = 3e-4\nlr_shape = \"lin0.2\"\n\
                [generator]\nschedule = \"1_2_3x4\"\n[sar]\npreset = \"paper\"\nsigma = 0.5\n";
    let config = Config::parse(text, "run.toml").unwrap();
    assert_eq!(config.train.mode, Mode::Hybrid { teacher_scales: 3 });
    assert_eq!(config.sar.extent, Extent::All);
    assert_eq!(config.sar.sigma, 0.5);
    let written = config.to_toml().unwrap();
    assert_eq!(Config::parse(&written, "again").unwrap(), config);
    assert_eq!(Config::parse(&written, "again").unwrap().to_toml().unwrap(), written);
    let default = Config::default();
    assert_eq!(Config::parse(&default.to_toml().unwrap(), "default").unwrap(), default);
}

#[test]
fn unknown_keys_name_the_line_and_near_matches() {
    let text = error("[train]\nsteps = 3\nwarm_up = 4\n");
    assert!(text.contains("run.toml, line 3"), "{text}");
    assert!(text.contains("`train.warm_up`") && text.contains("`warmup`"), "{text}");
    let text = error("[generatr]\ndepth = 3\n");
    assert!(text.contains("line 1") && text.contains("did you mean `generator`"), "{text}");
    let text = error("[sar]\nsigmma = 3\n");
    assert!(text.contains("`sar.sigmma`") && text.contains("did you mean `sigma`"), "{text}");
    let text = error("[train]\nzzzzzzzz = 3\n");
    assert!(text.contains("known here: ") && text.contains("`batch`"), "{text}");
}

#[test]
fn wrong_types_values_and_schedules_name_the_key() {
    let text = error("[train]\nsteps = \"many\"\n");
    assert!(text.contains("line 2") && text.contains("train.steps"), "{text}");
    assert!(text.contains("expected"), "{text}");
    let text = error("[generator]\n# coarse to fine\nschedule = \"1_2_2\"\n");
    assert!(text.contains("line 3") && text.contains("generator.schedule"), "{text}");
    assert!(text.contains("scale 3 (2) does not grow"), "{text}");
    let text = error("[generator]\nwidth = 30\n");
    assert!(text.contains("line 2") && text.contains("multiple of generator.heads = 4"), "{text}");
    let text = error("[train]\nmode = \"teachr\"\n");
    assert!(text.contains("train.mode") && text.contains("`hybrid:N`"), "{text}");
    let text = error("[sar]\nextent = \"everything\"\n");
    assert!(text.contains("line 2") && text.contains("all, last or random"), "{text}");
    let text = error("[train\n");
    assert!(text.contains("line 1"), "{text}");
}

#[test]
fn a_file_over_a_configuration_changes_what_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("over.toml");
    let mut base = Config::default();
    (base.train.steps, base.train.lr, base.sar.sigma) = (77, Some(3e-4), 9.0);
    base.data.builtin = Some("glyphs10".into());
    let over = |text: &str| {
        std::fs::write(&file, text).unwrap();
        base.clone().with_file(&file)
    };
    let config = over("[train]\nbatch = 5\n").unwrap();
    assert_eq!((config.train.batch, config.train.steps, config.sar.sigma), (5, 77, 9.0));
    // A preset stands for the other switches of its section; a source of images replaces the other
    // one.
    let config = over("[sar]\npreset = \"paper\"\ntop_k = 3\n[data]\npath = \"x\"\n").unwrap();
    assert_eq!(config.sar, SarConfig { top_k: 3, ..SarConfig::preset(Preset::Paper) });
    assert_eq!((config.data.builtin, config.train.lr), (None, Some(3e-4)));
    let text = over("[train]\n\nbatch = 0\n").unwrap_err().to_string();
    assert!(text.contains("line 3") && text.contains("over.toml"), "{text}");
    assert!(over("[train]\nbacth = 1\n").unwrap_err().to_string().contains("did you mean"));
}

/// Values that depend on each other may be set in any order; an error names the setting that caused
/// it.
#[test]
fn settings_are_checked_together() {
    let set = |settings: &[&str]| {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let random = Config::default().set(&["train.random_schedules=true".into()]).unwrap();
        random.set(&settings)
    };
    let [levels, fixed] = ["generator.positions=levels", "train.random_schedules=false"];
    assert_eq!(set(&[levels, fixed]).unwrap(), set(&[fixed, levels]).unwrap());
    let text = set(&[levels]).unwrap_err().to_string();
    assert!(text.starts_with(&format!("--set {levels}: train.random_schedules")), "{text}");
    let [heads, width] = ["generator.heads=5", "generator.width=100"];
    assert_eq!(set(&[heads, width]).unwrap().generator.heads, 5);
    let text = set(&["generator.width=101", "train.steps=5"]).unwrap_err().to_string();
    assert!(text.starts_with("--set generator.width=101: generator.width is 101"), "{text}");
    // If none of them sets the key, any of them may be at fault.
    let text = set(&[heads, "train.steps=5"]).unwrap_err().to_string();
    assert!(
        text.starts_with("--set generator.heads=5 --set train.steps=5: generator.width"),
        "{text}"
    );
}

#[test]
fn settings_override_in_order() {
    let set =
        |s: &[&str]| Config::default().set(&s.iter().map(|&s| s.to_owned()).collect::<Vec<_>>());
    let config = set(&["train.steps=7", "train.mode=ssr", "sar.sigma=2", "sar.preset=paper"]);
    let config = config.unwrap();
    assert_eq!((config.train.steps, config.train.mode), (7, Mode::Ssr));
    // As in a file, a key overrides its section's preset, whichever comes first.
    assert_eq!(config.sar, SarConfig { sigma: 2.0, ..SarConfig::preset(Preset::Paper) });
    let images = set(&["data.builtin=glyphs10", "data.path=images"]).unwrap().data;
    assert_eq!((images.path, images.builtin), (Some("images".into()), None));
    // An empty value removes an optional key; for other keys a missing value is an error.
    let given = ["train.lr=1e-3", "sample.schedule=1_2_4", "data.limit=5"];
    let taken =
        set(&[&given[..], &["train.lr=", "sample.schedule = ", "data.limit="]].concat()).unwrap();
    assert_eq!(taken, Config::default());
    assert!(set(&given).unwrap() != taken);
    for setting in ["train.steps=", "train.lrr=", "generator.schedule=", "train.mode="] {
        assert!(set(&[setting]).is_err(), "{setting}");
    }
    assert_eq!(set(&["generator.schedule=1_2_5"]).unwrap().generator.schedule.tokens(), 30);
    for (setting, expected) in [
        ("train.stepz=3", "did you mean `steps`"),
        ("train.batchsize=3", "did you mean `batch`"),
        ("nothing", "expected section.key=value"),
        ("train.batch=0", "train.batch is 0, expected 1 to 16777216"),
        ("generator.depth=1000000", "expected 1 to 256"),
        ("train.batch=many", "expected"),
        ("tokenizer_train.lr=0", "tokenizer_train.lr is 0, expected above 0"),
        ("tokenizer_train.weight_decay=inf", "expected a number of at least 0"),
        ("tokenizer_train.batch=99999999", "expected 1 to 16777216"),
        ("sample.count=18446744073709551615", "sample.count"),
        ("eval.seeds=1000000000", "expected 1 to 1000"),
        (
            "tokenizer.train.steps=5",
            "unknown key `tokenizer.train`; did you mean `tokenizer_train.steps`?",
        ),
        (
            "tokenizer.steps=1",
            "unknown key `tokenizer.steps`; did you mean `tokenizer_train.steps`, `train.steps`?",
        ),
        (
            "run.eval_every=1",
            "unknown key `run`; did you mean `tokenizer_train.eval_every`, `train.eval_every`?",
        ),
        ("sar.lr=1", "did you mean `tokenizer_train.lr`, `train.lr`?"),
        ("sample.a b=1", "unknown key `sample.a b`; known here: `guidance`"),
        ("trian.batch=1", "unknown key `trian`;"),
        ("trian.batch=1", "did you mean `train`"),
        ("data.crop=0", "unknown variant `0`, expected `random` or `center`"),
        ("sar.decode=[]", "expected `argmax` or `sample`"),
        ("sample.ramp={}", "`flexvar`, `var`"),
        ("generator.positions=true", "expected `grid` or `levels`"),
        ("train.base_lr=-1e-4", "train.base_lr is -0.0001, expected a number above 0"),
        ("sar.top_k=99999999", "sar.top_k is 99999999, expected 0 (all) to"),
        ("sample.top_k=99999999", "sample.top_k is 99999999"),
    ] {
        let text = set(&[setting]).unwrap_err().to_string();
        assert!(text.contains(expected) && text.contains(setting), "{text}");
    }
}

#[test]
fn values_that_would_train_or_sample_nothing_are_refused() {
    let told = |settings: &[&str]| {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let set = Config::default().set(&settings).and_then(|config| config.validate());
        set.map_or_else(|e| e.to_string(), |()| String::new())
    };
    let exponential = ["train.lr_shape=exp", "train.lr_end=0"];
    assert!(told(&exponential).contains("train.lr_end"), "{}", told(&exponential));
    assert_eq!(told(&["train.lr_shape=exp", "train.lr_end=0.01"]), "");
    for key in ["sample.guidance", "sar.guidance"] {
        let said = told(&[&format!("{key}=1e39")]);
        assert!(said.contains(key) && said.contains("1000000"), "{said}");
    }
    assert!(told(&["eval.guidance=[1e39]"]).contains("eval.guidance"));
}

#[test]
fn recipes_are_valid() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let config = Config::load(&path).unwrap_or_else(|e| panic!("{e}"));
        config.data.validate().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        count += 1;
    }
    assert!(count >= 4, "{count} recipes in {folder}");
}

/// Recipes for refining override the configuration of the refined run; what they leave out is kept
/// from it.
#[test]
fn refining_recipes_say_how_their_rate_goes() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes");
    for name in ["glyphs10", "imagenet256-d16"] {
        let base = Config::load(format!("{folder}/{name}.toml").as_ref()).unwrap();
        let recipe = format!("{folder}/{name}-sar.toml");
        let refined = base.clone().with_file(recipe.as_ref()).unwrap();
        assert_eq!(refined.train.mode, Mode::Ssr);
        let (first, peak) = (refined.train.anneal().learning_rate(0), refined.train.peak_lr());
        assert!((first - peak).abs() < ROUNDING, "{name} begins at {first}, below its peak {peak}");
        assert!(peak < base.train.peak_lr(), "{name}: no higher than the base");
    }
}
