/* utf8.h - UTF-8 as Unicode 3.9 (D92) defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
 *
 * utf8_lossy turns a byte stream into valid UTF-8: every maximal subpart of an ill-formed sequence
 * (Unicode 3.9, "U+FFFD substitution of maximal subparts") becomes one U+FFFD, whatever the pieces in which
 * the bytes arrive. */
#ifndef RETRO_UTF8_H
#define RETRO_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/buffer.h"

#define UTF8_REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

/* Bytes of the longest prefix of s[0..n) that is whole, valid characters. */
size_t utf8_valid_prefix(const char *s, size_t n);
/* The character at s[*at] of valid text; *at moves behind it. */
uint32_t utf8_next(const char *s, size_t *at);
/* Start of the character that ends right before s[at], at > 0, in valid text. */
size_t utf8_previous(const char *s, size_t at);
/* Writes 1 to 4 bytes. */
size_t utf8_encode(uint32_t c, char *out);
/* The property White_Space. */
bool utf8_is_space(uint32_t c);

struct utf8_lossy {
    char pending[4]; /* the beginning of a character that may still become whole */
    size_t n_pending;
};
void utf8_lossy_push(struct utf8_lossy *l, const char *bytes, size_t n, struct buffer *out);
/* An unfinished character becomes U+FFFD. */
void utf8_lossy_flush(struct utf8_lossy *l, struct buffer *out);

#endif
