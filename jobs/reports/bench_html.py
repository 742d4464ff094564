"""`bench.html`: the table on one page, readable without a network, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

Json = Mapping[str, Any]
_STYLE = """
main { max-width: 1500px; } td:nth-child(1), td:nth-child(2) { white-space: nowrap; }
td.bar { min-width: 160px; } td.bar div { height: 12px; background: var(--c0); border-radius: 2px; }
tr.peer td.bar div { background: var(--c1); } td.why { color: var(--quiet); white-space: normal; min-width: 220px; }
"""
_HEAD = (
    "whose", "how it is run", "seconds", "spread", "", "clips per GPU-hour", "calls computed", "PSNR", "SSIM", "of",
    "to eager", "peak GB", "kept GB", "warm-up s", "graphs", "later",
)  # fmt: skip
_TEXT = (0, 1, 4, 9)


def bench_page(document: Json) -> str:
    """Returns the page of a document as `bench` writes it."""
    style = (files("jobs.reports") / "report.css").read_text() + _STYLE
    body = ["<h1>Benchmark</h1>", *map(_run, document["runs"]), _legend()]
    for name, what in document["groups"].items():
        lines = [line for line in document["rows"] if line["group"] == name]
        if lines:
            found = [factor for factor in document["factors"] if factor["group"] == name]
            body += [f"<h2>{escape(what)}</h2>", _clip(lines), _rows(lines), _factors(found), _steps(lines)]
    others = "".join(f"<li>{escape(each['what'])}: {escape(each['why'])}</li>" for each in document["not_here"])
    body.append(f"<h2>Not in the table</h2><ul>{others}</ul>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>Benchmark</title><style>{style}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _run(run: Json) -> str:
    versions = ", ".join(f"{name} {run[name]}" for name in ("torch", "triton", "diffusers", "cache-dit") if run[name])
    where = (
        f"{run['gpus']} x {run['device']}"
        if run["gpus"]
        else f"{run['device']}, {run['cores']} cores, load {run['load']:.1f}"
    )
    tiny = "<p class='bad'>Tiny models: they show that all of it works; their times say nothing of full size.</p>"
    return (tiny if run["size"] == "tiny" else "") + (
        f"<p>{escape(where)}; {escape(versions)}, Python {escape(run['python'])}; {escape(run['size'])} size, "
        f"torch.compile's backend {escape(run['backend'])}; begun {escape(run['began'])}<br/>"
        f"<code>{escape(run['command'])}</code></p>"
    )


def _legend() -> str:
    return (
        "<p>Seconds are the device's, from the first step to the end of the last: medians over the clips after a warm-up; "
        "spread is the largest minus the smallest. Denoising alone: no text encoding, no decoding. PSNR and SSIM are "
        "against the same way of running without reuse (with random weights of the latents, whose range stands for "
        "a picture's); <i>to eager</i>: how far what reuses nothing is from our eager model, root mean squares over those "
        "of the clip. <i>Later</i>: graphs compiled after the warm-up.</p>"
    )


def _clip(lines: Sequence[Json]) -> str:
    told = {
        "{height}x{width}, {num_frames} frames, {num_steps} steps, guidance {guidance_scale:g}".format(**line["clip"])
        + f"; {line['block_parameters'] / 1e6:,.1f} million {line['weights']} weights in blocks, {line['precision']}"
        for line in lines
        if "clip" in line
    }
    return "".join(f"<p>{escape(text)}</p>" for text in sorted(told))


def _rows(lines: Sequence[Json]) -> str:
    longest = max((line["seconds"] for line in lines if "seconds" in line), default=1.0)
    opens = ["<th>" if i in _TEXT else "<th class='n'>" for i in range(len(_HEAD))]
    head = "".join(f"{start}{escape(name)}</th>" for start, name in zip(opens, _HEAD, strict=True))
    body = "".join(_row(line, longest) for line in lines)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _row(line: Json, longest: float) -> str:
    peer = "" if line["side"] == "ours" else " class='peer'"
    start = f"<tr{peer}><td>{escape(line['side'])}</td><td>{escape(line['words'])}</td>"
    if "seconds" not in line:
        kind = "bad" if line["status"] == "failed" else "why"
        why = f"{line['status']}: {line['why']}"
        return f"{start}<td class='{kind}' colspan='{len(_HEAD) - 2}'>{escape(why)}</td></tr>"
    bar = f"<td class='bar'><div style='width: {100 * line['seconds'] / longest:.1f}%'></div></td>"
    before = [f"{line['seconds']:.3f}", _number(line["spread"], 3)]
    after = [f"{line['clips_per_gpu_hour']:,.0f}", _share(line["computed_share"]), *_quality(line["quality"])]
    last = [
        "-" if line["to_eager"] is None else f"{line['to_eager']['relative_rms']:.2g}",
        _number(line["peak_gb"], 2), _number(line["kept_gb"], 2), f"{line['warm_up_s']:.1f}", str(line["graphs"]),
        str(line["graphs_after_warm_up"]),
    ]  # fmt: skip
    of = f"<td>{'-' if line['quality'] is None else escape(line['quality']['of'])}</td>"
    return f"{start}{_cells(before)}{bar}{_cells(after)}{of}{_cells(last)}</tr>"


def _cells(values: Iterable[str]) -> str:
    return "".join(f"<td class='n'>{escape(value)}</td>" for value in values)


def _quality(quality: Json | None) -> tuple[str, str]:
    if quality is None:
        return "-", "-"
    return "the same" if quality["identical"] else f"{quality['psnr_db']:.1f} dB", f"{quality['ssim']:.4f}"


def _factors(found: Sequence[Json]) -> str:
    if not found:
        return ""
    rows = "".join(
        f"<tr><td>{escape(each['side'])}</td><td>{escape(each['of'])}</td><td class='n'>{each['factor']:.2f}x</td>"
        f"<td class='n'>{_share(each.get('share_of_ideal'))}</td>"
        f"<td>{escape(each['from'])} &rarr; {escape(each['to'])}</td></tr>"
        for each in found
    )
    head = "<th>whose</th><th>what</th><th class='n'>factor</th><th class='n'>of ideal</th><th>rows compared</th>"
    return (
        f"<h3>What each is worth by itself</h3><div class='wide'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _steps(lines: Sequence[Json]) -> str:
    told = [line for line in lines if len(line.get("step_ms", ())) > 1]
    if not told:
        return ""
    rows = "".join(
        f"<tr><td>{escape(line['words'])}</td><td>"
        + escape(", ".join(f"{pattern} {ms:.1f}" for pattern, ms in line["step_ms"].items()))
        + "</td></tr>"
        for line in told
    )
    return (
        "<h3>Milliseconds of a step by what it computes</h3><p>s, t, c, m: spatial, temporal, cross, MLP; a dot reuses, a "
        f"capital computes in some blocks only.</p><div class='wide'><table><tbody>{rows}</tbody></table></div>"
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
