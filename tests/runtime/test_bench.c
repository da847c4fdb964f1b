/* test_bench.c - a tiny model with random weights: what cost.h counts is what the counters of the ops counted, step
 * by step, for every policy; random weights are the same whatever part of a matrix is asked for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/bench.h"
#include "runtime/cost.h"
#include "runtime/noise.h"

static const char shape[] =
    "{\"architectures\": [\"MistralForCausalLM\"], \"hidden_size\": 48, "
    "\"intermediate_size\": 80, \"num_hidden_layers\": 3, \"num_attention_heads\": 6, "
    "\"num_key_value_heads\": 2, \"head_dim\": 16, \"vocab_size\": 97, "
    "\"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, "
    "\"hidden_act\": \"silu\", \"sliding_window\": %s, \"torch_dtype\": \"bfloat16\"}";

struct world {
    struct model_files files;
    struct comm_world place;
    struct comm *comm;
    struct ctl *ctl;
    struct model *model;
    struct engine *engine;
};

static void open_world(struct world *w, const char *sliding_window)
{
    char json[1024];
    struct reason why;
    *w = (struct world){0};
    snprintf(json, sizeof json, shape, sliding_window);
    assert_int_equal(arch_parse(&w->files.arch, json, strlen(json), "shape", &why), STATUS_OK);
    comm_world_open(&w->place, false);
    w->comm = comm_open(&w->place, 1);
    struct model_options o = {.n_slots = 2,
                              .context = 400,
                              .prefill_chunk = 37,
                              .page_tokens = 4,
                              .block_tokens = 16,
                              .window = 3,
                              .kv = DTYPE_BF16,
                              .summary = SUMMARY_BF16,
                              .node_ranks = 1};
    struct device_options d = {.n_threads = 1};
    assert_int_equal(device_open(&o.device, DEVICE_CPU, &d, &why), STATUS_OK);
    assert_int_equal(model_open(&w->model, &w->files, w->comm, &o, &why), STATUS_OK);
    comm_reserve(w->comm, (size_t)w->model->dims.max_rows * (size_t)w->model->dims.D);
    w->ctl = ctl_open(w->comm, 10);
    w->engine = engine_open(w->model, w->comm, w->ctl);
}

static void close_world(struct world *w)
{
    ctl_close(w->ctl);
    engine_close(w->engine);
    model_close(w->model);
    comm_close(w->comm);
}

/* Two sequences: fills, steps, and after each step compares counters with cost_decode. */
static void check_policy(struct world *w, const struct policy *p, int context)
{
    const struct dims *d = &w->model->dims;
    /* A sliding window may cut the oldest page that was chosen. */
    double cut = w->files.arch.sliding_window && p->kind != POLICY_DENSE
                     ? (d->P - 1.0) * d->Kr * d->L * engine_token_bytes(w->engine)
                     : 0;
    const struct step_limits *l = engine_limits(w->engine);
    struct pages pages;
    struct step step;
    struct seq seq;
    int32_t prompt[400] = {0};
    int64_t before[COUNTER_COUNT] = {0}, after[COUNTER_COUNT];
    pages_open(&pages, l->n_blocks);
    step_open(&step, l);
    seq_open(&seq, 1, p, prompt, context, 400, l->block_tokens);
    while (seq.fed < context) {
        int n = context - seq.fed < 37 ? context - seq.fed : 37;
        assert_int_equal(seq_reserve(&seq, &pages, seq.fed + n, l->block_tokens), STATUS_OK);
        step_clear(&step, 7);
        step_add_prompt(&step, &seq, n, STEP_WANT_NOTHING);
        engine_fill(w->engine, &step);
    }
    for (int i = 0; i < 20; i++) {
        struct engine_result r;
        struct cost c;
        seq_append_token(&seq, i % 97);
        assert_int_equal(seq_reserve(&seq, &pages, seq.n_tokens, l->block_tokens), STATUS_OK);
        step_clear(&step, 7);
        step_add_decode(&step, &seq, STEP_WANT_BEST);
        engine_step(w->engine, &step, &r);
        assert_int_equal(r.n_outputs, 1);
        assert_true(r.output[0].best_logit > -1e6f && r.output[0].best_logit < 1e6f);
        engine_counters(w->engine, 1, after);
        struct cost_step s = {.policy = p,
                              .n_seqs = 1,
                              .position = context + i,
                              .n_prompt = context,
                              .exposure = 1,
                              .weights = DTYPE_BF16};
        cost_decode(&c, &w->files.arch, &w->model->dims, &s);
        assert_float_equal(c.kv_bytes,
                           (double)(after[COUNTER_TOKENS_READ] - before[COUNTER_TOKENS_READ]) *
                               engine_token_bytes(w->engine),
                           0.5 + cut);
        assert_float_equal(c.summaries_bytes,
                           (double)(after[COUNTER_SUMMARIES_READ] - before[COUNTER_SUMMARIES_READ]) *
                               engine_summary_bytes(w->engine),
                           0.5);
        assert_float_equal(c.weights_bytes, cost_weights_bytes(&w->model->dims, DTYPE_BF16), 0.5);
        memcpy(before, after, sizeof before);
    }
    seq_close(&seq, &pages);
    step_close(&step);
    pages_close(&pages);
}

