/* test_wire.c - step plans to bytes and back, and messages that no rank 0 would send: each field out of
 * range, cut off, changed in a bit, and bytes that are no message at all. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "retro.pb-c.h"
#include "runtime/wire.h"
#include "tests/runtime/random.h"

enum { SLOTS = 4, BLOCK = 8, CONTEXT = 64, WINDOW = 4, VOCAB = 500, ROWS = 40 };

static const struct step_limits limits = {
    .n_slots = SLOTS,
    .max_rows = ROWS,
    .max_decode = 3,
    .max_out = 3,
    .n_blocks = 20,
    .context = CONTEXT,
    .block_tokens = BLOCK,
    .window = WINDOW,
    .vocab = VOCAB,
    .n_layers = 6,
    .n_host_blocks = 7,
    .n_host_slots = 2,
};

static struct wire wire;

/* ---- good plans */

static void random_plan(struct step *s, struct random *r)
{
    step_clear(s, random_bits(r));
    int slot = random_int(r, 0, SLOTS - 1), n = random_int(r, 0, SLOTS), n_out = 0,
        n_decode = random_int(r, 0, 3);
    for (int i = 0; i < n; i++) {
        struct step_seq *q = &s->seq[s->n_seqs++];
        *q = (struct step_seq){.slot = (slot + i) % SLOTS, .kind = i < n_decode ? ROW_NEW : ROW_PROMPT};
        q->n_rows = random_int(r, 1, q->kind == ROW_NEW ? WINDOW : 6);
        q->position = random_int(r, 0, CONTEXT - q->n_rows);
        q->row0 = s->n_rows;
        q->block0 = s->n_blocks;
        q->n_blocks = random_int(r, 0, 3);
        q->first_block = random_int(r, 0, CONTEXT / BLOCK - q->n_blocks);
        q->want = n_out < limits.max_out ? (enum step_want)random_int(r, 0, STEP_WANT_COUNT - 1)
                                         : STEP_WANT_NOTHING;
        q->n_out = q->want != STEP_WANT_NOTHING;
        if (q->kind == ROW_PROMPT && q->want == STEP_WANT_LOGITS)
            q->n_out =
                random_int(r, 1, q->n_rows < limits.max_out - n_out ? q->n_rows : limits.max_out - n_out);
        n_out += q->n_out;
        q->fresh = random_int(r, 0, 1);
        if (q->fresh)
            q->policy = (struct policy){.kind = (enum policy_kind)random_int(r, 0, 2),
                                        .window = random_int(r, 1, WINDOW),
                                        .kv_budget = 1e-9 + random_real(r) * 0.99,
                                        .kv_budget_tokens = random_int(r, 0, 1000),
                                        .dense_layers = random_int(r, 0, 6),
                                        .score_alpha = (float)random_real(r),
                                        .score_group = (enum score_group)random_int(r, 0, 2),
                                        .sink_pages = random_int(r, 0, 9)};
        for (int j = 0; j < q->n_rows; j++) s->token[s->n_rows++] = random_int(r, 0, VOCAB - 1);
        for (int j = 0; j < q->n_blocks; j++) s->block[s->n_blocks++] = random_int(r, 0, limits.n_blocks - 1);
    }
}

/* Any moves, those that go out first. */
static void random_moves(struct step *s, struct random *r)
{
    for (int n = random_int(r, 0, 9); n > 0; n--) {
        enum step_move_kind kind = (enum step_move_kind)random_int(r, 0, STEP_MOVE_KIND_COUNT - 1);
        bool slot = kind == STEP_MOVE_SLOT_OUT || kind == STEP_MOVE_SLOT_IN;
        int here = random_int(r, 0, slot ? SLOTS - 1 : 19), host = random_int(r, 0, slot ? 1 : 6);
        bool in = kind == STEP_MOVE_BLOCK_IN || kind == STEP_MOVE_SLOT_IN;
        if (kind == STEP_MOVE_BLOCK_COPY) host = random_int(r, 0, 19);
        step_add_move(s, kind, in ? host : here, in ? here : host);
    }
}

static void assert_same_policy(const struct policy *a, const struct policy *b)
{
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->window, b->window);
    assert_true(a->kv_budget == b->kv_budget && a->score_alpha == b->score_alpha);
    assert_int_equal(a->kv_budget_tokens, b->kv_budget_tokens);
    assert_int_equal(a->dense_layers, b->dense_layers);
    assert_int_equal(a->score_group, b->score_group);
    assert_int_equal(a->sink_pages, b->sink_pages);
}

