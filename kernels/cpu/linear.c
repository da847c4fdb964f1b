/* linear.c - y = x W^T + bias: packing of x, blocking, dealing to threads, and the portable tile.
 *
 * Rows are cut into bands, bands into tiles that a kernel keeps in registers. A band of few rows (decode)
 * streams each weight from memory once through all its tiles; a band of many (a prompt) also cuts k, so that
 * what the tiles share stays in a core's cache. Threads take contiguous ranges of blocks of outputs, the same
 * ranges whose weights they placed in matrix_put.
 *
 * Not here: products of bf16 activations (vdpbf16ps). They would be another `tile` entry with its own packing
 * of x, chosen in pack_rows, for prompt bands only. */
#include <stdlib.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/linear.h"
#include "runtime/base/die.h"

enum {
    PORTABLE_ROWS = 8,
    DECODE_ROWS = 16, /* bands up to this many rows stream all of k at once */
    BAND_ROWS = 384,  /* rows of a band: weights are read again for each, 384 products a weight */
    PIECE_K =
        512, /* inputs at once in a band of many rows: 12 rows of x are 24 KiB, a block 32 KiB of bf16 */
    GROUP_BLOCKS = 8,  /* blocks whose pieces (256 KiB of bf16) stay in the second-level cache */
    PACK_ALONE = 8192, /* elements that one thread packs sooner than it wakes others */
};

struct call {
    float *y;
    const void *x;
    const struct matrix *w;
    const float *bias;
    enum dtype act;
    const struct linear_table *table;
    float *pack;
    const float *packed; /* tiles one after another, each (piece inputs, rows of the tile) */
    int n_threads;
    int row0, n_rows, n_tiles; /* of the band */
    int k0, k1;                /* inputs [k0,k1) of this piece, as stored */
    size_t block_bytes;
};

static void tile_portable(const struct linear_tile *t, enum dtype dtype)
{
    float sum[PORTABLE_ROWS][LINEAR_BLOCK] = {{0}}, w[LINEAR_BLOCK];
    for (int r = 0; r < t->rows && !t->first; r++)
        memcpy(sum[r], t->y + (size_t)r * t->y_stride, (size_t)t->lanes * sizeof(float));
    for (int i = 0; i < t->k; i++) {
        const float *x = t->x + (size_t)i * (size_t)t->rows;
        for (int lane = 0; lane < LINEAR_BLOCK; lane++)
            w[lane] = linear_widen(t->w + linear_index(dtype, lane, i) * dtype_bytes(dtype), dtype);
        for (int r = 0; r < t->rows; r++)
            for (int lane = 0; lane < LINEAR_BLOCK; lane++) sum[r][lane] += x[r] * w[lane];
    }
    for (int r = 0; r < t->rows; r++)
        for (int lane = 0; lane < t->lanes; lane++)
            t->y[(size_t)r * t->y_stride + (size_t)lane] =
                t->bias ? sum[r][lane] + t->bias[lane] : sum[r][lane];
}

static void tile_bf16(const struct linear_tile *t) { tile_portable(t, DTYPE_BF16); }
static void tile_f16(const struct linear_tile *t) { tile_portable(t, DTYPE_F16); }
static void tile_f32(const struct linear_tile *t) { tile_portable(t, DTYPE_F32); }

const struct linear_table linear_portable = {
    .rows = PORTABLE_ROWS,
    .tile = {[DTYPE_F32] = tile_f32, [DTYPE_F16] = tile_f16, [DTYPE_BF16] = tile_bf16},
};

/* Rows of the band before its tile `i`: tiles differ by one row at most. */
static int tile_row(const struct call *c, int i) { return cpu_share(c->n_rows, i, c->n_tiles); }

static void pack_tile(const struct call *c, int tile)
{
    int row = tile_row(c, tile), rows = tile_row(c, tile + 1) - row, k = c->w->k, n_k = c->k1 - c->k0;
    int real = c->k1 > k ? n_k - 1 : n_k; /* the pad of odd k is zero */
    float *to = c->pack + (size_t)row * (size_t)n_k;
    size_t from = (size_t)(c->row0 + row) * (size_t)k + (size_t)c->k0;
    if (c->act == DTYPE_F32) {
        const float *x = (const float *)c->x + from;
        for (int i = 0; i < real; i++)
            for (int r = 0; r < rows; r++) to[i * rows + r] = x[(size_t)r * (size_t)k + (size_t)i];
    } else {
        const uint16_t *x = (const uint16_t *)c->x + from;
        for (int i = 0; i < real; i++)
            for (int r = 0; r < rows; r++) {
                uint16_t h = x[(size_t)r * (size_t)k + (size_t)i];
                to[i * rows + r] = c->act == DTYPE_BF16 ? dtype_f32_from_bf16(h) : dtype_f32_from_f16(h);
            }
    }
    for (int i = real * rows; i < n_k * rows; i++) to[i] = 0;
}

