/* linear.c - y = x W^T + bias: packing of x, blocking, dealing to threads, and the portable tile.
 *
 * Rows are cut into bands, bands into tiles that a kernel keeps in registers. A band of few tiles (decode)
 * streams each weight from memory once through all of them; while the tiles multiply one piece of a block they fetch
 * the next, each its share. A band of many (a prompt) multiplies long pieces of two blocks, which stay in a core's
 * cache, by one tile after the other. Threads take contiguous ranges of blocks of outputs, the same
 * ranges whose weights they placed in matrix_put.
 *
 * Pairs of bf16 inputs are packed as words: for all of this file a word is one f32 that is moved and never looked
 * at, and k is half as long. */
#include <stdlib.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "kernels/cpu/amx.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/linear.h"
#include "runtime/base/die.h"

enum {
    PORTABLE_ROWS = 8,
    STREAM_TILES =
        8,          /* bands up to this many tiles take one block of outputs after the other, with all of k */
    STREAM_K = 512, /* inputs of a block that one tile after the other multiplies: 32 or 64 KiB of bf16 */
    AHEAD = 16384,  /* bytes ahead that the weights of one tile are fetched */
    BAND_ROWS = 512,   /* rows of a larger band: weights are read again for each, 512 products a weight */
    PIECE_K = 2048,    /* inputs at once in such a band: sums go to memory and back once for each */
    GROUP_BLOCKS = 2,  /* blocks whose pieces (up to 512 KiB of bf16) stay in the second-level cache */
    PACK_K = 256,      /* inputs that one task packs */
    PACK_ALONE = 8192, /* elements that one thread packs sooner than it wakes others: about 2 us */
};

struct call {
    float *y;
    const void *x;
    const struct matrix *w;
    const float *bias;
    enum dtype act; /* f32 too for pairs */
    const struct linear_table *table;
    bool pairs;
    int k; /* of a row of x: w->k, or half of it */
    float *pack;
    size_t pack_floats;
    const float *packed; /* tiles, tile_floats apart, each (piece inputs, linear_x_stride(rows)) */
    size_t tile_floats;
    int n_threads;
    int row0, n_rows, n_tiles; /* of the band */
    bool read_once;            /* one tile that reads each line of weights once */
    int k0, k1;                /* inputs [k0,k1) of this piece, as stored */
    size_t block_bytes;
};

