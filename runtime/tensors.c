/* tensors.c - safetensors files: mapping, header checks, name lookup; see tensors.h.
 *
 * Per file: 8 bytes little-endian header length N, N bytes of JSON {"name": {"dtype", "shape",
 * "data_offsets"}}, then data. As the format demands, N is at most 100 MB, the header begins with '{', keys
 * are unique and the tensors cover the data without gap or overlap. Names are looked up by binary search in a
 * list sorted after every file: a hostile header cannot make it slow as it could a hash table. A file that is
 * cut after it was mapped ends the process with SIGBUS; nothing here can prevent that. */
#define _GNU_SOURCE
#include "runtime/tensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/die.h"
#include "runtime/fields.h"

#define HEADER_BYTES_MAX ((uint64_t)100000000) /* the format's own limit */
#define FILES_MAX 4096
#define PATH_BYTES 4096

struct part {           /* one file */
    char *file, *names; /* names: the text of every tensor name, one block */
    void *map;          /* NULL when the caller of tensors_add_header keeps it */
    size_t map_bytes;
};

struct tensors {
    struct part *parts;
    int n_parts;
    struct tensor *items;         /* by file, then by position */
    const struct tensor **sorted; /* the same by name */
    int n_items;
    int64_t total_bytes;
};

/* Every element type the format has; a folder may hold others than ours as long as nobody asks for them. */
static const struct {
    const char *name;
    int bits;
    enum dtype dtype; /* DTYPE_COUNT: not read here */
} element_types[] = {
    {"BF16", 16, DTYPE_BF16},        {"F16", 16, DTYPE_F16},      {"F32", 32, DTYPE_F32},
    {"F64", 64, DTYPE_COUNT},        {"I64", 64, DTYPE_COUNT},    {"U64", 64, DTYPE_COUNT},
    {"C64", 64, DTYPE_COUNT},        {"I32", 32, DTYPE_COUNT},    {"U32", 32, DTYPE_COUNT},
    {"I16", 16, DTYPE_COUNT},        {"U16", 16, DTYPE_COUNT},    {"I8", 8, DTYPE_COUNT},
    {"U8", 8, DTYPE_COUNT},          {"BOOL", 8, DTYPE_COUNT},    {"F8_E4M3", 8, DTYPE_COUNT},
    {"F8_E5M2", 8, DTYPE_COUNT},     {"F8_E8M0", 8, DTYPE_COUNT}, {"F8_E4M3FNUZ", 8, DTYPE_COUNT},
    {"F8_E5M2FNUZ", 8, DTYPE_COUNT}, {"F6_E2M3", 6, DTYPE_COUNT}, {"F6_E3M2", 6, DTYPE_COUNT},
    {"F4", 4, DTYPE_COUNT},
};

#define N_ELEMENT_TYPES ((int)(sizeof element_types / sizeof element_types[0]))

static void *grow(void *list, size_t n, size_t size)
{
    void *p = reallocarray(list, n ? n : 1, size);
    if (!p)
        DIE(EXIT_CODE_MEMORY, "free memory on this host", "no memory for %zu entries of a model's headers",
            n);
    return p;
}

static char *copy_text(const char *text)
{
    size_t bytes = strlen(text) + 1;
    return memcpy(grow(NULL, bytes, 1), text, bytes);
}

struct tensors *tensors_new(void)
{
    struct tensors *t = grow(NULL, 1, sizeof *t);
    *t = (struct tensors){0};
    return t;
}

void tensors_close(struct tensors *t)
{
    if (!t) return;
    for (int i = 0; i < t->n_parts; i++) {
        if (t->parts[i].map) munmap(t->parts[i].map, t->parts[i].map_bytes);
        free(t->parts[i].file);
        free(t->parts[i].names);
    }
    free(t->parts);
    free(t->items);
    free(t->sorted);
    free(t);
}

int tensors_count(const struct tensors *t) { return t->n_items; }

