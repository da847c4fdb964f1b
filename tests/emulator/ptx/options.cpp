#include "options.h"
#include <algorithm>
#include <cstdlib>
#include <thread>

namespace emu {

u64 env_number(const char *name, u64 otherwise)
{
    const char *v = getenv(name);
    return v && *v ? strtoull(v, nullptr, 0) : otherwise;
}

u64 env_bytes(const char *name, u64 otherwise)
{
    const char *v = getenv(name);
    if (!v || !*v) return otherwise;
    char *e;
    double n = strtod(v, &e);
    int shift = *e == 'K' ? 10 : *e == 'M' ? 20 : *e == 'G' ? 30 : 0;
    return (u64)(n * (double)(1ull << shift));
}

static Options read_options()
{
    Options o;
    o.seed = env_number("EMU_SEED", 0);
    o.race = env_number("EMU_RACE", 0) >= 1;
    o.race_warp = env_number("EMU_RACE", 0) >= 2;
    o.uninit = env_number("EMU_UNINIT", 0) != 0;
    o.strict_barrier = env_number("EMU_STRICT_BARRIER", 1) != 0;
    o.verbose = env_number("EMU_VERBOSE", 0) != 0;
    const char *f = getenv("EMU_FAULT");
    o.fault_returns = f && std::string(f) == "return";
    if (const char *s = getenv("EMU_STATS")) o.stats = s;
    o.max_slices = env_number("EMU_MAX_SLICES", o.max_slices);
    // ranks of one MPI job share the cores
    u64 local = env_number("OMPI_COMM_WORLD_LOCAL_SIZE", 1);
    u64 cores = std::max(1u, std::thread::hardware_concurrency());
    o.threads = (int)env_number("EMU_THREADS", std::clamp<u64>(cores / std::max<u64>(1, local), 1, 8));
    return o;
}

const Options &options()
{
    static const Options o = read_options();
    return o;
}

Random::Random(u64 stream)
    : state((options().seed + 1) * 0x9E3779B97F4A7C15ull ^ (stream + 1) * 0xD1B54A32D192ED03ull)
{
    if (!state) state = 1;
    for (int i = 0; i < 4; i++) next();
}

u64 Random::next()
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (state * 0x2545F4914F6CDD1Dull) >> 8;
}

} // namespace emu
