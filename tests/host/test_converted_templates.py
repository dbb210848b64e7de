"""ComfyUI's own templates, as they are and as "Use PCM nodes" converts them: the same latents from tiny models.

Both forms are prompts of the part that samples, run by the host's executor. Loaders, text encoders and whatever makes
latents are stand-ins; LoRAs lie on the disk under their released names.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from devtools.generate.templates_page import CONVERTED
from devtools.paths import OFFICIAL_TEMPLATES
from devtools.templates.convert import convert
from devtools.templates.graph import templates
from devtools.templates.uses import SAMPLERS

pytestmark = pytest.mark.skipif(not OFFICIAL_TEMPLATES.is_dir(), reason="dev.py installs the templates")

# Tiny models by the base model of the few-step file; the second one is for the other expert.
TINY = {
    "qwen-image": ["qwen_image"], "anima": ["anima"], "z-image": ["z_image"], "flux2": ["flux2"], "krea2": ["krea2"],
    "ernie-image": ["ernie_image"], "mage-flow": ["mage_flow"], "flux1": ["flux_schnell"], "wan": ["wan", "wan_twin"],
    "ltx-2": ["ltx2"], "minimax-h3": ["minimax_h3_av"],
}  # fmt: skip
REAL = {
    *SAMPLERS, "BasicScheduler", "ManualSigmas", "Flux2Scheduler", "KSamplerSelect", "RandomNoise", "CFGGuider",
    "BasicGuider", "ModelSamplingAuraFlow", "ModelSamplingSD3", "ModelSamplingFlux", "MiniMaxH3SigmaShift", "CFGNorm",
    "LoraLoaderModelOnly", "FluxGuidance", "ConditioningZeroOut", "LTXVConditioning", "Take", "PCMLoraLoader",
    "PCMSampler", "PCMVideoSampler",
}  # fmt: skip


@pytest.fixture(scope="module")
def workflows():
    return dict(templates())


class StandIns:
    """What stands in for the nodes that load, encode or draw, the same in both forms of a template."""

    def __init__(self, host, zoo, converted):
        self.host, self.kinds = host, converted.kinds
        base = converted.files[0].profile.base_model
        self.models = [zoo[name] for name in TINY[base]]
        self.given, self.names, self.files = {}, {}, []
        self.ratio = self.models[0].model.get_model_object("latent_format").spacial_downscale_ratio

    def prompt(self, prompt):
        """A prompt with stand-ins in the place of all that is not REAL."""
        made = {}
        for name, node in prompt.items():
            if node["class_type"] not in REAL:
                continue
            if node["class_type"] not in self.host.nodes.NODE_CLASS_MAPPINGS and node["class_type"] != "Take":
                pytest.skip(f"this host has no {node['class_type']}")
            inputs = {key: self._input(prompt, value) for key, value in node["inputs"].items()}
            if node["class_type"] in ("Flux2Scheduler", "ModelSamplingFlux"):
                inputs |= {"width": self._pixels(-1), "height": self._pixels(-2)}
            made[name] = {"class_type": node["class_type"], "inputs": self._defaults(node["class_type"]) | inputs}
        linked = {value[0] for node in made.values() for value in node["inputs"].values() if isinstance(value, list)}
        return made | {name: {"class_type": name, "inputs": {}} for name in linked - made.keys()}

    def _defaults(self, kind):
        """What the frontend gives a new node."""
        if kind == "Take":
            return {}
        required = self.host.node(kind).INPUT_TYPES()["required"]
        return {key: options[0]["default"] for key, (_, *options) in required.items()
                if options and "default" in options[0]}  # fmt: skip

    def _pixels(self, axis):
        return self.models[0].shapes[0][axis] * self.ratio

    def _input(self, prompt, value):
        if not isinstance(value, list) or prompt[value[0]]["class_type"] in REAL:
            return value
        return [self._give(prompt, *value), 0]

    def _give(self, prompt, name, slot):
        key = (name, slot)
        if key not in self.names:
            kind = self.kinds[name][slot]
            self.names[key] = f"Give{len(self.names)}"
            self.given[self.names[key]] = (kind, self._value(prompt[name], kind))
        return self.names[key]

    def _value(self, node, kind):
        number = len(self.names)
        if kind == "MODEL":
            file = node["inputs"].get("unet_name") or node["inputs"]["ckpt_name"]
            if file not in self.files:
                self.files.append(file)
            model = self.models[self.files.index(file)].model.clone()
            model.cached_patcher_init = (None, (f"/models/diffusion_models/{file}",))
            return model
        if kind == "LATENT":
            return self.models[0].latent(seed=number)
        if kind == "CONDITIONING":
            return self.models[0].cond(number)
        assert kind in ("INT", "FLOAT"), (node, kind)
        return 24


def write_loras(host, prompt, tiny):
    """A tiny LoRA under every name that a loader of the prompt has."""
    import comfy.lora

    shapes = {key: weight.shape for key, weight in tiny.model.model.state_dict().items()}
    known = comfy.lora.model_lora_keys_unet(tiny.model.model, {})
    key = next(k for k, v in known.items() if k.startswith("diffusion_model.") and len(shapes.get(v, ())) == 2)
    rows, columns = shapes[known[key]]
    generator = torch.Generator().manual_seed(0)
    for node in prompt.values():
        if node["class_type"] == "LoraLoaderModelOnly":
            path = host.base / "models" / "loras" / node["inputs"]["lora_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            down, up = torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator)
            save_file({f"{key}.lora_down.weight": down * 0.2, f"{key}.lora_up.weight": up * 0.2,
                       f"{key}.alpha": torch.tensor(4.0)}, path)  # fmt: skip


QUICK = ("image_anima", "image_flux2", "video_")  # the others in the long run


@pytest.mark.parametrize(
    "template",
    [pytest.param(name, marks=() if name.startswith(QUICK) else pytest.mark.long) for name in CONVERTED],
)
def test_a_converted_template_samples_the_same(host, zoo, workflows, stand_ins, template):
    converted = convert(workflows[template])
    assert converted is not None
    there = StandIns(host, zoo, converted)
    official, ours = there.prompt(converted.official), there.prompt(converted.ours)
    kinds = {node["class_type"] for node in ours.values()}
    assert kinds & {"PCMSampler", "PCMVideoSampler"} and not kinds & {*SAMPLERS, "LoraLoader"}
    euler(official)
    write_loras(host, official, there.models[0])
    taken = stand_ins(**there.given)
    for prompt in (official, ours):
        run = host.run_prompt(prompt)
        assert run.success, [data for kind, data in run.status_messages if kind == "execution_error"]
    half = len(taken) // 2
    assert half == sum(name.startswith("take:") for name in official)
    for theirs, found in zip(taken[:half], taken[half:], strict=True):
        for right, part in zip(parts(theirs), parts(found), strict=True):
            assert right.std() > 0
            torch.testing.assert_close(part, right, rtol=1e-5, atol=1e-5)


def parts(latent):
    samples = latent["samples"]
    return samples.unbind() if samples.is_nested else [samples]


def euler(prompt):
    """A template's own solver of a higher order gives way to the plain steps that few-step files are made for."""
    for node in prompt.values():
        if node["inputs"].get("sampler_name") == "res_multistep":
            node["inputs"]["sampler_name"] = "euler"
        assert node["inputs"].get("sampler_name", "euler") == "euler", node
