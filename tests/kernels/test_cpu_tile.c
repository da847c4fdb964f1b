/* test_cpu_tile.c - the tile primitives of CPU attention, each instruction set against double precision, and
 * roundings against runtime/base/dtype.h to the bit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/cpu/attention.h"

static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
static uint64_t state = 1;

static uint32_t random_bits(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static float unit(void) { return (float)(int32_t)random_bits() * 0x1p-31f; }

/* The instruction sets of this machine, one after the other; NULL at the end. */
static const struct tile *tile_number(int i)
{
    for (enum cpu_isa isa = CPU_ISA_PORTABLE; isa < CPU_ISA_COUNT; isa++) {
        struct device *d;
        struct device_options o = {.n_threads = 1, .isa = isa};
        struct reason why;
        if (device_open(&d, DEVICE_CPU, &o, &why) != STATUS_OK) continue;
        device_close(d);
        if (i-- == 0) return tile_of(isa);
    }
    return NULL;
}

/* n elements of random numbers of a type, written to `row` through a pointer that is not aligned; as double
 * in x. */
static void fill_row(char *row, double *x, int n, enum dtype type)
{
    for (int e = 0; e < n; e++) {
        float f = unit();
        uint16_t h = type == DTYPE_BF16 ? dtype_bf16_from_f32(f) : dtype_f16_from_f32(f);
        if (type == DTYPE_F32) memcpy(row + 4 * e, &f, 4);
        else memcpy(row + 2 * e, &h, 2);
        x[e] = (double)(type == DTYPE_F32    ? f
                        : type == DTYPE_BF16 ? dtype_f32_from_bf16(h)
                                             : dtype_f32_from_f16(h));
    }
}

enum { ROWS = 64, WIDTH = 2 * TILE_MAX_E, QUERIES = 13 };

static char memory[ROWS * (WIDTH * 4 + 2)];
static double row_value[ROWS][WIDTH];
static const char *row_at[ROWS], *four_at[ROWS / 4 + TILE_AGAIN_TWICE];
static float query[QUERIES * WIDTH], got[QUERIES * ROWS + 64];

/* Fours of rows, and these one by one in the order of a four's columns. */
static void fill_rows(int width, enum dtype type)
{
    for (int i = 0; i < ROWS / 4 + TILE_AGAIN_TWICE; i++)
        four_at[i] = memory + (size_t)(i * 5 % (ROWS / 4)) * (4 * WIDTH * 4 + 2) + 2;
    for (int r = 0; r < ROWS; r++) {
        row_at[r] = four_at[r / 4] + (size_t)(ROW_ORDER[r % 4] * width) * dtype_bytes(type);
        fill_row((char *)(uintptr_t)row_at[r], row_value[r], width, type);
    }
    for (int i = 0; i < QUERIES * WIDTH; i++) query[i] = unit();
}

static void fill_nan(float *p, int n)
{
    for (int i = 0; i < n; i++) p[i] = NAN;
}

/* Columns [c0,c1) of got (n_q,ROWS) are the products; all others are still NaN. */
static void expect_products(int n_q, int c0, int c1, int width)
{
    for (int i = 0; i < n_q; i++)
        for (int c = 0; c < ROWS; c++) {
            float g = got[i * ROWS + c];
            if (c < c0 || c >= c1) {
                assert_true(isnan(g));
                continue;
            }
            double x = 0;
            for (int e = 0; e < width; e++) x += (double)query[i * WIDTH + e] * row_value[c][e];
            if (!(fabs((double)g - x) < 1e-6 * width))
                fail_msg("query %d column %d of width %d: got %.9g, expected %.9g", i, c, width, (double)g,
                         x);
        }
    for (int i = n_q * ROWS; i < QUERIES * ROWS + 64; i++) assert_true(isnan(got[i]));
}

