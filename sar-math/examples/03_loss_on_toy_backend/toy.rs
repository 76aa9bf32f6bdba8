//! The smallest backend the losses run on: plain vectors, plain loops, f64.
//!
//! A backend implements the traits whose ops it has; losses ask for `Buffers` and `LossOps` alone.

use sar_math::ScaleSchedule;
use sar_math::backend::{
    BackendError, Buffers, ErrorKind, LossDims, LossOps, ShapeError, TokenLoss,
};
use std::fmt;

/// Host memory and no device at all.
pub struct Toy;

/// All that can go wrong here: an operand of the wrong size, or an id out of range.
#[derive(Debug)]
pub struct ToyError(ShapeError);

impl fmt::Display for ToyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for ToyError {}

impl From<ShapeError> for ToyError {
    fn from(error: ShapeError) -> Self {
        Self(error)
    }
}

impl BackendError for ToyError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Shape
    }
}

type Done = Result<(), ToyError>;

fn put<T: Copy>(op: &'static str, host: &[T], to: &mut [T], offset: usize) -> Done {
    ShapeError::at_least(op, "buffer", offset.saturating_add(host.len()), to.len())?;
    to[offset..offset + host.len()].copy_from_slice(host);
    Ok(())
}

fn get<T: Copy>(op: &'static str, from: &[T], offset: usize, host: &mut [T]) -> Done {
    ShapeError::at_least(op, "buffer", offset.saturating_add(host.len()), from.len())?;
    host.copy_from_slice(&from[offset..offset + host.len()]);
    Ok(())
}

impl Buffers for Toy {
    type Host = f64;
    type Activation = Vec<f64>;
    type Accum = Vec<f64>;
    type Params = Vec<f64>;
    type Ids = Vec<u32>;
    type Error = ToyError;

    fn activation(&self, len: usize) -> Result<Vec<f64>, ToyError> {
        Ok(vec![0.0; len])
    }
    fn accum(&self, len: usize) -> Result<Vec<f64>, ToyError> {
        Ok(vec![0.0; len])
    }
    fn params(&self, len: usize) -> Result<Vec<f64>, ToyError> {
        Ok(vec![0.0; len])
    }
    fn ids(&self, len: usize) -> Result<Vec<u32>, ToyError> {
        Ok(vec![0; len])
    }
    fn upload(&self, host: &[f64], to: &mut Vec<f64>, offset: usize) -> Done {
        put("upload", host, to, offset)
    }
    fn upload_accum(&self, host: &[f64], to: &mut Vec<f64>, offset: usize) -> Done {
        put("upload_accum", host, to, offset)
    }
    fn upload_params(&self, host: &[f64], to: &mut Vec<f64>, offset: usize) -> Done {
        put("upload_params", host, to, offset)
    }
    fn upload_ids(&self, host: &[u32], to: &mut Vec<u32>, offset: usize) -> Done {
        put("upload_ids", host, to, offset)
    }
    fn download(&self, from: &Vec<f64>, offset: usize, host: &mut [f64]) -> Done {
        get("download", from, offset, host)
    }
    fn download_accum(&self, from: &Vec<f64>, offset: usize, host: &mut [f64]) -> Done {
        get("download_accum", from, offset, host)
    }
    fn download_params(&self, from: &Vec<f64>, offset: usize, host: &mut [f64]) -> Done {
        get("download_params", from, offset, host)
    }
    fn download_ids(&self, from: &Vec<u32>, offset: usize, host: &mut [u32]) -> Done {
        get("download_ids", from, offset, host)
    }
    fn zero_accum(&self, accum: &mut Vec<f64>, offset: usize, len: usize) -> Done {
        let end = offset.saturating_add(len);
        ShapeError::at_least("zero_accum", "accum", end, accum.len())?;
        accum[offset..end].fill(0.0);
        Ok(())
    }
    fn copy(
        &self,
        from: &Vec<f64>,
        at: usize,
        to: &mut Vec<f64>,
        to_at: usize,
        len: usize,
    ) -> Done {
        ShapeError::at_least("copy", "from", at.saturating_add(len), from.len())?;
        put("copy", &from[at..at + len], to, to_at)
    }
    fn add(&self, from: &Vec<f64>, to: &mut Vec<f64>, len: usize) -> Done {
        ShapeError::at_least("add", "from and to", len, from.len().min(to.len()))?;
        to.iter_mut().zip(&from[..len]).for_each(|(to, from)| *to += from);
        Ok(())
    }
    fn replay(&self, _key: u64, work: &mut dyn FnMut() -> Done) -> Done {
        work()
    }
    fn synchronize(&self) -> Done {
        Ok(())
    }
}

