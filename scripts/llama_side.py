#!/usr/bin/env python3
"""llama.cpp's side of scripts/compare-llama, through the C interface of the package llama-cpp-python.

    llama_side.py gguf FOLDER OUT [--random]            config.json and weights as one GGUF, bf16 as they are
    llama_side.py decode GGUF --context N --batch B     times of decode steps, as `retro bench decode` takes them
    llama_side.py prefill GGUF --length N
    llama_side.py logits GGUF --tokens FILE --prompt P --steps M --dump OUT.npy [--greedy]

What is written as GGUF holds no tokenizer: everything here is token ids. A context is filled cheaply: the state of a
sequence of CELLS tokens is taken from the library, its cells are repeated up to the context at positions of their own,
and the state is given back. A library whose state looks otherwise is refused; --prefill then computes the context.
Prints one JSON object. Exit codes: 0 done, 2 refused.
"""

import argparse
import ctypes
import json
import statistics
import struct
import sys
import time
from pathlib import Path

import numpy as np

CELLS = 64  # tokens that are really computed before a context is filled with copies
WARMUP = 8  # as runtime/bench.h


def refuse(text):
    print(f"llama_side: {text}", file=sys.stderr)
    sys.exit(2)


# ---------------------------------------------------------------------------------------------- GGUF


