// Templates that turn an element function into an instruction handler: operands are read from their slots as
// T.
#pragma once
#include "decode.h"
#include "warp.h"
#include <type_traits>

namespace emu {

// Lane type of the slot that holds a T.
template <class T> using SlotOf = std::conditional_t<sizeof(T) == 8, u64, u32>;

template <class T> inline T get(SlotOf<T> v)
{
    if constexpr (std::is_floating_point_v<T>) return bits_as<T>(v);
    else return (T)v;
}
template <class T> inline SlotOf<T> put(T v)
{
    if constexpr (std::is_floating_point_v<T>) return bits_as<SlotOf<T>>(v);
    else return (SlotOf<T>)(std::make_unsigned_t<T>)v;
}

template <class R, class A, class F> inline void map1(Warp &w, const Inst &i, u32 mask, F f)
{
    const auto *a = w.slot<SlotOf<A>>(i.a);
    write_lanes(w.slot<SlotOf<R>>(i.d), mask, [&](int l) { return put<R>(f(get<A>(a[l]))); });
}
template <class R, class A, class B, class F> inline void map2(Warp &w, const Inst &i, u32 mask, F f)
{
    const auto *a = w.slot<SlotOf<A>>(i.a);
    const auto *b = w.slot<SlotOf<B>>(i.b);
    write_lanes(w.slot<SlotOf<R>>(i.d), mask, [&](int l) { return put<R>(f(get<A>(a[l]), get<B>(b[l]))); });
}
template <class R, class A, class B, class C, class F> inline void map3(Warp &w, const Inst &i, u32 mask, F f)
{
    const auto *a = w.slot<SlotOf<A>>(i.a);
    const auto *b = w.slot<SlotOf<B>>(i.b);
    const auto *c = w.slot<SlotOf<C>>(i.c);
    write_lanes(w.slot<SlotOf<R>>(i.d), mask,
                [&](int l) { return put<R>(f(get<A>(a[l]), get<B>(b[l]), get<C>(c[l]))); });
}

// d, a[, b[, c]] of one width each.
inline void operands(Decoder &d, Inst &i, int dest_width, int width, int n, int last_width = 0)
{
    i.d = d.dest(d.arg(0), dest_width);
    i.a = d.source(d.arg(1), n == 1 && last_width ? last_width : width);
    if (n >= 2) i.b = d.source(d.arg(2), n == 2 && last_width ? last_width : width);
    if (n >= 3) i.c = d.source(d.arg(3), n == 3 && last_width ? last_width : width);
}

// Slots of a scalar or of a vector operand's elements, appended to Func::ext (i.ext, i.vec); 'width' becomes
// the lane bytes they share. Memory instructions use it for data operands.
void elements(Decoder &d, Inst &i, const Operand &o, int preferred, int &width, bool dest);

// Picks make<T>() for an integer type.
#define EMU_INT_HANDLER(type, make)                                                                          \
    ((type) == Ty::S16       ? make<s16>()                                                                   \
     : (type) == Ty::S32     ? make<s32>()                                                                   \
     : (type) == Ty::S64     ? make<s64>()                                                                   \
     : type_bytes(type) == 2 ? make<u16>()                                                                   \
     : type_bytes(type) == 8 ? make<u64>()                                                                   \
                             : make<u32>())

} // namespace emu
