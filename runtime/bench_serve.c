/* bench_serve.c - the client: libcurl's multi interface on one thread.
 *
 * A request is one `struct stream`: from begin() it lives in the multi handle, take_line() reads its events, finish()
 * puts what it saw into its bench_request. At most `concurrency` streams are alive. */
#include "runtime/bench_serve.h"

#include <curl/curl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/die.h"

enum { BODY_MAX = 1 << 20, IDS_MAX = 1024, WAIT_MS = 200, CONNECT_S = 10 };

/* Prompts are drawn from its tokens. */
static const char passage[] = "The harbour lay quiet before sunrise. Two fishermen mended a torn net while "
                              "gulls argued over scraps, and a "
                              "clerk with cold hands counted barrels of salt, rope, lamp oil and flour into "
                              "a narrow book. When the ferry from "
                              "the northern islands came round the point, its bell rang three times; "
                              "children ran down the stone steps to "
                              "catch its lines. A teacher brought letters, a doctor her heavy bag, and an "
                              "engineer asked everybody where the "
                              "old railway bridge had stood. By noon the market smelled of bread, oranges "
                              "and wet wool. Somebody played a "
                              "violin badly. In the evening the wind turned west, shutters closed one after "
                              "another, and only the lighthouse "
                              "went on drawing its slow circle over dark water.";

static void *need(void *p)
{
    if (!p) DIE(EXIT_CODE_MEMORY, NULL, "no host memory for a benchmark");
    return p;
}

/* splitmix64 */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static double draw_unit(uint64_t *state) { return (double)(draw(state) >> 11) * 0x1p-53; } /* [0, 1) */

static int draw_range(uint64_t *state, struct bench_range r)
{
    return r.low + (int)(draw(state) % (uint64_t)(r.high - r.low + 1));
}

/* ---- text that arrives */

struct text {
    char *byte;
    size_t n, capacity;
};

static bool text_add(struct text *t, const char *byte, size_t n)
{
    if (t->n + n + 1 > BODY_MAX) return false;
    if (t->n + n + 1 > t->capacity) {
        t->capacity = 2 * (t->n + n + 1);
        t->byte = need(realloc(t->byte, t->capacity));
    }
    memcpy(t->byte + t->n, byte, n);
    t->n += n;
    t->byte[t->n] = 0;
    return true;
}

static size_t write_text(char *byte, size_t size, size_t n, void *user)
{
    return text_add(user, byte, size * n) ? size * n : 0;
}

/* The sentence inside an error object: {"error": {"message": ...}}, or {"error": "..."}; NULL when there is none. */
static const char *error_sentence(const json_t *j)
{
    const json_t *error = json_object_get(j, "error");
    const char *text = json_string_value(json_object_get(error, "message"));
    return text ? text : json_string_value(error);
}

/* "429: too many requests wait", from a status and the body that came with it. */
static void describe_refusal(char *out, size_t size, long code, const struct text *body)
{
    json_t *j = body->n ? json_loadb(body->byte, body->n, 0, NULL) : NULL;
    const char *sentence = error_sentence(j);
    snprintf(out, size, "%ld%s%.120s", code, sentence ? ": " : "", sentence ? sentence : "");
    json_decref(j);
}

/* ---- the server */

struct bench_target {
    char *model;
    int id[IDS_MAX];
    int n_ids;
    struct curl_slist *headers;
    CURLM *multi;
};

/* A handle for url + path that sends `body` (copied), or asks for it when there is none. */
static CURL *open_handle(const struct bench_target *t, const struct bench_load *l, const char *path,
                         const char *body)
{
    char url[2048];
    CURL *c = need(curl_easy_init());
    snprintf(url, sizeof url, "%s%s", l->url, path);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PROXY,
                     ""); /* what is measured is the server, whatever the environment names */
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, (long)l->timeout_s);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, t->headers);
    if (body) {
        curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE, (long)strlen(body));
        curl_easy_setopt(c, CURLOPT_COPYPOSTFIELDS, body);
    }
    return c;
}