static void test_products(void **unused)
{
    (void)unused;
    static const int widths[] = {2, 6, 30, 32, 34, 64, 80, 96, 128, 130, 256, 512};
    const struct tile *tile;
    for (int k = 0; (tile = tile_number(k)); k++)
        for (int t = 0; t < 3; t++)
            for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
                int width = widths[w];
                fill_rows(width, types[t]);
                for (int n_q = 1; n_q <= QUERIES; n_q += n_q < 8 ? 1 : 5) {
                    int c0 = (int)(random_bits() % 8) * 4, c1 = c0 + 4 + (int)(random_bits() % 8) * 4;
                    fill_nan(got, QUERIES * ROWS + 64);
                    tile->dots(got, ROWS, query, WIDTH, n_q, row_at, row_at, c0, c1, width, types[t]);
                    expect_products(n_q, c0, c1, width);

                    if (width <= TILE_MAX_E) {
                        struct tile_asks asks = {four_at, four_at, n_q % 2};
                        fill_nan(got, QUERIES * ROWS + 64);
                        tile->dots_fours(got, ROWS, query, WIDTH, n_q, four_at, c1 / 4,
                                         n_q % 3 ? &asks : NULL, width, types[t]);
                        expect_products(n_q, 0, c1, width);
                    }

                    float kt[TILE_DEPTH * TILE_COLS];
                    fill_nan(got, QUERIES * ROWS + 64);
                    c0 = c0 / 16 * 16;
                    c1 = (c1 + 15) / 16 * 16;
                    for (int e = 0; e < width; e += TILE_DEPTH) {
                        int n_e = width - e < TILE_DEPTH ? width - e : TILE_DEPTH;
                        tile->load_keys(kt, row_at, (size_t)e * dtype_bytes(types[t]), ROWS, n_e, types[t]);
                        tile->scores(got, ROWS, query + e, WIDTH, n_q, kt, n_e, c0, c1, e > 0);
                    }
                    expect_products(n_q, c0, c1, width);
                }
            }
}

static void test_values(void **unused)
{
    (void)unused;
    static const int widths[] = {2, 6, 16, 40, 64, 80, 96, 128, 256};
    static float p[QUERIES * ROWS], o[QUERIES * WIDTH];
    const struct tile *tile;
    for (int k = 0; (tile = tile_number(k)); k++)
        for (int t = 0; t < 3; t++)
            for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
                for (int n_q = 1; n_q <= 2 * QUERIES; n_q++) {
                    bool fours = n_q > QUERIES || types[t] != DTYPE_F32;
                    int n_o = n_q > QUERIES ? n_q - QUERIES : n_q, E = widths[w],
                        n = (int)(random_bits() % ROWS);
                    if (fours) n -= n % 4;
                    fill_rows(E, types[t]);
                    fill_nan(p, QUERIES * ROWS);
                    fill_nan(o, QUERIES * WIDTH);
                    for (int i = 0; i < n_o; i++) {
                        for (int r = 0; r < n; r++) p[i * ROWS + r] = unit();
                        for (int e = 0; e < E; e++) o[i * WIDTH + e] = 1;
                    }
                    struct tile_asks asks = {four_at, four_at, n_q % 2};
                    if (!fours) tile->values(o, WIDTH, p, ROWS, n_o, row_at, n, E);
                    else
                        tile->values_fours(o, WIDTH, p, ROWS, n_o, four_at, n / 4, n_q % 3 ? &asks : NULL, E,
                                           types[t]);
                    for (int i = 0; i < QUERIES; i++)
                        for (int e = 0; e < WIDTH; e++) {
                            double x = 1;
                            for (int r = 0; r < n; r++) x += (double)p[i * ROWS + r] * row_value[r][e];
                            if (i >= n_o || e >= E) assert_true(isnan(o[i * WIDTH + e]));
                            else assert_true(fabs((double)o[i * WIDTH + e] - x) < 3e-5);
                        }
                }
}

/* Weights within two units in the last place of e^x wherever the result is a normal number; the sum beside
 * them. */
static void test_weights(void **unused)
{
    (void)unused;
    const struct tile *tile;
    static float s[4096];
    float factor[3];
    for (int k = 0; (tile = tile_number(k)); k++) {
        double worst = 0;
        for (int round = 0; round < 200; round++) {
            float x[4096], ml[2] = {-INFINITY, 0};
            double sum = 0;
            for (int i = 0; i < 4096; i++) {
                s[i] = x[i] = i ? -fabsf(unit()) * (round % 2 ? 86.0f : 1.0f) : 0;
                sum += exp((double)x[i]);
            }
            tile->weigh(s, 0, 1, 4096, 1, ml, factor);
            for (int i = 0; i < 4096; i++) {
                double e = exp((double)x[i]), ulp = ldexp(1, ilogb(e) - 23);
                worst = fmax(worst, fabs((double)s[i] - e) / ulp);
            }
            assert_true(ml[0] == 0 && factor[0] == 1 && fabs((double)ml[1] - sum) < 1e-5 * sum);
        }
        if (worst > 2) fail_msg("e^x is off by %.2f units in the last place", worst);
    }
}

