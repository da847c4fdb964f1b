/* test_step.c - sequences and step plans over random schedules, as an engine and its scheduler would drive
 * them.
 *
 * Beside the plans stands what the ranks would know: the block table of each slot, the position up to which
 * each sequence was fed. Every plan is checked row by row against docs/algorithm.md's rows and against that
 * knowledge. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "runtime/base/die.h"
#include "runtime/seq.h"
#include "runtime/step.h"
#include "tests/runtime/random.h"

enum { SLOTS = 5, BLOCK = 8, CONTEXT = 96, WINDOW = 6, CHUNK = 20, VOCAB = 1000, TABLE = CONTEXT / BLOCK };

static const struct step_limits limits = {
    .n_slots = SLOTS,
    .max_rows = CHUNK + SLOTS * WINDOW,
    .max_decode = SLOTS,
    .max_out = SLOTS + CHUNK,
    .n_blocks = SLOTS * TABLE / 2, /* too few for all, so that NO_PAGES happens */
    .context = CONTEXT,
    .block_tokens = BLOCK,
    .window = WINDOW,
    .vocab = VOCAB,
    .n_layers = 4,
};

static struct policy random_policy(struct random *r)
{
    struct policy p = {.kind = (enum policy_kind)random_int(r, 0, POLICY_KIND_COUNT - 1),
                       .window = 1,
                       .kv_budget = 0.01 + 0.99 * random_real(r),
                       .kv_budget_tokens = random_int(r, 0, 1) * random_int(r, 1, 100),
                       .dense_layers = random_int(r, 0, 4),
                       .score_alpha = (float)random_real(r),
                       .score_group = (enum score_group)random_int(r, 0, SCORE_GROUP_COUNT - 1),
                       .sink_pages = random_int(r, 0, 3)};
    if (p.kind == POLICY_RETRO) p.window = random_int(r, 1, WINDOW);
    return p;
}

/* One sequence and what the ranks know of its slot. */
struct user {
    struct seq seq;
    bool open;
    int n_known; /* entries of the ranks' table */
    int32_t table[TABLE];
    int fed;
};

struct world {
    struct random r;
    struct pages pages;
    struct user user[SLOTS];
    struct step step;
    int n_set[SLOTS];
    int n_full; /* how often there was no page */
    int n_decode, n_prompt;
};

static void open_user(struct world *w, int slot)
{
    struct user *u = &w->user[slot];
    int32_t prompt[CONTEXT];
    int n_prompt = random_int(&w->r, 1, CONTEXT / 2), capacity = random_int(&w->r, n_prompt, CONTEXT);
    for (int i = 0; i < n_prompt; i++) prompt[i] = random_int(&w->r, 0, VOCAB - 1);
    struct policy p = random_policy(&w->r);
    seq_open(&u->seq, slot, &p, prompt, n_prompt, capacity, BLOCK);
    assert_memory_equal(u->seq.token, prompt, (size_t)n_prompt * sizeof *prompt);
    u->open = true;
    u->fed = u->n_known = 0;
}

static void close_user(struct world *w, int slot)
{
    seq_close(&w->user[slot].seq, &w->pages);
    w->user[slot].open = false;
}

/* The rows of one entry of the plan. */
static void check_rows(struct world *w, const struct step_seq *q, int was_fed)
{
    const struct user *u = &w->user[q->slot];
    const struct seq *s = &u->seq;
    assert_memory_equal(w->step.token + q->row0, s->token + q->position, (size_t)q->n_rows * sizeof(int32_t));
    int newest = q->position + q->n_rows - 1;
    if (q->kind == ROW_PROMPT) {
        assert_int_equal(q->position, was_fed);
        assert_true(newest < s->n_prompt);
        for (int i = 0; i < q->n_rows; i++) assert_int_equal(step_row_kind(q, i), ROW_PROMPT);
    } else {
        /* Rows max(n_prompt, p-w+1) .. p; the last is new. */
        int oldest = newest - s->policy.window + 1;
        if (oldest < s->n_prompt) oldest = s->n_prompt;
        assert_int_equal(newest, s->n_tokens - 1);
        assert_int_equal(newest, was_fed);
        assert_int_equal(q->position, oldest);
        for (int i = 0; i < q->n_rows; i++)
            assert_int_equal(step_row_kind(q, i), i == q->n_rows - 1 ? ROW_NEW : ROW_REVISED);
    }
    assert_int_equal(s->fed, newest + 1);
}