/* One question and its JSON answer, which the caller decrefs. */
static enum status ask(const struct bench_target *t, const struct bench_load *l, const char *path,
                       const char *body, json_t **out, struct reason *why)
{
    struct text text = {0};
    CURL *c = open_handle(t, l, path, body);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, write_text);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, &text);
    CURLcode code = curl_easy_perform(c);
    long http = 0;
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &http);
    curl_easy_cleanup(c);
    enum status status = STATUS_OK;
    *out = code == CURLE_OK && http == 200 ? json_loadb(text.byte ? text.byte : "", text.n, 0, NULL) : NULL;
    if (code == CURLE_URL_MALFORMAT)
        status = status_fail(why, STATUS_BAD_OPTION, "--url %s: no address", l->url);
    else if (code != CURLE_OK)
        status = status_fail(why, STATUS_PEER, "--url %s: %s: is the server running?", l->url,
                             curl_easy_strerror(code));
    else if (http == 401 || http == 403)
        status = status_fail(why, STATUS_BAD_OPTION, "--api-key: %s refuses %s (%ld)", l->url,
                             l->key ? "this one" : "requests without one", http);
    else if (http != 200)
        status = status_fail(why, STATUS_BAD_OPTION, "--url %s: %s %s gives %ld, expected 200", l->url,
                             body ? "POST" : "GET", path, http);
    else if (!*out) status = status_fail(why, STATUS_BAD_OPTION, "--url %s: %s is no JSON", l->url, path);
    free(text.byte);
    return status;
}

static enum status find_model(struct bench_target *t, const struct bench_load *l, struct reason *why)
{
    json_t *j;
    enum status status = ask(t, l, "/v1/models", NULL, &j, why);
    if (status != STATUS_OK) return status;
    const char *name = l->model;
    if (!name) name = json_string_value(json_object_get(json_array_get(json_object_get(j, "data"), 0), "id"));
    if (name) t->model = need(strdup(name));
    else status = status_fail(why, STATUS_BAD_OPTION, "--url %s: /v1/models names no model", l->url);
    json_decref(j);
    return status;
}

static enum status find_ids(struct bench_target *t, const struct bench_load *l, struct reason *why)
{
    json_t *j, *question = json_pack("{s:s, s:b}", "prompt", passage, "add_special_tokens", 0);
    char *body = need(json_dumps(need(question), JSON_COMPACT));
    json_decref(question);
    enum status status = ask(t, l, "/tokenize", body, &j, why);
    free(body);
    if (status != STATUS_OK) return status;
    size_t i;
    const json_t *id;
    json_array_foreach(json_object_get(j, "tokens"), i, id) if (json_is_integer(id) && t->n_ids < IDS_MAX)
        t->id[t->n_ids++] = (int)json_integer_value(id);
    json_decref(j);
    if (t->n_ids < 2)
        return status_fail(why, STATUS_BAD_OPTION, "--url %s: /tokenize gives no tokens of an English text",
                           l->url);
    return STATUS_OK;
}

enum status bench_target_open(struct bench_target **out, const struct bench_load *l, struct reason *why)
{
    struct bench_target *t = *out = need(calloc(1, sizeof *t));
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != 0) DIE(EXIT_CODE_MEMORY, NULL, "libcurl does not start");
    t->multi = need(curl_multi_init());
    t->headers = need(curl_slist_append(NULL, "Content-Type: application/json"));
    t->headers = need(curl_slist_append(t->headers, "Expect:")); /* no round trip before a long prompt */
    if (l->key) {
        char line[1024];
        if (snprintf(line, sizeof line, "Authorization: Bearer %s", l->key) >= (int)sizeof line)
            return status_fail(why, STATUS_BAD_OPTION, "--api-key: over 1000 bytes");
        t->headers = need(curl_slist_append(t->headers, line));
    }
    enum status status = find_model(t, l, why);
    return status == STATUS_OK ? find_ids(t, l, why) : status;
}

