// Integer and bit instructions against host arithmetic.
#include "check.h"

template <class T> T div_ref(T a, T b)
{
    if (!b) return (T) ~(T)0;
    if (std::is_signed<T>::value && b == (T)-1) return (T)(0 - (std::make_unsigned_t<T>)a);
    return a / b;
}
template <class T> T rem_ref(T a, T b)
{
    if (!b) return a;
    if (std::is_signed<T>::value && b == (T)-1) return 0;
    return a % b;
}
static u32 reverse_bits(u32 v)
{
    u32 r = 0;
    for (int i = 0; i < 32; i++) r = r << 1 | (v >> i & 1);
    return r;
}
static u32 prmt_ref(u32 a, u32 b, u32 c)
{
    u8 bytes[8];
    memcpy(bytes, &a, 4);
    memcpy(bytes + 4, &b, 4);
    u32 r = 0;
    for (int i = 3; i >= 0; i--) {
        u32 s = c >> 4 * i & 15;
        u8 v = bytes[s & 7];
        if (s & 8) v = v & 0x80 ? 0xff : 0;
        r = r << 8 | v;
    }
    return r;
}
template <class T> T bfe_ref(T v, u32 pos, u32 len) // the loop of the PTX manual
{
    pos &= 255, len &= 255;
    int bits = 8 * sizeof(T);
    bool sign = std::is_signed<T>::value && len && (v >> std::min<int>(pos + len - 1, bits - 1) & 1);
    T d = 0;
    for (int i = 0; i < bits; i++) {
        bool bit = i < (int)len && (int)pos + i < bits ? (v >> (pos + i)) & 1 : sign;
        d |= (T)((std::make_unsigned_t<T>)bit << i);
    }
    return d;
}
template <class T> T bfi_ref(T f, T d, u32 pos, u32 len)
{
    pos &= 255, len &= 255;
    for (u32 i = 0; i < len && pos + i < 8 * sizeof(T); i++) {
        T m = (T)1 << (pos + i);
        d = (f >> i & 1) ? d | m : d & ~m;
    }
    return d;
}

