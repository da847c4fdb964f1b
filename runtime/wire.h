/* wire.h - a step plan to bytes and back (comm/retro.proto, packed with protobuf-c).
 *
 * Unpacking trusts nothing: sizes, ids and ranges are checked against the limits, so a damaged frame or
 * recording is refused with one line and can never index out of bounds. */
#ifndef RETRO_WIRE_H
#define RETRO_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/step.h"

struct wire {
    uint8_t *bytes; /* the packed message; valid until the next pack */
    size_t n_bytes, capacity;
};

void wire_close(struct wire *w);
void wire_pack_step(struct wire *w, const struct step *s);
/* Into a step opened with the limits to check against. */
enum status wire_unpack_step(struct step *s, const void *bytes, size_t n_bytes, struct reason *why);

#endif
