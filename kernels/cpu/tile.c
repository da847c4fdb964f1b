/* tile.c - tile primitives of attention: the naive formula in f32, and the choice of an instruction set.
 *
 * attention.h says what each computes and what must hold. This is the reference that the vector forms are
 * tested beside, and the only form on processors that have neither AVX2 nor AVX-512. */
#include <limits.h>
#include <math.h>

#include "kernels/cpu/attention.h"
#include "runtime/base/die.h"

const char tile_zero_row[2 * TILE_MAX_E * sizeof(float)] __attribute__((aligned(64)));

static inline float element(const char *p, int i, enum dtype type)
{
    if (type == DTYPE_F32) {
        float x;
        memcpy(&x, p + 4 * (size_t)i, 4);
        return x;
    }
    uint16_t h;
    memcpy(&h, p + 2 * (size_t)i, 2);
    return type == DTYPE_BF16 ? dtype_f32_from_bf16(h) : dtype_f32_from_f16(h);
}

static void dots(float *s, size_t s_stride, const float *q, size_t q_stride, int n_q, const char *const *row,
                 const char *const *ahead, int c0, int c1, int width, enum dtype type)
{
    (void)ahead; /* a hint */
    for (int c = c0; c < c1; c++) {
        float k[2 * TILE_MAX_E];
        for (int e = 0; e < width; e++) k[e] = element(row[c], e, type);
        for (int i = 0; i < n_q; i++) {
            float sum = 0;
            for (int e = 0; e < width; e++) sum += q[(size_t)i * q_stride + (size_t)e] * k[e];
            s[(size_t)i * s_stride + (size_t)c] = sum;
        }
    }
}

static void load_keys(float *kt, const char *const *row, size_t byte_offset, int n_cols, int n_e,
                      enum dtype type)
{
    for (int c = 0; c < n_cols; c++)
        for (int e = 0; e < n_e; e++) kt[e * TILE_COLS + c] = element(row[c] + byte_offset, e, type);
}

static void scores(float *s, size_t s_stride, const float *q, size_t q_stride, int n_q, const float *kt,
                   int n_e, int c0, int c1, bool add)
{
    for (int i = 0; i < n_q; i++) {
        float *si = s + (size_t)i * s_stride;
        if (!add)
            for (int c = c0; c < c1; c++) si[c] = 0;
        for (int e = 0; e < n_e; e++) {
            float qe = q[(size_t)i * q_stride + (size_t)e];
            for (int c = c0; c < c1; c++) si[c] += qe * kt[e * TILE_COLS + c];
        }
    }
}

static void weigh(float *s, size_t s_stride, int n_q, int n, float scale, float *ml, float *factor)
{
    for (int i = 0; i < n_q; i++, s += s_stride, ml += 2) {
        float m = ml[0];
        for (int c = 0; c < n; c++) m = s[c] * scale > m ? s[c] * scale : m;
        factor[i] = tile_move(ml, m);
        float shift = m > -INFINITY ? m : 0;
        for (int c = 0; c < n; c++) {
            s[c] = expf(s[c] * scale - shift);
            ml[1] += s[c];
        }
    }
}

static void add_rows(float *o, size_t o_stride, const float *p, size_t p_stride, int n_q,
                     const char *const *row, int n, int E, enum dtype type)
{
    for (int t = 0; t < n; t++) {
        float v[TILE_MAX_E];
        for (int e = 0; e < E; e++) v[e] = element(row[t], e, type);
        for (int i = 0; i < n_q; i++) {
            float w = p[(size_t)i * p_stride + (size_t)t];
            for (int e = 0; e < E; e++) o[(size_t)i * o_stride + (size_t)e] += w * v[e];
        }
    }
}

static void values(float *o, size_t o_stride, const float *p, size_t p_stride, int n_q,
                   const char *const *row, int n, int E)
{
    add_rows(o, o_stride, p, p_stride, n_q, row, n, E, DTYPE_F32);
}

/* The rows of a four, as columns have them. */
static void rows_of(const char *row[4], const char *four, int E, enum dtype type)
{
    for (int r = 0; r < 4; r++) row[r] = four + ROW_ORDER[r] * (size_t)E * dtype_bytes(type);
}

static void dots_fours(float *s, size_t s_stride, const float *q, size_t q_stride, int n_q,
                       const char *const *four, int n, const struct tile_asks *asks, int E, enum dtype type)
{
    (void)asks; /* hints */
    for (int i = 0; i < n; i++) {
        const char *row[4];
        rows_of(row, four[i], E, type);
        dots(s + 4 * i, s_stride, q, q_stride, n_q, row, NULL, 0, 4, E, type);
    }
}

static void values_fours(float *o, size_t o_stride, const float *p, size_t p_stride, int n_q,
                         const char *const *four, int n, const struct tile_asks *asks, int E, enum dtype type)
{
    (void)asks;
    for (int i = 0; i < n; i++) {
        const char *row[4];
        rows_of(row, four[i], E, type);
        add_rows(o, o_stride, p + 4 * i, p_stride, n_q, row, 4, E, type);
    }
}

static void scale_by(float *x, int n, float f)
{
    for (int i = 0; i < n; i++) x[i] *= f;
}

static void widen(float *x, const char *from, int n, enum dtype type)
{
    for (int i = 0; i < n; i++) x[i] = element(from, i, type);
}

