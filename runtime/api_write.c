#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runtime/api_parts.h"
#include "runtime/utf8.h"

void api_write_format(struct buffer *out, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *at = buffer_reserve(out, 512);
    int n = vsnprintf(at, 512, format, args);
    out->n += (size_t)(n < 511 ? n : 511); /* texts of a length of their own go through api_write_text */
    va_end(args);
}

static void escape(struct buffer *out, unsigned char c)
{
    switch (c) {
    case '"': buffer_append(out, "\\\"", 2); break;
    case '\\': buffer_append(out, "\\\\", 2); break;
    case '\n': buffer_append(out, "\\n", 2); break;
    case '\t': buffer_append(out, "\\t", 2); break;
    case '\r': buffer_append(out, "\\r", 2); break;
    default: api_write_format(out, "\\u%04x", c);
    }
}

static void write_valid(struct buffer *out, const char *text, size_t n)
{
    size_t from = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f) continue;
        buffer_append(out, text + from, i - from);
        escape(out, c);
        from = i + 1;
    }
    buffer_append(out, text + from, n - from);
}

void api_write_text(struct buffer *out, const char *text, size_t n)
{
    buffer_append(out, "\"", 1);
    for (size_t at = 0; at < n;) {
        size_t valid = utf8_valid_prefix(text + at, n - at);
        write_valid(out, text + at, valid);
        at += valid;
        if (at < n) {
            buffer_append_string(out, UTF8_REPLACEMENT);
            at++;
        }
    }
    buffer_append(out, "\"", 1);
}