/* What a rank learns from the plan must be the sequence's own block table, in order and without holes. */
static void learn_blocks(struct world *w, const struct step_seq *q)
{
    struct user *u = &w->user[q->slot];
    assert_int_equal(q->fresh, u->n_known == 0 && u->fed == 0);
    assert_int_equal(q->first_block, u->n_known);
    memcpy(u->table + u->n_known, w->step.block + q->block0, (size_t)q->n_blocks * sizeof(int32_t));
    u->n_known += q->n_blocks;
    assert_int_equal(u->n_known, u->seq.n_blocks);
    assert_memory_equal(u->table, u->seq.block, (size_t)u->n_known * sizeof(int32_t));
    assert_true(u->n_known * BLOCK >= q->position + q->n_rows);
    if (q->fresh) assert_memory_equal(&q->policy, &u->seq.policy, sizeof q->policy);
}

static void check_plan(struct world *w)
{
    const struct step *s = &w->step;
    struct reason why;
    if (step_validate(s, &why) != STATUS_OK) fail_msg("%s", why.text);
    if (step_continue(s, w->n_set, &why) != STATUS_OK) fail_msg("%s", why.text);
    int row = 0, block = 0, prompts = 0;
    for (int i = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seq[i];
        assert_int_equal(q->row0, row);
        assert_int_equal(q->block0, block);
        prompts += q->kind == ROW_PROMPT;
        assert_true(q->kind == ROW_PROMPT || prompts == 0); /* decode first */
        check_rows(w, q, w->user[q->slot].fed);
        learn_blocks(w, q);
        w->user[q->slot].fed = w->user[q->slot].seq.fed;
        row += q->n_rows;
        block += q->n_blocks;
        assert_int_equal(w->n_set[q->slot], w->user[q->slot].n_known);
        seq_check(&w->user[q->slot].seq, BLOCK);
    }
    assert_int_equal(s->n_rows, row);
    assert_int_equal(s->n_blocks, block);
    /* No block belongs to two sequences. */
    char seen[SLOTS * TABLE] = {0};
    for (int i = 0; i < SLOTS; i++)
        for (int j = 0; w->user[i].open && j < w->user[i].seq.n_blocks; j++)
            assert_int_equal(seen[w->user[i].seq.block[j]]++, 0);
}

static bool reserve(struct world *w, struct seq *s, int n_tokens)
{
    int n_blocks = s->n_blocks, n_free = w->pages.n_free;
    enum status status = seq_reserve(s, &w->pages, n_tokens, BLOCK);
    pages_check(&w->pages);
    if (status == STATUS_OK) return true;
    assert_int_equal(status, STATUS_NO_PAGES);
    assert_int_equal(s->n_blocks, n_blocks);
    assert_int_equal(w->pages.n_free, n_free);
    w->n_full++;
    return false;
}

static void add_decodes(struct world *w)
{
    for (int i = 0; i < SLOTS; i++) {
        struct seq *s = &w->user[i].seq;
        if (!w->user[i].open || s->fed < s->n_prompt || s->n_tokens == s->capacity) continue;
        if (random_int(&w->r, 0, 3) == 0 || !reserve(w, s, s->n_tokens + 1)) continue;
        seq_append_token(s, random_int(&w->r, 0, VOCAB - 1));
        step_add_decode(&w->step, s, (enum step_want)random_int(&w->r, 0, STEP_WANT_COUNT - 1));
        w->n_decode++;
    }
}