static void arithmetic()
{
#define INT2(T, c, op, expr)                                                                                 \
    check2<T, T, T>(op, PTX2(op " %0,%1,%2;", T, c, T, c, T, c), [](T a, T b) -> T { return expr; })
#define INT3(T, c, op, expr)                                                                                 \
    check3<T, T, T, T>(op, PTX3(op " %0,%1,%2,%3;", T, c, T, c, T, c, T, c),                                 \
                       [](T a, T b, T x) -> T { return expr; })
    INT2(u32, "r", "add.u32", a + b);
    INT2(u64, "l", "add.u64", a + b);
    INT2(u16, "h", "add.u16", (u16)(a + b));
    INT2(u32, "r", "sub.u32", a - b);
    INT2(u64, "l", "sub.u64", a - b);
    INT2(u16, "h", "sub.u16", (u16)(a - b));
    INT2(u32, "r", "mul.lo.u32", a * b);
    INT2(u64, "l", "mul.lo.u64", a * b);
    INT2(u16, "h", "mul.lo.u16", (u16)((u32)a * b));
    INT2(u32, "r", "mul.hi.u32", (u32)((u64)a * b >> 32));
    INT2(s32, "r", "mul.hi.s32", (s32)((s64)a * b >> 32));
    INT2(u64, "l", "mul.hi.u64", (u64)((unsigned __int128)a * b >> 64));
    INT2(s64, "l", "mul.hi.s64", (s64)((__int128)a * b >> 64));
    INT3(u32, "r", "mad.lo.u32", a * b + x);
    INT3(u64, "l", "mad.lo.u64", a * b + x);
    INT3(u32, "r", "mad.hi.u32", (u32)((u64)a * b >> 32) + x);
    INT2(u32, "r", "div.u32", div_ref(a, b));
    INT2(s32, "r", "div.s32", div_ref(a, b));
    INT2(u64, "l", "div.u64", div_ref(a, b));
    INT2(s64, "l", "div.s64", div_ref(a, b));
    INT2(u32, "r", "rem.u32", rem_ref(a, b));
    INT2(s32, "r", "rem.s32", rem_ref(a, b));
    INT2(s64, "l", "rem.s64", rem_ref(a, b));
    INT2(u32, "r", "min.u32", std::min(a, b));
    INT2(s32, "r", "min.s32", std::min(a, b));
    INT2(s32, "r", "max.s32", std::max(a, b));
    INT2(u64, "l", "max.u64", std::max(a, b));
    INT2(s16, "h", "min.s16", std::min(a, b));
    INT3(s32, "r", "sad.s32", (s32)((u32)x + (a > b ? (u32)a - (u32)b : (u32)b - (u32)a)));
    INT2(s32, "r", "add.sat.s32", (s32)std::min<s64>(std::max<s64>((s64)a + b, INT32_MIN), INT32_MAX));
    INT2(s32, "r", "sub.sat.s32", (s32)std::min<s64>(std::max<s64>((s64)a - b, INT32_MIN), INT32_MAX));
    check1<s32, s32>("abs.s32", PTX1("abs.s32 %0,%1;", s32, "r", s32, "r"),
                     [](s32 a) { return (s32)(a < 0 ? 0u - (u32)a : (u32)a); });
    check1<s32, s32>("neg.s32", PTX1("neg.s32 %0,%1;", s32, "r", s32, "r"),
                     [](s32 a) { return (s32)(0u - (u32)a); });
    check2<u64, u32, u32>("mul.wide.u32", PTX2("mul.wide.u32 %0,%1,%2;", u64, "l", u32, "r", u32, "r"),
                          [](u32 a, u32 b) { return (u64)a * b; });
    check2<s64, s32, s32>("mul.wide.s32", PTX2("mul.wide.s32 %0,%1,%2;", s64, "l", s32, "r", s32, "r"),
                          [](s32 a, s32 b) { return (s64)a * b; });
    check2<s32, s16, s16>("mul.wide.s16", PTX2("mul.wide.s16 %0,%1,%2;", s32, "r", s16, "h", s16, "h"),
                          [](s16 a, s16 b) { return (s32)a * b; });
    check3<s64, s32, s32, s64>("mad.wide.s32",
                               PTX3("mad.wide.s32 %0,%1,%2,%3;", s64, "l", s32, "r", s32, "r", s64, "l"),
                               [](s32 a, s32 b, s64 c) { return (s64)((u64)((s64)a * b) + (u64)c); });
    check3<u32, u32, u32, u32>("dp4a.s32.u32",
                               PTX3("dp4a.s32.u32 %0,%1,%2,%3;", u32, "r", u32, "r", u32, "r", u32, "r"),
                               [](u32 a, u32 b, u32 c) {
                                   for (int k = 0; k < 4; k++)
                                       c += (u32)((int)(s8)(a >> 8 * k) * (int)(u8)(b >> 8 * k));
                                   return c;
                               });
    check3<u32, u32, u32, u32>("dp2a.hi.s32.s32",
                               PTX3("dp2a.hi.s32.s32 %0,%1,%2,%3;", u32, "r", u32, "r", u32, "r", u32, "r"),
                               [](u32 a, u32 b, u32 c) {
                                   for (int k = 0; k < 2; k++)
                                       c += (u32)((int)(s16)(a >> 16 * k) * (int)(s8)(b >> (16 + 8 * k)));
                                   return c;
                               });
    // 128-bit sum through the carry chain
    check3<u64, u64, u64, u64>(
        "add.cc/addc",
        [] __device__(u64 a, u64 b, u64 c) {
            u64 lo, hi;
            asm volatile("add.cc.u64 %0,%2,%3; addc.u64 %1,%4,%2;"
                         : "=&l"(lo), "=l"(hi)
                         : "l"(a), "l"(b), "l"(c));
            return lo ^ hi;
        },
        [](u64 a, u64 b, u64 c) {
            unsigned __int128 s = (unsigned __int128)a + b;
            return (u64)s ^ (u64)(c + a + (u64)(s >> 64));
        });
    check3<u32, u32, u32, u32>(
        "sub.cc/subc",
        [] __device__(u32 a, u32 b, u32 c) {
            u32 lo, hi;
            asm volatile("sub.cc.u32 %0,%2,%3; subc.u32 %1,%4,%2;"
                         : "=&r"(lo), "=r"(hi)
                         : "r"(a), "r"(b), "r"(c));
            return lo ^ hi;
        },
        [](u32 a, u32 b, u32 c) { return (a - b) ^ (c - a - (u32)(a < b)); });
    check3<u32, u32, u32, u32>(
        "mad.lo.cc/madc.hi",
        [] __device__(u32 a, u32 b, u32 c) {
            u32 lo, hi;
            asm volatile("mad.lo.cc.u32 %0,%2,%3,%4; madc.hi.u32 %1,%2,%3,0;"
                         : "=&r"(lo), "=r"(hi)
                         : "r"(a), "r"(b), "r"(c));
            return lo ^ hi;
        },
        [](u32 a, u32 b, u32 c) {
            u64 s = (u64)a * b + c;
            return (u32)s ^ (u32)(s >> 32);
        });
}

