/* rope.c - see rope.h. The arithmetic is f32 step by step, as in the published code of the families (torch
 * computes the table in float32 from scalars in double), so that positions far out turn by the same angles.
 * Sources: RoFormer (Su et al., 2104.09864), position interpolation (Chen et al., 2306.15595), YaRN (Peng et
 * al., 2309.00071, section 3.2 "NTK-by-parts" and 3.4), and the frequency bands published with Llama 3.1. */
#include "runtime/rope.h"

#include <math.h>
#include <string.h>

#include "runtime/base/die.h"

#define FACTOR_MIN 1e-3
#define FACTOR_MAX 1e6
#define CONTEXT_MAX (1 << 30)

static const char *const type_names[ROPE_TYPE_COUNT] = {"default", "linear", "llama3", "yarn"};

/* The one object that speaks about rope, or NULL; an empty object says nothing. */
static const json_t *find_object(struct fields *f, const char **name)
{
    static const char *const names[] = {"rope_parameters", "rope_scaling"};
    const json_t *found = NULL;
    for (int i = 0; i < 2; i++) {
        const json_t *value = fields_get(f, names[i]);
        if (!value) continue;
        if (!json_is_object(value)) {
            fields_fail(f, names[i], "needs an object or null; correct the file or fetch it again");
            return NULL;
        }
        if (json_object_size(value) == 0) continue;
        if (found && !json_equal(found, value)) {
            fields_fail(f, names[i], "contradicts %s; keep only one of the two", *name);
            return NULL;
        }
        found = value;
        *name = names[i];
    }
    return found;
}

static enum rope_type read_type(struct fields *r)
{
    const char *older = fields_string(r, "type", NULL), *newer = fields_string(r, "rope_type", NULL);
    if (older && newer && strcmp(older, newer) != 0) {
        fields_fail(r, "type", "contradicts rope_type; keep only one of the two");
        return ROPE_DEFAULT;
    }
    const char *name = newer ? newer : older ? older : "default";
    for (int t = 0; t < ROPE_TYPE_COUNT; t++)
        if (strcmp(name, type_names[t]) == 0) return (enum rope_type)t;
    fields_fail(r, newer ? "rope_type" : "type",
                "only default, linear, llama3 and yarn are computed; remove the "
                "scaling to run at the original length");
    return ROPE_DEFAULT;
}

/* Position of the old context length differs between writers: inside the object, or beside it. */
static int read_original_context(const struct arch *a, struct fields *f, struct fields *r)
{
    static const char name[] = "original_max_position_embeddings";
    int outside = fields_int(f, name, 0, 1, CONTEXT_MAX), inside = fields_int(r, name, 0, 1, CONTEXT_MAX);
    if (inside && outside && inside != outside)
        fields_fail(r, name, "the same field outside says %d", outside);
    return inside ? inside : outside ? outside : a->context;
}

static void read_llama3(struct rope_scaling *s, struct fields *r)
{
    static const char *const needed[] = {"factor", "low_freq_factor", "high_freq_factor"};
    for (int i = 0; i < 3; i++)
        if (!fields_get(r, needed[i]))
            fields_fail(r, needed[i], "rope type llama3 needs it; fetch the file again");
    s->factor = fields_number(r, "factor", 1, FACTOR_MIN, FACTOR_MAX);
    s->low_freq_factor = fields_number(r, "low_freq_factor", 1, FACTOR_MIN, FACTOR_MAX);
    s->high_freq_factor = fields_number(r, "high_freq_factor", 4, FACTOR_MIN, FACTOR_MAX);
    if (!(s->high_freq_factor - s->low_freq_factor >= FACTOR_MIN))
        fields_fail(r, "high_freq_factor", "needs to be greater than low_freq_factor (%g)",
                    s->low_freq_factor);
}

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

static void read_yarn(struct rope_scaling *s, const struct arch *a, struct fields *r)
{
    s->factor = fields_number(r, "factor", (double)a->context / s->original_context, FACTOR_MIN, FACTOR_MAX);
    s->beta_fast = fields_number(r, "beta_fast", 32, 0, FACTOR_MAX);
    s->beta_slow = fields_number(r, "beta_slow", 1, 0, FACTOR_MAX);
    if (s->beta_fast == 0) s->beta_fast = 32; /* the published code takes 0 for "not told" */
    if (s->beta_slow == 0) s->beta_slow = 1;
    if (s->beta_fast < FACTOR_MIN)
        fields_fail(r, "beta_fast", "needs a number from %g to %g", FACTOR_MIN, FACTOR_MAX);
    if (s->beta_slow < FACTOR_MIN)
        fields_fail(r, "beta_slow", "needs a number from %g to %g", FACTOR_MIN, FACTOR_MAX);
    s->truncate = fields_bool(r, "truncate", true);
    double mscale = fields_number(r, "mscale", 0, 0, 1e3);
    double mscale_all_dim = fields_number(r, "mscale_all_dim", 0, 0, 1e3);
    double told = fields_number(r, "attention_factor", 0, FACTOR_MIN, FACTOR_MAX);
    if (told > 0) s->attention_factor = told;
    else if (mscale > 0 && mscale_all_dim > 0)
        s->attention_factor = yarn_mscale(s->factor, mscale) / yarn_mscale(s->factor, mscale_all_dim);
    else s->attention_factor = yarn_mscale(s->factor, 1);
}