void bench_target_close(struct bench_target *t)
{
    if (!t) return;
    curl_multi_cleanup(t->multi);
    curl_slist_free_all(t->headers);
    curl_global_cleanup();
    free(t->model);
    free(t);
}

const char *bench_target_model(const struct bench_target *t) { return t->model; }

/* ---- one request */

struct stream {
    struct bench_request *seen;
    CURL *curl;
    struct text line; /* the event line that is arriving, or the body of a refusal */
    int64_t sent_us, last_us;
    bool done; /* [DONE] came */
};

static void fail(struct stream *s, const char *text)
{
    if (!s->seen->error[0]) snprintf(s->seen->error, sizeof s->seen->error, "%s", text);
}

/* An event with a choice: a token, in most servers. */
static void take_choice(struct stream *s, int64_t now)
{
    struct bench_request *q = s->seen;
    if (s->last_us == s->sent_us) q->ttft_ms = (double)(now - s->sent_us) * 1e-3;
    else {
        if (q->n_itl == q->itl_capacity) {
            q->itl_capacity = q->itl_capacity ? 2 * q->itl_capacity : 64;
            q->itl_ms = need(realloc(q->itl_ms, (size_t)q->itl_capacity * sizeof *q->itl_ms));
        }
        q->itl_ms[q->n_itl++] = (double)(now - s->last_us) * 1e-3;
    }
    s->last_us = now;
    q->e2el_ms = (double)(now - s->sent_us) * 1e-3;
}

static void take_line(struct stream *s, int64_t now)
{
    static const char field[] = "data:";
    const char *at = s->line.byte;
    if (strncmp(at, field, sizeof field - 1) != 0) return; /* a blank line or a comment */
    at += sizeof field - 1;
    at += strspn(at, " ");
    if (strncmp(at, "[DONE]", 6) == 0) {
        s->done = true;
        return;
    }
    json_t *j = json_loads(at, JSON_ALLOW_NUL, NULL);
    const json_t *usage = json_object_get(j, "usage");
    if (!j) fail(s, "an event is no JSON");
    else if (json_object_get(j, "error")) {
        char text[160];
        const char *sentence = error_sentence(j);
        snprintf(text, sizeof text, "error event%s%.120s", sentence ? ": " : "", sentence ? sentence : "");
        fail(s, text);
    }
    if (json_array_size(json_object_get(j, "choices")) > 0) take_choice(s, now);
    if (json_is_object(usage)) {
        s->seen->n_input = (int)json_integer_value(json_object_get(usage, "prompt_tokens"));
        s->seen->n_output = (int)json_integer_value(json_object_get(usage, "completion_tokens"));
    }
    json_decref(j);
}

static size_t write_events(char *byte, size_t size, size_t n, void *user)
{
    struct stream *s = user;
    int64_t now = clock_us();
    long code = 0;
    n *= size;
    curl_easy_getinfo(s->curl, CURLINFO_RESPONSE_CODE, &code);
    for (size_t at = 0; at < n;) {
        const char *end = code == 200 ? memchr(byte + at, '\n', n - at) : NULL;
        size_t length = end ? (size_t)(end - byte) - at : n - at;
        if (!text_add(&s->line, byte + at, length)) {
            fail(s, "an answer without end");
            return 0;
        }
        at += length + (end != NULL);
        if (!end) break;
        take_line(s, now);
        s->line.n = 0;
    }
    return n;
}

static char *completion_body(const struct bench_target *t, const struct bench_load *l, uint64_t *random)
{
    json_t *prompt = need(json_array());
    int n = draw_range(random, l->input), most = draw_range(random, l->output);
    for (int i = 0; i < n; i++)
        json_array_append_new(prompt, json_integer(t->id[draw(random) % (uint64_t)t->n_ids]));
    json_t *j = need(json_pack("{s:s, s:o, s:i, s:i, s:b, s:{s:b}}", "model", t->model, "prompt", prompt,
                               "max_tokens", most, "temperature", 0, "stream", 1, "stream_options",
                               "include_usage", 1));
    /* Beyond OpenAI: not every server knows it, so it is sent only where it is asked for. */
    if (l->ignore_eos) json_object_set_new(j, "ignore_eos", json_true());
    char *text = need(json_dumps(j, JSON_COMPACT));
    json_decref(j);
    return text;
}