const struct tensor *tensors_at(const struct tensors *t, int i)
{
    ASSERT(i >= 0 && i < t->n_items);
    return &t->items[i];
}

int64_t tensors_total_bytes(const struct tensors *t) { return t->total_bytes; }

/* Whole files of 140 GB cannot be read at every start of a batch; pages from all over a tensor can. */
enum { DIGEST_WHOLE = 64 << 10, DIGEST_PIECE = 4096, DIGEST_PIECES = 8 };

static void digest_tensor(struct sha256 *hash, const struct tensor *x)
{
    const uint8_t *data = x->data;
    const int64_t bytes = (int64_t)x->bytes, n_dims = x->n_dims;
    sha256_update(hash, x->name, strlen(x->name) + 1);
    sha256_update(hash, x->dtype_text, strlen(x->dtype_text) + 1);
    sha256_update(hash, &n_dims, sizeof n_dims);
    sha256_update(hash, x->shape, (size_t)n_dims * sizeof *x->shape);
    sha256_update(hash, &bytes, sizeof bytes);
    if (x->bytes <= DIGEST_WHOLE) {
        sha256_update(hash, data, x->bytes);
        return;
    }
    for (size_t i = 0; i < DIGEST_PIECES; i++)
        sha256_update(hash, data + (x->bytes - DIGEST_PIECE) * i / (DIGEST_PIECES - 1), DIGEST_PIECE);
}

void tensors_digest(const struct tensors *t, uint8_t digest[SHA256_BYTES])
{
    struct sha256 hash;
    sha256_open(&hash);
    for (int i = 0; i < t->n_items; i++) digest_tensor(&hash, t->sorted[i]);
    sha256_digest(&hash, digest);
}

/* ---------------------------------------------------------------------------------------------- one header
 */

/* A header being read: `data_bytes` follow it in the file. */
struct header {
    const char *file;
    const unsigned char *data;
    size_t header_bytes, data_bytes; /* before `data`, from there on */
    struct reason *why;
};

static enum status refuse(const struct header *h, const char *name, const char *what)
{
    return status_fail(h->why, STATUS_BAD_MODEL, "%.200s: tensor %.120s: %s; fetch the file again", h->file,
                       name, what);
}

static enum status read_shape(struct tensor *t, const json_t *list, int64_t *n_elements,
                              const struct header *h)
{
    if (!json_is_array(list)) return refuse(h, t->name, "shape is not a list");
    if (json_array_size(list) > TENSOR_DIMS_MAX) return refuse(h, t->name, "has more than 4 dimensions");
    t->n_dims = (int)json_array_size(list);
    *n_elements = 1;
    for (int i = 0; i < t->n_dims; i++) {
        const json_t *size = json_array_get(list, (size_t)i);
        t->shape[i] = json_integer_value(size);
        if (!json_is_integer(size) || t->shape[i] < 0)
            return refuse(h, t->name, "shape holds something else than sizes");
        if (__builtin_mul_overflow(*n_elements, t->shape[i], n_elements))
            return refuse(h, t->name, "the product of its shape overflows");
    }
    return STATUS_OK;
}

