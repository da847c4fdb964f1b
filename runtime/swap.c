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

/* Places of blocks, by their pieces, and of slot records. Pieces: of each layer keys and values, then summaries. */
static char *block_at(const struct model *m, int piece, int i)
{
    struct kv_layer kv = model_layer(m, piece / 2);
    return piece % 2 ? kv_layer_summaries(&kv, &m->dims, i) : kv_layer_block(&kv, &m->dims, i);
}
static char *slot_at(const struct model *m, int i) { return m->slots + (size_t)i * m->dims.slot_bytes; }
static int64_t *counters_at(const struct model *m, int i) { return m->counters + (size_t)i * COUNTER_COUNT; }
static size_t piece_bytes(const struct model *m, int piece)
{
    return piece % 2 ? m->dims.summaries_bytes : m->dims.kv_bytes;
}
static char *host_block(const struct swap *s, int piece, int i)
{
    const struct dims *d = &s->model->dims;
    size_t in_block = (size_t)(piece / 2) * d->layer_bytes + (piece % 2 ? d->kv_bytes : 0);
    return s->blocks + (size_t)i * d->block_bytes + in_block;
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
            for (int p = 0; p < 2 * m->dims.L; p++)
                m->op->download(m->device, host_block(s, p, to), block_at(m, p, from), piece_bytes(m, p));
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
            for (int p = 0; p < 2 * m->dims.L; p++)
                m->op->copy(m->device, block_at(m, p, to), block_at(m, p, from), piece_bytes(m, p));
        } else if (step->move[i].kind == STEP_MOVE_BLOCK_IN) {
            for (int p = 0; p < 2 * m->dims.L; p++)
                m->op->upload(m->device, block_at(m, p, to), host_block(s, p, from), piece_bytes(m, p));
        } else if (step->move[i].kind == STEP_MOVE_SLOT_IN) {
            m->op->upload(m->device, slot_at(m, to), host_slot(s, from), m->dims.slot_bytes);
            m->op->upload(m->device, counters_at(m, to), host_slot(s, from) + m->dims.slot_bytes, COUNTERS);
        }
    }
}