static void assert_same(const struct step *a, const struct step *b)
{
    assert_true(a->id == b->id);
    assert_int_equal(a->n_seqs, b->n_seqs);
    assert_int_equal(a->n_rows, b->n_rows);
    assert_int_equal(a->n_blocks, b->n_blocks);
    assert_memory_equal(a->token, b->token, (size_t)a->n_rows * sizeof *a->token);
    assert_memory_equal(a->block, b->block, (size_t)a->n_blocks * sizeof *a->block);
    assert_int_equal(a->n_moves, b->n_moves);
    for (int i = 0; i < a->n_moves; i++) {
        assert_int_equal(a->move[i].kind, b->move[i].kind);
        assert_int_equal(a->move[i].from, b->move[i].from);
        assert_int_equal(a->move[i].to, b->move[i].to);
    }
    for (int i = 0; i < a->n_seqs; i++) {
        const struct step_seq *p = &a->seq[i], *q = &b->seq[i];
        assert_int_equal(p->slot, q->slot);
        assert_int_equal(p->kind, q->kind);
        assert_int_equal(p->position, q->position);
        assert_int_equal(p->n_rows, q->n_rows);
        assert_int_equal(p->row0, q->row0);
        assert_int_equal(p->first_block, q->first_block);
        assert_int_equal(p->n_blocks, q->n_blocks);
        assert_int_equal(p->block0, q->block0);
        assert_int_equal(p->want, q->want);
        assert_int_equal(p->n_out, q->n_out);
        assert_int_equal(p->fresh, q->fresh);
        if (p->fresh) assert_same_policy(&p->policy, &q->policy);
    }
}

static void round_trips(void **state)
{
    (void)state;
    struct random r = {3};
    struct step a, b;
    step_open(&a, &limits);
    step_open(&b, &limits);
    for (int i = 0; i < 20000; i++) {
        struct reason why;
        random_plan(&a, &r);
        random_moves(&a, &r);
        wire_pack_step(&wire, &a);
        if (wire_unpack_step(&wire, &b, wire.bytes, wire.n_bytes, &why) != STATUS_OK)
            fail_msg("%s", why.text);
        assert_same(&a, &b);
    }
    step_close(&a);
    step_close(&b);
}

/* ---- hostile messages, written with protobuf-c itself */

struct message {
    Retro__Step step;
    Retro__StepSequence seq[SLOTS + 1], *refs[SLOTS + 1];
    Retro__Policy policy[SLOTS + 1];
    uint32_t token[ROWS + 1], block[64], move[12];
};

/* Slots 0 and 1 decode, 2 begins a prompt: a good message to damage. */
static void good_message(struct message *m)
{
    retro__step__init(&m->step);
    m->step.id = 9;
    m->step.n_sequence = 3;
    m->step.sequence = m->refs;
    m->step.n_move = 12;
    m->step.move = m->move;
    static const uint32_t move[12] = {STEP_MOVE_BLOCK_OUT,  19, 6, STEP_MOVE_SLOT_OUT, 3, 1,
                                      STEP_MOVE_BLOCK_COPY, 0,  5, STEP_MOVE_BLOCK_IN, 6, 19};
    memcpy(m->move, move, sizeof move);
    for (uint32_t i = 0; i <= ROWS; i++) m->token[i] = i;
    for (uint32_t i = 0; i < 64; i++) m->block[i] = i % 20;
    for (uint32_t i = 0; i <= SLOTS; i++) {
        Retro__StepSequence *q = m->refs[i] = &m->seq[i];
        retro__step_sequence__init(q);
        q->slot = i;
        q->kind = i < 2 ? ROW_NEW : ROW_PROMPT;
        q->position = i < 2 ? 20 : 0;
        q->n_token = i < 2 ? 2 : 5;
        q->token = m->token;
        q->first_block = i < 2 ? 2 : 0;
        q->n_block = 1;
        q->block = m->block + i;
        q->want = STEP_WANT_BEST;
        retro__policy__init(&m->policy[i]);
        m->policy[i] = (Retro__Policy){.base = m->policy[i].base,
                                       .kind = POLICY_RETRO,
                                       .window = 2,
                                       .kv_budget = 0.15,
                                       .dense_layers = 2,
                                       .score_alpha = 0.2f,
                                       .score_group = SCORE_GROUP_SOFTMAX,
                                       .sink_pages = 1};
        if (i >= 2) q->policy = &m->policy[i];
    }
}

