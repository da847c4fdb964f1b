"""runtime/chat.h against Jinja: the rendered text equals what jinja2 makes of the template, for every family.

    pytest tests/runtime/chat_compare.py

The templates are the families' published formats in their shortest form (the system/user/assistant branches; tool
branches are cut down to what surrounds them) and SmolLM2's real one when scripts/fetch-model has made it. jinja2 runs
as Hugging Face runs it: trim_blocks and lstrip_blocks, raise_exception as a function. strftime_now is left undefined,
as docs and runtime/chat.h say.
"""
import functools
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import jinja2
import jinja2.sandbox
import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path(os.environ.get("RETRO_MODEL_DIR", ROOT / "models/SmolLM2-135M-Instruct"))
SOURCES = "chat chat_recognise chat_scan buffer utf8 fields tokenizer_config base/die base/status"

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' "
    "+ message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}")

QWEN25 = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\nYou may call one or more functions <tools></tools><|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

QWEN3 = r"""{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
            {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\nTHINK' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""

QWQ = r"""{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" and not message.tool_calls %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n<think>\n' }}
{%- endif %}
"""

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")

LLAMA31 = r"""{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{#- This block extracts the system message. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
LLAMA32 = LLAMA31.replace('    {%- set date_string = "26 Jul 2024" %}\n', '''    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
''')

ALTERNATE = ("{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must "
             "alternate user/assistant/user/assistant/...') }}{% endif %}")
MISTRAL_OLD = (
    "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}{{ '[INST] ' + "
    "message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_tokenEND}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")

MISTRAL = r"""{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate user/assistant") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.WHICH and system_message is defined %}
            {{- "OPEN" + system_message + "\n\n" + message["content"] + "CLOSE" }}
        {%- else %}
            {{- "OPEN" + message["content"] + "CLOSE" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- REPLY }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported") }}
    {%- endif %}
{%- endfor %}
"""


def mistral(which, begin, end, reply):
    return MISTRAL.replace("WHICH", which).replace("OPEN", begin).replace("CLOSE", end).replace("REPLY", reply)


LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}" + ALTERNATE + "{% if loop.index0 == 0 and system_message != false %}{% set "
    "content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = "
    "message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + "
    "' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}")

DEEPSEEK = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = "
    "namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
    "{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set "
    "ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and "
    "message['content'] is not none %}{%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message['content'] + "
    "'<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}{% if "
    "'</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + "
    "'<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}"
    "{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>THINK'}}{% endif %}")

TEMPLATES = {
    "smollm2": (SMOLLM2, "chatml"),
    "qwen2.5": (QWEN25, "chatml"),
    "qwen2.5-math": (QWEN25.replace("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
                                    "Please reason step by step, and put your final answer within \\\\boxed{}."),
                     "chatml"),
    "chatml": (SMOLLM2.replace(SMOLLM2[SMOLLM2.index("{% if loop.first"):SMOLLM2.index("{{'<|im_start|>' +")], ""),
               "chatml"),
    "qwen3": (QWEN3.replace("THINK", ""), "chatml"),
    "qwen3-thinking": (QWEN3.replace("THINK", r"<think>\n"), "chatml"),
    "qwq": (QWQ, "chatml"),
    "chatml-lines": (  # the new line behind <|im_end|> is the template's own, or a tag's
        "{% for message in messages %}\n{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'}}\n"
        "{% endfor %}\n{% if add_generation_prompt %}\n{{ '<|im_start|>assistant\\n' }}{% endif %}", "chatml"),
    "chatml-tags": (SMOLLM2.replace("'<|im_end|>' + '\n'}}", "'<|im_end|>'}}{{ '\n' }}"), "chatml"),
    "llama3": (LLAMA3, "llama3"),
    "llama3.1": (LLAMA31, "llama3"),
    "llama3.2": (LLAMA32, "llama3"),
    "mistral-v0.1": (MISTRAL_OLD.replace("END", " + ' '"), "mistral"),
    "mistral-v0.2": (MISTRAL_OLD.replace("END", ""), "mistral"),
    "mistral-v0.2-system": (mistral("first", " [INST] ", " [/INST]", '" " + message["content"] + eos_token'), "mistral"),
    "mistral-v0.3": (mistral("last", "[INST] ", "[/INST]", '" " + message["content"]|trim + eos_token'), "mistral"),
    "mistral-nemo": (mistral("last", "[INST]", "[/INST]", 'message["content"] + eos_token'), "mistral"),
    "llama2": (LLAMA2, "llama2"),
    "deepseek-r1": (DEEPSEEK.replace("THINK", "<think>\\n"), "deepseek-r1"),
    "deepseek-r1-first": (DEEPSEEK.replace("THINK", ""), "deepseek-r1"),
}
NAMES = {"chatml": ("<|im_start|>", "<|im_end|>"), "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
         "mistral": ("<s>", "</s>"), "llama2": ("<s>", "</s>"),
         "deepseek-r1": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")}


class Refused(Exception):
    pass


@functools.cache
def compiled(template):
    def raise_exception(text):
        raise Refused(text)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template)


def jinja(template, messages, bos, eos):
    return compiled(template).render(messages=messages, bos_token=bos, eos_token=eos, tools=None,
                                     add_generation_prompt=True)


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    ready = os.environ.get("RETRO_CHAT_TOOL")
    if ready:
        return ready
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    out = tmp_path_factory.mktemp("tool") / "chat_tool"
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "jansson"], check=True, capture_output=True,
                           text=True).stdout.split()
    sources = [str(ROOT / "runtime" / (name + ".c")) for name in SOURCES.split()]
    subprocess.run([compiler, "-std=gnu11", "-O1", "-g", f"-I{ROOT}", str(ROOT / "tests/tools/chat_tool.c"), *sources,
                    *flags, "-o", str(out)], check=True)
    return str(out)


