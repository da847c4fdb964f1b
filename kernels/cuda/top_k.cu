/* top_k.cu - the TOP_K_MAX largest logits of each row, largest first, equal ones by lower index.
 *
 * One block a row, as in argmax.cu. A logit and its index are one number: the ordered bits of the logit above
 * the complement of the index, so that no two are equal and the order is that of the result.
 *
 *   1. every thread takes the largest of its share of the row; the 64th largest of those bounds the 64th
 *      largest of the row from below, since they are 64 different logits
 *   2. what reaches the bound (some 70 of 128k, unless many are equal) is gathered in shared memory
 *   3. radix select, eight bits at a time, finds the 64th of these; the 64 are ranked by counting
 *
 * The row is read twice, the second time from L2. Where more reach the bound than shared memory holds, step 3
 * goes over the row itself: right, and slow. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/row.cuh"

enum { THREADS = 1024, HELD = 2048, DIGITS = 256, K = TOP_K_MAX };

/* Larger logits have larger numbers; NaN is -inf; 0 is below every logit. */
static __device__ __forceinline__ uint64_t number_of(float x, int index)
{
    uint32_t u = __float_as_uint(isnan(x) ? -INFINITY : x == 0.0f ? 0.0f : x);
    u = u & 0x80000000u ? ~u : u | 0x80000000u;
    return (uint64_t)u << 32 | (uint32_t)~index;
}

/* Numbers in shared memory, or made from the row. */
struct numbers {
    const uint64_t *held; /* NULL: of the row */
    const float *row;
    int n;
};
static __device__ __forceinline__ uint64_t number(const struct numbers &x, int i)
{
    return x.held ? x.held[i] : number_of(x.row[i], i);
}

/* The k-th largest of the numbers, 1 <= k <= n; all threads get it. Once a prefix is shared by exactly as
 * many numbers as are still wanted, all of them belong to the largest: the prefix with zeros behind it will
 * do. */
static __device__ uint64_t kth_largest(const struct numbers &x, int k)
{
    __shared__ int digit[DIGITS], found, above, same;
    uint64_t prefix = 0, mask = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < DIGITS; i += THREADS) digit[i] = 0;
        __syncthreads(); /* counts are zero */
        for (int i = threadIdx.x; i < x.n; i += THREADS) {
            uint64_t v = number(x, i);
            if ((v & mask) == prefix) atomicAdd(&digit[(int)(v >> shift & (DIGITS - 1))], 1);
        }
        __syncthreads();        /* counts are complete */
        if (threadIdx.x < 32) { /* a lane has eight digits, lane 0 the largest */
            int lane = threadIdx.x, sum = 0;
            for (int i = 0; i < 8; i++) sum += digit[DIGITS - 1 - lane * 8 - i];
            int before = sum;
#pragma unroll
            for (int step = 1; step < 32; step *= 2) {
                int other = __shfl_up_sync(0xffffffffu, before, step);
                if (lane >= step) before += other;
            }
            before -= sum; /* numbers of larger digits than this lane's */
            if (before < k && k <= before + sum) {
                int i = 0;
                while (before + digit[DIGITS - 1 - lane * 8 - i] < k)
                    before += digit[DIGITS - 1 - lane * 8 - i++];
                found = DIGITS - 1 - lane * 8 - i;
                above = before;
                same = digit[found];
            }
        }
        __syncthreads(); /* the digit is known */
        k -= above;
        prefix |= (uint64_t)found << shift;
        mask |= (uint64_t)(DIGITS - 1) << shift;
        if (k == same) break; /* the same for all threads */
        __syncthreads();      /* everyone has read the counts */
    }
    return prefix;
}

static __global__ void __launch_bounds__(THREADS) top_of_row(struct best *top, const float *logits, int n)
{
    __shared__ uint64_t held[HELD], chosen[K];
    __shared__ int n_held, n_chosen;
    const float *row = logits + (size_t)blockIdx.x * n;
    int k = n < K ? n : K;
    uint64_t most = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) most = max(most, number_of(row[i], i));
    held[threadIdx.x] = most;
    if (threadIdx.x == 0) n_held = n_chosen = 0;
    __syncthreads(); /* every thread's largest is there */
    struct numbers x = {held, row, THREADS};
    uint64_t bound = kth_largest(x, k);
    if (bound == 0) bound = 1; /* 0 stands for a thread without logits */
    __syncthreads();           /* the largest have been read */
    for (int i = threadIdx.x; i < n; i += THREADS) {
        uint64_t v = number_of(row[i], i);
        if (v < bound) continue;
        int at = atomicAdd(&n_held, 1);
        if (at < HELD) held[at] = v;
    }
    __syncthreads(); /* gathered */
    x.n = n_held;
    if (n_held > HELD) x = {NULL, row, n};
    uint64_t limit = kth_largest(x, k);
    for (int i = threadIdx.x; i < x.n; i += THREADS)
        if (number(x, i) >= limit) chosen[atomicAdd(&n_chosen, 1)] = number(x, i);
    __syncthreads(); /* the k largest are there, in any order */
    if (threadIdx.x >= K) return;
    struct best *to = top + (size_t)blockIdx.x * K;
    if ((int)threadIdx.x >= k) {
        to[threadIdx.x] = {-INFINITY, -1};
        return;
    }
    uint64_t mine = chosen[threadIdx.x];
    int rank = 0;
    for (int i = 0; i < k; i++) rank += chosen[i] > mine;
    int index = (int)~(uint32_t)mine;
    float value = row[index];
    to[rank] = {isnan(value) ? -INFINITY : value, index};
}

extern "C" void cuda_top_k(struct device *d, struct best *top, const float *logits, int n_out,
                           const struct dims *m)
{
    ASSERT(m->Vr > 0);
    if (n_out == 0) return;
    top_of_row<<<n_out, THREADS, 0, cuda_of(d)->stream>>>(top, logits, m->Vr);
    cuda_check_launch("top_k");
}
