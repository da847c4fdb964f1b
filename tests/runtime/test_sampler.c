/* test_sampler.c - tokens drawn from logits, against the definition: sort everything, take probabilities in
 * double, cut, draw. Then the frequencies of many draws, ties, seeds, the penalty, logits that are not
 * finite. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "runtime/sampler.h"
#include "tests/runtime/random.h"

enum { VOCAB_MAX = 700 };

static const struct sampling plain = {.temperature = 1, .top_p = 1, .repetition_penalty = 1};

/* ---- the definition */

struct entry {
    double logit, p;
    int token;
};

static int by_rank(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->token - y->token;
}

static int by_token(const void *a, const void *b)
{
    return ((const struct entry *)a)->token - ((const struct entry *)b)->token;
}

static double mass_of(const struct entry *e, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += e[i].p;
    return sum;
}

/* The candidates that remain, in the order in which they are drawn; returns how many. */
static int remaining(struct entry *e, int vocab, const struct sampling *q, const float *logits,
                     const int32_t *history, int n_history)
{
    int n = 0;
    for (int i = 0; i < vocab; i++) {
        int seen = 0, answered = 0;
        for (int j = 0; j < n_history; j++) {
            seen += history[j] == i;
            answered += j >= q->n_prompt && history[j] == i;
        }
        float r = (float)q->repetition_penalty, l = logits[i];
        if (seen) l = l > 0 ? l / r : l * r; /* Keskar et al., once however often it occurred */
        /* OpenAI's formula, once for the token and once for every time */
        if (answered) l -= (float)(answered * q->frequency_penalty + q->presence_penalty);
        for (int j = 0; j < q->n_bias; j++)
            if (q->bias[j].token == i) l += q->bias[j].bias;
        if (!q->allowed || (q->allowed[i / 32] & 1u << (i % 32)))
            e[n++] = (struct entry){.logit = l, .token = i};
    }
    qsort(e, (size_t)n, sizeof *e, by_rank);
    double top = e[0].logit;
    for (int i = 0; i < n; i++) e[i].p = exp((e[i].logit - top) / q->temperature);
    if (q->top_k > 0 && q->top_k < n) n = q->top_k;
    if (q->top_p < 1) {
        double mass = mass_of(e, n), sum = e[0].p;
        int kept = 1;
        while (kept < n && sum < q->top_p * mass) sum += e[kept++].p;
        n = kept;
    }
    while (n > 1 && e[n - 1].p < q->min_p * e[0].p) n--;
    bool ranked = q->top_k > 0 || q->top_p < 1;
    if (!ranked) qsort(e, (size_t)n, sizeof *e, by_token);
    return n;
}

static void random_logits(float *logits, int vocab, struct random *r)
{
    int how = random_int(r, 0, 3);
    for (int i = 0; i < vocab; i++) {
        double g = random_real(r) + random_real(r) + random_real(r) - 1.5;
        logits[i] = (float)(how == 0 ? g : how == 1 ? 8 * g : how == 2 ? floor(4 * g) : 0.01 * g - 3);
    }
}

static struct sampling random_sampling(struct random *r, int vocab)
{
    struct sampling q = plain;
    q.temperature = 0.1 + 2 * random_real(r);
    if (random_int(r, 0, 2) == 0) q.top_k = random_int(r, 2, vocab + 3);
    if (random_int(r, 0, 2) == 0) q.top_p = random_int(r, 0, 4) ? random_real(r) : 0;
    if (random_int(r, 0, 2) == 0) q.min_p = random_int(r, 0, 4) ? 0.3 * random_real(r) : 1;
    if (random_int(r, 0, 2) == 0) q.repetition_penalty = 0.5 + 1.5 * random_real(r);
    q.seed = random_bits(r);
    q.request = random_bits(r);
    return q;
}

