"""The walls of the source: which package and which room may import which, and where third-party libraries may be used."""

from __future__ import annotations

ARROWS = {
    "pipeline": {"cluster", "jobs", "pab", "manifests"},
    "jobs": {"pab", "manifests"},
    "cluster": set[str](),
    "pab": set[str](),
    "manifests": set[str](),
}
_SEAMS = {"family", "model"}
_BASE = {"weights", "kernels", "parallel", "conditioning"}
_PAB_ROOMS: dict[str, set[str]] = {
    "weights": set(),
    "kernels": set(),
    "parallel": set(),
    "conditioning": set(),
    "own_folder": set(),
    "vae": {"parallel"},
    "broadcast": {"kernels", "parallel"},
    "family": {"broadcast", "conditioning", "parallel"},
    "model": {"family", "broadcast", "conditioning", "parallel"},
    "sampling": {"broadcast", "parallel", "conditioning", *_SEAMS},
    "execution": {"own_folder", *_SEAMS},
    "text": {"weights", "parallel", *_SEAMS},
    "nn": {"text", "kernels", "parallel", "broadcast", "execution", *_SEAMS},
    "library": {"nn", "kernels", "text", "vae", "weights", "broadcast", "parallel", "execution", *_SEAMS},
    "calibration": {"sampling", "broadcast", "parallel", *_SEAMS},
}
CORE = {*_PAB_ROOMS}
FAMILIES = (
    "cogvideox", "demo", "hunyuan_video", "hunyuan_video_15", "latte", "ltx", "ltx2", "open_sora", "open_sora_plan", "wan",
)  # fmt: skip
ROOMED = ("pab", "jobs", "pipeline")
_RELATIVES = {"demo": "open_sora", "open_sora_plan": "latte"}
"""Families whose transformers are configurations of another family's class."""
ROOM_ARROWS: dict[str, set[str]] = {
    **{f"pab/{room}": {f"pab/{other}" for other in others} for room, others in _PAB_ROOMS.items()},
    **{
        f"pab/families/{family}": {f"pab/{room}" for room in CORE}
        | ({f"pab/families/{_RELATIVES[family]}"} if family in _RELATIVES else set())
        for family in FAMILIES
    },
    "pab/families": {"pab/family", *(f"pab/families/{family}" for family in FAMILIES)},
    "pab/tiny_weights": {"pab/families"},
    "jobs/log": set(),
    "jobs/setting": set(),
    "jobs/settings": {"jobs/setting"},
    "jobs/outcome": set(),
    "jobs/progress": set(),
    "jobs/ranks": {"jobs/log"},
    "jobs/store": {"jobs/log"},
    "jobs/media": {"jobs/log", "jobs/store"},
    "jobs/calibration": {"jobs/media"},
    "jobs/reports": {"jobs/media", "jobs/store", "jobs/calibration"},
    "jobs/rendering": {
        "jobs/log",
        "jobs/settings",
        "jobs/outcome",
        "jobs/progress",
        "jobs/ranks",
        "jobs/store",
        "jobs/media",
        "jobs/reports",
    },
    "jobs/bench": {"jobs/settings", "jobs/media"},
    "jobs/render": {"jobs/settings", "jobs/outcome", "jobs/progress", "jobs/rendering"},
    "pipeline/exits": set(),
    "pipeline/screen": set(),
    "pipeline/run": {"pipeline/exits", "pipeline/screen"},
    "pipeline/planning": {"pipeline/exits", "pipeline/screen", "pipeline/run"},
    "pipeline/commands": {"pipeline/exits", "pipeline/screen", "pipeline/run", "pipeline/planning"},
    "pipeline/parser": {"pipeline/exits", "pipeline/run"},
    "pipeline/__main__": {"pipeline/exits", "pipeline/screen", "pipeline/parser"},
}
"""Each room (a folder, or a file beside the rooms) and the rooms of its package that it may import."""
TORCH_FREE = (
    "pab/family.py",
    "pab/own_folder.py",
    "pab/families/__init__.py",
    "pab/families/tiny_weights.py",
    "pab/families/*/family.py",
    "pab/families/*/config.py",
    "pab/families/*/sites.py",
    "pab/families/*/levels.py",
    "pab/families/*/loras.py",
    "pab/families/*/sizes.py",
    "pab/families/*/weights.py",
    "pab/broadcast/plan.py",
    "pab/broadcast/sites.py",
    "pab/broadcast/*rules.py",
    "pab/broadcast/foresight.py",
    "pab/broadcast/smaller.py",
    "pab/conditioning/references.py",
    "pab/conditioning/frame_masks.py",
    "pab/conditioning/loops.py",
    "pab/sampling/rectified_flow.py",
    "pab/sampling/samplers.py",
    "pab/text/prompt_cleaning.py",
    "pab/weights/checkpoint.py",
    "pab/weights/digest.py",
    "pab/weights/folders.py",
    "pab/weights/lora*.py",
    "jobs/outcome.py",
    "jobs/progress.py",
    "jobs/render.py",
    "jobs/setting.py",
    "jobs/settings.py",
    "jobs/bench/factors.py",
    "jobs/bench/rows.py",
    "jobs/rendering/batch_size.py",
    "jobs/store/*.py",
    "jobs/media/image_size.py",
    "jobs/media/reference_*.py",
    "jobs/media/web_files.py",
    "jobs/reports/report*.py",
    "jobs/reports/bench_html.py",
    "jobs/reports/number_formats.py",
    "jobs/reports/page.py",
    "jobs/reports/run_html.py",
    "jobs/reports/svg.py",
    "pipeline/*.py",
)
"""What planning and the command line import: torch may stand in a function there, never at the top."""
DEMO_WEIGHTS = "pab/families/demo/weights.py"
"""Builds the model that its file describes, so it is not of the torch-free ones."""
ROOMS = {
    "torch": ("pab/*", "jobs/*"),
    "triton": ("pab/kernels/gpu/*",),
    "safetensors": ("pab/*",),
    "diffusers": ("pab/library/*", "pab/families/*", "jobs/bench/peers.py"),
    "cache_dit": ("jobs/bench/peers.py",),
    "transformers": ("pab/text/*", "pab/weights/tiny_parts.py", "pab/families/*"),
    "tokenizers": ("pab/families/*", "pab/weights/tiny_parts.py"),
    "huggingface_hub": ("pab/weights/*",),
    "sentencepiece": ("pab/weights/tiny_parts.py",),
    "ftfy": ("pab/text/*", "pab/families/*"),
    "bs4": ("pab/text/*",),
    "submitit": ("cluster/*", "jobs/rendering/group.py"),
    "dask": ("cluster/*",),
    "distributed": ("cluster/*",),
    "bokeh": ("cluster/*",),
    "tornado": ("cluster/*",),
    "fsspec": (
        "manifests/*",
        "jobs/store/filesystem.py",
        "jobs/media/reference_files.py",
        "jobs/media/web_files.py",
    ),
    "aiohttp": ("jobs/media/web_files.py",),
    "s3fs": ("jobs/store/bucket.py",),
    "botocore": ("jobs/store/s3_listing.py",),
    "pyarrow": ("manifests/*", "pipeline/run/report*.py", "pipeline/commands/report.py"),
    "numpy": ("manifests/*", "pab/*", "jobs/*", "pipeline/run/report*.py"),
    "imageio_ffmpeg": ("jobs/media/*", "jobs/rendering/*", "pipeline/commands/doctor_checks.py"),
    "rich": ("pipeline/*",),
    "jinja2": ("jobs/reports/*",),
    "markupsafe": ("jobs/reports/*",),
    "PIL": ("jobs/media/*", "pab/library/image.py"),
    "psutil": ("jobs/ranks/interfaces.py",),
}
