/* mpi_plan.c - what model_plan counts for every rank is what model_open allocates there, to the byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "runtime/model.h"

static struct comm_world world;

/* hidden, MLP, layers, heads, kv heads, vocabulary, tied */
static const int shapes[][7] = {
    {96, 160, 3, 6, 3, 301, 1}, {64, 97, 2, 4, 1, 1021, 0}, {72, 200, 5, 9, 3, 131, 1}};

static void parse_shape(struct model_files *f, const int *s, const char *dtype)
{
    char json[1024];
    struct reason why;
    *f = (struct model_files){0};
    snprintf(
        json, sizeof json,
        "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": %d, \"intermediate_size\": %d, "
        "\"num_hidden_layers\": %d, \"num_attention_heads\": %d, \"num_key_value_heads\": %d, "
        "\"vocab_size\": %d, "
        "\"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"hidden_act\": "
        "\"silu\", \"tie_word_embeddings\": %s, \"torch_dtype\": \"%s\"}",
        s[0], s[1], s[2], s[3], s[4], s[5], s[6] ? "true" : "false", dtype);
    assert_int_equal(arch_parse(&f->arch, json, strlen(json), "shape", &why), STATUS_OK);
}

static void check(const struct model_files *f, int slots, int context, int window, enum dtype kv)
{
    struct comm *c = comm_open(&world, world.size);
    struct device_options d = {.n_threads = 1};
    struct model_options o = {.n_slots = slots,
                              .context = context,
                              .prefill_chunk = 50,
                              .page_tokens = 8,
                              .block_tokens = 32,
                              .window = window,
                              .kv = kv,
                              .summary = kv == DTYPE_F32 ? SUMMARY_F32 : SUMMARY_BF16,
                              .node_ranks = 1};
    struct reason why;
    struct memplan plan;
    struct dims dims;
    struct model *m;
    assert_int_equal(device_open(&o.device, DEVICE_CPU, &d, &why), STATUS_OK);
    model_plan(&plan, &dims, f, world.rank, world.size, &o);
    assert_int_equal(model_open(&m, f, c, &o, &why), STATUS_OK);
    assert_memory_equal(&plan, &m->plan, sizeof plan);
    assert_int_equal(plan.total_bytes, (int64_t)m->memory_bytes);
    assert_int_equal(dims.block_bytes, m->dims.block_bytes);
    assert_true(plan.weights_bytes > 0 && plan.kv_bytes > 0 && plan.slots_bytes > 0 &&
                plan.scratch_bytes > 0);
    model_close(m);
    comm_close(c);
}

static void test_counted_is_allocated(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct model_files f;
        parse_shape(&f, shapes[i], i == 1 ? "float32" : "bfloat16");
        check(&f, 1, 100, 1, DTYPE_BF16);
        check(&f, 3, 700, 4, DTYPE_F32);
    }
}

int main(void)
{
    comm_world_open(&world, true);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_counted_is_allocated)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    comm_world_close();
    return failed;
}
