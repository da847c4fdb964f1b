/* tokenize_tool.c - drives runtime/tokenizer.h for tests/runtime/tokenizer_compare.py over a pipe.
 *
 *   tokenize_tool FILE|DIR
 *
 * Requests on standard input, little-endian: op u8, flag u8, n u32, payload.
 *   'e'  text of n bytes; flag: add special tokens         -> n ids
 *   'd'  n ids of 4 bytes; flag: skip special tokens       -> n bytes
 *   's'  the same, pushed one by one through a stream      -> n bytes; every push must be valid UTF-8
 *   't'  like 'e', answers only the microseconds it took   -> one u32
 * Each answer: status u8 (0 ok, else an error line of n bytes follows), n u32, payload. One process, many
 * requests. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/base/clock.h"
#include "runtime/base/status.h"
#include "runtime/tokenizer.h"
#include "runtime/utf8.h"

static void answer(uint8_t status, uint32_t n, const void *payload, size_t bytes)
{
    fwrite(&status, 1, 1, stdout);
    fwrite(&n, 4, 1, stdout);
    fwrite(payload, 1, bytes, stdout);
    fflush(stdout);
}

static void encode(const struct tokenizer *t, uint8_t op, uint8_t flag, const char *payload, uint32_t n)
{
    struct reason why = {{0}};
    struct token_list ids = {0};
    int64_t begin = clock_us();
    enum status status = tokenizer_encode(t, payload, n, flag, &ids, &why);
    uint32_t us = (uint32_t)(clock_us() - begin);
    if (status != STATUS_OK) answer(1, (uint32_t)strlen(why.text), why.text, strlen(why.text));
    else if (op == 't') answer(0, 1, &us, 4);
    else answer(0, (uint32_t)ids.n_ids, ids.ids, ids.n_ids * 4);
    token_list_free(&ids);
}

static void decode(const struct tokenizer *t, uint8_t flag, const int32_t *ids, uint32_t n)
{
    struct reason why = {{0}};
    char *text;
    size_t n_bytes;
    if (tokenizer_decode(t, ids, n, flag, &text, &n_bytes, &why) != STATUS_OK)
        answer(1, (uint32_t)strlen(why.text), why.text, strlen(why.text));
    else answer(0, (uint32_t)n_bytes, text, n_bytes);
    free(text);
}

static void stream(const struct tokenizer *t, uint8_t flag, const int32_t *ids, uint32_t n)
{
    struct buffer all = {0};
    struct token_stream *s = token_stream_open(t, flag);
    for (uint32_t i = 0; i <= n; i++) {
        size_t bytes;
        const char *text = i < n ? token_stream_push(s, ids[i], &bytes) : token_stream_flush(s, &bytes);
        if (utf8_valid_prefix(text, bytes) != bytes || text[bytes]) {
            fprintf(stderr, "push %u is no whole UTF-8\n", i);
            exit(1);
        }
        buffer_append(&all, text, bytes);
    }
    token_stream_close(s);
    answer(0, (uint32_t)all.n, all.bytes ? all.bytes : "", all.n);
    buffer_free(&all);
}

static struct tokenizer *open_path(const char *path)
{
    struct tokenizer *t = NULL;
    struct reason why = {{0}};
    struct stat st;
    enum status status = STATUS_OK;
    if (!stat(path, &st) && S_ISDIR(st.st_mode)) {
        status = tokenizer_open(&t, path, &why);
    } else {
        struct buffer json = {0};
        FILE *f = fopen(path, "rb");
        size_t got = 1;
        while (f && got) {
            got = fread(buffer_reserve(&json, 1 << 16), 1, 1 << 16, f);
            json.n += got;
        }
        if (f) fclose(f);
        status = tokenizer_parse(&t, json.bytes, json.n, &why);
        buffer_free(&json);
    }
    if (status != STATUS_OK) fprintf(stderr, "%s\n", why.text);
    return t;
}

int main(int argc, char **argv)
{
    struct tokenizer *t = argc == 2 ? open_path(argv[1]) : NULL;
    if (!t) return 2;
    uint8_t head[6];
    while (fread(head, 1, 6, stdin) == 6) {
        uint32_t n;
        memcpy(&n, head + 2, 4);
        size_t bytes = head[0] == 'e' || head[0] == 't' ? n : (size_t)n * 4;
        char *payload = buffer_realloc(NULL, bytes + 1, 1);
        if (fread(payload, 1, bytes, stdin) != bytes) return 1;
        if (head[0] == 'e' || head[0] == 't') encode(t, head[0], head[1], payload, n);
        else if (head[0] == 'd') decode(t, head[1], (const int32_t *)payload, n);
        else stream(t, head[1], (const int32_t *)payload, n);
        free(payload);
    }
    tokenizer_close(t);
    return 0;
}
