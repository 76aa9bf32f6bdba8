//! What a schedule knows: offsets, places, and what a token may see.
//!
//! `cargo run -p sar-math --example 01_schedule`

use sar_math::{ScaleSchedule, ScheduleError};

fn main() -> Result<(), ScheduleError> {
    let schedule: ScaleSchedule = "1_2_3x4_6x8".parse()?;
    println!("{schedule}: {} scales, {} tokens", schedule.len(), schedule.tokens());
    for (i, scale) in schedule.scales().iter().enumerate() {
        println!("  scale {i}: {scale:>4}, tokens {:?}", schedule.range(i));
    }
    if let Some(place) = schedule.place(7) {
        println!("token 7 is {place:?} and sees tokens 0..{}", schedule.visible(7));
    }

    let own = ScaleSchedule::published_256();
    println!("trained on {own} or, at random, on:");
    for step in 0..4 {
        println!("  step {step}: {}", own.random_at(42, step));
    }
    if let Err(error) = "1_4_2".parse::<ScaleSchedule>() {
        println!("and 1_4_2 is an error: {error}");
    }
    Ok(())
}
