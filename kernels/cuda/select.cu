/* select.cu - which pages the new row reads: docs/algorithm.md step 2.
 *
 *   score_jh = (q_h . c_j + alpha |q_h| . u_j) * attention_scale,   c = (max + min) / 2,  u = (max - min) / 2
 *            = q' . (min_j | max_j),
 *   q' = ((q_h - alpha |q_h|) / 2 | (q_h + alpha |q_h|) / 2) * attention_scale
 *
 * The group's scores become one per page: max, mean, or softmax over the candidate pages per head, then the
 * mean over heads. The page of the new position and the first n_sink pages are chosen whatever they score,
 * then the best others until n_select are chosen; equal scores prefer the lower page. With SCORE_GROUP_RECENT
 * the last ones are, and nothing is scored. Two launches, three for long lists:
 *
 *   score    a block is SCORE_PAGES candidates of one kv head of one span. A page's summary is read once, in
 *            16-byte pieces, for all heads of the group; q' lies in shared memory. With `max` and `mean` it
 *            writes keys, with `softmax` scores and, per head, its stretch's maximum and sum of exponentials.
 *   reduce   softmax only, where a list has more scores than one block should read (CHOOSE_SCORES): the same
 *            stretches; scores become keys.
 *   choose   a block is one kv head of one span: scores become keys unless reduce has done it, then radix
 *            selection, eight bits of the key at a time, then the list.
 *
 * A key is the score as an unsigned integer of the same order; forced pages have the largest.
 * Scratch, carved by struct scratch: scores (n_decode, Kr, G, C/P) f32, keys (n_decode, Kr, C/P) u32,
 * stretches (n_decode, Kr, stretches, G, 2) f32. Limits: the fast way is for 16-bit summaries of heads of width 64 and
 * 128, and codes of 64 to 512 bytes in a power of two; others are read element by element. */
#include "kernels/cuda/attention.cuh"

enum {
    SCORE_PAGES = 64, /* few, so that many blocks have a load or two for each thread */
    SCORE_THREADS = 256,
    CHOOSE_THREADS = 1024,
    CHOOSE_KEYS = 16384, /* keys that choose holds in shared memory; longer lists are read from the scratch */
    CHOOSE_SCORES = 65536, /* of a list: 256 KiB, which one block reads in about the time of a launch */
    DIGITS = 256,          /* of eight bits */
    PASSES = 4,
};

static_assert((int)SCORE_THREADS >= (int)SCORE_PAGES, "a thread finds one summary");

struct scratch {
    float *score;
    uint32_t *key;
    float2 *stretch; /* maximum, sum of e^(score - maximum) */
    int n_pages, n_stretches;
};

static struct scratch scratch_of(void *memory, const struct dims *m)
{
    struct scratch s;
    s.n_pages = m->C / m->P;
    s.n_stretches = (s.n_pages + SCORE_PAGES - 1) / SCORE_PAGES;
    size_t heads = (size_t)m->max_spans * (size_t)m->Kr;
    s.stretch = (float2 *)memory;
    s.score = (float *)(s.stretch + heads * (size_t)m->G * (size_t)s.n_stretches);
    s.key = (uint32_t *)(s.score + heads * (size_t)m->G * (size_t)s.n_pages);
    return s;
}

extern "C" size_t cuda_select_scratch_bytes(struct device *d, const struct dims *m)
{
    (void)d;
    struct scratch s = scratch_of(NULL, m);
    return (size_t)m->max_spans * (size_t)m->Kr *
           ((size_t)m->G * ((size_t)s.n_stretches * sizeof(float2) + (size_t)s.n_pages * sizeof(float)) +
            (size_t)s.n_pages * sizeof(uint32_t));
}

