/* test_dtype.c - conversions of f16 and bf16 against sums of powers of two and a search for the nearest
 * value. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "runtime/base/dtype.h"

/* What the bits mean, from the definition of the format: sign, exponent of `e_bits`, mantissa of `m_bits`. */
static double meaning(uint16_t bits, int e_bits, int m_bits)
{
    int bias = (1 << (e_bits - 1)) - 1, e = bits >> m_bits & ((1 << e_bits) - 1),
        m = bits & ((1 << m_bits) - 1);
    double sign = bits & 0x8000 ? -1 : 1;
    if (e == (1 << e_bits) - 1) return m ? NAN : sign * INFINITY;
    if (e == 0) return sign * ldexp(m, 1 - bias - m_bits);
    return sign * ldexp(1 + ldexp(m, -m_bits), e - bias);
}

static void every_16_bit_value_widens_exactly(void **state)
{
    (void)state;
    for (uint32_t i = 0; i <= 0xffff; i++) {
        uint16_t bits = (uint16_t)i;
        double f16 = meaning(bits, 5, 10), bf16 = meaning(bits, 8, 7);
        if (isnan(f16)) assert_true(isnan(dtype_f32_from_f16(bits)));
        else assert_true((double)dtype_f32_from_f16(bits) == f16);
        if (isnan(bf16)) assert_true(isnan(dtype_f32_from_bf16(bits)));
        else assert_true((double)dtype_f32_from_bf16(bits) == bf16);
        assert_int_equal(!!signbit(dtype_f32_from_f16(bits)), bits >> 15);
    }
}

static void every_16_bit_value_survives_the_round_trip(void **state)
{
    (void)state;
    for (uint32_t i = 0; i <= 0xffff; i++) {
        uint16_t bits = (uint16_t)i, back = dtype_f16_from_f32(dtype_f32_from_f16(bits));
        if (isnan(meaning(bits, 5, 10))) assert_true(isnan(dtype_f32_from_f16(back)));
        else assert_int_equal(back, bits);
        back = dtype_bf16_from_f32(dtype_f32_from_bf16(bits));
        if (isnan(meaning(bits, 8, 7))) assert_true(isnan(dtype_f32_from_bf16(back)));
        else assert_int_equal(back, bits);
    }
}

/* The nearest of all finite values of the format, ties to the even mantissa; infinity from half a step past
 * the largest on. Steps are found by bisection over the ordered positive values. */
static uint16_t nearest(float f, int e_bits, int m_bits)
{
    uint16_t sign = signbit(f) ? 0x8000 : 0, infinite = (uint16_t)(((1u << e_bits) - 1) << m_bits);
    double x = fabs((double)f), step = ldexp(1, (1 << (e_bits - 1)) - 1 - m_bits);
    if (x >= meaning(infinite - 1, e_bits, m_bits) + step / 2) return sign | infinite;
    uint16_t low = 0, high = (uint16_t)(infinite - 1);
    while (low < high) {
        uint16_t middle = (uint16_t)((low + high + 1) / 2);
        if (meaning(middle, e_bits, m_bits) <= x) low = middle;
        else high = (uint16_t)(middle - 1);
    }
    if (low == infinite - 1) return sign | low;
    double under = x - meaning(low, e_bits, m_bits), over = meaning((uint16_t)(low + 1), e_bits, m_bits) - x;
    return sign | (under < over || (under == over && low % 2 == 0) ? low : (uint16_t)(low + 1));
}

static void check_rounding(uint32_t bits)
{
    float f = dtype_f32_from_bits(bits);
    if (isnan(f)) {
        assert_true(isnan(dtype_f32_from_f16(dtype_f16_from_f32(f))));
        assert_true(isnan(dtype_f32_from_bf16(dtype_bf16_from_f32(f))));
        return;
    }
    if (dtype_f16_from_f32(f) != nearest(f, 5, 10))
        fail_msg("f16 of %a: %04x", (double)f, dtype_f16_from_f32(f));
    if (dtype_bf16_from_f32(f) != nearest(f, 8, 7))
        fail_msg("bf16 of %a: %04x", (double)f, dtype_bf16_from_f32(f));
}

/* All signs and exponents with the mantissas where rounding decides, and random bits. */
static void narrowing_rounds_to_nearest_even(void **state)
{
    (void)state;
    static const uint32_t near[] = {0,        1,        0xfff,    0x1000,   0x1001,   0x2000,
                                    0x2fff,   0x3000,   0x3001,   0x7fff,   0x8000,   0x8001,
                                    0x10000,  0x17fff,  0x18000,  0x18001,  0x7fefff, 0x7ff000,
                                    0x7ff001, 0x7f7fff, 0x7f8000, 0x7fffff, 0x400000, 0x3fffff};
    for (uint32_t top = 0; top < 512; top++)
        for (size_t i = 0; i < sizeof near / sizeof *near; i++) check_rounding(top << 23 | near[i]);
    uint32_t x = 1;
    for (int i = 0; i < 400000; i++) {
        x = x * 1664525u + 1013904223u;
        check_rounding(x ^ x >> 13);
        /* Inside f16's range, subnormals too, where random bits seldom fall. */
        check_rounding(((x >> 9) & 0x7fffffu) | (98 + (x & 63)) << 23 | (x & 64) << 25);
    }
}

static void sizes_and_names(void **state)
{
    (void)state;
    assert_int_equal(dtype_bytes(DTYPE_F32), 4);
    assert_int_equal(dtype_bytes(DTYPE_F16), 2);
    assert_int_equal(dtype_bytes(DTYPE_BF16), 2);
    assert_string_equal(dtype_name(DTYPE_F32), "f32");
    assert_string_equal(dtype_name(DTYPE_F16), "f16");
    assert_string_equal(dtype_name(DTYPE_BF16), "bf16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_16_bit_value_widens_exactly),
        cmocka_unit_test(every_16_bit_value_survives_the_round_trip),
        cmocka_unit_test(narrowing_rounds_to_nearest_even),
        cmocka_unit_test(sizes_and_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
