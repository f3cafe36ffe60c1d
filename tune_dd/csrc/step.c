/* Loss and gradients of the transformer of model.py in float32; native.py says how, and calls it. */

#include <stdlib.h>

#include "attention.h"
#include "rows.h"

typedef struct {
    int64_t layers, heads, width, vocab, context;
    int64_t batch; /* sequences of a step */
    int64_t group; /* of them, those that go all the way forward and backward together: a divisor of the batch */
    int64_t chunk; /* of them, those that a layer takes at a time: a divisor of the group */
    float eps;
} sizes;

/* What one layer's forward pass leaves for its backward pass. */
typedef struct {
    float *attn_in, *attn_scale, *heads, *heads_scale, *inverse_sums, *mixed, *mlp_in, *mlp_scale, *relu;
} layer;

enum { QKV, ATTN_OUT, MLP_IN, MLP_OUT, MATRICES };

typedef struct {
    sizes z;
    int64_t rows;                                                                             /* of a chunk */
    float *embedded, *embedded_scale, *final, *final_scale, *stream, *grad_stream, *grad_out; /* of a group */
    layer *layers;
    float *qkv, *branch, *grad_branch, *hidden, *grad_hidden, *logits, *scratch; /* of a chunk */
    float *forward[MATRICES + 1], *backward[MATRICES + 1]; /* packed weights; the last, the head */
    int64_t packed_stride;                                 /* from layer to layer */
    /* Of the call: */
    const float *const *weights, *cos, *sin;
    float *const *grads;
    const int16_t *bits; /* NULL: no dropout */
    int32_t below;
    float by;
    int first_group;
} step;

#define ALIGNED 16 /* floats */
#define SLACK 64   /* floats after a buffer that attention reads past its end */

/* The next n floats of the workspace; where there is none yet, only counted. */
static float *take(float *workspace, int64_t *used, int64_t n) {
    float *at = workspace ? workspace + *used : NULL;
    *used += up(n + SLACK, ALIGNED);
    return at;
}

/* Lay the buffers out; returns how many floats they are. */
static int64_t lay_out(step *s, layer *layers, float *workspace) {
    const sizes *z = &s->z;
    int64_t used = 0, d = z->width, n = z->group * z->context, m = z->chunk * z->context, head = d / z->heads;
    int shared = z->group == z->batch; /* then each weight is packed just before its only use */
    s->rows = m;
    s->layers = layers;
#define TAKE(n) take(workspace, &used, n)
    s->embedded = TAKE(n * d), s->embedded_scale = TAKE(n), s->final = TAKE(n * d), s->final_scale = TAKE(n);
    s->stream = TAKE(n * d), s->grad_stream = TAKE(n * d), s->grad_out = TAKE(n * d);
    for (int64_t i = 0; i < z->layers; i++) {
        layer at = {.attn_in = TAKE(n * d),
                    .attn_scale = TAKE(n),
                    .mixed = TAKE(n * d),
                    .mlp_in = TAKE(n * d),
                    .mlp_scale = TAKE(n),
                    .relu = TAKE(4 * n * d),
                    .heads_scale = TAKE(2 * n * z->heads),
                    .inverse_sums = TAKE(n * z->heads),
                    .heads = TAKE(z->group * z->heads * attention_kept(z->context, head))};
        if (workspace)
            layers[i] = at;
    }
    s->qkv = TAKE(3 * m * d), s->branch = TAKE(m * d), s->grad_branch = TAKE(m * d);
    s->hidden = TAKE(4 * m * d), s->grad_hidden = TAKE(4 * m * d), s->logits = TAKE(m * z->vocab);
    s->scratch = TAKE(attention_scratch(z->context, head));
    static const int64_t parts[MATRICES] = {3, 1, 4, 4};
    float *packed = TAKE((shared ? 1 : z->layers) * 24 * d * d);
    for (int i = 0; i < MATRICES; i++) {
        s->forward[i] = packed, s->backward[i] = packed + 12 * d * d;
        packed += workspace ? parts[i] * d * d : 0;
    }
    s->packed_stride = shared ? 0 : 24 * d * d;
    s->forward[MATRICES] = TAKE(z->vocab * d), s->backward[MATRICES] = TAKE(z->vocab * d);
#undef TAKE
    return used;
}

/* ---- Weights ---- */

static int64_t index_of(int64_t at, int which) { return 1 + MATRICES * at + which; }

static void shape_of_matrix(const sizes *z, int which, int64_t *out, int64_t *in) {
    static const int64_t outs[MATRICES] = {3, 1, 4, 1}, ins[MATRICES] = {1, 1, 1, 4};
    *out = which == MATRICES ? z->vocab : outs[which] * z->width;
    *in = which == MATRICES ? z->width : ins[which] * z->width;
}

/* Weight `which` (out, in) of layer `at` packed for x W^T (forward) or grad W, packed anew where it is not kept. The
   head comes after the last layer. */
