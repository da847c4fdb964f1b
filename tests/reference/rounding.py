"""Rounding to the types that a KV cache may be stored in.

Values stay float32 (or float64) arrays; `store` returns the values that survive a trip through the
storage type, rounded to nearest with ties to even.  An f16 overflow becomes infinity, as IEEE 754 says.
"""

import numpy as np

KV_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
# A page's summary (element-wise min and max of its keys) has the type of the keys.
SUMMARY_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
# Largest codes of a page's middle (and its negative) and of its half-width, where summaries are codes.
CODE_TOPS = {"q8": (127, 127), "q4": (7, 15)}


def summary_bytes(summary, kv_dtype, head_dim):
    """Bytes of one page's summary of one kv head: two vectors, or their codes and two bf16 scales."""
    if summary == "keys":
        return 2 * head_dim * SUMMARY_BYTES[kv_dtype]
    return 2 * head_dim * (8 if summary == "q8" else 4) // 8 + 4


def to_codes(x, top, low=None):
    """x (..., E) -> (codes (..., E), scales (...,)): scale is bf16 of the largest |x| over top."""
    x = np.asarray(x, np.float32)
    scale = to_bf16(np.abs(x).max(axis=-1) / np.float32(top))
    safe = np.where(scale > 0, scale, np.float32(1))
    codes = np.rint(np.clip(x / safe[..., None], -top if low is None else low, top))
    return np.where(scale[..., None] > 0, codes, 0).astype(np.int32), scale


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
