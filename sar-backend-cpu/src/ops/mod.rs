//! One file per op.

pub(crate) mod adamw;
pub(crate) mod area_resize;
pub(crate) mod area_tokens;
pub(crate) mod attention;
pub(crate) mod cached_attention;
#[cfg(test)]
pub(crate) mod check;
pub(crate) mod choose_codes;
pub(crate) mod class_embedding;
pub(crate) mod code_map;
pub(crate) mod conv2d;
pub(crate) mod conv_kernel;
pub(crate) mod cross_entropy;
pub(crate) mod ema;
pub(crate) mod gelu;
pub(crate) mod grad_norm;
pub(crate) mod group_norm;
pub(crate) mod guide;
pub(crate) mod keep_codes;
pub(crate) mod linear;
pub(crate) mod merge_ids;
pub(crate) mod nearest_code;
pub(crate) mod positions;
pub(crate) mod residual_norm;
pub(crate) mod rollout_inputs;
pub(crate) mod scale_sums;
pub(crate) mod silu;
pub(crate) mod soft_cross_entropy;
pub(crate) mod spatial_attention;
pub(crate) mod squared_error;
pub(crate) mod token_embedding;
pub(crate) mod upsample_nearest;
pub(crate) mod vector_quantize;
