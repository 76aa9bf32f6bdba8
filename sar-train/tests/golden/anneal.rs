//! `golden/lr_schedules`: learning rate and weight decay of every iteration, for every schedule.

use crate::support::{Golden, assert_close_to_largest};
use sar_math::anneal::Anneal;

/// A handful of roundings of numbers up to the peak; cosine and exponential may differ by an ulp
/// between mathematical libraries.
const TOLERANCE: f64 = 2e-15;

#[test]
fn golden_lr_schedules() {
    let golden = Golden::open("lr_schedules");
    assert!(!golden.names().is_empty());
    for name in golden.names() {
        let anneal = Anneal {
            shape: name.parse().unwrap(),
            peak: golden.number("peak_lr"),
            total: golden.usize("total") as u64,
            warmup: golden.usize("warmup") as u64,
            warmup_from: golden.number("wp0"),
            end: golden.number("wpe"),
            weight_decay: golden.number("wd"),
            weight_decay_end: golden.number("wd_end"),
        };
        let want = golden.f64(&name);
        let column = |c: usize| want.iter().skip(c).step_by(2).copied().collect::<Vec<_>>();
        let iterations = 0..golden.shape(&name)[0] as u64;
        let rates: Vec<f64> = iterations.clone().map(|i| anneal.learning_rate(i)).collect();
        let decays: Vec<f64> = iterations.map(|i| anneal.weight_decay(i)).collect();
        assert_close_to_largest(&format!("{name}: learning rate"), &rates, &column(0), TOLERANCE);
        assert_close_to_largest(&format!("{name}: weight decay"), &decays, &column(1), TOLERANCE);
    }
}