static void draws_are_those_of_the_definition(void **state)
{
    (void)state;
    struct random r = {11};
    struct entry *e = malloc(VOCAB_MAX * sizeof *e);
    assert_non_null(e);
    int n_cut = 0;
    for (int round = 0; round < 6000; round++) {
        int vocab = random_int(&r, 0, 3) == 0 ? random_int(&r, 1, 5) : random_int(&r, 2, VOCAB_MAX);
        float logits[VOCAB_MAX], copy[VOCAB_MAX];
        int32_t history[20];
        int n_history = random_int(&r, 0, 20), position = random_int(&r, 0, 100000);
        random_logits(logits, vocab, &r);
        for (int i = 0; i < n_history; i++) history[i] = random_int(&r, 0, vocab - 1);
        memcpy(copy, logits, sizeof copy);
        struct sampling q = random_sampling(&r, vocab);
        struct sampling_bias bias[3];
        uint32_t allowed[VOCAB_MAX / 32 + 1];
        q.n_prompt = random_int(&r, 0, n_history);
        if (random_int(&r, 0, 2) == 0) q.presence_penalty = 4 * random_real(&r) - 2;
        if (random_int(&r, 0, 2) == 0) q.frequency_penalty = 4 * random_real(&r) - 2;
        if (random_int(&r, 0, 2) == 0) {
            q.n_bias = random_int(&r, 1, 3);
            for (int i = 0; i < q.n_bias; i++)
                bias[i] =
                    (struct sampling_bias){random_int(&r, 0, vocab - 1), (float)(4 * random_real(&r) - 2)};
            q.bias = bias;
        }
        if (random_int(&r, 0, 2) == 0) {
            for (int i = 0; i <= VOCAB_MAX / 32; i++)
                allowed[i] = (uint32_t)(random_bits(&r) & random_bits(&r) & random_bits(&r));
            int one = random_int(&r, 0, vocab - 1);
            allowed[one / 32] |= 1u << (one % 32);
            q.allowed = allowed;
        }
        struct sampler *s = sampler_open(vocab);
        int n = remaining(e, vocab, &q, logits, history, n_history);
        double u = sampler_uniform(q.seed, q.request, (uint64_t)position) * mass_of(e, n);
        int at = 0;
        for (double sum = e[0].p; at < n - 1 && u >= sum; sum += e[at].p) at++;
        int expected = e[at].token;
        int32_t got = sampler_draw(s, &q, logits, history, n_history, position);
        if (got != expected)
            fail_msg("round %d: token %d, expected %d of %d (k %d p %g min %g T %g r %g)", round, got,
                     expected, n, q.top_k, q.top_p, q.min_p, q.temperature, q.repetition_penalty);
        assert_memory_equal(copy, logits, (size_t)vocab * sizeof *logits);
        /* The penalty's marks are gone: the next draw without history sees none. */
        n = remaining(e, vocab, &q, logits, NULL, 0);
        got = sampler_draw(s, &q, logits, NULL, 0, position);
        bool possible = false;
        for (int i = 0; i < n; i++) possible |= e[i].token == got;
        assert_true(possible);
        n_cut += n < vocab;
        sampler_close(s);
    }
    assert_true(n_cut > 1000);
    free(e);
}

/* Pearson's chi-square of n_draws over the remaining candidates; the bound is 5 standard deviations. */
static void check_frequencies(const struct sampling *q, const float *logits, int vocab)
{
    enum { DRAWS = 100000 };
    struct entry e[64];
    int count[64] = {0}, n = remaining(e, vocab, q, logits, NULL, 0);
    struct sampler *s = sampler_open(vocab);
    for (int i = 0; i < DRAWS; i++) count[sampler_draw(s, q, logits, NULL, 0, i)]++;
    double mass = mass_of(e, n), chi = 0;
    int inside = 0;
    for (int i = 0; i < n; i++) {
        double expected = DRAWS * e[i].p / mass, d = count[e[i].token] - expected;
        chi += d * d / expected;
        inside += count[e[i].token];
    }
    assert_int_equal(inside, DRAWS); /* nothing else was ever drawn */
    double bound = n - 1 + 5 * sqrt(2.0 * n);
    if (chi > bound) fail_msg("chi-square %.1f of %d candidates, at most %.1f", chi, n, bound);
    sampler_close(s);
}

static void frequencies_are_the_probabilities(void **state)
{
    (void)state;
    float logits[40];
    struct random r = {5};
    for (int i = 0; i < 40; i++) logits[i] = (float)(3 * random_real(&r));
    struct sampling q = plain;
    for (uint64_t seed = 0; seed < 3; seed++) {
        q = plain;
        q.seed = seed;
        check_frequencies(&q, logits, 40);
        q.temperature = 0.7;
        check_frequencies(&q, logits, 40);
        q.top_k = 12;
        check_frequencies(&q, logits, 40);
        q.top_p = 0.6;
        check_frequencies(&q, logits, 40);
        q.top_k = 0;
        check_frequencies(&q, logits, 40);
        q.top_p = 1;
        q.min_p = 0.3;
        check_frequencies(&q, logits, 40);
    }
}