static void test_cost_is_what_the_ops_counted(void **state)
{
    (void)state;
    static const int contexts[] = {1, 3, 63, 64, 65, 200, 371};
    static const char *const windows[] = {"null", "33"};
    for (size_t k = 0; k < 2; k++) {
        struct world w;
        open_world(&w, windows[k]);
        for (enum policy_kind kind = 0; kind < POLICY_KIND_COUNT; kind++)
            for (size_t i = 0; i < sizeof contexts / sizeof *contexts; i++) {
                struct policy p = {.kind = kind,
                                   .window = kind == POLICY_RETRO ? 3 : 1,
                                   .kv_budget = 0.2,
                                   .dense_layers = 1,
                                   .score_alpha = 0.2f,
                                   .score_group = SCORE_GROUP_SOFTMAX,
                                   .sink_pages = 1};
                check_policy(&w, &p, contexts[i]);
                p.sink_pages = 40; /* more than the budget, and at first all there are */
                check_policy(&w, &p, contexts[i]);
            }
        close_world(&w);
    }
}

/* The fraction of a step that cost_decode says is weights: all matrices once, by hand. */
static void test_weights_by_hand(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, "null");
    double layer = (6 + 2 + 2) * 16.0 * 48 + 6 * 16.0 * 48 + 3 * 80.0 * 48, head = 97.0 * 48;
    assert_float_equal(cost_weights_bytes(&w.model->dims, DTYPE_BF16), 2 * (3 * layer + head), 0.5);
    /* What is allocated holds these, the embedding, the norms and padding. */
    assert_true(w.model->plan.weights_bytes > (int64_t)(2 * (3 * layer + 2 * head)));
    close_world(&w);
}

/* Seven rows, of which the last alone finishes the last layer; each sees itself and those before it. */
static void test_prefill_flops_by_hand(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, "null");
    double qkv = (6 + 2 + 2) * 16.0 * 48, rest = 6 * 16.0 * 48 + 3 * 80.0 * 48, head = 97.0 * 48;
    double products = 2 * (3 * 7 * qkv + (2 * 7 + 1) * rest + head), attention = 3 * 4 * 6 * 16.0 * 28;
    assert_true(cost_prefill_flops(&w.files.arch, 7) == products + attention);
    close_world(&w);
}

static void test_decode_run(void **state)
{
    (void)state;
    struct world w;
    struct bench_decode r;
    open_world(&w, "null");
    struct policy p = {.kind = POLICY_RETRO, .window = 2, .kv_budget = 0.2, .score_alpha = 1};
    bench_decode_run(w.engine, w.model, &p, 0, 1, 3, &r);
    assert_true(r.step_ms > 0 && r.floor_ms > 0 && r.exposure == 1 && r.kv_read_share == 1);
    bench_decode_run(w.engine, w.model, &p, 300, 2, 3, &r);
    assert_true(r.step_ms_low <= r.step_ms && r.step_ms <= r.step_ms_high && r.exposure > 1);
    assert_true(r.kv_read_share > 0.2 && r.kv_read_share < 0.5);
    /* In double: cmocka compares floats, which on a machine that reads slowly differ by more than any fixed bound. */
    assert_true(fabs(r.tokens_per_s * r.step_ms - 2e3) <= 1e-9 * 2e3);
    assert_true(fabs(r.floor_ms * r.read_rate - r.bytes * 1e3) <= 1e-9 * r.bytes * 1e3);
    close_world(&w);
}

static void test_noise_rows_are_one_matrix(void **state)
{
    (void)state;
    struct noise n;
    noise_open(&n, 10000);
    for (int64_t row = 0; row < 70000; row += 991) {
        const float *here = noise_row(&n, "a.weight", row), *later = noise_row(&n, "a.weight", row + 100);
        for (int column = 0; column < 3000; column += 7)
            assert_true(here[100 * NOISE_ROW + column] == later[column]);
    }
    double sum = 0, squares = 0;
    for (size_t i = 0; i < NOISE_PERIOD; i++) {
        sum += n.value[i];
        squares += (double)n.value[i] * n.value[i];
    }
    assert_float_equal(sum / NOISE_PERIOD, 0, 0.01);
    assert_float_equal(squares / NOISE_PERIOD, 1, 0.01);
    assert_true(noise_row(&n, "a", 1) != noise_row(&n, "b", 1));
    noise_close(&n);
}

static void test_quantile(void **state)
{
    (void)state;
    double v[] = {5, 1, 3, 2, 4};
    assert_float_equal(bench_quantile(v, 5, 0.5), 3, 0);
    assert_float_equal(bench_quantile(v, 5, 0), 1, 0);
    assert_float_equal(bench_quantile(v, 5, 1), 5, 0);
    assert_float_equal(bench_quantile(v, 4, 0.5), 2.5, 0);
    assert_float_equal(bench_quantile(v, 1, 0.9), 1, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cost_is_what_the_ops_counted), cmocka_unit_test(test_weights_by_hand),
        cmocka_unit_test(test_prefill_flops_by_hand),        cmocka_unit_test(test_decode_run),
        cmocka_unit_test(test_noise_rows_are_one_matrix),    cmocka_unit_test(test_quantile)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
