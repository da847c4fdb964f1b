"""Rounding to the types that a KV cache may be stored in.

Values stay float32 (or float64) arrays; `store` returns the values that survive a trip through the
storage type, rounded to nearest with ties to even.  An f16 overflow becomes infinity, as IEEE 754 says.
"""

import numpy as np

KV_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
# A page's summary (element-wise min and max of its keys) has the type of the keys.
SUMMARY_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


def to_bf16(x):
    """float32 array -> float32 array of bf16 values; a NaN stays a NaN."""
    x = np.asarray(x, np.float32)
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32))


def store(x, kv_dtype):
    """The values of x after storage as kv_dtype ("f32", "f16" or "bf16"); the array type of x is kept.

    A float64 x is rounded to float32 first, so bf16 from float64 may round twice (2^-24 of the cases).
    """
    single = np.asarray(x, np.float32)
    if kv_dtype == "f32":
        stored = single
    elif kv_dtype == "f16":
        with np.errstate(over="ignore"):
            stored = single.astype(np.float16)
    elif kv_dtype == "bf16":
        stored = to_bf16(single)
    else:
        raise ValueError(f"kv dtype {kv_dtype!r}: use f32, f16 or bf16")
    return stored.astype(x.dtype)