/// Target distribution of a token: a smoothed one-hot, or a softmax.
fn one_hot(dims: &LossDims, target: u32) -> Vec<f64> {
    let mut p = vec![dims.smoothing / dims.vocab as f64; dims.vocab];
    p[target as usize] += 1.0 - dims.smoothing;
    p
}

fn log_sum_exp(logits: &[f64]) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + logits.iter().map(|l| (l - largest).exp()).sum::<f64>().ln()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let lse = log_sum_exp(logits);
    logits.iter().map(|l| (l - lse).exp()).collect()
}

/// Checks operands once, at the door; a sample has `target` elements of targets a token, and there are those of so many
/// samples.
fn check(
    op: &'static str,
    dims: &LossDims,
    logits: usize,
    targets: usize,
    (samples, target): (usize, usize),
) -> Done {
    let tokens = dims.schedule.tokens();
    ShapeError::at_least(op, "vocab", 1, dims.vocab)?;
    let size = |sides: [usize; 3]| sides.into_iter().fold(1, usize::saturating_mul);
    ShapeError::at_least(op, "logits (b*l*v)", size([dims.batch, tokens, dims.vocab]), logits)?;
    let held = tokens.saturating_add(dims.targets.shift);
    ShapeError::at_least(op, "targets.tokens", held, dims.targets.tokens)?;
    ShapeError::at_least(op, "targets", size([samples, dims.targets.tokens, target]), targets)?;
    Ok(())
}

/// Ids of targets are of the whole batch, of which the logits are a part.
fn check_ids(op: &'static str, dims: &LossDims, logits: usize, ids: &[u32]) -> Done {
    let samples = dims.first_sample.saturating_add(dims.batch);
    check(op, dims, logits, ids.len(), (samples, 1))?;
    for &id in &ids[dims.first_sample * dims.targets.tokens..][..dims.batch * dims.targets.tokens] {
        ShapeError::at_least(op, "vocab (above every target)", id as usize + 1, dims.vocab)?;
    }
    Ok(())
}

/// Forward of both losses; `target` gives the distribution in a row of the targets.
fn forward(
    op: &'static str,
    dims: &LossDims,
    logits: &[f64],
    out: &mut TokenLoss<Toy>,
    target: impl Fn(usize) -> Vec<f64>,
) -> Done {
    let tokens = dims.schedule.tokens();
    let written = dims.first_sample.saturating_add(dims.batch).saturating_mul(tokens);
    for out in [&out.lse_bl, &out.loss_bl, &out.hits_bl] {
        ShapeError::at_least(op, "loss, hits and lse (b*l)", written, out.len())?;
    }
    let rows = logits.chunks_exact(dims.vocab).take(dims.batch * tokens);
    for (row, l) in rows.enumerate() {
        let p = target(dims.targets.of(row, tokens));
        let lse = log_sum_exp(l);
        let row = dims.first_sample * tokens + row;
        out.lse_bl[row] = lse;
        out.loss_bl[row] = p.iter().zip(l).map(|(p, l)| p * (lse - l)).sum();
        let hit = sar_math::sampling::argmax(l) == sar_math::sampling::argmax(&p);
        out.hits_bl[row] = f64::from(u8::from(hit));
    }
    Ok(())
}

/// Backward of both losses: weight·(softmax − target), by the log-sum-exp that the forward left.
fn backward(
    op: &'static str,
    dims: &LossDims,
    logits: &mut [f64],
    lse_bl: &[f64],
    target: impl Fn(usize) -> Vec<f64>,
) -> Done {
    let tokens = dims.schedule.tokens();
    let first = dims.first_sample.saturating_mul(tokens);
    let written = dims.first_sample.saturating_add(dims.batch).saturating_mul(tokens);
    ShapeError::at_least(op, "lse (b*l)", written, lse_bl.len())?;
    let rows = logits.chunks_exact_mut(dims.vocab).take(dims.batch * tokens);
    for (row, l) in rows.enumerate() {
        let scale = dims.schedule.scale_of(row % tokens).unwrap_or(0);
        if dims.weights[scale] == 0.0 {
            // Zero times what is no number would be none.
            l.fill(0.0);
            continue;
        }
        let p = target(dims.targets.of(row, tokens));
        for (l, p) in l.iter_mut().zip(p) {
            *l = dims.weights[scale] * ((*l - lse_bl[first + row]).exp() - p);
        }
    }
    Ok(())
}

