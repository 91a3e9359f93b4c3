"""Two runs compared: which cases changed by more than the spread of both.

    python -m benchmarks.compare benchmarks/results/A.json benchmarks/results/B.json

What is compared is the ratio to a contender, since times depend on who else uses the machine: to A's best contender
among those that both runs timed. Its spread goes from that contender's 20th percentile over our 80th to the reverse.
Exits with 1 where a case of B is slower.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring import MIN_ROUNDS
from benchmarks.record import Result, Results, read


@dataclass(frozen=True)
class Ratio:
    """The contender's time over ours: of the medians, and between which values."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio(result: Result, contender: str) -> Ratio:
    ours, theirs = result.ours, result.contenders[contender]
    return Ratio(theirs.p50 / ours.p50, theirs.p20 / ours.p80, theirs.p80 / ours.p20)


def verdict(a: Result, b: Result) -> tuple[str, Ratio | None, Ratio | None, str]:
    """(contender, its ratio in a, in b, what that says of b)."""
    common = a.contenders.keys() & b.contenders.keys()
    if not common:
        return "", None, None, "no contender in both"
    contender = min(common, key=lambda name: a.contenders[name].p50)
    before, after = ratio(a, contender), ratio(b, contender)
    if min(a.ours.rounds, b.ours.rounds) < MIN_ROUNDS:
        return contender, before, after, f"fewer than {MIN_ROUNDS} rounds"
    if after.high < before.low:
        return contender, before, after, "slower"
    return contender, before, after, "faster" if after.low > before.high else ""


def table(a: Results, b: Results) -> tuple[str, int]:
    """Markdown, and how many cases are slower in `b`."""
    lines = ["| case | against | A: ratio [from, to] | B | B is |", "|---|---|---|---|---|"]
    of_b = {result.name: result for result in b.results}
    slower = 0
    for result in a.results:
        if result.name in of_b:
            *cells, said = verdict(result, of_b[result.name])
            slower += said == "slower"
            lines.append(f"| {result.name} | {' | '.join(str(cell or '') for cell in cells)} | {said} |")
    names = {result.name for result in a.results}
    only = {"A": [name for name in names if name not in of_b], "B": [name for name in of_b if name not in names]}
    lines += [f"\nOnly in {which}: {', '.join(sorted(cases))}" for which, cases in only.items() if cases]
    return "\n".join(lines), slower


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    options = parser.parse_args()
    try:
        text, slower = table(read(options.a), read(options.b))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(text)
    return 1 if slower else 0


if __name__ == "__main__":
    raise SystemExit(main())
