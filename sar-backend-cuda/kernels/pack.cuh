// Sixteen bytes of activations at a time, where an address is a multiple of sixteen bytes.
#pragma once

// Activations in sixteen bytes.
#ifdef ACT_BF16
#define PACK 8
#else
#define PACK 4
#endif

DEV void load_acts(act (&to)[PACK], const act* __restrict__ from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
#ifdef ACT_BF16
  const u32 word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < PACK; i++) to[i].bits = (u16)(word[i / 2] >> (16 * (i % 2)));
#else
  to[0] = __uint_as_float(words.x), to[1] = __uint_as_float(words.y);
  to[2] = __uint_as_float(words.z), to[3] = __uint_as_float(words.w);
#endif
}

DEV void store_acts(act* __restrict__ to, const act (&from)[PACK]) {
  uint4 words;
#ifdef ACT_BF16
  words.x = from[0].bits | (u32)from[1].bits << 16, words.y = from[2].bits | (u32)from[3].bits << 16;
  words.z = from[4].bits | (u32)from[5].bits << 16, words.w = from[6].bits | (u32)from[7].bits << 16;
#else
  words.x = __float_as_uint(from[0]), words.y = __float_as_uint(from[1]);
  words.z = __float_as_uint(from[2]), words.w = __float_as_uint(from[3]);
#endif
  *reinterpret_cast<uint4*>(to) = words;
}

DEV void load_floats(float (&to)[PACK], const act* __restrict__ from) {
  act held[PACK];
  load_acts(held, from);
#pragma unroll
  for (int i = 0; i < PACK; i++) to[i] = to_float(held[i]);
}

DEV void store_floats(act* __restrict__ to, const float (&from)[PACK]) {
  uint4 words;
#ifdef ACT_BF16
  words.x = pack_bf16x2(from[0], from[1]), words.y = pack_bf16x2(from[2], from[3]);
  words.z = pack_bf16x2(from[4], from[5]), words.w = pack_bf16x2(from[6], from[7]);
#else
  words.x = __float_as_uint(from[0]), words.y = __float_as_uint(from[1]);
  words.z = __float_as_uint(from[2]), words.w = __float_as_uint(from[3]);
#endif
  *reinterpret_cast<uint4*>(to) = words;
}