static void narrow(char *to, const float *x, int n, enum dtype type)
{
    if (type == DTYPE_F32) memcpy(to, x, (size_t)n * sizeof(float));
    for (int i = 0; i < n && type != DTYPE_F32; i++) {
        uint16_t h = type == DTYPE_BF16 ? dtype_bf16_from_f32(x[i]) : dtype_f16_from_f32(x[i]);
        memcpy(to + 2 * (size_t)i, &h, 2);
    }
}

static int count_at_least(const int32_t *key, int n, int32_t limit)
{
    int count = 0;
    for (int i = 0; i < n; i++) count += key[i] >= limit;
    return count;
}

static float largest(const float *x, int n)
{
    float most = 0;
    for (int e = 0; e < n; e++) most = fabsf(x[e]) > most ? fabsf(x[e]) : most;
    return most;
}

static int32_t code(int8_t *to, int8_t *abs, const float *x, int n, float scale)
{
    int32_t sum = 0;
    for (int e = 0; e < n; e++) {
        float f = x[e] / scale;
        f = f < 127 ? f : 127;
        f = f > -127 ? f : -127;
        int k = (int)lrintf(f);
        to[e] = (int8_t)k;
        abs[e] = (int8_t)(k < 0 ? -k : k);
        sum += k;
    }
    return sum;
}

static void code_scores(float *s, size_t s_stride, const struct tile_codes *q, const struct tile_run *run,
                        int n_runs, int n_ahead, float alpha)
{
    int half = q->E / 2;
    (void)n_ahead;
    for (int r = 0; r < n_runs; r++)
        for (int j = 0; j < run[r].n; j++, s++) {
            const char *row = run[r].codes + (size_t)j * tile_code_stride(q);
            uint16_t scale[2];
            memcpy(scale, run[r].scales + j * SUMMARY_SCALES_BYTES, sizeof scale);
            float scale_c = dtype_f32_from_bf16(scale[0]), scale_u = dtype_f32_from_bf16(scale[1]) * alpha;
            for (int i = 0; i < q->n_q; i++) {
                int32_t sum[2] = {0, 0};
                for (int e = 0; e < q->E; e++) {
                    int at = q->type == SUMMARY_Q8 || e < half ? e : q->length / 2 + e - half, code[2];
                    for (int v = 0; v < 2; v++) { /* the middle, the half-width */
                        if (q->type == SUMMARY_Q8) code[v] = (signed char)row[v * q->E + e];
                        else code[v] = (unsigned char)row[v * half + e % half] >> (e < half ? 0 : 4) & 15;
                    }
                    if (q->type == SUMMARY_Q4) code[0] -= 8;
                    sum[0] += q->q[i][at] * code[0];
                    sum[1] += q->abs[i][at] * code[1];
                }
                s[(size_t)i * s_stride] = ((float)sum[0] * scale_c + (float)sum[1] * scale_u) * q->scale[i];
            }
        }
}

static void powers(float *s, size_t s_stride, int n_q, int n, float *m, float *sum)
{
    for (int i = 0; i < n_q; i++, s += s_stride) {
        m[i] = -INFINITY;
        sum[i] = 0;
        for (int j = 0; j < n; j++) m[i] = s[j] > m[i] ? s[j] : m[i];
        float shift = m[i] > -INFINITY ? m[i] : 0;
        for (int j = 0; j < n; j++) {
            s[j] = exp2f(s[j] - shift);
            sum[i] += s[j];
        }
    }
}

static void order(int32_t *key, const float *s, size_t s_stride, const float *factor, int n_q, int n)
{
    for (int j = 0; j < n; j++) {
        float f = 0;
        for (int i = 0; i < n_q; i++) f += factor[i] * s[(size_t)i * s_stride + (size_t)j];
        int32_t k = (int32_t)dtype_f32_bits(f + 0.0f);
        k = f != f ? INT_MIN + 1 : k < 0 ? k ^ INT_MAX : k;
        memcpy(&key[j], &k, sizeof k); /* key may be s */
    }
}

int tile_list_between(int32_t *list, int room, int *over, const int32_t *key, int n, int32_t low,
                      int32_t high)
{
    int count = 0, above = 0;
    for (int j = 0; j < n; j++) { /* no branch on the key: which are taken cannot be guessed */
        if (count < room) list[count] = key[j];
        count += (key[j] >= low) & (key[j] <= high);
        above += key[j] > high;
    }
    *over = above;
    return count;
}

void tile_take_above(int32_t *index, int n_taken, const int32_t *key, int first, int32_t limit, int n_ties)
{
    for (int j = 0, taken = 0; taken < n_taken; j++) { /* no branch: which are taken cannot be guessed */
        bool tie = key[j] == limit;
        index[taken] = first + j;
        taken += (key[j] > limit) | (tie & (n_ties > 0));
        n_ties -= tie;
    }
}

const struct tile tile_portable = {
    .dots = dots,
    .dots_fours = dots_fours,
    .largest = largest,
    .code = code,
    .code_scores = code_scores,
    .load_keys = load_keys,
    .scores = scores,
    .weigh = weigh,
    .values = values,
    .values_fours = values_fours,
    .scale = scale_by,
    .widen = widen,
    .narrow = narrow,
    .powers = powers,
    .order = order,
    .count_at_least = count_at_least,
    .list_between = tile_list_between,
    .take_above = tile_take_above,
};

const struct tile *tile_of(enum cpu_isa isa)
{
#if defined(__x86_64__)
    if (isa >= CPU_ISA_AVX512) return &tile_avx512;
    if (isa == CPU_ISA_AVX2) return &tile_avx2;
#endif
    ASSERT(isa != CPU_ISA_AUTO);
    return &tile_portable;
}
