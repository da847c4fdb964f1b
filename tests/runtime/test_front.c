/* test_front.c - one service or three behind a front: the same tokens, who gets which request, the common queue limit,
 * cancellations, drains, and a schema that replicas share; with threads that submit while others run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/base/clock.h"
#include "runtime/front.h"
#include "runtime/grammar.h"
#include "runtime/jsonschema.h"
#include "tests/runtime/bytes_tokenizer.h"
#include "tests/runtime/tiny_engine.h"

enum { REPLICAS = 3, REQUESTS = 60, TOKENS_MAX = 64 };

static struct tiny_engine tiny[REPLICAS];
static struct engine *engines[REPLICAS];
static struct tokenizer *tokenizer;
static struct grammar_trie *trie;

static int open_all(void **state)
{
    (void)state;
    struct comm_world world;
    comm_world_open(&world, false);
    for (int r = 0; r < REPLICAS; r++) {
        tiny_engine_open(&tiny[r], &world);
        engines[r] = tiny[r].engine;
    }
    tokenizer = bytes_tokenizer_open();
    trie = grammar_trie_open(tokenizer, TINY_VOCAB);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    for (int r = 0; r < REPLICAS; r++) tiny_engine_close(&tiny[r]);
    grammar_trie_close(trie);
    tokenizer_close(tokenizer);
    return 0;
}

/* ---- requests */
struct heard { /* of one request with one choice */
    uint64_t id;
    int32_t prompt[TINY_CONTEXT], token[TOKENS_MAX];
    int n_prompt, n_tokens, n_ends, n_cached;
    enum service_finish finish;
    atomic_int n_done;
    char text[4 * TOKENS_MAX];
};

static atomic_int n_done_in_all;

static void on_token(void *user, const struct service_token *t)
{
    struct heard *h = user;
    assert_true(h->n_tokens < TOKENS_MAX && t->index == h->n_tokens);
    h->token[h->n_tokens++] = t->id;
    strncat(h->text, t->text, t->n_text);
}

static void on_end(void *user, const struct service_end *e)
{
    struct heard *h = user;
    h->n_ends++;
    h->finish = e->reason;
    strncat(h->text, e->text, e->n_text);
}

static void on_done(void *user, const struct service_usage *u)
{
    struct heard *h = user;
    h->n_cached = u->n_cached;
    atomic_fetch_add(&h->n_done, 1);
    atomic_fetch_add(&n_done_in_all, 1);
}

static const struct service_sink sink = {.token = on_token, .end = on_end, .done = on_done};

/* A prompt of n tokens; those with the same seed begin alike. */
static void set_prompt(struct heard *h, int n, unsigned seed)
{
    *h = (struct heard){.n_prompt = n};
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        h->prompt[i] = (int32_t)(seed >> 8) % 256;
        if (h->prompt[i] < 0) h->prompt[i] += 256;
    }
}

static enum status submit(struct front *f, struct heard *h, int max_tokens, struct constraint *c)
{
    struct reason why;
    struct service_request r = {
        .prompt = h->prompt,
        .n_prompt = h->n_prompt,
        .policy =
            {.kind = POLICY_RETRO, .window = 2, .kv_budget = 0.3, .dense_layers = 1, .score_alpha = 0.2f},
        .sampling = {.temperature = c ? 1 : 0, .top_p = 1, .repetition_penalty = 1, .seed = 5},
        .max_tokens = max_tokens,
        .ignore_eos = !c,
        .constraint = c,
        .sink = &sink,
        .user = h};
    return front_submit(f, &r, &h->id, &why);
}

static struct front *open_front(int n, enum sched_cache cache, int max_queue)
{
    static const int32_t eos[] = {BYTES_TOKENIZER_END};
    struct service_options o = {
        .tokenizer = tokenizer, .eos = eos, .n_eos = 1, .max_queue = max_queue, .prefix_cache = cache};
    struct front *f;
    struct reason why;
    assert_int_equal(front_open(&f, engines, n, &o, &why), STATUS_OK);
    assert_int_equal(front_replicas(f), n);
    return f;
}

/* Runs until what was submitted is done. */
static void run_out(struct front *f)
{
    front_drain(f, 600);
    front_run(f);
}

static void make_requests(struct heard h[REQUESTS])
{
    for (int i = 0; i < REQUESTS; i++) set_prompt(&h[i], 1 + i * 7 % 90, (unsigned)(i % 20));
}

