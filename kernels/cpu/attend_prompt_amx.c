/* attend_prompt_amx.c - attention of a prompt's rows by AMX tiles: what attend_prompt.c does per tile of 64 keys.
 *
 * Keys and values are bf16 already. A query, or a weight, is multiplied as the sum of two numbers of bf16, its upper 16
 * bits and what they leave, rounded: products keep 16 bits of both factors, sums are f32. The left operands are queries
 * and weights, the right ones keys, transposed, and values, two rows interleaved. Subnormal numbers count as 0.
 *
 * Invariant: rows of a tile are independent of each other, and a weight of 0 adds exactly 0 (values are finite). */
#include "kernels/cpu/amx.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/transpose_avx512.h"

enum { GROUPS = TILE_COLS / AMX_TILE, STEPS = TILE_COLS / AMX_STEP };

static void begin(void) { amx_configure(AMX_TILE); }
static void end(void) { _tile_release(); }

/* 32 numbers: their upper halves as bf16, and what these leave. */
static inline void split(char *high, char *low, __m512 x, __m512 y)
{
    const __m512i mask = _mm512_set1_epi32((int)0xffff0000u);
    __m512 xh = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), mask));
    __m512 yh = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(y), mask));
    _mm512_storeu_si512(high, (__m512i)_mm512_cvtne2ps_pbh(yh, xh));
    _mm512_storeu_si512(low, (__m512i)_mm512_cvtne2ps_pbh(_mm512_sub_ps(y, yh), _mm512_sub_ps(x, xh)));
}

static void queries(char *to, const float *q, int n_q, int E)
{
    int pieces = E / AMX_STEP;
    for (int i = 0; i < n_q; i++)
        for (int p = 0; p < pieces; p++, q += AMX_STEP) {
            char *high = to + (size_t)(2 * (i / AMX_TILE * pieces + p)) * AMX_TILE_BYTES +
                         i % AMX_TILE * AMX_ROW_BYTES;
            split(high, high + AMX_TILE_BYTES, _mm512_loadu_ps(q), _mm512_loadu_ps(q + AMX_TILE));
        }
}

static void keys(char *to, const char *const *key, int E)
{
    for (int g = 0; g < GROUPS; g++)
        for (int p = 0; p < E / AMX_STEP; p++, to += AMX_TILE_BYTES) {
            __m512i x[AMX_TILE];
#pragma GCC unroll 16
            for (int i = 0; i < AMX_TILE; i++)
                x[i] = _mm512_loadu_si512(key[g * AMX_TILE + i] + p * AMX_ROW_BYTES);
            transpose(x);
#pragma GCC unroll 16
            for (int i = 0; i < AMX_TILE; i++) _mm512_storeu_si512(to + i * AMX_ROW_BYTES, x[i]);
        }
}

static void values(char *to, const char *const *value, int E)
{
    const __m512i step = _mm512_set1_epi32(0x00010001);
    __m512i at = _mm512_set1_epi32(0x00200000), first, second; /* element 0 of two rows */
    __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    first = _mm512_add_epi32(at, _mm512_mullo_epi32(lane, step));
    second = _mm512_add_epi32(first, _mm512_set1_epi32(0x00100010));
    for (int s = 0; s < STEPS; s++)
        for (int p = 0; p < E / AMX_STEP; p++, to += 2 * AMX_TILE_BYTES)
            for (int i = 0; i < AMX_TILE; i++) {
                __m512i x = _mm512_loadu_si512(value[s * AMX_STEP + 2 * i] + p * AMX_ROW_BYTES);
                __m512i y = _mm512_loadu_si512(value[s * AMX_STEP + 2 * i + 1] + p * AMX_ROW_BYTES);
                _mm512_storeu_si512(to + i * AMX_ROW_BYTES, _mm512_permutex2var_epi16(x, first, y));
                _mm512_storeu_si512(to + AMX_TILE_BYTES + i * AMX_ROW_BYTES,
                                    _mm512_permutex2var_epi16(x, second, y));
            }
}