static void bits()
{
    INT2(u32, "r", "and.b32", a & b);
    INT2(u64, "l", "or.b64", a | b);
    INT2(u16, "h", "xor.b16", (u16)(a ^ b));
    check1<u32, u32>("not.b32", PTX1("not.b32 %0,%1;", u32, "r", u32, "r"), [](u32 a) { return ~a; });
    check1<u16, u16>("not.b16", PTX1("not.b16 %0,%1;", u16, "h", u16, "h"), [](u16 a) { return (u16)~a; });
    check1<u32, u32>("cnot.b32", PTX1("cnot.b32 %0,%1;", u32, "r", u32, "r"), [](u32 a) { return (u32)!a; });
    check2<u32, u32, u32>("shl.b32", PTX2("shl.b32 %0,%1,%2;", u32, "r", u32, "r", u32, "r"),
                          [](u32 a, u32 n) { return n > 31 ? 0 : a << n; });
    check2<u64, u64, u32>("shl.b64", PTX2("shl.b64 %0,%1,%2;", u64, "l", u64, "l", u32, "r"),
                          [](u64 a, u32 n) { return n > 63 ? 0 : a << n; });
    check2<u32, u32, u32>("shr.u32", PTX2("shr.u32 %0,%1,%2;", u32, "r", u32, "r", u32, "r"),
                          [](u32 a, u32 n) { return n > 31 ? 0 : a >> n; });
    check2<s32, s32, u32>("shr.s32", PTX2("shr.s32 %0,%1,%2;", s32, "r", s32, "r", u32, "r"),
                          [](s32 a, u32 n) { return a >> std::min(n, 31u); });
    check2<s64, s64, u32>("shr.s64", PTX2("shr.s64 %0,%1,%2;", s64, "l", s64, "l", u32, "r"),
                          [](s64 a, u32 n) { return a >> std::min(n, 63u); });
    check2<s16, s16, u32>("shr.s16", PTX2("shr.s16 %0,%1,%2;", s16, "h", s16, "h", u32, "r"),
                          [](s16 a, u32 n) { return (s16)(a >> std::min(n, 15u)); });
    INT3(u32, "r", "shf.l.wrap.b32", (u32)((((u64)b << 32 | a) << (x & 31)) >> 32));
    INT3(u32, "r", "shf.r.wrap.b32", (u32)(((u64)b << 32 | a) >> (x & 31)));
    INT3(u32, "r", "shf.l.clamp.b32", x >= 32 ? a : (u32)((((u64)b << 32 | a) << x) >> 32));
    INT3(u32, "r", "shf.r.clamp.b32", x >= 32 ? b : (u32)(((u64)b << 32 | a) >> x));
    check3<u32, u32, u32, u32>("lop3.b32 0x96",
                               PTX3("lop3.b32 %0,%1,%2,%3,0x96;", u32, "r", u32, "r", u32, "r", u32, "r"),
                               [](u32 a, u32 b, u32 c) { return a ^ b ^ c; });
    check3<u32, u32, u32, u32>("lop3.b32 0xe8",
                               PTX3("lop3.b32 %0,%1,%2,%3,0xe8;", u32, "r", u32, "r", u32, "r", u32, "r"),
                               [](u32 a, u32 b, u32 c) { return (a & b) | (a & c) | (b & c); });
    check3<u32, u32, u32, u32>(
        "lop3.b32 0x4a", PTX3("lop3.b32 %0,%1,%2,%3,0x4a;", u32, "r", u32, "r", u32, "r", u32, "r"),
        [](u32 a, u32 b, u32 c) { return (~a & ~b & c) | (~a & b & c) | (a & b & ~c); });
    check3<u32, u32, u32, u32>(
        "bfe.u32", PTX3("bfe.u32 %0,%1,%2,%3;", u32, "r", u32, "r", u32, "r", u32, "r"), bfe_ref<u32>);
    check3<s32, s32, u32, u32>(
        "bfe.s32", PTX3("bfe.s32 %0,%1,%2,%3;", s32, "r", s32, "r", u32, "r", u32, "r"), bfe_ref<s32>);
    check3<s64, s64, u32, u32>(
        "bfe.s64", PTX3("bfe.s64 %0,%1,%2,%3;", s64, "l", s64, "l", u32, "r", u32, "r"), bfe_ref<s64>);
    check3<u32, u32, u32, u32>("bfi.b32",
                               PTX3("bfi.b32 %0,%1,%2,%3,7;", u32, "r", u32, "r", u32, "r", u32, "r"),
                               [](u32 a, u32 b, u32 c) { return bfi_ref(a, b, c, 7); });
    check3<u64, u64, u64, u32>("bfi.b64",
                               PTX3("bfi.b64 %0,%1,%2,5,%3;", u64, "l", u64, "l", u64, "l", u32, "r"),
                               [](u64 a, u64 b, u32 c) { return bfi_ref(a, b, 5, c); });
    check1<u32, u32>("brev.b32", PTX1("brev.b32 %0,%1;", u32, "r", u32, "r"), reverse_bits);
    check1<u32, u32>("popc.b32", PTX1("popc.b32 %0,%1;", u32, "r", u32, "r"),
                     [](u32 a) { return (u32)__builtin_popcount(a); });
    check1<u32, u64>("popc.b64", PTX1("popc.b64 %0,%1;", u32, "r", u64, "l"),
                     [](u64 a) { return (u32)__builtin_popcountll(a); });
    check1<u32, u32>("clz.b32", PTX1("clz.b32 %0,%1;", u32, "r", u32, "r"),
                     [](u32 a) { return a ? (u32)__builtin_clz(a) : 32u; });
    check1<u32, u64>("clz.b64", PTX1("clz.b64 %0,%1;", u32, "r", u64, "l"),
                     [](u64 a) { return a ? (u32)__builtin_clzll(a) : 64u; });
    check1<u32, u32>("bfind.u32", PTX1("bfind.u32 %0,%1;", u32, "r", u32, "r"),
                     [](u32 a) { return a ? 31u - (u32)__builtin_clz(a) : ~0u; });
    check1<u32, s32>("bfind.s32", PTX1("bfind.s32 %0,%1;", u32, "r", s32, "r"), [](s32 a) {
        u32 v = a < 0 ? ~a : a;
        return v ? 31u - (u32)__builtin_clz(v) : ~0u;
    });
    check1<u32, u32>("bfind.shiftamt.u32", PTX1("bfind.shiftamt.u32 %0,%1;", u32, "r", u32, "r"),
                     [](u32 a) { return a ? (u32)__builtin_clz(a) : ~0u; });
    INT3(u32, "r", "prmt.b32", prmt_ref(a, b, x));
    INT3(u32, "r", "prmt.b32.f4e", (u32)(((u64)b << 32 | a) >> 8 * (x & 3)));
    INT3(u32, "r", "prmt.b32.rc8", (a >> 8 * (x & 3) & 255) * 0x01010101u);
    INT3(u32, "r", "prmt.b32.rc16", (a >> 16 * (x & 1) & 0xffff) * 0x00010001u);
    INT2(u32, "r", "bmsk.clamp.b32", a > 31 ? 0 : (b > 31 ? ~0u : (1u << b) - 1) << a);
}

