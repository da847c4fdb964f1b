#include "runtime/wire.h"

#include <stdlib.h>
#include <string.h>

#include "retro.pb-c.h"
#include "runtime/base/die.h"

/* proto repeated uint32 fields and our int32 arrays hold the same non-negative values. */
_Static_assert(sizeof(uint32_t) == sizeof(int32_t), "token ids travel as uint32");

#define SCRATCH_MAX ((size_t)16 << 20) /* of what is kept; a message that needs more takes it from malloc */

void wire_close(struct wire *w)
{
    free(w->bytes);
    free(w->scratch);
    *w = (struct wire){0};
}

static void pack_policy(Retro__Policy *out, const struct policy *p)
{
    retro__policy__init(out);
    out->kind = (uint32_t)p->kind;
    out->window = (uint32_t)p->window;
    out->kv_budget = p->kv_budget;
    out->kv_budget_tokens = (uint32_t)p->kv_budget_tokens;
    out->dense_layers = (uint32_t)p->dense_layers;
    out->score_alpha = p->score_alpha;
    out->score_group = (uint32_t)p->score_group;
    out->sink_pages = (uint32_t)p->sink_pages;
}

static void reserve_scratch(struct wire *w, size_t n)
{
    if (n <= w->scratch_bytes) return;
    free(w->scratch);
    w->scratch_bytes = 2 * n;
    w->scratch = malloc(w->scratch_bytes);
    if (!w->scratch) DIE(EXIT_CODE_MEMORY, NULL, "no memory to pack or unpack a step");
}

void wire_pack_step(struct wire *w, const struct step *s)
{
    size_t n = (size_t)s->n_seqs;
    reserve_scratch(w, (n + 1) * (sizeof(Retro__StepSequence) + sizeof(Retro__Policy) + sizeof(void *)) +
                           3 * (size_t)s->n_moves * sizeof(uint32_t));
    Retro__StepSequence *seqs = w->scratch;
    Retro__Policy *policies = (Retro__Policy *)(seqs + n);
    Retro__StepSequence **refs = (Retro__StepSequence **)(policies + n);
    for (size_t i = 0; i < n; i++) {
        const struct step_seq *q = &s->seq[i];
        retro__step_sequence__init(&seqs[i]);
        seqs[i].slot = (uint32_t)q->slot;
        seqs[i].kind = (uint32_t)q->kind;
        seqs[i].position = (uint32_t)q->position;
        seqs[i].n_token = (size_t)q->n_rows;
        seqs[i].token = (uint32_t *)(s->token + q->row0);
        seqs[i].first_block = (uint32_t)q->first_block;
        seqs[i].n_block = (size_t)q->n_blocks;
        seqs[i].block = (uint32_t *)(s->block + q->block0);
        seqs[i].want = (uint32_t)q->want;
        seqs[i].has_n_out = q->n_out > 1;
        seqs[i].n_out = (uint32_t)q->n_out;
        if (q->fresh) {
            pack_policy(&policies[i], &q->policy);
            seqs[i].policy = &policies[i];
        }
        refs[i] = &seqs[i];
    }
    Retro__Step message;
    retro__step__init(&message);
    message.id = s->id;
    message.n_sequence = n;
    message.sequence = refs;
    message.n_move = 3 * (size_t)s->n_moves;
    message.move = (uint32_t *)(refs + n + 1);
    for (int i = 0; i < s->n_moves; i++) {
        message.move[3 * i] = (uint32_t)s->move[i].kind;
        message.move[3 * i + 1] = (uint32_t)s->move[i].from;
        message.move[3 * i + 2] = (uint32_t)s->move[i].to;
    }
    size_t size = retro__step__get_packed_size(&message);
    if (size > w->capacity) {
        free(w->bytes);
        w->capacity = size * 2;
        w->bytes = malloc(w->capacity);
        if (!w->bytes) DIE(EXIT_CODE_MEMORY, NULL, "no memory to pack a step");
    }
    w->n_bytes = retro__step__pack(&message, w->bytes);
}

/* Values above INT32_MAX become -1, which every later check refuses. */
static int32_t narrow(uint32_t v) { return v > INT32_MAX ? -1 : (int32_t)v; }

