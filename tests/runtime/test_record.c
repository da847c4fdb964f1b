/* test_record.c - recordings without a model: an engine of this file stands in for runtime/engine.c (the
 * linker takes it first), whose result is a function of the plan. Good files replay, changed results are
 * found, and no damage to a file does more than being refused with one line. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "retro.pb-c.h"
#include "runtime/base/crc32.h"
#include "runtime/record.h"
#include "tests/runtime/random.h"

enum { VOCAB = 50, STEPS = 12, FILE_MAX = 1 << 16 };

struct engine {
    struct step_limits limits;
    int changed_step; /* whose result differs; -1: none */
    int n_steps;
    int n_set[4];
    float logits[3 * VOCAB];
    struct engine_output output[3];
};

static const struct step_limits limits = {.n_slots = 2,
                                          .max_rows = 24,
                                          .max_decode = 2,
                                          .max_out = 2,
                                          .n_blocks = 16,
                                          .context = 64,
                                          .block_tokens = 8,
                                          .window = 4,
                                          .vocab = VOCAB,
                                          .n_layers = 3};

const struct step_limits *engine_limits(const struct engine *e) { return &e->limits; }

/* Only plans that fit may arrive here. */
void engine_step(struct engine *e, const struct step *s, struct engine_result *r)
{
    assert_int_equal(step_validate(s, NULL), STATUS_OK);
    assert_int_equal(step_continue(s, e->n_set, NULL), STATUS_OK);
    int n = 0;
    for (int i = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seq[i];
        if (q->want == STEP_WANT_NOTHING) continue;
        float *logits = e->logits + (size_t)n * VOCAB;
        uint32_t h =
            crc32_of(s->token + q->row0, (size_t)q->n_rows * sizeof(int32_t)) + (uint32_t)q->position;
        for (int j = 0; j < VOCAB; j++) logits[j] = (float)((h >> j % 24 & 255) + (unsigned)j);
        if (e->n_steps == e->changed_step) logits[VOCAB - 1] += 1;
        e->output[n++] = (struct engine_output){.seq = i,
                                                .best = (int32_t)(h % VOCAB),
                                                .best_logit = logits[VOCAB - 1],
                                                .logits = q->want == STEP_WANT_LOGITS ? logits : NULL};
    }
    e->n_steps++;
    *r = (struct engine_result){.n_outputs = n, .output = e->output};
}

static struct engine fresh_engine(void) { return (struct engine){.limits = limits, .changed_step = -1}; }

static char path[64]; /* of a file in memory: it is written thousands of times */
static uint8_t good[FILE_MAX], bytes[FILE_MAX];
static size_t n_good;
static struct reason why;

static size_t read_file(uint8_t *to)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    size_t n = fread(to, 1, FILE_MAX, f);
    fclose(f);
    return n;
}

static void write_file(const uint8_t *from, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(from, 1, n, f), n);
    fclose(f);
}

/* A prompt in two chunks, then decode with a window. */
static int record_a_run(void **state)
{
    (void)state;
    int fd = memfd_create("recording", 0);
    if (fd < 0) return 1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    const int32_t prompt[] = {5, 6, 7, 8, 9, 10, 11, 12, 13, 14};
    struct policy p = {.kind = POLICY_RETRO, .window = 3, .kv_budget = 0.2, .score_alpha = 0.2f};
    struct engine e = fresh_engine();
    struct pages pages;
    struct seq s;
    struct step step;
    struct recording r;
    pages_open(&pages, limits.n_blocks);
    step_open(&step, &limits);
    seq_open(&s, 1, &p, prompt, 10, 40, limits.block_tokens);
    assert_int_equal(record_create(&r, path, &limits, &why), STATUS_OK);
    for (int i = 0; i < STEPS; i++) {
        struct engine_result result;
        step_clear(&step, (uint64_t)i);
        if (i >= 2) seq_append_token(&s, i);
        assert_int_equal(seq_reserve(&s, &pages, i < 2 ? 5 * (i + 1) : s.n_tokens, limits.block_tokens),
                         STATUS_OK);
        if (i < 2) step_add_prompt(&step, &s, 5, i ? STEP_WANT_LOGITS : STEP_WANT_NOTHING);
        else step_add_decode(&step, &s, i % 2 ? STEP_WANT_LOGITS : STEP_WANT_BEST);
        engine_step(&e, &step, &result);
        record_write(&r, &step, &result);
    }
    assert_int_equal(record_close(&r, &why), STATUS_OK);
    seq_close(&s, &pages);
    step_close(&step);
    pages_close(&pages);
    n_good = read_file(good);
    return n_good == 0;
}

