/* fuzz_api.c - libFuzzer target: any bytes as a request body; where it is taken, an answer is written as if the service
 * had given tokens.
 *
 * Held: nothing crashes or leaks; a refusal is an OpenAI error object of 4xx; what would be submitted is within the
 * service's limits; a response and every event of a stream is JSON. The first byte chooses endpoint and tokens. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/api.h"
#include "runtime/base/die.h"
#include "runtime/chat_shape.h"
#include "tests/runtime/bytes_tokenizer.h"
#include "tests/runtime/random.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct api *api;

static struct api *make_api(void)
{
    static const int32_t eos[] = {BYTES_TOKENIZER_END};
    static struct chat_template chat;
    struct api_options o = {
        .tokenizer = bytes_tokenizer_open(),
        .chat = &chat,
        .model = "m",
        .policy = {.kind = POLICY_RETRO, .window = 2, .kv_budget = 0.15},
        .window = 2,
        .max_window = 4,
        .context = 1000,
        .vocab = BYTES_TOKENIZER_VOCAB,
        .eos = eos,
        .n_eos = 1,
    };
    static const char template[] =
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
        "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% "
        "endif %}";
    struct reason why;
    ASSERT(o.tokenizer && chat_recognise(&chat, template, &why) == STATUS_OK);
    return api_open(&o);
}

static void check_json(const char *text, size_t n)
{
    json_error_t at;
    json_t *value =
        json_loadb(text, n, JSON_ALLOW_NUL, &at); /* completions may name a token twice: no check of keys */
    if (!value) DIE(EXIT_CODE_BUG, NULL, "%s: %.*s", at.text, (int)n, text);
    json_decref(value);
}

static void check_events(const struct buffer *out)
{
    for (size_t at = 0; at < out->n;) {
        const char *line = out->bytes + at, *end = memchr(line, '\n', out->n - at);
        ASSERT(end && (size_t)(end - out->bytes) + 1 < out->n && end[1] == '\n' &&
               memcmp(line, "data: ", 6) == 0);
        size_t n = (size_t)(end - line) - 6;
        if (!(n == 6 && memcmp(line + 6, "[DONE]", 6) == 0)) check_json(line + 6, n);
        at += n + 8;
    }
}

static void answer(const struct api_request *r, struct random *random)
{
    static float logits[BYTES_TOKENIZER_VOCAB];
    for (int i = 0; i < BYTES_TOKENIZER_VOCAB; i++) logits[i] = (float)i; /* jansson reads no NUL in a key */
    struct api_answer *w = api_answer_open(api, r, "id-1", 1);
    struct buffer out = {0};
    struct api_error e;
    bool last = false;
    for (int p = 0; p < r->n_prompts; p++) {
        for (int i = 1; r->echo && r->n_top >= 0 && i < (int)r->prompt[p].n_ids; i++) {
            struct service_prompt_token t = {.id = r->prompt[p].ids[i], .index = i, .logits = logits};
            api_answer_prompt(w, p, &t);
        }
        for (int c = 0; c < r->n; c++) {
            for (int i = random_int(random, 0, 3); i > 0; i--) {
                struct service_token t = {.choice = c,
                                          .id = random_int(random, 0, BYTES_TOKENIZER_VOCAB - 1),
                                          .text = i == 1 ? "x\"\n\xc3\xa9" : "",
                                          .n_text = i == 1 ? 5 : 0,
                                          .logits = logits};
                api_answer_token(w, p, &t, &out);
            }
            struct service_end end = {
                .choice = c,
                .reason = (enum service_finish)random_int(random, 0, SERVICE_FINISH_COUNT - 1),
                .stop_token = random_int(random, -1, 3),
                .stop_text = random_int(random, 0, 1) ? "stop\\" : NULL,
                .text = "rest",
                .n_text = (size_t)random_int(random, 0, 4)};
            api_answer_end(w, p, &end, &out);
        }
        struct service_usage u = {.n_prompt = 3, .n_completion = 2, .exposure = 1};
        last = api_answer_done(w, p, &u, &out);
    }
    ASSERT(last);
    if (r->stream) check_events(&out);
    else if (api_answer_write(w, &out, &e)) check_json(out.bytes, out.n);
    buffer_free(&out);
    api_answer_close(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!api) api = make_api();
    if (size < 1) return 0;
    struct random random = {data[0] + 1u};
    const char *body = (const char *)data + 1;
    struct api_request *r;
    struct api_error e;
    struct buffer out = {0};
    if (data[0] % 4 == 3) {
        bool done = data[0] & 4 ? api_tokenize(api, body, size - 1, &out, &e)
                                : api_detokenize(api, body, size - 1, &out, &e);
        if (!done) api_error_write(&e, &out);
        check_json(out.bytes, out.n);
    } else if (api_parse(api, data[0] % 2 ? API_CHAT : API_COMPLETIONS, body, size - 1, &r, &e)) {
        for (int p = 0; p < r->n_prompts; p++) {
            struct service_request q;
            api_request_service(api, r, p, &q);
            ASSERT(q.n_prompt > 0 && q.n_choices >= 1 && q.n_choices <= SERVICE_CHOICES_MAX &&
                   q.max_tokens >= 0);
            ASSERT(q.policy.window >= 1 && q.policy.window <= 4);
            api_constraint_free(&q);
        }
        answer(r, &random);
        api_request_free(r);
    } else {
        ASSERT(e.http >= 400 && e.http < 500 && e.reason.text[0]);
        api_error_write(&e, &out);
        check_json(out.bytes, out.n);
    }
    buffer_free(&out);
    return 0;
}
