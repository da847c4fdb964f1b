/* test_plan.c - what fits by `retro plan`, and the machine files it reads. Published figures: test_published.c. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "tests/runtime/planned.h"

static void test_fits_and_most(void **state)
{
    (void)state;
    struct world w;
    struct plan_memory m;
    open_world(&w, "llama-3.1-70b", "h100", 1, 4096, 1);
    plan_memory_tightest(&w.s, &m);
    assert_true(m.left < 0); /* 141 GB do not fit on one */
    assert_int_equal(plan_context_most(&w.s), 0);
    w.s.n_ranks = 8;
    int most = plan_context_most(&w.s);
    w.s.options.context = most;
    plan_memory_tightest(&w.s, &m);
    assert_true(most > 100000 && m.left >= 0);
    w.s.options.context = most + 64;
    plan_memory_tightest(&w.s, &m);
    assert_true(m.left < 0);
    w.s.options.context = 32768;
    int batch = plan_batch_most(&w.s);
    w.s.options.n_slots = batch;
    plan_memory_tightest(&w.s, &m);
    assert_true(m.left >= 0);
    w.s.options.n_slots = batch + 1;
    plan_memory_tightest(&w.s, &m);
    assert_true(m.left < 0);
    w.s.n_ranks = 3; /* 8 kv heads on 3 ranks: the first hold more */
    struct plan_memory first, last;
    plan_memory_of(&w.s, 0, &first);
    plan_memory_of(&w.s, 2, &last);
    assert_true(first.model.kv_bytes > last.model.kv_bytes);
    close_world(&w);
}

static void test_machine_files(void **state)
{
    (void)state;
    struct machine m;
    const char *own =
        "{\"name\": \"mine\", \"read_bytes_s\": 1e12, \"flops_s\": 1e14, \"memory_bytes\": 64e9}";
    assert_int_equal(machine_parse(&m, own, "f", &why), STATUS_OK);
    assert_string_equal(m.name, "mine");
    assert_true(m.read_bytes_s == 1e12 && m.memory_bytes == 64e9);
    static const char *const bad[] = {"",
                                      "{}",
                                      "x",
                                      "[1]",
                                      "{\"read_bytes\": 1}",
                                      "{\"read_bytes_s\": \"fast\"}",
                                      "{\"read_bytes_s\": -1}",
                                      "{\"test\":\"read\",\"gb_s\":3,\"ranks\":1}\n",
                                      "{\"test\":\"read\",\"gb_s\":3,\"ranks\":1}\nnothing\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(machine_parse(&m, bad[i], "some.json", &why), STATUS_BAD_OPTION);
        assert_non_null(strstr(why.text, "some.json"));
    }
    const char *lines =
        "{\"test\":\"read\",\"ranks\":2,\"gb_s\":30}\n"
        "{\"test\":\"gemm\",\"ranks\":2,\"matrix\":\"all\",\"rows\":8,\"gb_s\":20}\n"
        "{\"test\":\"gemm\",\"ranks\":2,\"matrix\":\"all\",\"rows\":1,\"gb_s\":28}\n"
        "{\"test\":\"gemm\",\"ranks\":2,\"matrix\":\"qkv\",\"rows\":1,\"gb_s\":1}\n"
        "{\"test\":\"attention\",\"ranks\":2,\"policy\":\"dense\",\"window\":1,\"rank_bytes\":1e6,"
        "\"ms\":0.5,\"rows\":1,"
        "\"rest_ms\":0.2,\"rest_size\":1000}\n";
    assert_int_equal(machine_parse(&m, lines, "f", &why), STATUS_OK);
    assert_float_equal(m.read_bytes_s, 15e9, 1);
    assert_float_equal(machine_curve_at(&m.gemm_by_rows, 1), 14e9, 1);
    assert_float_equal(machine_curve_at(&m.gemm_by_rows, 8), 10e9, 1);
    assert_float_equal(machine_curve_at(&m.gemm_by_rows, 4.5), 12e9, 1);
    assert_float_equal(machine_curve_time(&m.dense_us, 2e6), 1000, 1e-6); /* 1e6 bytes a rank took 500 us */
    assert_int_equal(machine_find(&m, "h900", NULL, &why), STATUS_BAD_OPTION);
    assert_non_null(strstr(why.text, "h100, h200, a100, b200"));
    assert_int_equal(machine_find(&m, "h100", "infiniband", &why), STATUS_OK);
    assert_true(machine_all_reduce_us(&m, 8, 16384) > 25 && machine_all_reduce_us(&m, 1, 16384) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fits_and_most),
                                       cmocka_unit_test(test_machine_files)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
