/* merge.cu - parts into outputs, revised outputs into the cache, the mask and the counters: docs/algorithm.md
 * steps 4 and 5.
 *
 *   a row's parts:   m = max_s m_s,  l = sum_s e^(m_s - m) l_s,
 *                    O = sum_s e^(m_s - m) O_s / l,  lse = m + ln l
 *   a revised row:   with the cached (O', lse'): n = max(lse', lse), a = e^(lse' - n), c = e^(lse - n),
 *                    O <- (a O' + c O) / (a + c),  lse <- n + ln(a + c)
 *
 * One launch. A block is one row with one head: its threads read each split's m and l once, then warp i adds
 * splits i, i+8, ..., four elements to a lane, and the warps' sums are added in order. Behind these blocks
 * come those that close the lists, CLOSE_PAGES pages each: they count and set last_loaded, which no other
 * block of the launch looks at. A revised row that attended to nothing keeps its cached output and lse to the
 * bit, and they are not written. Limits: head widths to 256. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/row.cuh"

enum {
    THREADS = 256,
    WARPS = THREADS / 32,
    CLOSE_PAGES = 1024,
    PIECES = ATTENTION_MAX_E / 128, /* of four elements, to a lane */
};

static_assert((int)THREADS >= (int)ATTENTION_MAX_E, "a thread finishes one element");
static_assert((int)THREADS >= (int)SPLITS_MAX, "a thread reads one split's m and l");

struct merge {
    char *out;
    struct part part;
    const int32_t *pages, *count;
    int64_t *counters;
    int queries; /* blocks of grid.x that combine; the others close */
};

/* The output cache of a slot: O of the attended head at ring place r % W, and its log-sum-exp. */
static __device__ __forceinline__ float *cache_out(const struct kv_layer &kv, const struct dims &m, int slot,
                                                   int r, int head)
{
    float *base = reinterpret_cast<float *>(kv.slots + (size_t)slot * m.slot_bytes);
    return base + ((size_t)(r % m.W) * (size_t)m.Hr + (size_t)head) * (size_t)m.E;
}
static __device__ __forceinline__ float *cache_lse(const struct kv_layer &kv, const struct dims &m, int slot,
                                                   int r, int head)
{
    float *base = reinterpret_cast<float *>(kv.slots + (size_t)slot * m.slot_bytes);
    return base + (size_t)m.W * (size_t)m.Hr * (size_t)m.E + (size_t)(r % m.W) * (size_t)m.Hr + (size_t)head;
}

/* One row and head: all threads get l and, for element threadIdx.x, the unscaled sum; returns m, -inf where
 * the row attended to nothing. */
static __device__ __forceinline__ float combine(const struct merge &a, int row, int head, int n_splits,
                                                const struct dims &m, float *l, float *o)
{
    __shared__ float2 ml[SPLITS_MAX];
    __shared__ __align__(16) float sums[WARPS][ATTENTION_MAX_E];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if ((int)threadIdx.x < n_splits)
        ml[threadIdx.x] =
            reinterpret_cast<const float2 *>(a.part.ml)[part_index(a.part, m, row, (int)threadIdx.x, head)];
    __syncthreads(); /* every split's m and l are there */
    float top = -INFINITY, sum = 0, x[PIECES][4] = {};
    for (int s = lane; s < n_splits; s += 32) top = fmaxf(top, ml[s].x);
    top = warp_max(top);
    if (top == -INFINITY) return top; /* the same for all threads */
    for (int s = lane; s < n_splits; s += 32)
        if (ml[s].x != -INFINITY) sum += expf(ml[s].x - top) * ml[s].y;
    *l = warp_sum(sum);
    bool whole = m.E % 4 == 0;
#pragma unroll 4
    for (int s = warp; s < n_splits; s += WARPS) {
        if (ml[s].x == -INFINITY) continue;
        float weight = expf(ml[s].x - top), part[4];
        const float *from = a.part.out + part_index(a.part, m, row, s, head) * (size_t)m.E;
#pragma unroll
        for (int k = 0; k < PIECES; k++) {
            int e = k * 128 + lane * 4;
            if (e >= m.E) break;
            row_load(part, from, e, m.E, whole);
#pragma unroll
            for (int i = 0; i < 4; i++) x[k][i] += weight * part[i];
        }
    }
#pragma unroll
    for (int k = 0; k < PIECES; k++)
        *reinterpret_cast<float4 *>(&sums[warp][k * 128 + lane * 4]) =
            make_float4(x[k][0], x[k][1], x[k][2], x[k][3]);
    __syncthreads(); /* every warp's sums are there */
    *o = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) *o += sums[i][threadIdx.x];
    return top;
}