static void add_prompts(struct world *w)
{
    int left = CHUNK;
    for (int i = 0; i < SLOTS && left > 0; i++) {
        struct seq *s = &w->user[i].seq;
        if (!w->user[i].open || s->fed >= s->n_prompt) continue;
        int n = random_int(&w->r, 1, left);
        if (n > s->n_prompt - s->fed) n = s->n_prompt - s->fed;
        if (!reserve(w, s, s->fed + n)) continue;
        enum step_want want = (enum step_want)random_int(&w->r, 0, STEP_WANT_COUNT - 1);
        step_add_prompt(&w->step, s, n, want);
        if (want == STEP_WANT_LOGITS) step_want_rows(&w->step, random_int(&w->r, 1, n));
        left -= n;
        w->n_prompt++;
    }
}

static void random_schedules(void **state)
{
    (void)state;
    int n_full = 0, n_decode = 0, n_prompt = 0;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct world w = {.r = {seed}};
        pages_open(&w.pages, limits.n_blocks);
        step_open(&w.step, &limits);
        for (int i = 0; i < 400; i++) {
            int slot = random_int(&w.r, 0, SLOTS - 1);
            if (!w.user[slot].open) open_user(&w, slot);
            else if (random_int(&w.r, 0, 15) == 0) close_user(&w, slot);
            step_clear(&w.step, (uint64_t)i);
            assert_true(w.step.id == (uint64_t)i && w.step.n_rows == 0 && w.step.n_seqs == 0);
            add_decodes(&w);
            add_prompts(&w);
            check_plan(&w);
        }
        for (int i = 0; i < SLOTS; i++)
            if (w.user[i].open) close_user(&w, i);
        pages_check(&w.pages);
        assert_int_equal(w.pages.n_free, limits.n_blocks);
        n_full += w.n_full;
        n_decode += w.n_decode;
        n_prompt += w.n_prompt;
        step_close(&w.step);
        pages_close(&w.pages);
    }
    assert_true(n_full > 100 && n_decode > 10000 && n_prompt > 3000); /* all of it happened */
}

/* The rows of the first decode steps of one sequence, written out. */
static void the_window_grows_after_the_prompt(void **state)
{
    (void)state;
    static const int expected[][2] = {{3, 1}, {3, 2}, {3, 3}, {4, 3}, {5, 3}};
    const int32_t prompt[] = {11, 12, 13};
    struct policy p = {.kind = POLICY_RETRO, .window = 3, .kv_budget = 0.5, .score_alpha = 1};
    struct pages pages;
    struct seq s;
    struct step step;
    pages_open(&pages, 12);
    step_open(&step, &limits);
    seq_open(&s, 2, &p, prompt, 3, 20, BLOCK);
    assert_int_equal(seq_reserve(&s, &pages, 3, BLOCK), STATUS_OK);
    step_clear(&step, 0);
    step_add_prompt(&step, &s, 3, STEP_WANT_BEST);
    assert_int_equal(step.seq[0].kind, ROW_PROMPT);
    for (int i = 0; i < 5; i++) {
        seq_append_token(&s, 20 + i);
        assert_int_equal(seq_reserve(&s, &pages, s.n_tokens, BLOCK), STATUS_OK);
        step_clear(&step, (uint64_t)i + 1);
        step_add_decode(&step, &s, STEP_WANT_BEST);
        assert_int_equal(step.seq[0].position, expected[i][0]);
        assert_int_equal(step.seq[0].n_rows, expected[i][1]);
        assert_int_equal(step.token[step.n_rows - 1], 20 + i);
    }
    seq_close(&s, &pages);
    assert_int_equal(pages.n_free, 12);
    step_close(&step);
    pages_close(&pages);
}

