/* rope_store.cu - q and k heads normed and rotated, k and v written to their pages, page summaries
 * recomputed.
 *
 *   y = x / sqrt(mean(x^2) + eps) * weight                      only with q_norm, k_norm
 *   z_i = y_i cos - y_(i+E/2) sin,   z_(i+E/2) = y_(i+E/2) cos + y_i sin
 *
 * One block is one kv head (with its group of q heads) of the rows of a span that fall into one page; so
 * every touched page belongs to one block, which writes its keys and then takes min and max over all keys of
 * the page that the sequence has, as stored. What lies in a page past the sequence's newest position is never
 * looked at. A warp takes one head of one row at a time. Limits: E even, at most 256. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/row.cuh"

enum { THREADS = 256, PAIRS = ATTENTION_MAX_E / 64, KEYS_AHEAD = 8 };

static_assert((int)THREADS >= (int)ATTENTION_MAX_E, "a thread has one element of a page's summary");

/* A run of rows of one sequence with consecutive positions. */
struct rows {
    int slot, row0, n_rows, position0;
};

/* What one block needs besides the structs of the step. */
struct rope_store {
    float *q;
    const float *qkv, *rope, *q_norm, *k_norm;
    bool prompt; /* spans of the prompt array, else of the decode array */
};

/* A lane's pairs of one head: x_i, x_(i+E/2) for i = lane, lane+32, ... become normed and rotated. */
static __device__ __forceinline__ void norm_rope(float lo[PAIRS], float hi[PAIRS], const float *x,
                                                 const float *weight, const float2 *rope,
                                                 const struct dims &m)
{
    int lane = threadIdx.x % 32, half = m.E / 2;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        int i = lane + 32 * j;
        lo[j] = i < half ? x[i] : 0.0f;
        hi[j] = i < half ? x[i + half] : 0.0f;
        sum += lo[j] * lo[j] + hi[j] * hi[j];
    }
    float f = weight ? 1.0f / sqrtf(warp_sum(sum) / (float)m.E + m.norm_eps) : 1.0f;
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        int i = lane + 32 * j;
        if (i >= half) continue;
        float a = weight ? lo[j] * f * weight[i] : lo[j], c = weight ? hi[j] * f * weight[i + half] : hi[j];
        float2 turn = rope[i];
        lo[j] = a * turn.x - c * turn.y;
        hi[j] = c * turn.x + a * turn.y;
    }
}

/* Head `h` of the row: 0 .. G-1 are query heads, G is the key, G+1 the value. */
static __device__ __forceinline__ void store_head(const struct rope_store &a, int row, int h, int kv_head,
                                                  char *key, const struct dims &m)
{
    int lane = threadIdx.x % 32, half = m.E / 2, E = m.E;
    const float *from = a.qkv + (size_t)row * (size_t)((m.Qr + 2 * m.Kr) * E);
    if (h == m.G + 1) {
        from += (size_t)((m.Qr + m.Kr + kv_head) * E);
        char *value = key + values_distance(m);
        for (int e = lane; e < E; e += 32) put_element(value, e, from[e], m.kv);
        return;
    }
    int head = h == m.G ? m.Qr + kv_head : kv_head * m.G + h;
    const float2 *rope = reinterpret_cast<const float2 *>(a.rope) + (size_t)row * (size_t)half;
    float lo[PAIRS], hi[PAIRS];
    norm_rope(lo, hi, from + (size_t)(head * E), h == m.G ? a.k_norm : a.q_norm, rope, m);
    float *q = a.q + ((size_t)row * (size_t)m.Qr + (size_t)head) * (size_t)E;
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        int i = lane + 32 * j;
        if (i >= half) continue;
        if (h < m.G) {
            q[i] = lo[j];
            q[i + half] = hi[j];
        } else {
            put_element(key, i, lo[j], m.kv);
            put_element(key, i + half, hi[j], m.kv);
        }
    }
}

/* Min and max of element e of the page's first n keys; KEYS_AHEAD of them are on their way at once. */
template <typename T> static __device__ __forceinline__ float2 key_range(const T *key, int n, int e, int E)
{
    float lo = row_widen(key[e]), hi = lo;
    for (int from = 1; from < n; from += KEYS_AHEAD) {
        float k[KEYS_AHEAD];
#pragma unroll
        for (int j = 0; j < KEYS_AHEAD; j++) k[j] = row_widen(key[(from + j < n ? from + j : 0) * E + e]);
#pragma unroll
        for (int j = 0; j < KEYS_AHEAD; j++) {
            lo = k[j] < lo ? k[j] : lo;
            hi = k[j] > hi ? k[j] : hi;
        }
    }
    return make_float2(lo, hi);
}
static __device__ __forceinline__ float2 key_range(const char *keys, int n, int e, const struct dims &m)
{
    if (m.kv == DTYPE_BF16) return key_range(reinterpret_cast<const __nv_bfloat16 *>(keys), n, e, m.E);
    if (m.kv == DTYPE_F16) return key_range(reinterpret_cast<const __half *>(keys), n, e, m.E);
    return key_range(reinterpret_cast<const float *>(keys), n, e, m.E);
}

/* The page's summary from its first n keys. A thread has one element. */
static __device__ __forceinline__ void summarize(char *summary, const char *keys, int n, const struct dims &m)
{
    enum dtype type = m.summary == SUMMARY_F32   ? DTYPE_F32
                      : m.summary == SUMMARY_F16 ? DTYPE_F16
                                                 : DTYPE_BF16;
    int e = threadIdx.x;
    if (e >= m.E) return;
    float2 range = key_range(keys, n, e, m);
    put_element(summary, e, range.x, type);
    put_element(summary, m.E + e, range.y, type);
}

