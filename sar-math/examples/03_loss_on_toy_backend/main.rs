//! The losses of a SAR step on a backend of 250 lines (`toy.rs`): how to embed them in another
//! generator, and what a backend must bring.
//!
//! `cargo run -p sar-math --example 03_loss_on_toy_backend`

mod toy;

use sar_math::ScaleSchedule;
use sar_math::loss::{LossBatch, StudentForcing, StudentTargets, Supervision, TeacherForcing};
use sar_math::philox::{Purpose, Stream};
use sar_math::rollout::{Extent, Method, Plan, StudentTarget};
use sar_math::sampling::argmax;
use toy::Toy;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let whole: ScaleSchedule = "1_2_4".parse()?;
    let batch = LossBatch { samples: 2, divisor: 2, vocab: 8, smoothing: 0.0 };
    let sigma = 0.1;
    let plan = Plan::new(Method::Sar(Extent::Last), StudentTarget::TeacherHard, &whole, 42, 0)?;
    let student = plan.second.ok_or("SAR has a student pass")?;

    // Your generator makes these: logits of both passes, and the image's codes.
    let rows = batch.samples * whole.tokens();
    let student_rows = batch.samples * student.schedule.tokens();
    let mut rng = Stream::new(42, Purpose::Test, 0);
    let mut teacher_logits: Vec<f64> = (0..rows * batch.vocab).map(|_| rng.normal()).collect();
    let mut student_logits: Vec<f64> =
        (0..student_rows * batch.vocab).map(|_| rng.normal()).collect();
    let codes: Vec<u32> = (0..rows).map(|_| rng.below(batch.vocab) as u32).collect();

    // The rollout: what the teacher pass predicts becomes the student's input and target.
    let predicted: Vec<u32> =
        teacher_logits.chunks_exact(batch.vocab).map(|l| argmax(l) as u32).collect();

    let mut tf = TeacherForcing::new(&Toy, rows, 1)?;
    let mut csf = StudentForcing::new(&Toy, rows, 1)?;
    let teacher = Supervision::teacher(batch, &plan.first);
    let pulled = Supervision::student(batch, &student, &whole, sigma);
    let targets = StudentTargets::Hard(&predicted);
    // All samples at once here; a large vocabulary would do some at a time.
    let all = 0..batch.samples;
    tf.forward(&Toy, &teacher, all.clone(), &teacher_logits, &codes)?;
    csf.forward(&Toy, &pulled, all.clone(), &student_logits, targets)?;

    // Logits become gradients in place; hand them to your generator's backward.
    csf.backward(&Toy, &pulled, all.clone(), &mut student_logits, targets)?;
    tf.backward(&Toy, &teacher, all, &mut teacher_logits, &codes)?;

    // The sums of this micro-batch, the only one of the step.
    tf.keep(&Toy, &teacher, 0)?;
    csf.keep(&Toy, &pulled, 0)?;
    let (tf, csf) = (tf.report(&Toy, &teacher, 0)?, csf.report(&Toy, &pulled, 0)?);
    println!("L = L_TF + σ·L_CSF = {:.4} + {:.4}", tf.total, csf.total);
    for i in 0..whole.len() {
        println!(
            "scale {i}: teacher {:.4} nats, {:.0} % right",
            tf.loss[i],
            100.0 * tf.accuracy[i]
        );
        if csf.tokens[i] > 0 {
            println!("         student {:.4} nats over {} tokens", csf.loss[i], csf.tokens[i]);
        }
    }
    let norm = |g: &[f64]| g.iter().map(|g| g * g).sum::<f64>().sqrt();
    println!(
        "gradients: teacher {:.4}, student {:.4}",
        norm(&teacher_logits),
        norm(&student_logits)
    );
    Ok(())
}
