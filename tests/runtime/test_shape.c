/* test_shape.c - rounding of decode steps: sizes, limits, and that equal shapes launch equal work. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "runtime/shape.h"
#include "tests/runtime/random.h"

static void sizes_grow_by_less_than_two(void **state)
{
    (void)state;
    static const int first[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256};
    for (int i = 0; i < 16; i++) assert_int_equal(shape_size(i), first[i]);
    for (int n = 1; n < 70000; n++) {
        int i = shape_index(n);
        assert_true(shape_size(i) >= n);
        assert_true(i == 0 || shape_size(i - 1) < n);
        assert_true(shape_size(i) * 2 <= 3 * n || n < 3);
    }
}

static struct batch step(int n_decode, int n_rows, int n_out, int max_position, bool top)
{
    return (struct batch){.n_rows = n_rows,
                          .n_decode = n_decode,
                          .n_out = n_out,
                          .n_decode_rows = n_rows,
                          .max_position = max_position,
                          .top = top};
}

static void rounds_within_the_limits(void **state)
{
    (void)state;
    struct dims m = {.max_spans = 13, .W = 5, .max_rows = 60, .max_out = 13, .C = 5000};
    struct random r = {7};
    for (int i = 0; i < 20000; i++) {
        int n = random_int(&r, 1, 13), most = n * 5 < 60 ? n * 5 : 60;
        struct batch given =
            step(n, random_int(&r, n, most), random_int(&r, 0, n), random_int(&r, 0, 4999), i & 1);
        struct batch b = given;
        shape_round(&b, &m);
        assert_true(b.n_decode >= given.n_decode && b.n_decode <= m.max_spans);
        assert_true(b.n_rows >= given.n_rows && b.n_rows <= m.max_rows && b.n_rows == b.n_decode_rows);
        assert_true(b.n_out >= given.n_out && b.n_out <= m.max_out && (b.n_out == 0) == (given.n_out == 0));
        assert_true(b.max_position >= given.max_position && b.max_position < m.C);
        assert_true(b.shape != 0 && b.n_prompt == 0 && b.top == given.top);
    }
}

/* The other way round: what is launched decides the shape. */
static void a_shape_is_what_is_launched(void **state)
{
    (void)state;
    struct dims m = {.max_spans = 40, .W = 8, .max_rows = 700, .max_out = 40, .C = 32768};
    struct random r = {8};
    for (int i = 0; i < 200000; i++) {
        struct batch b[2];
        for (int k = 0; k < 2; k++) {
            int n = random_int(&r, 1, 6);
            b[k] = step(n, random_int(&r, n, n * 3), random_int(&r, 0, n), random_int(&r, 0, 1500),
                        random_int(&r, 0, 1));
            shape_round(&b[k], &m);
        }
        bool same = b[0].n_decode == b[1].n_decode && b[0].n_rows == b[1].n_rows &&
                    b[0].n_out == b[1].n_out && b[0].max_position == b[1].max_position &&
                    b[0].top == b[1].top;
        assert_int_equal(same, b[0].shape == b[1].shape);
    }
}

/* A long generation passes through few shapes. */
static void positions_change_the_shape_rarely(void **state)
{
    (void)state;
    struct dims m = {.max_spans = 1, .W = 2, .max_rows = 514, .max_out = 1, .C = 131072};
    int n_shapes = 0;
    uint64_t last = 0;
    for (int p = 0; p < m.C; p++) {
        struct batch b = step(1, 2, 1, p, false);
        shape_round(&b, &m);
        n_shapes += b.shape != last;
        last = b.shape;
    }
    assert_int_equal(n_shapes, 19);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_grow_by_less_than_two),
        cmocka_unit_test(rounds_within_the_limits),
        cmocka_unit_test(a_shape_is_what_is_launched),
        cmocka_unit_test(positions_change_the_shape_rarely),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