/// Rows of a teacher's logits, one per row of the logits, whose log-sum-exp has this room.
fn check_teacher(op: &'static str, dims: &LossDims, lse_bl: &[f64]) -> Result<(), ShapeError> {
    let samples = dims.first_sample.saturating_add(dims.batch);
    let written = samples.saturating_mul(dims.schedule.tokens());
    ShapeError::at_least(op, "teacher's lse (b*l)", written, lse_bl.len())
}

impl LossOps for Toy {
    fn cross_entropy(
        &self,
        dims: &LossDims,
        logits_blv: &Vec<f64>,
        targets_bl: &Vec<u32>,
        out: &mut TokenLoss<Self>,
    ) -> Done {
        check_ids("cross_entropy", dims, logits_blv.len(), targets_bl)?;
        let first = dims.first_sample * dims.targets.tokens;
        forward("cross_entropy", dims, logits_blv, out, |row| {
            one_hot(dims, targets_bl[first + row])
        })
    }

    fn cross_entropy_backward(
        &self,
        dims: &LossDims,
        logits_to_dlogits: &mut Vec<f64>,
        targets_bl: &Vec<u32>,
        saved: &TokenLoss<Self>,
    ) -> Done {
        check_ids("cross_entropy_backward", dims, logits_to_dlogits.len(), targets_bl)?;
        let first = dims.first_sample * dims.targets.tokens;
        let target = |row| one_hot(dims, targets_bl[first + row]);
        backward("cross_entropy_backward", dims, logits_to_dlogits, &saved.lse_bl, target)
    }

    fn soft_cross_entropy(
        &self,
        dims: &LossDims,
        logits_blv: &Vec<f64>,
        teacher_blv: &Vec<f64>,
        out: &mut TokenLoss<Self>,
    ) -> Done {
        let v = dims.vocab;
        check("soft_cross_entropy", dims, logits_blv.len(), teacher_blv.len(), (dims.batch, v))?;
        check_teacher("soft_cross_entropy", dims, &out.teacher_lse_bl)?;
        let target = |row| softmax(&teacher_blv[row * v..][..v]);
        forward("soft_cross_entropy", dims, logits_blv, out, target)?;
        let tokens = dims.schedule.tokens();
        for row in 0..dims.batch * tokens {
            let teacher = &teacher_blv[dims.targets.of(row, tokens) * v..][..v];
            out.teacher_lse_bl[dims.first_sample * tokens + row] = log_sum_exp(teacher);
        }
        Ok(())
    }

    fn soft_cross_entropy_backward(
        &self,
        dims: &LossDims,
        logits_to_dlogits: &mut Vec<f64>,
        teacher_blv: &Vec<f64>,
        saved: &TokenLoss<Self>,
    ) -> Done {
        let v = dims.vocab;
        let (op, logits) = ("soft_cross_entropy_backward", logits_to_dlogits.len());
        check(op, dims, logits, teacher_blv.len(), (dims.batch, v))?;
        check_teacher(op, dims, &saved.teacher_lse_bl)?;
        let target = |row| softmax(&teacher_blv[row * v..][..v]);
        backward(op, dims, logits_to_dlogits, &saved.lse_bl, target)
    }

    fn scale_sums(
        &self,
        batch: usize,
        schedule: &ScaleSchedule,
        values_bl: &Vec<f64>,
        sums: &mut Vec<f64>,
        offset: usize,
    ) -> Done {
        let tokens = schedule.tokens();
        let (values, end) = (batch.saturating_mul(tokens), offset.saturating_add(schedule.len()));
        ShapeError::at_least("scale_sums", "values (b*l)", values, values_bl.len())?;
        ShapeError::at_least("scale_sums", "sums", end, sums.len())?;
        for i in 0..schedule.len() {
            let samples = values_bl.chunks_exact(tokens).take(batch);
            sums[offset + i] = samples.map(|s| s[schedule.range(i)].iter().sum::<f64>()).sum();
        }
        Ok(())
    }
}
