/* wire.h - a step plan to bytes and back (comm/retro.proto, packed with protobuf-c).
 *
 * Unpacking trusts nothing: sizes, ids and ranges are checked against the limits, so a damaged frame or
 * recording is refused with one line and can never index out of bounds. */
#ifndef RETRO_WIRE_H
#define RETRO_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/step.h"

struct wire {       /* zero to begin with */
    uint8_t *bytes; /* the packed message; valid until the next pack */
    size_t n_bytes, capacity;
    void
        *scratch; /* what packing and unpacking need meanwhile; grows, so that later steps allocate nothing */
    size_t scratch_bytes;
};

void wire_close(struct wire *w);
void wire_pack_step(struct wire *w, const struct step *s);
/* Into a step opened with the limits to check against; with any other status than OK the step is not to be
 * used. */
enum status wire_unpack_step(struct wire *w, struct step *s, const void *bytes, size_t n_bytes,
                             struct reason *why);

#endif
