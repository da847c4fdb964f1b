#include "runtime/swap.h"

#include "runtime/base/die.h"

static const size_t COUNTERS = COUNTER_COUNT * sizeof(int64_t);

static size_t blocks_bytes(const struct model *m) { return (size_t)m->n_host_blocks * m->dims.block_bytes; }

static size_t slots_bytes(const struct model *m)
{
    return (size_t)m->n_host_slots * (m->dims.slot_bytes + COUNTERS);
}

void swap_open(struct swap *s, struct model *m)
{
    *s = (struct swap){.model = m};
    if (m->n_host_blocks == 0) return;
    s->blocks = m->op->host_alloc(m->device, blocks_bytes(m));
    s->slots = m->op->host_alloc(m->device, slots_bytes(m));
    if (!s->blocks || !s->slots)
        DIE(EXIT_CODE_MEMORY, "lower --swap-space", "no host memory for %.2f GiB of swap space",
            (double)(blocks_bytes(m) + slots_bytes(m)) / (1 << 30));
}

void swap_close(struct swap *s)
{
    struct model *m = s->model;
    if (s->blocks) m->op->host_free(m->device, s->blocks, blocks_bytes(m));
    if (s->slots) m->op->host_free(m->device, s->slots, slots_bytes(m));
    *s = (struct swap){0};
}

/* Places of records. */
static char *block_at(const struct model *m, int layer, int i)
{
    return m->pool + pool_layer_offset(&m->dims, layer) + (size_t)i * m->dims.layer_bytes;
}
static char *slot_at(const struct model *m, int i) { return m->slots + (size_t)i * m->dims.slot_bytes; }
static int64_t *counters_at(const struct model *m, int i) { return m->counters + (size_t)i * COUNTER_COUNT; }
static char *host_block(const struct swap *s, int layer, int i)
{
    return s->blocks + (size_t)i * s->model->dims.block_bytes + (size_t)layer * s->model->dims.layer_bytes;
}
static char *host_slot(const struct swap *s, int i)
{
    return s->slots + (size_t)i * (s->model->dims.slot_bytes + COUNTERS);
}

void swap_out(struct swap *s, const struct step *step)
{
    const struct model *m = s->model;
    for (int i = 0; i < step->n_moves; i++) {
        int from = step->move[i].from, to = step->move[i].to;
        if (step->move[i].kind == STEP_MOVE_BLOCK_OUT) {
            for (int l = 0; l < m->dims.L; l++)
                m->op->download(m->device, host_block(s, l, to), block_at(m, l, from), m->dims.layer_bytes);
        } else if (step->move[i].kind == STEP_MOVE_SLOT_OUT) {
            m->op->download(m->device, host_slot(s, to), slot_at(m, from), m->dims.slot_bytes);
            m->op->download(m->device, host_slot(s, to) + m->dims.slot_bytes, counters_at(m, from), COUNTERS);
        }
    }
}

void swap_in(struct swap *s, const struct step *step)
{
    const struct model *m = s->model;
    for (int i = 0; i < step->n_moves; i++) {
        int from = step->move[i].from, to = step->move[i].to;
        if (step->move[i].kind == STEP_MOVE_BLOCK_COPY && from != to) {
            for (int l = 0; l < m->dims.L; l++)
                m->op->copy(m->device, block_at(m, l, to), block_at(m, l, from), m->dims.layer_bytes);
        } else if (step->move[i].kind == STEP_MOVE_BLOCK_IN) {
            for (int l = 0; l < m->dims.L; l++)
                m->op->upload(m->device, block_at(m, l, to), host_block(s, l, from), m->dims.layer_bytes);
        } else if (step->move[i].kind == STEP_MOVE_SLOT_IN) {
            m->op->upload(m->device, slot_at(m, to), host_slot(s, from), m->dims.slot_bytes);
            m->op->upload(m->device, counters_at(m, to), host_slot(s, from) + m->dims.slot_bytes, COUNTERS);
        }
    }
}
