/* linear_amx.c - y = x W^T + bias of bf16 inputs and weights with AMX tiles: 16 x 16 sums of 32 inputs an instruction.
 *
 * A tile register holds 16 rows of 64 bytes. Weights lie as linear.h has them: 16 pairs of inputs of a block are two tiles
 * of 16 outputs side by side. Inputs are packed so that a tile's rows follow each other. The sums of two tiles of rows and
 * one block of outputs (32 x 32) stay in registers over all of k, or over as much of it as is packed at once.
 *
 * A core multiplies 16 times as fast as with AVX-512 (2.3 to 2.5 TFLOP/s on Emerald Rapids), so what counts is where operands
 * come from: the packed inputs of a band (INPUTS at most) and a block's weights from the second-level cache, into which the
 * weights of the next block are fetched meanwhile. Few rows stream the weights from memory.
 *
 * Invariant: an output is a chain over k in steps of 32 inputs, each as tdpbf16ps rounds it; rows are independent of
 * each other in a tile. All row counts, thread counts and blockings give the same bits. Subnormal numbers count as 0. */
#include "kernels/cpu/amx.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/linear.h"
#include "runtime/base/die.h"

enum {
    STEP_LINES = LINEAR_BLOCK, /* cache lines of a block's weights in one step */
    BAND_ROWS = 256,
    INPUTS = 512 * 1024, /* of a band that are packed at once: half of the second-level cache */
    AHEAD = 16384,       /* bytes ahead that weights are fetched when they are read once */
    PACK_K = 512,        /* inputs that one task packs */
    PACK_ALONE = 32768,  /* elements that one thread packs sooner than it wakes others */
};

struct call {
    float *y;
    const uint16_t *x;
    const struct matrix *w;
    const float *bias;
    char *pack;
    const char *packed; /* (tiles, steps, tile_rows, 32) bf16 */
    int n_threads;
    /* Of the band. tile_rows is AMX_TILE, or fewer when all rows are one tile. */
    int row0, n_rows, tile_rows, n_tiles;
    int k0, k1;        /* inputs of this piece */
    size_t tile_bytes; /* of packed */
};

/* One tile of rows and at most PACK_K inputs. Rows that are missing to a whole tile stay as they are: what they
 * become is never stored. */
static void pack_task(void *arg, int task, int thread)
{
    (void)thread;
    const struct call *c = arg;
    int tile = task % c->n_tiles, i0 = c->k0 + task / c->n_tiles * PACK_K;
    int i1 = c->k1 - i0 < PACK_K ? c->k1 : i0 + PACK_K;
    int first = tile * c->tile_rows,
        rows = c->n_rows - first < c->tile_rows ? c->n_rows - first : c->tile_rows;
    char *to = c->pack + (size_t)tile * c->tile_bytes +
               (size_t)((i0 - c->k0) / AMX_STEP * c->tile_rows) * AMX_ROW_BYTES;
    const uint16_t *x = c->x + (size_t)(c->row0 + first) * (size_t)c->w->k;
    for (int i = i0; i < i1; i += AMX_STEP, to += c->tile_rows * AMX_ROW_BYTES)
        for (int r = 0; r < rows; r++)
            _mm512_storeu_si512(to + r * AMX_ROW_BYTES,
                                _mm512_loadu_si512(x + (size_t)r * (size_t)c->w->k + i));
}

static void pack_rows(struct device *d, struct call *c)
{
    int n_k = c->k1 - c->k0, n_tasks = c->n_tiles * ((n_k + PACK_K - 1) / PACK_K);
    c->tile_bytes = (size_t)(n_k / AMX_STEP * c->tile_rows) * AMX_ROW_BYTES;
    if (c->n_rows == 1) {
        c->packed = (const char *)(c->x + (size_t)c->row0 * (size_t)c->w->k + c->k0);
        return;
    }
    c->packed = c->pack;
    if ((long long)c->n_rows * n_k <= PACK_ALONE)
        for (int task = 0; task < n_tasks; task++) pack_task(c, task, 0);
    else cpu_parallel(d, pack_task, c, n_tasks);
}

