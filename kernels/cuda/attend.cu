/* attend.cu - decode attention over the chosen pages: docs/algorithm.md steps 3 and 4 up to the merge.
 *
 *   part(row, split, h) = (m, sum_t e^(s_t - m), sum_t e^(s_t - m) v_t),  s_t = q_h . k_t * attention_scale
 *
 * over the keys t of the split's pages that the row may see: for the new row all of S, for a revised row r
 * the pages with last_loaded < r; in both cases keys <= r and inside the sliding window of r.
 *
 * A block is one split of the page list of one kv head of one span, for up to 64 queries of the window and
 * the group; their keys and values come from memory once. Tiles of 64 tokens, gathered from pages of 4 to 64,
 * move through a ring in shared memory by cp.async; keys run half a tile ahead of values, since a tile's keys
 * are done with before its values. Per tile: warp w scores tokens 16w .. 16w+15 for all queries (q . k on
 * tensor cores, masked), the warps agree on each query's maximum, weights go through shared memory in the
 * cache's type, and warp w adds up a quarter of the output's columns over all 64 tokens.
 *
 * Invariants: a query's part depends on its q, its mask and the list: neither on its place among the queries
 * nor on how many there are. Slots without a visible key are not read, zeros stand for them. A tile of which
 * a query sees nothing changes no bit of it. Limits: tensor cores for 16-bit caches of width 64, 80, 96, 128
 * with pages that divide 64; all else takes attend_plain.cuh. With more than 64 queries (window times group)
 * keys and values are read once per 64. */
#include "kernels/cuda/attend_plain.cuh"
#include "kernels/cuda/mma.cuh"

enum {
    TILE = 64,        /* tokens */
    THREADS = 128,    /* 4 warps of 16 tokens */
    QUERIES = 64,     /* of a block */
    WEIGHT_ROW = 72,  /* elements of a row of weights: 64 and padding, an odd number of 16-byte pieces */
    WINDOW = THREADS, /* pages whose places are looked up together */
};

struct attend {
    struct part part;
    const float *q;
    const int32_t *pages, *count;
    int splits,
        queries; /* of the launch: grid.x = splits * groups of queries; queries a block has room for */
};

/* The work of a block. */
struct work {
    struct decode_span s;
    int kv_head, split, head, n_heads, first_query, n_queries;
    int oldest;          /* position of the first row */
    const int32_t *list; /* the split's pages */
    int n_pages;
    const int32_t *blocks;
};

static __device__ __forceinline__ bool find_work(struct work *w, const struct attend &a,
                                                 const struct batch &b, const struct dims &m, int room)
{
    int span = blockIdx.z;
    w->kv_head = blockIdx.y;
    w->s = b.decode[span];
    if (w->s.n_rows <= 0) return false;
    w->split = (int)blockIdx.x % a.splits;
    w->first_query = (int)blockIdx.x / a.splits * room;
    w->n_heads = attended_heads(m, w->kv_head, &w->head);
    w->n_queries = min(w->s.n_rows * w->n_heads - w->first_query, room);
    if (w->n_queries <= 0) return false;
    int at = span * m.Kr + w->kv_head, n_pages = a.count[at];
    int per_split = split_pages(n_pages, m), from = w->split * per_split;
    if (from >= n_pages) return false;
    w->list = a.pages + (size_t)at * (size_t)(m.C / m.P) + from;
    w->n_pages = min(n_pages - from, per_split);
    w->oldest = w->s.position - w->s.n_rows + 1;
    w->blocks = span_blocks(b, m, w->s.slot);
    return true;
}

static __device__ __forceinline__ size_t part_of_query(const struct work &w, const struct attend &a,
                                                       const struct dims &m, int i)
{
    int query = w.first_query + i, row = query / w.n_heads;
    return part_index(a.part, m, w.s.row0 + row, w.split, w.head - m.head_off + query - row * w.n_heads);
}
static __device__ __forceinline__ const float *query_of(const struct work &w, const struct attend &a,
                                                        const struct dims &m, int i)
{
    int query = w.first_query + i, row = query / w.n_heads;
    return a.q + ((size_t)(w.s.row0 + row) * (size_t)m.Qr + (size_t)(w.head + query - row * w.n_heads)) *
                     (size_t)m.E;
}