static void begin(struct bench_target *t, const struct bench_load *l, uint64_t *random,
                  struct bench_request *q)
{
    struct stream *s = need(calloc(1, sizeof *s));
    char *body = completion_body(t, l, random);
    s->seen = q;
    s->curl = open_handle(t, l, "/v1/completions", body);
    free(body);
    curl_easy_setopt(s->curl, CURLOPT_WRITEFUNCTION, write_events);
    curl_easy_setopt(s->curl, CURLOPT_WRITEDATA, s);
    curl_easy_setopt(s->curl, CURLOPT_PRIVATE, s);
    s->sent_us = s->last_us = clock_us();
    if (curl_multi_add_handle(t->multi, s->curl) != CURLM_OK)
        DIE(EXIT_CODE_BUG, NULL, "libcurl takes no request");
}

static void finish(struct bench_target *t, CURL *curl, CURLcode code)
{
    struct stream *s;
    long http = 0;
    curl_easy_getinfo(curl, CURLINFO_PRIVATE, (char **)&s);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &http);
    if (code != CURLE_OK) fail(s, curl_easy_strerror(code));
    else if (http != 200) {
        char text[160];
        describe_refusal(text, sizeof text, http, &s->line);
        fail(s, text);
    } else if (!s->done) fail(s, "the stream ended without [DONE]");
    else if (s->last_us == s->sent_us) fail(s, "an answer without a token");
    else if (s->seen->n_output < 1) fail(s, "an answer without usage");
    curl_multi_remove_handle(t->multi, curl);
    curl_easy_cleanup(curl);
    free(s->line.byte);
    free(s);
}

/* ---- all of them */

static int finish_some(struct bench_target *t)
{
    int n = 0, left;
    for (CURLMsg *m; (m = curl_multi_info_read(t->multi, &left));)
        if (m->msg == CURLMSG_DONE) {
            finish(t, m->easy_handle, m->data.result);
            n++;
        }
    return n;
}

void bench_serve_run(struct bench_target *t, const struct bench_load *l, struct bench_request *q,
                     double *duration_s)
{
    uint64_t gaps = l->seed, prompts = ~l->seed; /* apart: a rate does not change what is asked */
    int n_sent = 0, n_alive = 0, running;
    int64_t begun = clock_us(), due = begun;
    curl_multi_setopt(t->multi, CURLMOPT_MAXCONNECTS, (long)l->concurrency);
    while (n_sent < l->n_requests || n_alive > 0) {
        int64_t now = clock_us();
        while (n_sent < l->n_requests && n_alive < l->concurrency && due <= now) {
            begin(t, l, &prompts, &q[n_sent++]);
            n_alive++;
            if (l->rate > 0) due += (int64_t)(-log1p(-draw_unit(&gaps)) / l->rate * 1e6);
        }
        CURLMcode code = curl_multi_perform(t->multi, &running);
        n_alive -= finish_some(t);
        bool sends = n_sent < l->n_requests && n_alive < l->concurrency;
        int64_t wait_us = sends ? due - clock_us() : WAIT_MS * 1000;
        if (wait_us > WAIT_MS * 1000) wait_us = WAIT_MS * 1000;
        if (code == CURLM_OK && wait_us > 0 && (n_alive > 0 || sends))
            code = curl_multi_poll(t->multi, NULL, 0, (int)((wait_us + 999) / 1000), NULL);
        if (code != CURLM_OK) DIE(EXIT_CODE_BUG, NULL, "libcurl: %s", curl_multi_strerror(code));
    }
    *duration_s = (double)(clock_us() - begun) * 1e-6;
}

void bench_request_close(struct bench_request *q)
{
    free(q->itl_ms);
    *q = (struct bench_request){0};
}
