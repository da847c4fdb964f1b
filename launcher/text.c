#include "launcher/text.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"

enum status text_read_stream(FILE *f, const char *name, char **text, size_t *n, struct reason *why)
{
    size_t capacity = 65536, length = 0;
    char *bytes = malloc(capacity);
    while (bytes && (length += fread(bytes + length, 1, capacity - length - 1, f)) == capacity - 1) {
        capacity *= 2;
        char *more = realloc(bytes, capacity);
        if (!more) free(bytes);
        bytes = more;
    }
    if (!bytes) DIE(EXIT_CODE_MEMORY, NULL, "%s: no memory for its text", name);
    if (ferror(f)) {
        free(bytes);
        return status_fail(why, STATUS_IO, "%s: %s", name, strerror(errno));
    }
    bytes[length] = 0;
    *text = bytes;
    *n = length;
    return STATUS_OK;
}

enum status text_read_file(const char *path, char **text, size_t *n, struct reason *why)
{
    FILE *f = fopen(path, "rb");
    if (!f) return status_fail(why, STATUS_BAD_OPTION, "%s: %s", path, strerror(errno));
    enum status status = text_read_stream(f, path, text, n, why);
    fclose(f);
    return status;
}

enum status text_parse_ids(const char *text, size_t n, struct token_list *ids, struct reason *why)
{
    for (const char *at = text;;) {
        while (isspace((unsigned char)*at)) at++;
        if (at == text + n) return STATUS_OK; /* a NUL before is no blank */
        char *end;
        errno = 0;
        long v = strtol(at, &end, 10);
        if (end == at || (*end && !isspace((unsigned char)*end)) || errno || v < 0 || v > INT32_MAX)
            return status_fail(why, STATUS_BAD_INPUT, "entry %zu is not a token id: \"%.20s\"",
                               ids->n_ids + 1, at);
        token_list_push(ids, (int32_t)v);
        at = end;
    }
}
