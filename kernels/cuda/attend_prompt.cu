/* attend_prompt.cu - causal attention of prompt rows over all earlier keys of their sequence.
 *
 *   out(r, h) = sum_t softmax_t(q_rh . k_t * attention_scale) v_t,   first_visible(r) <= t <= r
 *
 * A block is 64 / n_heads consecutive rows of one span with one kv head's group of n_heads: up to 64 queries,
 * 16 to a warp. It walks over the keys in tiles of 64 positions (multiples of 64 in the sequence, wherever
 * the prompt was cut) with a running maximum and sum per query; while one tile is worked on, the next one's
 * keys and values are on their way by cp.async. Scores stay in registers and become the weights' fragments
 * there. The longest blocks come first.
 *
 * Invariants: a row's result depends on its query and its keys only: the tiles are the same for every
 * chunking of the prompt, and a tile of which a row sees nothing changes no bit of it. Slots past the block's
 * newest row, and before what its oldest one sees, are not read; zeros stand for them. Limits: tensor cores
 * for 16-bit caches of width 64, 80, 96, 128 (any page size); all else takes attend_plain.cuh. */
#include "kernels/cuda/attend_plain.cuh"
#include "kernels/cuda/mma.cuh"

enum { TILE = 64, THREADS = 128, QUERIES = 64 };

struct prompt {
    char *out;
    const float *q;
};

/* The work of a block: queries first .. first+n-1 of the span. */
struct work {
    struct prompt_span s;
    int kv_head, head, n_heads, first, n;
    int from, to; /* positions of its first and last row */
    const int32_t *blocks;
};

/* `room`: queries of a block. `whole`: only whole rows. */
static __device__ __forceinline__ bool find_work(struct work *w, const struct batch &b, const struct dims &m,
                                                 int room, bool whole)
{
    w->kv_head = blockIdx.y;
    w->s = b.prompt[blockIdx.z];
    w->n_heads = attended_heads(m, w->kv_head, &w->head);
    if (w->n_heads == 0) return false;
    if (whole) room = room / w->n_heads * w->n_heads;
    int n = w->s.n_rows * w->n_heads, tiles = (n + room - 1) / room, tile = tiles - 1 - (int)blockIdx.x;
    if (tile < 0) return false;
    w->first = tile * room;
    w->n = min(n - w->first, room);
    w->from = w->s.position0 + w->first / w->n_heads;
    w->to = w->s.position0 + (w->first + w->n - 1) / w->n_heads;
    w->blocks = span_blocks(b, m, w->s.slot);
    return true;
}

static __device__ __forceinline__ const float *query_of(const struct work &w, const struct prompt &a,
                                                        const struct dims &m, int i)
{
    int row = (w.first + i) / w.n_heads, head = w.first + i - row * w.n_heads;
    return a.q + ((size_t)(w.s.row0 + row) * (size_t)m.Qr + (size_t)(w.head + head)) * (size_t)m.E;
}
static __device__ __forceinline__ size_t out_of(const struct work &w, const struct dims &m, int i)
{
    int row = (w.first + i) / w.n_heads, head = w.first + i - row * w.n_heads;
    return ((size_t)(w.s.row0 + row) * (size_t)m.Hr + (size_t)(w.head - m.head_off + head)) * (size_t)m.E;
}

/* The key of a position; NULL where no query of the block may see it. */
static __device__ __forceinline__ const char *key_at(int position, int lowest, const struct work &w,
                                                     const struct kv_layer &kv, const struct dims &m)
{
    if (position < lowest || position > w.to) return NULL;
    int page = position / m.P;
    return page_keys(page_place_of(kv, w.blocks, page, m), m, w.kv_head) +
           (size_t)((position - page * m.P) * m.E * type_bytes(m.kv));
}

/* --- tensor cores --- */

template <int E> struct shape {
    enum { ROW = E + 8, BYTES = TILE * ROW * 2, SHARED = 4 * BYTES + 2 * TILE * 8 };
};

