/* batch_ids.c - open addressing with linear probing, at most half full. */
#include <stdlib.h>
#include <string.h>

#include "runtime/batch_input.h"

/* Its slot, or the free one where it belongs. */
static uint64_t *find(uint64_t (*slot)[2], size_t capacity, const uint64_t key[2])
{
    size_t i = key[0] & (capacity - 1);
    while ((slot[i][0] || slot[i][1]) && (slot[i][0] != key[0] || slot[i][1] != key[1]))
        i = (i + 1) & (capacity - 1);
    return slot[i];
}

static void grow(struct batch_ids *ids)
{
    size_t capacity = ids->capacity ? 2 * ids->capacity : 1024;
    uint64_t(*slot)[2] = buffer_zeroed(capacity, sizeof *slot);
    for (size_t i = 0; i < ids->capacity; i++)
        if (ids->slot[i][0] || ids->slot[i][1])
            memcpy(find(slot, capacity, ids->slot[i]), ids->slot[i], sizeof *slot);
    free(ids->slot);
    ids->slot = slot;
    ids->capacity = capacity;
}

bool batch_ids_add(struct batch_ids *ids, const char *custom_id)
{
    struct sha256 hash;
    uint8_t digest[SHA256_BYTES];
    uint64_t key[2];
    sha256_open(&hash);
    sha256_update(&hash, custom_id, strlen(custom_id));
    sha256_digest(&hash, digest);
    memcpy(key, digest, sizeof key);
    if (2 * ids->n_ids >= ids->capacity) grow(ids);
    uint64_t *at = find(ids->slot, ids->capacity, key);
    if (at[0] || at[1]) return false;
    memcpy(at, key, sizeof key);
    ids->n_ids++;
    return true;
}

void batch_ids_close(struct batch_ids *ids)
{
    free(ids->slot);
    *ids = (struct batch_ids){0};
}