/* The largest |v| of the block's threads, in all of them. */
static __device__ __forceinline__ float block_most(float v)
{
    __shared__ float most[THREADS / 32];
    v = warp_max(fabsf(v));
    __syncthreads(); /* the last use of `most` is over */
    if (threadIdx.x % 32 == 0) most[threadIdx.x / 32] = v;
    __syncthreads(); /* every warp's is there */
    for (int i = 0; i < THREADS / 32; i++) v = fmaxf(v, most[i]);
    return v;
}

/* x over a scale as a whole number in [low, top], ties to even. */
static __device__ __forceinline__ int code_of(float x, float scale, float low, float top)
{
    float code = scale > 0 ? __fdiv_rn(x, scale) : 0.0f;
    code = code < top ? code : top;
    code = code > low ? code : low;
    return __float2int_rn(code);
}

/* The same as codes of middle and half-width (kernels.h). */
static __device__ __forceinline__ void summarize_codes(char *summary, char *scales, const char *keys, int n,
                                                       const struct dims &m)
{
    __shared__ signed char code[2 * ATTENTION_MAX_E]; /* c (E), u (E) */
    int e = threadIdx.x;
    float2 range = e < m.E ? key_range(keys, n, e, m) : make_float2(0, 0);
    float c = (range.y + range.x) * 0.5f, u = (range.y - range.x) * 0.5f;
    bool q8 = m.summary == SUMMARY_Q8;
    float top_c = q8 ? 127.0f : 7.0f, top_u = q8 ? 127.0f : 15.0f;
    float most_c = block_most(c), most_u = block_most(u);
    __nv_bfloat16 scale_c = __float2bfloat16_rn(__fdiv_rn(most_c, top_c)),
                  scale_u = __float2bfloat16_rn(__fdiv_rn(most_u, top_u));
    if (e < m.E) {
        code[e] = (signed char)code_of(c, __bfloat162float(scale_c), -top_c, top_c);
        code[m.E + e] = (signed char)code_of(u, __bfloat162float(scale_u), 0, top_u);
    }
    if (e == 0) {
        reinterpret_cast<__nv_bfloat16 *>(scales)[0] = scale_c;
        reinterpret_cast<__nv_bfloat16 *>(scales)[1] = scale_u;
    }
    __syncthreads(); /* codes are there */
    int half = m.E / 2;
    for (int i = threadIdx.x; i < (q8 ? 2 * m.E : m.E); i += THREADS) {
        int width = i >= half,
            at = width * m.E + (i - width * half); /* Q4: byte i holds codes at, at + half */
        summary[i] = (char)(q8      ? code[i]
                            : width ? code[at] | code[at + half] << 4
                                    : (code[at] + 8) | (code[at + half] + 8) << 4);
    }
}

static __global__ void __launch_bounds__(THREADS, 3)
    rope_store_pages(struct rope_store a, struct kv_layer kv, struct batch b, struct dims m)
{
    int kv_head = blockIdx.y, span = blockIdx.z;
    struct rows s;
    if (a.prompt) {
        struct prompt_span p = b.prompt[span];
        s = {p.slot, p.row0, p.n_rows, p.position0};
    } else {
        const struct decode_span *p = &b.decode[span];
        s = {p->slot, p->row0, p->n_rows, p->position - p->n_rows + 1};
    }
    int newest = s.position0 + s.n_rows - 1, page = s.position0 / m.P + (int)blockIdx.x;
    if (s.n_rows <= 0 || page > newest / m.P) return;
    struct page_place at = page_place_of(kv, span_blocks(b, m, s.slot), page, m);
    char *keys = page_keys(at, m, kv_head);
    int from = max(page * m.P, s.position0), to = min(page * m.P + m.P - 1, newest), heads = m.G + 2;
    for (int i = threadIdx.x / 32; i < (to - from + 1) * heads; i += THREADS / 32) {
        int position = from + i / heads;
        char *key = keys + (size_t)((position - page * m.P) * m.E * type_bytes(m.kv));
        store_head(a, s.row0 + position - s.position0, i % heads, kv_head, key, m);
    }
    __syncthreads(); /* the page's new keys are written */
    if (has_codes(m))
        summarize_codes(page_summary(at, m, kv_head), page_scales(at, m, kv_head), keys, to - page * m.P + 1,
                        m);
    else summarize(page_summary(at, m, kv_head), keys, to - page * m.P + 1, m);
}

extern "C" void cuda_rope_store(struct device *d, float *q, const float *qkv, const float *rope,
                                const float *q_norm, const float *k_norm, const struct kv_layer *kv,
                                const struct batch *b, const struct dims *m)
{
    ASSERT(m->E <= ATTENTION_MAX_E && m->E % 2 == 0);
    struct rope_store a = {q, qkv, rope, q_norm, k_norm, false};
    if (b->n_decode > 0) {
        unsigned pages = (unsigned)((m->W + m->P - 2) / m->P + 1); /* that W consecutive positions touch */
        rope_store_pages<<<dim3(pages, (unsigned)m->Kr, (unsigned)b->n_decode), THREADS, 0,
                           cuda_of(d)->stream>>>(a, *kv, *b, *m);
        cuda_check_launch("rope_store");
    }
    int pages = 0;
    for (int i = 0; i < b->n_prompt; i++) {
        const struct prompt_span *s = &b->host_prompt[i];
        int n = (s->position0 + s->n_rows - 1) / m->P - s->position0 / m->P + 1;
        pages = n > pages ? n : pages;
    }
    if (b->n_prompt == 0) return;
    a.prompt = true;
    rope_store_pages<<<dim3((unsigned)pages, (unsigned)m->Kr, (unsigned)b->n_prompt), THREADS, 0,
                       cuda_of(d)->stream>>>(a, *kv, *b, *m);
    cuda_check_launch("rope_store");
}
