"""`manifest validate` and `manifest build`; and accepting a manifest for `submit`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jobs.media.reference_access import ReferenceAccess
from manifests.accept import AcceptedManifest, accept, validate
from manifests.sources.files import source_name, source_place
from pipeline.commands.sources import ManifestSource, build_manifest, opened_source, told_rows
from pipeline.exits import Exit
from pipeline.run.build import build_settings
from pipeline.run.environment import environment_settings
from pipeline.run.options import choose
from pipeline.run.references import ReferenceReader
from pipeline.run.rules import RunRules, run_rules
from pipeline.run.weights import NOT_LOOKED_AT
from pipeline.screen import Screen, counted


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Carries out `manifest validate` or `manifest build`."""
    return _build(arguments, screen) if arguments.manifest_command == "build" else _validate(arguments, screen)


def _validate(arguments: argparse.Namespace, screen: Screen) -> int:
    chosen = choose(vars(arguments), environment_settings())
    name = source_name(arguments.manifest)
    settings = build_settings(name, chosen, place=source_place(arguments.manifest))
    rules = run_rules(settings.render, ask_hub=False)
    with opened_source(arguments, arguments.manifest, screen, model=settings.render.model) as source:
        accepted = validate(
            source.url,
            rules.rows,
            default_model=settings.render.model,
            errors_path=source.errors_path,
            read_references=ReferenceReader(ReferenceAccess.of(settings.render)),
            name=source.name,
            place=source.place,
        )
    tell_warnings(source.untold(accepted.warnings), screen)
    warnings = [*(source.built.warnings if source.built else ()), *source.untold(accepted.warnings)]
    verdict = f"{counted(len(warnings), 'warning')}, see above" if warnings else "no problem"
    screen.result(
        {
            "manifest": name,
            "num_clips": accepted.num_rows,
            "digest": None
            if any(weights.digest == NOT_LOOKED_AT for weights in rules.weights.values())
            else accepted.digest,
            "warnings": warnings,
            "text_losses": dict(accepted.text_losses),
            "families": {name: str(weights) for name, weights in sorted(rules.weights.items())},
            "families_left_out": dict(rules.left_out),
        },
        f"{name}: {counted(accepted.num_rows, 'clip')}, {verdict}",
    )
    return Exit.OK


def _build(arguments: argparse.Namespace, screen: Screen) -> int:
    built = build_manifest(
        arguments, arguments.source, Path(arguments.manifest), model=arguments.clip_model, overwrite=arguments.force
    )
    tell_warnings(built.warnings, screen)
    screen.result(
        {
            "manifest": arguments.manifest,
            "num_clips": built.num_rows,
            "num_source_rows": built.num_source_rows,
            "num_files": built.num_files,
            "columns": list(built.columns),
            "warnings": list(built.warnings),
        },
        f"{arguments.manifest}: {told_rows(built)} from {source_name(arguments.source)}",
    )
    return Exit.OK


@contextmanager
def accepted_manifest(
    source: ManifestSource, rules: RunRules, *, model: str, read_references: ReferenceReader
) -> Iterator[tuple[AcceptedManifest, Path]]:
    """Validates a manifest and yields what is known of it and its accepted rows, in a file that goes at the end.

    Raises ManifestError with every problem.
    """
    with tempfile.TemporaryDirectory(prefix="pab-pipeline-") as folder:
        path = Path(folder) / "manifest.parquet"
        accepted = accept(
            source.url,
            rules.rows,
            default_model=model,
            sink=path,
            errors_path=source.errors_path,
            read_references=read_references,
            name=source.name,
            place=source.place,
        )
        yield accepted, path


def tell_warnings(warnings: Sequence[str], screen: Screen) -> None:
    """Shows what is allowed and looks unmeant."""
    for warning in warnings:
        screen.note(f"warning: {warning}")