/* The running maximum moves or stays; -inf weighs nothing, NaN is not hidden. */
static void test_maximum(void **unused)
{
    (void)unused;
    const struct tile *tile;
    for (int k = 0; (tile = tile_number(k)); k++) {
        float s[3 * 32], ml[6] = {-INFINITY, 0, 5, 2, 1, 3}, factor[3];
        for (int i = 0; i < 96; i++) s[i] = i % 32 < 20 ? (float)(i % 32) : -INFINITY;
        tile->weigh(s, 32, 3, 32, 0.25f, ml, factor);
        static const float old[] = {0, 2, 3}, top[] = {4.75f, 5, 4.75f};
        for (int i = 0; i < 3; i++) {
            double sum = (double)(old[i] * factor[i]);
            for (int c = 0; c < 32; c++) {
                double e = c < 20 ? exp(c * 0.25 - (double)top[i]) : 0;
                assert_true(fabs((double)s[i * 32 + c] - e) <= 1e-6 * e);
                sum += e;
            }
            assert_true(ml[2 * i] == top[i] && fabs((double)ml[2 * i + 1] - sum) < 1e-5);
        }
        assert_true(factor[0] == 1 && factor[1] == 1 && fabs((double)factor[2] - exp(-3.75)) < 1e-7);
        for (int i = 0; i < 96; i++) s[i] = i < 32 ? -INFINITY : i < 64 ? NAN : i == 70 ? NAN : -200;
        float fresh[6] = {-INFINITY, 0, -INFINITY, 0, 0, 1};
        tile->weigh(s, 32, 3, 32, 1, fresh, factor);
        assert_true(fresh[0] == -INFINITY && fresh[1] == 0 && s[0] == 0);
        assert_true(isnan(fresh[3]) && isnan(fresh[5]) && s[64] == 0 && isnan(s[70]));
    }
}

static bool same_number(uint32_t a, uint32_t b)
{
    return a == b || (isnan(dtype_f32_from_bits(a)) && isnan(dtype_f32_from_bits(b)));
}

static void test_conversions(void **unused)
{
    (void)unused;
    const struct tile *tile;
    static const uint32_t edges[] = {0,          1,          0x7fff,     0x8000,     0x8001,     0x17fff,
                                     0x18000,    0x33000000, 0x33000001, 0x387fffff, 0x38800000, 0x477fe000,
                                     0x477fefff, 0x477ff000, 0x7f7fffff, 0x7f800000, 0x7f800001, 0x7fc00000,
                                     0x7f7f8000, 0x3f808000, 0x3f818000, 0x3f801000, 0x3f803000};
    enum { EDGES = sizeof edges / sizeof *edges, N = 4099 };
    for (int k = 0; (tile = tile_number(k)); k++)
        for (int t = 1; t < 3; t++) {
            for (uint32_t h = 0; h < 65536; h += 16) {
                uint16_t in[17];
                float out[17];
                int n = 1 + (int)(h / 16 % 16);
                out[n] = 7;
                for (int i = 0; i < n; i++) in[i] = (uint16_t)(h + (uint32_t)i);
                tile->widen(out, (const char *)in, n, types[t]);
                for (int i = 0; i < n; i++) {
                    float x = types[t] == DTYPE_BF16 ? dtype_f32_from_bf16(in[i]) : dtype_f32_from_f16(in[i]);
                    assert_true(same_number(dtype_f32_bits(out[i]), dtype_f32_bits(x)));
                }
                assert_true(out[n] == 7);
            }
            for (int round = 0; round < 100; round++) {
                static float x[N];
                static uint16_t h[N + 1];
                int n = round % 2 ? N : 1 + round;
                for (int i = 0; i < n; i++) {
                    uint32_t bits = round == 0 || i % 7 == 0
                                        ? edges[(uint32_t)i % EDGES] ^ random_bits() << 31
                                        : random_bits();
                    if (round % 3 == 1)
                        bits = (bits & 0x87ffffff) | 0x38000000; /* where f16 is subnormal or small */
                    x[i] = dtype_f32_from_bits(bits);
                }
                h[n] = 0x1234;
                tile->narrow((char *)h, x, n, types[t]);
                for (int i = 0; i < n; i++) {
                    uint16_t e =
                        types[t] == DTYPE_BF16 ? dtype_bf16_from_f32(x[i]) : dtype_f16_from_f32(x[i]);
                    if (h[i] != e)
                        fail_msg("%s of bits %08x: got %04x, expected %04x", dtype_name(types[t]),
                                 dtype_f32_bits(x[i]), h[i], e);
                }
                assert_int_equal(h[n], 0x1234);
            }
        }
}