static enum status unpack_message(const struct message *m, struct reason *why)
{
    struct step s;
    step_open(&s, &limits);
    size_t n = retro__step__get_packed_size(&m->step);
    uint8_t *bytes = malloc(n + 1);
    assert_non_null(bytes);
    retro__step__pack(&m->step, bytes);
    enum status status = wire_unpack_step(&wire, &s, bytes, n, why);
    free(bytes);
    step_close(&s);
    return status;
}

/* Sequence 2 with one field changed. `field` is what the line must name; NULL: accepted. */
#define EXPECT(change, field)                                                                                \
    do {                                                                                                     \
        struct message m;                                                                                    \
        struct reason why = {""};                                                                            \
        good_message(&m);                                                                                    \
        change;                                                                                              \
        const char *named = field;                                                                           \
        enum status got = unpack_message(&m, &why);                                                          \
        if (got != (named ? STATUS_BAD_INPUT : STATUS_OK))                                                   \
            fail_msg("%s: status %d, %s", #change, got, why.text);                                           \
        if (named && (!strstr(why.text, named) || !strstr(why.text, "step 9")))                              \
            fail_msg("%s: \"%s\" does not name %s", #change, why.text, named);                               \
    } while (0)

static void every_field_of_a_sequence(void **state)
{
    (void)state;
    static const uint32_t huge[] = {0x7fffffffu, 0x80000000u, 0xffffffffu};
    EXPECT((void)0, NULL);
    EXPECT(m.seq[2].slot = SLOTS - 1, NULL);
    EXPECT(m.seq[2].slot = SLOTS, "field slot");
    EXPECT(m.seq[2].slot = 1, "field slot (twice");
    EXPECT(m.seq[2].kind = ROW_REVISED, "field kind");
    EXPECT(m.seq[2].kind = ROW_KIND_COUNT, "field kind");
    EXPECT(m.seq[0].kind = ROW_PROMPT, "decode after prompt");
    EXPECT(m.seq[2].position = CONTEXT - 5, NULL);
    EXPECT(m.seq[2].position = CONTEXT - 4, "field position");
    EXPECT(m.seq[2].n_token = 0, "number of rows");
    EXPECT(m.seq[0].n_token = WINDOW, NULL);
    EXPECT(m.seq[0].n_token = WINDOW + 1, "number of rows");
    EXPECT(m.seq[2].n_token = ROWS - 4, NULL);
    EXPECT(m.seq[2].n_token = ROWS - 3, "more rows or blocks");
    EXPECT(m.seq[2].n_token = ROWS + 1, "more rows or blocks");
    EXPECT(m.seq[2].first_block = CONTEXT / BLOCK - 1, NULL);
    EXPECT(m.seq[2].first_block = CONTEXT / BLOCK, "field first_block");
    EXPECT(m.seq[2].n_block = CONTEXT / BLOCK, NULL);
    EXPECT(m.seq[2].n_block = CONTEXT / BLOCK + 1, "field first_block");
    EXPECT(m.seq[2].n_block = SLOTS * CONTEXT / BLOCK - 1, "more rows or blocks");
    EXPECT(m.seq[2].want = STEP_WANT_COUNT, "field want");
    EXPECT(m.seq[2].has_n_out = true, "field n_out");
    EXPECT((m.seq[2].has_n_out = true, m.seq[2].n_out = 1), NULL);
    EXPECT((m.seq[2].has_n_out = true, m.seq[2].n_out = 2), "field n_out");
#define ROWS_OUT(s, w, n) (m.seq[s].want = (w), m.seq[s].has_n_out = true, m.seq[s].n_out = (n))
    EXPECT((m.seq[0].want = STEP_WANT_NOTHING, ROWS_OUT(2, STEP_WANT_LOGITS, 2)), NULL);
    EXPECT(ROWS_OUT(2, STEP_WANT_LOGITS, 2), "4 outputs");
    EXPECT(ROWS_OUT(2, STEP_WANT_LOGITS, 6), "field n_out");
    EXPECT(ROWS_OUT(0, STEP_WANT_LOGITS, 2), "field n_out");
    EXPECT(ROWS_OUT(2, STEP_WANT_NOTHING, 1), "field n_out");
    EXPECT(m.token[4] = VOCAB - 1, NULL);
    EXPECT(m.token[4] = VOCAB, "token 500 of row");
    EXPECT(m.block[2] = 19, NULL);
    EXPECT(m.block[2] = 20, "block 20");
    EXPECT(m.step.n_sequence = SLOTS + 1, "5 sequences, 4 slots");
    EXPECT(m.step.n_sequence = SLOTS, "4 outputs");
    EXPECT((m.step.n_sequence = SLOTS, m.seq[3].want = STEP_WANT_NOTHING), NULL);
    EXPECT((m.step.n_sequence = SLOTS, m.seq[0].want = STEP_WANT_NOTHING,
            m.seq[2].kind = m.seq[3].kind = ROW_NEW, m.seq[2].n_token = m.seq[3].n_token = 1),
           "4 decode sequences");
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
        EXPECT(m.seq[2].slot = huge[i], "field slot");
        EXPECT(m.seq[2].kind = huge[i], "field kind");
        EXPECT(m.seq[2].position = huge[i], "field position");
        EXPECT(m.seq[2].first_block = huge[i], "field first_block");
        EXPECT(m.seq[2].want = huge[i], "field want");
        EXPECT(ROWS_OUT(2, STEP_WANT_LOGITS, huge[i]), "field n_out");
        EXPECT(m.token[4] = huge[i], "row");
        EXPECT(m.block[2] = huge[i], "block");
    }
}

static void every_field_of_a_move(void **state)
{
    (void)state;
    static const uint32_t huge[] = {0x7fffffffu, 0x80000000u, 0xffffffffu};
    EXPECT(m.step.n_move = 0, NULL);
    EXPECT(m.step.n_move = 11, "no list of moves");
    EXPECT(m.step.n_move = 6, NULL);
    EXPECT(m.move[0] = STEP_MOVE_KIND_COUNT, "move 0: field kind");
    EXPECT(m.move[9] = STEP_MOVE_BLOCK_OUT, "out after another");
    EXPECT(m.move[1] = 20, "move 0: field from");
    EXPECT(m.move[2] = 7, "move 0: field to");
    EXPECT(m.move[4] = SLOTS, "move 1: field from");
    EXPECT(m.move[5] = 2, "move 1: field to");
    EXPECT(m.move[7] = 20, "move 2: field from");
    EXPECT(m.move[8] = 20, "move 2: field to");
    EXPECT(m.move[10] = 7, "move 3: field from");
    EXPECT(m.move[11] = 20, "move 3: field to");
    EXPECT((m.move[9] = STEP_MOVE_SLOT_IN, m.move[10] = 2), "move 3: field from");
    EXPECT((m.move[9] = STEP_MOVE_SLOT_IN, m.move[10] = 1, m.move[11] = SLOTS), "move 3: field to");
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
        EXPECT(m.move[9] = huge[i], "move 3: field kind");
        EXPECT(m.move[10] = huge[i], "move 3: field from");
        EXPECT(m.move[11] = huge[i], "move 3: field to");
    }
}