static enum status read_entry(struct tensor *t, const json_t *entry, const struct header *h)
{
    const char *type = json_string_value(json_object_get(entry, "dtype"));
    const json_t *offsets = json_object_get(entry, "data_offsets");
    int64_t n_elements = 0, n_bits;
    if (!json_is_object(entry)) return refuse(h, t->name, "its entry is not an object");
    int k = 0;
    while (k < N_ELEMENT_TYPES && !(type && strcmp(type, element_types[k].name) == 0)) k++;
    if (k == N_ELEMENT_TYPES) return refuse(h, t->name, "dtype is missing or unknown");
    t->dtype = element_types[k].dtype;
    t->dtype_text = element_types[k].name;
    enum status status = read_shape(t, json_object_get(entry, "shape"), &n_elements, h);
    if (status != STATUS_OK) return status;
    if (__builtin_mul_overflow(n_elements, (int64_t)element_types[k].bits, &n_bits) || n_bits % 8 != 0)
        return refuse(h, t->name, "its size in bytes overflows or is no whole number");
    const json_t *first = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(end))
        return refuse(h, t->name, "data_offsets are not two integers");
    json_int_t from = json_integer_value(first), to = json_integer_value(end);
    if (from < 0 || to < from) return refuse(h, t->name, "data_offsets do not ascend from 0 up");
    if (to - from != n_bits / 8)
        return status_fail(h->why, STATUS_BAD_MODEL,
                           "%.200s: tensor %.120s: %lld bytes of %s do not hold its shape, %lld bytes do; "
                           "fetch the file again",
                           h->file, t->name, (long long)(to - from), type, (long long)(n_bits / 8));
    t->bytes = (size_t)(to - from);
    t->data =
        (const void *)(uintptr_t)from; /* an offset until check_layout() knows that it is inside the file */
    t->file = h->file;
    return STATUS_OK;
}

static int compare_place(const void *pa, const void *pb)
{
    const struct tensor *a = pa, *b = pb;
    uintptr_t x = (uintptr_t)a->data, y = (uintptr_t)b->data;
    if (x != y) return x < y ? -1 : 1;
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? -1 : 1; /* empty tensors first */
    return strcmp(a->name, b->name);
}

/* Sorts by place and turns offsets into pointers; the data must be covered from its first to its last byte,
 * each byte once. Only numbers are compared before the last check: no pointer outside the mapping is formed.
 */
static enum status check_layout(struct tensor *items, int n, const struct header *h)
{
    if (n) qsort(items, (size_t)n, sizeof *items, compare_place);
    uintptr_t next = 0;
    for (int i = 0; i < n; i++) {
        uintptr_t first = (uintptr_t)items[i].data;
        if (first < next) return refuse(h, items[i].name, "overlaps the tensor before it");
        if (first > next) return refuse(h, items[i].name, "leaves a gap behind the tensor before it");
        next = first + items[i].bytes;
    }
    if (next != h->data_bytes)
        return status_fail(h->why, STATUS_BAD_MODEL,
                           "%.200s: is %s: its header speaks of %zu bytes, it has %zu; %s", h->file,
                           next > h->data_bytes ? "cut short" : "too long", (size_t)(next + h->header_bytes),
                           h->data_bytes + h->header_bytes, "fetch it again");
    for (int i = 0; i < n; i++) items[i].data = h->data + (uintptr_t)items[i].data;
    return STATUS_OK;
}

static int compare_name(const void *pa, const void *pb)
{
    const struct tensor *const *a = pa, *const *b = pb;
    return strcmp((*a)->name, (*b)->name);
}

/* Rebuilds the name list over items[0..n); a name that two files claim is refused. */
static enum status sort_names(struct tensors *t, int n, const struct header *h)
{
    t->sorted = grow(t->sorted, (size_t)n, sizeof *t->sorted);
    for (int i = 0; i < n; i++) t->sorted[i] = &t->items[i];
    if (n) qsort(t->sorted, (size_t)n, sizeof *t->sorted, compare_name);
    for (int i = 1; i < n; i++) {
        const struct tensor *a = t->sorted[i - 1], *b = t->sorted[i];
        if (strcmp(a->name, b->name) == 0)
            return status_fail(h->why, STATUS_BAD_MODEL,
                               "%.200s: tensor %.120s is in %.120s too; remove one of the files", h->file,
                               a->name, a->file == h->file ? b->file : a->file);
    }
    return STATUS_OK;
}

