/* test_rope.c - rotary frequencies against rope_expected.txt, which rope_expected.py makes from the papers'
 * formulas in float64. Runs in the source folder. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/arch.h"

static void must_parse(struct arch *a, const char *json)
{
    struct reason why;
    if (arch_parse(a, json, strlen(json), "case", &why) != STATUS_OK) fail_msg("%s: %s", json, why.text);
}

/* float32 arithmetic as published against the formulas in float64. Three roundings of the exponent and power
 * cost up to ln(theta) * 2^-24 + 3 * 2^-24 relative, 1e-6 for theta = 1e6; the blends lose one digit more. */
#define ROPE_TOLERANCE 2e-6

static void test_rope_frequencies(void **state)
{
    (void)state;
    FILE *f = fopen("tests/runtime/rope_expected.txt", "r");
    assert_non_null(f);
    char *line = NULL;
    size_t room = 0;
    int n_cases = 0;
    double worst = 0;
    for (; getline(&line, &room, f) > 0; n_cases++) {
        struct arch a;
        float inv_freq[256], factor;
        char *json = strdup(line), *at;
        must_parse(&a, json);
        assert_true(getline(&line, &room, f) > 0);
        arch_rope_frequencies(&a, inv_freq, &factor);
        assert_true(fabs(factor - strtod(line, NULL)) < 1e-6);
        assert_true(getline(&line, &room, f) > 0);
        at = line;
        for (int i = 0; i < a.head_dim / 2; i++) {
            double expected = strtod(at, &at), error = fabs(inv_freq[i] - expected) / expected;
            if (!(error < ROPE_TOLERANCE))
                fail_msg("%s[%d] is %.9g, not %.9g", json, i, inv_freq[i], expected);
            if (error > worst) worst = error;
        }
        assert_int_equal(*at, '\n');
        free(json);
    }
    free(line);
    fclose(f);
    assert_int_equal(n_cases, 30);
    print_message("rope: %d cases, worst relative error %.2g\n", n_cases, worst);
}

/* The numbers that Llama 3.1's page gives in words: short waves keep, long ones are divided by 8. */
static void test_rope_bands(void **state)
{
    (void)state;
    struct arch a, plain;
    float scaled[64], kept[64], factor;
    must_parse(&a, "{\"model_type\": \"llama\", \"head_dim\": 128, \"rope_theta\": 500000.0, "
                   "\"rope_scaling\": {\"rope_type\": \"llama3\","
                   "\"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0,"
                   "\"original_max_position_embeddings\": 8192}}");
    must_parse(&plain, "{\"model_type\": \"llama\", \"head_dim\": 128, \"rope_theta\": 500000.0}");
    arch_rope_frequencies(&a, scaled, &factor);
    assert_true(factor == 1);
    arch_rope_frequencies(&plain, kept, &factor);
    int n_kept = 0, n_divided = 0, n_between = 0;
    for (int i = 0; i < 64; i++) {
        double wavelength = 2 * 3.14159265358979 / (double)kept[i];
        if (wavelength < 8192.0 / 4) {
            assert_true(scaled[i] == kept[i]);
            n_kept++;
        } else if (wavelength > 8192) {
            assert_true(scaled[i] == kept[i] / 8);
            n_divided++;
        } else {
            assert_true(scaled[i] < kept[i] && scaled[i] > kept[i] / 8);
            n_between++;
        }
    }
    assert_true(n_kept == 29 && n_between == 6 && n_divided == 29);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rope_frequencies),
        cmocka_unit_test(test_rope_bands),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
