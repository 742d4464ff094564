"""All rows of a source, file after file, with the manifest's columns; what is wrong says in which file and line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from manifests.alikes import LOOKED_AT, likely_prompts
from manifests.convert import Cells
from manifests.errors import ManifestError, Problem, shown
from manifests.schema import ROW_COLUMNS
from manifests.sources.columns import UNNAMED, FramesOf, SourceColumns
from manifests.sources.files import SourceFile
from manifests.sources.form import SourceForm, csv_header, listed, source_form
from manifests.sources.lines import source_lines, unkept_columns
from manifests.sources.options import SourceOptions

Where = tuple[int, int]
"""Place of a file among the source's, and number of a line or row in it."""


class Source:
    """The files of a source, each looked at. Raises ManifestError for one that cannot be read, or has no prompts."""

    def __init__(
        self, name: str, files: Sequence[SourceFile], options: SourceOptions, frames_of: FramesOf | None = None
    ) -> None:
        self.name = name
        self.files = files
        self.columns = SourceColumns(options, frames_of)
        self._options = options
        self._unkept: dict[str, None] = {}
        self._forms = [self._looked_at(file) for file in files]

    def rows(self) -> Iterator[tuple[Where, Cells | Problem]]:
        """Yields every row of every file, and what is wrong with wrong ones."""
        for at, (file, form) in enumerate(zip(self.files, self._forms, strict=True)):
            for number, cells in source_lines(file.url, form):
                where = (at, number)
                if isinstance(cells, Problem):
                    yield where, self.placed(cells, where)
                    continue
                try:
                    yield where, self.columns.row({**cells, **file.partitions} if file.partitions else cells)
                except ValueError as error:
                    yield where, self.placed(self._misfit(cells, error), where)

    def placed(self, problem: Problem, where: Where) -> Problem:
        """Returns a problem with the place of its row."""
        at, number = where
        if len(self.files) > 1:
            problem = replace(problem, file=self.files[at].name)
        if self._forms[at].rows_are_numbered:
            return replace(problem, row=number, line=None)
        return problem if problem.line is not None else replace(problem, line=number)

    def warnings(self) -> tuple[str, ...]:
        """Returns what was read in another way than it was written, or left out."""
        unkept = [
            f"column {name!r} holds bytes, which a manifest does not keep; it is left out" for name in self._unkept
        ]
        return (*self.columns.warnings(), *unkept)

    def _misfit(self, cells: Mapping[str, object], error: ValueError) -> Problem:
        at_end = ", or name the files in columns references and mask_strategy" if "its end" in str(error) else ""
        prompt = next((value for name, value in cells.items() if self.columns.name(name) == "prompt"), None)
        return Problem(column="prompt", value=shown(prompt), allowed=str(error), action=f"fix the line{at_end}")

    def _looked_at(self, file: SourceFile) -> SourceForm:
        form = source_form(file, self._options)
        if form.kind == "parquet":
            self._unkept |= dict.fromkeys(unkept_columns(file.url))
        header = csv_header(file, form) if form.kind == "csv" else None
        first = [cells for _, cells in itertools.islice(source_lines(file.url, form), LOOKED_AT)]
        rows = [cells for cells in first if not isinstance(cells, Problem)]
        found = [cell.strip() for cell in header] if header is not None else list(dict.fromkeys(itertools.chain(*rows)))
        problems = self._bad_header(found, header is not None)
        if not self._has_prompts(found, rows):
            problems.insert(0, self._no_prompts(found, rows, form))
        if problems and (rows or header is not None):
            several = len(self.files) > 1
            raise ManifestError(file.url if several or header is None else self.name, problems)
        return form

    def _has_prompts(self, found: Sequence[str], rows: Sequence[Cells]) -> bool:
        if any(self.columns.name(column) == "prompt" for column in found):
            return True
        inside = self._options.prompt_column.partition(".")
        return bool(inside[1]) and any(isinstance(row.get(inside[0]), Mapping | list) for row in rows)

    def _no_prompts(self, found: Sequence[str], rows: Sequence[Cells], form: SourceForm) -> Problem:
        names = [name for name in found if name not in UNNAMED]
        texts = [
            name for name in names if name not in ROW_COLUMNS and any(isinstance(row.get(name), str) for row in rows)
        ]
        likely = likely_prompts(rows) or (texts[0] if len(texts) == 1 else None)
        if form.kind == "csv":
            if not names:
                action = "add a header and prompts"
            else:
                action = (
                    f"name the columns in the first line, or say which of the columns found ({listed(names)}) it is: "
                    f"--prompt-column NAME{f'; {likely!r} looks like it' if likely else ''} (and what divides them: "
                    "--delimiter)"
                )
            return Problem(line=1, column="prompt", allowed="the column is required and missing", action=action)
        action = f"say which column it is: --prompt-column {likely or 'NAME'} (columns found: {listed(names)})"
        allowed, numbered = "a prompt that is not empty is needed", form.rows_are_numbered
        row, line = (0, None) if numbered else (None, 1)
        return Problem(row=row, line=line, column="prompt", value="null", allowed=allowed, action=action)

    def _bad_header(self, found: Sequence[str], is_header: bool) -> list[Problem]:
        if not is_header:
            return []
        problems = []
        if "" in found[1:]:
            at = found.index("", 1) + 1
            problems.append(Problem(line=1, allowed=f"column {at} has no name", action="name it or drop it"))
        names = [self.columns.name(cell) for cell in found]
        problems += [
            Problem(line=1, column=name, allowed="the column is there more than once", action="drop all but one")
            for name in sorted({name for name in names if name and names.count(name) > 1})
        ]
        return problems