/* What is fetched while something is multiplied: `lines` lines a step. */
struct fetch {
    const char *at;
    int lines;
};

static inline void fetch_step(struct fetch *f)
{
    for (int i = 0; i < f->lines; i++) _mm_prefetch(f->at + i * LINEAR_LINE, _MM_HINT_T1);
    f->at += f->lines * LINEAR_LINE;
}

/* sum (tile_rows,32) += x w^T over n steps. */
static void multiply_one(float *sum, bool first, const char *x, int x_step, const char *w, int n,
                         struct fetch f)
{
    enum { ROW = LINEAR_BLOCK * sizeof(float), W_ROW = 2 * AMX_ROW_BYTES };
    if (first) {
        _tile_zero(0);
        _tile_zero(1);
    } else {
        _tile_loadd(0, sum, ROW);
        _tile_loadd(1, sum + AMX_TILE, ROW);
    }
    for (int i = 0; i < n; i++, x += x_step, w += STEP_LINES * LINEAR_LINE) {
        fetch_step(&f);
        _tile_loadd(4, x, AMX_ROW_BYTES);
        _tile_loadd(6, w, W_ROW);
        _tile_loadd(7, w + AMX_ROW_BYTES, W_ROW);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, sum, ROW);
    _tile_stored(1, sum + AMX_TILE, ROW);
}

/* The same for two tiles of rows, the second x_tile bytes after the first. */
static void multiply_two(float *sum, bool first, const char *x, size_t x_tile, const char *w, int n,
                         struct fetch f)
{
    enum { ROW = LINEAR_BLOCK * sizeof(float), W_ROW = 2 * AMX_ROW_BYTES, NEXT = AMX_TILE * LINEAR_BLOCK };
    if (first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sum, ROW);
        _tile_loadd(1, sum + AMX_TILE, ROW);
        _tile_loadd(2, sum + NEXT, ROW);
        _tile_loadd(3, sum + NEXT + AMX_TILE, ROW);
    }
    for (int i = 0; i < n; i++, x += AMX_TILE * AMX_ROW_BYTES, w += STEP_LINES * LINEAR_LINE) {
        fetch_step(&f);
        _tile_loadd(4, x, AMX_ROW_BYTES);
        _tile_loadd(6, w, W_ROW);
        _tile_loadd(7, w + AMX_ROW_BYTES, W_ROW);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, x + x_tile, AMX_ROW_BYTES);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sum, ROW);
    _tile_stored(1, sum + AMX_TILE, ROW);
    _tile_stored(2, sum + NEXT, ROW);
    _tile_stored(3, sum + NEXT + AMX_TILE, ROW);
}

