#include "lexer.h"
#include <cctype>
#include <cstdlib>

namespace emu {

static bool word_char(char c) { return isalnum((u8)c) || c == '_' || c == '$' || c == '%' || c == '.'; }

void Lexer::skip_blanks()
{
    while (pos < end) {
        if (isspace((u8)text[pos])) {
            pos++;
        } else if (text[pos] == '/' && pos + 1 < end && text[pos + 1] == '/') {
            skip_line();
        } else if (text[pos] == '/' && pos + 1 < end && text[pos + 1] == '*') {
            size_t e = text.find("*/", pos + 2);
            pos = e == std::string::npos ? end : e + 2;
        } else {
            return;
        }
    }
}

void Lexer::skip_line()
{
    while (pos < end && text[pos] != '\n') pos++;
}

bool Lexer::accept_word(const char *w)
{
    skip_blanks();
    size_t n = strlen(w);
    if (pos + n > end || text.compare(pos, n, w) != 0) return false;
    if (pos + n < end && word_char(text[pos + n])) return false;
    pos += n;
    return true;
}

void Lexer::expect(char c)
{
    if (!accept(c)) fail(std::string("expected '") + c + "'");
}

std::string Lexer::word()
{
    skip_blanks();
    size_t b = pos;
    while (pos < end && word_char(text[pos])) pos++;
    return text.substr(b, pos - b);
}

std::string Lexer::opcode()
{
    skip_blanks();
    size_t b = pos;
    while (pos < end && (word_char(text[pos]) || text[pos] == ':')) pos++;
    return text.substr(b, pos - b);
}

bool Lexer::number_follows()
{
    char c = peek();
    if (isdigit((u8)c)) return true;
    return (c == '-' || c == '+') && pos + 1 < end && isdigit((u8)text[pos + 1]);
}

u64 Lexer::number()
{
    skip_blanks();
    bool minus = text[pos] == '-';
    if (minus || text[pos] == '+') pos++;
    const char *p = text.c_str() + pos;
    char *e;
    u64 v;
    if (p[0] == '0' && (p[1] == 'f' || p[1] == 'F' || p[1] == 'd' || p[1] == 'D'))
        v = strtoull(p + 2, &e, 16);
    else v = strtoull(p, &e, 0);
    if (e == p) fail("expected a number");
    pos += e - p;
    if (pos < end && (text[pos] == 'U' || text[pos] == 'u')) pos++;
    return minus ? 0 - v : v;
}

std::pair<size_t, size_t> Lexer::braces()
{
    expect('{');
    size_t b = pos;
    for (int depth = 1; pos < end;) {
        char c = text[pos];
        if (c == '"') {
            for (pos++; pos < end && text[pos] != '"'; pos++) {
            }
            pos++;
        } else if (c == '/' && pos + 1 < end && (text[pos + 1] == '/' || text[pos + 1] == '*')) {
            skip_blanks();
        } else {
            pos++;
            if (c == '{') depth++;
            if (c == '}' && --depth == 0) return {b, pos - 1};
        }
    }
    fail("a brace is never closed");
}

void Lexer::fail(const std::string &what)
{
    size_t line = 1;
    for (size_t i = 0; i < pos && i < text.size(); i++) line += text[i] == '\n';
    size_t b = text.rfind('\n', pos ? pos - 1 : 0);
    b = b == std::string::npos ? 0 : b + 1;
    size_t e = text.find('\n', pos);
    throw PtxError("PTX line " + std::to_string(line) + ": " + what + ": " +
                   text.substr(b, std::min<size_t>(e == std::string::npos ? 120 : e - b, 120)));
}

} // namespace emu
