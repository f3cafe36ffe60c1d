/* Matrix products of row-major float32. */

#pragma once

#include "vectors.h"

/* A tile of ROWS rows and `columns` vectors of C = or += A B, A at a[row * across + k * along]. The forms of C:
   RELU leaves relu(C) and its square, RELU_BACKWARD takes relu(C) of the forward pass, multiplies by its derivative
   of the square, and leaves the square again. */
#define TILE(NAME, NV)                                                                                                 \
    INLINE void NAME(const float *a, int64_t across, int64_t along, const float *b, int64_t ldb, float *c,             \
                     int64_t ldc, int64_t k, int add, int form, float *relu, float *square) {                          \
        vec t[ROWS][NV], zero = {0};                                                                                   \
        for (int i = 0; i < ROWS; i++)                                                                                 \
            for (int j = 0; j < NV; j++) t[i][j] = add ? *(vec *)(c + i * ldc + j * WIDTH) : zero;                     \
        for (int64_t p = 0; p < k; p++) {                                                                              \
            vec r[NV];                                                                                                 \
            for (int j = 0; j < NV; j++) r[j] = READ(b + p * ldb + j * WIDTH);                                         \
            for (int i = 0; i < ROWS; i++)                                                                             \
                for (int j = 0; j < NV; j++) t[i][j] += a[i * across + p * along] * r[j];                              \
        }                                                                                                              \
        for (int i = 0; i < ROWS; i++)                                                                                 \
            for (int j = 0; j < NV; j++) {                                                                             \
                int64_t at = i * ldc + j * WIDTH;                                                                      \
                if (form == RELU) {                                                                                    \
                    vec x = RECTIFIED(t[i][j]);                                                                        \
                    *(vec *)(relu + at) = x;                                                                           \
                    *(vec *)(square + at) = x * x;                                                                     \
                } else if (form == RELU_BACKWARD) {                                                                    \
                    vec x = *(vec *)(relu + at);                                                                       \
                    *(vec *)(square + at) = x * x;                                                                     \
                    *(vec *)(c + at) = t[i][j] * (x + x);                                                              \
                } else                                                                                                 \
                    *(vec *)(c + at) = t[i][j];                                                                        \
            }                                                                                                          \
    }
/* NaN is kept: it is not below 0. */
#define RECTIFIED(x) ((vec)((lanes)(x) & ~((x) < 0.0f)))
TILE(tile1, 1)
TILE(tile2, 2)
TILE(tile3, COLUMNS)

/* How many vectors the next panel takes of `left`: three, but never one where it can be two and two. */
INLINE int64_t panel(int64_t left) { return left == 4 || left == 2 ? 2 : left < 3 ? left : 3; }

INLINE void tile(int64_t vectors, const float *a, int64_t across, int64_t along, const float *b, int64_t ldb, float *c,
                 int64_t ldc, int64_t k, int add, int form, float *relu, float *square) {
    if (vectors == 3)
        tile3(a, across, along, b, ldb, c, ldc, k, add, form, relu, square);
    else if (vectors == 2)
        tile2(a, across, along, b, ldb, c, ldc, k, add, form, relu, square);
    else
        tile1(a, across, along, b, ldb, c, ldc, k, add, form, relu, square);
}

/* B (k, n), at w[p * down + j * right], into panels that `linear` reads in one go. */
static void pack(const float *w, float *out, int64_t k, int64_t n, int64_t down, int64_t right) {
    int64_t vectors = n / WIDTH;
    for (int64_t v = 0, take; v < vectors; v += take) {
        take = panel(vectors - v);
        int64_t columns = take * WIDTH;
        const float *from = w + v * WIDTH * right;
        float *to = out + v * WIDTH * k;
        if (right == 1)
            for (int64_t p = 0; p < k; p++)
                for (int64_t j = 0; j < columns; j += WIDTH)
                    *(vec *)(to + p * columns + j) = *(const vec *)(from + p * down + j);
        else
            for (int64_t p = 0; p < k; p++)
                for (int64_t j = 0; j < columns; j++) to[p * columns + j] = from[p * down + j * right];
    }
}

INLINE void product(const float *x, const float *packed, float *y, int64_t n, int64_t k, int64_t columns, int form,
                    float *relu, float *square) {
    int64_t vectors = columns / WIDTH, block = BLOCK_FLOATS / k, share = (n + threads() - 1) / threads();
    block = up(block < share ? block : share, ROWS);
#pragma omp parallel for
    for (int64_t first = 0; first < n; first += block) {
        int64_t last = first + block < n ? first + block : n;
        for (int64_t v = 0, take; v < vectors; v += take) {
            take = panel(vectors - v);
            const float *b = packed + v * WIDTH * k;
            for (int64_t row = first; row < last; row += ROWS) {
                int64_t at = row * columns + v * WIDTH;
                tile(take, x + row * k, k, 1, b, take * WIDTH, y + at, columns, k, 0, form, relu + at, square + at);
            }
        }
    }
}

/* y (n, columns) = x (n, k) B, B packed. */
static void linear(const float *x, const float *packed, float *y, int64_t n, int64_t k, int64_t columns) {
    product(x, packed, y, n, k, columns, PLAIN, y, y);
}

/* relu(x B) and its square. */
static void linear_relu(const float *x, const float *packed, float *relu, float *square, int64_t n, int64_t k,
                        int64_t columns) {
    product(x, packed, relu, n, k, columns, RELU, relu, square);
}

/* y = x B times 2 relu, the derivative of relu^2; and the square of relu. */
static void linear_relu_backward(const float *x, const float *packed, float *y, float *relu, float *square, int64_t n,
                                 int64_t k, int64_t columns) {
    product(x, packed, y, n, k, columns, RELU_BACKWARD, relu, square);
}

/* total (m, columns) = or += a^T b of a (n, m) and b (n, columns): the gradient of a weight. A block of columns of a is
   copied together first: rows of a lie a power of two apart, more or less, and would evict each other. */
static void gradient(const float *a, const float *b, float *total, int64_t n, int64_t m, int64_t columns, int add) {
    int64_t vectors = columns / WIDTH;
    for (int64_t first = 0; first < n; first += GRADIENT_ROWS) {
        int64_t rows = n - first < GRADIENT_ROWS ? n - first : GRADIENT_ROWS;
#pragma omp parallel for
        for (int64_t from = 0; from < m; from += GRADIENT_COLUMNS) {
            float block[GRADIENT_COLUMNS * GRADIENT_ROWS];
            int64_t tiles = (m - from < GRADIENT_COLUMNS ? m - from : GRADIENT_COLUMNS) / ROWS;
            for (int64_t p = 0; p < rows; p++)
                for (int64_t i = 0; i < tiles; i++)
                    for (int j = 0; j < ROWS; j++)
                        block[(i * rows + p) * ROWS + j] = a[(first + p) * m + from + i * ROWS + j];
            for (int64_t v = 0, take; v < vectors; v += take) {
                take = panel(vectors - v);
                for (int64_t i = 0; i < tiles; i++) {
                    float *c = total + (from + i * ROWS) * columns + v * WIDTH;
                    tile(take, block + i * rows * ROWS, 1, ROWS, b + first * columns + v * WIDTH, columns, c, columns,
                         rows, add || first, PLAIN, c, c);
                }
            }
        }
    }
}
