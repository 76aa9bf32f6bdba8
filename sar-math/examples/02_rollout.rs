//! Which scale feeds which, for every way of training.
//!
//! `cargo run -p sar-math --example 02_rollout`

use sar_math::ScaleSchedule;
use sar_math::rollout::{Method, Pass, Plan, Rollout, StudentTarget};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schedule: ScaleSchedule = "1_2_4_8".parse()?;
    for name in ["teacher", "sar-all", "sar-last", "student", "hybrid:2", "interleaved"] {
        let method: Method = name.parse()?;
        let plan = Plan::new(method, StudentTarget::TeacherHard, &schedule, 42, 0)?;
        match plan.rollout {
            Rollout::None => println!("{name}: nothing to decode"),
            Rollout::ScaleByScale { scales } => {
                println!("{name}: first decode scales 0..{scales}, one after the other");
            }
            Rollout::Parallel { needed } => {
                let scales: Vec<usize> = (0..schedule.len()).filter(|&i| needed[i]).collect();
                println!("{name}: between the passes decode scales {scales:?} at once");
            }
        }
        show("first pass", &plan.first);
        if let Some(second) = &plan.second {
            show("second pass", second);
        }
    }
    Ok(())
}

fn show(name: &str, pass: &Pass) {
    println!("  {name} over {} (class token with pos_start: {})", pass.schedule, pass.with_start);
    for i in 0..pass.schedule.len() {
        println!(
            "    scale {}: input {:?}, target {:?}",
            pass.origin[i], pass.source[i], pass.target[i]
        );
    }
}
