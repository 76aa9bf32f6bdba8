// A schedule as kernels take it, by value; `device/args.rs` has the same structs.
#pragma once

#define MAX_SCALES 32

struct ScaleTable {
  int scales;                 // number of scales
  int first[MAX_SCALES + 1];  // first token of each scale; from the last on, the number of tokens
  int height[MAX_SCALES];     // rows of each grid
  int width[MAX_SCALES];      // columns of each grid
};

struct GuidanceRamp {
  double of_scale[MAX_SCALES];  // one number a scale
};

struct ScaleWeights {
  float of_scale[MAX_SCALES];  // how much a token of each scale counts
};

static_assert(sizeof(ScaleTable) == 4 * (2 + 3 * MAX_SCALES), "as in device/args.rs");
static_assert(sizeof(GuidanceRamp) == 8 * MAX_SCALES, "as in device/args.rs");
static_assert(sizeof(ScaleWeights) == 4 * MAX_SCALES, "as in device/args.rs");

// The scale that a token belongs to; the last one for tokens beyond the end.
DEV int scale_of(const ScaleTable& table, int token) {
  int scale = 0;
  while (scale + 1 < table.scales && token >= table.first[scale + 1]) scale++;
  return scale;
}
