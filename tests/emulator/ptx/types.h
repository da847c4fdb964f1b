// Basic vocabulary of the PTX interpreter: integer names, PTX types, state spaces and lane masks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace emu {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

constexpr int LANES = 32;
constexpr u32 ALL_LANES = ~0u;

enum class Ty : u8 {
    None,
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    BF16,
    BF16x2,
    F32,
    F64,
    TF32,
    U16x2,
    S16x2
};

// PTX name without its dot ("f32") to type; Ty::None for every other word.
Ty type_named(const std::string &name);

inline int type_bytes(Ty t)
{
    switch (t) {
    case Ty::None: return 0;
    case Ty::Pred:
    case Ty::B8:
    case Ty::U8:
    case Ty::S8: return 1;
    case Ty::B16:
    case Ty::U16:
    case Ty::S16:
    case Ty::F16:
    case Ty::BF16: return 2;
    case Ty::B64:
    case Ty::U64:
    case Ty::S64:
    case Ty::F64: return 8;
    case Ty::B128: return 16;
    default: return 4;
    }
}

inline bool type_signed(Ty t) { return t == Ty::S8 || t == Ty::S16 || t == Ty::S32 || t == Ty::S64; }
inline bool type_packed(Ty t)
{
    return t == Ty::F16x2 || t == Ty::BF16x2 || t == Ty::U16x2 || t == Ty::S16x2;
}
inline bool type_float(Ty t)
{
    return t == Ty::F16 || t == Ty::F16x2 || t == Ty::BF16 || t == Ty::BF16x2 || t == Ty::F32 || t == Ty::F64;
}
// A packed type's element; the type itself otherwise.
inline Ty type_element(Ty t)
{
    switch (t) {
    case Ty::F16x2: return Ty::F16;
    case Ty::BF16x2: return Ty::BF16;
    case Ty::U16x2: return Ty::U16;
    case Ty::S16x2: return Ty::S16;
    default: return t;
    }
}

enum class Space : u8 { Generic, Global, Shared, Local, Param, Const };

// Generic addresses of the block-private spaces carry a tag in bits 56..63, so that neither the host nor
// another space can mistake them for a device pointer. Tag 0 is global memory (device or pinned host).
constexpr u64 TAG_SHIFT = 56;
constexpr u64 TAG_SHARED = 1, TAG_LOCAL = 2, TAG_PARAM = 3, TAG_FUNCTION = 4;
inline u64 address_tag(u64 a) { return a >> TAG_SHIFT; }
inline u64 address_untag(u64 a) { return a & ((1ull << TAG_SHIFT) - 1); }
inline u64 address_tagged(u64 tag, u64 offset) { return tag << TAG_SHIFT | offset; }

template <class To, class From> inline To bits_as(From v)
{
    static_assert(sizeof(To) == sizeof(From), "bits_as keeps the size");
    To t;
    memcpy(&t, &v, sizeof t);
    return t;
}

inline u64 align_up(u64 v, u64 a) { return (v + a - 1) / a * a; }
inline int lowest_lane(u32 mask) { return __builtin_ctz(mask); }
inline int count_lanes(u32 mask) { return __builtin_popcount(mask); }
// Calls f(lane) for every lane of the mask, lowest first.
template <class F> inline void each_lane(u32 mask, F f)
{
    for (; mask; mask &= mask - 1) f(lowest_lane(mask));
}

} // namespace emu
