#include "runtime/stage.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/arena.h"
#include "runtime/base/die.h"
#include "runtime/shape.h"

static void carve_arrays(struct stage_arrays *x, struct arena *a, const struct dims *m)
{
    x->token = arena_carve(a, (size_t)m->max_rows * sizeof(int32_t));
    x->position = arena_carve(a, (size_t)m->max_rows * sizeof(int32_t));
    x->slot = arena_carve(a, (size_t)m->max_rows * sizeof(int32_t));
    x->out_row = arena_carve(a, (size_t)m->max_out * sizeof(int32_t));
    x->decode = arena_carve(a, (size_t)m->max_spans * sizeof(struct decode_span));
    x->prompt = arena_carve(a, (size_t)m->n_slots * sizeof(struct prompt_span));
}

static size_t table_bytes(const struct dims *m)
{
    return (size_t)m->n_slots * (size_t)(m->C / m->B) * sizeof(int32_t);
}

void stage_open(struct stage *s, struct model *m)
{
    const struct ops *op = m->op;
    *s = (struct stage){.model = m};
    struct arena a;
    arena_count(&a);
    carve_arrays(&s->h, &a, &m->dims);
    s->bytes = a.used_bytes;
    s->host = op->host_alloc(m->device, s->bytes);
    s->device = op->mem_alloc(m->device, s->bytes);
    s->table_host = op->host_alloc(m->device, table_bytes(&m->dims));
    s->table_device = op->mem_alloc(m->device, table_bytes(&m->dims));
    s->policy = calloc((size_t)m->dims.n_slots, sizeof *s->policy);
    s->n_blocks = calloc((size_t)m->dims.n_slots, sizeof *s->n_blocks);
    if (!s->host || !s->device || !s->table_host || !s->table_device || !s->policy || !s->n_blocks)
        DIE(EXIT_CODE_MEMORY, "lower --prefill-chunk or --max-seqs", "no memory for the step plan");
    swap_open(&s->swap, m);
    arena_wrap(&a, s->host, s->bytes);
    carve_arrays(&s->h, &a, &m->dims);
    arena_wrap(&a, s->device, s->bytes);
    carve_arrays(&s->d, &a, &m->dims);
}

void stage_close(struct stage *s)
{
    if (!s->model) return;
    const struct ops *op = s->model->op;
    struct device *d = s->model->device;
    op->host_free(d, s->host, s->bytes);
    op->mem_free(d, s->device, s->bytes);
    op->host_free(d, s->table_host, table_bytes(&s->model->dims));
    op->mem_free(d, s->table_device, table_bytes(&s->model->dims));
    swap_close(&s->swap);
    free(s->policy);
    free(s->n_blocks);
    *s = (struct stage){0};
}

/* New blocks of one sequence: its table grows by them. */
static void add_blocks(struct stage *s, const struct step *step, const struct step_seq *q)
{
    struct model *m = s->model;
    int32_t *row = s->table_host + (size_t)q->slot * (size_t)(m->dims.C / m->dims.B);
    const int32_t *ids = step->block + q->block0;
    memcpy(row + q->first_block, ids, (size_t)q->n_blocks * sizeof *ids);
    m->op->upload(m->device, s->table_device + (row - s->table_host) + q->first_block, row + q->first_block,
                  (size_t)q->n_blocks * sizeof *ids);
}

/* No page has been loaded by the new sequence in the slot: last_loaded is -1. */
static void forget_pages(struct stage *s, int slot)
{
    struct model *m = s->model;
    const struct dims *d = &m->dims;
    char *marks = m->slots + (size_t)slot * d->slot_bytes + d->output_cache_bytes;
    for (int l = 0; l < d->L; l++, marks += d->slot_layer_bytes)
        m->op->fill(m->device, marks, 0xff, d->last_loaded_bytes);
}

static void apply_seq(struct stage *s, const struct step *step, const struct step_seq *q)
{
    struct model *m = s->model;
    if (q->fresh) {
        s->policy[q->slot] = q->policy;
        m->op->fill(m->device, m->counters + (size_t)q->slot * COUNTER_COUNT, 0,
                    COUNTER_COUNT * sizeof(int64_t));
        forget_pages(s, q->slot);
    }
    if (q->n_blocks > 0) add_blocks(s, step, q);
}

static void add_rows(struct stage *s, const struct step *step, const struct step_seq *q, struct batch *b)
{
    const struct model *m = s->model;
    for (int i = 0; i < q->n_rows; i++) {
        int row = q->row0 + i;
        s->h.token[row] = step->token[row];
        s->h.position[row] = q->position + i;
        s->h.slot[row] = q->slot;
    }
    int last = q->position + q->n_rows - 1;
    if (q->kind == ROW_PROMPT) {
        s->h.prompt[b->n_prompt++] = (struct prompt_span){q->slot, q->row0, q->n_rows, q->position};
    } else {
        struct decode_span span = policy_span(&s->policy[q->slot], q->slot, q->row0, last, q->position,
                                              m->dims.P, m->arch->sliding_window);
        span.n_rows = q->n_rows; /* rank 0 planned how many are revised */
        s->h.decode[b->n_decode++] = span;
        b->n_decode_rows += q->n_rows;
    }
    if (last > b->max_position) b->max_position = last;
    for (int i = q->n_rows - q->n_out; i < q->n_rows; i++) s->h.out_row[b->n_out++] = q->row0 + i;
    b->top |= q->want == STEP_WANT_CANDIDATES;
}

/* Rounds a decode step to a shape that comes again: what is added are spans without rows, rows that belong to
 * none of them, and outputs of row 0. */
static void pad(struct stage *s, struct batch *b)
{
    struct batch given = *b;
    shape_round(b, &s->model->dims);
    for (int i = given.n_rows; i < b->n_rows; i++) s->h.token[i] = s->h.position[i] = s->h.slot[i] = 0;
    for (int i = given.n_decode; i < b->n_decode; i++) s->h.decode[i] = (struct decode_span){0};
    for (int i = given.n_out; i < b->n_out; i++) s->h.out_row[i] = 0;
}

enum status stage_step(struct stage *s, const struct step *step, struct batch *b, struct reason *why)
{
    enum status status = step_continue(step, s->n_blocks, why);
    if (status != STATUS_OK) return status;
    *b = (struct batch){.n_rows = step->n_rows};
    swap_out(&s->swap, step);
    for (int i = 0; i < step->n_seqs; i++) {
        apply_seq(s, step, &step->seq[i]);
        add_rows(s, step, &step->seq[i], b);
    }
    swap_in(&s->swap, step); /* into slots that are fresh: after they were cleared */
    b->token = s->d.token;
    b->position = s->d.position;
    b->slot = s->d.slot;
    b->out_row = s->d.out_row;
    b->decode = s->d.decode;
    b->prompt = s->d.prompt;
    b->block_table = s->table_device;
    b->host_decode = s->h.decode;
    b->host_prompt = s->h.prompt;
    if (s->model->graphs && !s->model->probe && b->n_prompt == 0 && b->n_decode > 0) pad(s, b);
    return STATUS_OK;
}

void stage_upload(struct stage *s) { s->model->op->upload(s->model->device, s->device, s->host, s->bytes); }
