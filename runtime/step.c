#include "runtime/step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"

void step_open(struct step *s, const struct step_limits *limits)
{
    *s = (struct step){.limits = *limits};
    s->seq = calloc((size_t)limits->n_slots, sizeof *s->seq);
    s->token = calloc((size_t)limits->max_rows, sizeof *s->token);
    s->max_blocks = limits->n_slots * (limits->context / limits->block_tokens);
    s->block = calloc((size_t)s->max_blocks, sizeof *s->block);
    /* Every record out, every record in, and one copied block for each sequence. */
    s->max_moves = 2 * limits->n_blocks + 3 * limits->n_slots;
    s->move = calloc((size_t)s->max_moves, sizeof *s->move);
    if (!s->seq || !s->token || !s->block || !s->move)
        DIE(EXIT_CODE_MEMORY, "lower --max-context or --max-seqs", "no memory for a step plan");
}

void step_close(struct step *s)
{
    free(s->seq);
    free(s->token);
    free(s->block);
    free(s->move);
    *s = (struct step){0};
}

void step_clear(struct step *s, uint64_t id)
{
    s->id = id;
    s->n_seqs = s->n_rows = s->n_blocks = s->n_moves = 0;
}

static void add(struct step *s, struct seq *q, enum row_kind kind, int position, int n_rows,
                enum step_want want)
{
    ASSERT(s->n_seqs < s->limits.n_slots && s->n_rows + n_rows <= s->limits.max_rows);
    ASSERT(q->n_blocks - q->n_announced <= s->max_blocks - s->n_blocks);
    ASSERT(q->n_blocks * s->limits.block_tokens >= position + n_rows);
    int n_blocks = q->n_blocks - q->n_announced;
    s->seq[s->n_seqs++] = (struct step_seq){
        .slot = q->slot,
        .kind = kind,
        .position = position,
        .n_rows = n_rows,
        .row0 = s->n_rows,
        .fresh = !q->opened,
        .policy = q->policy,
        .first_block = q->n_announced,
        .n_blocks = n_blocks,
        .block0 = s->n_blocks,
        .want = want,
        .n_out = want != STEP_WANT_NOTHING,
    };
    memcpy(s->token + s->n_rows, q->token + position, (size_t)n_rows * sizeof *s->token);
    memcpy(s->block + s->n_blocks, q->block + q->n_announced, (size_t)n_blocks * sizeof *s->block);
    s->n_rows += n_rows;
    s->n_blocks += n_blocks;
    q->opened = true;
    q->n_announced = q->n_blocks;
    q->fed = position + n_rows;
}

void step_add_decode(struct step *s, struct seq *q, enum step_want want)
{
    ASSERT(q->fed < q->n_tokens && q->fed >= q->n_prompt);
    ASSERT(s->n_seqs == 0 || s->seq[s->n_seqs - 1].kind == ROW_NEW);
    int position = q->fed;
    int n_rows = policy_rows(&q->policy, position, q->n_prompt);
    add(s, q, ROW_NEW, position - n_rows + 1, n_rows, want);
}

void step_add_prompt(struct step *s, struct seq *q, int n_rows, enum step_want want)
{
    ASSERT(n_rows > 0 && q->fed + n_rows <= q->n_prompt);
    add(s, q, ROW_PROMPT, q->fed, n_rows, want);
}

void step_want_rows(struct step *s, int n_out)
{
    struct step_seq *q = &s->seq[s->n_seqs - 1];
    ASSERT(q->kind == ROW_PROMPT && q->want == STEP_WANT_LOGITS && n_out >= 1 && n_out <= q->n_rows);
    q->n_out = n_out;
}

void step_add_move(struct step *s, enum step_move_kind kind, int32_t from, int32_t to)
{
    ASSERT(s->n_moves < s->max_moves);
    int at = s->n_moves++;
    if (kind <= STEP_MOVE_SLOT_OUT)
        for (; at > 0 && s->move[at - 1].kind > STEP_MOVE_SLOT_OUT; at--) s->move[at] = s->move[at - 1];
    s->move[at] = (struct step_move){kind, from, to};
}

enum row_kind step_row_kind(const struct step_seq *q, int row)
{
    if (q->kind == ROW_PROMPT) return ROW_PROMPT;
    return row == q->n_rows - 1 ? ROW_NEW : ROW_REVISED;
}

const char *step_policy_fault(const struct policy *p, const struct step_limits *l)
{
    if (p->kind >= POLICY_KIND_COUNT) return "policy.kind";
    if (p->window < 1 || p->window > l->window) return "policy.window";
    if (!(p->kv_budget > 0 && p->kv_budget <= 1)) return "policy.kv_budget";
    if (p->kv_budget_tokens < 0) return "policy.kv_budget_tokens";
    if (p->dense_layers < 0 || p->dense_layers > l->n_layers) return "policy.dense_layers";
    if (!(p->score_alpha >= 0 && p->score_alpha <= 1)) return "policy.score_alpha";
    if (p->score_group >= SCORE_GROUP_COUNT) return "policy.score_group";
    if (p->sink_pages < 0) return "policy.sink_pages";
    return NULL;
}

