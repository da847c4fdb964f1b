/* bytes_tokenizer.h - a tokenizer of the 256 bytes (ids by the order of GPT-2's alphabet), three longer tokens and the
 * special token <end>, for tests that need one without a model folder. */
#ifndef RETRO_TESTS_RUNTIME_BYTES_TOKENIZER_H
#define RETRO_TESTS_RUNTIME_BYTES_TOKENIZER_H

#include "runtime/buffer.h"
#include "runtime/tokenizer.h"

enum { BYTES_TOKENIZER_END = 259, BYTES_TOKENIZER_VOCAB = 260 };

static inline struct tokenizer *bytes_tokenizer_open(void)
{
    static const char *const longer[] = {"{\\\"", "\\\":", "ab"}; /* as they stand in JSON */
    struct buffer json = {0};
    buffer_append_string(
        &json, "{\"model\": {\"type\": \"BPE\", \"merges\": [\"{ \\\"\", \"\\\" :\", \"a b\"], \"vocab\": {");
    int strange = 0;
    for (int byte = 0; byte < 256; byte++) { /* Radford et al.: printable bytes stand for themselves */
        bool plain = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        char number[24];
        snprintf(number, sizeof number, "\": %d, ", byte);
        buffer_append_string(&json, byte == '"' || byte == '\\' ? "\"\\" : "\"");
        buffer_append_char(&json, (uint32_t)(plain ? byte : 256 + strange));
        strange += !plain;
        buffer_append_string(&json, number);
    }
    for (int i = 0; i < 3; i++) {
        char entry[32];
        snprintf(entry, sizeof entry, "\"%s\": %d%s", longer[i], 256 + i, i < 2 ? ", " : "}}, ");
        buffer_append_string(&json, entry);
    }
    buffer_append_string(
        &json,
        "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
        "\"use_regex\": true}, \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, "
        "\"trim_offsets\": true, \"use_regex\": true}, \"added_tokens\": [{\"id\": 259, \"content\": "
        "\"<end>\", "
        "\"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": "
        "true}]}");
    struct tokenizer *t = NULL;
    struct reason why = {{0}};
    if (tokenizer_parse(&t, json.bytes, json.n, &why) != STATUS_OK) fprintf(stderr, "%s\n", why.text);
    buffer_free(&json);
    return t;
}

#endif
