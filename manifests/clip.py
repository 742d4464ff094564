"""One manifest row, with every default filled in: what a job renders."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One row of a manifest as accepted. Sizes in pixels, `fps` in frames per second.

    `digest` covers everything that changes the pixels (prompts, seed, sizes, steps, guidance, sampling, family, weights,
    LoRAs, broadcast plan, precision, loops, references): the same digest is never rendered twice.
    """

    clip_id: str
    digest: str
    prompt: str
    negative_prompt: str | None
    seed: int
    model: str
    num_frames: int
    height: int
    width: int
    fps: int
    num_steps: int
    guidance_scale: float
    broadcast: str
    sampling: str | None = None
    """A preset of the family for how it is sampled; None: as it is published."""
    flow_shift: float | None = None
    """The shift of its noise levels, if it is not the family's own."""
    guidance_scale_2: float | None = None
    """The guidance scale of the second transformer, if it is not that of the first."""
    lora: str | None = None
    """Its LoRAs as `PLACE:STRENGTH:COMPONENT` with `;` between them, "none" for none; None: those of the run."""
    lora_digests: str | None = None
    """Their digests, with spaces between them."""
    loops: int = 1
    """Loops of `num_frames` each, every one going on from the last frames of the one before."""
    condition_frame_length: int | None = None
    """Latent frames of the loop before that a loop begins with; None for a clip of one loop."""
    condition_frame_edit: float | None = None
    """0 keeps those frames, 1 draws them anew; None for a clip of one loop."""
    references: tuple[str, ...] = ()
    """URLs of reference images and videos; none for a clip made of its prompt alone."""
    reference_digests: tuple[str, ...] = ()
    """SHA-256 in hex of each reference's bytes, taken when the manifest was accepted."""
    mask_strategy: str | None = None
    """Which frames of the clip the references give; None where there are none."""

    @property
    def key(self) -> str:
        """Names the clip's files: `<clip_id>.<digest>`."""
        return f"{self.clip_id}.{self.digest}"