static void unpack_seq(struct step_seq *q, const Retro__StepSequence *m)
{
    *q = (struct step_seq){
        .slot = narrow(m->slot),
        .kind = m->kind < ROW_KIND_COUNT ? (enum row_kind)m->kind : ROW_KIND_COUNT,
        .position = narrow(m->position),
        .n_rows = (int32_t)m->n_token,
        .fresh = m->policy != NULL,
        .first_block = narrow(m->first_block),
        .n_blocks = (int32_t)m->n_block,
        .want = m->want < STEP_WANT_COUNT ? (enum step_want)m->want : STEP_WANT_COUNT,
        .n_out = m->has_n_out ? narrow(m->n_out) : m->want != STEP_WANT_NOTHING,
    };
    if (!m->policy) return;
    const Retro__Policy *p = m->policy;
    q->policy = (struct policy){
        .kind = p->kind < POLICY_KIND_COUNT ? (enum policy_kind)p->kind : POLICY_KIND_COUNT,
        .window = narrow(p->window),
        .kv_budget = p->kv_budget,
        .kv_budget_tokens = narrow(p->kv_budget_tokens),
        .dense_layers = narrow(p->dense_layers),
        .score_alpha = p->score_alpha,
        .score_group =
            p->score_group < SCORE_GROUP_COUNT ? (enum score_group)p->score_group : SCORE_GROUP_COUNT,
        .sink_pages = narrow(p->sink_pages),
    };
}

static enum status unpack(struct step *s, const Retro__Step *m, struct reason *why)
{
    const struct step_limits *l = &s->limits;
    step_clear(s, m->id);
    if (m->n_sequence > (size_t)l->n_slots)
        return status_fail(why, STATUS_BAD_INPUT, "step %llu: %zu sequences, %d slots",
                           (unsigned long long)m->id, m->n_sequence, l->n_slots);
    if (m->n_move % 3 || m->n_move / 3 > (size_t)s->max_moves)
        return status_fail(why, STATUS_BAD_INPUT, "step %llu: %zu numbers are no list of moves",
                           (unsigned long long)m->id, m->n_move);
    for (size_t i = 0; i < m->n_move; i += 3)
        s->move[s->n_moves++] = (struct step_move){
            m->move[i] < STEP_MOVE_KIND_COUNT ? (enum step_move_kind)m->move[i] : STEP_MOVE_KIND_COUNT,
            narrow(m->move[i + 1]), narrow(m->move[i + 2])};
    for (size_t i = 0; i < m->n_sequence; i++) {
        const Retro__StepSequence *q = m->sequence[i];
        if (q->n_token > (size_t)(l->max_rows - s->n_rows) ||
            q->n_block > (size_t)(s->max_blocks - s->n_blocks))
            return status_fail(why, STATUS_BAD_INPUT, "step %llu: more rows or blocks than the limits",
                               (unsigned long long)m->id);
        struct step_seq *to = &s->seq[s->n_seqs++];
        unpack_seq(to, q);
        to->row0 = s->n_rows;
        to->block0 = s->n_blocks;
        for (size_t j = 0; j < q->n_token; j++) s->token[s->n_rows++] = narrow(q->token[j]);
        for (size_t j = 0; j < q->n_block; j++) s->block[s->n_blocks++] = narrow(q->block[j]);
    }
    return step_validate(s, why);
}

/* protobuf-c's allocator over the scratch: pieces are handed out one after another and all given back at
 * once. */
struct pieces {
    char *begin;
    size_t used, capacity, wanted;
};

static void *piece_alloc(void *user, size_t n)
{
    struct pieces *p = user;
    size_t size = (n + 15) / 16 * 16;
    p->wanted += size;
    if (size > p->capacity - p->used) return malloc(n);
    p->used += size;
    return p->begin + p->used - size;
}

static void piece_free(void *user, void *piece)
{
    const struct pieces *p = user;
    if ((uintptr_t)piece - (uintptr_t)p->begin >= p->capacity) free(piece);
}

enum status wire_unpack_step(struct wire *w, struct step *s, const void *bytes, size_t n_bytes,
                             struct reason *why)
{
    struct pieces pieces = {.begin = w->scratch, .capacity = w->scratch_bytes};
    ProtobufCAllocator allocator = {piece_alloc, piece_free, &pieces};
    Retro__Step *m = retro__step__unpack(&allocator, n_bytes, bytes);
    enum status status =
        m ? unpack(s, m, why)
          : status_fail(why, STATUS_BAD_INPUT, "a step message of %zu bytes does not parse", n_bytes);
    if (m) retro__step__free_unpacked(m, &allocator);
    if (pieces.wanted > w->scratch_bytes && pieces.wanted <= SCRATCH_MAX) reserve_scratch(w, pieces.wanted);
    return status;
}