/* Keys and values of a tile on their way. */
template <int E>
static __device__ __forceinline__ void copy_tile(char *key, char *value, const char *const *place,
                                                 size_t distance, const struct kv_layer &kv)
{
    constexpr int PIECES = E / 8, ROW_BYTES = shape<E>::ROW * 2;
#pragma unroll 2 /* more of them in registers at once would spill */
    for (int j = 0; j < TILE * PIECES / THREADS; j++) {
        int at = j * THREADS + (int)threadIdx.x, t = at / PIECES, piece = at - t * PIECES;
        const char *from = place[t];
        bool valid = from;
        from = valid ? from + piece * 16 : kv.blocks;
        copy_async(key + t * ROW_BYTES + piece * 16, from, valid);
        copy_async(value + t * ROW_BYTES + piece * 16, valid ? from + distance : from, valid);
    }
    copy_commit();
}

/* A warp's 16 queries: rows g and g+8 of its fragments. */
struct query_state {
    int r[2]; /* position; -1: there is no such query */
    float top[2], sum[2];
};

template <typename T, int E>
static __device__ __forceinline__ void load_queries(uint32_t q[E / 16][4], T *tile, const struct work &w,
                                                    const struct prompt &a, const struct dims &m)
{
    constexpr int ROW = shape<E>::ROW;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int at = threadIdx.x; at < QUERIES * (E / 2); at += THREADS) {
        int i = at / (E / 2), e = (at - i * (E / 2)) * 2;
        float2 x = i < w.n ? *reinterpret_cast<const float2 *>(query_of(w, a, m, i) + e) : float2{0, 0};
        *reinterpret_cast<uint32_t *>(tile + i * ROW + e) = pack<T>(x.x, x.y);
    }
    __syncthreads(); /* queries are there */
    const T *row = tile + (warp * 16 + lane / 8 % 2 * 8 + lane % 8) * ROW + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < E / 16; k++) load_matrices(q[k], row + k * 16);
    __syncthreads(); /* the tile is free again */
}

/* Scores of the tile for the warp's queries. */
template <typename T, int E>
static __device__ __forceinline__ void score_tile(float s[TILE / 8][4], const uint32_t q[E / 16][4],
                                                  const char *key)
{
    constexpr int ROW = shape<E>::ROW;
    int lane = threadIdx.x % 32;
    const T *row = reinterpret_cast<const T *>(key) + (lane / 16 * 8 + lane % 8) * ROW + lane / 8 % 2 * 8;
#pragma unroll
    for (int nt = 0; nt < TILE / 8; nt += 2) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[nt][i] = s[nt + 1][i] = 0;
#pragma unroll
        for (int k = 0; k < E / 16; k++) {
            uint32_t x[4];
            load_matrices(x, row + nt * 8 * ROW + k * 16);
            mma<T>(s[nt], q[k], x[0], x[1]);
            mma<T>(s[nt + 1], q[k], x[2], x[3]);
        }
    }
}

/* Scores become weights in place; o is scaled to the new maximum. */
template <int E>
static __device__ __forceinline__ void weigh(float s[TILE / 8][4], float o[E / 8][4], struct query_state &y,
                                             int base, bool masked, int window, float scale)
{
    int t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = y.r[half], before = window ? r - window : -1;
        float top = -INFINITY;
#pragma unroll
        for (int i = 0; i < TILE / 8 * 2; i++) {
            float *x = &s[i / 2][half * 2 + i % 2];
            int at = base + i / 2 * 8 + t * 2 + i % 2;
            if (masked && !(at <= r && at > before)) *x = -INFINITY;
            top = fmaxf(top, *x);
        }
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        top = fmaxf(top, y.top[half]);
        float zero = top == -INFINITY ? 0.0f : __fmul_rn(top, scale), sum = 0;
        float f = exp2_fast(__fmul_rn(y.top[half], scale) - zero); /* 1 to the bit when top did not move */
#pragma unroll
        for (int i = 0; i < TILE / 8 * 2; i++) {
            float *x = &s[i / 2][half * 2 + i % 2];
            *x = exp2_fast(*x * scale - zero);
            sum += *x;
        }
        y.top[half] = top;
        y.sum[half] = y.sum[half] * f + sum;
#pragma unroll
        for (int j = 0; j < E / 8; j++) {
            o[j][half * 2] *= f;
            o[j][half * 2 + 1] *= f;
        }
    }
}