static void uniform_numbers(void **state)
{
    (void)state;
    /* 100 cells over (seed, request, position) in every direction: each direction alone must be uniform too.
     */
    for (int direction = 0; direction < 3; direction++) {
        int count[100] = {0};
        double chi = 0;
        for (uint64_t i = 0; i < 100000; i++) {
            double u =
                sampler_uniform(direction == 0 ? i : 1, direction == 1 ? i : 2, direction == 2 ? i : 3);
            assert_true(u >= 0 && u < 1);
            count[(int)(u * 100)]++;
        }
        for (int i = 0; i < 100; i++) chi += (count[i] - 1000.0) * (count[i] - 1000.0) / 1000;
        assert_true(chi < 99 + 5 * sqrt(200));
    }
    assert_true(sampler_uniform(1, 2, 3) == sampler_uniform(1, 2, 3));
    assert_true(sampler_uniform(1, 2, 3) != sampler_uniform(2, 1, 3));
    assert_true(sampler_uniform(1, 2, 3) != sampler_uniform(1, 3, 2));
}

static void greedy_takes_the_lowest_of_equals(void **state)
{
    (void)state;
    float logits[] = {1, 5, -2, 5, 5, 0};
    struct sampler *s = sampler_open(6);
    struct sampling q = plain;
    q.temperature = 0;
    assert_true(sampling_is_greedy(&q));
    assert_int_equal(sampler_draw(s, &q, logits, NULL, 0, 7), 1);
    q.temperature = 3;
    q.top_k = 1;
    assert_true(sampling_is_greedy(&q));
    assert_int_equal(sampler_draw(s, &q, logits, NULL, 0, 7), 1);
    q.repetition_penalty = 2;
    assert_false(sampling_is_greedy(&q));
    const int32_t history[] = {1, 3, 1, 1};
    assert_int_equal(sampler_draw(s, &q, logits, history, 4, 7), 4);
    q = plain;
    assert_false(sampling_is_greedy(&q));
    /* Ties at the border of top-k and top-p: the lower ids stay. */
    q.top_k = 2;
    for (int i = 0; i < 200; i++) {
        int32_t t = sampler_draw(s, &q, logits, NULL, 0, i);
        assert_true(t == 1 || t == 3);
    }
    q.top_k = 0;
    q.top_p = 0;
    for (int i = 0; i < 50; i++) assert_int_equal(sampler_draw(s, &q, logits, NULL, 0, i), 1);
    q.top_p = 1;
    q.min_p = 1;
    for (int i = 0; i < 200; i++) {
        int32_t t = sampler_draw(s, &q, logits, NULL, 0, i);
        assert_true(t == 1 || t == 3 || t == 4);
    }
    sampler_close(s);
    sampler_close(NULL);
}

/* A token depends on seed, request, position and logits; not on what was drawn before. */
static void seeds_decide(void **state)
{
    (void)state;
    enum { N = 200 };
    float logits[N];
    int32_t first[100], differ = 0;
    struct random r = {9};
    random_logits(logits, N, &r);
    struct sampler *s = sampler_open(N), *other = sampler_open(N);
    struct sampling q = plain;
    q.seed = 42;
    for (int i = 0; i < 100; i++) first[i] = sampler_draw(s, &q, logits, NULL, 0, i);
    for (int i = 99; i >= 0; i--) assert_int_equal(sampler_draw(other, &q, logits, NULL, 0, i), first[i]);
    q.seed = 43;
    for (int i = 0; i < 100; i++) differ += sampler_draw(s, &q, logits, NULL, 0, i) != first[i];
    assert_true(differ > 50);
    q.seed = 42;
    q.request = 1;
    differ = 0;
    for (int i = 0; i < 100; i++) differ += sampler_draw(s, &q, logits, NULL, 0, i) != first[i];
    assert_true(differ > 50);
    sampler_close(s);
    sampler_close(other);
}

static void penalty_by_hand(void **state)
{
    (void)state;
    float logits[] = {2, 1.5f, -1, -1.5f};
    const int32_t all[] = {0, 0, 2, 0};
    struct sampler *s = sampler_open(4);
    struct sampling q = plain;
    q.temperature = 0;
    q.repetition_penalty = 2; /* 2 -> 1, -1 -> -2: token 1 leads */
    assert_int_equal(sampler_draw(s, &q, logits, all, 4, 0), 1);
    q.repetition_penalty = 1.3; /* 2 -> 1.54 */
    assert_int_equal(sampler_draw(s, &q, logits, all, 4, 0), 0);
    q.repetition_penalty = 0.5; /* a reward: -1 -> -0.5 */
    logits[0] = logits[1] = -9;
    assert_int_equal(sampler_draw(s, &q, logits, all, 4, 0), 2);
    sampler_close(s);
}