static void compares()
{
#define SETP(T, c, cmp, type, expr)                                                                          \
    check2<u32, T, T>(                                                                                       \
        "setp." cmp "." type,                                                                                \
        [] __device__(T a, T b) {                                                                            \
            u32 d;                                                                                           \
            asm volatile("{ .reg .pred p, q; setp." cmp "." type                                             \
                         " p|q, %1, %2; selp.u32 %0, 1, 0, p; @q add.u32 %0, %0, 2; }"                       \
                         : "=r"(d)                                                                           \
                         : c(a), c(b));                                                                      \
            return d;                                                                                        \
        },                                                                                                   \
        [](T a, T b) { return (expr) ? 1u : 2u; })
    SETP(u32, "r", "lt", "u32", a < b);
    SETP(s32, "r", "lt", "s32", a < b);
    SETP(s32, "r", "ge", "s32", a >= b);
    SETP(u64, "l", "gt", "u64", a > b);
    SETP(s64, "l", "le", "s64", a <= b);
    SETP(u16, "h", "eq", "u16", a == b);
    SETP(s16, "h", "ne", "s16", a != b);
    SETP(float, "f", "lt", "f32", a < b);
    SETP(float, "f", "ltu", "f32", !(a >= b));
    SETP(float, "f", "ne", "f32", a<b || a> b);
    SETP(float, "f", "neu", "f32", a != b);
    SETP(float, "f", "equ", "f32", !(a < b || a > b));
    SETP(float, "f", "num", "f32", a == a && b == b);
    SETP(float, "f", "nan", "f32", a != a || b != b);
    SETP(double, "d", "gtu", "f64", !(a <= b));
    check3<u32, u32, u32, u32>(
        "setp.and",
        [] __device__(u32 a, u32 b, u32 c) {
            u32 d;
            asm volatile("{ .reg .pred p, q, r; setp.gt.u32 r, %3, 9; setp.lt.and.u32 p|q, %1, %2, r; "
                         "selp.u32 %0, 1, 0, p; @q add.u32 %0, %0, 2; @!r add.u32 %0, %0, 4; }"
                         : "=r"(d)
                         : "r"(a), "r"(b), "r"(c));
            return d;
        },
        [](u32 a, u32 b, u32 c) { return (u32)((a < b && c > 9) + 2 * (!(a < b) && c > 9) + 4 * (c <= 9)); });
    check2<u32, float, float>("set.gt.u32.f32",
                              PTX2("set.gt.u32.f32 %0,%1,%2;", u32, "r", float, "f", float, "f"),
                              [](float a, float b) { return a > b ? ~0u : 0u; });
    check3<u32, u32, u32, s32>("slct.u32.s32",
                               PTX3("slct.u32.s32 %0,%1,%2,%3;", u32, "r", u32, "r", u32, "r", s32, "r"),
                               [](u32 a, u32 b, s32 c) { return c >= 0 ? a : b; });
    check2<u64, u32, u32>("mov.b64 {}", PTX2("mov.b64 %0,{%1,%2};", u64, "l", u32, "r", u32, "r"),
                          [](u32 a, u32 b) { return (u64)b << 32 | a; });
    check1<u32, u64>("mov {}.b64", PTX1("{ .reg .b32 t; mov.b64 {t, %0}, %1; }", u32, "r", u64, "l"),
                     [](u64 a) { return (u32)(a >> 32); });
}

int main()
{
    arithmetic();
    bits();
    compares();
    return finish("integer");
}