/* --- tensor cores --- */

/* A page of the split. */
struct page {
    const char *keys; /* NULL: past the end of the list */
    int first;        /* position of its first slot */
    int last_loaded;
};

/* Shared memory of a block: the ring of tiles, queries, weights, two windows of pages, maxima (in the end sums). */
template <int E> struct ring {
    enum { ROW = E + 8, STAGES = E <= 64 ? 4 : E <= 80 ? 3 : 2, BYTES = TILE * ROW * 2 };
};
template <int E> static constexpr size_t shared_bytes(int queries)
{
    return 2 * ring<E>::STAGES * ring<E>::BYTES + (size_t)queries * (ring<E>::ROW + WEIGHT_ROW) * 2 +
           2 * WINDOW * sizeof(struct page) + 4 * QUERIES * sizeof(float);
}

/* Window `i` of the split's pages into its slot; the caller needs a barrier before it is read. */
static __device__ __forceinline__ void load_window(struct page *slot, int i, const struct work &w,
                                                   const struct kv_layer &kv, const struct dims &m)
{
    int at = i * WINDOW + (int)threadIdx.x;
    struct page p = {NULL, 0, 0};
    if (at < w.n_pages) {
        int page = w.list[at];
        struct page_place place = page_place_of(kv, w.blocks, page, m);
        p.keys = page_keys(place, m, w.kv_head);
        p.first = page * m.P;
        if (w.s.n_rows > 1) p.last_loaded = *page_last_loaded(kv, m, w.s.slot, w.kv_head, page);
    }
    slot[threadIdx.x] = p;
}

/* The keys (distance 0) or values of a tile on their way into `to`. */
template <int E>
static __device__ __forceinline__ void copy_tile(char *to, const struct page *pages, int tile,
                                                 size_t distance, const struct work &w, int lowest,
                                                 int page_shift, const struct kv_layer &kv)
{
    constexpr int PIECES = E / 8;
#pragma unroll
    for (int j = 0; j < TILE * PIECES / THREADS; j++) {
        int at = j * THREADS + (int)threadIdx.x, t = at / PIECES, piece = at - t * PIECES;
        int token = tile * TILE + t, in_page = token & ((1 << page_shift) - 1);
        struct page p = pages[token >> page_shift & (2 * WINDOW - 1)];
        int position = p.first + in_page;
        bool valid = p.keys && position <= w.s.position && position >= lowest;
        const char *from = p.keys + distance + (size_t)in_page * (E * 2) + piece * 16;
        copy_async(to + t * (ring<E>::ROW * 2) + piece * 16, valid ? from : kv.blocks, valid);
    }
}

/* What a thread keeps of its queries: tile mt of 16, rows g and g+8 of it. */
struct query_state {
    int r[4][2];     /* position; -1: there is no such query */
    float top[4][2]; /* largest score so far, unscaled */
    float sum[4][2]; /* of this thread's weights */
};

/* Scores of 16 tokens for all queries: s[mt][nt]. */
template <typename T, int E>
static __device__ __forceinline__ void score_tokens(float s[4][2][4], const char *key, const T *q, int n_mt)
{
    constexpr int ROW = ring<E>::ROW;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const T *k_row =
        reinterpret_cast<const T *>(key) + (warp * 16 + lane / 16 * 8 + lane % 8) * ROW + lane / 8 % 2 * 8;
    const T *q_row = q + (lane / 8 % 2 * 8 + lane % 8) * ROW + lane / 16 * 8;
#pragma unroll
    for (int mt = 0; mt < 4; mt++)
#pragma unroll
        for (int i = 0; i < 8; i++) s[mt][i / 4][i % 4] = 0;
#pragma unroll
    for (int e = 0; e < E; e += 16) {
        uint32_t k[4];
        load_matrices(k, k_row + e);
#pragma unroll
        for (int mt = 0; mt < 4; mt++) {
            if (mt >= n_mt) break;
            uint32_t x[4];
            load_matrices(x, q_row + mt * 16 * ROW + e);
            mma<T>(s[mt][0], x, k[0], k[1]);
            mma<T>(s[mt][1], x, k[2], k[3]);
        }
    }
}

