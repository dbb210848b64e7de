"""Where an official workflow differs from a file's authors, and why the check says so.

Every ``wrong`` finding on an official workflow is one of these: (workflow, rule, part of the file's name) -> reason.
"""

from __future__ import annotations

_SHIFT = "The workflow samples at shift 8; LightX2V distilled at 5 (LightX2V configs/distill)."
_CAUSVID = "The workflow takes 3 to 6 steps with uni_pc; CausVid's list has 9 levels, renoised (WanVideoWrapper)."
REASONS: dict[tuple[str, str, str], str] = {}


def add(names: str, rule: str, file: str, reason: str) -> None:
    for name in names.split():
        REASONS[name, rule, file] = reason


add("video_humo", "shift", "lightx2v_I2V_14B", _SHIFT)
add(
    "video_bernini_r_image_editing video_bernini_r_video_editing", "shift_missing",
    "lightx2v_T2V_14B_cfg_step_distill_v2", _SHIFT,
)  # fmt: skip
add(
    "video_wan21_scail2_character_replacement video_wan21_scail2_character_replacement_int8 video_wan2_1_infinitetalk "
    "video_wan_animate2 video_wan_dancer", "shift_missing", "lightx2v_I2V_14B", _SHIFT,
)  # fmt: skip
add("video_wan2_2_14B_fun_inpaint video_wan2_2_14B_s2v", "shift", "wan2.2_", _SHIFT)
for rule in ("steps", "sampler_renoised", "scheduler"):
    add(
        "video_wan_vace_14B_ref2v video_wan_vace_14B_t2v video_wan_vace_14B_v2v video_wan_vace_inpainting "
        "video_wan_vace_outpainting", rule, "CausVid_14B", _CAUSVID,
    )  # fmt: skip
add("basic_switch_node", "steps", "z_image_turbo", "The workflow shows a switch with 4 steps; Tongyi's card says 8.")


# What only a host's own schedulers can say.
BY_HOST: dict[tuple[str, str, str], str] = {
    ("templates-image_to_real", "scheduler", "Lightning-8steps"): "Scheduler beta; Lightning's authors space evenly.",
    ("utility_z_image_turbo_2k_upscaler.app", "scheduler", "z_image_turbo"): "Scheduler beta at denoise 0.33.",
    ("video_wan2_1_infinitetalk", "scheduler", "lightx2v_I2V"): "Scheduler normal, whose last step begins at sigma 0.",
    ("image_boogu_image_0_1_turbo_t2i", "scheduler", "boogu"): "At shift 3.16; Boogu's authors list 1 .75 .5 .25.",
}


def reason(workflow: str, rule: str, file: str) -> str:
    """Why a finding is right though the workflow is official; empty if nobody has reviewed it."""
    found = (
        text
        for (name, kind, part), text in (REASONS | BY_HOST).items()
        if (name, kind) == (workflow, rule) and part in file
    )
    return next(found, "")
