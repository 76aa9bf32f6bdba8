//! Greedy sampling with guidance: logits of every scale, and the ids they lead to.

use crate::backends::{Transfers, on_backends};
use crate::compare::Findings;
use crate::generator::{Setup, VALUE};
use crate::rollout::argmax;
use crate::support::Golden;
use sar_math::backend::{Backend, Choice};
use sar_math::guidance::Guidance;
use sar_math::{MAX_SCALES, ScaleSchedule};
use sar_train::sample::{Decoding, Given, Model, Sampler};

on_backends!(golden_greedy_sampling, greedy_sampling);

fn greedy_sampling<B: Backend>(backend: &B) -> Findings {
    let (setup, _) = Setup::open(backend);
    let file = Golden::open("greedy_sampling");
    let mut found = Findings::default();
    let mut tried = 0;
    for name in file.names() {
        let Some(text) =
            name.strip_prefix("guidance_").and_then(|s| s.strip_suffix(".final_indices"))
        else {
            continue;
        };
        let recorded = Recorded::read(&file, text, setup.generator.shape().vocab);
        raw(&setup, &recorded, &mut found);
        sample(&setup, &recorded, &mut found);
        tried += 1;
    }
    assert!(tried > 0, "no guidance values in the file");
    found
}

/// The recorded run of one guidance strength.
struct Recorded {
    schedule: ScaleSchedule,
    strength: f64,
    labels: Vec<u32>,
    /// Of each scale, `[b, n, v]`; `raw` with the unconditional samples behind the others.
    raw: Vec<Vec<f64>>,
    guided: Vec<Vec<f64>>,
    /// Of each scale, `[b, n]`: the largest of the guided logits.
    ids: Vec<Vec<u32>>,
}

impl Recorded {
    fn read(file: &Golden, text: &str, vocab: usize) -> Self {
        let schedule = file.schedule();
        let of = |kind: &str| -> Vec<Vec<f64>> {
            let name = |scale| format!("guidance_{text}.{kind}_logits_{scale}");
            (0..schedule.len()).map(|scale| file.f64(&name(scale))).collect()
        };
        let (raw, guided) = (of("raw"), of("guided"));
        let ids: Vec<Vec<u32>> =
            guided.iter().map(|logits| logits.chunks(vocab).map(argmax).collect()).collect();
        let last = file.ids(&format!("guidance_{text}.final_indices"));
        assert_eq!(ids.last(), Some(&last), "the file's own ids and logits");
        Self {
            schedule,
            strength: text.parse().unwrap(),
            labels: file.ids("labels"),
            raw,
            guided,
            ids,
        }
    }

    /// Ids of all scales, `[b, T]`.
    fn all_ids(&self, schedule: &ScaleSchedule) -> Vec<u32> {
        let mut all = vec![0; self.labels.len() * schedule.tokens()];
        for (sample, all) in all.chunks_mut(schedule.tokens()).enumerate() {
            for (scale, ids) in self.ids.iter().enumerate() {
                let range = schedule.range(scale);
                let n = range.len();
                all[range].copy_from_slice(&ids[sample * n..][..n]);
            }
        }
        all
    }
}

/// Logits before guidance: of a run without any, of the conditional samples and the unconditional ones
/// behind them, each scale with the recorded ids before it.
fn raw<B: Backend>(setup: &Setup<'_, B>, recorded: &Recorded, found: &mut Findings) {
    let (b, g, schedule) = (setup.backend, &setup.generator, &recorded.schedule);
    let unconditional = vec![g.shape().classes as u32; recorded.labels.len()];
    let labels = [recorded.labels.clone(), unconditional].concat();
    let all_ids = b.put_ids(&recorded.all_ids(schedule).repeat(2));
    let decoding = Decoding { guidance: None, choice: Choice::Argmax };
    let mut sampler = Sampler::new(b, g, &setup.quantizer, labels.len(), schedule, false).unwrap();
    for wanted in 0..schedule.len() {
        let mut scales = [false; MAX_SCALES];
        scales[..wanted].fill(true);
        let given = Given { ids: &all_ids, scales, kept: None, latents: None };
        let len = labels.len() * schedule.range(wanted).len() * g.shape().vocab;
        let (params, quantizer) = (&setup.params, &setup.quantizer);
        let model = Model { generator: g, params, quantizer };
        sampler
            .run_observed(b, model, &labels, &decoding, Some(&given), |scale, s| {
                if scale == wanted {
                    let name = format!("guidance_{}.raw_logits_{scale}", recorded.strength);
                    let logits = b.get(&s.logits, len);
                    found.value(name, logits, recorded.raw[scale].clone(), VALUE);
                }
                Ok(())
            })
            .unwrap();
    }
}

/// Samples all scales on their own. Where rounding turns an id, the scales after it would be fed
/// another code and could not be compared: they are sampled once more, with those before given.
fn sample<B: Backend>(setup: &Setup<'_, B>, recorded: &Recorded, found: &mut Findings) {
    let (b, g, schedule) = (setup.backend, &setup.generator, &recorded.schedule);
    let (labels, n, vocab) = (&recorded.labels, schedule.len(), g.shape().vocab);
    let t = Guidance::Sampling(recorded.strength).ramp(n).unwrap();
    let decoding = Decoding { guidance: Some(t), choice: Choice::Argmax };
    let all_ids = b.put_ids(&recorded.all_ids(schedule));
    let mut sampler = Sampler::new(b, g, &setup.quantizer, labels.len(), schedule, true).unwrap();
    let mut next = 0;
    while next < n {
        let mut scales = [false; MAX_SCALES];
        scales[..next].fill(true);
        let given = Given { ids: &all_ids, scales, kept: None, latents: None };
        let given = (next > 0).then_some(&given);
        let mut comparable = true;
        let (params, quantizer) = (&setup.params, &setup.quantizer);
        let model = Model { generator: g, params, quantizer };
        sampler
            .run_observed(b, model, labels, &decoding, given, |scale, s| {
                if !comparable {
                    return Ok(());
                }
                next = scale + 1;
                let tokens = labels.len() * schedule.range(scale).len();
                let guided = b.get(&s.logits, tokens * vocab);
                let name = |what: &str| format!("guidance_{}.{what}_{scale}", recorded.strength);
                let (wanted, ids) = (&recorded.guided[scale], &recorded.ids[scale]);
                found.value(name("guided_logits"), guided, wanted.clone(), VALUE);
                let got: Vec<u32> = b
                    .get_ids(&s.ids, labels.len() * schedule.tokens())
                    .chunks(schedule.tokens())
                    .flat_map(|sample| &sample[schedule.range(scale)])
                    .copied()
                    .collect();
                let margin = |row: usize, got: usize, want: usize| {
                    wanted[row * vocab + want] - wanted[row * vocab + got]
                };
                found.ids(name("ids"), &got, ids, &name("guided_logits"), margin);
                comparable = got == *ids;
                Ok(())
            })
            .unwrap();
    }
}