static int tokens_of(int i) { return 1 + i * 5 % TOKENS_MAX; }

/* ---- tests */
struct submitter {
    struct front *front;
    struct heard *heard;
    int first;
};

enum { SUBMITTERS = 4 };

static void *submit_some(void *user)
{
    struct submitter *s = user;
    for (int i = s->first; i < REQUESTS; i += SUBMITTERS)
        assert_int_equal(submit(s->front, &s->heard[i], tokens_of(i), NULL), STATUS_OK);
    return NULL;
}

static void *drain_when_done(void *user)
{
    while (atomic_load(&n_done_in_all) < REQUESTS) sched_yield();
    front_drain(user, 0);
    return NULL;
}

/* Whatever is beside them and wherever they run; every replica works. */
static void tokens_do_not_depend_on_replicas(void **state)
{
    (void)state;
    static struct heard alone[REQUESTS], spread[REQUESTS];
    struct front *f = open_front(1, SCHED_CACHE_OFF, INT_MAX);
    make_requests(alone);
    for (int i = 0; i < REQUESTS; i++) assert_int_equal(submit(f, &alone[i], tokens_of(i), NULL), STATUS_OK);
    run_out(f);
    front_close(f);

    pthread_t thread[SUBMITTERS], drain;
    struct submitter s[SUBMITTERS];
    f = open_front(REPLICAS, SCHED_CACHE_ON, INT_MAX);
    make_requests(spread);
    atomic_store(&n_done_in_all, 0);
    for (int k = 0; k < SUBMITTERS; k++) {
        s[k] = (struct submitter){f, spread, k};
        assert_int_equal(pthread_create(&thread[k], NULL, submit_some, &s[k]), 0);
    }
    assert_int_equal(pthread_create(&drain, NULL, drain_when_done, f), 0);
    front_run(f);
    for (int k = 0; k < SUBMITTERS; k++) pthread_join(thread[k], NULL);
    pthread_join(drain, NULL);
    for (int i = 0; i < REQUESTS; i++) {
        assert_int_equal(spread[i].n_done, 1);
        assert_int_equal(spread[i].n_ends, 1);
        assert_int_equal(spread[i].finish, SERVICE_FINISH_LENGTH);
        assert_int_equal(spread[i].n_tokens, tokens_of(i));
        assert_memory_equal(spread[i].token, alone[i].token, sizeof alone[i].token);
    }
    struct service_stats all, one;
    int64_t n_steps = 0, n_tokens = 0;
    front_stats(f, &all);
    for (int r = 0; r < REPLICAS; r++) {
        front_replica_stats(f, r, &one);
        assert_true(one.n_steps > 0);
        n_steps += one.n_steps;
        n_tokens += one.generation_tokens;
    }
    assert_true(all.n_steps == n_steps && all.generation_tokens == n_tokens && all.n_requests == REQUESTS);
    assert_true(all.draining && all.n_running == 0 && all.n_waiting == 0);
    assert_int_equal(all.n_blocks, REPLICAS * engine_limits(engines[0])->n_blocks);
    front_close(f);
}

static int place(struct front *f, struct heard *h, int n_prompt, unsigned seed)
{
    set_prompt(h, n_prompt, seed);
    assert_int_equal(submit(f, h, 4, NULL), STATUS_OK);
    return front_replica_of(f, h->id);
}

/* Nothing runs yet: who has what is known. Two slots a replica. */
static void the_least_loaded_gets_it(void **state)
{
    (void)state;
    static struct heard h[9];
    struct front *f = open_front(REPLICAS, SCHED_CACHE_OFF, INT_MAX);
    assert_int_equal(place(f, &h[0], 300, 1), 0); /* all are empty: the first */
    assert_int_equal(place(f, &h[1], 20, 2), 1);
    assert_int_equal(place(f, &h[2], 21, 3), 2);
    assert_int_equal(place(f, &h[3], 5, 4), 1);  /* 20 tokens are fewer than 21 and 300 */
    assert_int_equal(place(f, &h[4], 5, 5), 2);  /* the other one's slots are taken */
    assert_int_equal(place(f, &h[5], 5, 6), 0);  /* a free slot counts more than tokens */
    assert_int_equal(place(f, &h[6], 50, 7), 1); /* it must wait everywhere: 25 tokens against 26 and 305 */
    assert_int_equal(place(f, &h[7], 50, 8), 2); /* there nobody waits before it */
    assert_int_equal(place(f, &h[8], 1, 9), 0);  /* and there neither */
    run_out(f);
    for (int i = 0; i < 9; i++) assert_int_equal(h[i].n_done, 1);
    front_close(f);
}