/* Masks the scores and leaves each query's maximum over the warp's tokens in shared memory. */
static __device__ __forceinline__ void mask_scores(float s[4][2][4], const struct query_state &y,
                                                   float *warp_max, const struct page *pages, int tile,
                                                   int page_shift, int newest, int window, int n_mt)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, position[2], last_loaded[2];
#pragma unroll
    for (int nt = 0; nt < 2; nt++) { /* a pair of tokens is in one page */
        int token = tile * TILE + warp * 16 + nt * 8 + lane % 4 * 2;
        struct page p = pages[token >> page_shift & (2 * WINDOW - 1)];
        position[nt] = p.keys ? p.first + (token & ((1 << page_shift) - 1)) : INT_MAX - 1;
        last_loaded[nt] = p.last_loaded;
    }
#pragma unroll
    for (int mt = 0; mt < 4; mt++) {
        if (mt >= n_mt) break;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int r = y.r[mt][half], before = window ? r - window : -1;
            float top = -INFINITY;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int at = position[i / 2] + i % 2;
                float *x = &s[mt][i / 2][half * 2 + i % 2];
                if (!(at <= r && at > before && (last_loaded[i / 2] < r || r == newest))) *x = -INFINITY;
                top = fmaxf(top, *x);
            }
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            if (lane % 4 == 0) warp_max[warp * QUERIES + mt * 16 + half * 8 + lane / 4] = top;
        }
    }
}

/* Scores become weights in shared memory; what was added up so far is scaled to the new maximum. */
template <typename T, int COLUMNS>
static __device__ __forceinline__ void weigh(float s[4][2][4], float o[4][COLUMNS][4], struct query_state &y,
                                             T *p, const float *warp_max, float scale, int n_mt)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int mt = 0; mt < 4; mt++) {
        if (mt >= n_mt) break;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int i = mt * 16 + half * 8 + lane / 4;
            float top = y.top[mt][half];
#pragma unroll
            for (int k = 0; k < 4; k++) top = fmaxf(top, warp_max[k * QUERIES + i]);
            float base = top == -INFINITY ? 0.0f : __fmul_rn(top, scale);
            float f =
                exp2_fast(__fmul_rn(y.top[mt][half], scale) - base); /* 1 to the bit when top did not move */
            float *a = s[mt][0] + half * 2, *c = s[mt][1] + half * 2;
            a[0] = exp2_fast(a[0] * scale - base);
            a[1] = exp2_fast(a[1] * scale - base);
            c[0] = exp2_fast(c[0] * scale - base);
            c[1] = exp2_fast(c[1] * scale - base);
            y.top[mt][half] = top;
            y.sum[mt][half] = y.sum[mt][half] * f + ((a[0] + a[1]) + (c[0] + c[1]));
            uint32_t *to = reinterpret_cast<uint32_t *>(p + i * WEIGHT_ROW + warp * 16 + lane % 4 * 2);
            to[0] = pack<T>(a[0], a[1]);
            to[4] = pack<T>(c[0], c[1]);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                o[mt][j][half * 2] *= f;
                o[mt][j][half * 2 + 1] *= f;
            }
        }
    }
}

/* o += weights times the warp's columns of the tile's values. */
template <typename T, int E, int COLUMNS>
static __device__ __forceinline__ void add_values(float o[4][COLUMNS][4], const char *value, const T *p,
                                                  int n_mt)
{
    constexpr int ROW = ring<E>::ROW;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const T *v_row = reinterpret_cast<const T *>(value) + lane * ROW + warp * COLUMNS * 8;
    const T *p_row = p + (lane / 8 % 2 * 8 + lane % 8) * WEIGHT_ROW + lane / 16 * 8;
#pragma unroll
    for (int t = 0; t < TILE; t += 32) {
        uint32_t v[COLUMNS][4];
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            if (E % 32 == 0 || warp * COLUMNS + j < E / 8) load_transposed(v[j], v_row + t * ROW + j * 8);
#pragma unroll
        for (int mt = 0; mt < 4; mt++) {
            if (mt >= n_mt) break;
            uint32_t x[2][4];
            load_matrices(x[0], p_row + mt * 16 * WEIGHT_ROW + t);
            load_matrices(x[1], p_row + mt * 16 * WEIGHT_ROW + t + 16);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                if (E % 32 && warp * COLUMNS + j >= E / 8) break;
                mma<T>(o[mt][j], x[0], v[j][0], v[j][1]);
                mma<T>(o[mt][j], x[1], v[j][2], v[j][3]);
            }
        }
    }
}

