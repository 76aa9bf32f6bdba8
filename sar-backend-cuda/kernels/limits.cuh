// Which tokens see which: block-causal limits of several tokens in one pass over the scales. One at
// a time, the passes would be a tenth of the time of a short block. After schedule.cuh.
#pragma once

// Tokens that each of `token` sees, as `visible`; those of the first scale for negative tokens.
template <int N>
DEV void visible_to(int (&limit)[N], const int (&token)[N], const ScaleTable& table) {
#pragma unroll
  for (int i = 0; i < N; i++) limit[i] = table.first[1];
  for (int scale = 1; scale < table.scales; scale++) {
    const int from = table.first[scale], to = table.first[scale + 1];
#pragma unroll
    for (int i = 0; i < N; i++)
      if (token[i] >= from) limit[i] = to;
  }
}

// The first token that sees each of `token`: the first of its scale; the number of tokens for those
// beyond the end, which nobody sees.
template <int N>
DEV void seen_from(int (&seen)[N], const int (&token)[N], const ScaleTable& table) {
#pragma unroll
  for (int i = 0; i < N; i++) seen[i] = 0;
  for (int scale = 1; scale <= table.scales; scale++) {
    const int from = table.first[scale];
#pragma unroll
    for (int i = 0; i < N; i++)
      if (token[i] >= from) seen[i] = from;
  }
}
