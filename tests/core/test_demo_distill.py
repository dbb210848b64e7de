"""The library's own trainer makes the demo world's LoRAs, and its file reader restores the student."""

from __future__ import annotations

import shutil

import torch
from safetensors import safe_open
from torch import Tensor, nn

from benchmarks.matching_terms import TERMS, with_terms
from demo.distill import Critic, Denoiser, distil, load_lora, save_lora
from demo.match import Matched, widened
from demo.teacher import LatentPool, load_teacher
from demo.train import MatchRun, matching, stage_match
from demo.train_vae import WEIGHTS, load_vae
from pcm_core.distill import Adapters, MatchingTrainer, adaptable
from pcm_core.safetensors_file import read_tensors


def test_a_saved_lora_is_the_student_and_the_teacher_stays(tmp_path):
    teacher, pool = load_teacher(), LatentPool(load_vae(), 250, seed=0)
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    first = distil(teacher, pool, 2, 4, rank=2, lr=1e-2, batch=4)
    lora = distil(teacher, pool, 2, 4, rank=2, lr=1e-2, batch=4, start=first, seed=1)
    assert all(torch.equal(value, before[name]) for name, value in teacher.named_parameters())

    save_lora(lora, "two.safetensors", 2, 8, 1e-2, tmp_path)
    merged = load_lora("two.safetensors", teacher, tmp_path)
    moved = [name for name, weight in merged.items() if not torch.equal(weight, before[name])]
    matrices = [name for name, value in before.items() if name.endswith(".weight") and value.ndim == 2]
    # The parts that only the context's last block would use get no gradient.
    assert set(moved) <= set(matrices) and len(moved) > 0.8 * len(matrices)
    for name in moved:
        module = f"diffusion_model.{name.removesuffix('.weight')}"
        update = lora[f"{module}.lora_up.weight"] @ lora[f"{module}.lora_down.weight"]
        torch.testing.assert_close(merged[name] - before[name], update, rtol=0, atol=2e-3 * float(update.abs().max()))

    x, sigma = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 0.5])
    text = pool.text(torch.tensor([0, 1]))
    with torch.no_grad():
        student = Denoiser(teacher, text, merged)(x, sigma)
        assert (student - Denoiser(teacher, text)(x, sigma)).abs().max() > 1e-3
    with safe_open(tmp_path / "two.safetensors", "pt") as file:
        assert file.metadata()["pcm_phases"] == "2" and file.metadata()["pcm_train_steps"] == "8"


def test_the_adversarial_loss_looks_where_it_is_told():
    teacher, pool = load_teacher(), LatentPool(load_vae(), 250, seed=0)
    before = {name: value.clone() for name, value in teacher.named_parameters()}

    def trained(critic: Critic | None) -> tuple[dict[str, Tensor], list[float]]:
        losses: list[float] = []
        lora = distil(
            teacher, pool, 2, 3, rank=2, lr=1e-2, batch=4, critic=critic,
            on_step=lambda report: losses.append(report.discriminator_loss),
        )  # fmt: skip
        return lora, losses

    plain, silent = trained(None)
    low, losses = trained(Critic())
    high, _ = trained(Critic(span=(0.75, 1.0)))
    assert silent == [0.0] * 3 and all(loss > 0 for loss in losses) and len(losses) == 3
    for one, other in ((plain, low), (low, high)):
        assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(value, before[name]) for name, value in teacher.named_parameters())


def test_the_match_stage_goes_on_from_a_lora_and_says_so_in_its_file(tmp_path):
    for name in ("demo_sd3.safetensors", "demo_pcm_2phase.safetensors"):
        shutil.copy(WEIGHTS / name, tmp_path)
    config = matching(2, steps=1, batch=4, fake_warmup=1)
    stage_match(tmp_path, [MatchRun("matched.safetensors", "demo_pcm_2phase.safetensors", config)], pairs=8)
    before, _ = read_tensors(tmp_path / "demo_pcm_2phase.safetensors")
    after, told = read_tensors(tmp_path / "matched.safetensors")
    assert before.keys() == after.keys() and any(not torch.equal(before[key], after[key]) for key in before)
    assert (told["pcm_phases"], told["pcm_train_steps"]) == ("2", "7201")
    assert (told["pcm_matching_steps"], told["pcm_matching_cfg"]) == ("1", "4.0") and "pcm_determinism" not in told


def test_the_terms_of_the_experiments_reach_the_lora():
    world, steps = Matched.pictures(), {}
    start = {name: value.float() for name, value in read_tensors(WEIGHTS / "demo_pcm_2phase.safetensors")[0].items()}
    walks = world.walks(8, 3.0)
    for name in ("", *TERMS):
        kind = with_terms({name: 50.0}, world.teacher) if name else MatchingTrainer
        config = matching(2, steps=2, batch=4, fake_warmup=1)
        steps[name] = world.train(start, config, 8, walks, kind=kind)
    for name in TERMS:
        assert any(not torch.equal(steps[name][key], steps[""][key]) for key in start), name
        assert all(bool(value.isfinite().all()) for value in steps[name].values())


def test_a_lora_of_more_rank_begins_as_the_one_it_starts_from():
    start, _ = read_tensors(WEIGHTS / "demo_lcm.safetensors")
    start = {name: value.float() for name, value in start.items()}
    matrices = {n: m for n, m in adaptable(load_teacher()).items() if isinstance(m, nn.Linear)}
    fresh = Adapters(matrices, 40, alpha=20.0, generator=torch.Generator().manual_seed(1)).lora()
    wide = widened(start, fresh)
    assert wide.keys() == start.keys()
    for name in matrices:
        stem = f"diffusion_model.{name}"
        one, other = (
            lora[f"{stem}.alpha"] / len(lora[f"{stem}.lora_down.weight"])
            * lora[f"{stem}.lora_up.weight"] @ lora[f"{stem}.lora_down.weight"]
            for lora in (start, wide)
        )  # fmt: skip
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
    new = wide[f"{stem}.lora_down.weight"][36:]
    assert new.shape[0] == 4 and float(new.abs().min()) > 0, "zero rows would never learn"