/* The block's partial results. */
template <int E, int COLUMNS>
static __device__ __forceinline__ void store_part(float o[4][COLUMNS][4], const struct query_state &y,
                                                  float *warp_sums, const struct work &w,
                                                  const struct attend &a, const struct dims &m, int n_mt)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int mt = 0; mt < 4; mt++) {
        if (mt >= n_mt) break;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = y.sum[mt][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if (lane % 4 == 0) warp_sums[warp * QUERIES + mt * 16 + half * 8 + lane / 4] = sum;
        }
    }
    __syncthreads(); /* every warp's sums are there */
#pragma unroll
    for (int mt = 0; mt < 4; mt++) {
        if (mt >= n_mt) break;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int i = mt * 16 + half * 8 + lane / 4;
            if (i >= w.n_queries) continue;
            size_t at = part_of_query(w, a, m, i);
            float top = y.top[mt][half];
            if (warp == 0 && lane % 4 == 0) {
                float sum = 0;
                for (int k = 0; k < 4; k++) sum += warp_sums[k * QUERIES + i];
                reinterpret_cast<float2 *>(a.part.ml)[at] = make_float2(top * m.attention_scale, sum);
            }
            if (top == -INFINITY) continue;
            float *to = a.part.out + at * E + warp * COLUMNS * 8 + lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                if (E % 32 && warp * COLUMNS + j >= E / 8) break;
                *reinterpret_cast<float2 *>(to + j * 8) =
                    make_float2(o[mt][j][half * 2], o[mt][j][half * 2 + 1]);
            }
        }
    }
}

template <typename T, int E>
static __global__ void __launch_bounds__(THREADS)
    attend_tiles(struct attend a, struct kv_layer kv, struct batch b, struct dims m)
{
    constexpr int ROW = ring<E>::ROW, STAGES = ring<E>::STAGES, BYTES = ring<E>::BYTES;
    constexpr int COLUMNS = (E / 8 + 3) / 4; /* of 8 elements, a warp's share */
    extern __shared__ __align__(16) char memory[];
    struct work w;
    if (!find_work(&w, a, b, m, a.queries)) return;
    char *key = memory, *value = key + STAGES * BYTES;
    T *q = reinterpret_cast<T *>(value + STAGES * BYTES), *p = q + a.queries * ROW;
    struct page *pages = reinterpret_cast<struct page *>(p + a.queries * WEIGHT_ROW);
    float *of_warps = reinterpret_cast<float *>(pages + 2 * WINDOW);
    int n_mt = (w.n_queries + 15) / 16, page_shift = __ffs(m.P) - 1, g = threadIdx.x % 32 / 4;
    int lowest = first_visible(w.oldest, kv.sliding_window), n_windows = 1;
    int n_tiles = (w.n_pages * m.P + TILE - 1) / TILE;
    size_t distance = values_distance(m);

    load_window(pages, 0, w, kv, m);
    for (int at = threadIdx.x; at < n_mt * 16 * (E / 2); at += THREADS) {
        int i = at / (E / 2), e = (at - i * (E / 2)) * 2;
        float2 x =
            i < w.n_queries ? *reinterpret_cast<const float2 *>(query_of(w, a, m, i) + e) : float2{0, 0};
        *reinterpret_cast<uint32_t *>(q + i * ROW + e) = pack<T>(x.x, x.y);
    }
    struct query_state y;
    float o[4][COLUMNS][4];
#pragma unroll
    for (int mt = 0; mt < 4; mt++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int i = mt * 16 + half * 8 + g;
            y.r[mt][half] = i < w.n_queries ? w.oldest + (w.first_query + i) / w.n_heads : -1;
            y.top[mt][half] = -INFINITY;
            y.sum[mt][half] = 0;
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) o[mt][j][half * 2] = o[mt][j][half * 2 + 1] = 0;
        }
    __syncthreads(); /* the first window of pages is known */
    /* Groups under way are K0 V0 K1 V1 ... in this order, empty ones past the last tile. */