def safetensors(folder):
    """{name: (rows..., columns) as uint16} of a folder's bf16 tensors, mapped."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = np.memmap(path, dtype=np.uint8, mode="r")
        length = int.from_bytes(data[:8].tobytes(), "little")
        for name, t in json.loads(data[8:8 + length].tobytes()).items():
            if name == "__metadata__":
                continue
            if t["dtype"] != "BF16":
                refuse(f"{path}: {name} is {t['dtype']}: only bf16 can be compared without a change of the weights")
            begin, end = (8 + length + at for at in t["data_offsets"])
            found[name] = data[begin:end].view(np.uint16).reshape(t["shape"])
    return found


def random_bf16(shape, rng):
    """Numbers of the size that real matrices have; which ones they are changes no time."""
    period = (rng.standard_normal(1 << 20, dtype=np.float32) / np.sqrt(shape[-1])).view(np.uint32) >> 16
    return np.resize(period.astype(np.uint16), shape)


def interleave(w, n_heads):
    """Hugging Face's rows of q and k (half after half) as GGUF has them: the two that rope pairs side by side."""
    head = w.shape[0] // n_heads // 2
    return w.reshape(n_heads, 2, head, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def write_gguf(folder, out, random):
    import gguf

    c = json.loads((folder / "config.json").read_text())
    if c["architectures"] != ["LlamaForCausalLM"] or c.get("rope_scaling"):
        refuse(f"{folder}: only LlamaForCausalLM without rope_scaling is compared")
    d, f, v, n = c["hidden_size"], c["intermediate_size"], c["vocab_size"], c["num_hidden_layers"]
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    head = c.get("head_dim") or d // heads
    rng = np.random.default_rng(1)
    weights = None if random else safetensors(folder)

    def matrix(name, shape):
        w = random_bf16(shape, rng) if random else weights[name]
        assert w.shape == shape, (name, w.shape, shape)
        return w

    w = gguf.GGUFWriter(out, "llama")
    w.add_context_length(max(c["max_position_embeddings"], 65536))
    w.add_embedding_length(d)
    w.add_block_count(n)
    w.add_feed_forward_length(f)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_key_length(head)
    w.add_value_length(head)
    w.add_rope_dimension_count(head)
    w.add_rope_freq_base(c.get("rope_theta", 10000.0))
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(v)
    w.add_tokenizer_model("no_vocab")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)

    def add(name, t):
        w.add_tensor(name, np.ascontiguousarray(t).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    def add_norm(name, source):  # llama.cpp keeps vectors in f32; so they are exact
        t = np.ones(d, np.float32) if random else (weights[source].astype(np.uint32) << 16).view(np.float32)
        w.add_tensor(name, t)

    add("token_embd.weight", matrix("model.embed_tokens.weight", (v, d)))
    add_norm("output_norm.weight", "model.norm.weight")
    if not c.get("tie_word_embeddings"):
        add("output.weight", matrix("lm_head.weight", (v, d)))
    for i in range(n):
        ours, theirs = f"model.layers.{i}.", f"blk.{i}."
        add(theirs + "attn_q.weight", interleave(matrix(ours + "self_attn.q_proj.weight", (heads * head, d)), heads))
        add(theirs + "attn_k.weight", interleave(matrix(ours + "self_attn.k_proj.weight", (kv * head, d)), kv))
        add(theirs + "attn_v.weight", matrix(ours + "self_attn.v_proj.weight", (kv * head, d)))
        add(theirs + "attn_output.weight", matrix(ours + "self_attn.o_proj.weight", (d, heads * head)))
        add(theirs + "ffn_gate.weight", matrix(ours + "mlp.gate_proj.weight", (f, d)))
        add(theirs + "ffn_up.weight", matrix(ours + "mlp.up_proj.weight", (f, d)))
        add(theirs + "ffn_down.weight", matrix(ours + "mlp.down_proj.weight", (d, f)))
        add_norm(theirs + "attn_norm.weight", ours + "input_layernorm.weight")
        add_norm(theirs + "ffn_norm.weight", ours + "post_attention_layernorm.weight")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return {"gguf": str(out), "bytes": Path(out).stat().st_size}


# ---------------------------------------------------------------------------------------------- the library


class Llama:
    """A model and a context of n_seqs sequences of `capacity` tokens each."""

    def __init__(self, path, capacity, n_seqs, threads, flash, n_batch=512):
        import llama_cpp

        self.lib = lib = llama_cpp
        self.quiet = lib.llama_log_callback(lambda level, text, user: None)
        lib.llama_log_set(self.quiet, ctypes.c_void_p(0))
        lib.llama_backend_init()
        m = lib.llama_model_default_params()
        m.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(str(path).encode(), m)
        if not self.model:
            refuse(f"{path}: llama.cpp does not load it")
        self.n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        p = lib.llama_context_default_params()
        p.n_ctx = n_seqs * ((capacity + 255) // 256 * 256)
        p.n_batch = p.n_ubatch = n_batch
        p.n_seq_max = n_seqs
        p.n_threads = p.n_threads_batch = threads
        p.flash_attn_type = {"auto": -1, "off": 0, "on": 1}[flash]
        p.kv_unified = False
        self.context = lib.llama_init_from_model(self.model, p)
        if not self.context:
            refuse(f"{path}: llama.cpp makes no context of {p.n_ctx} tokens")
        self.memory = lib.llama_get_memory(self.context)
        self.batch = lib.llama_batch_init(max(n_batch, n_seqs), 0, 1)
        self.length = [0] * n_seqs

    def step(self, tokens):
        """[(sequence, token, logits wanted)] as one batch; milliseconds until its results are there."""
        b = self.batch
        b.n_tokens = len(tokens)
        for i, (seq, token, wanted) in enumerate(tokens):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, self.length[seq], 1, wanted
            b.seq_id[i][0] = seq
            self.length[seq] += 1
        begun = time.perf_counter()
        code = self.lib.llama_decode(self.context, b)
        if code:
            refuse(f"llama_decode gives {code}")
        self.lib.llama_synchronize(self.context)
        return (time.perf_counter() - begun) * 1e3

    def prompt(self, seq, ids, n_batch=512):
        for at in range(0, len(ids), n_batch):
            part = ids[at:at + n_batch]
            self.step([(seq, t, at + i + 1 == len(ids)) for i, t in enumerate(part)])

    def logits(self):
        return np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, -1), (self.n_vocab,)).copy()

    def clear(self):
        self.lib.llama_memory_clear(self.memory, True)
        self.length = [0] * len(self.length)

    def fill(self, n, prefill):
        """n tokens in every sequence."""
        ids = [(7919 * i + 1) % self.n_vocab for i in range(n)]
        if n <= CELLS or prefill:
            for seq in range(len(self.length)):
                self.prompt(seq, ids)
            return
        self.prompt(0, ids[:CELLS])
        size = self.lib.llama_state_seq_get_size(self.context, 0)
        state = (ctypes.c_uint8 * size)()
        if self.lib.llama_state_seq_get_data(self.context, state, size, 0) != size:
            refuse("llama_state_seq_get_data: no state")
        large = repeat_cells(bytes(state), n, len(self.length))
        buffer = (ctypes.c_uint8 * len(large)).from_buffer_copy(large)
        for seq in range(len(self.length)):
            self.lib.llama_memory_seq_rm(self.memory, seq, -1, -1)
            if self.lib.llama_state_seq_set_data(self.context, buffer, len(large), seq) != len(large):
                refuse("llama_state_seq_set_data does not take a longer state: give --prefill")
            if self.lib.llama_memory_seq_pos_max(self.memory, seq) != n - 1:
                refuse("a filled sequence ends elsewhere: give --prefill")
            self.length[seq] = n


