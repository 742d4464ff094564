"""`manifest validate` and `manifest build`; and accepting a manifest for `submit`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from manifests.accept import AcceptedManifest, accept, validate
from manifests.build import build
from pipeline.exits import Exit
from pipeline.run.build import build_settings
from pipeline.run.environment import environment_settings
from pipeline.run.options import choose
from pipeline.run.references import ReferenceReader, access_of
from pipeline.run.rules import RunRules, run_rules
from pipeline.screen import Screen, counted


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `manifest validate` or `manifest build`."""
    if arguments.manifest_command == "build":
        return _build(arguments, screen)
    settings = build_settings(arguments.manifest, choose(vars(arguments), environment_settings()))
    rules = run_rules(settings.render)
    accepted = validate(
        arguments.manifest,
        rules.rows,
        default_model=settings.render.model,
        errors_path=errors_path(arguments.manifest),
        read_references=ReferenceReader(access_of(settings.render)),
    )
    tell_warnings(accepted.warnings, screen)
    screen.result(
        {
            "manifest": arguments.manifest,
            "num_clips": accepted.num_rows,
            "digest": accepted.digest,
            "warnings": list(accepted.warnings),
            "families": {name: str(weights) for name, weights in sorted(rules.weights.items())},
            "families_left_out": dict(rules.left_out),
        },
        f"{arguments.manifest}: {counted(accepted.num_rows, 'clip')}, no problem",
    )
    return Exit.OK


def _build(arguments: argparse.Namespace, screen: Screen) -> int:
    built = build(
        arguments.source,
        arguments.manifest,
        errors_path=errors_path(arguments.source),
        prompt_column=arguments.prompt_column,
        records=arguments.records,
        delimiter=arguments.delimiter,
        overwrite=arguments.overwrite,
    )
    tell_warnings(built.warnings, screen)
    screen.result(
        {"manifest": arguments.manifest, "num_clips": built.num_rows, "columns": list(built.columns)},
        f"{arguments.manifest}: {counted(built.num_rows, 'clip')} from {arguments.source}",
    )
    return Exit.OK


@contextmanager
def accepted_manifest(
    url: str, rules: RunRules, *, model: str, read_references: ReferenceReader
) -> Iterator[tuple[AcceptedManifest, Path]]:
    """Validates a manifest and yields what is known of it and its accepted rows, in a file that goes at the end.

    Raises ManifestError with every problem.
    """
    with tempfile.TemporaryDirectory(prefix="pab-pipeline-") as folder:
        path = Path(folder) / "manifest.parquet"
        accepted = accept(
            url,
            rules.rows,
            default_model=model,
            sink=path,
            errors_path=errors_path(url),
            read_references=read_references,
        )
        yield accepted, path


def tell_warnings(warnings: Sequence[str], screen: Screen) -> None:
    """Shows what is allowed and looks unmeant."""
    for warning in warnings:
        screen.note(f"warning: {warning}")


def errors_path(url: str) -> Path:
    """Returns where every problem of a manifest is listed: in the current folder."""
    return Path(f"{Path(url).stem}.errors.jsonl")
