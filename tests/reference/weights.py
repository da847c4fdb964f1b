"""Reading the tensors of a Hugging Face folder: model.safetensors, or shards with an index.

A safetensors file is 8 bytes (little-endian length n), n bytes of JSON {name: {dtype, shape,
data_offsets}}, then the data; offsets count from the end of the JSON.  bf16, f16 and f32 are read and
returned as float32.  Every other type, a truncated file and a missing tensor are a ValueError that names
the file and the tensor.
"""

import json
import os

import numpy as np

ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def read_header(path):
    """(entries by tensor name, offset of the data, file size) of one safetensors file."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        n_json = int.from_bytes(file.read(8), "little")
        if size < 8 or n_json > size - 8:
            raise ValueError(f"{path}: the header does not fit into the file")
        try:
            entries = json.loads(file.read(n_json))
        except ValueError as error:
            raise ValueError(f"{path}: the header is not JSON: {error}") from None
    entries.pop("__metadata__", None)
    return entries, 8 + n_json, size


def read_tensor(path, name, entry, data_start, size):
    """One tensor as a float32 array."""
    dtype, shape = entry["dtype"], entry["shape"]
    begin, end = entry["data_offsets"]
    if dtype not in ELEMENT_BYTES:
        raise ValueError(f"{path}: tensor {name} is {dtype}: use F32, F16 or BF16")
    n = int(np.prod(shape, dtype=np.int64))
    if begin < 0 or end - begin != n * ELEMENT_BYTES[dtype] or data_start + end > size:
        raise ValueError(f"{path}: tensor {name}: offsets {begin}..{end} do not hold {shape} of {dtype}")
    with open(path, "rb") as file:
        file.seek(data_start + begin)
        raw = file.read(end - begin)
    if dtype == "F32":
        values = np.frombuffer(raw, "<f4").copy()
    elif dtype == "F16":
        values = np.frombuffer(raw, "<f2").astype(np.float32)
    else:
        values = (np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.reshape(shape)


def read_folder(folder):
    """Every tensor of a model folder: {name: float32 array}."""
    index_path = os.path.join(folder, "model.safetensors.index.json")
    single_path = os.path.join(folder, "model.safetensors")
    if os.path.exists(index_path):
        with open(index_path, encoding="utf-8") as file:
            weight_map = json.load(file)["weight_map"]
    elif os.path.exists(single_path):
        weight_map = {name: "model.safetensors" for name in read_header(single_path)[0]}
    else:
        raise ValueError(f"{folder}: neither model.safetensors nor model.safetensors.index.json")
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        path = os.path.join(folder, shard)
        entries, data_start, size = read_header(path)
        for name, where in weight_map.items():
            if where != shard:
                continue
            if name not in entries:
                raise ValueError(f"{path}: tensor {name} of the index is missing")
            tensors[name] = read_tensor(path, name, entries[name], data_start, size)
    return tensors
