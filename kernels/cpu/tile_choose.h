/* tile_choose.h - what choosing pages does with their scores, over a vector type; included once by tile_avx2.c and once
 * by tile_avx512.c, after tile_simd.h and with
 *
 *   vec_sub
 *   vec_times_power(x, bits)  x 2^n, n in the low bits of `bits`
 *   vec_store_key(p, v)       v as integers of the same order: NaN is INT_MIN + 1, -0 equal to 0 */

/* 2^x for x <= 0, at most 2^-126 where it is less; off by less than a unit in the last place. Scores come in powers of
 * two, so that nothing is lost to a multiplication by 1 / ln 2 here. Adding 1.5 * 2^23 rounds to a whole number and
 * leaves it in the low bits. */
static inline vec vec_exp2(vec x)
{
    const vec magic = vec_set1(0x1.8p23f);
    x = vec_max(vec_set1(-126), x); /* in this order NaN stays NaN */
    vec n = vec_add(x, magic), r = vec_sub(x, vec_sub(n, magic));
    vec p = vec_set1(0x1.41fbbcp-13f);
    p = vec_fma(p, r, vec_set1(0x1.5f3e54p-10f));
    p = vec_fma(p, r, vec_set1(0x1.3b2d4cp-7f));
    p = vec_fma(p, r, vec_set1(0x1.c6aee8p-5f));
    p = vec_fma(p, r, vec_set1(0x1.ebfbdcp-3f));
    p = vec_fma(p, r, vec_set1(0x1.62e430p-1f));
    p = vec_fma(p, r, vec_set1(1));
    return vec_times_power(p, n);
}

/* Two vectors at once, so that neither chain waits; all maxima first, so that one is reduced while the next is sought. */
static void powers(float *s, size_t s_stride, int n_q, int n, float *m, float *sum)
{
    enum { STEP = 2 * LANES };
    for (int i = 0; i < n_q; i++) {
        const float *x = s + (size_t)i * s_stride;
        vec top0 = vec_set1(-INFINITY), top1 = top0;
        int j = 0;
        for (; j + STEP <= n; j += STEP) {
            top0 = vec_max(vec_load(x + j), top0);
            top1 = vec_max(vec_load(x + j + LANES), top1);
        }
        if (j < n) top0 = vec_max(vec_load(x + j), top0);
        m[i] = vec_reduce_max(vec_max(top0, top1));
    }
    for (int i = 0; i < n_q; i++, s += s_stride) {
        vec shift = vec_set1(m[i] > -INFINITY ? m[i] : 0), sum0 = vec_zero(), sum1 = sum0;
        int j = 0;
        for (; j + STEP <= n; j += STEP) {
            vec x = vec_exp2(vec_sub(vec_load(s + j), shift));
            vec y = vec_exp2(vec_sub(vec_load(s + j + LANES), shift));
            vec_store(s + j, x);
            vec_store(s + j + LANES, y);
            sum0 = vec_add(sum0, x);
            sum1 = vec_add(sum1, y);
        }
        if (j < n) {
            vec x = vec_exp2(vec_sub(vec_load(s + j), shift));
            vec_store(s + j, x);
            sum0 = vec_add(sum0, x);
        }
        sum[i] = _mm_cvtss_f32(vec_reduce4(vec_add(sum0, sum1), vec_zero(), vec_zero(), vec_zero()));
    }
}

static void order(int32_t *key, const float *s, size_t s_stride, const float *factor, int n_q, int n)
{
    for (int j = 0; j < n; j += LANES) {
        vec x = vec_mul(vec_set1(factor[0]), vec_load(s + j));
        for (int i = 1; i < n_q; i++)
            x = vec_fma(vec_set1(factor[i]), vec_load(s + (size_t)i * s_stride + j), x);
        vec_store_key(key + j, x);
    }
}