static void every_field_of_a_policy(void **state)
{
    (void)state;
    static const uint32_t huge[] = {0x80000000u, 0xffffffffu};
    static const double bad_budgets[] = {0, -0.1, 1.0000001, INFINITY, -INFINITY, NAN, -DBL_MIN, DBL_MAX};
    static const float bad_alphas[] = {-0.1f, 1.001f, INFINITY, -INFINITY, NAN, FLT_MAX};
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
        EXPECT(m.policy[2].kind = huge[i], "policy.kind");
        EXPECT(m.policy[2].window = huge[i], "policy.window");
        EXPECT(m.policy[2].kv_budget_tokens = huge[i], "policy.kv_budget_tokens");
        EXPECT(m.policy[2].dense_layers = huge[i], "policy.dense_layers");
        EXPECT(m.policy[2].score_group = huge[i], "policy.score_group");
        EXPECT(m.policy[2].sink_pages = huge[i], "policy.sink_pages");
    }
    EXPECT(m.policy[2].kind = POLICY_KIND_COUNT, "policy.kind");
    EXPECT(m.policy[2].window = 0, "policy.window");
    EXPECT(m.policy[2].window = WINDOW, NULL);
    EXPECT(m.policy[2].window = WINDOW + 1, "policy.window");
    EXPECT(m.policy[2].dense_layers = 6, NULL);
    EXPECT(m.policy[2].dense_layers = 7, "policy.dense_layers");
    EXPECT(m.policy[2].score_group = SCORE_GROUP_COUNT, "policy.score_group");
    EXPECT(m.policy[2].kv_budget = 1, NULL);
    EXPECT(m.policy[2].kv_budget = DBL_MIN, NULL);
    EXPECT(m.policy[2].kv_budget_tokens = 0x7fffffffu, NULL);
    EXPECT(m.policy[2].sink_pages = 0x7fffffffu, NULL);
    EXPECT(m.policy[2].score_alpha = 0, NULL);
    EXPECT(m.policy[2].score_alpha = 1, NULL);
    for (size_t i = 0; i < sizeof bad_budgets / sizeof *bad_budgets; i++)
        EXPECT(m.policy[2].kv_budget = bad_budgets[i], "policy.kv_budget");
    for (size_t i = 0; i < sizeof bad_alphas / sizeof *bad_alphas; i++)
        EXPECT(m.policy[2].score_alpha = bad_alphas[i], "policy.score_alpha");
}