/* Which field of sequence i is out of bounds, or NULL. */
static const char *seq_fault(const struct step *s, int i)
{
    const struct step_seq *q = &s->seq[i];
    const struct step_limits *l = &s->limits;
    if (q->slot < 0 || q->slot >= l->n_slots) return "slot";
    for (int j = 0; j < i; j++)
        if (s->seq[j].slot == q->slot) return "slot (twice in one step)";
    if (q->kind != ROW_PROMPT && q->kind != ROW_NEW) return "kind";
    if (i > 0 && q->kind == ROW_NEW && s->seq[i - 1].kind == ROW_PROMPT) return "kind (decode after prompt)";
    if (q->n_rows < 1 || (q->kind == ROW_NEW && q->n_rows > l->window)) return "token (number of rows)";
    if (q->position < 0 || q->position > l->context - q->n_rows) return "position";
    if (q->want >= STEP_WANT_COUNT) return "want";
    int least_out = q->want != STEP_WANT_NOTHING, most_out = least_out;
    if (q->kind == ROW_PROMPT && q->want == STEP_WANT_LOGITS) most_out = q->n_rows;
    if (q->n_out < least_out || q->n_out > most_out) return "n_out";
    int table = l->context / l->block_tokens;
    if (q->first_block < 0 || q->first_block > table || q->n_blocks > table - q->first_block)
        return "first_block";
    if (q->fresh) return step_policy_fault(&q->policy, l);
    return NULL;
}

/* How many records there are where a move comes from and goes to. */
static void move_bounds(enum step_move_kind kind, const struct step_limits *l, int *n_from, int *n_to)
{
    bool slot = kind == STEP_MOVE_SLOT_OUT || kind == STEP_MOVE_SLOT_IN;
    int here = slot ? l->n_slots : l->n_blocks, host = slot ? l->n_host_slots : l->n_host_blocks;
    *n_from = kind == STEP_MOVE_BLOCK_IN || kind == STEP_MOVE_SLOT_IN ? host : here;
    *n_to = kind == STEP_MOVE_BLOCK_OUT || kind == STEP_MOVE_SLOT_OUT ? host : here;
}

static const char *move_fault(const struct step *s, int i)
{
    const struct step_move *m = &s->move[i];
    if (m->kind >= STEP_MOVE_KIND_COUNT) return "kind";
    bool out = m->kind == STEP_MOVE_BLOCK_OUT || m->kind == STEP_MOVE_SLOT_OUT;
    if (i > 0 && out && s->move[i - 1].kind > STEP_MOVE_SLOT_OUT) return "kind (out after another)";
    int n_from, n_to;
    move_bounds(m->kind, &s->limits, &n_from, &n_to);
    if (m->from < 0 || m->from >= n_from) return "from";
    if (m->to < 0 || m->to >= n_to) return "to";
    return NULL;
}

enum status step_validate(const struct step *s, struct reason *why)
{
    for (int i = 0; i < s->n_moves; i++) {
        const char *field = move_fault(s, i);
        if (field)
            return status_fail(why, STATUS_BAD_INPUT, "step %llu, move %d: field %s is out of bounds",
                               (unsigned long long)s->id, i, field);
    }
    int n_out = 0, n_decode = 0;
    for (int i = 0; i < s->n_seqs; i++) {
        const char *field = seq_fault(s, i);
        if (field)
            return status_fail(why, STATUS_BAD_INPUT, "step %llu, sequence %d: field %s is out of bounds",
                               (unsigned long long)s->id, i, field);
        n_out += s->seq[i].n_out;
        n_decode += s->seq[i].kind == ROW_NEW;
    }
    if (n_out > s->limits.max_out || n_decode > s->limits.max_decode)
        return status_fail(why, STATUS_BAD_INPUT,
                           "step %llu: %d outputs and %d decode sequences are too many",
                           (unsigned long long)s->id, n_out, n_decode);
    for (int i = 0; i < s->n_rows; i++)
        if (s->token[i] < 0 || s->token[i] >= s->limits.vocab)
            return status_fail(why, STATUS_BAD_INPUT,
                               "step %llu: token %d of row %d is outside the vocabulary of %d",
                               (unsigned long long)s->id, s->token[i], i, s->limits.vocab);
    for (int i = 0; i < s->n_blocks; i++)
        if (s->block[i] < 0 || s->block[i] >= s->limits.n_blocks)
            return status_fail(why, STATUS_BAD_INPUT, "step %llu: block %d is outside the pool of %d",
                               (unsigned long long)s->id, s->block[i], s->limits.n_blocks);
    return STATUS_OK;
}

enum status step_continue(const struct step *s, int *n_set, struct reason *why)
{
    for (int i = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seq[i];
        int set = q->fresh ? 0 : n_set[q->slot];
        if (q->first_block > set)
            return status_fail(why, STATUS_BAD_INPUT,
                               "step %llu: slot %d continues its blocks at %d, it has %d",
                               (unsigned long long)s->id, q->slot, q->first_block, set);
        if (q->n_blocks > 0) set = q->first_block + q->n_blocks;
        if (set < (q->position + q->n_rows + s->limits.block_tokens - 1) / s->limits.block_tokens)
            return status_fail(why, STATUS_BAD_INPUT, "step %llu: slot %d has no block for position %d",
                               (unsigned long long)s->id, q->slot, q->position + q->n_rows - 1);
    }
    for (int i = 0; i < s->n_seqs; i++) { /* every slot is named once */
        const struct step_seq *q = &s->seq[i];
        if (q->n_blocks > 0) n_set[q->slot] = q->first_block + q->n_blocks;
        else if (q->fresh) n_set[q->slot] = 0;
    }
    return STATUS_OK;
}
