// Start-up registration by nvcc's code: fat binaries, kernels, variables; loading of PTX per device on first
// use.
#include "fatbin.h"
#include "runtime.h"
#include <map>

using namespace emu;

namespace {

struct Variable2 {
    struct Binary *binary;
    std::string name;
};

struct Binary {
    const void *wrapper;
    std::unique_ptr<ModuleText> text;
    std::unique_ptr<LoadedModule> loaded[MAX_DEVICES];
};

struct Registered {
    Binary *binary;
    std::string name;
    KernelLimits limits;
};

struct Registry {
    std::map<const void *, Registered> kernels;
    std::map<const void *, Variable2> variables;
};
Registry &registry()
{
    static Registry *r = new Registry;
    return *r;
}

struct Configuration {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};
thread_local std::vector<Configuration> configurations;

ModuleText *text_of(Binary &b)
{
    if (b.text) return b.text.get();
    try {
        auto list = fatbin_ptx(b.wrapper);
        const PtxEntry *best = nullptr;
        for (auto &e : list)
            if (e.capability <= device_capability() && (!best || e.capability > best->capability)) best = &e;
        if (!best) {
            complain("the program holds no PTX for compute_%d or below: build with -gencode "
                     "arch=compute_80,code=compute_80",
                     device_capability());
            return nullptr;
        }
        b.text = parse_module(best->text);
    } catch (const std::runtime_error &e) {
        complain("cannot load the program's PTX: %s", e.what());
    }
    return b.text.get();
}

// Places the module's variables in device memory and fills them.
LoadedModule *load(Binary &b, int device)
{
    auto &m = b.loaded[device];
    if (m) return m.get();
    ModuleText *text = text_of(b);
    if (!text) return nullptr;
    m = std::make_unique<LoadedModule>(*text);
    for (auto &v : text->variables) {
        u64 a = memory_alloc(device, std::max<u64>(v.bytes, 1));
        if (!a) {
            complain("no device memory left for variable %s", v.name.c_str());
            return nullptr;
        }
        memset(memory_find(a)->host(a), 0, v.bytes);
        memory_mark_written(a, v.bytes);
        m->address[v.name] = a;
    }
    for (auto &v : text->variables) {
        u64 a = m->address[v.name];
        for (auto &i : v.init) {
            u64 value = i.value;
            if (!i.symbol.empty()) {
                auto it = m->address.find(i.symbol);
                if (it == m->address.end()) {
                    complain("variable %s is initialised with the address of %s, which is not a variable",
                             v.name.c_str(), i.symbol.c_str());
                    continue;
                }
                value += it->second;
            }
            if (i.offset + i.bytes <= v.bytes) memcpy(memory_find(a)->host(a + i.offset), &value, i.bytes);
        }
    }
    return m.get();
}

} // namespace

namespace emu {

Kernel *find_kernel(const void *handle, int device)
{
    auto it = registry().kernels.find(handle);
    if (it == registry().kernels.end()) return nullptr;
    LoadedModule *m = load(*it->second.binary, device);
    if (!m) return nullptr;
    try {
        return m->kernel(it->second.name);
    } catch (const PtxError &e) {
        complain("cannot decode %s: %s", it->second.name.c_str(), e.what());
        return nullptr;
    }
}

const FunctionText *find_kernel_text(const void *handle)
{
    auto it = registry().kernels.find(handle);
    if (it == registry().kernels.end()) return nullptr;
    ModuleText *t = text_of(*it->second.binary);
    if (!t) return nullptr;
    auto f = t->functions.find(it->second.name);
    return f == t->functions.end() ? nullptr : &f->second;
}

KernelLimits &kernel_limits(const void *handle) { return registry().kernels[handle].limits; }

u64 find_variable(const void *handle, int device, u64 *bytes)
{
    auto it = registry().variables.find(handle);
    if (it == registry().variables.end()) return 0;
    LoadedModule *m = load(*it->second.binary, device);
    if (!m) return 0;
    auto a = m->address.find(it->second.name);
    if (a == m->address.end()) return 0;
    if (bytes) *bytes = memory_find(a->second)->bytes;
    return a->second;
}

} // namespace emu

EMU_API void **__cudaRegisterFatBinary(void *wrapper)
{
    Lock hold(runtime_lock());
    auto *b = new Binary;
    b->wrapper = wrapper;
    return (void **)b;
}
EMU_API void __cudaRegisterFatBinaryEnd(void **) {}
EMU_API void __cudaUnregisterFatBinary(void **) {
} // at exit: kernels may still be asked for by other destructors
EMU_API char __cudaInitModule(void **) { return 1; }

EMU_API void __cudaRegisterFunction(void **binary, const char *host, char *, const char *name, int, uint3 *,
                                    uint3 *, dim3 *, dim3 *, int *)
{
    Lock hold(runtime_lock());
    registry().kernels[host] = {(Binary *)binary, name, {}};
}
EMU_API void __cudaRegisterVar(void **binary, char *host, char *, const char *name, int, size_t, int, int)
{
    Lock hold(runtime_lock());
    registry().variables[host] = {(Binary *)binary, name};
}

EMU_API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream)
{
    configurations.push_back({grid, block, shared, stream});
    return 0;
}
EMU_API cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream)
{
    if (configurations.empty()) return result(cudaErrorMissingConfiguration);
    Configuration c = configurations.back();
    configurations.pop_back();
    *grid = c.grid;
    *block = c.block;
    *shared = c.shared;
    *(cudaStream_t *)stream = c.stream;
    return cudaSuccess;
}
EMU_API cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host)
{
    *kernel = (cudaKernel_t)host;
    return cudaSuccess;
}