/* ---- bytes that are no message */

/* Whatever is accepted must satisfy the limits. Every input lies at the end of its own allocation, so that
 * ASan sees a read beyond it. */
static enum status feed(struct step *s, const void *bytes, size_t n)
{
    struct reason why = {""};
    uint8_t *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, bytes, n);
    enum status status = wire_unpack_step(&wire, s, copy, n, &why);
    free(copy);
    assert_true(status == STATUS_OK || status == STATUS_BAD_INPUT);
    if (status == STATUS_OK) assert_int_equal(step_validate(s, NULL), STATUS_OK);
    else assert_true(why.text[0] && !strchr(why.text, '\n'));
    return status;
}

static void cut_off_and_flipped(void **state)
{
    (void)state;
    struct message m;
    struct step s;
    struct random r = {5};
    uint8_t bytes[4096];
    step_open(&s, &limits);
    good_message(&m);
    size_t n = retro__step__pack(&m.step, bytes);
    int accepted = 0;
    for (size_t cut = 0; cut < n; cut++) accepted += feed(&s, bytes, cut) == STATUS_OK;
    assert_true(accepted <= 4); /* at the borders between sequences and moves, where less is a message too */
    assert_int_equal(feed(&s, bytes, n), STATUS_OK);
    for (size_t bit = 0; bit < n * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        feed(&s, bytes, n);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (int i = 0; i < 30000; i++) {
        uint8_t copy[4096];
        memcpy(copy, bytes, n);
        for (int j = random_int(&r, 1, 4); j > 0; j--)
            copy[random_int(&r, 0, (int)n - 1)] = (uint8_t)random_bits(&r);
        feed(&s, copy, n);
    }
    step_close(&s);
}

static void garbage(void **state)
{
    (void)state;
    struct step s;
    struct random r = {6};
    step_open(&s, &limits);
    for (int i = 0; i < 50000; i++) {
        uint8_t bytes[256];
        size_t n = (size_t)random_int(&r, 0, sizeof bytes);
        for (size_t j = 0; j < n; j++) bytes[j] = (uint8_t)random_bits(&r);
        if (n > 2 && i % 2) bytes[0] = 0x12, bytes[1] = (uint8_t)(n - 2); /* a sequence of the right length */
        feed(&s, bytes, n);
    }
    assert_int_equal(feed(&s, "", 0), STATUS_BAD_INPUT);
    assert_int_equal(feed(&s, "RETROREC", 8), STATUS_BAD_INPUT);
    step_close(&s);
}

/* A message that begins with garbage for an unknown field and goes on well is a newer program's: accepted. */
static void unknown_fields_are_skipped(void **state)
{
    (void)state;
    struct message m;
    struct step s;
    uint8_t bytes[4096] = {0x78, 0x01, 0x82, 0x01, 0x03, 'a', 'b', 'c'}; /* field 15 = 1, field 16 = "abc" */
    step_open(&s, &limits);
    good_message(&m);
    size_t n = 8 + retro__step__pack(&m.step, bytes + 8);
    assert_int_equal(feed(&s, bytes, n), STATUS_OK);
    assert_int_equal(s.n_seqs, 3);
    step_close(&s);
}

static int close_wire(void **state)
{
    (void)state;
    wire_close(&wire);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trips),
        cmocka_unit_test(every_field_of_a_sequence),
        cmocka_unit_test(every_field_of_a_move),
        cmocka_unit_test(every_field_of_a_policy),
        cmocka_unit_test(cut_off_and_flipped),
        cmocka_unit_test(garbage),
        cmocka_unit_test(unknown_fields_are_skipped),
    };
    return cmocka_run_group_tests(tests, NULL, close_wire);
}