void rope_read(struct arch *a, struct fields *f)
{
    const char *name = NULL;
    const json_t *object = find_object(f, &name);
    a->rope = (struct rope_scaling){.type = ROPE_DEFAULT, .factor = 1, .attention_factor = 1};
    a->rope_theta = fields_number(f, "rope_theta", 10000, 1.001, 1e15);
    if (!object || f->status != STATUS_OK) return;
    char path[32] = "";
    strncat(path, name, 20);
    strcat(path, ".");
    struct fields r = {.object = object, .file = f->file, .path = path, .why = f->why};
    if (json_is_object(json_object_get(object, "full_attention")) ||
        json_is_object(json_object_get(object, "sliding_attention")))
        fields_fail(f, name, "parameters that differ by layer are not computed");
    double partial = fields_number(&r, "partial_rotary_factor", 1, 0, 1);
    if (partial != 1) fields_fail(&r, "partial_rotary_factor", "only 1 is computed: every dimension turns");
    a->rope_theta = fields_number(&r, "rope_theta", a->rope_theta, 1.001, 1e15);
    a->rope.type = read_type(&r);
    switch (a->rope.type) {
    case ROPE_LINEAR:
        if (!fields_get(&r, "factor"))
            fields_fail(&r, "factor", "rope type linear needs it; fetch the file again");
        a->rope.factor = fields_number(&r, "factor", 1, FACTOR_MIN, FACTOR_MAX);
        break;
    case ROPE_LLAMA3:
        a->rope.original_context = read_original_context(a, f, &r);
        read_llama3(&a->rope, &r);
        break;
    case ROPE_YARN:
        a->rope.original_context = read_original_context(a, f, &r);
        read_yarn(&a->rope, a, &r);
        break;
    case ROPE_DEFAULT:
    case ROPE_TYPE_COUNT: break;
    }
    if (f->status == STATUS_OK) f->status = r.status;
}

/* Slow waves (longer than the old context) are stretched by the factor, fast ones stay, a linear blend
 * between. */
static void scale_llama3(const struct rope_scaling *r, int n, float *inv_freq)
{
    double old = r->original_context, low = r->low_freq_factor, high = r->high_freq_factor;
    float longest_kept = (float)(old / high), shortest_scaled = (float)(old / low), factor = (float)r->factor;
    for (int i = 0; i < n; i++) {
        float f = inv_freq[i], wavelength = (float)(2 * M_PI) / f;
        if (wavelength > shortest_scaled) {
            inv_freq[i] = f / factor;
        } else if (!(wavelength < longest_kept)) {
            float smooth = ((float)old / wavelength - (float)low) / (float)(high - low);
            inv_freq[i] = (1 - smooth) * f / factor + smooth * f;
        }
    }
}

/* The (fractional) dimension whose wave turns `rotations` times within the old context; YaRN, equation 17 ff.
 */
static double yarn_dimension(double rotations, int head_dim, double theta, int old_context)
{
    return head_dim * log(old_context / (rotations * 2 * M_PI)) / (2 * log(theta));
}

static void scale_yarn(const struct rope_scaling *r, double theta, int head_dim, float *inv_freq)
{
    double low = yarn_dimension(r->beta_fast, head_dim, theta, r->original_context);
    double high = yarn_dimension(r->beta_slow, head_dim, theta, r->original_context);
    if (r->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, head_dim - 1);
    if (low == high) high += 0.001; /* the published code's guard against a division by zero */
    for (int i = 0; i < head_dim / 2; i++) {
        float pos_freq = powf((float)theta, (float)(2 * i) / (float)head_dim);
        float ramp = ((float)i - (float)low) / (float)(high - low);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        float keep = 1 - ramp;
        inv_freq[i] = 1.0f / ((float)r->factor * pos_freq) * (1 - keep) + 1.0f / pos_freq * keep;
    }
}

void rope_frequencies(const struct rope_scaling *r, double theta, int head_dim, float *inv_freq,
                      float *attention_factor)
{
    ASSERT(head_dim >= 2 && head_dim % 2 == 0);
    for (int i = 0; i < head_dim / 2; i++)
        inv_freq[i] = 1.0f / powf((float)theta, (float)(2 * i) / (float)head_dim);
    *attention_factor = 1;
    switch (r->type) {
    case ROPE_LINEAR:
        for (int i = 0; i < head_dim / 2; i++) inv_freq[i] /= (float)r->factor;
        break;
    case ROPE_LLAMA3: scale_llama3(r, head_dim / 2, inv_freq); break;
    case ROPE_YARN:
        scale_yarn(r, theta, head_dim, inv_freq);
        *attention_factor = (float)r->attention_factor;
        break;
    case ROPE_DEFAULT:
    case ROPE_TYPE_COUNT: break;
    }
}
