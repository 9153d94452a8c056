/* The sums of zo/kernel_numpy.py, compiled: the same integers, and so the same bits (docs/arithmetic.md).

   A direction is the stream of raw words of Philox4x64-10 (Salmon et al., SC 2011) as numpy makes them: bit i,
   little-endian, is the sign of value i. Sums are formed in integers, 256 values (one counter step) at a time; what is
   then added to a float is exact, so neither order nor the width of vectors matters.

   Nothing here touches Python: the functions are called through ctypes, which lets other threads run meanwhile. */

#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 256          /* values of one counter step: four words of 64 bits */
#define AHEAD (64 * BLOCK) /* values whose signs are made before they are used, so that memory is read without a pause */
#define FLOAT_EXACT (1 << 24)

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && __GNUC__ >= 11
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

INLINE void philox(uint64_t counter, uint64_t key0, uint64_t key1, uint64_t words[4]) {
    uint64_t c0 = counter, c1 = 0, c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        unsigned __int128 product0 = (unsigned __int128)0xD2E7470EE14C6C93u * c0;
        unsigned __int128 product1 = (unsigned __int128)0xCA5A826395121157u * c2;
        c0 = (uint64_t)(product1 >> 64) ^ c1 ^ key0;
        c1 = (uint64_t)product1;
        c2 = (uint64_t)(product0 >> 64) ^ c3 ^ key1;
        c3 = (uint64_t)product0;
        key0 += 0x9E3779B97F4A7C15u;
        key1 += 0xBB67AE8584CAA73Bu;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

/* total[i] = sum over seeds of +-step: twice the sum over the set bits, less the sum of all. */
#define DEFINE_SUMS(name, integer)                                                                                   \
    INLINE void name(uint64_t counter, uint64_t key0, const uint64_t *seeds, const int64_t *steps, int64_t count,    \
                     integer total[BLOCK]) {                                                                         \
        integer all = 0;                                                                                             \
        for (int64_t u = 0; u < count; u++) all += (integer)steps[u];                                                \
        for (int i = 0; i < BLOCK; i++) total[i] = -all;                                                             \
        for (int64_t u = 0; u < count; u++) {                                                                        \
            if (steps[u] == 0) continue;                                                                             \
            uint64_t words[4];                                                                                       \
            integer twice = (integer)(2 * steps[u]);                                                                 \
            philox(counter, key0, seeds[u], words);                                                                  \
            for (int half = 0; half < BLOCK / 32; half++) {                                                          \
                uint32_t bits = (uint32_t)(words[half / 2] >> (32 * (half % 2)));                                    \
                for (int bit = 0; bit < 32; bit++) total[32 * half + bit] += twice & -(integer)((bits >> bit) & 1); \
            }                                                                                                        \
        }                                                                                                            \
    }

DEFINE_SUMS(sums32, int32_t)
DEFINE_SUMS(sums64, int64_t)

INLINE int width_at(int64_t at, int64_t size) { return size - at < BLOCK ? (int)(size - at) : BLOCK; }

/* values[i] += +-step along one direction; `step` has the unit in it. */
INLINE void add_one(uint64_t counter, uint64_t key0, uint64_t seed, float step, float *values, int64_t size) {
    uint64_t words[AHEAD / 64];
    uint32_t plus;
    memcpy(&plus, &step, sizeof plus);
    for (int64_t at = 0; at < size; at += AHEAD) {
        int64_t width = size - at < AHEAD ? size - at : AHEAD;
        float *part = values + at;
        for (int64_t i = 0; i < width; i += BLOCK) philox(counter + (uint64_t)((at + i) / BLOCK), key0, seed, words + i / 64);
        for (int64_t half = 0; half < width / 32; half++) {
            uint32_t minus = ~(uint32_t)(words[half / 2] >> (32 * (half % 2)));
            for (int bit = 0; bit < 32; bit++) {
                uint32_t bits = plus ^ ((minus << (31 - bit)) & 0x80000000u);
                float signed_step;
                memcpy(&signed_step, &bits, sizeof signed_step);
                part[32 * half + bit] += signed_step;
            }
        }
        for (int64_t i = width / 32 * 32; i < width; i++) part[i] += words[i / 64] >> (i % 64) & 1 ? step : -step;
    }
}

/* values[0..size) += unit * sum, from value `start` (a multiple of 256) of the streams on. total: sum of |steps|, at most 2**53. */
FOR_EVERY_PROCESSOR
void zo_add_in_place(uint64_t key0, const uint64_t *seeds, const int64_t *steps, int64_t count, int64_t total, float *values,
                     int64_t size, int64_t start, float unit) {
    uint64_t counter = (uint64_t)(start / BLOCK) + 1; /* like numpy's, it is advanced before the first block */
    if (count == 1 && total <= FLOAT_EXACT) {
        add_one(counter, key0, seeds[0], unit * (float)steps[0], values, size);
        return;
    }
    for (int64_t at = 0; at < size; at += BLOCK, counter++) {
        float *part = values + at;
        int width = width_at(at, size);
        if (total <= FLOAT_EXACT) {
            int32_t sum[BLOCK];
            sums32(counter, key0, seeds, steps, count, sum);
            for (int i = 0; i < width; i++) part[i] += unit * (float)sum[i];
        } else {
            int64_t sum[BLOCK];
            sums64(counter, key0, seeds, steps, count, sum);
            for (int i = 0; i < width; i++) part[i] = (float)((double)part[i] + (double)unit * (double)sum[i]);
        }
    }
}

/* out[p][0..size) = sum with the steps of row p. total: the largest sum of |steps| of a row; out is float up to 2**24, else double. */
FOR_EVERY_PROCESSOR
void zo_combine(uint64_t key0, const uint64_t *seeds, const int64_t *steps, int64_t count, int64_t rows, int64_t total, void *out,
                int64_t size, int64_t start) {
    for (int64_t row = 0; row < rows; row++) {
        uint64_t counter = (uint64_t)(start / BLOCK) + 1;
        const int64_t *own = steps + row * count;
        for (int64_t at = 0; at < size; at += BLOCK, counter++) {
            int width = width_at(at, size);
            if (total <= FLOAT_EXACT) {
                int32_t sum[BLOCK];
                float *part = (float *)out + row * size + at;
                sums32(counter, key0, seeds, own, count, sum);
                for (int i = 0; i < width; i++) part[i] = (float)sum[i];
            } else {
                int64_t sum[BLOCK];
                double *part = (double *)out + row * size + at;
                sums64(counter, key0, seeds, own, count, sum);
                for (int i = 0; i < width; i++) part[i] = (double)sum[i];
            }
        }
    }
}

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernel", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&module); }