static __mmask16 lanes_on(int n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

/* Two tiles of rows, the pair `pair` of them, or the last one alone, and one block of outputs, whose piece of k is at w. */
static void multiply(const struct call *c, int block, const char *w, int pair, struct fetch f)
{
    float sum[2 * AMX_TILE * LINEAR_BLOCK] __attribute__((aligned(64)));
    int n = c->w->n, column = block * LINEAR_BLOCK, row = 2 * pair * AMX_TILE,
        steps = (c->k1 - c->k0) / AMX_STEP;
    int rows = c->n_rows - row < 2 * AMX_TILE ? c->n_rows - row : 2 * AMX_TILE;
    float *y = c->y + (size_t)(c->row0 + row) * (size_t)n + (size_t)column;
    __mmask16 on0 = lanes_on(n - column), on1 = lanes_on(n - column - AMX_TILE);
    const char *x = c->packed + (size_t)(2 * pair) * c->tile_bytes;
    for (int r = 0; c->k0 > 0 && r < rows; r++) {
        const float *at = y + (size_t)r * (size_t)n;
        _mm512_store_ps(sum + r * LINEAR_BLOCK, _mm512_maskz_loadu_ps(on0, at));
        _mm512_store_ps(sum + r * LINEAR_BLOCK + AMX_TILE, _mm512_maskz_loadu_ps(on1, at + AMX_TILE));
    }
    AMX_STORED(sum);
    if (2 * pair + 1 < c->n_tiles) multiply_two(sum, c->k0 == 0, x, c->tile_bytes, w, steps, f);
    else multiply_one(sum, c->k0 == 0, x, c->tile_rows * AMX_ROW_BYTES, w, steps, f);
    bool biased = c->bias && c->k1 == c->w->k;
    __m512 bias0 = _mm512_setzero_ps(), bias1 = bias0;
    if (biased) {
        bias0 = _mm512_maskz_loadu_ps(on0, c->bias + column);
        bias1 = _mm512_maskz_loadu_ps(on1, c->bias + column + AMX_TILE);
    }
    for (int r = 0; r < rows; r++, y += n) {
        __m512 s0 = _mm512_load_ps(sum + r * LINEAR_BLOCK),
               s1 = _mm512_load_ps(sum + r * LINEAR_BLOCK + AMX_TILE);
        _mm512_mask_storeu_ps(y, on0, biased ? _mm512_add_ps(s0, bias0) : s0);
        _mm512_mask_storeu_ps(y + AMX_TILE, on1, biased ? _mm512_add_ps(s1, bias1) : s1);
    }
}

/* All rows of the band. */
static void multiply_block(const struct call *c, int block)
{
    int pairs = (c->n_tiles + 1) / 2, steps = (c->k1 - c->k0) / AMX_STEP;
    size_t block_bytes = linear_block_bytes(DTYPE_BF16, c->w->k);
    const char *w = (const char *)c->w->data + (size_t)block * block_bytes + (size_t)c->k0 * LINEAR_BLOCK * 2;
    for (int pair = 0; pair < pairs; pair++) {
        struct fetch f = {w + AHEAD, STEP_LINES};
        if (pairs > 1) { /* its share of the next block */
            f.lines = (STEP_LINES + pairs - 1) / pairs;
            f.at = w + block_bytes + (size_t)(pair * steps * f.lines) * LINEAR_LINE;
        }
        multiply(c, block, w, pair, f);
    }
}

static void multiply_task(void *arg, int task, int thread)
{
    (void)thread;
    const struct call *c = arg;
    int blocks = linear_blocks(c->w->n), end = cpu_share(blocks, task + 1, c->n_threads);
    amx_configure(c->tile_rows);
    for (int block = cpu_share(blocks, task, c->n_threads); block < end; block++) multiply_block(c, block);
    _tile_release();
}

void linear_amx(struct device *d, float *y, const void *x, const struct matrix *w, const float *bias,
                int n_rows)
{
    struct cpu_device *dev = cpu_of(d);
    struct call c = {.y = y, .x = x, .w = w, .bias = bias, .pack = (char *)dev->pack};
    int bands = (n_rows + BAND_ROWS - 1) / BAND_ROWS;
    c.n_threads = cpu_threads(d);
    for (int band = 0; band < bands; band++) {
        c.row0 = cpu_share(n_rows, band, bands);
        c.n_rows = cpu_share(n_rows, band + 1, bands) - c.row0;
        c.tile_rows = c.n_rows < AMX_TILE ? c.n_rows : AMX_TILE;
        c.n_tiles = (c.n_rows + c.tile_rows - 1) / c.tile_rows;
        int step = INPUTS / (c.n_tiles * c.tile_rows) / AMX_STEP * AMX_STEP;
        for (c.k0 = 0; c.k0 < w->k; c.k0 = c.k1) {
            c.k1 = w->k - c.k0 < step ? w->k : c.k0 + step;
            ASSERT((size_t)c.n_tiles * (size_t)c.tile_rows * (size_t)(c.k1 - c.k0) * 2 <=
                   dev->pack_floats * sizeof(float));
            pack_rows(d, &c);
            cpu_parallel(d, multiply_task, &c, c.n_threads);
        }
    }
}
