/* Causal attention: one head of one sequence at a time, all of it in the cache.

   Queries, keys and values are kept for the backward pass as (group, heads, 3, t, w), where t is the context, rounded
   up to whole blocks of queries, and w the head's width d, rounded up to whole vectors; what is padding is 0. Scores
   are not kept: making them again takes less time than reading them. Queries and keys are normalised, so scores are
   at most sqrt(d) and exp needs no maximum. Pairs of channels turn by their positions as
   x cos + swapped(x) sin, the tables (context, w) holding cos, cos and sin, -sin for every pair. */

#pragma once

#include "products.h"

INLINE vec swapped(vec x) { return (vec)(((pairs)x << 32) | ((pairs)x >> 32)); }

INLINE void copy(const float *from, float *to, int64_t d) {
    int64_t i = 0;
    for (; i + WIDTH <= d; i += WIDTH) AT(to + i) = READ(from + i);
    for (; i + 4 <= d; i += 4) *(quad *)(to + i) = *(const quad *)(from + i);
    for (; i < d; i++) to[i] = from[i];
}

/* x (d) -> out (w): rotated and divided by its rms and by d^1/4. Reads x up to w: tables are 0 from d on. */
INLINE float rotate_norm(const float *x, float *out, const float *cos, const float *sin, int64_t d, int64_t w,
                         float eps) {
    vec sum = {0};
    for (int64_t i = 0; i < w; i += WIDTH) {
        vec at = READ(x + i), y = at * READ(cos + i) + swapped(at) * READ(sin + i);
        AT(out + i) = y;
        sum += y * y;
    }
    float scale = 1.0f / sqrtf(sqrtf((float)d) * (total(sum) / (float)d + eps));
    for (int64_t i = 0; i < w; i += WIDTH) AT(out + i) *= scale;
    return scale;
}

/* The gradient by what rotate_norm read, (d), from that by its result x; `grad` is spent. */
INLINE void rotate_norm_backward(float *grad, const float *x, float *out, const float *cos, const float *sin,
                                 float scale, int64_t d, int64_t w) {
    vec sum = {0};
    for (int64_t i = 0; i < w; i += WIDTH) sum += READ(grad + i) * READ(x + i);
    float inner = total(sum) / sqrtf((float)d);
    for (int64_t i = 0; i < w; i += WIDTH) {
        vec y = scale * (READ(grad + i) - inner * READ(x + i));
        AT(grad + i) = y * READ(cos + i) - swapped(y) * READ(sin + i);
    }
    copy(grad, out, d);
}

static void transpose(const float *restrict x, float *restrict out, int64_t rows, int64_t columns, int64_t stride) {
    for (int64_t r = 0; r < rows; r += WIDTH)
        for (int64_t c = 0; c < columns; c++)
            for (int64_t i = 0; i < WIDTH; i++) out[c * stride + r + i] = x[(r + i) * columns + c];
}

/* A tile of rows of C (ROWS, n) = or += A B, as the form says. */
INLINE void row_tile(const float *a, int64_t across, int64_t along, const float *b, int64_t ldb, float *c, int64_t ldc,
                     int64_t n, int64_t k, int form) {
    int64_t vectors = n / WIDTH;
    for (int64_t v = 0, take; v < vectors; v += take) {
        take = panel(vectors - v);
        tile(take, a, across, along, b + v * WIDTH, ldb, c + v * WIDTH, ldc, k, form, 0, c, c);
    }
}

/* The keys that a tile of queries from position `first` on reaches, in whole vectors. */
INLINE int64_t reach(int64_t first) { return up(first + ROWS, WIDTH); }

/* x y^T of a block of rows of x from lo on, as far as each tile reaches. */
static void scores(const float *x, const float *yt, float *out, int64_t lo, int64_t u, int64_t w) {
    for (int64_t i = 0; i < QUERIES; i += ROWS)
        row_tile(x + (lo + i) * w, w, 1, yt, u, out + i * u, u, reach(lo + i), w, STORE);
}

/* exp of the scores at keys up to the query's own, 0 beyond. */
INLINE vec causal(const float *score, int64_t key, int64_t query, lanes count) {
    return (vec)((lanes)exponential(READ(score)) & (count + (int32_t)key <= (int32_t)query));
}

static lanes counted(void) {
    lanes count;
    for (int i = 0; i < WIDTH; i++) count[i] = i;
    return count;
}

static int64_t scratch_of_thread(int64_t t, int64_t w) {
    return 4 * t * w + 2 * (t + WIDTH) * w + 2 * QUERIES * (t + WIDTH);
}

/* Floats of scratch memory. */
static int64_t attention_scratch(int64_t context, int64_t d) {
    return threads() * scratch_of_thread(up(context, QUERIES), up(d, WIDTH));
}

/* Floats of what is kept of one head of one sequence. */
static int64_t attention_kept(int64_t context, int64_t d) { return 3 * up(context, QUERIES) * up(d, WIDTH); }

/* qkv (group, context, 3, heads, d) -> mixed (group, context, heads, d). Kept besides: the scales of queries and keys
   (group, heads, context, 2) and 1 / sum of exp(score) over keys (group, heads, context). */