#pragma unroll
    for (int t = 0; t < STAGES; t++) {
        if (t < n_tiles) copy_tile<E>(key + t * BYTES, pages, t, 0, w, lowest, page_shift, kv);
        copy_commit();
        if (t == STAGES - 1) break;
        if (t < n_tiles) copy_tile<E>(value + t * BYTES, pages, t, distance, w, lowest, page_shift, kv);
        copy_commit();
    }
    for (int t = 0, stage = 0; t < n_tiles; t++, stage = stage + 1 == STAGES ? 0 : stage + 1) {
        int before = stage == 0 ? STAGES - 1 : stage - 1;
        if (t + STAGES < n_tiles && ((t + STAGES) * TILE >> page_shift) / WINDOW >= n_windows) {
            load_window(pages + n_windows % 2 * WINDOW, n_windows, w, kv, m);
            n_windows++;
        }
        copy_wait<2 * STAGES - 2>();
        __syncthreads(); /* the tile's keys are there, and tile t-1 is done with */
        if (t + STAGES - 1 < n_tiles)
            copy_tile<E>(value + before * BYTES, pages, t + STAGES - 1, distance, w, lowest, page_shift, kv);
        copy_commit();
        float s[4][2][4];
        score_tokens<T, E>(s, key + stage * BYTES, q, n_mt);
        mask_scores(s, y, of_warps, pages, t, page_shift, w.s.position, kv.sliding_window, n_mt);
        __syncthreads(); /* every warp's maxima are there, and the tile's keys are done with */
        if (t + STAGES < n_tiles)
            copy_tile<E>(key + stage * BYTES, pages, t + STAGES, 0, w, lowest, page_shift, kv);
        copy_commit();
        weigh<T, COLUMNS>(s, o, y, p, of_warps, m.attention_scale * 1.44269504f, n_mt);
        copy_wait<2 * STAGES - 1>();
        __syncthreads(); /* every warp's weights and the tile's values are there */
        add_values<T, E, COLUMNS>(o, value + stage * BYTES, p, n_mt);
    }
    store_part<E, COLUMNS>(o, y, of_warps, w, a, m, n_mt); /* its maxima were read before the last barrier */
}

/* --- every other width and type --- */

static __global__ void __launch_bounds__(PLAIN_THREADS, 1)
    attend_plain(struct attend a, struct kv_layer kv, struct batch b, struct dims m)
{
    extern __shared__ __align__(16) char memory[];
    struct work w;
    if (!find_work(&w, a, b, m, PLAIN_QUERIES)) return;
    struct plain_shared s = plain_carve(memory, m.E);
    if (threadIdx.x < PLAIN_QUERIES) {
        int i = threadIdx.x, r = w.oldest + (w.first_query + i) / w.n_heads;
        s.query[i] = {i < w.n_queries ? r : -1, r == w.s.position ? INT_MAX : r};
    }
    __syncthreads(); /* queries are known */
    plain_begin(s, m.E, [&](int i) { return query_of(w, a, m, i); });
    int lowest = first_visible(w.oldest, kv.sliding_window);
    for (int base = 0; base < w.n_pages * m.P; base += PLAIN_TOKENS)
        plain_tile(s, kv.sliding_window, m, [&](int t) {
            struct plain_token token = {NULL, 0, 0};
            int at = (base + t) / m.P, in_page = base + t - at * m.P;
            if (at >= w.n_pages) return token;
            int page = w.list[at];
            token.position = page * m.P + in_page;
            if (token.position > w.s.position || token.position < lowest) return token;
            struct page_place place = page_place_of(kv, w.blocks, page, m);
            token.key = page_keys(place, m, w.kv_head) + (size_t)(in_page * m.E * type_bytes(m.kv));
            if (w.s.n_rows > 1) token.last_loaded = *page_last_loaded(kv, m, w.s.slot, w.kv_head, page);
            return token;
        });
    __syncthreads(); /* o, m and l are complete */
    for (int at = threadIdx.x; at < w.n_queries * m.E; at += PLAIN_THREADS) {
        int i = at / m.E;
        if (s.m[i] == -INFINITY) continue;
        a.part.out[part_of_query(w, a, m, i) * (size_t)m.E + (size_t)(at - i * m.E)] = s.o[at];
    }
    if ((int)threadIdx.x < w.n_queries)
        reinterpret_cast<float2 *>(a.part.ml)[part_of_query(w, a, m, (int)threadIdx.x)] =
            make_float2(s.m[threadIdx.x], s.l[threadIdx.x]);
}