static inline __attribute__((always_inline)) void tile_portable(const struct linear_tile *t,
                                                                const enum dtype dtype)
{
    float sum[PORTABLE_ROWS][LINEAR_BLOCK] = {{0}}, w[LINEAR_BLOCK];
    for (int r = 0; r < t->rows && !t->first; r++)
        memcpy(sum[r], t->y + (size_t)r * t->y_stride, (size_t)t->lanes * sizeof(float));
    for (int i = 0; i < t->k; i++) {
        const float *x = t->x + (size_t)i * (size_t)linear_x_stride(t->rows);
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
    .once_rows = PORTABLE_ROWS,
    .tile = {[DTYPE_F32] = tile_f32, [DTYPE_F16] = tile_f16, [DTYPE_BF16] = tile_bf16},
};

/* Rows of the band before its tile `i`: tiles differ by one row at most. */
static int tile_row(const struct call *c, int i) { return cpu_share(c->n_rows, i, c->n_tiles); }

/* to (n,2) = the n inputs of two rows. */
static void transpose_two(float *to, const float *const row[4], int n)
{
    for (int i = 0; i < n; i++) to[2 * i] = row[0][i], to[2 * i + 1] = row[1][i];
}

/* to (n, stride): columns 0..3 = the n inputs of four rows. */
static void transpose_four(float *to, size_t stride, const float *const row[4], int n)
{
    int i = 0;
#if defined(__SSE__)
    for (; i + 4 <= n; i += 4, to += 4 * stride) {
        __m128 a = _mm_loadu_ps(row[0] + i), b = _mm_loadu_ps(row[1] + i);
        __m128 c = _mm_loadu_ps(row[2] + i), d = _mm_loadu_ps(row[3] + i);
        _MM_TRANSPOSE4_PS(a, b, c, d);
        _mm_storeu_ps(to, a);
        _mm_storeu_ps(to + stride, b);
        _mm_storeu_ps(to + 2 * stride, c);
        _mm_storeu_ps(to + 3 * stride, d);
    }
#endif
    for (; i < n; i++, to += stride)
        for (int r = 0; r < 4; r++) to[r] = row[r][i];
}

static void widen_row(float *to, const uint16_t *x, int n, enum dtype act)
{
    for (int i = 0; i < n; i++)
        to[i] = act == DTYPE_BF16 ? dtype_f32_from_bf16(x[i]) : dtype_f32_from_f16(x[i]);
}

/* One tile and at most PACK_K inputs. A row that is missing to a multiple of four is the tile's first again:
 * what it becomes is never used. */
static void pack_task(void *arg, int task, int thread)
{
    (void)thread;
    const struct call *c = arg;
    int tile = task % c->n_tiles, i0 = c->k0 + task / c->n_tiles * PACK_K;
    int i1 = c->k1 - i0 < PACK_K ? c->k1 : i0 + PACK_K, k = c->k, n = (i1 < k ? i1 : k) - i0;
    int first = tile_row(c, tile), rows = tile_row(c, tile + 1) - first;
    size_t stride = (size_t)linear_x_stride(rows);
    float *to = c->pack + (size_t)tile * c->tile_floats + (size_t)(i0 - c->k0) * stride, wide[4][PACK_K];
    for (int four = 0; four < rows; four += 4) {
        const float *row[4];
        for (int r = 0; r < 4; r++) {
            int at = c->row0 + first + (four + r < rows ? four + r : 0);
            size_t from = (size_t)at * (size_t)k + (size_t)i0;
            row[r] = c->act == DTYPE_F32 ? (const float *)c->x + from : wide[r];
            if (c->act != DTYPE_F32) widen_row(wide[r], (const uint16_t *)c->x + from, n, c->act);
        }
        if (rows > 2) transpose_four(to + four, stride, row, n);
        else if (rows == 2) transpose_two(to, row, n);
        else memcpy(to, row[0], (size_t)n * sizeof *to);
    }
    if (i1 > k) memset(to + (size_t)n * stride, 0, stride * sizeof *to); /* the pad of odd k is zero */
}

static void pack_rows(struct device *d, struct call *c)
{
    int n_k = c->k1 - c->k0, n_tasks = c->n_tiles * ((n_k + PACK_K - 1) / PACK_K);
    if (c->n_rows == 1 && c->act == DTYPE_F32 && c->k1 <= c->k) {
        c->packed = (const float *)c->x + (size_t)c->row0 * (size_t)c->k + (size_t)c->k0;
        return;
    }
    c->packed = c->pack;
    c->tile_floats = (size_t)n_k * (size_t)linear_x_stride((c->n_rows + c->n_tiles - 1) / c->n_tiles);
    ASSERT(c->tile_floats * (size_t)c->n_tiles <= c->pack_floats);
    if ((long long)c->n_rows * n_k <= PACK_ALONE)
        for (int task = 0; task < n_tasks; task++) pack_task(c, task, 0);
    else cpu_parallel(d, pack_task, c, n_tasks);
}

/* Inputs [k0,k1) of one block of outputs and one tile of rows. */
static void multiply(const struct call *c, int block, int tile, int k0, int k1)
{
    int row = tile_row(c, tile), rows = tile_row(c, tile + 1) - row, n = c->w->n,
        column = block * LINEAR_BLOCK;
    enum dtype dtype = c->w->dtype;
    bool last = k1 >= c->k;
    int inputs = c->pairs ? 2 : 1;
    struct linear_tile t = {
        .y = c->y + (size_t)(c->row0 + row) * (size_t)n + (size_t)column,
        .y_stride = (size_t)n,
        .rows = rows,
        .lanes = n - column < LINEAR_BLOCK ? n - column : LINEAR_BLOCK,
        .x = c->packed + (size_t)tile * c->tile_floats + (size_t)(k0 - c->k0) * (size_t)linear_x_stride(rows),
        .w = (const char *)c->w->data + (size_t)block * c->block_bytes +
             (size_t)(k0 * inputs) * LINEAR_BLOCK * dtype_bytes(dtype),
        .k = (k1 - k0) * inputs,
        .first = k0 == 0,
        .bias = last && c->bias ? c->bias + column : NULL,
    };
    if (c->read_once) {
        t.ahead = t.w + AHEAD;
        t.ahead_step = LINEAR_LINE;
    } else if (c->n_tiles <= STREAM_TILES) { /* this tile's share of the next piece */
        size_t bytes = (size_t)t.k * LINEAR_BLOCK * dtype_bytes(dtype);
        t.ahead = t.w + bytes + bytes * (size_t)tile / (size_t)c->n_tiles;
        t.ahead_step = LINEAR_LINE / c->n_tiles;
    } else {
        t.ahead = t.w;
    }
    (c->pairs ? c->table->pairs : c->table->tile[dtype])(&t);
}

static void multiply_task(void *arg, int task, int thread)
{
    (void)thread;
    const struct call *c = arg;
    int blocks = linear_blocks(c->w->n), end = cpu_share(blocks, task + 1, c->n_threads);
    bool stream = c->n_tiles <= STREAM_TILES;
    int group = stream ? 1 : GROUP_BLOCKS, step = stream && !c->read_once ? STREAM_K : c->k1 - c->k0;
    for (int first = cpu_share(blocks, task, c->n_threads); first < end; first += group)
        for (int k0 = c->k0; k0 < c->k1; k0 += step)
            for (int tile = 0; tile < c->n_tiles; tile++)
                for (int block = first; block < end && block < first + group; block++)
                    multiply(c, block, tile, k0, c->k1 - k0 < step ? c->k1 : k0 + step);
}

static int tiles_of(int n_rows, const struct linear_table *t) { return (n_rows + t->rows - 1) / t->rows; }

/* Floats of scratch for a matrix of k inputs and any number of rows. */
static size_t pack_floats(int k, const struct linear_table *t)
{
    size_t tile = (size_t)linear_x_stride(t->rows), stream = STREAM_TILES * tile * (size_t)(k + 1);
    size_t prompt = (size_t)tiles_of(BAND_ROWS, t) * tile * PIECE_K;
    return stream > prompt ? stream : prompt;
}

void cpu_linear_reserve(struct device *d, int k)
{
    struct cpu_device *c = cpu_of(d);
    size_t floats = pack_floats(k, c->linear);
    if (c->pack_floats >= floats) return;
    free(c->pack);
    c->pack_floats = floats;
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
#if defined(__x86_64__)
    if (dev->isa == CPU_ISA_AMX && dev->act == DTYPE_BF16 && w->dtype == DTYPE_BF16 && w->k % AMX_STEP == 0) {
        linear_amx(d, y, x, w, bias, n_rows);
        return;
    }
#endif
    struct call c = {
        .y = y, .x = x, .w = w, .bias = bias, .act = dev->act, .table = dev->linear, .pack = dev->pack};
    c.n_threads = cpu_threads(d);
    c.pack_floats = dev->pack_floats;
    c.block_bytes = linear_block_bytes(w->dtype, w->k);
    c.pairs = dev->pairs && w->dtype == DTYPE_BF16 && w->k % 2 == 0;
    c.k = c.pairs ? w->k / 2 : w->k;
    if (c.pairs) c.act = DTYPE_F32;
    int k_stored = c.pairs ? c.k : linear_k_stored(w->dtype, w->k);
    for (c.row0 = 0; c.row0 < n_rows; c.row0 += c.n_rows) {
        int left = n_rows - c.row0;
        c.n_rows = left < BAND_ROWS ? left : BAND_ROWS;
        c.n_tiles = tiles_of(c.n_rows, c.table);
        c.read_once = c.n_rows <= c.table->once_rows;
        int step = c.n_tiles <= STREAM_TILES ? k_stored : PIECE_K;
        for (c.k0 = 0; c.k0 < k_stored; c.k0 = c.k1) {
            c.k1 = k_stored - c.k0 < step ? k_stored : c.k0 + step;
            pack_rows(d, &c);
            cpu_parallel(d, multiply_task, &c, c.n_threads);
        }
    }
}