/* Powers of two within a unit in the last place (libm's within half of one), also in the last, odd vector. */
static void test_powers(void **unused)
{
    (void)unused;
    enum { STRIDE = 272 };
    const struct tile *tile;
    for (int k = 0; (tile = tile_number(k)); k++)
        for (int n = 16; n <= 256; n += 16)
            for (int n_q = 1; n_q <= 4; n_q++) {
                static float s[4 * STRIDE], x[4 * STRIDE];
                float m[4], sum[4];
                for (int i = 0; i < 4 * STRIDE; i++) s[i] = x[i] = unit() * (i % 2 ? 60.0f : 3.0f);
                tile->powers(s, STRIDE, n_q, n, m, sum);
                for (int i = 0; i < n_q; i++) {
                    float top = -INFINITY;
                    double all = 0;
                    for (int j = 0; j < n; j++) top = fmaxf(top, x[i * STRIDE + j]);
                    assert_true(m[i] == top);
                    for (int j = 0; j < STRIDE; j++) {
                        float y = s[i * STRIDE + j];
                        if (j >= n) {
                            assert_true(y == x[i * STRIDE + j]);
                            continue;
                        }
                        double e = exp2((double)(x[i * STRIDE + j] - top)), ulp = ldexp(1, ilogb(e) - 23);
                        if (!(fabs((double)y - e) <= 1.01 * ulp))
                            fail_msg("2^%.9g is off by %.2f units in the last place",
                                     (double)(x[i * STRIDE + j] - top), fabs((double)y - e) / ulp);
                        all += (double)y;
                    }
                    assert_true(fabs((double)sum[i] - all) < 1e-5 * all);
                }
            }
}

/* -inf weighs next to nothing, NaN is not hidden; no score at all. */
static void test_powers_of_nothing(void **unused)
{
    (void)unused;
    const struct tile *tile;
    for (int k = 0; (tile = tile_number(k)); k++) {
        float s[3 * 16], m[3], sum[3];
        for (int i = 0; i < 48; i++) s[i] = i < 16 ? -INFINITY : i == 20 ? NAN : i % 2 ? -500 : 2;
        tile->powers(s, 16, 3, 16, m, sum);
        assert_true(m[0] == -INFINITY && sum[0] < 0x1p-100f && m[1] == 2 && isnan(sum[1]) && m[2] == 2 &&
                    sum[2] == 8);
        for (int i = 0; i < 48; i++) {
            if (i == 20) assert_true(isnan(s[i]));
            else if (i < 16 || i % 2) assert_true(s[i] >= 0 && s[i] <= 0x1p-126f);
            else assert_true(s[i] == 1);
        }
    }
}

static int32_t key_of(float f)
{
    int32_t i;
    f += 0.0f;
    memcpy(&i, &f, sizeof i);
    return isnan(f) ? INT32_MIN + 1 : i < 0 ? i ^ INT32_MAX : i;
}

/* Keys are ordered as the sums are; in place, too. */
static void test_order(void **unused)
{
    (void)unused;
    static const float edges[] = {0,   -0.0f, 1,      -1,      INFINITY, -INFINITY,
                                  NAN, -NAN,  1e-45f, -1e-45f, 3e38f,    -3e38f};
    const struct tile *tile;
    for (int k = 0; (tile = tile_number(k)); k++) {
        int32_t key[17], expected[16];
        float one = 1, x[16], s[3 * 32], factor[3] = {0.5f, 2, 4};
        for (int j = 0; j < 16; j++) x[j] = edges[(unsigned)j % 12];
        for (int j = 0; j < 16; j++) expected[j] = key_of(x[j]);
        key[16] = 7;
        tile->order(key, x, 16, &one, 1, 16);
        assert_memory_equal(key, expected, sizeof expected);
        assert_int_equal(key[16], 7);
        assert_true(key[0] == 0 && key[1] == 0 && key[5] < key[11] && key[6] == INT32_MIN + 1 &&
                    key[6] < key[5]);
        /* sums of few bits, which are exact */
        for (int j = 0; j < 96; j++) s[j] = (float)(random_bits() % 64) - 32;
        for (int j = 0; j < 16; j++)
            expected[j] = key_of(s[j] * factor[0] + s[32 + j] * factor[1] + s[64 + j] * factor[2]);
        tile->order((int32_t *)(void *)s, s, 32, factor, 3, 16);
        assert_memory_equal(s, expected, sizeof expected);
    }
}