static void attention(const float *qkv, float *kept, const float *cos, const float *sin, float *scales,
                      float *inverse_sums, float *mixed, float *scratch, int64_t group, int64_t context, int64_t heads,
                      int64_t d, float eps) {
    int64_t t = up(context, QUERIES), w = up(d, WIDTH), row = 3 * heads * d;
    int64_t u = t + WIDTH; /* between rows of scores: no power of two */
    lanes count = counted();
#pragma omp parallel for collapse(2)
    for (int64_t g = 0; g < group; g++)
        for (int64_t h = 0; h < heads; h++) {
            float *kt = scratch + thread() * scratch_of_thread(t, w), *s = kt + u * w, *o = s + QUERIES * u;
            const float *base = qkv + g * context * row + h * d;
            float *q = kept + (g * heads + h) * 3 * t * w, *k = q + t * w, *v = k + t * w;
            float *scale = scales + (g * heads + h) * 2 * context,
                  *inverse_sum = inverse_sums + (g * heads + h) * context;
            for (int64_t p = 0; p < context; p++) {
                const float *x = base + p * row;
                scale[2 * p] = rotate_norm(x, q + p * w, cos + p * w, sin + p * w, d, w, eps);
                scale[2 * p + 1] = rotate_norm(x + heads * d, k + p * w, cos + p * w, sin + p * w, d, w, eps);
                copy(x + 2 * heads * d, v + p * w, d);
            }
            transpose(k, kt, t, w, u);
            for (int64_t lo = 0; lo < context; lo += QUERIES) {
                int64_t n = context - lo < QUERIES ? context - lo : QUERIES;
                scores(q, kt, s, lo, u, w);
                for (int64_t i = 0; i < n; i++) {
                    vec sum = {0};
                    for (int64_t j = 0; j < reach(lo + i / ROWS * ROWS); j += WIDTH)
                        sum += AT(s + i * u + j) = causal(s + i * u + j, j, lo + i, count);
                    inverse_sum[lo + i] = 1.0f / total(sum);
                }
                for (int64_t i = 0; i < n; i += ROWS)
                    row_tile(s + i * u, u, 1, v, w, o + i * w, w, w, lo + i + ROWS, STORE);
                for (int64_t i = 0; i < n; i++) {
                    for (int64_t j = 0; j < w; j += WIDTH) AT(o + i * w + j) *= inverse_sum[lo + i];
                    copy(o + i * w, mixed + ((g * context + lo + i) * heads + h) * d, d);
                }
            }
        }
}

/* From the gradient by `mixed` to that by `qkv`. With p = exp(score) / sum and y = sum of p v: the gradient by a score
   is p (g v - g y), g that by y. */
static void attention_backward(const float *kept, const float *cos, const float *sin, const float *scales,
                               const float *inverse_sums, const float *mixed, const float *grad_mixed, float *grad_qkv,
                               float *scratch, int64_t group, int64_t context, int64_t heads, int64_t d) {
    int64_t t = up(context, QUERIES), w = up(d, WIDTH), row = 3 * heads * d;
    int64_t u = t + WIDTH; /* between rows of scores: no power of two */
    lanes count = counted();
#pragma omp parallel for collapse(2)
    for (int64_t g = 0; g < group; g++)
        for (int64_t h = 0; h < heads; h++) {
            float *kt = scratch + thread() * scratch_of_thread(t, w), *vt = kt + u * w, *go = vt + u * w;
            float *gk = go + t * w, *gv = gk + t * w, *gq = gv + t * w, *s = gq + t * w, *gs = s + QUERIES * u;
            const float *q = kept + (g * heads + h) * 3 * t * w, *k = q + t * w, *v = k + t * w;
            const float *scale = scales + (g * heads + h) * 2 * context,
                        *inverse_sum = inverse_sums + (g * heads + h) * context;
            const float *y = mixed + (g * context * heads + h) * d,
                        *grad_y = grad_mixed + (g * context * heads + h) * d;
            memset(go, 0, sizeof(float) * 3 * t * w);
            for (int64_t p = 0; p < context; p++) copy(grad_y + p * heads * d, go + p * w, d);
            transpose(k, kt, t, w, u);
            transpose(v, vt, t, w, u);
            for (int64_t lo = 0; lo < context; lo += QUERIES) {
                int64_t n = context - lo < QUERIES ? context - lo : QUERIES;
                scores(q, kt, s, lo, u, w);
                scores(go, vt, gs, lo, u, w);
                for (int64_t i = 0; i < QUERIES; i++) {
                    float by = 0.0f, inner = 0.0f;
                    if (i < n) {
                        vec sum = {0};
                        for (int64_t j = 0; j < w; j += WIDTH)
                            sum += READ(y + (lo + i) * heads * d + j) * READ(go + (lo + i) * w + j);
                        inner = total(sum);
                        by = inverse_sum[lo + i];
                    }
                    for (int64_t j = 0; j < reach(lo + i / ROWS * ROWS); j += WIDTH) {
                        vec p = causal(s + i * u + j, j, lo + i, count) * by;
                        AT(s + i * u + j) = p;
                        AT(gs + i * u + j) = p * (READ(gs + i * u + j) - inner);
                    }
                }
                for (int64_t i = 0; i < n; i += ROWS)
                    row_tile(gs + i * u, u, 1, k, w, gq + (lo + i) * w, w, w, lo + i + ROWS, STORE);
                for (int64_t j = 0; j < lo + QUERIES; j += ROWS) {
                    int64_t first = j > lo ? j - lo : 0;
                    row_tile(s + first * u + j, 1, u, go + (lo + first) * w, w, gv + j * w, w, w, QUERIES - first, ADD);
                    row_tile(gs + first * u + j, 1, u, q + (lo + first) * w, w, gk + j * w, w, w, QUERIES - first, ADD);
                }
            }
            for (int64_t p = 0; p < context; p++) {
                float *out = grad_qkv + (g * context + p) * row + h * d;
                rotate_norm_backward(gq + p * w, q + p * w, out, cos + p * w, sin + p * w, scale[2 * p], d, w);
                rotate_norm_backward(gk + p * w, k + p * w, out + heads * d, cos + p * w, sin + p * w, scale[2 * p + 1],
                                     d, w);
                copy(gv + p * w, out + 2 * heads * d, d);
            }
        }
}
