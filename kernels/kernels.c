/* kernels.c - the byte layout shared by both devices, and the choice of a device. */
#include "kernels/kernels.h"

#include "kernels/device.h"
#include "runtime/base/die.h"

static size_t align64(size_t n) { return (n + 63) / 64 * 64; }

void kernels_layout(struct dims *m)
{
    ASSERT(m->P > 0 && m->B % m->P == 0 && m->C % m->B == 0 && m->E % 2 == 0 && m->W >= 1);
    ASSERT(m->Qr == m->Kr * m->G && m->head_off + m->Hr <= m->Qr);
    size_t pages = (size_t)(m->B / m->P), kr = (size_t)m->Kr;
    size_t e = (size_t)m->E;
    m->summary_stride = m->summary == SUMMARY_F32  ? 8 * e
                        : m->summary == SUMMARY_Q8 ? 2 * e
                        : m->summary == SUMMARY_Q4 ? e
                                                   : 4 * e;
    m->summary_bytes = m->summary_stride + (summary_has_codes(m) ? SUMMARY_SCALES_BYTES : 0);
    m->summary_head_bytes = pages * m->summary_bytes;
    if (summary_has_codes(m)) m->summary_head_bytes = align64(m->summary_head_bytes);
    m->kv_bytes = align64(kr * 2 * (size_t)m->B * (size_t)m->E * dtype_bytes(m->kv));
    m->summaries_bytes = align64(kr * m->summary_head_bytes);
    m->layer_bytes = m->kv_bytes + m->summaries_bytes;
    m->block_bytes = (size_t)m->L * m->layer_bytes;
    m->output_cache_bytes = align64((size_t)m->W * (size_t)m->Hr * ((size_t)m->E + 1) * sizeof(float));
    m->last_loaded_bytes = align64(kr * (size_t)(m->C / m->P) * sizeof(int32_t));
    m->slot_layer_bytes = m->output_cache_bytes + m->last_loaded_bytes;
    m->slot_bytes = (size_t)m->L * m->slot_layer_bytes;
}

enum status device_open(struct device **out, enum device_kind kind, const struct device_options *o,
                        struct reason *why)
{
    if (kind == DEVICE_CPU) return cpu_device_open(out, o, why);
#ifdef RETRO_HAVE_CUDA
    return cuda_device_open(out, o, why);
#else
    return status_fail(why, STATUS_BAD_OPTION,
                       "--device cuda: this program was built without CUDA: use --device cpu, "
                       "or build with -DRETRO_CUDA=ON where nvcc is installed");
#endif
}

void device_find_gpu(struct device_gpu *g, int ordinal)
{
    *g = (struct device_gpu){.n_visible = 0};
#ifdef RETRO_HAVE_CUDA
    cuda_find_gpu(g, ordinal);
#else
    (void)ordinal;
#endif
}

void device_close(struct device *d)
{
    if (d) d->close(d);
}

const struct ops *device_ops(const struct device *d) { return d->ops; }

const char *device_describe(const struct device *d) { return d->description; }
