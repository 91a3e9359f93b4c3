"""The polynomials by which csrc/cpu/gelu.h computes GELU, piece by piece.

python -m tools.gelu_pieces      # rewrites csrc/cpu/gelu_pieces.h
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.polynomial import chebyshev

HEADER = Path(__file__).resolve().parents[1] / "csrc" / "cpu" / "gelu_pieces.h"

HEAD = """// clang-format off
// Written by `python -m tools.gelu_pieces`: in floats, polynomials of least error around the middles of pieces.
#pragma once

#include "simd.h"

namespace hsta {
namespace HSTA_ISA {

// As many pieces as a permutation of lanes has places to choose from: two vectors' lanes with AVX-512, one's otherwise.
template <int kDegree>
struct Pieces {
  static constexpr int kCount = kLanes == 16 ? 32 : kLanes;
  float width;                                // piece k is around k * width; in the last one the function counts as 0
  float coefficients[kDegree + 1][kCount];  // of the distance from the middle, lowest power first
};
"""
FILE = (
    HEAD.replace("{", "{{").replace("}", "}}")
    + """
#if defined(__AVX512F__)

{}
#elif defined(__AVX2__)

{}
#endif

}}  // namespace HSTA_ISA
}}  // namespace hsta
"""
)
TAIL = "The normal distribution's tail Phi(-a): absolute error below 2^-24."
SLOPE = "Phi(-a) - a phi(a), the derivative of GELU at -a: absolute error below 2^-24."


def tail(a: float) -> float:
    return math.erfc(a / math.sqrt(2)) / 2


def slope(a: float) -> float:
    return tail(a) - a * math.exp(-a * a / 2) / math.sqrt(2 * math.pi)


def around(function: Callable[[float], float], middle: float, half: float, degree: int) -> np.ndarray:
    """Coefficients of the polynomial that interpolates at Chebyshev's points of middle - half to middle + half."""
    series = chebyshev.chebinterpolate(np.vectorize(lambda s: function(middle + s * half)), degree)
    return chebyshev.cheb2poly(series) / half ** np.arange(degree + 1)


def pieces(function: Callable[[float], float], count: int, width: float, degree: int) -> np.ndarray:
    """(degree + 1, count), float32."""
    middles = np.arange(count) * width
    found = np.stack([around(function, middle, width / 2, degree) for middle in middles], axis=1)
    found[0, -1] = 0
    return found.astype(np.float32)


def definition(name: str, function: Callable[[float], float], count: int, width: float, degree: int) -> str:
    lines = [f"constexpr Pieces<{degree}> {name} = {{{width}f, {{"]
    for row in pieces(function, count, width, degree):
        numbers = [f"{c:.8e}f" for c in row]
        lines += ["  {" if i == 0 else "   " for i in range(0, count, 8)]
        for i in range(0, count, 8):
            lines[i // 8 - count // 8] += ", ".join(numbers[i : i + 8]) + ("," if i + 8 < count else "},")
    return "\n".join([*lines, "}};"])


def header() -> str:
    # Widths of few bits: the middle of the last piece is then exact, and every a beyond it gives exactly 0.
    many = (definition("kTail", tail, 32, 25 / 128, 4), definition("kSlope", slope, 32, 25 / 128, 5))
    few = (definition("kTail", tail, 8, 49 / 64, 6), definition("kSlope", slope, 8, 55 / 64, 7))
    blocks = [f"// {TAIL}\n{of_tail}\n\n// {SLOPE}\n{of_slope}\n" for of_tail, of_slope in (many, few)]
    return FILE.format(*blocks)


if __name__ == "__main__":
    HEADER.write_text(header())
