// Operand resolution, frame layout, control flow and the kernel's closure over the functions it calls.
#include "decode.h"
#include "warp.h"
#include <set>

namespace emu {

std::vector<Ty> Decoder::types() const
{
    std::vector<Ty> r;
    for (size_t i = 1; i < st->words.size(); i++)
        if (Ty t = type_named(st->words[i]); t != Ty::None) r.push_back(t);
    return r;
}

const Operand &Decoder::arg(size_t i) const
{
    if (i >= st->args.size()) fail("operand missing");
    return st->args[i];
}

int Decoder::one_of(std::initializer_list<const char *> words) const
{
    int k = 0;
    for (const char *w : words) {
        k++;
        if (st->has(w)) return k;
    }
    return 0;
}

void Decoder::fail(const std::string &what) const
{
    throw PtxError(what + ": " + (st ? st->text : func.text->name));
}

u32 Decoder::new_slot(int width)
{
    func.frame_bytes = align_up(func.frame_bytes, 64);
    u32 s = func.frame_bytes;
    func.frame_bytes += LANES * width;
    return s;
}

u32 Decoder::scratch(int width)
{
    u32 &s = width == 8 ? sink8 : sink4;
    if (!s) s = new_slot(width);
    return s;
}

void Decoder::layout()
{
    auto &regs = func.body.regs;
    slots.resize(regs.size());
    u32 at = 4; // offset 0 is never a predicate, so that 0 can mean "absent"
    for (size_t i = 0; i < regs.size(); i++) {
        if (regs[i].type != Ty::Pred) continue;
        slots[i] = at;
        at += 4;
    }
    sink_pred = at;
    func.frame_bytes = at + 4;
    for (size_t i = 0; i < regs.size(); i++) {
        if (regs[i].type == Ty::Pred) continue;
        slots[i] = new_slot(type_bytes(regs[i].type) == 16 ? 16 : slot_width(regs[i].type));
    }
    func.reg_bytes = func.frame_bytes;
}

u32 Decoder::constant(u64 value, int width)
{
    if (width == 4) value = (u32)value;
    auto [it, fresh] = constant_slots.try_emplace({width, value}, 0);
    if (fresh) {
        it->second = new_slot(width);
        func.constants.push_back({Constant::Value, (u8)width, it->second, value});
    }
    return it->second;
}

// Address of a symbol as a constant. Shared, local and parameter addresses are offsets in their space; a
// plain mov of a kernel parameter's name gives a generic address, as ptxas does.
u32 Decoder::symbol(const Operand &o, int width)
{
    if (o.name == "%param") return constant(o.imm, width);
    auto &b = func.body;
    if (auto it = b.locals.find(o.name); it != b.locals.end())
        return constant(it->second.offset + o.imm, width);
    for (auto *list : {&func.text->params, &func.text->results})
        for (auto &p : *list)
            if (p.name == o.name) return constant(p.offset + o.imm, width);
    if (auto it = b.shareds.find(o.name); it != b.shareds.end()) {
        std::string key = func.text->name + "/" + o.name;
        auto [s, fresh] = kernel.shared_offset.try_emplace(key, 0);
        if (fresh) {
            s->second = align_up(kernel.shared_bytes, it->second.align);
            kernel.shared_bytes = s->second + it->second.bytes;
        }
        return constant(s->second + o.imm, width);
    }
    auto &m = *kernel.module;
    if (auto it = m.text.shareds.find(o.name); it != m.text.shareds.end()) {
        const Variable &v = it->second;
        if (v.external || !v.bytes) {
            kernel.uses_dynamic = true;
            kernel.dynamic_align = std::max<u64>(kernel.dynamic_align, v.align);
            auto [s, fresh] = dynamic_slots.try_emplace(o.imm << 1 | (width == 8), 0);
            if (fresh) {
                s->second = new_slot(width);
                func.constants.push_back({Constant::DynamicShared, (u8)width, s->second, o.imm});
            }
            return s->second;
        }
        auto [s, fresh] = kernel.shared_offset.try_emplace(o.name, 0);
        if (fresh) {
            s->second = align_up(kernel.shared_bytes, v.align);
            kernel.shared_bytes = s->second + v.bytes;
        }
        return constant(s->second + o.imm, width);
    }
    if (auto it = m.address.find(o.name); it != m.address.end()) return constant(it->second + o.imm, width);
    fail("unknown symbol " + o.name);
}

u32 Decoder::special(const std::string &n)
{
    static const std::map<std::string, Special> names = {{"%tid.x", Special::TidX},
                                                         {"%tid.y", Special::TidY},
                                                         {"%tid.z", Special::TidZ},
                                                         {"%ntid.x", Special::NtidX},
                                                         {"%ntid.y", Special::NtidY},
                                                         {"%ntid.z", Special::NtidZ},
                                                         {"%ctaid.x", Special::CtaidX},
                                                         {"%ctaid.y", Special::CtaidY},
                                                         {"%ctaid.z", Special::CtaidZ},
                                                         {"%nctaid.x", Special::NctaidX},
                                                         {"%nctaid.y", Special::NctaidY},
                                                         {"%nctaid.z", Special::NctaidZ},
                                                         {"%laneid", Special::LaneId},
                                                         {"%warpid", Special::WarpId},
                                                         {"%nwarpid", Special::NwarpId},
                                                         {"%lanemask_eq", Special::MaskEq},
                                                         {"%lanemask_lt", Special::MaskLt},
                                                         {"%lanemask_le", Special::MaskLe},
                                                         {"%lanemask_gt", Special::MaskGt},
                                                         {"%lanemask_ge", Special::MaskGe},
                                                         {"%smid", Special::SmId},
                                                         {"%nsmid", Special::NsmId},
                                                         {"%gridid", Special::GridId},
                                                         {"%dynamic_smem_size", Special::DynamicSharedBytes},
                                                         {"%total_smem_size", Special::TotalSharedBytes},
                                                         {"WARP_SZ", Special::WarpSize},
                                                         {"%clusterid.x", Special::CtaidX},
                                                         {"%clusterid.y", Special::CtaidY},
                                                         {"%clusterid.z", Special::CtaidZ},
                                                         {"%cluster_ctarank", Special::ClusterZero},
                                                         {"%cluster_nctarank", Special::ClusterOne},
                                                         {"%clock", Special::Clock},
                                                         {"%clock64", Special::Clock64},
                                                         {"%globaltimer", Special::GlobalTimer}};
    auto it = names.find(n);
    if (it == names.end()) fail("unknown special register " + n);
    if (it->second >= Special::Clock) fail("a clock can only be read by mov");
    auto [s, fresh] = special_slots.try_emplace(it->second, 0);
    if (fresh) {
        s->second = new_slot(4);
        func.specials.push_back({it->second, s->second});
    }
    return s->second;
}

u32 Decoder::source_any(const Operand &o, int preferred, int &width)
{
    width = preferred;
    switch (o.kind) {
    case Operand::Reg: {
        Ty t = func.body.regs[o.reg].type;
        if (t == Ty::Pred) fail("a predicate where a value belongs");
        width = slot_width(t);
        return slots[o.reg];
    }
    case Operand::Imm: return constant(o.imm, preferred);
    case Operand::Symbol: return symbol(o, preferred);
    case Operand::Special: width = 4; return special(o.name);
    default: fail("unexpected operand");
    }
}

u32 Decoder::source(const Operand &o, int width)
{
    int w;
    u32 s = source_any(o, width, w);
    if (w != width) fail("operand of the wrong width");
    return s;
}

u32 Decoder::dest_any(const Operand &o, int preferred, int &width)
{
    width = preferred;
    if (o.kind == Operand::Sink) return scratch(preferred);
    if (o.kind != Operand::Reg) fail("destination is not a register");
    Ty t = func.body.regs[o.reg].type;
    if (t == Ty::Pred) fail("destination is a predicate");
    width = slot_width(t);
    return slots[o.reg];
}

u32 Decoder::dest(const Operand &o, int width)
{
    int w;
    u32 s = dest_any(o, width, w);
    if (w != width) fail("destination of the wrong width");
    return s;
}

u32 Decoder::predicate(const Operand &o, bool &negate)
{
    negate = o.negate;
    if (o.kind == Operand::Imm) { // "1" for true: a constant mask lives in a 4-byte slot's first lane
        negate = false;
        return constant((o.imm != 0) != o.negate ? ALL_LANES : 0, 4);
    }
    if (o.kind != Operand::Reg || func.body.regs[o.reg].type != Ty::Pred) fail("expected a predicate");
    return slots[o.reg];
}

u32 Decoder::predicate_dest(const Operand &o)
{
    if (o.kind == Operand::Sink) return sink_pred;
    bool n;
    return predicate(o, n);
}

void Decoder::memory(const Operand &o, Inst &i)
{
    if (o.kind != Operand::Memory) fail("expected a memory operand");
    int w;
    i.a = source_any(o.parts[0], 8, w);
    i.wide = w == 8;
    i.imm = (s64)o.imm;
}

Space Decoder::space_word() const
{
    for (size_t i = 1; i < st->words.size(); i++) {
        std::string w = st->words[i].substr(0, st->words[i].find("::"));
        if (w == "global") return Space::Global;
        if (w == "shared") return Space::Shared;
        if (w == "local") return Space::Local;
        if (w == "param") return Space::Param;
        if (w == "const") return Space::Const;
    }
    return Space::Generic;
}

static void unsupported(Warp &w, const Inst &, u32 mask)
{
    w.fault(lowest_lane(mask), "instruction not covered by the emulator");
}

static Func *compile(Kernel &k, const FunctionText &t)
{
    auto &slot = k.functions[t.name];
    if (slot) return slot.get();
    slot = std::make_unique<Func>();
    Func *f = slot.get();
    f->text = &t;
    f->body = parse_body(k.module->text, t);
    Decoder d(k, *f);
    d.layout();
    d.run();
    return f;
}

// Branches, calls and barriers.
void Decoder::control(Inst &i)
{
    const std::string &op = st->words[0];
    if (op == "bra") {
        auto it = func.body.labels.find(arg(0).name);
        if (it == func.body.labels.end()) fail("unknown label");
        i.kind = Kind::Branch;
        i.target = it->second;
    } else if (op == "brx") {
        auto it = func.body.branch_tables.find(arg(1).name);
        if (it == func.body.branch_tables.end()) fail("unknown branch table");
        i.kind = Kind::BranchTable;
        i.a = source(arg(0), 4);
        i.target = func.tables.size();
        std::vector<u32> t;
        for (auto &l : it->second) t.push_back(func.body.labels.at(l));
        func.tables.push_back(t);
    } else if (op == "ret") {
        i.kind = Kind::Return;
    } else if (op == "exit") {
        i.kind = Kind::Exit;
    } else if (op == "call") {
        i.kind = Kind::Call;
        const Operand *results = nullptr, *params = nullptr, *callee = nullptr;
        for (auto &o : st->args) {
            if (o.kind != Operand::Vector) {
                if (!callee) callee = &o;
            } else {
                (callee ? params : results) = &o;
            }
        }
        if (!callee || callee->kind != Operand::Symbol) fail("indirect calls are not covered");
        auto t = kernel.module->text.functions.find(callee->name);
        if (t == kernel.module->text.functions.end()) fail("unknown function");
        // ext: number of arguments, their offsets in our parameter area, then the same for results
        i.ext = func.ext.size();
        std::vector<u32> e;
        for (auto *list : {params, results}) {
            e.push_back(list ? list->parts.size() : 0);
            if (list)
                for (auto &o : list->parts) e.push_back(o.imm);
        }
        func.ext.insert(func.ext.end(), e.begin(), e.end());
        const std::string &n = callee->name;
        if (t->second.defined) {
            i.target = func.callees.size();
            func.callees.push_back(compile(kernel, t->second));
        } else if (n == "vprintf" || n == "__assertfail") {
            i.sub = n == "vprintf" ? 1 : 2;
            kernel.order_matters = true;
        } else {
            fail("call to a function without a body");
        }
    } else { // bar, barrier
        i.kind = Kind::Barrier;
        bool red = has("red");
        i.sub = has("arrive") ? 1 : red ? 1 + one_of({"popc", "and", "or"}) : 0;
        size_t first = red ? 1 : 0, n = args() - (red ? 2 : 0);
        if (red) {
            if (i.sub == 2) i.d = dest(arg(0), 4);
            else i.d = predicate_dest(arg(0));
            i.e = predicate(arg(args() - 1), i.flag);
        }
        i.a = n > 0 ? source(arg(first), 4) : constant(0, 4);
        i.b = n > 1 ? source(arg(first + 1), 4) : 0;
    }
}

static bool is_register(const Operand &o, int reg) { return o.kind == Operand::Reg && o.reg == reg; }

// Keeps `products` true past the statement.
void Decoder::follow_products()
{
    auto overwrite = [&](const Operand &o) {
        if (o.kind != Operand::Reg) return;
        products.erase(o.reg);
        for (auto p = products.begin(); p != products.end();) {
            auto &factors = p->second->args;
            bool gone = is_register(factors[1], o.reg) || is_register(factors[2], o.reg);
            p = gone ? products.erase(p) : std::next(p);
        }
    };
    if (st->words[0] == "bra" || st->words[0] == "brx" || st->words[0] == "call") return products.clear();
    if (st->args.empty()) return;
    const Operand &to = arg(0);
    overwrite(to);
    for (auto &o : to.parts) overwrite(o);
    bool factor_kept = args() == 3 && !is_register(arg(1), to.reg) && !is_register(arg(2), to.reg);
    if (st->words[0] == "mul" && st->words.back() == "f32" && st->guard < 0 && factor_kept && !has("sat") &&
        !has("rn") && !one_of({"rz", "rm", "rp"}))
        products[to.reg] = st;
}

const Statement *Decoder::product(const Operand &o) const
{
    auto it = o.kind == Operand::Reg ? products.find(o.reg) : products.end();
    return it == products.end() ? nullptr : it->second;
}

void Decoder::run()
{
    func.param_bytes = align_up(func.body.param_bytes, 16);
    func.local_bytes = align_up(func.body.local_bytes, 16);
    auto &code = func.body.code;
    func.code.reserve(code.size() + 1);
    std::set<u32> labelled;
    for (auto &l : func.body.labels) labelled.insert(l.second);
    for (size_t k = 0; k < code.size(); k++) {
        st = &code[k];
        if (labelled.count(k)) products.clear();
        Inst i;
        i.source = k;
        if (st->guard >= 0) {
            i.guard = slots[st->guard] / 4;
            i.guard_negated = st->guard_negated;
        }
        const std::string &op = st->words[0];
        try {
            bool is_control = op == "bra" || op == "brx" || op == "ret" || op == "exit" || op == "call" ||
                              op == "barrier" || (op == "bar" && !has("warp"));
            if (is_control) control(i);
            else if (!decode_memory(*this, i) && !decode_move(*this, i) && !decode_bits(*this, i) &&
                     !decode_compare(*this, i) && !decode_convert(*this, i) && !decode_packed(*this, i) &&
                     !decode_float(*this, i) && !decode_int(*this, i) && !decode_math(*this, i) &&
                     !decode_atomic(*this, i) && !decode_collective(*this, i) && !decode_matrix(*this, i) &&
                     !decode_async(*this, i))
                throw PtxError("not covered");
        } catch (const PtxError &) {
            std::string full;
            for (auto &w : st->words) full += (full.empty() ? "" : ".") + w;
            kernel.uncovered.push_back(full);
            i.kind = Kind::Plain;
            i.fn = unsupported;
        }
        func.code.push_back(i);
        follow_products();
    }
    Inst end; // falling off the end returns
    end.kind = Kind::Return;
    end.source = code.empty() ? 0 : code.size() - 1;
    func.code.push_back(end);
    func.frame_bytes = align_up(func.frame_bytes, 64);
}

Kernel *LoadedModule::kernel(const std::string &name)
{
    auto &slot = kernels[name];
    if (slot) return slot.get();
    auto t = text.functions.find(name);
    if (t == text.functions.end() || !t->second.entry || !t->second.defined) return nullptr;
    slot = std::make_unique<Kernel>();
    slot->name = name;
    slot->module = this;
    slot->entry = compile(*slot, t->second);
    slot->shared_bytes = align_up(slot->shared_bytes, 16);
    u64 base = align_up(slot->shared_bytes, slot->dynamic_align);
    for (auto &f : slot->functions)
        for (auto &c : f.second->constants)
            if (c.from == Constant::DynamicShared) c.value += base;
    return slot.get();
}

std::string describe(const LoadedModule &m, const Func &f, const Inst &i)
{
    if (f.body.code.empty()) return "";
    const Statement &s = f.body.code[i.source];
    std::string r;
    if (s.line) {
        auto it = m.text.files.find(s.file);
        std::string n = it == m.text.files.end() ? "line" : it->second.substr(it->second.rfind('/') + 1);
        r = n + ":" + std::to_string(s.line) + ": ";
    }
    return r + s.text;
}

} // namespace emu