/* Reads every entry of the header's JSON into items[n_items..]; names are copied into the part. */
static enum status read_entries(struct tensors *t, struct part *part, json_t *root, const struct header *h,
                                int *n_added)
{
    const char *name;
    json_t *entry;
    size_t n_names = 0, names_bytes = 0;
    *n_added = 0;
    json_object_foreach(root, name, entry)
    {
        n_names++;
        names_bytes += strlen(name) + 1;
    }
    if (n_names > (size_t)(INT32_MAX - t->n_items))
        return status_fail(h->why, STATUS_BAD_MODEL, "%.200s: too many tensors", h->file);
    t->items = grow(t->items, (size_t)t->n_items + n_names, sizeof *t->items);
    part->names = grow(NULL, names_bytes, 1);
    char *copy = part->names;
    json_object_foreach(root, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0) continue; /* free text for people */
        struct tensor *item = &t->items[t->n_items + *n_added];
        size_t bytes = strlen(name) + 1;
        *item = (struct tensor){.name = memcpy(copy, name, bytes)};
        copy += bytes;
        enum status status = read_entry(item, entry, h);
        if (status != STATUS_OK) return status;
        ++*n_added;
    }
    return check_layout(t->items + t->n_items, *n_added, h);
}

/* Checks the first 8 bytes and the JSON's place in the file. */
static enum status parse_header(json_t **root, struct header *h, const void *map, size_t file_bytes)
{
    const unsigned char *bytes = map;
    if (file_bytes < 10)
        return status_fail(h->why, STATUS_BAD_MODEL,
                           "%.200s: has %zu bytes, too short for a safetensors file; fetch it again", h->file,
                           file_bytes);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | bytes[i];
    if (n > HEADER_BYTES_MAX)
        return status_fail(h->why, STATUS_BAD_MODEL,
                           "%.200s: header of %" PRIu64 " bytes, at most %" PRIu64
                           " are allowed: not a safetensors file?",
                           h->file, n, HEADER_BYTES_MAX);
    if (n > file_bytes - 8)
        return status_fail(h->why, STATUS_BAD_MODEL,
                           "%.200s: is cut short: the header ends at byte %" PRIu64
                           ", the file has %zu; fetch it again",
                           h->file, n + 8, file_bytes);
    if (n < 2 || bytes[8] != '{')
        return status_fail(h->why, STATUS_BAD_MODEL,
                           "%.200s: header does not begin with '{': not a safetensors file?", h->file);
    h->data = bytes + 8 + n;
    h->header_bytes = 8 + (size_t)n;
    h->data_bytes = file_bytes - h->header_bytes;
    return fields_parse(root, (const char *)bytes + 8, (size_t)n, h->file, h->why);
}

enum status tensors_add_header(struct tensors *t, const char *file, const void *map, size_t file_bytes,
                               struct reason *why)
{
    json_t *root;
    struct part part = {.file = copy_text(file)};
    struct header h = {.file = part.file, .why = why};
    int n_added = 0;
    enum status status = parse_header(&root, &h, map, file_bytes);
    if (status == STATUS_OK) {
        status = read_entries(t, &part, root, &h, &n_added);
        json_decref(root);
    }
    if (status == STATUS_OK) status = sort_names(t, t->n_items + n_added, &h);
    if (status != STATUS_OK) {
        /* The set stays as it was, but `items` may have moved: the name list is made again. */
        sort_names(t, t->n_items, &h);
        free(part.file);
        free(part.names);
        return status;
    }
    t->parts = grow(t->parts, (size_t)t->n_parts + 1, sizeof *t->parts);
    t->parts[t->n_parts++] = part;
    for (int i = 0; i < n_added; i++) t->total_bytes += (int64_t)t->items[t->n_items + i].bytes;
    t->n_items += n_added;
    return STATUS_OK;
}

/* ---------------------------------------------------------------------------------------------- a folder */