def repeat_cells(state, n, n_streams):
    """Sequence 0's state of CELLS tokens as one of n: the layout that llama.cpp writes for a cache of one kind, with a
    stream for each sequence, of which the others hold nothing."""
    at, out = 0, []

    def take(form):
        nonlocal at
        values = struct.unpack_from("<" + form, state, at)
        at += struct.calcsize("<" + form)
        return values if len(values) > 1 else values[0]

    def data(row):
        nonlocal at
        part = np.frombuffer(state, np.uint8, CELLS * row, at)
        at += CELLS * row
        return np.resize(part, n * row).tobytes()

    def wrong(what):
        refuse(f"llama.cpp's state of a sequence has another layout than expected ({what}): give --prefill")

    start = state.find(struct.pack("<III", n_streams, CELLS, 0))  # and the position of the first cell
    if not 0 <= start <= 16:
        wrong("head")
    out.append(state[:start] + struct.pack("<II", n_streams, n))
    at = start + 8
    meta = b""
    for i in range(CELLS):
        pos, n_ids = take("iI")
        if pos != i or n_ids > 1:
            wrong("cells")
        ids = state[at:at + 4 * n_ids]
        at += 4 * n_ids
    for i in range(n):
        meta += struct.pack("<iI", i, n_ids) + ids
    out.append(meta)
    transposed, n_layers = take("II")
    out.append(struct.pack("<II", transposed, n_layers))
    if transposed > 1 or not 0 < n_layers < 1000:
        wrong("layers")
    for i in range(2 * n_layers):  # all keys, then all values; without flash attention a value's element by element
        by_element = transposed and i >= n_layers
        kind, row, n_rows = take("iII") if by_element else (*take("iQ"), 1)
        if not 0 < row * n_rows < 1 << 24:
            wrong("rows")
        out.append(struct.pack("<iII", kind, row, n_rows) if by_element else struct.pack("<iQ", kind, row))
        out += [data(row) for _ in range(n_rows)]
    rest = bytes(4 * (n_streams - 1))
    if state[at:] != rest:
        wrong(f"{len(state) - at} bytes more")
    out.append(rest)
    return b"".join(out)


# ---------------------------------------------------------------------------------------------- what is measured


def version():
    from importlib import metadata

    return metadata.version("llama-cpp-python")


def quantiles(ms):
    low, *_, high = statistics.quantiles(ms, n=10, method="inclusive") if len(ms) > 1 else (ms[0], ms[0])
    return {"step_ms": statistics.median(ms), "step_ms_p10": low, "step_ms_p90": high}


def decode(a):
    n = max(a.context, 1)
    m = Llama(a.gguf, n + WARMUP + a.steps, a.batch, a.threads, a.flash)
    m.fill(n, a.prefill)
    tokens = [(s, s % m.n_vocab, True) for s in range(a.batch)]
    ms = [m.step(tokens) for _ in range(WARMUP + a.steps)][WARMUP:]
    q = quantiles(ms)
    return {"tokens_per_s": a.batch * 1e3 / q["step_ms"], **q}


def prefill(a):
    m = Llama(a.gguf, a.length, 1, a.threads, a.flash, n_batch=512)
    ids = [(7919 * i + 1) % m.n_vocab for i in range(a.length)]
    ms = []
    for _ in range(a.repeat + 1):
        m.clear()
        begun = time.perf_counter()
        m.prompt(0, ids)
        ms.append((time.perf_counter() - begun) * 1e3)
    middle = statistics.median(ms[1:])
    return {"ms": middle, "tokens_per_s": a.length * 1e3 / middle}


def logits(a):
    ids = [int(t) for t in Path(a.tokens).read_text().split()]
    m = Llama(a.gguf, a.prompt + a.steps, 1, a.threads, a.flash)
    m.prompt(0, ids[:a.prompt])
    rows = [m.logits()]
    for i in range(a.steps):
        m.step([(0, int(rows[-1].argmax()) if a.greedy else ids[a.prompt + i], True)])
        rows.append(m.logits())
    np.save(a.dump, np.stack(rows))
    return {"rows": len(rows)}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sub = p.add_subparsers(dest="what", required=True)
    s = sub.add_parser("gguf")
    s.add_argument("folder", type=Path)
    s.add_argument("out", type=Path)
    s.add_argument("--random", action="store_true")
    for name in ("decode", "prefill", "logits"):
        s = sub.add_parser(name)
        s.add_argument("gguf", type=Path)
        s.add_argument("--threads", type=int, required=True)
        s.add_argument("--flash", choices=("auto", "on", "off"), default="on")
        if name == "decode":
            s.add_argument("--context", type=int, default=0)
            s.add_argument("--batch", type=int, default=1)
            s.add_argument("--steps", type=int, default=32)
            s.add_argument("--prefill", action="store_true")
        elif name == "prefill":
            s.add_argument("--length", type=int, default=512)
            s.add_argument("--repeat", type=int, default=3)
        else:
            s.add_argument("--tokens", type=Path, required=True)
            s.add_argument("--prompt", type=int, required=True)
            s.add_argument("--steps", type=int, required=True)
            s.add_argument("--dump", type=Path, required=True)
            s.add_argument("--greedy", action="store_true")
    a = p.parse_args()
    if a.what == "gguf":
        done = write_gguf(a.folder, a.out, a.random)
    else:
        done = {"llama_cpp_python": version(), "flash": a.flash, "threads": a.threads,
                **{"decode": decode, "prefill": prefill, "logits": logits}[a.what](a)}
    print(json.dumps(done))


if __name__ == "__main__":
    main()
