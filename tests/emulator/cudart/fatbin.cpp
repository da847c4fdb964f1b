#include "fatbin.h"
#include <dlfcn.h>
#include <stdexcept>

namespace emu {

namespace {

// Layout found in the binaries of CUDA 11 to 13; only the fields in use are named.
struct Wrapper {
    u32 magic, version;
    const u8 *data;
    const void *unused;
};
struct Header {
    u32 magic;
    u16 version, header_bytes;
    u64 bytes;
};
struct Entry {
    u16 kind, unknown;
    u32 header_bytes;
    u64 bytes;
    u32 compressed_bytes, unknown2;
    u16 minor, major;
    u32 capability, name_offset, name_bytes;
    u64 flags, unknown3, raw_bytes;
};
constexpr u16 KIND_PTX = 1;
constexpr u64 FLAG_LZ4 = 0x2000, FLAG_ZSTD = 0x8000;
constexpr u32 WRAPPER_MAGIC = 0x466243b1, HEADER_MAGIC = 0xba55ed50;

// libzstd is on every Debian system, its header is not
std::string unzstd(const u8 *p, u64 n, u64 raw)
{
    using Decompress = size_t (*)(void *, size_t, const void *, size_t);
    using IsError = unsigned (*)(size_t);
    static void *lib = dlopen("libzstd.so.1", RTLD_NOW);
    auto decompress = lib ? (Decompress)dlsym(lib, "ZSTD_decompress") : nullptr;
    auto is_error = lib ? (IsError)dlsym(lib, "ZSTD_isError") : nullptr;
    if (!decompress || !is_error)
        throw std::runtime_error(
            "PTX is zstd-compressed and libzstd.so.1 is missing: install it, or build with "
            "nvcc --compress-mode=none");
    std::string s(raw, 0);
    size_t got = decompress(&s[0], raw, p, n);
    if (is_error(got)) throw std::runtime_error("PTX does not decompress (zstd)");
    s.resize(got);
    return s;
}

// LZ4 block format (lz4_Block_format.md of the LZ4 project)
std::string unlz4(const u8 *p, u64 n, u64 raw)
{
    std::string s;
    s.reserve(raw);
    const u8 *end = p + n;
    auto length = [&](u64 v) {
        if (v == 15)
            for (u8 b = 255; b == 255 && p < end;) v += b = *p++;
        return v;
    };
    while (p < end) {
        u8 token = *p++;
        u64 literals = length(token >> 4);
        if (literals > (u64)(end - p)) throw std::runtime_error("PTX does not decompress (lz4)");
        s.append((const char *)p, literals);
        p += literals;
        if (p + 2 > end) break;
        u64 offset = p[0] | p[1] << 8;
        p += 2;
        u64 match = length(token & 15) + 4;
        if (!offset || offset > s.size()) throw std::runtime_error("PTX does not decompress (lz4)");
        for (; match; match--) s += s[s.size() - offset];
    }
    return s;
}

} // namespace

std::vector<PtxEntry> fatbin_ptx(const void *wrapper)
{
    std::vector<PtxEntry> list;
    auto *w = (const Wrapper *)wrapper;
    if (w->magic != WRAPPER_MAGIC) throw std::runtime_error("not a fat binary");
    auto *h = (const Header *)w->data;
    if (h->magic != HEADER_MAGIC) throw std::runtime_error("fat binary of an unknown version");
    const u8 *p = w->data + h->header_bytes, *end = p + h->bytes;
    while (p < end) {
        Entry e;
        memcpy(&e, p, sizeof e);
        const u8 *body = p + e.header_bytes;
        if (e.kind == KIND_PTX) {
            std::string s;
            if (e.flags & FLAG_ZSTD) s = unzstd(body, e.compressed_bytes, e.raw_bytes + 1);
            else if (e.flags & FLAG_LZ4) s = unlz4(body, e.compressed_bytes, e.raw_bytes);
            else s.assign((const char *)body, e.bytes);
            list.push_back({(int)e.capability, s.c_str()}); // up to the terminating zero
        }
        p = body + e.bytes;
    }
    return list;
}

} // namespace emu