struct outcome {
    enum status opened, replayed;
    long n_steps, n_differ, first_differ;
};

static struct outcome replay(struct engine *e)
{
    struct outcome o = {.n_steps = -1};
    struct recording r;
    why.text[0] = 0;
    o.opened = record_open(&r, path, &e->limits, &why);
    if (o.opened == STATUS_OK)
        o.replayed = record_replay(&r, e, &o.n_steps, &o.n_differ, &o.first_differ, &why);
    enum status status = o.opened != STATUS_OK ? o.opened : o.replayed;
    if (status != STATUS_OK) assert_true(why.text[0] && !strchr(why.text, '\n'));
    return o;
}

static void a_good_file_replays(void **state)
{
    (void)state;
    struct engine e = fresh_engine();
    struct step_limits stored;
    write_file(good, n_good);
    struct outcome o = replay(&e);
    assert_int_equal(o.opened, STATUS_OK);
    assert_int_equal(o.replayed, STATUS_OK);
    assert_int_equal(o.n_steps, STEPS);
    assert_int_equal(o.n_differ, 0);
    assert_int_equal(o.first_differ, -1);
    assert_int_equal(record_read_limits(path, &stored, &why), STATUS_OK);
    assert_memory_equal(&stored, &limits, sizeof limits);
}

/* Steps 0 wants nothing, so nothing of it is compared. Even steps have no logits: their best logit is
 * compared. */
static void a_changed_result_is_found(void **state)
{
    (void)state;
    write_file(good, n_good);
    for (int changed = 1; changed < STEPS; changed++) {
        struct engine e = fresh_engine();
        e.changed_step = changed;
        struct outcome o = replay(&e);
        assert_int_equal(o.replayed, STATUS_OK);
        assert_int_equal(o.n_steps, STEPS);
        assert_int_equal(o.n_differ, 1);
        assert_int_equal(o.first_differ, changed);
    }
}

static void any_cut_is_refused(void **state)
{
    (void)state;
    long ends = 0;
    for (size_t n = 0; n < n_good; n++) {
        write_file(good, n);
        struct engine e = fresh_engine();
        struct outcome o = replay(&e);
        if (o.opened == STATUS_OK && o.replayed == STATUS_OK) {
            assert_int_equal(o.n_steps, ends); /* between two frames: a shorter recording */
            ends++;
        } else {
            assert_int_equal(o.opened != STATUS_OK ? o.opened : o.replayed, STATUS_BAD_INPUT);
        }
    }
    assert_int_equal(ends, STEPS);
}

/* The head and the lengths are checked, the rest has a CRC: a flipped bit of any byte is noticed, except in
 * limits that only say what is enough (slots, outputs, blocks, context, and larger ones of any). */
static void any_flipped_bit_is_noticed(void **state)
{
    (void)state;
    memcpy(bytes, good, n_good);
    int accepted = 0;
    for (size_t byte = 0; byte < n_good; byte++) {
        size_t bit = byte * 8 + byte * 5 % 8;
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        write_file(bytes, n_good);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        struct engine e = fresh_engine();
        struct outcome o = replay(&e);
        bool ok = o.opened == STATUS_OK && o.replayed == STATUS_OK;
        assert_true(!ok || (bit / 8 >= 12 && bit / 8 < 12 + sizeof(struct step_limits)));
        if (ok) assert_int_equal(o.n_differ, 0);
        accepted += ok;
    }
    assert_true(accepted < 32);
}

