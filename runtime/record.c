#include "runtime/record.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "retro.pb-c.h"
#include "runtime/base/crc32.h"
#include "runtime/base/die.h"

static const char magic[8] = {'R', 'E', 'T', 'R', 'O', 'R', 'E', 'C'};

#define RECORD_VERSION 3u
#define FRAME_MAX (64u << 20)

static uint32_t digest(const struct engine_output *o, int vocab)
{
    return o->logits ? crc32_of(o->logits, (size_t)vocab * sizeof(float))
           : o->top  ? crc32_of(o->top, TOP_K_MAX * sizeof *o->top)
                     : crc32_of(&o->best_logit, sizeof(float));
}

enum status record_create(struct recording *r, const char *path, const struct step_limits *limits,
                          struct reason *why)
{
    *r = (struct recording){.file = fopen(path, "wb"), .path = path};
    if (!r->file) return status_fail(why, STATUS_BAD_OPTION, "--record %s: %s", path, strerror(errno));
    uint32_t version = RECORD_VERSION;
    if (fwrite(magic, sizeof magic, 1, r->file) != 1 || fwrite(&version, sizeof version, 1, r->file) != 1 ||
        fwrite(limits, sizeof *limits, 1, r->file) != 1)
        r->status = STATUS_IO;
    return STATUS_OK;
}

void record_write(struct recording *r, const struct step *s, const struct engine_result *result)
{
    size_t n = (size_t)result->n_outputs;
    uint32_t *best = calloc(n + 1, sizeof *best), *crc = calloc(n + 1, sizeof *crc);
    if (!best || !crc) DIE(EXIT_CODE_MEMORY, NULL, "no memory to record a step");
    for (size_t i = 0; i < n; i++) {
        best[i] = (uint32_t)result->output[i].best;
        crc[i] = digest(&result->output[i], s->limits.vocab);
    }
    wire_pack_step(&r->wire, s);
    Retro__StepRecord message;
    retro__step_record__init(&message);
    message.step = (ProtobufCBinaryData){.len = r->wire.n_bytes, .data = r->wire.bytes};
    message.n_best = message.n_logits_crc = n;
    message.best = best;
    message.logits_crc = crc;
    uint32_t size = (uint32_t)retro__step_record__get_packed_size(&message);
    uint8_t *bytes = malloc(size);
    if (!bytes) DIE(EXIT_CODE_MEMORY, NULL, "no memory to record a step");
    retro__step_record__pack(&message, bytes);
    uint32_t crc_of_frame = crc32_of(bytes, size);
    if (fwrite(&size, sizeof size, 1, r->file) != 1 ||
        fwrite(&crc_of_frame, sizeof crc_of_frame, 1, r->file) != 1 ||
        fwrite(bytes, 1, size, r->file) != size)
        r->status = STATUS_IO;
    free(bytes);
    free(best);
    free(crc);
    r->n_steps++;
}

enum status record_close(struct recording *r, struct reason *why)
{
    int failed = r->file ? fclose(r->file) : 0;
    wire_close(&r->wire);
    r->file = NULL;
    if (failed || r->status != STATUS_OK)
        return status_fail(why, STATUS_IO, "--record %s: could not be written whole (disk full?)", r->path);
    return STATUS_OK;
}

static enum status read_head(FILE *f, const char *path, struct step_limits *limits, struct reason *why)
{
    char head[sizeof magic];
    uint32_t version;
    if (fread(head, sizeof head, 1, f) != 1 || memcmp(head, magic, sizeof magic) != 0 ||
        fread(&version, sizeof version, 1, f) != 1 || version != RECORD_VERSION ||
        fread(limits, sizeof *limits, 1, f) != 1)
        return status_fail(why, STATUS_BAD_INPUT, "--replay %s: not a recording made by this version", path);
    const int *field = (const int *)limits;
    for (size_t i = 0; i < sizeof *limits / sizeof *field; i++)
        if (field[i] < (i * sizeof *field < offsetof(struct step_limits, n_host_blocks)) ||
            field[i] > 1 << 28)
            return status_fail(why, STATUS_BAD_INPUT, "--replay %s: damaged header", path);
    return STATUS_OK;
}

enum status record_read_limits(const char *path, struct step_limits *limits, struct reason *why)
{
    FILE *f = fopen(path, "rb");
    if (!f) return status_fail(why, STATUS_BAD_OPTION, "--replay %s: %s", path, strerror(errno));
    enum status status = read_head(f, path, limits, why);
    fclose(f);
    return status;
}