static void answer_penalties_and_bias_by_hand(void **state)
{
    (void)state;
    float logits[] = {2, 1.5f, 1, 0};
    const int32_t history[] = {1, 1, 1, 0, 0, 1}; /* three of the prompt, then 0 0 1 */
    struct sampler *s = sampler_open(4);
    struct sampling q = plain;
    q.temperature = 0;
    q.n_prompt = 3;
    q.presence_penalty = 0.75; /* 1.25 0.75 1 0 */
    assert_false(sampling_is_greedy(&q));
    assert_int_equal(sampler_draw(s, &q, logits, history, 6, 6), 0);
    q.presence_penalty = 0;
    q.frequency_penalty = 0.4; /* 1.2 1.1 1 0 */
    assert_false(sampling_is_greedy(&q));
    assert_int_equal(sampler_draw(s, &q, logits, history, 6, 6), 0);
    q.frequency_penalty = 0.45; /* 1.1 1.05 1 0; with the prompt's it would be 1.1 -0.3 1 0 */
    q.presence_penalty = 0.1;   /* 1 0.95 1 0: the lower id of equals */
    assert_int_equal(sampler_draw(s, &q, logits, history, 6, 6), 0);
    q.presence_penalty = 0.2; /* 0.9 0.85 1 0 */
    assert_int_equal(sampler_draw(s, &q, logits, history, 6, 6), 2);
    q = plain;
    q.temperature = 0;
    const struct sampling_bias bias[] = {{3, 100}, {0, -100}};
    q.bias = bias;
    q.n_bias = 1;
    assert_false(sampling_is_greedy(&q));
    assert_int_equal(sampler_draw(s, &q, logits, NULL, 0, 0), 3);
    q.bias = bias + 1;
    assert_int_equal(sampler_draw(s, &q, logits, NULL, 0, 0), 1);
    sampler_close(s);
}

/* What is not allowed never comes, even where nothing that is allowed has a finite logit. */
static void only_allowed_tokens_come(void **state)
{
    (void)state;
    enum { N = 70 };
    float logits[N];
    struct random r = {4};
    struct sampler *s = sampler_open(N);
    for (int round = 0; round < 3000; round++) {
        struct sampling q = random_sampling(&r, N);
        uint32_t allowed[3] = {0};
        if (round % 3 == 0) q.temperature = 0;
        for (int n = random_int(&r, 1, 4); n > 0; n--) {
            int t = random_int(&r, 0, N - 1);
            allowed[t / 32] |= 1u << (t % 32);
        }
        q.allowed = allowed;
        for (int i = 0; i < N; i++)
            logits[i] = round % 2 && (allowed[i / 32] >> i % 32 & 1) ? (round % 4 == 1 ? NAN : -INFINITY)
                                                                     : (float)random_real(&r);
        int32_t t = sampler_draw(s, &q, logits, NULL, 0, round);
        assert_true(allowed[t / 32] >> t % 32 & 1);
    }
    sampler_close(s);
}

static void logprobs_are_the_log_of_the_softmax(void **state)
{
    (void)state;
    float logits[VOCAB_MAX];
    struct random r = {3};
    for (int round = 0; round < 500; round++) {
        int vocab = random_int(&r, 1, VOCAB_MAX), n_top = random_int(&r, 0, vocab < 21 ? vocab : 21);
        random_logits(logits, vocab, &r);
        struct entry e[VOCAB_MAX];
        double sum = 0;
        for (int i = 0; i < vocab; i++) {
            sum += exp(logits[i]);
            e[i] = (struct entry){.logit = logits[i], .token = i};
        }
        qsort(e, (size_t)vocab, sizeof *e, by_rank);
        int token = random_int(&r, 0, vocab - 1);
        struct sampler_logprob top[21];
        float got = sampler_logprobs(vocab, logits, token, top, n_top);
        assert_true(fabs(got - (logits[token] - log(sum))) < 1e-5);
        for (int i = 0; i < n_top; i++) {
            assert_int_equal(top[i].token, e[i].token);
            assert_true(fabs(top[i].logprob - (e[i].logit - log(sum))) < 1e-5);
        }
    }
    const float strange[] = {NAN, 3e38f, -INFINITY, 3e38f};
    struct sampler_logprob top[4];
    assert_true(fabs(sampler_logprobs(4, strange, 1, top, 4) + log(2)) < 1e-6);
    assert_true(top[0].token == 1 && top[1].token == 3 && isinf(top[2].logprob) && isinf(top[3].logprob));
    assert_true(isinf(sampler_logprobs(4, strange, 0, NULL, 0)));
    const float nothing[] = {-INFINITY, NAN, -INFINITY};
    assert_false(isnan(sampler_logprobs(3, nothing, 1, top, 3)));
}

