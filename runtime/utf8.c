/* utf8.c - validation, decoding and lossy decoding of UTF-8. The byte ranges are table 3-7 of the Unicode
 * standard. */
#include "runtime/utf8.h"

#include <string.h>

/* Length of the sequence that byte `lead` begins; 0 where it begins none. */
static size_t sequence_bytes(uint8_t lead)
{
    if (lead < 0x80) return 1;
    if (lead < 0xc2) return 0;
    if (lead < 0xe0) return 2;
    if (lead < 0xf0) return 3;
    return lead < 0xf5 ? 4 : 0;
}

/* Whether `c` may be byte number `at` (1..3) behind `lead`. */
static bool continues(uint8_t lead, size_t at, uint8_t c)
{
    if (at == 1) {
        if (lead == 0xe0) return c >= 0xa0 && c <= 0xbf;
        if (lead == 0xed) return c >= 0x80 && c <= 0x9f;
        if (lead == 0xf0) return c >= 0x90 && c <= 0xbf;
        if (lead == 0xf4) return c >= 0x80 && c <= 0x8f;
    }
    return c >= 0x80 && c <= 0xbf;
}

size_t utf8_valid_prefix(const char *s, size_t n)
{
    size_t at = 0;
    while (at < n) {
        uint64_t eight;
        while (n - at >= 8) { /* ASCII runs, the usual case */
            memcpy(&eight, s + at, 8);
            if (eight & 0x8080808080808080u) break;
            at += 8;
        }
        if (at == n) break;
        uint8_t lead = (uint8_t)s[at];
        size_t length = sequence_bytes(lead);
        if (!length || length > n - at) return at;
        for (size_t k = 1; k < length; k++)
            if (!continues(lead, k, (uint8_t)s[at + k])) return at;
        at += length;
    }
    return at;
}

uint32_t utf8_next(const char *s, size_t *at)
{
    const uint8_t *p = (const uint8_t *)s + *at;
    if (p[0] < 0x80) {
        *at += 1;
        return p[0];
    }
    if (p[0] < 0xe0) {
        *at += 2;
        return (uint32_t)(p[0] & 0x1f) << 6 | (p[1] & 0x3f);
    }
    if (p[0] < 0xf0) {
        *at += 3;
        return (uint32_t)(p[0] & 0x0f) << 12 | (uint32_t)(p[1] & 0x3f) << 6 | (p[2] & 0x3f);
    }
    *at += 4;
    return (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3f) << 12 | (uint32_t)(p[2] & 0x3f) << 6 |
           (p[3] & 0x3f);
}

size_t utf8_previous(const char *s, size_t at)
{
    do at--;
    while (at > 0 && ((uint8_t)s[at] & 0xc0) == 0x80);
    return at;
}

size_t utf8_encode(uint32_t c, char *out)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

bool utf8_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
           c == 0x3000;
}

void utf8_lossy_push(struct utf8_lossy *l, const char *bytes, size_t n, struct buffer *out)
{
    for (size_t i = 0; i < n; i++) {
        if (!l->n_pending) {
            size_t valid = utf8_valid_prefix(bytes + i, n - i);
            buffer_append(out, bytes + i, valid);
            i += valid;
            if (i == n) return;
        }
        uint8_t c = (uint8_t)bytes[i];
        if (l->n_pending && !continues((uint8_t)l->pending[0], l->n_pending, c)) utf8_lossy_flush(l, out);
        if (!l->n_pending &&
            sequence_bytes(c) < 2) { /* ASCII behind a broken character, or a byte that begins nothing */
            if (c < 0x80) buffer_append(out, &bytes[i], 1);
            else buffer_append_string(out, UTF8_REPLACEMENT);
            continue;
        }
        l->pending[l->n_pending++] = (char)c;
        if (l->n_pending == sequence_bytes((uint8_t)l->pending[0])) {
            buffer_append(out, l->pending, l->n_pending);
            l->n_pending = 0;
        }
    }
}

void utf8_lossy_flush(struct utf8_lossy *l, struct buffer *out)
{
    if (l->n_pending) buffer_append_string(out, UTF8_REPLACEMENT);
    l->n_pending = 0;
}
