/* attend_plain.cuh - attention in f32 for every head width and type: the slow form behind attend.cu and
 * attend_prompt.cu, for f32 caches and for widths that have no tensor-core form.
 *
 *   s_t = q . k_t * scale,   m = max s_t,   l = sum e^(s_t - m),   o = sum e^(s_t - m) v_t
 *
 * A block takes PLAIN_QUERIES queries through tiles of PLAIN_TOKENS tokens: the tile's keys and values lie in
 * shared memory as f32, a warp weighs the tile for one query at a time (a lane is a token), then each thread
 * adds values to its elements of o. Scores are one chain of multiply-adds over the elements, o and l are
 * moved on tile by tile: a query's result depends on its own mask and keys only, and a tile of which it sees
 * nothing changes no bit of it.
 *
 * Cost: keys and values come from memory once for every PLAIN_QUERIES queries (a window of 2 with 8 heads:
 * once; a window of 8 with 8 heads: four times), and every product is a multiply-add on two operands in
 * shared memory, so instructions bound it long before memory does. It is there to be exact (f32 caches) and
 * to leave no head width out, up to 256; models that are served have a tensor-core width and a 16-bit cache.
 */
#ifndef RETRO_KERNELS_CUDA_ATTEND_PLAIN_CUH
#define RETRO_KERNELS_CUDA_ATTEND_PLAIN_CUH

#include "kernels/cuda/attention.cuh"

enum { PLAIN_QUERIES = 16, PLAIN_TOKENS = 32, PLAIN_THREADS = 128 };

/* What a lane knows about its token. */
struct plain_token {
    const char *key; /* NULL: not to be read */
    int position, last_loaded;
};

/* What the block's query i is. r = -1: there is none. */
struct plain_query {
    int r;     /* position */
    int limit; /* sees pages with last_loaded below this */
};

struct plain_shared {
    float *q, *o, *k, *v; /* (PLAIN_QUERIES,E) twice, (PLAIN_TOKENS,E+1): an odd stride, (PLAIN_TOKENS,E) */
    float *p, *m, *l, *f; /* (PLAIN_QUERIES,PLAIN_TOKENS), (PLAIN_QUERIES) thrice */
    struct plain_token *token;
    struct plain_query *query;
};

static constexpr size_t plain_shared_bytes(int E)
{
    return sizeof(struct plain_token) * PLAIN_TOKENS + sizeof(struct plain_query) * PLAIN_QUERIES +
           sizeof(float) * (size_t)(2 * PLAIN_QUERIES * E + PLAIN_TOKENS * (2 * E + 1) +
                                    PLAIN_QUERIES * (PLAIN_TOKENS + 3));
}
static_assert(plain_shared_bytes(ATTENTION_MAX_E) <= SHARED_MOST, "fits every GPU");

static __device__ __forceinline__ struct plain_shared plain_carve(char *memory, int E)
{
    struct plain_shared s;
    s.token = reinterpret_cast<struct plain_token *>(memory);
    s.query = reinterpret_cast<struct plain_query *>(s.token + PLAIN_TOKENS);
    s.q = reinterpret_cast<float *>(s.query + PLAIN_QUERIES);
    s.o = s.q + PLAIN_QUERIES * E;
    s.k = s.o + PLAIN_QUERIES * E;
    s.v = s.k + PLAIN_TOKENS * (E + 1);
    s.p = s.v + PLAIN_TOKENS * E;
    s.m = s.p + PLAIN_QUERIES * PLAIN_TOKENS;
    s.l = s.m + PLAIN_QUERIES;
    s.f = s.l + PLAIN_QUERIES;
    return s;
}

/* Before the first tile; s.query must be visible. q_of(i) is the query's E floats. */
template <typename Q> static __device__ void plain_begin(const struct plain_shared &s, int E, Q q_of)
{
    for (int at = threadIdx.x; at < PLAIN_QUERIES * E; at += PLAIN_THREADS) {
        int i = at / E;
        s.q[at] = s.query[i].r >= 0 ? q_of(i)[at - i * E] : 0.0f;
        s.o[at] = 0;
    }
    if (threadIdx.x < PLAIN_QUERIES) {
        s.m[threadIdx.x] = -INFINITY;
        s.l[threadIdx.x] = 0;
    }
}

/* The query i's weights of the tile, by one warp; moves m and l on. */
static __device__ __forceinline__ void plain_weigh(const struct plain_shared &s, int i, int window,
                                                   const struct dims &m)
{
    int lane = threadIdx.x % 32, E = m.E;
    struct plain_query query = s.query[i];
    struct plain_token token = s.token[lane];
    float score = 0;
    for (int e = 0; e < E; e++) score += s.q[i * E + e] * s.k[lane * (E + 1) + e];
    bool seen = token.key && token.position <= query.r && token.last_loaded < query.limit &&
                (!window || token.position > query.r - window);
    score = seen ? score * m.attention_scale : -INFINITY;
    float old = s.m[i], top = fmaxf(old, warp_max(score));
    float p = seen ? expf(score - top) : 0.0f, sum = warp_sum(p);
    float f = old == -INFINITY ? 0.0f : expf(old - top);
    s.p[i * PLAIN_TOKENS + lane] = p;
    __syncwarp(); /* every lane has read m */
    if (lane == 0) {
        s.f[i] = f;
        s.l[i] = s.l[i] * f + sum;
        s.m[i] = top;
    }
}

/* One tile. token_of(t) describes token t of it; all threads call this. */
template <typename Token>
static __device__ void plain_tile(const struct plain_shared &s, int window, const struct dims &m,
                                  Token token_of)
{
    int E = m.E, warp = threadIdx.x / 32;
    __syncthreads(); /* the last tile is done with (and q, m, l are there) */
    if (threadIdx.x < PLAIN_TOKENS) s.token[threadIdx.x] = token_of((int)threadIdx.x);
    __syncthreads(); /* tokens are known */
    for (int at = threadIdx.x; at < PLAIN_TOKENS * E; at += PLAIN_THREADS) {
        int t = at / E, e = at - t * E;
        const char *key = s.token[t].key;
        s.k[t * (E + 1) + e] = key ? element(key, e, m.kv) : 0.0f;
        s.v[at] = key ? element(key + values_distance(m), e, m.kv) : 0.0f;
    }
    __syncthreads(); /* keys and values are there */
    for (int i = warp; i < PLAIN_QUERIES; i += PLAIN_THREADS / 32) plain_weigh(s, i, window, m);
    __syncthreads(); /* weights are there */
    for (int at = threadIdx.x; at < PLAIN_QUERIES * E; at += PLAIN_THREADS) {
        int i = at / E, e = at - i * E;
        float o = s.o[at] * s.f[i];
        for (int t = 0; t < PLAIN_TOKENS; t++) o += s.p[i * PLAIN_TOKENS + t] * s.v[t * E + e];
        s.o[at] = o;
    }
}

#endif