static void pack_task(void *arg, int task, int thread)
{
    (void)thread;
    pack_tile(arg, task);
}

static void pack_rows(struct device *d, struct call *c)
{
    int n_k = c->k1 - c->k0;
    if (c->n_rows == 1 && c->act == DTYPE_F32 && c->k1 <= c->w->k) {
        c->packed = (const float *)c->x + (size_t)c->row0 * (size_t)c->w->k + (size_t)c->k0;
        return;
    }
    c->packed = c->pack;
    if ((long long)c->n_rows * n_k <= PACK_ALONE)
        for (int tile = 0; tile < c->n_tiles; tile++) pack_tile(c, tile);
    else cpu_parallel(d, pack_task, c, c->n_tiles);
}

static void multiply(const struct call *c, int block, int tile)
{
    int row = tile_row(c, tile), n = c->w->n, column = block * LINEAR_BLOCK;
    enum dtype dtype = c->w->dtype;
    bool last = c->k1 >= c->w->k;
    struct linear_tile t = {
        .y = c->y + (size_t)(c->row0 + row) * (size_t)n + (size_t)column,
        .y_stride = (size_t)n,
        .rows = tile_row(c, tile + 1) - row,
        .lanes = n - column < LINEAR_BLOCK ? n - column : LINEAR_BLOCK,
        .x = c->packed + (size_t)row * (size_t)(c->k1 - c->k0),
        .w = (const char *)c->w->data + (size_t)block * c->block_bytes +
             (size_t)c->k0 * LINEAR_BLOCK * dtype_bytes(dtype),
        .k = c->k1 - c->k0,
        .first = c->k0 == 0,
        .bias = last && c->bias ? c->bias + column : NULL,
    };
    c->table->tile[dtype](&t);
}

static void multiply_task(void *arg, int task, int thread)
{
    (void)thread;
    const struct call *c = arg;
    int blocks = linear_blocks(c->w->n), end = cpu_share(blocks, task + 1, c->n_threads);
    int group = c->n_tiles > 2 ? GROUP_BLOCKS : 1;
    for (int first = cpu_share(blocks, task, c->n_threads); first < end; first += group)
        for (int tile = 0; tile < c->n_tiles; tile++)
            for (int block = first; block < end && block < first + group; block++) multiply(c, block, tile);
}

/* Floats of scratch for a matrix of k inputs and any number of rows. */
static size_t pack_floats(int k)
{
    size_t decode = (size_t)DECODE_ROWS * (size_t)(k + 1), prompt = (size_t)BAND_ROWS * PIECE_K;
    return decode > prompt ? decode : prompt;
}

void cpu_linear_reserve(struct device *d, int k)
{
    struct cpu_device *c = cpu_of(d);
    if (c->pack_floats >= pack_floats(k)) return;
    free(c->pack);
    c->pack_floats = pack_floats(k);
    c->pack = aligned_alloc(64, (c->pack_floats * sizeof(float) + 63) / 64 * 64);
    if (!c->pack)
        DIE(EXIT_CODE_MEMORY, "free memory on this host", "no memory for %zu floats", c->pack_floats);
}

void cpu_linear(struct device *d, float *y, const void *x, const struct matrix *w, const float *bias,
                int n_rows)
{
    struct cpu_device *dev = cpu_of(d);
    ASSERT(n_rows >= 0 && w->n > 0 && w->k > 0 && w->data);
    cpu_linear_reserve(d, w->k);
    struct call c = {
        .y = y, .x = x, .w = w, .bias = bias, .act = dev->act, .table = dev->linear, .pack = dev->pack};
    c.n_threads = cpu_threads(d);
    c.block_bytes = linear_block_bytes(w->dtype, w->k);
    int k_stored = linear_k_stored(w->dtype, w->k);
    for (c.row0 = 0; c.row0 < n_rows; c.row0 += c.n_rows) {
        int left = n_rows - c.row0, step = left <= DECODE_ROWS ? k_stored : PIECE_K;
        c.n_rows = left < BAND_ROWS ? left : BAND_ROWS;
        c.n_tiles = (c.n_rows + c.table->rows - 1) / c.table->rows;
        for (c.k0 = 0; c.k0 < k_stored; c.k0 = c.k1) {
            c.k1 = k_stored - c.k0 < step ? k_stored : c.k0 + step;
            pack_rows(d, &c);
            cpu_parallel(d, multiply_task, &c, c.n_threads);
        }
    }
}
