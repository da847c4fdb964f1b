/* tensors.h - the safetensors files of a model folder, mapped and looked up by name.
 *
 * Opening maps every file but reads only its header; a tensor's bytes are touched when somebody reads through
 * the pointer, so a rank pays only for its own ranges. Everything in a header is checked against the file
 * before it can be used: header length, JSON, dtype, shape against byte range, ranges inside the file, no
 * overlaps, no duplicate names; an index file must name existing files and its tensors must be in them.
 * Refused: any dtype but BF16, F16, F32 for a tensor that is asked for. Format:
 * huggingface.co/docs/safetensors (8-byte length, JSON, data). */
#ifndef RETRO_TENSORS_H
#define RETRO_TENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/sha256.h"
#include "runtime/base/status.h"

#define TENSOR_DIMS_MAX 4

struct tensor {
    const char *name; /* owned by the set */
    const void *data; /* inside the mapping; may be unaligned for the element type: read through memcpy */
    enum dtype dtype; /* DTYPE_COUNT where the file's type is not one of ours */
    const char *dtype_text; /* as the file says it, "BF16"; static storage */
    int n_dims;
    int64_t shape[TENSOR_DIMS_MAX];
    size_t bytes;
    const char *file; /* which file, for messages; owned by the set */
};

struct tensors; /* opaque: maps, headers, name table */

/* Maps DIR/model.safetensors, or the files named by DIR/model.safetensors.index.json. Caller closes. */
enum status tensors_open(struct tensors **out, const char *dir, struct reason *why);
void tensors_close(struct tensors *t); /* NULL is fine */

int tensors_count(const struct tensors *t);
/* By file, then by place in it; for `retro info`. Pointers to tensors hold until the next tensors_add_header.
 */
const struct tensor *tensors_at(const struct tensors *t, int i);
/* NULL when there is none of that name. */
const struct tensor *tensors_find(const struct tensors *t, const char *name);
/* Looks up and checks the exact shape; the line names the tensor, what was found and what config.json
 * implies. */
enum status tensors_require(const struct tensors *t, const char *name, int n_dims, const int64_t *shape,
                            const struct tensor **out, struct reason *why);
/* Total bytes of all tensors. */
int64_t tensors_total_bytes(const struct tensors *t);
/* What names these weights: of every tensor its name, type, shape and a sample of its bytes (all of up to 64 KiB,
 * else 8 pieces of 4 KiB from the first to the last). Other training gives another digest; a change of single
 * elements between the pieces does not. Which file holds what does not matter. Reads 25 MiB of a model of 70B. */
void tensors_digest(const struct tensors *t, uint8_t digest[SHA256_BYTES]);
/* What the kernel should know of [data, data+bytes), as advice: it is read soon; it is not read again; of it
 * only pieces are read, so do not read around them. */
enum tensors_advice { TENSORS_SOON, TENSORS_DONE, TENSORS_PIECES };
void tensors_advise(const void *data, size_t bytes, enum tensors_advice advice);

/* One file's header, parsed and checked against `file_bytes`; the fuzz target. Adds to `t` made by
 * tensors_new(), or leaves it as it was. `map` stays the caller's and must outlive `t`. */
struct tensors *tensors_new(void);
enum status tensors_add_header(struct tensors *t, const char *file, const void *map, size_t file_bytes,
                               struct reason *why);

#endif
