"""What this machine's processor computes in."""

import functools
import os

ISA = "ONEDNN_MAX_CPU_ISA"  # of oneDNN, in OpenVINO too: what it may use at most
# what each type needs, by flags of /proc/cpuinfo, any of them; and what oneDNN calls the least that has it
NEEDS = {
    "bfloat16": ({"avx512_bf16", "amx_bf16", "avx_ne_convert"}, ("AVX2_VNNI_2", "AVX512_CORE_BF16")),
    "int8": ({"avx512_vnni", "avx_vnni", "amx_int8"}, ("AVX2_VNNI", "AVX512_CORE_VNNI")),
}
# oneDNN's names, each with all that it includes
LADDERS = (
    ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    (
        "SSE41", "AVX", "AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512",
        "AVX512_CORE_AMX", "AVX10_1_512_AMX", "AVX512_CORE_AMX_FP16", "AVX10_1_512_AMX_FP16",
    ),
)  # fmt: skip


@functools.cache
def flags() -> frozenset[str]:
    """As Linux tells them; elsewhere none."""
    try:
        with open("/proc/cpuinfo") as file:
            return frozenset(next(line.partition(":")[2].split() for line in file if line.startswith("flags")))
    except (OSError, StopIteration):
        return frozenset()


def can(dtype: str) -> bool:
    """Whether the processor has instructions for a type, and oneDNN may use them."""
    if dtype not in NEEDS:
        return True
    wanted, least = NEEDS[dtype]
    return bool(wanted & flags()) and _allowed(os.environ.get(ISA, "").upper(), least)


def _allowed(most: str, least: tuple[str, ...]) -> bool:
    ladders = [ladder for ladder in LADDERS if most in ladder]
    if not ladders:  # not set, or all
        return True
    return any(name in ladder and ladder.index(most) >= ladder.index(name) for ladder in ladders for name in least)
