/* crc32.h - CRC-32 (ISO 3309, the one of zlib) of bytes on the host; frames and recordings. */
#ifndef RETRO_BASE_CRC32_H
#define RETRO_BASE_CRC32_H

#include <stddef.h>
#include <stdint.h>

uint32_t crc32_of(const void *bytes, size_t n);

#endif
