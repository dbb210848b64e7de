"""``normalize`` without a host: names, scales, fused weights, accounting and refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import lora_files as files
import pytest
import torch
from safetensors.torch import load_file, save_file

from pcm_core import lora
from pcm_core.errors import PCMError
from pcm_core.lora import normalize, portable
from pcm_core.lora.base_models import detect_base_model
from pcm_core.lora.keys import Module, canonical, key_format, split_keys
from pcm_core.lora.tensors import fits
from pcm_core.profiles import PCMProfile, profile_for

NATIVE = [name for name in files.key_map() if name.startswith("diffusion_model.")]
PAIR = {"a.lora_up.weight": torch.ones(2, 2), "a.lora_down.weight": torch.ones(2, 2)}
THEIRS = [name for name in files.key_map() if name.startswith("transformer.")]


def run(tensors, **options):
    return normalize(tensors, files.key_map(), files.SHAPES, base_model="sd3", **options)


def test_native_names_pass_through_unchanged():
    tensors, updates = files.lora(NATIVE)
    output, report = run(tensors)
    assert report.complete and report.matched == report.offered == len(tensors)
    assert set(output) == {f"{n}.{p}" for n in NATIVE for p in ("lora_up.weight", "lora_down.weight", "alpha")}
    for name, update in updates.items():
        assert output[f"{name}.lora_up.weight"] is tensors[f"{name}.lora_B.weight"]
        assert torch.equal(files.update_of(output, f"{name}.weight"), update)


def test_parts_of_a_fused_weight_are_joined():
    tensors, updates = files.lora(THEIRS)
    output, report = run(tensors)
    assert report.complete
    for i in range(2):
        theirs, ours = f"transformer.transformer_blocks.{i}", f"diffusion_model.joint_blocks.{i}.x_block"
        qkv = torch.cat([updates[f"{theirs}.attn.to_{letter}"] for letter in "qkv"])
        assert torch.allclose(files.update_of(output, f"{ours}.attn.qkv.weight"), qkv, atol=1e-6)
        swapped = torch.cat(updates[f"{theirs}.norm1.linear"].chunk(2)[::-1])
        assert torch.allclose(files.update_of(output, f"{ours}.adaLN_modulation.1.weight"), swapped, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_narrow_types_join_exactly(dtype):
    tensors, updates = files.lora(THEIRS, dtype=dtype)
    output, _ = run(tensors)
    want = torch.cat([updates[f"transformer.transformer_blocks.0.attn.to_{letter}"] for letter in "qkv"])
    got = files.update_of(output, "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight")
    assert torch.allclose(got, want, atol=1e-6)


def test_missing_parts_leave_their_rows_alone_and_scales_may_differ():
    names = ["transformer.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_v"]
    tensors, updates = files.lora(names, dtype=torch.float16)
    tensors[f"{names[1]}.alpha"] = torch.tensor(0.3)
    output, _ = run(tensors)
    got = files.update_of(output, "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight")
    want = torch.cat([updates[names[0]], torch.zeros(6, 6), updates[names[1]] * 0.3])
    assert torch.allclose(got, want, atol=1e-6)


def test_a_file_with_every_module_twice_is_applied_once():
    tensors, updates = files.lora(NATIVE)
    twice = tensors | {key.replace("diffusion_model.", "base_model.model."): t.clone() for key, t in tensors.items()}
    output, report = run(twice)
    assert report.matched == report.offered == 2 * len(tensors)
    assert torch.equal(files.update_of(output, f"{NATIVE[0]}.weight"), updates[NATIVE[0]])
    twice[NATIVE[0].replace("diffusion_model.", "base_model.model.") + ".lora_B.weight"] += 1
    with pytest.raises(PCMError, match="both update"):
        run(twice)


# Spellings


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora.up.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_B.weight",
        "unet.base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_B.default.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_linear_layer.up.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_B",
    ],
)
def test_one_weight_one_name(key):
    contents = split_keys({key: torch.zeros(2, 2)})
    assert not contents.text and not contents.foreign
    (module,) = contents.modules.values()
    assert list(module.parts) == ["up"]
    assert module.name == "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out"


def test_canonical_keeps_inner_names():
    assert canonical("transformer.transformer_blocks.3.attn.to_q") == "transformer_blocks_3_attn_to_q"
    assert canonical("lora_unet__blocks_0_cross_attn_k") == "blocks_0_cross_attn_k"


@pytest.mark.parametrize(
    ("key", "shape", "family"),
    [
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", (4, 768), "sd15"),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", (4, 1024), "sd21"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", (4, 2048), "sdxl"),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_9_attn1_to_q", (4, 1280), "sdxl"),
        ("transformer.transformer_blocks.23.attn.add_q_proj", (4, 1536), "sd3"),
        ("transformer.single_transformer_blocks.37.attn.to_q", (4, 3072), "flux1"),
        ("diffusion_model.double_blocks.18.img_attn.qkv", (4, 3072), "flux1"),
        ("diffusion_model.double_blocks.19.img_attn.qkv", (4, 3072), "hunyuan-video"),
        ("diffusion_model.blocks.0.self_attn.q", (4, 5120), "wan"),
        ("transformer.blocks.0.attn1.to_q", (4, 5120), "wan"),
        ("transformer.transformer_blocks.0.attn2.to_q", (4, 2048), "ltxv"),
        ("transformer.transformer_blocks.0.attn1.to_q", (4, 1152), "pixart"),
        ("transformer.transformer_blocks.0.attn1.to_q", (4, 1920), "cogvideox"),
        ("transformer.transformer_blocks.0.attn1.to_q", (4, 3072), ""),  # CogVideoX 5B or Mochi
        ("transformer.transformer_blocks.0.norm1_context.linear", (4, 3072), ""),  # FLUX.1 or HunyuanVideo
        ("transformer.transformer_blocks.0.audio_attn1.to_q", (4, 2048), "ltx-2"),
        ("diffusion_model.blocks.0.attn.qkv_x", (4, 3072), "mochi"),
        ("transformer.transformer_blocks.0.attn1.add_q_proj", (4, 1536), "mochi"),
        ("transformer_blocks.0.img_mlp.net.2", (4, 3072), "qwen-image"),
        ("diffusion_model.layers.0.attention.to_q", (4, 3840), "z-image"),
        ("something.else", (4, 4), ""),
    ],
)
def test_family(key, shape, family):
    assert detect_base_model(split_keys({f"{key}.lora_down.weight": torch.zeros(shape)}).modules.values()) == family


def test_format_names_the_prefix_and_the_suffix():
    contents = split_keys(
        {"base_model.model.x.lora_A.weight": torch.zeros(1, 1), "base_model.model.x.lora_B.weight": torch.zeros(1, 1)}
    )
    assert key_format(contents.modules.values()) == "PEFT (base_model.model.*.lora_B.weight)"


# Alpha


def raw_unet(prefix: str, rank: int = 64):
    stem = f"{prefix}mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    return {f"{stem}.lora_A.weight": torch.ones(rank, 768), f"{stem}.lora_B.weight": torch.ones(4, rank)}


@pytest.mark.parametrize("prefix", ["base_model.model.", "unet.base_model.model."])
def test_raw_unet_peft_gets_alpha_8(prefix):
    output, report = portable(raw_unet(prefix))
    assert [float(v) for k, v in output.items() if k.endswith(".alpha")] == [8.0]
    assert report.scales == {0.125: 1} and not report.alpha_missing
    assert any("alpha/rank 0.125" in note for note in report.notes)


def test_other_files_without_alpha_stay_at_scale_one():
    output, report = portable(raw_unet("unet."))
    assert not any(key.endswith(".alpha") for key in output)
    assert report.scales == {1.0: 1} and report.alpha_missing and not report.notes


def sd3_file(dtype, rank=32, extra=None):
    stems = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.norm1_context.linear", *([extra] if extra else [])]
    pairs = {"lora_A": torch.ones(rank, 1536, dtype=dtype), "lora_B": torch.ones(8, rank, dtype=dtype)}
    return {f"transformer.{stem}.{side}.weight": t for stem in stems for side, t in pairs.items()}


def test_raw_sd3_training_output_is_scaled_to_a_quarter():
    _, report = portable(sd3_file(torch.float32))
    assert report.scales == {0.25: 2}


@pytest.mark.parametrize(
    "tensors",
    [
        sd3_file(torch.float16),  # converted: alpha is baked in
        sd3_file(torch.float32, rank=16),
        sd3_file(torch.float32, extra="transformer_blocks.0.attn.add_q"),  # another training's targets
    ],
)
def test_other_sd3_files_are_left_alone(tensors):
    _, report = portable(tensors)
    assert set(report.scales) == {1.0} and not report.notes


def test_alpha_of_the_file_wins_and_an_unusual_one_is_reported():
    tensors = raw_unet("base_model.model.")
    stem = next(iter(tensors)).removesuffix(".lora_A.weight")
    for alpha, notes in ((8.0, 0), (64.0, 1)):
        _, report = portable(tensors | {f"{stem}.alpha": torch.tensor(alpha)}, profile=PCMProfile(method="PCM"))
        assert report.scales == {alpha / 64: 1}
        assert len(report.notes) == notes


@pytest.mark.parametrize("config", ["{", "[]", '{"lora_alpha": "x"}', '{"lora_alpha": null}', "[" * 10**5])
def test_broken_peft_metadata_says_nothing(config):
    _, report = portable(sd3_file(torch.float16), metadata={"lora_adapter_metadata": config})
    assert report.scales == {1.0: 2} and report.alpha_missing


def test_alpha_from_peft_metadata():
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": 32, "transformer.lora_alpha": 16})}
    _, report = portable(sd3_file(torch.float16), metadata=metadata)
    assert report.scales == {0.5: 2}


def test_alpha_from_the_configuration_beside_pefts_file(tmp_path):
    save_file(raw_unet("base_model.model.", rank=16), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 16, "lora_alpha": 8, "use_rslora": True}))
    tensors, metadata = lora.read_lora(tmp_path / "adapter_model.safetensors")
    assert portable(tensors, metadata=metadata)[1].scales == {2.0: 1}
    (tmp_path / "adapter_config.json").write_bytes(b"\xff{")
    tensors, metadata = lora.read_lora(tmp_path / "adapter_model.safetensors")
    assert portable(tensors, metadata=metadata)[1].scales == {0.5: 1}  # as a raw file of the training scripts


# Accounting


def test_every_tensor_is_accounted_for():
    tensors, _ = files.lora(NATIVE)
    more, _ = files.lora(NATIVE[:1])
    wrong = {k.replace("joint_blocks.0", "joint_blocks.1").replace("qkv", "proj"): v for k, v in more.items()}
    strange = {
        "diffusion_model.joint_blocks.9.x.lora_A.weight": torch.ones(2, 6),
        "diffusion_model.joint_blocks.9.x.lora_B.weight": torch.ones(6, 2),
    }
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(1, 1)}
    given = {**tensors, **wrong, **strange, **text, "junk": torch.ones(1)}
    with pytest.raises(PCMError, match=r"joint_blocks\.9"):
        run(given)
    _, report = run(given, allow_partial=True)
    assert report.text_encoder == 1
    assert len(report.mismatched) == 3 and set(report.unknown) == {*strange, "junk"}
    assert report.offered == len(given) - 1 == report.matched + len(report.missing)
    text_report = report.text()
    assert "missing blocks" in text_report and "diffusion_model.joint_blocks.9" in text_report
    assert "text encoder: 1" in text_report
    text_report = replace(report, notes=("a remark",)).text()
    order = [text_report.index(word) for word in ("file:", "note:", "profile:", "keys:", "tensors:")]
    assert order == sorted(order), "what people look for comes first"


def test_wrong_family_names_both():
    tensors = raw_unet("base_model.model.")
    with pytest.raises(PCMError, match=r"Stable Diffusion 1\.5; the model is Stable Diffusion 3"):
        run(tensors)
    with pytest.raises(PCMError, match=r"Stable Diffusion 1\.5"):
        run(tensors, allow_partial=True)


def test_image_keys_on_a_text_model_are_harmless():
    shapes = {"diffusion_model.blocks.0.cross_attn.k.weight": (4, 4)}
    stems = {"blocks.0.cross_attn.k": True, "blocks.0.cross_attn.k_img": False, "img_emb.proj.1": False}
    tensors = {f"diffusion_model.{s}.lora_{side}.weight": torch.ones(4, 4) for s in stems for side in ("up", "down")}
    targets = {"diffusion_model.blocks.0.cross_attn.k": files.Target("diffusion_model.blocks.0.cross_attn.k.weight")}
    _, report = normalize(tensors, targets, shapes, base_model="wan")
    assert report.complete and len(report.harmless) == 4 and report.matched == 2
    assert "left out: 4 tensors for an image input" in report.text()


def test_norms_are_those_of_the_update():
    """Exactly, if the directions are orthogonal and have equal weight."""
    tensors, updates = files.lora(NATIVE)
    for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
        tensors[key] = torch.linalg.qr(tensors[key].T)[0].T.contiguous()
        up = key.replace("lora_A", "lora_B")
        tensors[up] = torch.linalg.qr(tensors[up])[0] * 3
    output, report = run(tensors)
    want = sum(float(files.update_of(output, f"{name}.weight").square().sum()) for name in updates) ** 0.5
    assert report.norms == {"joint_blocks": pytest.approx(want, rel=1e-5)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2, 2)}, "whole model"),
        ({"text_encoder.layers.0.lora_A.weight": torch.ones(1, 1)}, "text encoders only"),
        ({"steps": torch.ones(1)}, "no LoRA tensors"),
        ({}, "empty"),
        ({"a.lora_up.weight": torch.ones(2, 2)}, "no counterpart"),
        ({"a.alpha": torch.ones(())}, "no LoRA tensors"),
        ({"a.alpha": torch.ones(()), "model.diffusion_model.b.weight": torch.ones(2, 2)}, "whole model"),
        ({**PAIR, "b.alpha": torch.ones(())}, "stands alone"),
        ({"a.lora_up.weight": torch.ones(2, 0), "a.lora_down.weight": torch.ones(0, 2)}, "rank zero"),
        ({"a.lora_up.weight": torch.ones(2, 3), "a.lora_down.weight": torch.ones(2, 2)}, "rank 3 and .* rank 2"),
        ({"a.lora_up.weight": torch.ones(2), "a.lora_down.weight": torch.ones(2)}, "matrices"),
        ({"a.lora_up.weight": torch.ones(2, 2).int(), "a.lora_down.weight": torch.ones(2, 2)}, "dtype int32"),
        ({"a.lora_up.weight": torch.ones(2, 2), "a.lora_down.weight": torch.full((2, 2), torch.nan)}, "NaN"),
        ({"a.lora_up.weight": torch.full((2, 2), torch.inf), "a.lora_down.weight": torch.ones(2, 2)}, "NaN or inf"),
        ({**PAIR, "a.alpha": torch.tensor(0.0)}, "alpha is 0"),
        ({**PAIR, "a.alpha": torch.tensor(torch.nan)}, "alpha is nan"),
        ({**PAIR, "a.alpha": torch.ones(2)}, "2 numbers"),
    ],
)  # fmt: skip
def test_what_is_no_lora_is_refused(tensors, message):
    with pytest.raises(PCMError, match=message):
        portable(tensors)


# Updates of other kinds: which fit a weight

CONV, BIAS = (4, 6, 3, 3), {"w.bias": (4,)}
NOT_A_SIZE = torch.tensor([torch.nan, torch.inf])


def update(*shapes, **parts):
    """A module with tensors of ones by role; ``up`` and ``down`` first, if two shapes are given."""
    roles = dict(zip(("up", "down"), shapes, strict=False)) | parts
    tensors = {role: shape if isinstance(shape, torch.Tensor) else torch.ones(shape) for role, shape in roles.items()}
    return Module("w", tensors)


@pytest.mark.parametrize(
    ("module", "shape", "fitting"),
    [
        (update((4, 2), (2, 6)), (4, 6), True),
        (update((4, 2), (2, 6)), (6, 4), False),
        (update((4, 2), (2, 6)), (), False),
        (update((4, 2, 1, 1), (2, 6, 3, 3)), CONV, True),
        (update((4, 2), (2, 3), mid=(2, 2, 3, 3)), CONV, False),
        (update((4, 2), (2, 6), mid=(2, 2, 3, 3)), CONV, True),
        (update((4, 2), (2, 6), mid=(2, 2)), CONV, False),
        (update((4, 2), (2, 6), dora_scale=(4, 1)), (4, 6), True),
        (update((4, 2), (2, 6), dora_scale=(5, 1)), (4, 6), False),
        (update((4, 2), (2, 8), reshape_weight=torch.tensor([4, 8])), (4, 6), True),
        (update((4, 2), (2, 8), reshape_weight=torch.tensor([4, 5])), (4, 6), False),
        (update((4, 2), (2, 8), reshape_weight=torch.tensor([4, 8, 1])), (4, 6), False),
        (update((4, 2), (2, 8), reshape_weight=NOT_A_SIZE), (4, 6), False),
        (update(diff=(4, 6)), (4, 6), True),
        (update(diff=(24,)), (4, 6), False),  # as many numbers, and the host would leave them out
        (update(diff=(4, 6), diff_b=(4,)), (4, 6), True),
        (update(diff=(4, 6), diff_b=(4, 1)), (4, 6), False),
        (update(set_weight=(6, 4)), (4, 6), False),
        (update(lokr_w1=(2, 2), lokr_w2=(2, 3)), (4, 6), True),
        (update(lokr_w1=(2, 2), lokr_w2_a=(2, 1), lokr_w2_b=(1, 3)), (4, 6), True),
        (update(lokr_w1=(2, 2), lokr_w2_a=(2, 1)), (4, 6), False),
        (update(lokr_w1=(2, 2), lokr_w2=(2, 2)), (4, 6), False),
        (update(hada_w1_a=(4, 2), hada_w1_b=(2, 6), hada_w2_a=(4, 2), hada_w2_b=(2, 6)), (4, 6), True),
        (update(hada_w1_a=(4, 2), hada_w1_b=(2, 5), hada_w2_a=(4, 2), hada_w2_b=(2, 6)), (4, 6), False),
        (update(hada_w1_a=(4, 2), hada_w1_b=(2, 6)), (4, 6), False),
    ],
)  # fmt: skip
def test_shapes_that_fit(module, shape, fitting):
    assert fits(module, files.Target("w.weight"), {"w.weight": shape, **BIAS}) is fitting


def test_a_part_of_a_weight_takes_updates_of_its_own_rows():
    rows, shapes = files.Target("w.weight", (0, 2)), {"w.weight": (4, 6), **BIAS}
    assert fits(update(diff=(2, 6), diff_b=(2,)), rows, shapes)
    assert fits(update(set_weight=(2, 6)), rows, shapes)
    assert fits(update(lokr_w1=(2, 2), lokr_w2=(1, 3)), rows, shapes)
    assert fits(update((2, 1), (1, 6), magnitude=(2,)), rows, shapes)
    assert not fits(update((2, 1), (1, 6), magnitude=(4,)), rows, shapes)
    assert not fits(update(lokr_w1=(2, 2), lokr_w2=(2, 3)), rows, shapes)
    assert not fits(update((2, 1), (1, 6)), rows, {})


def test_differences_of_parts_are_joined_in_the_widest_type():
    q, v = (f"transformer.transformer_blocks.0.attn.to_{letter}" for letter in "qv")
    odd = torch.full((6, 6), 1 / 3)
    output, report = run({f"{q}.diff": torch.ones(6, 6, dtype=torch.float8_e4m3fn), f"{v}.diff": odd})
    joined = output["diffusion_model.joint_blocks.0.x_block.attn.qkv.diff"]
    assert report.complete and torch.equal(joined, torch.cat([torch.ones(6, 6), torch.zeros(6, 6), odd]))


def test_a_product_of_a_part_is_not_joined():
    stem = "transformer.transformer_blocks.0.attn.to_q"
    product = {f"{stem}.lokr_w1": torch.ones(2, 2), f"{stem}.lokr_w2": torch.ones(3, 3)}
    with pytest.raises(PCMError, match=r"lokr_w1 updates a part of .*qkv.* by lokr_w1, lokr_w2"):
        run(product)


def test_parts_of_two_types_are_not_rounded():
    names = ["transformer.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_k"]
    (half, first), (whole, second) = (
        files.lora([n], dtype=d) for n, d in zip(names, (torch.half, torch.float), strict=True)
    )
    got = files.update_of(run(half | whole)[0], "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight")
    want = torch.cat([first[names[0]], second[names[1]], torch.zeros(6, 6)])
    assert torch.allclose(got, want, rtol=0, atol=1e-6)


# Command line


def test_report_and_convert(tmp_path, capsys):
    source, out = tmp_path / "pcm_sd15_smallcfg_4step.safetensors", tmp_path / "out.safetensors"
    save_file(raw_unet("base_model.model."), source)
    assert lora.main([str(source)]) == 0
    assert "PEFT (base_model.model.*.lora_B.weight)" in capsys.readouterr().out
    assert lora.main([str(source), "--convert", str(out)]) == 0
    written = load_file(out)
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    assert set(written) == {f"{stem}.{part}" for part in ("lora_up.weight", "lora_down.weight", "alpha")}
    profile = profile_for(out)
    assert (profile.method, profile.phases, profile.sources["phases"]) == ("PCM", 4, "metadata")
    assert portable(written)[1].scales == {0.125: 1}
    assert lora.main([str(source), "--convert", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_convert_keeps_names_whose_dots_are_lost(tmp_path):
    stem = "lora_transformer_single_transformer_blocks_0_attn_to_q"
    source, out = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    save_file({f"{stem}.lora_{side}.weight": torch.ones(2, 2) for side in ("up", "down")}, source)
    assert lora.convert(source, out).complete
    assert set(load_file(out)) == {f"{stem}.lora_{side}.weight" for side in ("up", "down")}


def test_convert_spells_wan_natively_and_keeps_what_it_does_not_know(tmp_path):
    stems = {
        "transformer.blocks.3.attn1.to_out.0": "blocks.3.self_attn.o",
        "transformer.blocks.3.ffn.net.2": "blocks.3.ffn.2",
    }
    tensors = {f"{stem}.lora_{side}.weight": torch.ones(2, 2) for stem in stems for side in "AB"}
    source, out = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    save_file(tensors | {"lora_te_a.lora_A.weight": torch.ones(1, 1), "other": torch.ones(1)}, source)
    report = lora.convert(source, out)
    assert report.unknown == ("other",)
    want = {f"diffusion_model.{name}.lora_{side}.weight" for name in stems.values() for side in ("up", "down")}
    assert set(load_file(out)) == want | {"lora_te_a.lora_A.weight", "other"}
