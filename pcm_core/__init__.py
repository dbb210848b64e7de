"""Phased Consistency Models in plain torch: schedules, the sampler, LoRA profiles and distillation.

    >>> schedule = build_schedule(phases=4)
    >>> x = sample_pcm(model, noise * sigmas[0], sigmas := schedule.sigmas(table))

``phases`` says where to jump, ``sampling`` jumps, ``profiles`` knows what a LoRA file wants. Read them in that order.
"""