template <typename T, int E>
static __device__ __forceinline__ void add_values(float o[E / 8][4], const float s[TILE / 8][4],
                                                  const char *value)
{
    constexpr int ROW = shape<E>::ROW;
    const T *row = reinterpret_cast<const T *>(value) + threadIdx.x % 32 * ROW;
#pragma unroll
    for (int t = 0; t < TILE; t += 32) {
        uint32_t p[2][4];
#pragma unroll
        for (int k = 0; k < 2; k++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *x = s[t / 8 + k * 2 + i / 2] + i % 2 * 2;
                p[k][i] = pack<T>(x[0], x[1]);
            }
#pragma unroll
        for (int j = 0; j < E / 8; j++) {
            uint32_t v[4];
            load_transposed(v, row + t * ROW + j * 8);
            mma<T>(o[j], p[0], v[0], v[1]);
            mma<T>(o[j], p[1], v[2], v[3]);
        }
    }
}

template <typename T, int E>
static __global__ void __launch_bounds__(THREADS)
    attend_prompt_tiles(struct prompt a, struct kv_layer kv, struct batch b, struct dims m)
{
    constexpr int BYTES = shape<E>::BYTES;
    extern __shared__ __align__(16) char memory[];
    const char **place = reinterpret_cast<const char **>(memory + 4 * BYTES); /* (2,TILE) */
    struct work w;
    if (!find_work(&w, b, m, QUERIES, true)) return;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, window = kv.sliding_window;
    int lowest = first_visible(w.from, window), begin = lowest / TILE * TILE;
    size_t distance = values_distance(m);
    uint32_t q[E / 16][4];
    load_queries<T, E>(q, reinterpret_cast<T *>(memory), w, a, m);
    struct query_state y;
    float o[E / 8][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int i = warp * 16 + half * 8 + lane / 4;
        y.r[half] = i < w.n ? w.s.position0 + (w.first + i) / w.n_heads : -1;
        y.top[half] = -INFINITY;
        y.sum[half] = 0;
#pragma unroll
        for (int j = 0; j < E / 8; j++) o[j][half * 2] = o[j][half * 2 + 1] = 0;
    }
    /* Where the keys of the tile in flight and of the one after it lie: found a tile ahead. */
    for (int i = threadIdx.x; i < 2 * TILE; i += THREADS) place[i] = key_at(begin + i, lowest, w, kv, m);
    __syncthreads(); /* places of two tiles are known */
    copy_tile<E>(memory, memory + 2 * BYTES, place, distance, kv);
    for (int base = begin, stage = 0; base <= w.to; base += TILE, stage ^= 1) {
        copy_wait<0>();
        __syncthreads();          /* the tile is there, the last one is done with */
        const char *later = NULL; /* this tile's places make room for those of the tile after the next */
        if (threadIdx.x < TILE) later = key_at(base + 2 * TILE + (int)threadIdx.x, lowest, w, kv, m);
        if (base + TILE <= w.to)
            copy_tile<E>(memory + (stage ^ 1) * BYTES, memory + (2 + (stage ^ 1)) * BYTES,
                         place + (stage ^ 1) * TILE, distance, kv);
        float s[TILE / 8][4];
        score_tile<T, E>(s, q, memory + stage * BYTES);
        bool masked = base + TILE - 1 > w.from || (window && base <= w.to - window);
        weigh<E>(s, o, y, base, masked, window, m.attention_scale * 1.44269504f);
        add_values<T, E>(o, s, memory + (2 + stage) * BYTES);
        if (threadIdx.x < TILE) place[stage * TILE + threadIdx.x] = later;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = y.sum[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        int i = warp * 16 + half * 8 + lane / 4;
        if (i >= w.n) continue;
        size_t at = out_of(w, m, i) + (size_t)(lane % 4 * 2);
        float inverse = 1.0f / sum;
#pragma unroll
        for (int j = 0; j < E / 8; j++) {
            float x = o[j][half * 2] * inverse, z = o[j][half * 2 + 1] * inverse;
            size_t to = at + (size_t)(j * 8);
            if (m.act == DTYPE_F32) *reinterpret_cast<float2 *>(a.out + to * 4) = make_float2(x, z);
            else
                *reinterpret_cast<uint32_t *>(a.out + to * 2) =
                    m.act == DTYPE_BF16 ? pack<__nv_bfloat16>(x, z) : pack<__half>(x, z);
        }
    }
}

/* --- every other width and type --- */

static __global__ void __launch_bounds__(PLAIN_THREADS)
    attend_prompt_plain(struct prompt a, struct kv_layer kv, struct batch b, struct dims m)
{
    extern __shared__ __align__(16) char memory[];
    struct work w;
    if (!find_work(&w, b, m, PLAIN_QUERIES, false)) return;
    struct plain_shared s = plain_carve(memory, m.E);
    if (threadIdx.x < PLAIN_QUERIES) {
        int i = threadIdx.x;
        s.query[i] = {i < w.n ? w.s.position0 + (w.first + i) / w.n_heads : -1, INT_MAX};
    }
    __syncthreads(); /* queries are known */
    plain_begin(s, m.E, [&](int i) { return query_of(w, a, m, i); });
    int lowest = first_visible(w.from, kv.sliding_window);
    for (int base = lowest / PLAIN_TOKENS * PLAIN_TOKENS; base <= w.to; base += PLAIN_TOKENS)
        plain_tile(s, kv.sliding_window, m, [&](int t) {
            struct plain_token token = {key_at(base + t, lowest, w, kv, m), base + t, -1};
            return token;
        });
    __syncthreads(); /* o and l are complete */
    for (int at = threadIdx.x; at < w.n * m.E; at += PLAIN_THREADS) {
        int i = at / m.E;
        put_element(a.out, out_of(w, m, i) + (size_t)(at - i * m.E), s.o[at] / s.l[i], m.act);
    }
}

/* --- launch --- */

template <typename T, int E>
static void launch_tiles(dim3 grid, struct prompt a, const struct kv_layer *kv, const struct batch *b,
                         const struct dims *m, cudaStream_t stream)
{
    allow_shared(attend_prompt_tiles<T, E>, shape<E>::SHARED);
    attend_prompt_tiles<T, E><<<grid, THREADS, shape<E>::SHARED, stream>>>(a, *kv, *b, *m);
}

template <typename T>
static void launch_width(dim3 grid, struct prompt a, const struct kv_layer *kv, const struct batch *b,
                         const struct dims *m, cudaStream_t stream)
{
    if (m->E == 64) launch_tiles<T, 64>(grid, a, kv, b, m, stream);
    else if (m->E == 80) launch_tiles<T, 80>(grid, a, kv, b, m, stream);
    else if (m->E == 96) launch_tiles<T, 96>(grid, a, kv, b, m, stream);
    else launch_tiles<T, 128>(grid, a, kv, b, m, stream);
}

extern "C" void cuda_attend_prompt(struct device *d, void *out, const float *q, const struct kv_layer *kv,
                                   const struct batch *b, const struct dims *m)
{
    ASSERT(m->E <= ATTENTION_MAX_E && m->E % 2 == 0 && m->G <= ATTENTION_MAX_G);
    if (b->n_prompt == 0) return;
    int rows = 0;
    for (int i = 0; i < b->n_prompt; i++)
        rows = b->host_prompt[i].n_rows > rows ? b->host_prompt[i].n_rows : rows;
    cudaStream_t stream = cuda_of(d)->stream;
    struct prompt a = {(char *)out, q};
    bool tiles = tensor_width(m->E) && m->kv != DTYPE_F32;
    int heads = m->G < m->Hr ? m->G : m->Hr; /* most of a kv head */
    int per_block = tiles ? QUERIES / heads * heads : PLAIN_QUERIES;
    dim3 grid((unsigned)((rows * heads + per_block - 1) / per_block), (unsigned)m->Kr, (unsigned)b->n_prompt);
    if (tiles && m->kv == DTYPE_BF16) launch_width<__nv_bfloat16>(grid, a, kv, b, m, stream);
    else if (tiles) launch_width<__half>(grid, a, kv, b, m, stream);
    else {
        size_t bytes = plain_shared_bytes(m->E);
        allow_shared(attend_prompt_plain, bytes);
        attend_prompt_plain<<<grid, PLAIN_THREADS, bytes, stream>>>(a, *kv, *b, *m);
    }
    cuda_check_launch("attend_prompt");
}
