/* reset_blocks.cu - last_loaded of all layers becomes -1 in the blocks ids[0..n).
 *
 * The ids travel as kernel parameters, a few hundred a launch: nothing is uploaded, so the caller's array is
 * free again on return. Block (i,l) clears layer l of id i. */
#include "kernels/cuda/cuda.h"

enum {
    THREADS = 64,
    IDS = 512, /* 2 KiB of the 4 KiB that parameters may take */
};

struct ids {
    int32_t id[IDS];
};

static __global__ void reset_layers(char *last_loaded, struct ids ids, size_t block_bytes, size_t layer_bytes,
                                    int n_pages)
{
    int32_t *at = (int32_t *)(last_loaded + (size_t)ids.id[blockIdx.x] * block_bytes +
                              (size_t)blockIdx.y * layer_bytes);
    for (int i = threadIdx.x; i < n_pages; i += THREADS) at[i] = -1;
}

extern "C" void cuda_reset_blocks(struct device *d, char *pool, const int32_t *ids_host, int n,
                                  const struct dims *m)
{
    ASSERT(m->L > 0 && m->L <= 65535);
    for (int i = 0; i < n; i++) ASSERT(ids_host[i] >= 0 && ids_host[i] < m->n_blocks);
    for (int first = 0; first < n; first += IDS) {
        struct ids ids;
        int count = n - first < IDS ? n - first : IDS;
        memcpy(ids.id, ids_host + first, (size_t)count * sizeof *ids_host);
        reset_layers<<<dim3(count, m->L), THREADS, 0, cuda_of(d)->stream>>>(
            pool + kv_last_loaded_offset(m, 0, 0), ids, m->block_bytes, m->layer_bytes,
            m->Kr * (m->B / m->P));
    }
    cuda_check_launch("reset_blocks");
}