static void a_known_beginning_is_worth_its_tokens(void **state)
{
    (void)state;
    static struct heard h[6];
    struct front *f = open_front(REPLICAS, SCHED_CACHE_ON, INT_MAX);
    assert_int_equal(place(f, &h[0], 100, 1), 0);
    assert_int_equal(place(f, &h[1], 300, 2), 1);
    assert_int_equal(place(f, &h[2], 150, 3), 2);
    assert_int_equal(place(f, &h[3], 200, 2), 0); /* 100 + 200 against 300 + 200 - 192 */
    assert_int_equal(place(f, &h[4], 250, 2), 1); /* 300 + 250 - 240 against 150 + 250 */
    assert_int_equal(place(f, &h[5], 50, 1), 2);  /* 0 has its beginning, and no slot */
    run_out(f);
    for (int i = 0; i < 6; i++) assert_int_equal(h[i].n_done, 1);
    front_close(f);
}

/* Requests that come to idle replicas after `first`, which replica 1 was given. */
struct conversation {
    struct front *front;
    struct heard first, beside, again, more;
};

static void *ask_in_turn(void *user)
{
    struct conversation *c = user;
    while (!atomic_load(&c->first.n_done) || !atomic_load(&c->beside.n_done)) sched_yield();
    assert_int_equal(place(c->front, &c->again, 130, 2), 1); /* all are idle: 96 of its tokens are there */
    while (!atomic_load(&c->again.n_done)) sched_yield();
    assert_int_equal(c->again.n_cached, 96);
    assert_int_equal(place(c->front, &c->more, 399, 3), 0); /* unknown: the first */
    while (!atomic_load(&c->more.n_done)) sched_yield();
    assert_int_equal(c->more.n_cached, 0);
    front_drain(c->front, 0);
    return NULL;
}

static void a_beginning_stays_where_it_is(void **state)
{
    (void)state;
    pthread_t thread;
    static struct conversation c;
    c.front = open_front(REPLICAS, SCHED_CACHE_ON, INT_MAX);
    assert_int_equal(place(c.front, &c.beside, 30, 1), 0); /* nothing runs yet: both are there */
    assert_int_equal(place(c.front, &c.first, 100, 2), 1);
    assert_int_equal(pthread_create(&thread, NULL, ask_in_turn, &c), 0);
    front_run(c.front);
    pthread_join(thread, NULL);
    front_close(c.front);
}

static void the_queue_has_one_limit(void **state)
{
    (void)state;
    static struct heard h[6];
    struct front *f = open_front(REPLICAS, SCHED_CACHE_ON, 5);
    for (int i = 0; i < 6; i++) set_prompt(&h[i], 10, (unsigned)i);
    for (int i = 0; i < 5; i++) assert_int_equal(submit(f, &h[i], 3, NULL), STATUS_OK);
    assert_int_equal(submit(f, &h[5], 3, NULL), STATUS_QUEUE_FULL);
    run_out(f);
    assert_int_equal(submit(f, &h[5], 3, NULL), STATUS_DRAINING);
    for (int i = 0; i < 6; i++) assert_int_equal(h[i].n_done, i < 5);
    front_close(f);
}

static void *cancel_all(void *user)
{
    struct submitter *s = user;
    for (int i = 0; i < REQUESTS; i++) front_cancel(s->front, s->heard[i].id);
    front_cancel(s->front, 123456789); /* nobody's */
    front_drain(s->front, 600);
    return NULL;
}

static void cancelled_and_cut_off(void **state)
{
    (void)state;
    static struct heard h[REQUESTS];
    for (int cut = 0; cut < 2; cut++) {
        struct front *f = open_front(REPLICAS, SCHED_CACHE_ON, INT_MAX);
        pthread_t thread;
        struct submitter s = {f, h, 0};
        make_requests(h);
        for (int i = 0; i < REQUESTS; i++) assert_int_equal(submit(f, &h[i], TOKENS_MAX, NULL), STATUS_OK);
        if (cut) front_drain(f, 0);
        else assert_int_equal(pthread_create(&thread, NULL, cancel_all, &s), 0);
        front_run(f);
        if (!cut) pthread_join(thread, NULL);
        for (int i = 0; i < REQUESTS; i++) {
            assert_true(h[i].n_done == 1 && h[i].n_ends == 1);
            if (cut) assert_int_equal(h[i].finish, SERVICE_FINISH_SHUTDOWN);
            else assert_true(h[i].finish == SERVICE_FINISH_CANCELLED || h[i].n_tokens == TOKENS_MAX);
        }
        front_close(f);
    }
    /* What was never run is told to its sink by front_close. */
    struct front *f = open_front(REPLICAS, SCHED_CACHE_ON, INT_MAX);
    make_requests(h);
    for (int i = 0; i < 10; i++) assert_int_equal(submit(f, &h[i], 1, NULL), STATUS_OK);
    front_close(f);
    for (int i = 0; i < 10; i++) assert_true(h[i].n_done == 1 && h[i].finish == SERVICE_FINISH_SHUTDOWN);
}