/* Two tiles of queries with two groups of 16 keys; q: high and low halves of each piece. */
static void score_tiles(float *s0, float *s1, const char *q0, const char *q1, const char *k0, const char *k1,
                        int pieces)
{
    enum { ROW = TILE_COLS * sizeof(float) };
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int p = 0; p < pieces; p++, k0 += AMX_TILE_BYTES, k1 += AMX_TILE_BYTES) {
        _tile_loadd(6, k0, AMX_ROW_BYTES);
        _tile_loadd(7, k1, AMX_ROW_BYTES);
        for (int half = 0; half < 2; half++, q0 += AMX_TILE_BYTES, q1 += AMX_TILE_BYTES) {
            _tile_loadd(4, q0, AMX_ROW_BYTES);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, q1, AMX_ROW_BYTES);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, s0, ROW);
    _tile_stored(1, s0 + AMX_TILE, ROW);
    _tile_stored(2, s1, ROW);
    _tile_stored(3, s1 + AMX_TILE, ROW);
}

static void score(float *score, const char *q, const char *k, int q0, int q1, int E)
{
    int pieces = E / AMX_STEP, last = (q1 + AMX_TILE - 1) / AMX_TILE;
    size_t q_tile = (size_t)(2 * pieces) * AMX_TILE_BYTES, k_group = (size_t)pieces * AMX_TILE_BYTES;
    AMX_STORED(q);
    AMX_STORED(k);
    for (int t = q0 / AMX_TILE; t < last; t += 2) {
        int u = t + 1 < last ? t + 1 : t; /* the last one twice */
        for (int g = 0; g < GROUPS; g += 2)
            score_tiles(score + t * AMX_TILE * TILE_COLS + g * AMX_TILE,
                        score + u * AMX_TILE * TILE_COLS + g * AMX_TILE, q + (size_t)t * q_tile,
                        q + (size_t)u * q_tile, k + (size_t)g * k_group, k + (size_t)(g + 1) * k_group,
                        pieces);
    }
}

/* o (16,E) += w v for four tiles of 16 elements, or two; w: high and low halves of each step. */
static void add_tiles(float *o, int E, const char *w, const char *v, int tiles, bool four)
{
    size_t row = (size_t)E * sizeof(float);
    _tile_loadd(0, o, row);
    _tile_loadd(1, o + AMX_TILE, row);
    if (four) {
        _tile_loadd(2, o + 2 * AMX_TILE, row);
        _tile_loadd(3, o + 3 * AMX_TILE, row);
    }
    for (int s = 0; s < STEPS; s++, w += 2 * AMX_TILE_BYTES, v += tiles * AMX_TILE_BYTES) {
        _tile_loadd(4, w, AMX_ROW_BYTES);
        _tile_loadd(5, w + AMX_TILE_BYTES, AMX_ROW_BYTES);
        _tile_loadd(6, v, AMX_ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(0, 5, 6);
        _tile_loadd(7, v + AMX_TILE_BYTES, AMX_ROW_BYTES);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(1, 5, 7);
        if (!four) continue;
        _tile_loadd(6, v + 2 * AMX_TILE_BYTES, AMX_ROW_BYTES);
        _tile_dpbf16ps(2, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, v + 3 * AMX_TILE_BYTES, AMX_ROW_BYTES);
        _tile_dpbf16ps(3, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, o, row);
    _tile_stored(1, o + AMX_TILE, row);
    if (four) {
        _tile_stored(2, o + 2 * AMX_TILE, row);
        _tile_stored(3, o + 3 * AMX_TILE, row);
    }
}

static void add(float *o, const float *weight, const char *v, int q0, int q1, int E)
{
    char w[2 * STEPS * AMX_TILE_BYTES] __attribute__((aligned(64)));
    int tiles = E / AMX_TILE;
    for (int t = q0 / AMX_TILE * AMX_TILE; t < q1; t += AMX_TILE) {
        for (int i = 0; i < AMX_TILE; i++)
            for (int s = 0; s < STEPS; s++) {
                char *high = w + 2 * s * AMX_TILE_BYTES + i * AMX_ROW_BYTES;
                const float *p = weight + (t + i) * TILE_COLS + s * AMX_STEP;
                if (t + i >= q0 && t + i < q1)
                    split(high, high + AMX_TILE_BYTES, _mm512_loadu_ps(p), _mm512_loadu_ps(p + AMX_TILE));
                else split(high, high + AMX_TILE_BYTES, _mm512_setzero_ps(), _mm512_setzero_ps());
            }
        AMX_STORED(w);
        for (int e = 0; e < tiles; e += 4)
            add_tiles(o + (size_t)t * (size_t)E + e * AMX_TILE, E, w, v + e * AMX_TILE_BYTES, tiles,
                      tiles - e >= 4);
    }
}

const struct prompt_tiles attend_prompt_amx = {
    .begin = begin,
    .end = end,
    .queries = queries,
    .keys = keys,
    .values = values,
    .score = score,
    .add = add,
};