class Tool:
    def __init__(self, program, folder):
        self.process = subprocess.Popen([program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, encoding="utf-8")
        self.format = self.process.stdout.readline().strip()

    def render(self, messages):
        self.process.stdin.write(json.dumps(messages) + "\n")
        self.process.stdin.flush()
        good, text = json.loads(self.process.stdout.readline())
        if not good:
            raise Refused(text)
        return text

    def close(self):
        error = self.process.communicate()[1]
        return self.process.returncode, error


def folder(path, template, bos, eos, form="config"):
    path.mkdir(exist_ok=True)
    config = {"model_max_length": 1000000000000000019884624838656, "bos_token": bos,
              "eos_token": {"__type": "AddedToken", "content": eos}}
    if form == "config":
        config["chat_template"] = template
    elif form == "list":
        config["chat_template"] = [{"name": "tool_use", "template": "{{ tools }}"},
                                   {"name": "default", "template": template}]
    elif form == "jinja":
        (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


CONTENTS = ["Hello", "  padded\n\t", "", "\n", "two\n\nlines\n", "don't 'quote' \"this\" \\n", "日本 😀 é\u00a0", "\x1cfs\x1f",
            "<think>\nhmm\n</think>\n\nanswer", "<think></think>x", "a</think>b</think>\n\nc", "\n<think>\n\nq\n</think>",
            "</think>", "<think>open", "<tool_response>\n5\n</tool_response>", "<|im_end|>\n<|im_start|>system", "[INST] [/INST]"]


def conversations(rng):
    def say(role):
        return {"role": role, "content": rng.choice(CONTENTS)}
    yield [{"role": "user", "content": "Hello"}]
    yield [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    yield [{"role": "system", "content": "Be brief."}]
    for _ in range(400):
        messages = [say("system")] if rng.random() < 0.5 else []
        for turn in range(rng.randint(1, 6)):
            messages.append(say("assistant" if turn % 2 else "user"))
        yield messages
    for _ in range(200):
        yield [say(rng.choice(["system", "user", "assistant"])) for _ in range(rng.randint(1, 7))]


@pytest.mark.parametrize("form", ["config", "list", "jinja"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_rendered_text(name, form, program, tmp_path):
    template, family = TEMPLATES[name]
    bos, eos = NAMES[family]
    tool = Tool(program, folder(tmp_path / "model", template, bos, eos, form))
    assert tool.format == family, tool.close()
    n_refused = n_equal = 0
    for messages in conversations(random.Random(name)):
        if family == "llama2" and any(m["role"] == "system" for m in messages[1:]):
            with pytest.raises(Refused):  # the template drops such a message without a word
                tool.render(messages)
            continue
        try:
            want = jinja(template, messages, bos, eos)
        except Refused:
            with pytest.raises(Refused):
                tool.render(messages)
            n_refused += 1
            continue
        assert tool.render(messages) == want, messages
        n_equal += 1
    assert n_equal > 100
    assert tool.close() == (0, "")


@pytest.mark.skipif(not (MODEL / "tokenizer_config.json").exists(), reason="scripts/fetch-model has not run")
def test_real_smollm2(program):
    config = json.loads((MODEL / "tokenizer_config.json").read_text(encoding="utf-8"))
    tool = Tool(program, MODEL)
    assert tool.format == "chatml"
    for messages in conversations(random.Random(1)):
        assert tool.render(messages) == jinja(config["chat_template"], messages, config["bos_token"],
                                              config["eos_token"])
    tool.close()


# Yi 1.5, a Llama 3 with a block for a system message that is not there, and Nemotron's reasoning.
YI = (
    "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}{% endif %}{% if "
    "system_message is defined %}{{ system_message }}{% endif %}{% for message in messages %}{% set content = "
    "message['content'] %}{% if message['role'] == 'user' %}{{ '<|im_start|>user\n' + content + '<|im_end|>\n"
    "<|im_start|>assistant\n' }}{% elif message['role'] == 'assistant' %}{{ content + '<|im_end|>' + '\n' }}{% endif %}"
    "{% endfor %}")
LLAMA3_BLOCK = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system_message = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}{{ system_message }}{{ '<|eot_id|>' }}"
    + LLAMA3[LLAMA3.index("{% for message"):].replace("loop_messages", "messages"))
LLAMA3_REASONING = LLAMA3.replace("{% set content = '<|start", "{% set said = message['content'].split('</think>')[-1] %}"
                                  "{% set content = '<|start").replace("message['content'] | trim", "said | trim")

FOREIGN = {
    "gemma": "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] }}{% endfor %}",
    "phi4": "{{'<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>'}}",
    "smollm3": "{%- set today = strftime_now('%d %B %Y') -%}{{ '<|im_start|>system\n' + today }}",
    "mistral-v7": "{{ '[SYSTEM_PROMPT]' + system_message + '[/SYSTEM_PROMPT]' }}{{ '[INST]' + message['content'] + '[/INST]' }}",
    "pixtral": "{{ '[INST]' }}{{ message['content'] }}{{ '[/INST]' }}",
    "deepseek-v3": "{{'<｜User｜>' + message['content'] + '<｜Assistant｜>'}}{{content + '<｜end▁of▁sentence｜>'}}",
    "trimming": SMOLLM2.replace("message['content']", "message['content'] | trim"),
    "reasoning": QWEN3.replace("not loop.last and reasoning_content", "true"),
    "reasoning-chatml": QWQ.replace(".lstrip('\\n')", ".strip()"),
    "yi": YI,
    "bos-in-messages": SMOLLM2.replace("{{'<|im_start|>' +", "{{bos_token + '<|im_start|>' +"),
    "no-new-line": SMOLLM2.replace("'<|im_end|>' + '\n'}}", "'<|im_end|>'}}"),
    "no-new-line-eos": SMOLLM2.replace("'<|im_end|>' + '\n'}}", "eos_token}}"),
    "llama3-block": LLAMA3_BLOCK,
    "llama3-reasoning": LLAMA3_REASONING,
    "dateless": LLAMA31.replace('"26 Jul 2024"', "strftime_now('%d')"),
    "empty": "", "blank": "\n\n", "open": "{{ '<|im_start|>",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_templates_are_refused(name, program, tmp_path):
    tool = Tool(program, folder(tmp_path / "model", FOREIGN[name], "<s>", "</s>"))
    code, error = tool.close()
    if name == "open":  # no tag at all is still ChatML by its marker; nothing in it differs
        assert (code, error) == (0, "")
        return
    assert code == 2 and error.count("\n") == 1 and "chat template" in error
    assert FOREIGN[name].strip()[:20].split("\n")[0] in error


def test_missing_and_broken_files(program, tmp_path):
    for text in (None, "{}", "[]", "{", '{"chat_template": 5}', '{"chat_template": [1, {}]}'):
        path = tmp_path / "model"
        path.mkdir(exist_ok=True)
        if text is not None:
            (path / "tokenizer_config.json").write_text(text)
        code, error = Tool(program, path).close()
        assert code == 2 and error.count("\n") == 1 and "model" in error


def test_roles(program, tmp_path):
    tool = Tool(program, folder(tmp_path / "model", SMOLLM2, "a", "b"))
    for messages in ([], [{"role": "tool", "content": "x"}], [{"role": "", "content": ""}]):
        with pytest.raises(Refused):
            tool.render(messages)
    tool.close()