static atomic_bool reading;

static void *read_all_the_time(void *user)
{
    struct service_stats t;
    while (atomic_load(&reading)) front_replica_stats(user, 0, &t);
    return NULL;
}

/* Requests one after another, each done before its numbers are looked at: nothing comes after that would put them right. */
static void *ask_and_look(void *user)
{
    enum { ASKED = 200, PATIENCE_US = 60000000 };
    struct front *f = user;
    static struct heard h;
    for (int i = 1; i <= ASKED; i++) {
        struct service_stats t;
        set_prompt(&h, 1, (unsigned)i);
        assert_int_equal(submit(f, &h, 1, NULL), STATUS_OK);
        int64_t began = clock_us();
        do {
            sched_yield();
            front_replica_stats(f, 0, &t);
            assert_true(clock_us() - began < PATIENCE_US);
        } while (t.n_finished[SERVICE_FINISH_LENGTH] < i || t.n_running > 0);
        assert_int_equal(t.n_requests, i);
        assert_int_equal(t.n_blocks_free, t.n_blocks);
        while (!atomic_load(&h.n_done)) sched_yield();
    }
    front_drain(f, 0);
    return NULL;
}

/* Readers hold the lock half of the time. */
static void the_last_numbers_are_told(void **state)
{
    (void)state;
    pthread_t reader[2], asker;
    struct front *f = open_front(1, SCHED_CACHE_OFF, INT_MAX);
    atomic_store(&reading, true);
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&reader[i], NULL, read_all_the_time, f), 0);
    assert_int_equal(pthread_create(&asker, NULL, ask_and_look, f), 0);
    front_run(f);
    pthread_join(asker, NULL);
    atomic_store(&reading, false);
    for (int i = 0; i < 2; i++) pthread_join(reader[i], NULL);
    front_close(f);
}

/* One grammar, whose configurations and masks are made as they are met, by requests on every replica. */
static void replicas_share_a_schema(void **state)
{
    (void)state;
    static struct heard h[REQUESTS];
    static const int32_t eos[] = {BYTES_TOKENIZER_END};
    struct reason why;
    struct grammar *g;
    json_t *schema = json_pack("{s:[i, i, i, s, s]}", "enum", 12, 123, 1299, "ab", "abc");
    assert_int_equal(jsonschema_compile(&g, schema, &why), STATUS_OK);
    json_decref(schema);
    struct front *f = open_front(REPLICAS, SCHED_CACHE_ON, INT_MAX);
    make_requests(h);
    for (int i = 0; i < REQUESTS; i++)
        assert_int_equal(submit(f, &h[i], 20, grammar_constraint_open(g, trie, tokenizer, eos, 1)),
                         STATUS_OK);
    grammar_drop(g);
    run_out(f);
    for (int i = 0; i < REQUESTS; i++) {
        json_t *value = json_loads(h[i].text, JSON_DECODE_ANY, NULL);
        const char *text = json_string_value(value);
        json_int_t number = json_integer_value(value);
        assert_true(text ? !strcmp(text, "ab") || !strcmp(text, "abc")
                         : number == 12 || number == 123 || number == 1299);
        json_decref(value);
    }
    front_close(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_do_not_depend_on_replicas),
        cmocka_unit_test(the_least_loaded_gets_it),
        cmocka_unit_test(a_known_beginning_is_worth_its_tokens),
        cmocka_unit_test(a_beginning_stays_where_it_is),
        cmocka_unit_test(the_queue_has_one_limit),
        cmocka_unit_test(cancelled_and_cut_off),
        cmocka_unit_test(the_last_numbers_are_told),
        cmocka_unit_test(replicas_share_a_schema),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
