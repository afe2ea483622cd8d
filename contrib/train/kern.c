/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kern - the row operations of training, on buffers of PyTorch's; called by fused.py
 *
 * A matrix product is left to PyTorch; what stands between two of them is one pass over memory
 * here, where PyTorch would make five to ten. plain.py defines every operation, test-train.py holds
 * these to it. `half` is bfloat16: the upper half of a float. Sums are in float.
 *
 * Build: gcc -O3 -march=native -ffast-math -fopenmp-simd -shared -fPIC kern.c -lm
 */

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t half;

enum {
    MAX_HEAD = 512, /* values of one head */
    MAX_ROW = 4096, /* values of one row: width, positions, or vocabulary */
};

static inline float from_half(half x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;

    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline half to_half(float f) { /* to nearest, ties to even; no NaN comes here */
    uint32_t bits;

    memcpy(&bits, &f, sizeof bits);
    return (half)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* @n values from offset @at of a buffer of floats or halves */
static void load(float *to, const void *from, bool is_half, size_t at, size_t n) {
    if (is_half) {
        const half *p = (const half *)from + at;
        for (size_t i = 0; i < n; i++)
            to[i] = from_half(p[i]);
    } else {
        memcpy(to, (const float *)from + at, n * sizeof *to);
    }
}

static void store(void *to, bool is_half, size_t at, const float *from, size_t n) {
    if (is_half) {
        half *p = (half *)to + at;
        for (size_t i = 0; i < n; i++)
            p[i] = to_half(from[i]);
    } else {
        memcpy((float *)to + at, from, n * sizeof *from);
    }
}

static float inverse_rms(const float *x, size_t n, float eps) {
    float sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    return 1.0f / sqrtf(sum / (float)n + eps);
}

/* y [n][d] = x [n][d] / rms(x), times w [d] if there is one; inv [n] is kept for the way back */
void norm_forward(const void *x, bool x_half, const float *w, void *y, bool y_half, float *inv,
                  size_t n, size_t d, float eps) {
    float a[MAX_ROW];

    for (size_t i = 0; i < n; i++) {
        load(a, x, x_half, i * d, d);
        float k = inverse_rms(a, d, eps);
        inv[i] = k;
        if (w)
            for (size_t j = 0; j < d; j++)
                a[j] *= k * w[j];
        else
            for (size_t j = 0; j < d; j++)
                a[j] *= k;
        store(y, y_half, i * d, a, d);
    }
}

/* One row back through the norm: @g is the gradient of the output and becomes that of the input, @x
 * is the input. @gw collects the gradient of @w. */
static void norm_row_back(float *g, float *x, float inv, const float *w, float *gw, size_t d) {
    float mean = 0;

    for (size_t j = 0; j < d; j++)
        x[j] *= inv;
    if (w) {
        for (size_t j = 0; j < d; j++) {
            gw[j] += g[j] * x[j];
            g[j] *= w[j];
        }
    }
    for (size_t j = 0; j < d; j++)
        mean += g[j] * x[j];
    mean /= (float)d;
    for (size_t j = 0; j < d; j++)
        g[j] = (g[j] - x[j] * mean) * inv;
}

/* gy has the type of y, gx that of x; gw [d] begins as zeros */
void norm_backward(const void *gy, bool y_half, const void *x, bool x_half, const float *inv,
                   const float *w, void *gx, float *gw, size_t n, size_t d) {
    float a[MAX_ROW], g[MAX_ROW];

    for (size_t i = 0; i < n; i++) {
        load(a, x, x_half, i * d, d);
        load(g, gy, y_half, i * d, d);
        norm_row_back(g, a, inv[i], w, gw, d);
        store(gx, x_half, i * d, g, d);
    }
}

/* Turn the pairs (x[j], x[j + d/2]) by the angles of one position; @sign is -1 on the way back. */
static void rotate(float *x, const float *cosine, const float *sine, float sign, size_t d) {
    size_t h = d / 2;

    for (size_t j = 0; j < h; j++) {
        float a = x[j], b = x[j + h], s = sign * sine[j];
        x[j] = a * cosine[j] - b * s;
        x[j + h] = b * cosine[j] + a * s;
    }
}

/* Heads of a projection: norm, rotation (if @cosine), and from [batch][t][head][d] to
 * [batch][head][t][d]. cosine, sine: [t][d/2]; inv: [batch][t][head] */
void heads_forward(const half *x, const float *w, const float *cosine, const float *sine, half *y,
                   float *inv, size_t n_batch, size_t n_t, size_t n_head, size_t d, float eps) {
    float a[MAX_HEAD];

    for (size_t b = 0; b < n_batch; b++) {
        for (size_t t = 0; t < n_t; t++) {
            for (size_t h = 0; h < n_head; h++) {
                size_t from = (b * n_t + t) * n_head + h, to = (b * n_head + h) * n_t + t;

                norm_forward(x + from * d, true, w, a, false, inv + from, 1, d, eps);
                if (cosine)
                    rotate(a, cosine + t * (d / 2), sine + t * (d / 2), 1, d);
                store(y, true, to * d, a, d);
            }
        }
    }
}

void heads_backward(const half *gy, const half *x, const float *inv, const float *w,
                    const float *cosine, const float *sine, half *gx, float *gw, size_t n_batch,
                    size_t n_t, size_t n_head, size_t d) {
    float a[MAX_HEAD], g[MAX_HEAD];

    for (size_t b = 0; b < n_batch; b++) {
        for (size_t t = 0; t < n_t; t++) {
            for (size_t h = 0; h < n_head; h++) {
                size_t from = (b * n_t + t) * n_head + h, to = (b * n_head + h) * n_t + t;

                load(a, x, true, from * d, d);
                load(g, gy, true, to * d, d);
                if (cosine)
                    rotate(g, cosine + t * (d / 2), sine + t * (d / 2), -1, d);
                norm_row_back(g, a, inv[from], w, gw, d);
                store(gx, true, from * d, g, d);
            }
        }
    }
}

/* The positions that position @t sees begin here; window 0 is none. */
static size_t first_seen(size_t t, size_t window) {
    return window && t + 1 > window ? t + 1 - window : 0;
}

/* Softmax in place over the positions seen; s [n][t], row i belongs to position i % t */
void softmax_forward(half *s, size_t n, size_t n_t, size_t window) {
    float a[MAX_ROW];

    for (size_t i = 0; i < n; i++) {
        half *row = s + i * n_t;
        size_t t = i % n_t, lo = first_seen(t, window), m = t + 1 - lo;
        float most = -INFINITY, sum = 0;

        load(a, row, true, lo, m);
        for (size_t j = 0; j < m; j++)
            most = a[j] > most ? a[j] : most;
        for (size_t j = 0; j < m; j++) {
            a[j] = expf(a[j] - most);
            sum += a[j];
        }
        sum = 1.0f / sum;
        for (size_t j = 0; j < m; j++)
            a[j] *= sum;
        store(row, true, lo, a, m);
        memset(row, 0, lo * sizeof *row);
        memset(row + t + 1, 0, (n_t - t - 1) * sizeof *row);
    }
}

/* g: in, the gradient of p = softmax(s); out, that of s */
void softmax_backward(const half *p, half *g, size_t n, size_t n_t, size_t window) {
    float a[MAX_ROW], b[MAX_ROW];

    for (size_t i = 0; i < n; i++) {
        half *row = g + i * n_t;
        size_t t = i % n_t, lo = first_seen(t, window), m = t + 1 - lo;
        float dot = 0;

        load(a, p + i * n_t, true, lo, m);
        load(b, row, true, lo, m);
        for (size_t j = 0; j < m; j++)
            dot += a[j] * b[j];
        for (size_t j = 0; j < m; j++)
            b[j] = a[j] * (b[j] - dot);
        store(row, true, lo, b, m);
        memset(row, 0, lo * sizeof *row);
        memset(row + t + 1, 0, (n_t - t - 1) * sizeof *row);
    }
}

static inline float tanh_(float x) { /* saturates long before expf() overflows */
    float e = expf(2 * (x > 15 ? 15 : x < -15 ? -15 : x));

    return (e - 1) / (e + 1);
}

#define GELU_A 0.7978845608f /* sqrt(2 / pi) */
#define GELU_B 0.044715f

/* h [n][f] = gelu(gate) * up; gate and up are rows of @stride values */
void gate_forward(const half *gate, const half *up, size_t stride, half *h, size_t n, size_t f) {
    for (size_t i = 0; i < n; i++) {
        const half *a = gate + i * stride, *b = up + i * stride;
        half *o = h + i * f;

        for (size_t j = 0; j < f; j++) {
            float x = from_half(a[j]);
            float t = tanh_(GELU_A * (x + GELU_B * x * x * x));
            o[j] = to_half(0.5f * x * (1 + t) * from_half(b[j]));
        }
    }
}

/* g_gate and g_up are rows of @stride values too */
void gate_backward(const half *gh, const half *gate, const half *up, size_t stride, half *g_gate,
                   half *g_up, size_t n, size_t f) {
    for (size_t i = 0; i < n; i++) {
        const half *a = gate + i * stride, *b = up + i * stride, *g = gh + i * f;
        half *ga = g_gate + i * stride, *gb = g_up + i * stride;

        for (size_t j = 0; j < f; j++) {
            float x = from_half(a[j]), d = from_half(g[j]);
            float t = tanh_(GELU_A * (x + GELU_B * x * x * x));
            float inner = GELU_A * (1 + 3 * GELU_B * x * x);
            ga[j] =
                to_half(d * from_half(b[j]) * (0.5f * (1 + t) + 0.5f * x * (1 - t * t) * inner));
            gb[j] = to_half(d * 0.5f * x * (1 + t));
        }
    }
}

/* out [n][d] = sum over k of weight [n][k] * y [at[n][k]][d]; y lies in the order of the experts */
void scatter_forward(const half *y, const int64_t *at, const float *weight, float *out, size_t n,
                     size_t n_k, size_t d) {
    for (size_t i = 0; i < n; i++) {
        float *o = out + i * d;

        memset(o, 0, d * sizeof *o);
        for (size_t k = i * n_k; k < (i + 1) * n_k; k++) {
            const half *row = y + (size_t)at[k] * d;
            for (size_t j = 0; j < d; j++)
                o[j] += weight[k] * from_half(row[j]);
        }
    }
}

void scatter_backward(const float *g, const half *y, const int64_t *at, const float *weight,
                      half *gy, float *g_weight, size_t n, size_t n_k, size_t d) {
    for (size_t i = 0; i < n; i++) {
        const float *a = g + i * d;

        for (size_t k = i * n_k; k < (i + 1) * n_k; k++) {
            const half *row = y + (size_t)at[k] * d;
            half *o = gy + (size_t)at[k] * d;
            float dot = 0;

            for (size_t j = 0; j < d; j++) {
                dot += a[j] * from_half(row[j]);
                o[j] = to_half(a[j] * weight[k]);
            }
            g_weight[k] = dot;
        }
    }
}

/* Cross entropy of cap * tanh(z / cap) against y [n]; z [n][v] becomes its gradient times @scale */
void loss(half *z, const int64_t *y, float *nll, size_t n, size_t v, float cap, float scale) {
    float t[MAX_ROW], e[MAX_ROW];

    for (size_t i = 0; i < n; i++) {
        half *row = z + i * v;
        size_t want = (size_t)y[i];
        float sum = 0;

        for (size_t j = 0; j < v; j++) {
            t[j] = tanh_(from_half(row[j]) / cap);
            e[j] = expf(cap * t[j] - cap); /* no logit is above the cap */
            sum += e[j];
        }
        nll[i] = logf(sum) + cap - cap * t[want];
        float inv = 1.0f / sum, p = e[want] * inv;
        for (size_t j = 0; j < v; j++)
            row[j] = to_half(e[j] * inv * (1 - t[j] * t[j]) * scale);
        row[want] = to_half((p - 1) * (1 - t[want] * t[want]) * scale);
    }
}

double sum_of_squares(const void *g, bool is_half, size_t n) {
    float a[MAX_ROW];
    double sum = 0;

    for (size_t at = 0; at < n; at += MAX_ROW) {
        size_t m = n - at < MAX_ROW ? n - at : MAX_ROW;
        float part = 0;

        load(a, g, is_half, at, m);
        for (size_t j = 0; j < m; j++)
            part += a[j] * a[j];
        sum += part;
    }
    return sum;
}

struct adamw {
    float rate, beta1, beta2, eps, decay;
    float bias1, bias2; /* 1 - beta^t */
    float scale;        /* of the gradient: clipping */
};

/* One step of @n values; @low, if there, is the copy in bfloat16 that the model computes with. */
void adamw(const struct adamw *o, float *p, half *low, const void *g, bool g_half, float *m,
           float *v, size_t n) {
    float a[MAX_ROW], rate = o->rate / o->bias1, keep = 1 - o->rate * o->decay;

    for (size_t at = 0; at < n; at += MAX_ROW) {
        size_t k = n - at < MAX_ROW ? n - at : MAX_ROW;

        load(a, g, g_half, at, k);
        for (size_t j = 0; j < k; j++) {
            float d = a[j] * o->scale;
            float mj = o->beta1 * m[at + j] + (1 - o->beta1) * d;
            float vj = o->beta2 * v[at + j] + (1 - o->beta2) * d * d;

            m[at + j] = mj;
            v[at + j] = vj;
            p[at + j] = p[at + j] * keep - rate * mj / (sqrtf(vj / o->bias2) + o->eps);
        }
        if (low)
            store(low, true, at, p + at, k);
    }
}