static void test_count(void **unused)
{
    (void)unused;
    const struct tile *tile;
    for (int k = 0; (tile = tile_number(k)); k++)
        for (int n = 0; n <= 160; n += 16) {
            int32_t key[160], limit = (int32_t)random_bits();
            int expected = 0;
            for (int i = 0; i < n; i++) {
                key[i] = i % 3 ? (int32_t)random_bits() : limit;
                expected += key[i] >= limit;
            }
            assert_int_equal(tile->count_at_least(key, n, limit), expected);
            assert_int_equal(tile->count_at_least(key, n, INT32_MIN), n);
        }
}

static void test_list(void **unused)
{
    (void)unused;
    const struct tile *tile;
    for (int k = 0; (tile = tile_number(k)); k++)
        for (int n = 0; n <= 160; n += 16)
            for (int round = 0; round < 40; round++) {
                int32_t key[160], list[161], expected[160], count = 0, above = 0;
                int32_t low = (int32_t)(random_bits() % 30) - 15, high = low + (int32_t)(random_bits() % 10);
                int room = round % 2 ? 160 : (int)(random_bits() % 40), over = -1;
                for (int i = 0; i < n; i++) {
                    key[i] = round < 2 ? low : (int32_t)(random_bits() % 30) - 15;
                    if (key[i] >= low && key[i] <= high) expected[count++] = key[i];
                    above += key[i] > high;
                }
                list[room] = 77;
                assert_int_equal(tile->list_between(list, room, &over, key, n, low, high), count);
                assert_int_equal(over, above);
                assert_memory_equal(list, expected, (size_t)(count < room ? count : room) * sizeof *list);
                assert_int_equal(list[room], 77);
            }
}

/* Those above the limit and the first of those equal to it; nothing behind them is written. */
static void test_take(void **unused)
{
    (void)unused;
    const struct tile *tile;
    for (int k = 0; (tile = tile_number(k)); k++)
        for (int n = 1; n <= 200; n++)
            for (int n_ties = 0; n_ties < 4; n_ties++) {
                int32_t key[208], index[201], expected[200];
                int above = 0, ties = 0, taken = 0;
                for (int i = 0; i < 208; i++) key[i] = i < n ? (int32_t)(random_bits() % 8) : INT32_MIN;
                for (int i = 0; i < n; i++) above += key[i] > 5, ties += key[i] == 5;
                int more = n_ties < ties ? n_ties : ties;
                for (int i = 0, left = more; i < n; i++)
                    if (key[i] > 5 || (key[i] == 5 && left-- > 0)) expected[taken++] = 1000 + i;
                assert_int_equal(taken, above + more);
                index[taken] = 77;
                tile->take_above(index, taken, key, 1000, 5, more);
                assert_memory_equal(index, expected, (size_t)taken * sizeof *index);
                assert_int_equal(index[taken], 77);
            }
}

/* Codes: every width that heads may have, the largest products, bytes behind a row that must not count, runs of every
 * length. The sums are exact and what follows has one order, so that all instruction sets agree to the bit. */