static enum status map_file(struct tensors *t, const char *file, struct reason *why)
{
    struct stat st;
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO of that name must not hang us */
    if (fd < 0) return status_fail(why, STATUS_BAD_MODEL, "%.200s: %s", file, strerror(errno));
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        close(fd);
        return status_fail(why, STATUS_BAD_MODEL, "%.200s: is not a regular file", file);
    }
    size_t bytes = (size_t)st.st_size;
    void *map = bytes ? mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0) : NULL;
    int error = errno;
    close(fd);
    if (map == MAP_FAILED)
        return status_fail(why, STATUS_BAD_MODEL, "%.200s: cannot be mapped: %s", file, strerror(error));
    enum status status = tensors_add_header(t, file, map, bytes, why);
    if (status != STATUS_OK) {
        if (map) munmap(map, bytes);
        return status;
    }
    t->parts[t->n_parts - 1].map = map;
    t->parts[t->n_parts - 1].map_bytes = bytes;
    return STATUS_OK;
}

static int compare_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* A plain name: an index must not lead out of its folder. */
static bool is_plain_name(const char *name)
{
    return name[0] != '\0' && name[0] != '.' && !strchr(name, '/') && strlen(name) < 256;
}

/* Maps each file that the weight_map names, once, in the order of their names. */
static enum status map_indexed(struct tensors *t, const char *dir, const char *index, json_t *weight_map,
                               struct reason *why)
{
    const char *name, **files = NULL;
    json_t *value;
    size_t n = 0, n_unique = 0;
    enum status status = STATUS_OK;
    files = grow(NULL, json_object_size(weight_map), sizeof *files);
    json_object_foreach(weight_map, name, value)
    {
        const char *file = json_string_value(value);
        if (!file || !is_plain_name(file)) {
            char shown[72];
            fields_show(value, shown, sizeof shown);
            status = status_fail(
                why, STATUS_BAD_MODEL,
                "%.200s: weight_map: %.120s is in %s: needs the name of a file in the same folder", index,
                name, shown);
            break;
        }
        files[n++] = file;
    }
    if (n) qsort(files, n, sizeof *files, compare_text);
    for (size_t i = 0; i < n && status == STATUS_OK; i++) {
        char path[PATH_BYTES];
        if (i && strcmp(files[i], files[i - 1]) == 0) continue;
        if (++n_unique > FILES_MAX)
            status = status_fail(why, STATUS_BAD_MODEL, "%.200s: names more than %d files", index, FILES_MAX);
        else if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, files[i]) >= sizeof path)
            status = status_fail(why, STATUS_BAD_MODEL, "%.200s...: the folder's name is too long", dir);
        else status = map_file(t, path, why);
    }
    free(files);
    return status;
}

/* Each tensor of the index must be in the file that the index names. */
static enum status check_index(const struct tensors *t, const char *index, json_t *weight_map,
                               struct reason *why)
{
    const char *name;
    json_t *value;
    json_object_foreach(weight_map, name, value)
    {
        const struct tensor *found = tensors_find(t, name);
        const char *slash = found ? strrchr(found->file, '/') : NULL;
        if (!slash || strcmp(slash + 1, json_string_value(value)) != 0)
            return status_fail(why, STATUS_BAD_MODEL,
                               "%.200s: tensor %.120s is not in %.120s; fetch the folder again", index, name,
                               json_string_value(value));
    }
    return STATUS_OK;
}

static enum status open_index(struct tensors *t, const char *dir, const char *index, struct reason *why)
{
    json_t *root;
    enum status status = fields_load(&root, index, HEADER_BYTES_MAX, why);
    if (status != STATUS_OK) return status;
    json_t *weight_map = json_object_get(root, "weight_map");
    if (!json_is_object(weight_map) || json_object_size(weight_map) == 0)
        status = status_fail(why, STATUS_BAD_MODEL,
                             "%.200s: weight_map is missing or empty; fetch the file again", index);
    if (status == STATUS_OK) status = map_indexed(t, dir, index, weight_map, why);
    if (status == STATUS_OK) status = check_index(t, index, weight_map, why);
    json_decref(root);
    return status;
}

