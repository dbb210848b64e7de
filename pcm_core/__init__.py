"""Phased Consistency Models in plain torch: schedules, the sampler, LoRA profiles and distillation.

    >>> sigmas = build_schedule(phases=4).sigmas(table)
    >>> latent = sample_pcm(model, noise * sigmas[0], sigmas)

``phases`` says where to jump and ``sampling`` jumps: read these two first, then ``distill`` for how a model learns it.
``profiles`` and ``lora`` know what a LoRA file holds and wants.
"""