/* The query's output: combined, folded into the cached one when the row is revised, kept for later steps. */
static __device__ __forceinline__ void merge_query(const struct merge &a, const struct decode_span &s,
                                                   int query, int head, int n_heads, int n_splits,
                                                   const struct kv_layer &kv, const struct dims &m)
{
    int row = query / n_heads, h = head - m.head_off + query - row * n_heads, e = threadIdx.x;
    int r = s.position - s.n_rows + 1 + row;
    bool revised = r < s.position, mine = e < m.E;
    float *cached = cache_out(kv, m, s.slot, r, h), *cached_lse = cache_lse(kv, m, s.slot, r, h);
    float old = 0, old_lse = -INFINITY, o = 0, l = 1;
    if (revised) {
        old_lse = *cached_lse;
        if (mine) old = cached[e];
    }
    float top = combine(a, s.row0 + row, h, n_splits, m, &l, &o), lse = top;
    bool met = top != -INFINITY;
    if (met) {
        o *= 1.0f / l;
        lse = top + logf(l);
    }
    if (revised && met) {
        float n = fmaxf(lse, old_lse), c = expf(old_lse - n), f = expf(lse - n), sum = c + f;
        o = (c * old + f * o) * (1.0f / sum);
        lse = n + logf(sum);
    } else if (revised) {
        o = old;
    }
    __syncthreads(); /* every thread has read the cached lse */
    if (s.keep && (met || !revised)) {
        if (mine) cached[e] = o;
        if (e == 0) *cached_lse = lse;
    }
    if (mine)
        put_element(a.out, ((size_t)(s.row0 + row) * (size_t)m.Hr + (size_t)h) * (size_t)m.E + (size_t)e, o,
                    m.act);
}

static __device__ __forceinline__ void add_counter(int64_t *counter, int64_t n)
{
    if (n) atomicAdd(reinterpret_cast<unsigned long long *>(counter), (unsigned long long)n);
}

/* Counts what the span did with pages [from, from+CLOSE_PAGES) of the kv head's list, and marks them. */
static __device__ __forceinline__ void close_pages(const struct merge &a, const struct decode_span &s,
                                                   int kv_head, const int32_t *list, int n, int from,
                                                   const struct kv_layer &kv, const struct dims &m)
{
    int window = kv.sliding_window, oldest = s.position - s.n_rows + 1;
    int lo = first_visible(s.position, window), met = 0, read = 0;
    for (int j = from + (int)threadIdx.x; j < min(n, from + (int)CLOSE_PAGES); j += THREADS) {
        int page = list[j], start = page * m.P, end = min(start + m.P - 1, s.position);
        int32_t *last_loaded = page_last_loaded(kv, m, s.slot, kv_head, page);
        read += end - max(start, lo) + 1;
        if (s.n_rows > 1) { /* revised rows that have not met the page and may see a key of it */
            int first = max(max(*last_loaded + 1, start), oldest), last = s.position - 1;
            if (window) last = min(last, end + window - 1);
            met += max(last - first + 1, 0);
        }
        *last_loaded = s.position;
    }
    if (!m.kv_owner) return;
    met = __reduce_add_sync(0xffffffffu, met);
    read = __reduce_add_sync(0xffffffffu, read);
    if (threadIdx.x % 32) return;
    int64_t *counter = a.counters + (size_t)s.slot * COUNTER_COUNT;
    bool counted = kv.layer >= s.dense_layers;
    if (counted) add_counter(counter + COUNTER_PAGES_MET, met);
    add_counter(counter + COUNTER_TOKENS_READ, read);
    if (from > 0 || threadIdx.x > 0) return;
    struct candidates c = candidates_of(s, kv, m);
    if (counted) add_counter(counter + COUNTER_PAGES_LOADED, n);
    add_counter(counter + COUNTER_TOKENS_DENSE, s.position - lo + 1);
    if (!c.all && s.group != SCORE_GROUP_RECENT) add_counter(counter + COUNTER_SUMMARIES_READ, c.n);
}

static __global__ void __launch_bounds__(THREADS)
    merge(struct merge a, struct kv_layer kv, struct batch b, struct dims m)
{
    int kv_head = blockIdx.y, at = (int)blockIdx.z * m.Kr + kv_head, x = blockIdx.x;
    const struct decode_span s = b.decode[blockIdx.z];
    if (s.n_rows <= 0) return;
    int n_pages = a.count[at];
    if (x >= a.queries) {
        int from = (x - a.queries) * CLOSE_PAGES;
        if (from < n_pages)
            close_pages(a, s, kv_head, a.pages + (size_t)at * (size_t)(m.C / m.P), n_pages, from, kv, m);
        return;
    }
    int head, n_heads = attended_heads(m, kv_head, &head), per_split = split_pages(n_pages, m);
    if (x < s.n_rows * n_heads)
        merge_query(a, s, x, head, n_heads, (n_pages + per_split - 1) / per_split, kv, m);
}

extern "C" void cuda_merge(struct device *d, void *out, const void *part, const struct kv_layer *kv,
                           const int32_t *pages, const int32_t *count, int64_t *counters,
                           const struct batch *b, const struct dims *m)
{
    ASSERT(m->E <= ATTENTION_MAX_E && part_of(part, m).splits <= SPLITS_MAX);
    if (b->n_decode == 0) return;
    int queries = queries_most(b, m), most = candidates_most(b, kv, m);
    struct merge a = {(char *)out, part_of(part, m), pages, count, counters, queries};
    dim3 grid((unsigned)(queries + (most + CLOSE_PAGES - 1) / CLOSE_PAGES), (unsigned)m->Kr,
              (unsigned)b->n_decode);
    merge<<<grid, THREADS, 0, cuda_of(d)->stream>>>(a, *kv, *b, *m);
    cuda_check_launch("merge");
}
