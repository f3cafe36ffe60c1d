/* Matrix products of row-major float32. */

#pragma once

#include "vectors.h"

/* What becomes of a tile C of a product: it is stored, or added to what is there; relu(C) and its square are stored; or
   C times the derivative of the square, 2 relu, where relu is that of the forward pass, and the square once more. */
enum { STORE, ADD, RELU, RELU_BACKWARD };

/* NaN is kept: it is not below 0. */
INLINE vec rectified(vec x) { return (vec)((lanes)x & ~(x < 0.0f)); }

INLINE void fetch(const float *row, int64_t columns) {
    for (int64_t j = 0; j < columns; j += 16) __builtin_prefetch(row + j, 1);
}

/* A tile of ROWS rows and nv vectors of columns of C = A B, with A at a[row * across + k * along]; k is a multiple of
   ROWS. With `far`, C lies outside the cache: its lines are asked for, a row at a time, while the sums are made. */
INLINE void tile_of(const int nv, const float *a, int64_t across, int64_t along, const float *b, int64_t ldb, float *c,
                    int64_t ldc, int64_t k, int form, int far, float *relu, float *square) {
    vec t[ROWS][COLUMNS] = {0};
    int64_t part = far ? k / ROWS : k;
    for (int64_t from = 0, row = 0; from < k; from += part, row += ldc) {
        if (far) {
            fetch((form == RELU ? square : c) + row, nv * WIDTH);
            if (form == RELU || form == RELU_BACKWARD)
                fetch(relu + row, nv * WIDTH);
            if (form == RELU_BACKWARD)
                fetch(square + row, nv * WIDTH);
        }
        for (int64_t p = from; p < from + part; p++) {
            vec r[COLUMNS];
            for (int j = 0; j < nv; j++) r[j] = READ(b + p * ldb + j * WIDTH);
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < nv; j++) t[i][j] += a[i * across + p * along] * r[j];
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < nv; j++) {
            int64_t at = i * ldc + j * WIDTH;
            if (form == STORE) {
                AT(c + at) = t[i][j];
            } else if (form == ADD) {
                AT(c + at) += t[i][j];
            } else if (form == RELU) {
                vec x = rectified(t[i][j]);
                AT(relu + at) = x;
                AT(square + at) = x * x;
            } else {
                vec x = READ(relu + at);
                AT(square + at) = x * x;
                AT(c + at) = t[i][j] * (x + x);
            }
        }
}

/* How many vectors the next panel takes of `left`: three, but never one where it can be two and two. */
INLINE int64_t panel(int64_t left) { return left == 4 || left == 2 ? 2 : left < 3 ? left : 3; }

INLINE void tile(int64_t vectors, const float *a, int64_t across, int64_t along, const float *b, int64_t ldb, float *c,
                 int64_t ldc, int64_t k, int form, int far, float *relu, float *square) {
    if (vectors == 3)
        tile_of(3, a, across, along, b, ldb, c, ldc, k, form, far, relu, square);
    else if (vectors == 2)
        tile_of(2, a, across, along, b, ldb, c, ldc, k, form, far, relu, square);
    else
        tile_of(1, a, across, along, b, ldb, c, ldc, k, form, far, relu, square);
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
    int64_t vectors = columns / WIDTH, part = form == STORE && k > LONGEST_SUM ? LONGEST_SUM : k;
    int64_t block = BLOCK_FLOATS / part, share = (n + threads() - 1) / threads();
    block = up(block < share ? block : share, ROWS);
#pragma omp parallel for
    for (int64_t first = 0; first < n; first += block) {
        int64_t last = first + block < n ? first + block : n;
        for (int64_t from = 0; from < k; from += part) {
            int64_t sum = k - from < part ? k - from : part;
            for (int64_t v = 0, take; v < vectors; v += take) {
                take = panel(vectors - v);
                const float *b = packed + v * WIDTH * k + from * take * WIDTH;
                for (int64_t row = first; row < last; row += ROWS) {
                    int64_t at = row * columns + v * WIDTH;
                    const float *a = x + row * k + from;
                    if (from)
                        tile(take, a, k, 1, b, take * WIDTH, y + at, columns, sum, ADD, 1, y, y);
                    else
                        tile(take, a, k, 1, b, take * WIDTH, y + at, columns, sum, form, 1, relu + at, square + at);
                }
            }
        }
    }
}

/* y (n, columns) = x (n, k) B, B packed. */
static void linear(const float *x, const float *packed, float *y, int64_t n, int64_t k, int64_t columns) {
    product(x, packed, y, n, k, columns, STORE, y, y);
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
                    if (add || first)
                        tile(take, block + i * rows * ROWS, 1, ROWS, b + first * columns + v * WIDTH, columns, c,
                             columns, rows, ADD, 1, c, c);
                    else
                        tile(take, block + i * rows * ROWS, 1, ROWS, b + first * columns + v * WIDTH, columns, c,
                             columns, rows, STORE, 1, c, c);
                }
            }
        }
    }
}
