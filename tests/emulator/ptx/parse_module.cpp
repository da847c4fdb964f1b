// Module scope of PTX: directives, variables with initialisers, function headers. Bodies are only delimited.
#include "lexer.h"
#include <cstdlib>

namespace emu {

Ty type_named(const std::string &n)
{
    static const std::map<std::string, Ty> names = {
        {"pred", Ty::Pred}, {"b8", Ty::B8},         {"b16", Ty::B16},    {"b32", Ty::B32},
        {"b64", Ty::B64},   {"b128", Ty::B128},     {"u8", Ty::U8},      {"u16", Ty::U16},
        {"u32", Ty::U32},   {"u64", Ty::U64},       {"s8", Ty::S8},      {"s16", Ty::S16},
        {"s32", Ty::S32},   {"s64", Ty::S64},       {"f16", Ty::F16},    {"f16x2", Ty::F16x2},
        {"bf16", Ty::BF16}, {"bf16x2", Ty::BF16x2}, {"f32", Ty::F32},    {"f64", Ty::F64},
        {"tf32", Ty::TF32}, {"u16x2", Ty::U16x2},   {"s16x2", Ty::S16x2}};
    auto it = names.find(n);
    return it == names.end() ? Ty::None : it->second;
}

// ".align 16 .b8 name[4][8]" after the state space word; leaves the cursor at '=', ',', ';' or ')'.
Object parse_object(Lexer &lx)
{
    Object o;
    u64 vec = 1, n = 1;
    o.align = 0;
    for (;;) {
        size_t at = lx.pos;
        std::string w = lx.word();
        if (w == ".align") {
            o.align = lx.number();
        } else if (w == ".v2" || w == ".v4") {
            vec = w[2] - '0';
        } else if (w == ".ptr" || w == ".global" || w == ".shared" || w == ".const" || w == ".local" ||
                   w == ".param") {
            continue;
        } else if (w.size() > 1 && w[0] == '.') {
            o.type = type_named(w.substr(1));
            if (o.type == Ty::None) lx.fail("unknown type " + w);
        } else if (w.empty()) {
            lx.fail("expected a name");
        } else {
            o.name = w;
            break;
        }
        if (lx.pos == at) lx.fail("cannot read this declaration");
    }
    while (lx.accept('[')) {
        n *= lx.number_follows() ? lx.number() : 0;
        lx.expect(']');
    }
    if (!o.align) o.align = type_bytes(o.type) * vec;
    o.bytes = type_bytes(o.type) * vec * n;
    return o;
}

static void parse_initializer(Lexer &lx, Variable &v, u64 &at)
{
    if (lx.accept('{')) {
        while (!lx.accept('}')) {
            parse_initializer(lx, v, at);
            lx.accept(',');
        }
        return;
    }
    int bytes = type_bytes(v.type);
    Initializer i{at, bytes, 0, ""};
    if (lx.number_follows()) {
        i.value = lx.number();
    } else {
        std::string w = lx.word();
        if (w == "generic") {
            lx.expect('(');
            w = lx.word();
            lx.expect(')');
        }
        if (w.empty()) lx.fail("cannot read this initialiser");
        i.symbol = w;
        if (lx.accept('+')) i.value = lx.number();
    }
    at += bytes;
    v.init.push_back(i);
}

// Parameter list at '('. Entries follow the C layout the launch uses; functions get 16-byte cells.
static std::vector<Object> parse_params(Lexer &lx, bool entry, u64 &bytes)
{
    std::vector<Object> list;
    lx.expect('(');
    while (!lx.accept(')')) {
        if (lx.word() != ".param") lx.fail("expected .param");
        Object o = parse_object(lx);
        bytes = align_up(bytes, entry ? o.align : 16);
        o.offset = bytes;
        bytes += o.bytes;
        list.push_back(o);
        lx.accept(',');
    }
    return list;
}

static void parse_function(Lexer &lx, ModuleText &m, bool entry)
{
    FunctionText f;
    f.entry = entry;
    if (lx.peek() == '(') f.results = parse_params(lx, entry, f.param_bytes);
    f.name = lx.word();
    if (f.name.empty()) lx.fail("expected a function name");
    if (lx.peek() == '(') f.params = parse_params(lx, entry, f.param_bytes);
    while (lx.peek() != '{' && lx.peek() != ';') {
        std::string w = lx.word();
        if (w.empty()) lx.fail("cannot read this function header");
        u32 n = 1;
        bool numbers = lx.number_follows();
        while (lx.number_follows()) {
            n *= lx.number();
            lx.accept(',');
        }
        if (numbers && (w == ".maxntid" || w == ".reqntid")) f.max_threads = n;
    }
    if (lx.peek() == '{') {
        f.defined = true;
        std::tie(f.body_begin, f.body_end) = lx.braces();
    } else {
        lx.expect(';');
    }
    auto &slot = m.functions[f.name];
    if (!slot.defined) slot = f;
}

static void parse_variable(Lexer &lx, ModuleText &m, Space space, bool external)
{
    Variable v;
    v.space = space;
    v.external = external;
    static_cast<Object &>(v) = parse_object(lx);
    if (lx.accept('=')) {
        u64 at = 0;
        parse_initializer(lx, v, at);
    }
    lx.expect(';');
    if (space == Space::Shared) m.shareds[v.name] = v;
    else m.variables.push_back(v);
}

std::unique_ptr<ModuleText> parse_module(std::string text)
{
    auto m = std::make_unique<ModuleText>();
    m->text = std::move(text);
    Lexer lx(m->text, 0, m->text.size());
    bool external = false;
    while (!lx.done()) {
        std::string w = lx.word();
        if (w == ".version" || w == ".target" || w == ".address_size") {
            lx.skip_line();
        } else if (w == ".file") {
            u32 n = lx.number();
            lx.expect('"');
            size_t e = lx.text.find('"', lx.pos);
            m->files[n] = lx.text.substr(lx.pos, e - lx.pos);
            lx.skip_line();
        } else if (w == ".section") {
            lx.word();
            lx.braces();
        } else if (w == ".pragma" || w == ".alias") {
            lx.pos = lx.text.find(';', lx.pos) + 1;
        } else if (w == ".visible" || w == ".weak" || w == ".common") {
            continue;
        } else if (w == ".extern") {
            external = true;
            continue;
        } else if (w == ".entry" || w == ".func") {
            parse_function(lx, *m, w == ".entry");
        } else if (w == ".global" || w == ".const" || w == ".shared") {
            parse_variable(lx, *m,
                           w == ".shared"  ? Space::Shared
                           : w == ".const" ? Space::Const
                                           : Space::Global,
                           external);
        } else {
            lx.fail("cannot parse");
        }
        external = false;
    }
    return m;
}

} // namespace emu
