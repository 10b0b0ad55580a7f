"""What was mended in an annotation file, what looks odd, and what is wrong: by kind, with counts and first examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltpipe.errors import UserError

Policy = Literal["refuse", "drop"]
EXAMPLES = 3


@dataclass
class Finding:
    """One kind of finding.

    Attributes:
        count: How often it was met.
        examples: The first ones.
    """

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str, count: int = 1) -> None:
        """Count it once, or ``count`` times; the example is kept if it is one of the first."""
        self.count += count
        if example and len(self.examples) < EXAMPLES:
            self.examples.append(example)

    def sentence(self, kind: str) -> str:
        """``3 boxes outside their image (annotations[7] (id 12), ...)``."""
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count} {kind}" + (f" ({'; '.join(self.examples)}{more})" if self.examples else "")


class Findings:
    """Remarks and faults of one annotation file.

    Attributes:
        remarks: What was read as meant, or looks odd.
        faults: Records that cannot be used; with the policy ``drop`` they are left out.
    """

    def __init__(self) -> None:
        self.remarks: dict[str, Finding] = {}
        self.faults: dict[str, Finding] = {}

    def noting(self, example: str) -> Callable[[str], None]:
        """Return what notes kinds of remarks on one record."""
        return lambda kind: self.remark(kind, example)

    def remark(self, kind: str, example: str = "", count: int = 1) -> None:
        """Note something that was mended or looks odd."""
        if count:
            self.remarks.setdefault(kind, Finding()).add(example, count)

    def fault(self, kind: str, example: str = "", count: int = 1) -> None:
        """Note a record that cannot be used."""
        if count:
            self.faults.setdefault(kind, Finding()).add(example, count)

    def remark_rows(self, kind: str, rows: NDArray[np.intp], name: Callable[[int], str]) -> None:
        """Note all of the given rows."""
        self._rows(self.remarks, kind, rows, name)

    def fault_rows(self, kind: str, rows: NDArray[np.intp], name: Callable[[int], str]) -> None:
        """Note that none of the given rows can be used."""
        self._rows(self.faults, kind, rows, name)

    def _rows(self, table: dict[str, Finding], kind: str, rows: NDArray[np.intp], name: Callable[[int], str]) -> None:
        if len(rows):
            found = table.setdefault(kind, Finding())
            found.count += len(rows)
            for row in rows[: EXAMPLES - len(found.examples)].tolist():
                found.examples.append(name(row))

    def sentences(self) -> list[str]:
        """Return a line per kind of remark."""
        return [finding.sentence(kind) for kind, finding in self.remarks.items()]

    def fault_sentences(self) -> list[str]:
        """Return a line per kind of fault."""
        return [finding.sentence(kind) for kind, finding in self.faults.items()]

    def check(self, path: Path, policy: Policy) -> None:
        """Refuse a file with faults, all kinds at once, unless they are to be left out.

        Raises:
            UserError: There are faults and the policy is ``refuse``.
        """
        if self.faults and policy == "refuse":
            raise UserError(
                "the annotation file has faults",
                where=path,
                got=("\n" + " " * 11).join(self.fault_sentences()),
                fix="mend the file, or leave the records out and count them: `dataset: {faults: drop}` in an "
                "experiment, `ltpipe import FILE --faults drop` without one. Repeated annotation ids are then numbered "
                "anew, and masks that cannot be used go from their objects",
            )

    def as_json(self) -> dict[str, Any]:
        """Return both tables as plain values: counts and examples by kind."""
        tables = (("remarks", self.remarks), ("dropped", self.faults))
        return {
            name: {kind: {"count": found.count, "examples": found.examples} for kind, found in table.items()}
            for name, table in tables
        }
