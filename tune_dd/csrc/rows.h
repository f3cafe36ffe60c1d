/* Dropout, the residual stream and the cross-entropy, row by row. */

#pragma once

#include "vectors.h"

/* The next n 16-bit numbers of numpy's SFC64, a state of four words. */
static void random_bits(uint64_t *state, int16_t *out, int64_t n) {
    uint64_t a = state[0], b = state[1], c = state[2], count = state[3];
    for (int64_t i = 0; i < n; i += 4) {
        uint64_t word = a + b + count++;
        a = b ^ (b >> 11);
        b = c + (c << 3);
        c = ((c << 24) | (c >> 40)) + word;
        memcpy(out + i, &word, n - i < 4 ? 2 * (n - i) : 8);
    }
    state[0] = a, state[1] = b, state[2] = c, state[3] = count;
}

INLINE float dropped(int16_t bits, int32_t below, float by, float x) { return bits < below ? x * by : 0.0f; }

/* stream += branch, dropped where bits are given; out = stream / rms, scale = 1 / rms. */
static void residual_norm(float *stream, const float *branch, const int16_t *bits, int32_t below, float by,
                          float *scale, float *out, int64_t n, int64_t d, float eps) {
#pragma omp parallel for
    for (int64_t row = 0; row < n; row++) {
        float *restrict x = stream + row * d, *restrict y = out + row * d, sum = 0.0f;
        const float *restrict b = branch + row * d;
        const int16_t *restrict w = bits + row * d;
        if (bits) {
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < d; i++) {
                x[i] += dropped(w[i], below, by, b[i]);
                sum += x[i] * x[i];
            }
        } else {
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < d; i++) {
                x[i] += b[i];
                sum += x[i] * x[i];
            }
        }
        float s = 1.0f / sqrtf(sum / (float)d + eps);
        scale[row] = s;
        for (int64_t i = 0; i < d; i++) y[i] = x[i] * s;
    }
}

/* total += scale (grad - x mean(grad x)), the norm's gradient; out = total, dropped where bits are given. */
static void norm_backward(const float *grad, const float *normalised, const float *scale, float *total,
                          const int16_t *bits, int32_t below, float by, float *out, int64_t n, int64_t d) {
#pragma omp parallel for
    for (int64_t row = 0; row < n; row++) {
        const float *restrict g = grad + row * d, *restrict x = normalised + row * d;
        const int16_t *restrict w = bits + row * d;
        float *restrict a = total + row * d, *restrict o = out + row * d, inner = 0.0f, s = scale[row];
#pragma omp simd reduction(+ : inner)
        for (int64_t i = 0; i < d; i++) inner += g[i] * x[i];
        inner *= s / (float)d;
        if (bits) {
            for (int64_t i = 0; i < d; i++) {
                a[i] += s * g[i] - inner * x[i];
                o[i] = dropped(w[i], below, by, a[i]);
            }
        } else {
            for (int64_t i = 0; i < d; i++) {
                a[i] += s * g[i] - inner * x[i];
                o[i] = a[i];
            }
        }
    }
}

/* Losses (n) of logits (n, v). Where `part` is not 0, logits become their gradient: part (softmax - one-hot target). */
static void cross_entropy(float *logits, const int64_t *targets, float *losses, int64_t n, int64_t v, float part) {
#pragma omp parallel for
    for (int64_t row = 0; row < n; row++) {
        float *restrict x = logits + row * v, top = x[0], wanted = x[targets[row]];
        vec sum = {0};
#pragma omp simd reduction(max : top)
        for (int64_t i = 0; i < v; i++) top = x[i] > top ? x[i] : top;
        for (int64_t i = 0; i < v; i += WIDTH) sum += AT(x + i) = exponential(READ(x + i) - top);
        losses[row] = logf(total(sum)) + top - wanted;
        if (part != 0.0f) {
            float by = part / total(sum);
            for (int64_t i = 0; i < v; i++) x[i] *= by;
            x[targets[row]] -= part;
        }
    }
}