static int plan_in_bad_order(int how)
{
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0) {
        assert_int_equal(waitpid(pid, &status, 0), pid);
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }
    close(STDERR_FILENO);
    const int32_t prompt[] = {1, 2, 3};
    struct policy p = {.kind = POLICY_RETRO, .window = 2, .kv_budget = 1};
    struct pages pages;
    struct seq a, b;
    struct step step;
    pages_open(&pages, 12);
    step_open(&step, &limits);
    step_clear(&step, 0);
    seq_open(&a, 0, &p, prompt, 3, 5, BLOCK);
    seq_open(&b, 1, &p, prompt, 3, 5, BLOCK);
    if (how != 1 && seq_reserve(&a, &pages, 5, BLOCK) != STATUS_OK) _exit(77);
    if (seq_reserve(&b, &pages, 5, BLOCK) != STATUS_OK) _exit(77);
    if (how == 2) step_add_prompt(&step, &a, 4, STEP_WANT_NOTHING); /* more than the prompt */
    step_add_prompt(&step, &a, 3, STEP_WANT_NOTHING);               /* how == 1: no block */
    step_clear(&step, 1);
    if (how == 3) step_add_decode(&step, &a, STEP_WANT_BEST); /* no new token */
    seq_append_token(&a, 5);
    if (how == 4) step_add_prompt(&step, &b, 3, STEP_WANT_NOTHING); /* prompt before decode */
    step_add_decode(&step, &a, STEP_WANT_BEST);
    if (how == 5) step_add_decode(&step, &a, STEP_WANT_BEST); /* twice */
    seq_append_token(&a, 6);
    if (how == 6) seq_append_token(&a, 7); /* capacity */
    _exit(0);
}

static void bugs_of_the_planner_are_noticed(void **state)
{
    (void)state;
    assert_int_equal(plan_in_bad_order(0), 0);
    for (int how = 1; how <= 6; how++) assert_int_equal(plan_in_bad_order(how), EXIT_CODE_BUG);
}

static void plans_must_continue_the_tables(void **state)
{
    (void)state;
    struct step s;
    struct reason why;
    int n_set[SLOTS] = {0};
    step_open(&s, &limits);
    s.n_seqs = 1;
    s.seq[0] = (struct step_seq){.slot = 3, .kind = ROW_PROMPT, .n_rows = 10, .fresh = true, .n_blocks = 2};
    assert_int_equal(step_continue(&s, n_set, &why), STATUS_OK);
    assert_int_equal(n_set[3], 2);
    s.seq[0].fresh = false;
    s.seq[0].position = 10;
    s.seq[0].n_blocks = 0;
    s.seq[0].first_block = 2;
    s.seq[0].n_rows = 6; /* up to token 16: two blocks */
    assert_int_equal(step_continue(&s, n_set, &why), STATUS_OK);
    s.seq[0].n_rows = 7;
    assert_int_equal(step_continue(&s, n_set, &why), STATUS_BAD_INPUT);
    assert_non_null(strstr(why.text, "no block for position 16"));
    s.seq[0].first_block = 3;
    assert_int_equal(step_continue(&s, n_set, &why), STATUS_BAD_INPUT);
    assert_non_null(strstr(why.text, "continues its blocks at 3, it has 2"));
    assert_int_equal(n_set[3], 2); /* refused: as it was */
    s.seq[0].first_block = 0;
    s.seq[0].fresh = true;
    assert_int_equal(step_continue(&s, n_set, &why), STATUS_BAD_INPUT); /* a fresh slot has none */
    /* A good sequence beside a bad one changes nothing either. */
    s.n_seqs = 2;
    s.seq[1] = s.seq[0];
    s.seq[0] = (struct step_seq){.slot = 1, .kind = ROW_PROMPT, .n_rows = 8, .fresh = true, .n_blocks = 1};
    assert_int_equal(step_continue(&s, n_set, &why), STATUS_BAD_INPUT);
    assert_int_equal(n_set[1], 0);
    step_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_schedules),
        cmocka_unit_test(the_window_grows_after_the_prompt),
        cmocka_unit_test(bugs_of_the_planner_are_noticed),
        cmocka_unit_test(plans_must_continue_the_tables),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