/* --- launch --- */

extern "C" size_t cuda_attend_part_bytes(struct device *d, const struct dims *m)
{
    (void)d;
    size_t n = (size_t)decode_rows_max(m) * (size_t)splits_most(m->C, m->Kr) * (size_t)m->Hr;
    return n * ((size_t)m->E + 2) * sizeof(float);
}

template <typename T, int E>
static void launch_tiles(dim3 grid, struct attend a, const struct kv_layer *kv, const struct batch *b,
                         const struct dims *m, cudaStream_t stream)
{
    static_assert(shared_bytes<E>(QUERIES) <= SHARED_MOST, "fits every GPU");
    size_t bytes = shared_bytes<E>(a.queries);
    allow_shared(attend_tiles<T, E>, bytes);
    attend_tiles<T, E><<<grid, THREADS, bytes, stream>>>(a, *kv, *b, *m);
}

template <typename T>
static void launch_width(dim3 grid, struct attend a, const struct kv_layer *kv, const struct batch *b,
                         const struct dims *m, cudaStream_t stream)
{
    if (m->E == 64) launch_tiles<T, 64>(grid, a, kv, b, m, stream);
    else if (m->E == 80) launch_tiles<T, 80>(grid, a, kv, b, m, stream);
    else if (m->E == 96) launch_tiles<T, 96>(grid, a, kv, b, m, stream);
    else launch_tiles<T, 128>(grid, a, kv, b, m, stream);
}

extern "C" void cuda_attend(struct device *d, void *part, const float *q, const struct kv_layer *kv,
                            const int32_t *pages, const int32_t *count, const struct batch *b,
                            const struct dims *m)
{
    ASSERT(m->E <= ATTENTION_MAX_E && m->E % 2 == 0 && m->G <= ATTENTION_MAX_G);
    ASSERT(b->n_decode_rows <= decode_rows_max(m));
    if (b->n_decode == 0) return;
    cudaStream_t stream = cuda_of(d)->stream;
    struct attend a = {part_of(part, m), q, pages, count, 0, 0};
    a.splits = splits_most(candidates_most(b, kv, m) * m->P, m->Kr);
    int queries = queries_most(b, m);
    bool tiles = m->kv != DTYPE_F32 && m->P >= 4 && TILE % m->P == 0 && tensor_width(m->E);
    a.queries = tiles ? (queries < QUERIES ? (queries + 15) / 16 * 16 : QUERIES) : PLAIN_QUERIES;
    dim3 grid((unsigned)(a.splits * ((queries + a.queries - 1) / a.queries)), (unsigned)m->Kr,
              (unsigned)b->n_decode);
    if (tiles && m->kv == DTYPE_BF16) launch_width<__nv_bfloat16>(grid, a, kv, b, m, stream);
    else if (tiles) launch_width<__half>(grid, a, kv, b, m, stream);
    else {
        size_t bytes = plain_shared_bytes(m->E);
        allow_shared(attend_plain, bytes);
        attend_plain<<<grid, PLAIN_THREADS, bytes, stream>>>(a, *kv, *b, *m);
    }
    cuda_check_launch("attend");
}
