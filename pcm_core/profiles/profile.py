"""The sampling settings of one few-step file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ..phases import MAX_COUNT, PhaseSchedule, Spacing, Terminal, build_schedule
from ..sigma_table import SigmaTable
from .shift_rules import sigmas_for_size

Source = Literal["metadata", "sha256", "file name", "default", "user"]
# phased: trained as jumps between fixed edges. fixed: a list of noise levels, deterministic. renoised: fresh noise at
# every step (LCM). ancestral: partly renoised. single: one call. unsupported: cannot be sampled with a list of sigmas.
SamplingClass = Literal["phased", "fixed", "renoised", "ancestral", "single", "unsupported"]


@dataclass(frozen=True, kw_only=True)
class PCMProfile:
    """Settings of one few-step file.

    Attributes:
        method: display name of the few-step method, ``PCM``, ``LCM-LoRA``, ... or ``unknown``.
        base_model: base model of the file, ``sd15``, ``sdxl``, ``sd3``, ...; empty if not known.
        sampling_class: how it must be sampled, see ``SamplingClass``.
        phases: trained phases M; ``None`` if the method has none (any step count runs).
        steps: default number of evaluations.
        cfg: default guidance, ComfyUI's convention (1 skips the negative prompt); ``cfg_range``: the useful range.
        determinism: r of Eq. 44; ``gamma`` (TCD) overrides it if set.
        ancestral: determinism is that of an ancestral step with eta 1, see ``sampling.ancestral_to_determinism``.
        sigmas: explicit schedule including the final 0, instead of spacing and grid.
        timesteps: the schedule as timesteps of the model's table; ``resolved`` converts them to ``sigmas``.
        scheduler: the host's scheduler that the authors use, ``normal``; empty for spacing and grid.
        shift: linear timestep shift of flow models; ``None`` leaves the model's own.
        audio_shift: the same for the audio half of a model that makes video and audio.
        dynamic_shift: rule of ``shift_rules`` for a shift that depends on the image size; empty for none.
        levels: noise levels before a dynamic shift, with the final 0; ``None`` for equal parts.
        strength: LoRA strength for the user's 1.0; ``strength_no_alpha``: the same for files without alpha keys.
        embedded_guidance: embedded guidance of guidance-distilled models (FluxGuidance), not CFG.
        network: how the network is called where the host's way is another: ``rectified_flow`` (InstaFlow),
            ``timestep_250`` or ``_500`` (NitroFusion, told that part of 1000 of its timestep); else empty.
        expert: which of two experts the file is for.
        verified: False if the table says UNVERIFIED.
        sources: value name to ``Source``.
    """

    method: str = "unknown"
    base_model: str = ""
    sampling_class: SamplingClass = "phased"
    phases: int | None = None
    steps: int = 4
    cfg: float = 1.0
    cfg_range: tuple[float, float] = (1.0, 1.0)
    determinism: float = 1.0
    gamma: float | None = None
    ancestral: bool = False
    spacing: Spacing = "trailing"
    grid: int = 50
    terminal: Terminal = "zero"
    sigmas: tuple[float, ...] | None = None
    timesteps: tuple[int, ...] | None = None
    scheduler: Literal["", "normal"] = ""
    shift: float | None = None
    audio_shift: float | None = None
    dynamic_shift: str = ""
    levels: tuple[float, ...] | None = None
    strength: float = 1.0
    strength_no_alpha: float | None = None
    embedded_guidance: float | None = None
    network: Literal["", "rectified_flow", "timestep_250", "timestep_500"] = ""
    expert: Literal["high", "low"] | None = None
    note: str = ""
    verified: bool = True
    sources: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def known(self) -> bool:
        """Whether the method is known."""
        return self.method != "unknown"

    @property
    def exact_steps(self) -> int | None:
        """The only number of steps that the method was made for; ``None`` if any number works."""
        for listed in (self.sigmas, self.levels):
            if listed is not None:
                return len(listed) - 1
        return self.phases if self.timesteps is None else len(self.timesteps)

    def resolved(self, table: SigmaTable, steps: int = 0, *, pixels: int = 0) -> PCMProfile:
        """Return a copy whose ``sigmas`` are looked up in the model's table; unchanged if a schedule is exact.

        This applies to ``timesteps``, a scheduler's grid, a shift that depends on the image size, and methods of equal
        steps whose timesteps would have to be rounded (1000 / 12).

        Args:
            table: the model's table.
            steps: number of steps, used by methods of equal steps; 0 for the profile's own.
            pixels: width times height of the image, used by a dynamic shift; 0 if not known.

        Raises:
            PCMError: if the image is too small for the rule of its shift.
        """
        if self.timesteps is not None:
            return replace(self, sigmas=(*map(table.sigma, self.timesteps), 0.0))
        count = steps or self.steps
        if self.levels is not None and self.dynamic_shift:
            return replace(self, sigmas=sigmas_for_size(self.dynamic_shift, self.levels, pixels))
        if self.sigmas is not None or not 1 <= count <= MAX_COUNT:
            return self
        if self.dynamic_shift:
            parts = [k / count for k in range(count, -1, -1)]
            return replace(self, sigmas=sigmas_for_size(self.dynamic_shift, parts, pixels), steps=count)
        if self.scheduler == "normal":
            return replace(self, sigmas=_normal(table, count), steps=count)
        if self.sampling_class != "fixed" or 1000 % count == 0:  # 1000 / 12 would have to be rounded
            return self
        return replace(self, sigmas=(*(table.sigma_at(k / count) for k in range(count, 0, -1)), 0.0), steps=count)

    def schedule(
        self,
        steps: int | None = None,
        *,
        phases: int | None = None,
        spacing: Spacing | None = None,
        terminal: Terminal | None = None,
        denoise: float = 1.0,
        spend_extra_steps: bool = False,
    ) -> PhaseSchedule:
        """``build_schedule`` with this profile's values as defaults."""
        phases = phases or self.phases or steps or self.steps
        return build_schedule(
            phases,
            steps or (self.steps if self.phases is None else phases),
            spacing=spacing or self.spacing,
            grid=self.grid,
            terminal=terminal or self.terminal,
            denoise=denoise,
            spend_extra_steps=spend_extra_steps,
        )


def _normal(table: SigmaTable, steps: int) -> tuple[float, ...]:
    """The host's ``normal`` schedule on a flow model: even timesteps from pure noise to its smallest, shifted again."""
    last = table.sigmas[0]
    levels = (1 - (1 - last) * k / max(steps - 1, 1) for k in range(steps))
    return (*map(table.sigma_at, levels), 0.0)
