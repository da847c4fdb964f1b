// Matrix instructions: ldmatrix, stmatrix (m8n8, b16), mma m16n8k8 and m16n8k16 (f16, bf16, tf32; f32 or f16
// accumulators), m16n8k32 and m16n8k16 for 8-bit integers.
//
// Products are summed in f32 in ascending k, one rounding per step; hardware keeps more bits inside a step
// and sums in another order. Compare with a tolerance.
#include "lanes.h"
#include "numeric.h"

namespace emu {

namespace {

// sub bit 0 trans, bit 1 store; vec: number of matrices
void matrix_move(Warp &w, const Inst &i, u32 mask)
{
    const Func &f = *w.frame().func;
    bool trans = i.sub & 1, store = i.sub & 2;
    if (mask != ALL_LANES) w.fault(lowest_lane(mask), "ldmatrix or stmatrix with part of a warp");
    u8 *row[LANES] = {};
    u32 used = i.vec == 4 ? ALL_LANES : (1u << 8 * i.vec) - 1;
    resolve(w, i, used, 16, store ? Access::Write : Access::Read, row);
    for (int m = 0; m < i.vec; m++) {
        u32 *reg = w.slot<u32>(f.ext[i.ext + m]);
        for (int l = 0; l < LANES; l++) {
            u16 h[2] = {(u16)reg[l], (u16)(reg[l] >> 16)};
            for (int k = 0; k < 2; k++) {
                int r = trans ? (l % 4) * 2 + k : l / 4, c = trans ? l / 4 : (l % 4) * 2 + k;
                u8 *p = row[m * 8 + r] + 2 * c;
                if (store) memcpy(p, &h[k], 2);
                else memcpy(&h[k], p, 2);
            }
            if (!store) reg[l] = h[0] | (u32)h[1] << 16;
        }
    }
}

enum Element : u8 { F16, BF16, TF32, S8, U8 };

float widen(Element e, u32 word, int half)
{
    if (e == BF16) return bits_as<float>(half ? word & 0xffff0000u : word << 16);
    if (e == F16) return half_to_float((u16)(word >> 16 * half));
    return bits_as<float>(word & ~0x1fffu); // tf32 ignores the low 13 bits
}

// imm: K; sub: element type; vec: 1 for f16 accumulators. ext: slots of d, a, b, c in order.
void multiply(Warp &w, const Inst &i, u32 mask)
{
    if (mask != ALL_LANES) w.fault(lowest_lane(mask), "mma with part of a warp");
    const u32 *ext = &w.frame().func->ext[i.ext];
    bool half_acc = i.vec;
    Element e = (Element)i.sub;
    int k_total = (int)i.imm, per_reg = e == TF32 ? 1 : 2;
    int n_acc = half_acc ? 2 : 4, n_a = k_total * 16 / LANES / per_reg, n_b = k_total * 8 / LANES / per_reg;
    const u32 *rd = ext, *ra = rd + n_acc, *rb = ra + n_a, *rc = rb + n_b;
    alignas(64) float a[16][16], b[16][8], d[16][8];
    for (int r = 0; r < n_a; r++) {
        const u32 *v = w.slot<u32>(ra[r]);
        for (int l = 0; l < LANES; l++) {
            int row = l / 4 + 8 * (r & 1), t = l % 4;
            if (e == TF32) a[row][t + 4 * (r >> 1)] = widen(e, v[l], 0);
            else
                for (int h = 0; h < 2; h++) a[row][2 * t + h + 8 * (r >> 1)] = widen(e, v[l], h);
        }
    }
    for (int r = 0; r < n_b; r++) {
        const u32 *v = w.slot<u32>(rb[r]);
        for (int l = 0; l < LANES; l++) {
            int col = l / 4, t = l % 4;
            if (e == TF32) b[t + 4 * r][col] = widen(e, v[l], 0);
            else
                for (int h = 0; h < 2; h++) b[2 * t + h + 8 * r][col] = widen(e, v[l], h);
        }
    }
    for (int r = 0; r < 4; r++) {
        const u32 *v = w.slot<u32>(rc[half_acc ? r / 2 : r]);
        for (int l = 0; l < LANES; l++) {
            float &x = d[l / 4 + 8 * (r / 2)][(l % 4) * 2 + (r & 1)];
            x = half_acc ? half_to_float((u16)(v[l] >> 16 * (r & 1))) : bits_as<float>(v[l]);
        }
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < k_total; k++)
            for (int c = 0; c < 8; c++) d[row][c] += a[row][k] * b[k][c];
    for (int r = 0; r < n_acc; r++) {
        u32 *v = w.slot<u32>(rd[r]);
        for (int l = 0; l < LANES; l++) {
            if (half_acc) {
                const float *x = &d[l / 4 + 8 * r][(l % 4) * 2];
                v[l] = float_to_half_nearest(x[0]) | (u32)float_to_half_nearest(x[1]) << 16;
            } else {
                v[l] = bits_as<u32>(d[l / 4 + 8 * (r / 2)][(l % 4) * 2 + (r & 1)]);
            }
        }
    }
}

// 8-bit integers, exact. sub bit 0: a signed, bit 1: b signed
void multiply_int(Warp &w, const Inst &i, u32 mask)
{
    if (mask != ALL_LANES) w.fault(lowest_lane(mask), "mma with part of a warp");
    const u32 *ext = &w.frame().func->ext[i.ext];
    int k_total = (int)i.imm, n_a = k_total * 16 / LANES / 4, n_b = k_total * 8 / LANES / 4;
    const u32 *rd = ext, *ra = rd + 4, *rb = ra + n_a, *rc = rb + n_b;
    s32 a[16][32], b[32][8];
    auto byte = [](u32 v, int k, bool sign) { return sign ? (s32)(s8)(v >> 8 * k) : (s32)(u8)(v >> 8 * k); };
    for (int l = 0; l < LANES; l++) {
        int g = l / 4, t = l % 4;
        for (int r = 0; r < n_a; r++)
            for (int k = 0; k < 4; k++)
                a[g + 8 * (r & 1)][4 * t + k + 16 * (r >> 1)] = byte(w.slot<u32>(ra[r])[l], k, i.sub & 1);
        for (int r = 0; r < n_b; r++)
            for (int k = 0; k < 4; k++) b[4 * t + k + 16 * r][g] = byte(w.slot<u32>(rb[r])[l], k, i.sub & 2);
    }
    u32 out[4][LANES];
    for (int l = 0; l < LANES; l++)
        for (int r = 0; r < 4; r++) {
            u32 s = w.slot<u32>(rc[r])[l];
            for (int k = 0; k < k_total; k++)
                s += (u32)(a[l / 4 + 8 * (r / 2)][k] * b[k][(l % 4) * 2 + (r & 1)]);
            out[r][l] = s;
        }
    for (int r = 0; r < 4; r++) memcpy(w.slot<u32>(rd[r]), out[r], sizeof out[r]);
}

void decode_mma(Decoder &d, Inst &i)
{
    auto t = d.types(); // d, a, b, c
    int k = d.has("m16n8k16") ? 16 : d.has("m16n8k8") ? 8 : d.has("m16n8k32") ? 32 : 0;
    if (!k || t.size() != 4 || d.has("sp") || !d.has("row") || !d.has("col")) d.fail("mma of this shape");
    bool ints = t[1] == Ty::S8 || t[1] == Ty::U8;
    int n_acc = 4, n_a, n_b;
    if (ints) {
        if (k == 8 || t[0] != Ty::S32 || d.has("satfinite")) d.fail("integer mma of this kind");
        i.sub = (t[1] == Ty::S8 ? 1 : 0) | (t[2] == Ty::S8 ? 2 : 0);
        n_a = k * 16 / LANES / 4, n_b = k * 8 / LANES / 4;
        i.fn = multiply_int;
    } else {
        i.sub = t[1] == Ty::F16 ? F16 : t[1] == Ty::BF16 ? BF16 : TF32;
        if (k == 32 || t[1] != t[2] || t[0] != t[3] ||
            (t[1] != Ty::F16 && t[1] != Ty::BF16 && t[1] != Ty::TF32))
            d.fail("mma of these types");
        if (t[1] == Ty::TF32 && k != 8) d.fail("tf32 mma other than m16n8k8");
        i.flag = t[0] == Ty::F16;
        if (i.flag && t[1] != Ty::F16) d.fail("f16 accumulators of another type");
        n_acc = i.flag ? 2 : 4;
        int per = t[1] == Ty::TF32 ? 1 : 2;
        n_a = k * 16 / LANES / per, n_b = k * 8 / LANES / per;
        i.fn = multiply;
    }
    i.imm = k;
    std::vector<u32> slots;
    int counts[] = {n_acc, n_a, n_b, n_acc};
    for (int q = 0; q < 4; q++) {
        const Operand &o = d.arg(q);
        size_t n = o.kind == Operand::Vector ? o.parts.size() : 1;
        if ((int)n != counts[q]) d.fail("mma with an unexpected number of registers");
        for (size_t x = 0; x < n; x++) {
            const Operand &r = o.kind == Operand::Vector ? o.parts[x] : o;
            slots.push_back(q ? d.source(r, 4) : d.dest(r, 4));
        }
    }
    i.ext = d.func.ext.size();
    d.func.ext.insert(d.func.ext.end(), slots.begin(), slots.end());
}

} // namespace

bool decode_matrix(Decoder &d, Inst &i)
{
    const std::string &op = d.st->words[0];
    bool ld = op == "ldmatrix", st = op == "stmatrix";
    if (!ld && !st && op != "mma") return false;
    i.kind = Kind::Collective;
    if (op == "mma") {
        // Inst::flag says "aligned: no member mask" to the interpreter loop, so f16 accumulators move to vec
        decode_mma(d, i);
        i.vec = i.flag;
        i.flag = true;
        return true;
    }
    if (!d.has("m8n8") || d.types().back() != Ty::B16) d.fail("matrix of this shape");
    i.space = d.space_word();
    if (i.space == Space::Generic) d.fail("ldmatrix without .shared");
    int width;
    elements(d, i, d.arg(ld ? 0 : 1), 4, width, ld);
    int want = d.has("x4") ? 4 : d.has("x2") ? 2 : 1;
    if (i.vec != want || width != 4) d.fail("unexpected registers");
    d.memory(d.arg(ld ? 1 : 0), i);
    i.sub = (d.has("trans") ? 1 : 0) | (st ? 2 : 0);
    i.flag = true;
    i.fn = matrix_move;
    return true;
}

} // namespace emu