static void check_code_scores(const struct tile *t, enum summary_type type, int E, int n_q, int length,
                              bool extreme)
{
    enum { STRIDE = 80 };
    static struct tile_codes q;
    static int code[ROWS][2][TILE_MAX_E];
    static char runs[ROWS * (2 * TILE_MAX_E + 64)];
    static float s[QUERIES * STRIDE];
    uint16_t scale[ROWS][2];
    int half = type == SUMMARY_Q4 ? E / 2 : E,
        padded = (half + TILE_CODE_PAD - 1) / TILE_CODE_PAD * TILE_CODE_PAD;
    q = (struct tile_codes){
        .type = type, .n_q = n_q, .E = E, .length = E / half * padded, .drops = random_bits() % 2};
    for (int i = 0; i < n_q; i++) {
        q.scale[i] = unit();
        for (int e = 0; e < E; e++) {
            int k = extreme ? (i % 2 ? 127 : -127) : (int)(random_bits() % 255) - 127,
                at = e < half ? e : padded + e - half;
            q.q[i][at] = (int8_t)k;
            q.abs[i][at] = (int8_t)abs(k);
            q.sum[i] += k;
        }
    }
    memset(runs, 0xee, sizeof runs);
    struct tile_run run[ROWS + TILE_AHEAD];
    int stride = type == SUMMARY_Q8 ? 2 * E : E, n_runs = 0;
    char *to = runs + 2;
    for (int r = 0; r < ROWS; r += length, n_runs++) {
        int n = r + length <= ROWS ? length : ROWS - r;
        run[n_runs] = (struct tile_run){to, (const char *)scale[r], n};
        for (int j = r; j < r + n; j++, to += stride)
            for (int e = 0; e < E; e++) {
                bool q8 = type == SUMMARY_Q8;
                int x = q8 ? (int)(random_bits() % 255) - 127 : (int)(random_bits() % 15) - 7;
                int y = (int)(random_bits() % (q8 ? 128 : 16));
                if (extreme) x = q8 ? -127 : -7, y = q8 ? 127 : 15;
                code[j][0][e] = x;
                code[j][1][e] = y;
                if (q8) {
                    to[e] = (char)x;
                    to[E + e] = (char)y;
                } else if (e < half) {
                    to[e] = (char)(x + 8);
                    to[half + e] = (char)y;
                } else {
                    to[e - half] = (char)(to[e - half] | (x + 8) << 4);
                    to[e] = (char)(to[e] | y << 4);
                }
            }
        to += length % 3; /* runs lie anywhere */
    }
    for (int j = 0; j < ROWS; j++)
        for (int v = 0; v < 2; v++) scale[j][v] = dtype_bf16_from_f32(fabsf(unit()));
    for (int n = 1, columns = 0; n <= n_runs; n++) {
        columns += run[n - 1].n;
        fill_nan(s, QUERIES * STRIDE);
        t->code_scores(s, STRIDE, &q, run, n, n % 2 ? 0 : n_runs - n, 0.3f);
        for (int i = 0; i < QUERIES; i++)
            for (int j = 0; j < STRIDE; j++) {
                if (i >= n_q || j >= columns) {
                    assert_true(isnan(s[i * STRIDE + j]));
                    continue;
                }
                int32_t x = 0, y = 0;
                for (int e = 0; e < E; e++) {
                    int at = e < half ? e : padded + e - half;
                    x += q.q[i][at] * code[j][0][e];
                    y += q.abs[i][at] * code[j][1][e];
                }
                float scale_c = dtype_f32_from_bf16(scale[j][0]),
                      scale_u = dtype_f32_from_bf16(scale[j][1]) * 0.3f;
                float expected = ((float)x * scale_c + (float)y * scale_u) * q.scale[i];
                if (dtype_f32_bits(s[i * STRIDE + j]) != dtype_f32_bits(expected))
                    fail_msg("width %d, runs of %d, query %d, page %d: got %.9g, expected %.9g", E, length, i,
                             j, (double)s[i * STRIDE + j], (double)expected);
            }
    }
}

static void test_code_scores(void **unused)
{
    (void)unused;
    static const int widths[] = {2, 6, 30, 62, 64, 66, 80, 96, 128, 130, 192, 256};
    static const int lengths[] = {16, 1, 4, 10, 11};
    const struct tile *t;
    for (int k = 0; (t = tile_number(k)); k++)
        for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
            for (int n_q = 1; n_q <= QUERIES; n_q += n_q < 4 ? 1 : 3)
                for (int extreme = 0; extreme < 2; extreme++) {
                    int length = lengths[(i + (size_t)n_q + (size_t)extreme) % 5];
                    check_code_scores(t, SUMMARY_Q4, widths[i], n_q, length, extreme);
                    check_code_scores(t, SUMMARY_Q8, widths[i], n_q, length, extreme);
                    if (widths[i] == 64 || widths[i] == 128)
                        check_code_scores(t, SUMMARY_Q4, widths[i], n_q, 16, extreme);
                }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_code_scores),
        cmocka_unit_test(test_powers),
        cmocka_unit_test(test_powers_of_nothing),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_list),
        cmocka_unit_test(test_take),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_maximum),
        cmocka_unit_test(test_conversions),
        cmocka_unit_test(test_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
