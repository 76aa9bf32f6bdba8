//! A configuration from text: what is accepted is written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sar_train::config::Config;

fuzz_target!(|text: &str| {
    if let Ok(config) = Config::parse(text, "fuzz.toml") {
        let again = config.to_toml().expect("an accepted configuration can be written");
        assert_eq!(Config::parse(&again, "again.toml").expect("and read back"), config);
    }
    // The same text as settings of a command line.
    let settings: Vec<String> = text.lines().map(str::to_owned).collect();
    let _ = Config::default().set(&settings);
});