/* A float as an unsigned integer of the same order; NaN below everything, -0 equal to 0. */
static __device__ __forceinline__ uint32_t ordered(float x)
{
    if (x != x) return 1;
    uint32_t bits = __float_as_uint(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* Whether anything is scored. */
static __device__ __forceinline__ bool scored(const struct candidates &c, const struct decode_span &s)
{
    return !c.all && s.group != SCORE_GROUP_RECENT;
}

static __device__ __forceinline__ bool forced(int page, const struct decode_span &s, const struct dims &m)
{
    return page == s.position / m.P || page < s.n_sink;
}

/* --- score --- */

/* q' of the group, (G,2E) f32. */
static __device__ __forceinline__ void bound_queries(float *w, const float *q, float alpha,
                                                     const struct dims &m)
{
    int E = m.E;
    for (int at = threadIdx.x; at < m.G * E; at += SCORE_THREADS) {
        int h = at / E, e = at - h * E;
        float x = q[at], width = alpha * fabsf(x);
        w[h * 2 * E + e] = (x - width) * 0.5f * m.attention_scale;
        w[h * 2 * E + E + e] = (x + width) * 0.5f * m.attention_scale;
    }
}

/* Eight 16-bit elements. */
static __device__ __forceinline__ void widen_piece(float x[8], uint4 piece, bool bf16)
{
    uint32_t word[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (bf16) {
            x[2 * i] = __uint_as_float(word[i] << 16);
            x[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
        } else {
            float2 f = __half22float2(*reinterpret_cast<const __half2 *>(&word[i]));
            x[2 * i] = f.x;
            x[2 * i + 1] = f.y;
        }
    }
}

/* Scores of four groups of pages into s (G,SCORE_PAGES): LANES lanes share a page, so a warp holds 32/LANES
 * pages beside each other, four times. Sums over lanes halve the number of values as they go. */
template <int LANES>
static __device__ __forceinline__ void score_pages(float *s, const float *w, const char *const *summary,
                                                   int n, const struct dims &m)
{
    constexpr int ABREAST = 32 / LANES, WIDTH = LANES * 8;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, piece = lane % LANES;
    bool bf16 = m.summary == SUMMARY_BF16;
    for (int base = warp * 4 * ABREAST; base < n; base += SCORE_THREADS / 32 * 4 * ABREAST) {
        float x[4][8];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int j = base + k * ABREAST + lane / LANES;
            uint4 v = {0, 0, 0, 0};
            if (j < n) v = reinterpret_cast<const uint4 *>(summary[j])[piece];
            widen_piece(x[k], v, bf16);
        }
        for (int h = 0; h < m.G; h++) {
            const float4 *q = reinterpret_cast<const float4 *>(w + h * WIDTH + piece * 8);
            float4 lo = q[0], hi = q[1];
            float sum[4];
#pragma unroll
            for (int k = 0; k < 4; k++)
                sum[k] = x[k][0] * lo.x + x[k][1] * lo.y + x[k][2] * lo.z + x[k][3] * lo.w + x[k][4] * hi.x +
                         x[k][5] * hi.y + x[k][6] * hi.z + x[k][7] * hi.w;
            /* Lanes with bit LANES/2 keep pages 2 and 3 of the four, then those with bit LANES/4 the odd one.
             */
            bool high = piece & LANES / 2, odd = piece & LANES / 4;
            float a = high ? sum[2] : sum[0], c = high ? sum[3] : sum[1];
            a += __shfl_xor_sync(0xffffffffu, high ? sum[0] : sum[2], LANES / 2);
            c += __shfl_xor_sync(0xffffffffu, high ? sum[1] : sum[3], LANES / 2);
            float mine = odd ? c : a;
            mine += __shfl_xor_sync(0xffffffffu, odd ? a : c, LANES / 4);
#pragma unroll
            for (int step = LANES / 8; step; step /= 2) mine += __shfl_xor_sync(0xffffffffu, mine, step);
            int j = base + (high * 2 + odd) * ABREAST + lane / LANES;
            if (piece % (LANES / 4) == 0 && j < n) s[h * SCORE_PAGES + j] = mine;
        }
    }
}

/* The same for every width and type; a warp scores one page for all heads. */
static __device__ __forceinline__ void score_pages_plain(float *s, const float *w, const char *const *summary,
                                                         int n, const struct dims &m)
{
    int lane = threadIdx.x % 32;
    enum dtype type = m.summary == SUMMARY_F32   ? DTYPE_F32
                      : m.summary == SUMMARY_F16 ? DTYPE_F16
                                                 : DTYPE_BF16;
    for (int j = threadIdx.x / 32; j < n; j += SCORE_THREADS / 32) {
        float x[2 * ATTENTION_MAX_E / 32];
#pragma unroll
        for (int k = 0; k < 2 * ATTENTION_MAX_E / 32; k++)
            x[k] = lane + 32 * k < 2 * m.E ? element(summary[j], lane + 32 * k, type) : 0.0f;
        for (int h = 0; h < m.G; h++) {
            float sum = 0;
#pragma unroll
            for (int k = 0; k < 2 * ATTENTION_MAX_E / 32; k++)
                if (lane + 32 * k < 2 * m.E) sum += x[k] * w[h * 2 * m.E + lane + 32 * k];
            sum = warp_sum(sum);
            if (lane == 0) s[h * SCORE_PAGES + j] = sum;
        }
    }
}

/* --- score, of summaries with codes ---
 *
 * The query is rounded to eight bits: step = largest |q_e| / 127, k_e = q_e / step, ties to even. Then
 *   score = (scale_c sum_e k_e c_e + alpha scale_u sum_e |k_e| u_e) * step * attention_scale
 * with both sums exact. In shared memory a query lies as the bytes of a summary do: k for the middle, then |k| for
 * the half-width; for Q4 a second time, with the elements of the high four bits. */
struct coded {
    signed char *k; /* (G, planes, stride) */
    float *step;    /* (G) times attention_scale */
    int *sum;       /* (G) of k */
};

static __host__ __device__ inline int code_planes(const struct dims &m)
{
    return m.summary == SUMMARY_Q4 ? 2 : 1;
}

static __host__ __device__ inline size_t coded_bytes(const struct dims &m)
{
    size_t k = (size_t)(m.G * code_planes(m)) * m.summary_stride;
    return (k + 15) / 16 * 16 + (size_t)m.G * (sizeof(float) + sizeof(int));
}

static __device__ __forceinline__ struct coded coded_of(void *memory, const struct dims &m)
{
    struct coded c = {(signed char *)memory, NULL, NULL};
    c.step = (float *)((char *)memory + (coded_bytes(m) - (size_t)m.G * (sizeof(float) + sizeof(int))));
    c.sum = (int *)(c.step + m.G);
    return c;
}

/* A warp rounds one head at a time. */
static __device__ __forceinline__ void code_queries(const struct coded &to, const float *q,
                                                    const struct dims &m)
{
    int lane = threadIdx.x % 32, half = m.E / 2, stride = (int)m.summary_stride;
    for (int h = threadIdx.x / 32; h < m.G; h += SCORE_THREADS / 32) {
        float most = 0;
        for (int e = lane; e < m.E; e += 32) most = fmaxf(most, fabsf(q[h * m.E + e]));
        most = warp_max(most);
        float step = __fdiv_rn(most, 127.0f);
        int sum = 0;
        signed char *k = to.k + h * code_planes(m) * stride;
        for (int e = lane; e < m.E; e += 32) {
            float x = step > 0 ? __fdiv_rn(q[h * m.E + e], step) : 0.0f;
            x = x < 127.0f ? x : 127.0f;
            x = x > -127.0f ? x : -127.0f;
            int code = __float2int_rn(x), plane = m.summary == SUMMARY_Q4 && e >= half;
            int at = plane * stride + e - plane * half, width = m.summary == SUMMARY_Q4 ? half : m.E;
            k[at] = (signed char)code;
            k[at + width] = (signed char)abs(code);
            sum += code;
        }
        sum = __reduce_add_sync(0xffffffffu, sum);
        if (lane == 0) {
            to.step[h] = step * m.attention_scale;
            to.sum[h] = sum;
        }
    }
}

static __device__ __forceinline__ float coded_score(int c, int u, const char *scales, float alpha,
                                                    const struct coded &q, int h, const struct dims &m)
{
    const __nv_bfloat16 *scale = reinterpret_cast<const __nv_bfloat16 *>(scales);
    if (m.summary == SUMMARY_Q4) c -= 8 * q.sum[h];
    return ((float)c * __bfloat162float(scale[0]) + (float)u * (__bfloat162float(scale[1]) * alpha)) *
           q.step[h];
}

/* LANES lanes share a page, 16 bytes each: the lower half of them has the middle. */
template <int LANES>
static __device__ __forceinline__ void score_codes(float *s, const struct coded &q,
                                                   const char *const *summary, const char *const *scales,
                                                   int n, float alpha, const struct dims &m)
{
    constexpr int ABREAST = 32 / LANES;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, piece = lane % LANES, stride = LANES * 16;
    bool q4 = m.summary == SUMMARY_Q4;
    for (int base = warp * ABREAST; base < n; base += SCORE_THREADS / 32 * ABREAST) {
        int j = base + lane / LANES;
        uint4 v = {0, 0, 0, 0};
        if (j < n) v = reinterpret_cast<const uint4 *>(summary[j])[piece];
        const int x[4] = {(int)v.x, (int)v.y, (int)v.z, (int)v.w};
        for (int h = 0; h < m.G; h++) {
            const int4 *k = reinterpret_cast<const int4 *>(q.k + h * (q4 ? 2 : 1) * stride) + piece;
            int4 a = k[0];
            int sum = 0;
            if (q4) {
                int4 b = k[LANES];
                const int lo[4] = {a.x, a.y, a.z, a.w}, hi[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    sum = __dp4a(x[i] & 0x0f0f0f0f, lo[i], sum);
                    sum = __dp4a((int)((unsigned)x[i] >> 4) & 0x0f0f0f0f, hi[i], sum);
                }
            } else {
                sum = __dp4a(x[0], a.x, __dp4a(x[1], a.y, __dp4a(x[2], a.z, __dp4a(x[3], a.w, 0))));
            }
#pragma unroll
            for (int step = 1; step < LANES / 2; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
            int other = __shfl_xor_sync(0xffffffffu, sum, LANES / 2);
            if (piece == 0 && j < n)
                s[h * SCORE_PAGES + j] = coded_score(sum, other, scales[j], alpha, q, h, m);
        }
    }
}

/* The same for every width; a warp scores one page for all heads. */
static __device__ __forceinline__ void score_codes_plain(float *s, const struct coded &q,
                                                         const char *const *summary,
                                                         const char *const *scales, int n, float alpha,
                                                         const struct dims &m)
{
    int lane = threadIdx.x % 32, stride = (int)m.summary_stride, middle = stride / 2, planes = code_planes(m);
    for (int j = threadIdx.x / 32; j < n; j += SCORE_THREADS / 32)
        for (int h = 0; h < m.G; h++) {
            const signed char *k = q.k + h * planes * stride;
            int sum[2] = {0, 0};
            for (int i = lane; i < stride; i += 32) {
                int byte = (signed char)summary[j][i];
                int x = planes == 2 ? (byte & 15) * k[i] + (byte >> 4 & 15) * k[stride + i] : byte * k[i];
                sum[0] += i < middle ? x : 0;
                sum[1] += i < middle ? 0 : x;
            }
            int c = __reduce_add_sync(0xffffffffu, sum[0]), u = __reduce_add_sync(0xffffffffu, sum[1]);
            if (lane == 0) s[h * SCORE_PAGES + j] = coded_score(c, u, scales[j], alpha, q, h, m);
        }
}

/* LANES: 0 for the plain way; with CODES those of a summary with codes. */
template <int LANES, bool CODES>
static __global__ void __launch_bounds__(SCORE_THREADS, LANES ? 4 : 2)
    score(struct scratch to, const float *q, struct kv_layer kv, struct batch b, struct dims m)
{
    extern __shared__ __align__(16) float shared[];
    __shared__ const char *summary[SCORE_PAGES], *scales[CODES ? SCORE_PAGES : 1];
    float *s = shared, *w = s + m.G * SCORE_PAGES; /* (G,SCORE_PAGES), (G,2E) or struct coded */
    int span = blockIdx.z, kv_head = blockIdx.y, from = blockIdx.x * SCORE_PAGES;
    const struct decode_span sp = b.decode[span];
    if (sp.n_rows <= 0) return;
    struct candidates c = candidates_of(sp, kv, m);
    int n = min(c.n - from, (int)SCORE_PAGES);
    if (!scored(c, sp) || n <= 0) return;
    size_t row = (size_t)(sp.row0 + sp.n_rows - 1);
    const float *queries = q + (row * (size_t)m.Qr + (size_t)(kv_head * m.G)) * (size_t)m.E;
    struct coded coded = coded_of(w, m);
    if (CODES) code_queries(coded, queries, m);
    else bound_queries(w, queries, sp.alpha, m);
    if ((int)threadIdx.x < n) {
        struct page_place at =
            page_place_of(kv, span_blocks(b, m, sp.slot), c.first + from + (int)threadIdx.x, m);
        summary[threadIdx.x] = page_summary(at, m, kv_head);
        if (CODES) scales[threadIdx.x] = page_scales(at, m, kv_head);
    }
    __syncthreads(); /* q' is there, and where the summaries are */
    if (CODES && LANES) score_codes<LANES ? LANES : 32>(s, coded, summary, scales, n, sp.alpha, m);
    else if (CODES) score_codes_plain(s, coded, summary, scales, n, sp.alpha, m);
    else if (LANES) score_pages<LANES ? LANES : 32>(s, w, summary, n, m);
    else score_pages_plain(s, w, summary, n, m);
    __syncthreads(); /* scores are there */

    size_t head = (size_t)(span * m.Kr + kv_head);
    int lane = threadIdx.x % 32;
    if (sp.group != SCORE_GROUP_SOFTMAX) {
        for (int j = threadIdx.x; j < n; j += SCORE_THREADS) {
            float x = s[j];
            for (int h = 1; h < m.G; h++) {
                float y = s[h * SCORE_PAGES + j];
                x = sp.group != SCORE_GROUP_MAX ? x + y : y > x ? y : x;
            }
            to.key[head * (size_t)to.n_pages + (size_t)(from + j)] =
                forced(c.first + from + j, sp, m) ? UINT_MAX : ordered(x);
        }
        return;
    }
    for (int h = threadIdx.x / 32; h < m.G; h += SCORE_THREADS / 32) {
        float top = -INFINITY, sum = 0;
        for (int j = lane; j < n; j += 32) top = fmaxf(top, s[h * SCORE_PAGES + j]);
        top = warp_max(top);
        for (int j = lane; j < n; j += 32) {
            sum += expf(s[h * SCORE_PAGES + j] - top);
            to.score[(head * (size_t)m.G + (size_t)h) * (size_t)to.n_pages + (size_t)(from + j)] =
                s[h * SCORE_PAGES + j];
        }
        sum = warp_sum(sum);
        if (lane == 0)
            to.stretch[(head * (size_t)to.n_stretches + blockIdx.x) * (size_t)m.G + (size_t)h] =
                make_float2(top, sum);
    }
}

/* --- scores of a softmax to keys --- */

/* Maximum and 1 / sum of each head over all stretches, by the warps of the block; the caller's barrier follows. */
static __device__ __forceinline__ void softmax_totals(float2 *total, const struct scratch &from, size_t head,
                                                      int n_candidates, const struct dims &m)
{
    int lane = threadIdx.x % 32, n_stretches = (n_candidates + SCORE_PAGES - 1) / SCORE_PAGES;
    for (int h = threadIdx.x / 32; h < m.G; h += blockDim.x / 32) {
        const float2 *stretch = from.stretch + head * (size_t)from.n_stretches * (size_t)m.G + h;
        float top = -INFINITY, sum = 0;
#pragma unroll 4
        for (int i = lane; i < n_stretches; i += 32) top = fmaxf(top, stretch[i * m.G].x);
        top = warp_max(top);
#pragma unroll 4
        for (int i = lane; i < n_stretches; i += 32)
            sum += stretch[i * m.G].y * expf(stretch[i * m.G].x - top);
        sum = warp_sum(sum);
        if (lane == 0) total[h] = make_float2(top, 1.0f / sum);
    }
}

/* The key of candidate j of a list of `head`. */
static __device__ __forceinline__ uint32_t softmax_key(const float2 *total, const struct scratch &from,
                                                       size_t head, int j, const struct candidates &c,
                                                       const struct decode_span &s, const struct dims &m)
{
    const float *score = from.score + head * (size_t)m.G * (size_t)from.n_pages + (size_t)j;
    float x = 0;
#pragma unroll 4
    for (int h = 0; h < m.G; h++)
        x += expf(score[(size_t)h * (size_t)from.n_pages] - total[h].x) * total[h].y;
    return forced(c.first + j, s, m) ? UINT_MAX : ordered(x);
}

static __global__ void __launch_bounds__(SCORE_THREADS)
    reduce(struct scratch to, struct kv_layer kv, struct batch b, struct dims m)
{
    __shared__ float2 total[ATTENTION_MAX_G];
    int span = blockIdx.z, kv_head = blockIdx.y, from = blockIdx.x * SCORE_PAGES;
    const struct decode_span s = b.decode[span];
    if (s.n_rows <= 0 || s.group != SCORE_GROUP_SOFTMAX) return;
    struct candidates c = candidates_of(s, kv, m);
    int n = min(c.n - from, (int)SCORE_PAGES);
    if (c.all || n <= 0) return;
    size_t head = (size_t)(span * m.Kr + kv_head);
    softmax_totals(total, to, head, c.n, m);
    __syncthreads(); /* totals are there */
    for (int j = threadIdx.x; j < n; j += SCORE_THREADS)
        to.key[head * (size_t)to.n_pages + (size_t)(from + j)] =
            softmax_key(total, to, head, from + j, c, s, m);
}

/* --- choose --- */

/* Counts of the keys' digits in each pass, and what came of them. */
struct radix {
    int count[PASSES][DIGITS], digit[PASSES], left[PASSES];
};

/* One warp: the digit that holds the n-th largest key, and which of its keys that is. */
static __device__ __forceinline__ void find_digit(struct radix *r, int pass, int n)
{
    int lane = threadIdx.x, v[DIGITS / 32], sum = 0, above; /* a lane has eight digits, lane 0 the largest */
#pragma unroll
    for (int i = 0; i < DIGITS / 32; i++) {
        v[i] = r->count[pass][DIGITS - 1 - lane * (DIGITS / 32) - i];
        sum += v[i];
    }
    above = sum;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(0xffffffffu, above, step);
        if (lane >= step) above += other;
    }
    above -= sum; /* keys of larger digits than this lane's */
#pragma unroll
    for (int i = 0; i < DIGITS / 32; i++) {
        if (above < n && n <= above + v[i]) {
            r->digit[pass] = DIGITS - 1 - lane * (DIGITS / 32) - i;
            r->left[pass] = n - above;
        }
        above += v[i];
    }
}

/* The n-th largest of key (n_keys), n >= 1, and how many keys equal to it belong to the n largest. All
 * threads get it. The first pass is counted already. */
static __device__ __forceinline__ uint32_t nth_largest(struct radix *r, const uint32_t *key, int n_keys,
                                                       int n, int *equal)
{
    uint32_t prefix = 0, mask = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        int shift = 24 - 8 * pass;
        for (int j = threadIdx.x; pass > 0 && j < n_keys; j += CHOOSE_THREADS)
            if ((key[j] & mask) == prefix) atomicAdd(&r->count[pass][key[j] >> shift & (DIGITS - 1)], 1);
        __syncthreads(); /* counts are complete */
        if (threadIdx.x < 32) find_digit(r, pass, n);
        __syncthreads(); /* the digit is known */
        n = r->left[pass];
        prefix |= (uint32_t)r->digit[pass] << shift;
        mask |= (uint32_t)(DIGITS - 1) << shift;
    }
    *equal = n;
    return prefix;
}

/* The sum of v over the threads before this one. */
static __device__ __forceinline__ unsigned long long sum_before(unsigned long long v)
{
    __shared__ unsigned long long warp_total[CHOOSE_THREADS / 32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned long long sum = v;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        unsigned long long other = __shfl_up_sync(0xffffffffu, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == 31) warp_total[warp] = sum;
    __syncthreads(); /* totals are there */
    unsigned long long w = warp_total[lane], all = w;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        unsigned long long other = __shfl_up_sync(0xffffffffu, all, step);
        if (lane >= step) all += other;
    }
    return sum - v + __shfl_sync(0xffffffffu, all - w, warp);
}

/* Pages of keys above the limit and of the first `equal` that are the limit, in order. A thread has a stretch of
 * the keys, of an odd length: neighbours read different banks. */
static __device__ __forceinline__ void write_list(int32_t *list, const uint32_t *key, int n_keys,
                                                  uint32_t limit, int equal, int first_page)
{
    int stretch = ((n_keys + CHOOSE_THREADS - 1) / CHOOSE_THREADS) | 1;
    int from = (int)threadIdx.x * stretch, to = min(from + stretch, n_keys), above = 0, same = 0;
    for (int j = from; j < to; j++) {
        above += key[j] > limit;
        same += key[j] == limit;
    }
    unsigned long long before = sum_before((unsigned long long)above << 32 | (unsigned)same);
    above = (int)(before >> 32);
    same = (int)(uint32_t)before;
    for (int j = from; j < to; j++) {
        bool taken = key[j] > limit || (key[j] == limit && same < equal);
        if (taken) list[above + min(same, equal)] = first_page + j;
        above += key[j] > limit;
        same += key[j] == limit;
    }
}

static __global__ void __launch_bounds__(CHOOSE_THREADS, 1)
    choose(int32_t *pages, int32_t *count, struct scratch from, int room, bool reduced, struct kv_layer kv,
           struct batch b, struct dims m)
{
    extern __shared__ uint32_t held[]; /* (room) keys */
    __shared__ struct radix r;
    __shared__ float2 total[ATTENTION_MAX_G];
    int kv_head = blockIdx.x, span = blockIdx.y, head = span * m.Kr + kv_head;
    const struct decode_span s = b.decode[span];
    if (s.n_rows <= 0) return;
    struct candidates c = candidates_of(s, kv, m);
    int32_t *list = pages + (size_t)head * (size_t)from.n_pages;
    if (c.all) {
        for (int j = threadIdx.x; j < c.n; j += CHOOSE_THREADS) list[j] = c.first + j;
        if (threadIdx.x == 0) count[head] = c.n;
        return;
    }
    int last = c.first + c.n - 1, sinks = max(min(s.n_sink, last + 1) - c.first, 0);
    int n = max(c.n_select, sinks + (last >= s.n_sink)), equal; /* never fewer than are forced */
    if (s.group == SCORE_GROUP_RECENT) {
        for (int j = threadIdx.x; j < n; j += CHOOSE_THREADS)
            list[j] = j < sinks ? c.first + j : last - (n - 1 - j);
        if (threadIdx.x == 0) count[head] = n;
        return;
    }
    uint32_t *stored = from.key + (size_t)head * (size_t)from.n_pages, *key = c.n <= room ? held : stored;
    bool scores = s.group == SCORE_GROUP_SOFTMAX && !reduced;
    for (int i = threadIdx.x; i < PASSES * DIGITS; i += CHOOSE_THREADS) r.count[0][i] = 0;
    if (scores) softmax_totals(total, from, (size_t)head, c.n, m);
    __syncthreads(); /* counts are zero, totals are there */
    for (int j = threadIdx.x; j < c.n; j += CHOOSE_THREADS) {
        uint32_t k = scores ? softmax_key(total, from, (size_t)head, j, c, s, m) : stored[j];
        if (scores || key != stored) key[j] = k;
        atomicAdd(&r.count[0][k >> 24], 1);
    }
    uint32_t limit = nth_largest(&r, key, c.n, n, &equal);
    write_list(list, key, c.n, limit, equal, c.first);
    if (threadIdx.x == 0) count[head] = n;
}

/* Codes take the fast way where a page's lie in 16-byte pieces, 4 to 32 of them. */
static decltype(&score<0, false>) score_kernel(const struct dims *m)
{
    if (has_codes(*m)) {
        size_t stride = m->summary_stride;
        return stride == 64    ? score<4, true>
               : stride == 128 ? score<8, true>
               : stride == 256 ? score<16, true>
               : stride == 512 ? score<32, true>
                               : score<0, true>;
    }
    if (m->summary == SUMMARY_F32) return score<0, false>;
    return m->E == 128 ? score<32, false> : m->E == 64 ? score<16, false> : score<0, false>;
}

extern "C" void cuda_select(struct device *d, int32_t *pages, int32_t *count, const float *q,
                            const struct kv_layer *kv, const struct batch *b, void *scratch,
                            const struct dims *m)
{
    ASSERT(m->E <= ATTENTION_MAX_E && m->G <= ATTENTION_MAX_G && b->n_decode <= m->max_spans);
    if (b->n_decode == 0) return;
    cudaStream_t stream = cuda_of(d)->stream;
    struct scratch s = scratch_of(scratch, m);
    int most = candidates_most(b, kv, m), room = most < CHOOSE_KEYS ? most : CHOOSE_KEYS;
    dim3 grid((unsigned)((most + SCORE_PAGES - 1) / SCORE_PAGES), (unsigned)m->Kr, (unsigned)b->n_decode);
    size_t query = has_codes(*m) ? coded_bytes(*m) : (size_t)(m->G * 2 * m->E) * sizeof(float);
    size_t bytes = (size_t)(m->G * SCORE_PAGES) * sizeof(float) + query;
    auto kernel = score_kernel(m);
    allow_shared(kernel, bytes);
    kernel<<<grid, SCORE_THREADS, bytes, stream>>>(s, q, *kv, *b, *m);
    cuda_check_launch("select (score)");
    bool reduced = (size_t)most * (size_t)m->G > CHOOSE_SCORES;
    if (reduced) {
        reduce<<<grid, SCORE_THREADS, 0, stream>>>(s, *kv, *b, *m);
        cuda_check_launch("select (reduce)");
    }
    allow_shared(choose, CHOOSE_KEYS * sizeof(uint32_t));
    choose<<<dim3((unsigned)m->Kr, (unsigned)b->n_decode), CHOOSE_THREADS, (size_t)room * sizeof(uint32_t),
             stream>>>(pages, count, s, room, reduced, *kv, *b, *m);
    cuda_check_launch("select (choose)");
}