static const float *packed(const step *s, int64_t at, int which, int backward) {
    int64_t out, in;
    shape_of_matrix(&s->z, which, &out, &in);
    float *to = (backward ? s->backward : s->forward)[which] + (which == MATRICES ? 0 : at * s->packed_stride);
    if (s->first_group) {
        const float *weight = s->weights[index_of(at, which == MATRICES ? 0 : which)];
        if (backward)
            pack(weight, to, out, in, in, 1);
        else
            pack(weight, to, in, out, 1, in);
    }
    return to;
}

static float *grad_of(const step *s, int64_t at, int which) { return s->grads[index_of(at, which)]; }

/* ---- Forward and backward, a chunk of rows from `row` of the group on ---- */

static const int16_t *mask(const step *s, int64_t index, int64_t row) {
    const sizes *z = &s->z;
    return s->bits ? s->bits + (index * z->batch * z->context + row) * z->width : NULL;
}

static void add_and_normalise(const step *s, const float *branch, int64_t index, float *scale, float *out,
                              int64_t row) {
    int64_t d = s->z.width;
    residual_norm(s->stream + row * d, branch, mask(s, index, row), s->below, s->by, scale + row, out + row * d,
                  s->rows, d, s->z.eps);
}

static void subtract_norm(const step *s, const float *normalised, const float *scale, int64_t index, int64_t row) {
    int64_t d = s->z.width;
    norm_backward(s->grad_branch, normalised + row * d, scale + row, s->grad_stream + row * d, mask(s, index, row),
                  s->below, s->by, s->grad_out + row * d, s->rows, d);
}

static void forward(const step *s, const int64_t *inputs) {
    const sizes *z = &s->z;
    int64_t d = z->width, rows = z->group * z->context, head = d / z->heads, m = s->rows;
    for (int64_t row = 0; row < rows; row += m) {
        float *stream = s->stream + row * d;
        for (int64_t i = 0; i < m; i++)
            memcpy(s->branch + i * d, s->weights[0] + inputs[row + i] * d, sizeof(float) * d);
        memset(stream, 0, sizeof(float) * m * d);
        residual_norm(stream, s->branch, NULL, 0, 0, s->embedded_scale + row, s->embedded + row * d, m, d, z->eps);
        memset(stream, 0, sizeof(float) * m * d);
        layer *first = s->layers;
        add_and_normalise(s, s->embedded + row * d, 0, first->attn_scale, first->attn_in, row);
    }
    for (int64_t at = 0; at < z->layers; at++) {
        const layer *l = s->layers + at;
        const float *qkv = packed(s, at, QKV, 0), *attn_out = packed(s, at, ATTN_OUT, 0);
        const float *mlp_in = packed(s, at, MLP_IN, 0), *mlp_out = packed(s, at, MLP_OUT, 0);
        int last = at + 1 == z->layers;
        for (int64_t row = 0; row < rows; row += m) {
            linear(l->attn_in + row * d, qkv, s->qkv, m, d, 3 * d);
            int64_t kept = row / z->context * z->heads * attention_kept(z->context, head);
            attention(s->qkv, l->heads + kept, s->cos, s->sin, l->heads_scale + 2 * row * z->heads,
                      l->inverse_sums + row * z->heads, l->mixed + row * d, s->scratch, z->chunk, z->context, z->heads,
                      head, z->eps);
            linear(l->mixed + row * d, attn_out, s->branch, m, d, d);
            add_and_normalise(s, s->branch, 2 * at + 1, l->mlp_scale, l->mlp_in, row);
            linear_relu(l->mlp_in + row * d, mlp_in, l->relu + 4 * row * d, s->hidden, m, d, 4 * d);
            linear(s->hidden, mlp_out, s->branch, m, 4 * d, d);
            add_and_normalise(s, s->branch, 2 * at + 2, last ? s->final_scale : l[1].attn_scale,
                              last ? s->final : l[1].attn_in, row);
        }
    }
}

static void head_loss(const step *s, const int64_t *targets, float *losses) {
    const sizes *z = &s->z;
    const float *head = packed(s, z->layers, MATRICES, 0);
    for (int64_t row = 0; row < z->group * z->context; row += s->rows) {
        linear(s->final + row * z->width, head, s->logits, s->rows, z->width, z->vocab);
        cross_entropy(s->logits, targets + row, losses + row, s->rows, z->vocab, 0.0f);
    }
}

static void head_backward(const step *s, const int64_t *targets, float *losses) {
    const sizes *z = &s->z;
    int64_t d = z->width, rows = z->group * z->context, m = s->rows;
    const float *head = packed(s, z->layers, MATRICES, 0), *back = packed(s, z->layers, MATRICES, 1);
    float part_of_mean = 1.0f / (float)(z->batch * z->context);
    memset(s->grad_stream, 0, sizeof(float) * rows * d);
    for (int64_t row = 0; row < rows; row += m) {
        linear(s->final + row * d, head, s->logits, m, d, z->vocab);
        cross_entropy(s->logits, targets + row, losses + row, m, z->vocab, part_of_mean);
        gradient(s->logits, s->final + row * d, grad_of(s, z->layers, 0), m, z->vocab, d, !s->first_group || row);
        linear(s->logits, back, s->grad_branch, m, z->vocab, d);
        subtract_norm(s, s->final, s->final_scale, 2 * z->layers, row);
    }
}

