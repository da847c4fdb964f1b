/* sha256.h - SHA-256 (FIPS 180-4): names what a file or a text holds, where a checksum could collide. */
#ifndef RETRO_BASE_SHA256_H
#define RETRO_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

enum { SHA256_BYTES = 32 };

struct sha256 {
    uint32_t state[8];
    uint64_t n_bytes; /* taken so far */
    uint8_t block[64];
};

void sha256_open(struct sha256 *s);
void sha256_update(struct sha256 *s, const void *bytes, size_t n);
/* Ends it; `s` must be opened again before it takes more. */
void sha256_digest(struct sha256 *s, uint8_t digest[SHA256_BYTES]);

/* n bytes as 2 n lower-case digits and a NUL. */
void sha256_hex(const uint8_t *digest, size_t n, char *text);

#endif
