// Where the blocks of one cooperative launch meet: the chunks of a tile of channels exchange two values of
// each channel.
//
// Every word says by itself whether its value is there: values are stored inverted, and 0, which would be a
// NaN that no arithmetic makes, says not yet. So readers poll the values themselves: no barrier of the grid,
// no fence, no counter, and the words of a vector need not come together.
//
// Launches take the two halves of the words in turn. A block that puts its values also empties its words of
// the other half, which the launch before has used and the next one will use. Whose turn it is its own words
// tell: those of the launch before are there. The plan owns the words, all 0 before its first launch; in a
// workspace, what others have left would pass for values. Launches of a plan do not overlap.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/batchnorm/batchnorm_stream.cuh"
#include "kernels/batchnorm/batchnorm_tile.cuh"
#include "kernels/common/counters.h"

namespace kiln {

// What the plan owns.
class BatchnormMeetingWords {
 public:
  explicit BatchnormMeetingWords(const BatchnormTile& t)
      : words_(zeroed_counters(4 * t.chunks * t.channels)) {}
  unsigned* data() const { return static_cast<unsigned*>(words_->data()); }

 private:
  std::shared_ptr<const DeviceBuffer> words_;
};

// 1 or a multiple of 4 neighbouring words, each in one piece, straight to L2 and from there.
template <int V>
__device__ __forceinline__ void store_words(unsigned* to, const unsigned (&words)[V]) {
  if constexpr (V == 1) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;\n" ::"l"(to), "r"(words[0]) : "memory");
  } else {
#pragma unroll
    for (int v = 0; v < V; v += 4) {
      asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"l"(to + v), "r"(words[v]),
                   "r"(words[v + 1]), "r"(words[v + 2]), "r"(words[v + 3])
                   : "memory");
    }
  }
}
__device__ __forceinline__ unsigned load_word(const unsigned* from) {
  unsigned word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];\n" : "=r"(word) : "l"(from) : "memory");
  return word;
}
__device__ __forceinline__ uint4 load_words(const unsigned* from) {
  uint4 w;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
               : "l"(from)
               : "memory");
  return w;
}

__device__ __forceinline__ unsigned word_of(float value) {
  const unsigned word = ~__float_as_uint(value);
  return word != 0 ? word : ~0x7fffffffu;  // another NaN
}
__device__ __forceinline__ float4 values_of(const uint4& w) {
  return {__uint_as_float(~w.x), __uint_as_float(~w.y), __uint_as_float(~w.z), __uint_as_float(~w.w)};
}
__device__ __forceinline__ bool all_there(const uint4& a, const uint4& b) {
  return min(min(min(a.x, a.y), min(a.z, a.w)), min(min(b.x, b.y), min(b.z, b.w))) != 0;
}

// A block's way to the others. Its threads make it before a barrier of theirs, behind which they put().
struct BatchnormMeeting {
  unsigned* words;       // [2,chunks,2,C]
  int chunks, channels;  // C
  int chunk, channel;    // the block's, and its tile's first
  unsigned before;       // not 0: the launch before has used the first half

  // Brings the words of a block's `width` channels into L2, early: others will ask for them before they are
  // there, and should not wait for memory. kLine words are 32 bytes.
  __device__ __forceinline__ static void bring(const unsigned* words, const BatchnormTile& t, int chunk,
                                               int channel, int width) {
    constexpr int kLine = 8;
    const int row = static_cast<int>(threadIdx.x) % 4, c = static_cast<int>(threadIdx.x) / 4 * kLine;
    if (c >= width || channel + c >= t.channels) return;
    prefetch(words + (((row / 2 * t.chunks + chunk) * 2 + row % 2) * t.channels + channel + c));
  }
  __device__ __forceinline__ static BatchnormMeeting of(unsigned* words, const BatchnormTile& t, int chunk,
                                                        int channel) {
    const unsigned* own = words + (chunk * 2 * t.channels + channel);
    return {words, t.chunks, t.channels, chunk, channel, load_word(own)};
  }
  // Values of V channels from `c` of the tile on, which exist.
  template <int V>
  __device__ __forceinline__ void put(int c, const float (&first)[V], const float (&second)[V]) const {
    unsigned a[V], b[V], empty[V];
#pragma unroll
    for (int v = 0; v < V; ++v) a[v] = word_of(first[v]), b[v] = word_of(second[v]), empty[v] = 0;
    unsigned *now = words + at(true, chunk, c), *next = words + at(false, chunk, c);
    store_words(now, a);
    store_words(now + channels, b);
    store_words(next, empty);
    store_words(next + channels, empty);
  }
  // Calls f(of_chunk, first, second) in order for the chunks begin, begin + step, ..., each as soon as it is
  // there: four channels from `c` of the tile on, which exist. kBatch chunks are in flight at once.
  template <int kBatch, class F>
  __device__ __forceinline__ void each_chunk(int begin, int step, int c, const F& f) const {
    const int stride = step * 2 * channels;
    int from = at(true, begin, c);
#pragma unroll 1
    for (; begin < chunks; begin += kBatch * step, from += kBatch * stride) {
      uint4 first[kBatch], second[kBatch];
      unsigned wanted = 0;
#pragma unroll
      for (int u = 0; u < kBatch; ++u) wanted |= begin + u * step < chunks ? 1u << u : 0;
      for (;;) {
        asm volatile("" : "+r"(from));  // the addresses are made anew each time: registers are scarce
#pragma unroll
        for (int u = 0; u < kBatch; ++u) {
          if (wanted & 1u << u) {
            first[u] = load_words(words + (from + u * stride));
            second[u] = load_words(words + (from + u * stride + channels));
          }
        }
#pragma unroll
        for (int u = kBatch - 1; u >= 0; --u) {  // the last first: no load waits for an earlier one's result
          if (wanted & 1u << u && all_there(first[u], second[u])) wanted &= ~(1u << u);
        }
        if (wanted == 0) break;
        // One word of a chunk that is late: what waits must not keep L2 from those that still read.
        const unsigned* late = words + (from + (__ffs(wanted) - 1) * stride + channels - c);
        while (load_word(late) == 0) continue;
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (begin + u * step < chunks) f(begin + u * step, values_of(first[u]), values_of(second[u]));
      }
    }
  }

 private:
  // The place of a word in this launch's half, or else in the next one's.
  __device__ __forceinline__ int at(bool now, int of_chunk, int c) const {
    const int half = (before != 0) == now;
    return (half * chunks + of_chunk) * 2 * channels + channel + c;
  }
};

}  // namespace kiln