static void layer_backward(const step *s, int64_t at) {
    const sizes *z = &s->z;
    const layer *l = s->layers + at;
    const float *qkv = packed(s, at, QKV, 1), *attn_out = packed(s, at, ATTN_OUT, 1);
    const float *mlp_in = packed(s, at, MLP_IN, 1), *mlp_out = packed(s, at, MLP_OUT, 1);
    int64_t d = z->width, head = d / z->heads, m = s->rows;
    for (int64_t row = 0; row < z->group * z->context; row += m) {
        float *grad_out = s->grad_out + row * d;
        int add = !s->first_group || row;
        linear_relu_backward(grad_out, mlp_out, s->grad_hidden, l->relu + 4 * row * d, s->hidden, m, d, 4 * d);
        gradient(grad_out, s->hidden, grad_of(s, at, MLP_OUT), m, d, 4 * d, add);
        gradient(s->grad_hidden, l->mlp_in + row * d, grad_of(s, at, MLP_IN), m, 4 * d, d, add);
        linear(s->grad_hidden, mlp_in, s->grad_branch, m, 4 * d, d);
        subtract_norm(s, l->mlp_in, l->mlp_scale, 2 * at + 1, row);

        gradient(grad_out, l->mixed + row * d, grad_of(s, at, ATTN_OUT), m, d, d, add);
        linear(grad_out, attn_out, s->grad_branch, m, d, d);
        int64_t kept = row / z->context * z->heads * attention_kept(z->context, head);
        attention_backward(l->heads + kept, s->cos, s->sin, l->heads_scale + 2 * row * z->heads,
                           l->inverse_sums + row * z->heads, l->mixed + row * d, s->grad_branch, s->qkv, s->scratch,
                           z->chunk, z->context, z->heads, head);
        gradient(s->qkv, l->attn_in + row * d, grad_of(s, at, QKV), m, 3 * d, d, add);
        linear(s->qkv, qkv, s->grad_branch, m, 3 * d, d);
        subtract_norm(s, l->attn_in, l->attn_scale, 2 * at, row);
    }
}

static void embedding_backward(const step *s, const int64_t *inputs) {
    const sizes *z = &s->z;
    int64_t d = z->width, rows = z->group * z->context;
    float *grad = s->grads[0];
    if (s->first_group)
        memset(grad, 0, sizeof(float) * z->vocab * d);
    memset(s->grad_stream, 0, sizeof(float) * rows * d);
    norm_backward(s->grad_out, s->embedded, s->embedded_scale, s->grad_stream, NULL, 0, 0, s->stream, rows, d);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < d; i++) grad[inputs[row] * d + i] += s->grad_stream[row * d + i];
}

/* ---- What native.py calls ---- */

/* Columns of the tables of cos and sin. */
int64_t padded_head(int64_t d) { return up(d, WIDTH); }

int64_t workspace_floats(const sizes *z) {
    step s = {.z = *z};
    return lay_out(&s, NULL, NULL);
}

/* Losses (sequences, context) of inputs and targets of that shape, sequences a multiple of the group's; with `grads`,
   which wants exactly a batch, the gradients of their mean too. Weights and gradients come in the order of the model's
   parameters. `state` is that of the random bits, NULL without dropout; `bits` has room for all masks of a step. The
   workspace is zero at first. Returns 0, -1 where memory is short, or -2 where a token lies outside the
   vocabulary. */
int32_t run(const sizes *z, const float *const *weights, float *const *grads, const float *cos, const float *sin,
            const int64_t *inputs, const int64_t *targets, float *losses, int64_t sequences, uint64_t *state,
            int16_t *bits, int32_t below, float by, float *workspace) {
    for (int64_t i = 0; i < sequences * z->context; i++)
        if (inputs[i] < 0 || inputs[i] >= z->vocab || targets[i] < 0 || targets[i] >= z->vocab)
            return -2;
    layer *layers = malloc(sizeof(layer) * z->layers);
    if (!layers)
        return -1;
    step s = {.z = *z, .weights = weights, .grads = grads, .cos = cos, .sin = sin, .below = below, .by = by};
    lay_out(&s, layers, workspace);
    int64_t mask_size = z->batch * z->context * z->width;
    if (state)
        for (int64_t i = 0; i < 1 + 2 * z->layers; i++) random_bits(state, bits + i * mask_size, mask_size);
    for (int64_t first = 0; first < sequences; first += z->group) {
        int64_t row = first * z->context;
        s.first_group = first == 0 || s.packed_stride == 0;
        s.bits = state ? bits + row * z->width : NULL;
        forward(&s, inputs + row);
        if (grads) {
            head_backward(&s, targets + row, losses + row);
            for (int64_t at = z->layers - 1; at >= 0; at--) layer_backward(&s, at);
            embedding_backward(&s, inputs + row);
        } else {
            head_loss(&s, targets + row, losses + row);
        }
    }
    free(layers);
    return 0;
}
