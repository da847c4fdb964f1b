// Function bodies of PTX: scoped registers, labels, local and shared objects, instructions with operands.
#include "lexer.h"
#include <cctype>
#include <unordered_map>

namespace emu {

Object parse_object(Lexer &lx);

namespace {

class BodyParser {
  public:
    BodyParser(const ModuleText &m, const FunctionText &f) : lx(m.text, f.body_begin, f.body_end)
    {
        scopes.emplace_back();
        body.param_bytes = align_up(f.param_bytes, 16);
    }

    Body run()
    {
        while (!lx.done()) statement();
        return std::move(body);
    }

  private:
    Lexer lx;
    Body body;
    std::vector<std::unordered_map<std::string, int>> scopes;
    u32 file = 0, line = 0;

    int lookup(const std::string &n)
    {
        for (size_t i = scopes.size(); i-- > 0;) {
            auto it = scopes[i].find(n);
            if (it != scopes[i].end()) return it->second;
        }
        return -1;
    }

    void statement()
    {
        if (lx.accept(';')) return;
        if (lx.accept('{')) {
            scopes.emplace_back();
            return;
        }
        if (lx.accept('}')) {
            if (scopes.size() < 2) lx.fail("unexpected '}'");
            scopes.pop_back();
            return;
        }
        char c = lx.peek();
        if (c == '.') return directive();
        if (c != '@') {
            size_t at = lx.pos;
            std::string w = lx.word();
            if (lx.peek() == ':' && lx.text.compare(lx.pos, 2, "::") != 0) {
                lx.pos++;
                return label(w);
            }
            lx.pos = at;
        }
        instruction();
    }

    void label(const std::string &name)
    {
        body.labels[name] = body.code.size();
        if (lx.accept_word(".branchtargets")) {
            auto &list = body.branch_tables[name];
            while (!lx.accept(';')) {
                list.push_back(lx.word());
                lx.accept(',');
            }
        } else if (lx.accept_word(".callprototype")) {
            lx.pos = lx.text.find(';', lx.pos) + 1;
        }
    }

    void directive()
    {
        std::string w = lx.word();
        if (w == ".loc") {
            file = lx.number();
            line = lx.number();
            lx.skip_line();
        } else if (w == ".pragma") {
            lx.pos = lx.text.find(';', lx.pos) + 1;
        } else if (w == ".reg") {
            registers();
        } else if (w == ".local") {
            declare(body.locals, body.local_bytes, 1);
        } else if (w == ".shared") {
            declare(body.shareds, body.shared_bytes, 1);
        } else if (w == ".param") {
            declare(body.params, body.param_bytes, 16);
        } else {
            lx.fail("unknown directive " + w);
        }
    }

    void declare(std::map<std::string, Object> &where, u64 &bytes, u64 min_align)
    {
        Object o = parse_object(lx);
        lx.expect(';');
        bytes = align_up(bytes, std::max(o.align, min_align));
        o.offset = bytes;
        bytes += o.bytes;
        where[o.name] =
            o; // call sequences reuse names such as param0; statements resolved before keep theirs
        if (&where == &body.params) renamed[o.name] = o.offset;
    }
    std::unordered_map<std::string, u64> renamed;

    void registers()
    {
        std::string w = lx.word();
        Ty t = type_named(w.substr(1));
        if (t == Ty::None) lx.fail("unknown register type " + w);
        while (!lx.accept(';')) {
            std::string n = lx.word();
            if (lx.accept('<')) {
                u64 count = lx.number();
                lx.expect('>');
                for (u64 i = 0; i < count; i++) add_register(n + std::to_string(i), t);
            } else {
                add_register(n, t);
            }
            lx.accept(',');
        }
    }
    void add_register(const std::string &n, Ty t)
    {
        scopes.back()[n] = body.regs.size();
        body.regs.push_back({t});
    }

    void instruction()
    {
        size_t begin = lx.pos;
        Statement s;
        s.file = file;
        s.line = line;
        if (lx.accept('@')) {
            s.guard_negated = lx.accept('!');
            s.guard = lookup(lx.word());
            if (s.guard < 0) lx.fail("unknown guard predicate");
        }
        std::string op = lx.opcode();
        if (op.empty()) lx.fail("expected an instruction");
        for (size_t b = 0; b <= op.size();) {
            size_t e = std::min(op.find('.', b), op.size());
            s.words.push_back(op.substr(b, e - b));
            b = e + 1;
        }
        while (!lx.accept(';')) {
            s.args.push_back(operand());
            lx.accept(',');
        }
        for (size_t i = begin; i < lx.pos; i++) {
            char c = lx.text[i] == '\n' || lx.text[i] == '\t' ? ' ' : lx.text[i];
            if (c != ' ' || (!s.text.empty() && s.text.back() != ' ')) s.text += c;
        }
        body.code.push_back(std::move(s));
    }

    Operand list(char close)
    {
        Operand o;
        o.kind = Operand::Vector;
        while (!lx.accept(close)) {
            o.parts.push_back(operand());
            lx.accept(',');
        }
        return o;
    }

    Operand operand()
    {
        Operand o;
        if (lx.accept('!')) {
            o = operand();
            o.negate = true;
            return o;
        }
        if (lx.accept('{')) return list('}');
        if (lx.accept('(')) return list(')');
        if (lx.accept('[')) {
            o.kind = Operand::Memory;
            o.parts.push_back(operand());
            if (o.parts[0].kind == Operand::Symbol) std::swap(o.imm, o.parts[0].imm);
            lx.accept('+');
            if (lx.number_follows()) o.imm += lx.number();
            lx.expect(']');
            return o;
        }
        if (lx.number_follows()) {
            o.kind = Operand::Imm;
            o.imm = lx.number();
            return o;
        }
        std::string w = lx.word();
        if (w.empty()) lx.fail("cannot read this operand");
        if (w == "_") {
            o.kind = Operand::Sink;
        } else if ((o.reg = lookup(w)) >= 0) {
            o.kind = Operand::Reg;
        } else if (w[0] == '%' || w == "WARP_SZ") {
            o.kind = Operand::Special;
            o.name = w;
        } else {
            o.kind = Operand::Symbol;
            o.name = w;
            auto it = renamed.find(w);
            if (it != renamed.end()) { // bind call-sequence parameters where they stand
                o.name = "%param";
                o.imm = it->second;
            }
            if (lx.peek() == '+') {
                lx.pos++;
                o.imm += lx.number();
            }
        }
        if (lx.peek() == '|') {
            lx.pos++;
            o.parts.push_back(operand());
        }
        return o;
    }
};

} // namespace

Body parse_body(const ModuleText &m, const FunctionText &f) { return BodyParser(m, f).run(); }

} // namespace emu
