"""Names of the host's samplers and schedulers, and what is known of each."""

from __future__ import annotations

DETERMINISTIC = frozenset({
    "euler", "euler_cfg_pp", "heun", "heunpp2", "dpm_2", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2m",
    "dpmpp_2m_cfg_pp", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "gradient_estimation",
    "gradient_estimation_cfg_pp", "uni_pc", "uni_pc_bh2", "ddim", "exp_heun_2_x0",
})  # fmt: skip
FIRST_ORDER = frozenset({"euler", "ddim"})
SCHEDULERS = frozenset({
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
    "kl_optimal", "pcm",
})  # fmt: skip


def sampler_kind(name: str) -> str:
    """``fixed`` (deterministic), ``renoised``, ``ancestral``, or empty for a sampler nobody here knows."""
    if name in DETERMINISTIC:
        return "fixed"
    if name.startswith("lcm"):
        return "renoised"
    stochastic = "ancestral" in name or "sde" in name or name in ("ddpm", "sa_solver", "sa_solver_pece")
    return "ancestral" if stochastic or name.startswith("seeds") else ""


def is_sampler_name(name: str) -> bool:
    """Whether a text names a sampler of the host, or ours."""
    return name == "pcm" or sampler_kind(name) != ""


def is_scheduler_name(name: str) -> bool:
    """Whether a text names a scheduler of the host, or ours."""
    return name in SCHEDULERS