enum status record_open(struct recording *r, const char *path, const struct step_limits *limits,
                        struct reason *why)
{
    struct step_limits stored;
    *r = (struct recording){.file = fopen(path, "rb"), .path = path};
    if (!r->file) return status_fail(why, STATUS_BAD_OPTION, "--replay %s: %s", path, strerror(errno));
    enum status status = read_head(r->file, path, &stored, why);
    if (status == STATUS_OK && (stored.vocab != limits->vocab || stored.n_layers != limits->n_layers ||
                                stored.block_tokens != limits->block_tokens))
        status = status_fail(
            why, STATUS_BAD_INPUT,
            "--replay %s: made with %d layers, vocabulary %d, --block-size %d; this run has %d, %d, %d", path,
            stored.n_layers, stored.vocab, stored.block_tokens, limits->n_layers, limits->vocab,
            limits->block_tokens);
    if (status == STATUS_OK && stored.window > limits->window)
        status = status_fail(why, STATUS_BAD_INPUT, "--replay %s: made with --window %d, this run has %d",
                             path, stored.window, limits->window);
    if (status == STATUS_OK && stored.max_rows > limits->max_rows)
        status = status_fail(why, STATUS_BAD_INPUT,
                             "--replay %s: made for steps of %d rows, this run has %d: raise --prefill-chunk",
                             path, stored.max_rows, limits->max_rows);
    if (status == STATUS_OK) return STATUS_OK;
    fclose(r->file);
    r->file = NULL;
    return status;
}

/* One frame; *end at the end of the file. */
static enum status read_frame(struct recording *r, Retro__StepRecord **out, bool *end, struct reason *why)
{
    uint32_t head[2]; /* length, CRC-32 */
    size_t got = fread(head, 1, sizeof head, r->file);
    *end = got == 0 && !ferror(r->file);
    *out = NULL;
    if (*end) return STATUS_OK;
    uint8_t *bytes = got == sizeof head && head[0] <= FRAME_MAX ? malloc(head[0] + 1) : NULL;
    if (bytes && fread(bytes, 1, head[0], r->file) == head[0] && crc32_of(bytes, head[0]) == head[1])
        *out = retro__step_record__unpack(NULL, head[0], bytes);
    free(bytes);
    if (*out) return STATUS_OK;
    return status_fail(why, STATUS_BAD_INPUT, "--replay %s: damaged or cut off at step %ld", r->path,
                       r->n_steps);
}

static bool same(const Retro__StepRecord *m, const struct engine_result *r, int vocab)
{
    if (m->n_best != (size_t)r->n_outputs || m->n_logits_crc != m->n_best) return false;
    for (size_t i = 0; i < m->n_best; i++)
        if (m->best[i] != (uint32_t)r->output[i].best || m->logits_crc[i] != digest(&r->output[i], vocab))
            return false;
    return true;
}

enum status record_replay(struct recording *r, struct engine *e, long *n_steps, long *n_differ,
                          long *first_differ, struct reason *why)
{
    struct step step;
    step_open(&step, engine_limits(e));
    int *n_set = calloc((size_t)step.limits.n_slots, sizeof *n_set); /* what the ranks will hold */
    if (!n_set) DIE(EXIT_CODE_MEMORY, NULL, "no memory to replay %s", r->path);
    *n_differ = 0;
    *first_differ = -1;
    enum status status = STATUS_OK;
    for (bool end = false; status == STATUS_OK;) {
        Retro__StepRecord *m;
        status = read_frame(r, &m, &end, why);
        if (status != STATUS_OK || end) break;
        status = wire_unpack_step(&r->wire, &step, m->step.data, m->step.len, why);
        if (status == STATUS_OK) status = step_continue(&step, n_set, why);
        if (status == STATUS_OK && step.n_rows > 0) {
            struct engine_result result;
            engine_step(e, &step, &result);
            if (!same(m, &result, step.limits.vocab)) {
                if (*first_differ < 0) *first_differ = r->n_steps;
                ++*n_differ;
            }
        }
        retro__step_record__free_unpacked(m, NULL);
        r->n_steps++;
    }
    *n_steps = r->n_steps;
    free(n_set);
    wire_close(&r->wire);
    step_close(&step);
    if (r->file) fclose(r->file);
    r->file = NULL;
    return status;
}