static void strange_logits_give_a_token(void **state)
{
    (void)state;
    enum { N = 50 };
    float logits[N];
    struct random r = {1};
    struct sampler *s = sampler_open(N);
    for (int round = 0; round < 3000; round++) {
        struct sampling q = random_sampling(&r, N);
        int what = random_int(&r, 0, 4);
        for (int i = 0; i < N; i++) {
            int pick = random_int(&r, 0, 3);
            logits[i] = what == 0                ? NAN
                        : what == 1              ? -INFINITY
                        : pick == 0              ? NAN
                        : pick == 1              ? -INFINITY
                        : pick == 2 && what == 2 ? INFINITY
                                                 : (float)random_real(&r) * (what == 3 ? 3e38f : 1);
        }
        int32_t t = sampler_draw(s, &q, logits, NULL, 0, round);
        assert_in_range(t, 0, N - 1);
        if (what >= 2 && q.repetition_penalty == 1) assert_false(isnan(logits[t]));
    }
    sampler_close(s);
}

static int by_best(const void *a, const void *b)
{
    const struct best *x = a, *y = b;
    if (x->value != y->value) return x->value > y->value ? -1 : 1;
    return x->index - y->index;
}

/* The largest logits alone give the token that all give, cuts in top-p and min-p included. */
static void candidates_draw_the_same(void **state)
{
    (void)state;
    struct random r = {31};
    float logits[VOCAB_MAX];
    struct best all[VOCAB_MAX], top[TOP_K_MAX];
    for (int round = 0; round < 4000; round++) {
        int vocab = random_int(&r, 2, round % 3 ? VOCAB_MAX : 80), n_values = random_int(&r, 1, 400);
        struct sampler *s = sampler_open(vocab);
        struct sampling q = plain;
        q.top_k = random_int(&r, 1, TOP_K_MAX + 4);
        q.temperature = round % 7 ? 0.1 + 2 * random_real(&r) : 0;
        if (round % 2) q.top_p = random_real(&r);
        if (round % 5 == 0) q.min_p = random_real(&r) * 0.3;
        q.seed = (uint64_t)round;
        for (int i = 0; i < vocab; i++) { /* many ties, some NaN and -inf */
            logits[i] = (float)random_int(&r, 0, n_values) * 0.03f;
            if (random_int(&r, 0, 50) == 0) logits[i] = random_int(&r, 0, 1) ? NAN : -INFINITY;
            all[i] = (struct best){isnan(logits[i]) ? -INFINITY : logits[i], i};
        }
        qsort(all, (size_t)vocab, sizeof *all, by_best);
        for (int i = 0; i < TOP_K_MAX; i++) top[i] = i < vocab ? all[i] : (struct best){-INFINITY, -1};
        bool suffices = q.top_k <= TOP_K_MAX && q.top_k < vocab;
        assert_int_equal(sampling_top_suffices(&q, vocab), suffices);
        for (int position = 0; suffices && position < 20; position++)
            assert_int_equal(sampler_draw_top(s, &q, top, position),
                             sampler_draw(s, &q, logits, NULL, 0, position));
        sampler_close(s);
    }
    struct sampling q = plain;
    assert_false(sampling_top_suffices(&q, 1000));
    q.top_k = 5;
    assert_true(sampling_top_suffices(&q, 1000));
    q.presence_penalty = 0.1;
    assert_false(sampling_top_suffices(&q, 1000));
    q = (struct sampling){.top_k = 5, .top_p = 1, .repetition_penalty = 1.1};
    assert_false(sampling_top_suffices(&q, 1000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_are_those_of_the_definition),
        cmocka_unit_test(frequencies_are_the_probabilities),
        cmocka_unit_test(uniform_numbers),
        cmocka_unit_test(greedy_takes_the_lowest_of_equals),
        cmocka_unit_test(seeds_decide),
        cmocka_unit_test(penalty_by_hand),
        cmocka_unit_test(answer_penalties_and_bias_by_hand),
        cmocka_unit_test(only_allowed_tokens_come),
        cmocka_unit_test(logprobs_are_the_log_of_the_softmax),
        cmocka_unit_test(strange_logits_give_a_token),
        cmocka_unit_test(candidates_draw_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