enum status tensors_open(struct tensors **out, const char *dir, struct reason *why)
{
    char file[PATH_BYTES];
    *out = NULL;
    if (strlen(dir) > PATH_BYTES - 64)
        return status_fail(why, STATUS_BAD_MODEL, "%.200s...: the folder's name is too long", dir);
    struct tensors *t = tensors_new();
    enum status status;
    snprintf(file, sizeof file, "%s/model.safetensors", dir);
    if (access(file, F_OK) == 0) {
        status = map_file(t, file, why);
    } else {
        snprintf(file, sizeof file, "%s/model.safetensors.index.json", dir);
        if (access(file, F_OK) == 0) status = open_index(t, dir, file, why);
        else
            status = status_fail(
                why, STATUS_BAD_MODEL,
                "%.300s: has neither model.safetensors nor model.safetensors.index.json; use a Hugging "
                "Face folder with safetensors files",
                dir);
    }
    if (status != STATUS_OK) {
        tensors_close(t);
        return status;
    }
    *out = t;
    return STATUS_OK;
}

/* ---------------------------------------------------------------------------------------------- looking up
 */

const struct tensor *tensors_find(const struct tensors *t, const char *name)
{
    int low = 0, high = t->n_items;
    while (low < high) {
        int middle = low + (high - low) / 2, order = strcmp(name, t->sorted[middle]->name);
        if (order == 0) return t->sorted[middle];
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

/* "[4096, 1024]" */
static void show_shape(char *text, size_t bytes, int n_dims, const int64_t *shape)
{
    size_t n = (size_t)snprintf(text, bytes, "[");
    for (int i = 0; i < n_dims && n < bytes; i++)
        n += (size_t)snprintf(text + n, bytes - n, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (n < bytes) snprintf(text + n, bytes - n, "]");
}

enum status tensors_require(const struct tensors *t, const char *name, int n_dims, const int64_t *shape,
                            const struct tensor **out, struct reason *why)
{
    char found_text[96], wanted_text[96];
    ASSERT(n_dims >= 0 && n_dims <= TENSOR_DIMS_MAX);
    *out = NULL;
    show_shape(wanted_text, sizeof wanted_text, n_dims, shape);
    const struct tensor *found = tensors_find(t, name);
    if (!found)
        return status_fail(why, STATUS_BAD_MODEL,
                           "%.200s: tensor %s %s is missing; config.json implies it: fetch the folder again",
                           t->n_parts ? t->parts[0].file : "model folder", name, wanted_text);
    bool same = found->n_dims == n_dims;
    for (int i = 0; same && i < n_dims; i++) same = found->shape[i] == shape[i];
    if (!same) {
        show_shape(found_text, sizeof found_text, found->n_dims, found->shape);
        return status_fail(
            why, STATUS_BAD_MODEL,
            "%.200s: tensor %s has shape %s, config.json implies %s: do the files belong together?",
            found->file, name, found_text, wanted_text);
    }
    if (found->dtype == DTYPE_COUNT)
        return status_fail(why, STATUS_BAD_MODEL,
                           "%.200s: tensor %s is %s; only BF16, F16 and F32 are read: convert it",
                           found->file, name, found->dtype_text);
    *out = found;
    return STATUS_OK;
}

void tensors_advise(const void *data, size_t bytes, enum tensors_advice advice)
{
    static const int flags[] = {
        [TENSORS_SOON] = MADV_WILLNEED, [TENSORS_DONE] = MADV_DONTNEED, [TENSORS_PIECES] = MADV_RANDOM};
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)data, end = first + bytes;
    if (bytes == 0) return;
    if (advice == TENSORS_DONE) { /* a page at the edge may belong to a neighbour too */
        first = (first + page - 1) / page * page;
        end = end / page * page;
    } else {
        first = first / page * page;
        end = (end + page - 1) / page * page;
    }
    /* Advice only: a refusal (a file system without read-ahead, say) changes nothing but speed. */
    if (end > first) madvise((void *)first, end - first, flags[advice]);
}
