"""What a mutation is."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Mutation:
    """In `file`, `old` becomes `new`; `check` must then find a fault that has `expects` in it."""

    check: str
    what: str
    file: str
    old: str
    new: str
    expects: str

    def apply(self, tree: Path):
        """Breaks the copy in `tree`."""
        path = tree / self.file
        text = path.read_text()
        if self.old not in text:
            raise SystemExit(f"error: {self.file} has no {self.old!r} any more; correct the mutation {self.what!r}")
        path.write_text(text.replace(self.old, self.new, 1))