static void other_runs_are_told_apart(void **state)
{
    (void)state;
    static const struct {
        size_t offset;
        int value;
        const char *text;
    } cases[] = {
        {offsetof(struct step_limits, vocab), 51, "vocabulary 50"},
        {offsetof(struct step_limits, n_layers), 4, "3 layers"},
        {offsetof(struct step_limits, block_tokens), 16, "--block-size 8"},
        {offsetof(struct step_limits, window), 3, "made with --window 4, this run has 3"},
        {offsetof(struct step_limits, max_rows), 20, "raise --prefill-chunk"},
        {offsetof(struct step_limits, context), 16, "position"},
        {offsetof(struct step_limits, n_blocks), 2, "block"},
        {offsetof(struct step_limits, n_slots), 1, "slot"},
    };
    write_file(good, n_good);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct engine e = fresh_engine();
        memcpy((char *)&e.limits + cases[i].offset, &cases[i].value, sizeof(int));
        struct outcome o = replay(&e);
        assert_int_equal(o.opened != STATUS_OK ? o.opened : o.replayed, STATUS_BAD_INPUT);
        if (!strstr(why.text, cases[i].text)) fail_msg("\"%s\" does not say %s", why.text, cases[i].text);
    }
    /* A larger engine is fine. */
    struct engine e = fresh_engine();
    e.limits.context = 128;
    e.limits.max_rows = 100;
    e.limits.window = 8;
    e.limits.n_slots = 4;
    struct outcome o = replay(&e);
    assert_int_equal(o.replayed, STATUS_OK);
    assert_int_equal(o.n_differ, 0);
}

/* Frames with a right CRC around plans that do not fit: written by an enemy, not by a failing disk. */
static void hostile_frames_are_refused(void **state)
{
    (void)state;
    size_t head = 12 + sizeof(struct step_limits), first = head + 8 + (good[head] + 256u * good[head + 1]);
    /* Without its first frame the recording continues a sequence that never began. */
    memcpy(bytes, good, head);
    memcpy(bytes + head, good + first, n_good - first);
    write_file(bytes, n_good - (first - head));
    struct engine e = fresh_engine();
    struct outcome o = replay(&e);
    assert_int_equal(o.replayed, STATUS_BAD_INPUT);
    assert_non_null(strstr(why.text, "slot 1"));
    assert_int_equal(e.n_steps, 0);
    /* Random plans inside good records, and records of random bytes. */
    struct random r = {8};
    for (int i = 0; i < 3000; i++) {
        uint8_t plan[200], record[400];
        size_t n = (size_t)random_int(&r, 0, sizeof plan);
        for (size_t j = 0; j < n; j++) plan[j] = (uint8_t)random_bits(&r);
        Retro__StepRecord m;
        retro__step_record__init(&m);
        m.step = (ProtobufCBinaryData){.len = n, .data = plan};
        uint32_t size = (uint32_t)retro__step_record__pack(&m, record);
        if (i % 2) memcpy(record, plan, size = (uint32_t)n);
        uint32_t crc = crc32_of(record, size);
        memcpy(bytes + head, &size, 4);
        memcpy(bytes + head + 4, &crc, 4);
        memcpy(bytes + head + 8, record, size);
        write_file(bytes, head + 8 + size);
        e = fresh_engine();
        o = replay(&e);
        assert_true(o.replayed == STATUS_BAD_INPUT || (o.replayed == STATUS_OK && e.n_steps == 0));
    }
}

static void files_that_cannot_be(void **state)
{
    (void)state;
    struct recording r;
    struct step_limits stored;
    assert_int_equal(record_open(&r, "/nowhere/at/all", &limits, &why), STATUS_BAD_OPTION);
    assert_non_null(strstr(why.text, "--replay /nowhere/at/all: No such file"));
    assert_int_equal(record_read_limits("/tmp", &stored, &why), STATUS_BAD_INPUT);
    assert_int_equal(record_create(&r, "/nowhere/at/all", &limits, &why), STATUS_BAD_OPTION);
    assert_int_equal(record_close(&r, &why), STATUS_OK);
    if (access("/dev/full", W_OK) != 0) skip();
    assert_int_equal(record_create(&r, "/dev/full", &limits, &why), STATUS_OK);
    assert_int_equal(record_close(&r, &why), STATUS_IO);
    assert_non_null(strstr(why.text, "--record /dev/full: could not be written whole"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_file_replays),       cmocka_unit_test(a_changed_result_is_found),
        cmocka_unit_test(any_cut_is_refused),        cmocka_unit_test(any_flipped_bit_is_noticed),
        cmocka_unit_test(other_runs_are_told_apart), cmocka_unit_test(hostile_frames_are_refused),
        cmocka_unit_test(files_that_cannot_be),
    };
    return cmocka_run_group_tests(tests, record_a_run, NULL);
}
