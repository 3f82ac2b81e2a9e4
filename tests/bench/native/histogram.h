/* Durations in buckets of at most 0.8 % width, from 1 ns to 18 minutes, in fixed memory. */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stdint.h>

enum { SUB_BUCKETS = 128, OCTAVES = 33 };

struct histogram {
  int64_t count;
  int64_t buckets[(OCTAVES + 1) * SUB_BUCKETS];
};

static inline int bucket_of(int64_t ns) {
  int64_t largest = ((int64_t)SUB_BUCKETS << OCTAVES) - 1;
  ns = ns < 0 ? 0 : ns > largest ? largest : ns;
  if (ns < SUB_BUCKETS)
    return (int)ns;
  int octave = 63 - __builtin_clzll((uint64_t)ns) - 7; /* 2^7 = SUB_BUCKETS */
  return (octave + 1) * SUB_BUCKETS + (int)(ns >> octave) - SUB_BUCKETS;
}

static inline void histogram_add(struct histogram *h, int64_t ns) {
  h->count++;
  h->buckets[bucket_of(ns)]++;
}

/* The middle of the bucket that holds the quantile, in milliseconds. There must be at least one duration. */
static inline double histogram_quantile_ms(const struct histogram *h, double quantile) {
  int64_t rank = (int64_t)(quantile * (double)h->count), seen = 0;
  if (rank >= h->count)
    rank = h->count - 1;
  for (int i = 0; i < (OCTAVES + 1) * SUB_BUCKETS; i++) {
    seen += h->buckets[i];
    if (seen > rank) {
      int octave = i / SUB_BUCKETS - 1;
      double width = octave < 0 ? 1 : (double)((int64_t)1 << octave);
      double low = octave < 0 ? i : (double)(i % SUB_BUCKETS + SUB_BUCKETS) * width;
      return (low + width / 2) / 1e6;
    }
  }
  return 0;
}

#endif
