"""How one few-step file wants to be sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ..phases import MAX_COUNT, PhaseSchedule, Spacing, Terminal, build_schedule
from ..sigma_table import SigmaTable

Source = Literal["metadata", "sha256", "file name", "default", "user"]
# phased: trained as jumps between fixed edges. fixed: a list of noise levels, deterministic. renoised: new noise at
# every step (LCM). ancestral: partly renoised. single: one call. unsupported: no list of sigmas can serve it.
SamplingClass = Literal["phased", "fixed", "renoised", "ancestral", "single", "unsupported"]


@dataclass(frozen=True, kw_only=True)
class PCMProfile:
    """Settings of one few-step file.

    Attributes:
        method: name of the few-step method for people, ``PCM``, ``LCM-LoRA``, ... or ``unknown``.
        base_model: of the network, ``sd15``, ``sdxl``, ``sd3``, ...; empty if not known.
        sampling_class: how it must be sampled, see ``SamplingClass``.
        phases: trained phases M; ``None`` where the method has none (any step count runs).
        steps: default number of evaluations.
        cfg: default guidance, ComfyUI's convention (1 skips the negative prompt); ``cfg_range`` what is sensible.
        determinism: r of Eq. 44; ``gamma`` (TCD) overrides it where set.
        ancestral: determinism is that of an ancestral step with eta 1, see ``sampling.ancestral_to_determinism``.
        sigmas: explicit schedule including the final 0, instead of spacing and grid.
        timesteps: the same as timesteps of the model's table; ``resolved`` turns them into ``sigmas``.
        shift: linear timestep shift of flow models; ``None`` leaves the model's own.
        strength: LoRA strength that a user's 1.0 means; ``strength_no_alpha`` the same for files without alpha keys.
        embedded_guidance: the guidance scalar of guidance-distilled models (FluxGuidance), not CFG.
        expert: which of two experts the file is for.
        verified: False where the table says UNVERIFIED.
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
    shift: float | None = None
    strength: float = 1.0
    strength_no_alpha: float | None = None
    embedded_guidance: float | None = None
    expert: Literal["high", "low"] | None = None
    note: str = ""
    verified: bool = True
    sources: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def known(self) -> bool:
        """Whether anything said which method this is."""
        return self.method != "unknown"

    def resolved(self, table: SigmaTable, steps: int = 0) -> PCMProfile:
        """Return a copy whose ``sigmas`` are looked up in the model's table; unchanged if a schedule is exact.

        Looked up are ``timesteps``, and the equal parts of a fixed method without a list where whole timesteps can
        only round them (1000 / 12).

        Args:
            table: of the model.
            steps: asked for, which a method of equal parts follows; 0 for the profile's own.
        """
        if self.timesteps is not None:
            return replace(self, sigmas=(*map(table.sigma, self.timesteps), 0.0))
        count = steps or self.steps
        whole = not 1 <= count <= MAX_COUNT or 1000 % count == 0
        if self.sampling_class != "fixed" or self.sigmas is not None or whole:
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
        """``build_schedule`` with this profile's values where the caller gives none."""
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
