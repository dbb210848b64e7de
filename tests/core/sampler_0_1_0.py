"""The loop of 0.1.0, kept as a reference for today's loop. It wrote large latents in place, with the same bits."""

from __future__ import annotations

import math

import torch

from pcm_core.sampling import seeded_noise


@torch.no_grad()
def sample_as_0_1_0(
    model, x, sigmas, extra_args=None, callback=None, *, determinism=1.0, flow=False, noise_scale=1.0, final=True
):
    levels = sigmas.flatten().tolist()
    steps = len(levels) - 1
    rates = [determinism] * steps if isinstance(determinism, float) else list(determinism)
    noise_sampler = seeded_noise(x, (extra_args or {}).get("seed"))
    inputs = x.new_empty(len(levels), x.shape[0]).copy_(sigmas.unsqueeze(1)).unbind()
    for i in range(steps):
        sigma, sigma_next = levels[i], levels[i + 1]
        denoised = model(x, inputs[i])
        if callback is not None:
            callback({"x": x, "i": i, "denoised": denoised})
        if sigma_next == 0.0:
            x = denoised
        elif rates[i] == 1.0 or (final and i + 1 == steps):
            x = torch.lerp(denoised, x, sigma_next / sigma)
        else:
            x = _land(x, denoised, sigma, sigma_next, rates[i], flow=flow)
            x = _add_noise(x, noise_sampler(sigma, sigma_next), sigma_next, rates[i], flow=flow, scale=noise_scale)
    return x


def _land(x, denoised, sigma, sigma_next, determinism, *, flow):
    if determinism == 0:
        return denoised
    kept = math.sqrt(determinism) * sigma_next
    if not flow:
        return torch.lerp(denoised, x, kept / sigma)
    weight = kept / sigma
    return (weight * x).add_(denoised, alpha=(1 - sigma_next) - weight * (1 - sigma))


def _add_noise(landing, noise, sigma_next, determinism, *, flow, scale):
    fresh = math.sqrt(1 - determinism) * sigma_next * scale
    if determinism > 0:
        return landing.add_(noise, alpha=fresh)
    return (landing * (1 - sigma_next)).add_(noise, alpha=fresh) if flow else torch.add(landing, noise, alpha=fresh)
