/* What all kernels share. Matrices are row-major and contiguous; widths and vocabulary are multiples of WIDTH, rows of
   ROWS, and a head's width is padded in scratch memory. Loops over rows run on OpenMP's threads where there are any; no
   sum crosses threads, so results do not depend on their number. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

/* A vector's floats, and how many rows of a product share one load of the other operand: with COLUMNS vectors of
   columns the partial sums fill the registers. */
#if defined(__AVX512F__)
#define WIDTH 16
#define ROWS 8
#elif defined(__AVX__)
#define WIDTH 8
#define ROWS 4
#else
#define WIDTH 4
#define ROWS 8
#endif
#define COLUMNS 3

#define GRADIENT_ROWS 128 /* and columns: of one operand of a weight's gradient */
#define GRADIENT_COLUMNS 64
#define QUERIES 64             /* of one block of attention scores */
#define LONGEST_SUM 1536       /* of products that can be made in parts: a panel of more would not stay in the cache */
#define BLOCK_FLOATS (1 << 17) /* of the left operand that one panel of the right one meets: 512 KiB */

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t lanes __attribute__((vector_size(4 * WIDTH)));
typedef uint64_t pairs __attribute__((vector_size(4 * WIDTH)));
typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));
#define AT(p) (*(vec *)(p))
#define READ(p) (*(const vec *)(p))
#define INLINE static inline __attribute__((always_inline))

#ifdef _OPENMP
#include <omp.h>
static int64_t threads(void) { return omp_get_max_threads(); }
static int64_t thread(void) { return omp_get_thread_num(); }
#else
static int64_t threads(void) { return 1; }
static int64_t thread(void) { return 0; }
#endif

static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* exp of lanes that are at most 88: Cody and Waite's reduction and the polynomial of Cephes, 2 ulp. NaN stays NaN. */
INLINE vec exponential(vec x) {
    const vec lowest = (vec){0} - 87.0f, magic = (vec){0} + 12582912.0f; /* 1.5 * 2^23: rounds, n in the low bits */
    lanes below = x < lowest;
    x = (vec)((below & (lanes)lowest) | (~below & (lanes)x));
    vec shifted = x * 1.44269504f + magic, n = shifted - magic;
    vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)(((lanes)shifted + 127) << 23);
}

INLINE float total(vec x) {
    quad sum = {0};
    for (int i = 0; i < WIDTH / 4; i++) sum += ((const quad *)&x)[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}
