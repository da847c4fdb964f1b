/* fuzz_step.c - libFuzzer target: the bytes are a step message that reaches a rank with fixed limits. What is
 * accepted must keep every limit (so that nothing behind it can index out of bounds) and survive the way
 * back; what is refused must be refused with one line. Seeds: tests/fuzz/corpus/step. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct step_limits limits = {
    .n_slots = 4,
    .max_rows = 40,
    .max_decode = 3,
    .max_out = 3,
    .n_blocks = 20,
    .context = 64,
    .block_tokens = 8,
    .window = 4,
    .vocab = 500,
    .n_layers = 6,
    .n_host_blocks = 7,
    .n_host_slots = 2,
};

/* Not by step_validate: what an executing rank relies on, written out again. */
static void check_accepted(const struct step *s)
{
    int row = 0, block = 0, n_out = 0, n_decode = 0, slots = 0;
    ASSERT(s->n_seqs >= 0 && s->n_seqs <= limits.n_slots);
    for (int i = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seq[i];
        ASSERT(q->slot >= 0 && q->slot < limits.n_slots && !(slots >> q->slot & 1));
        slots |= 1 << q->slot;
        ASSERT(q->row0 == row && q->n_rows >= 1 && q->block0 == block && q->n_blocks >= 0);
        ASSERT(q->position >= 0 && q->position + q->n_rows <= limits.context);
        ASSERT(q->first_block >= 0 && q->first_block + q->n_blocks <= limits.context / limits.block_tokens);
        ASSERT(q->kind == ROW_PROMPT || (q->kind == ROW_NEW && q->n_rows <= limits.window && n_decode == i));
        n_decode += q->kind == ROW_NEW;
        n_out += q->n_out;
        ASSERT(q->want < STEP_WANT_COUNT && q->n_out <= q->n_rows);
        ASSERT(q->n_out == (q->want != STEP_WANT_NOTHING) ||
               (q->n_out > 1 && q->kind == ROW_PROMPT && q->want == STEP_WANT_LOGITS));
        const struct policy *p = &q->policy;
        ASSERT(!q->fresh ||
               (p->kind < POLICY_KIND_COUNT && p->window >= 1 && p->window <= limits.window &&
                p->kv_budget > 0 && p->kv_budget <= 1 && p->kv_budget_tokens >= 0 && p->dense_layers >= 0 &&
                p->dense_layers <= limits.n_layers && p->score_alpha >= 0 && p->score_alpha <= 1 &&
                p->score_group < SCORE_GROUP_COUNT && p->sink_pages >= 0));
        row += q->n_rows;
        block += q->n_blocks;
    }
    ASSERT(row == s->n_rows && row <= limits.max_rows && block == s->n_blocks && block <= s->max_blocks);
    ASSERT(n_out <= limits.max_out && n_decode <= limits.max_decode);
    ASSERT(s->n_moves >= 0 && s->n_moves <= s->max_moves);
    for (int i = 0, others = 0; i < s->n_moves; i++) {
        const struct step_move *m = &s->move[i];
        bool slot = m->kind == STEP_MOVE_SLOT_OUT || m->kind == STEP_MOVE_SLOT_IN;
        bool out = m->kind == STEP_MOVE_BLOCK_OUT || m->kind == STEP_MOVE_SLOT_OUT;
        bool in = m->kind == STEP_MOVE_BLOCK_IN || m->kind == STEP_MOVE_SLOT_IN;
        ASSERT((out || in || m->kind == STEP_MOVE_BLOCK_COPY) && m->from >= 0 && m->to >= 0);
        ASSERT(m->from < (slot ? in ? limits.n_host_slots : limits.n_slots
                          : in ? limits.n_host_blocks
                               : limits.n_blocks));
        ASSERT(m->to < (slot  ? out ? limits.n_host_slots : limits.n_slots
                        : out ? limits.n_host_blocks
                              : limits.n_blocks));
        ASSERT(!out || others == 0);
        others += !out;
    }
    for (int i = 0; i < row; i++) ASSERT(s->token[i] >= 0 && s->token[i] < limits.vocab);
    for (int i = 0; i < block; i++) ASSERT(s->block[i] >= 0 && s->block[i] < limits.n_blocks);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct step s, again;
    struct wire wire = {0}, back = {0};
    struct reason why = {""};
    int n_set[4] = {1, 2, 3, 8};
    step_open(&s, &limits);
    enum status status = wire_unpack_step(&wire, &s, data, size, &why);
    if (status == STATUS_OK) {
        check_accepted(&s);
        step_continue(&s, n_set, &why);
        for (int i = 0; i < 4; i++) ASSERT(n_set[i] >= 0 && n_set[i] <= limits.context / limits.block_tokens);
        step_open(&again, &limits);
        wire_pack_step(&back, &s);
        ASSERT(wire_unpack_step(&wire, &again, back.bytes, back.n_bytes, &why) == STATUS_OK);
        ASSERT(again.id == s.id && again.n_seqs == s.n_seqs && again.n_rows == s.n_rows);
        ASSERT(memcmp(again.token, s.token, (size_t)s.n_rows * sizeof *s.token) == 0);
        ASSERT(memcmp(again.block, s.block, (size_t)s.n_blocks * sizeof *s.block) == 0);
        ASSERT(again.n_moves == s.n_moves);
        for (int i = 0; i < s.n_moves; i++)
            ASSERT(again.move[i].kind == s.move[i].kind && again.move[i].from == s.move[i].from &&
                   again.move[i].to == s.move[i].to);
        step_close(&again);
    } else {
        ASSERT(status == STATUS_BAD_INPUT && why.text[0] && !strchr(why.text, '\n'));
    }
    wire_close(&wire);
    wire_close(&back);
    step_close(&s);
    return 0;
}
