"""Distil a PCM LoRA from the command line, on one CPU, one GPU or many.

    pcm distill --comfyui ComfyUI --model sd3.safetensors --latents cache.pt --out pcm.safetensors
    accelerate launch -m scripts.distill --comfyui ComfyUI --model sd3.safetensors --images folder \\
        --vae vae.safetensors --clip clip_l.safetensors --clip t5.safetensors --clip-type sd3 --out pcm.safetensors

The data is one of three. ``--images`` is a folder of images with a caption in a .txt file beside each. They are encoded
once, by the model's own VAE and text encoder, and kept in ``--cache``, which is used again as long as images, captions,
``--size`` and encoders have not changed. ``--prompts`` is a text file with one caption per line, for which the model
draws its own latents; they are cached in the same way. ``--latents`` is such a cache.

ComfyUI's own loader loads the model file, so every model that ComfyUI loads can be distilled. Several processes need
Hugging Face Accelerate (``pip install accelerate``). Each draws the same global batch and takes its part of it, so the
number of processes does not change the result.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pcm_core.distill import ADVERSARIAL_LR, ADVERSARIAL_SPAN, usual_warmup

from ..progress import bar
from ..workers import Pack, Workers, load_pack
from .files import StepLog, read_cache, read_state, reason, refuse, save_state
from .images import cache_path, encode_images
from .prompts import draw_latents


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pcm distill", description="Distil a PCM LoRA.")
    parser.add_argument("--comfyui", metavar="PATH", help="a ComfyUI checkout; default: COMFYUI_PATH")
    _add_data(parser)
    _add_training(parser)
    _add_matching(parser)
    _add_progress(parser)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("model and data")
    data.add_argument("--model", type=Path, required=True, help="diffusion model, as UNETLoader takes it")
    data.add_argument("--latents", type=Path, help="cache written by an earlier run with --images")
    data.add_argument("--images", type=Path, help="folder of images with .txt captions")
    data.add_argument(
        "--prompts", type=Path, help="text file, one caption per line, for which the model draws its own latents"
    )
    data.add_argument("--cache", type=Path, help="cache file of --images or --prompts; default: beside --out")
    data.add_argument("--vae", type=Path, help="for --images")
    data.add_argument(
        "--clip", type=Path, action="append", help="text encoder for --images and --prompts; repeat for several"
    )
    data.add_argument("--clip-type", default="stable_diffusion", help="as CLIPLoader's type, e.g. sd3, wan")
    data.add_argument(
        "--size",
        type=int,
        default=512,
        help="side of the square to which images are cropped, or in which they are drawn",
    )
    data.add_argument("--length", type=int, default=1, help="frames of the clips that --prompts draws")
    data.add_argument("--out", type=Path, required=True, help="the LoRA, .safetensors")


def _add_training(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("training")
    run.add_argument("--phases", type=int, default=4)
    run.add_argument("--steps", type=int, default=1000)
    run.add_argument("--batch", type=int, default=4, help="summed over all processes")
    run.add_argument("--accumulate", type=int, default=1)
    run.add_argument("--lr", type=float, default=1e-4)
    run.add_argument("--warmup", type=int, help="steps until the full rate; default: a tenth of --steps, at most 100")
    run.add_argument("--rank", type=int, default=32)
    run.add_argument("--alpha", type=float, help="the LoRA is scaled by alpha / rank; default: the rank")
    run.add_argument("--targets", default="", help="parts of module names, separated by commas; default: all")
    run.add_argument("--cfg", type=float, nargs=2, default=(4.0, 6.0), metavar=("MIN", "MAX"),
                     help="teacher guidance, ComfyUI's cfg; 1 1 for none")  # fmt: skip
    run.add_argument("--caption-dropout", type=float, default=0.0)
    run.add_argument("--adversarial", type=float, default=0.0)
    run.add_argument("--adversarial-span", type=float, nargs=2, default=ADVERSARIAL_SPAN, metavar=("LOW", "HIGH"),
                     help="part of the phase its discriminator sees (default: %(default)s; authors 0 1)")  # fmt: skip
    run.add_argument("--adversarial-lr", type=float, default=ADVERSARIAL_LR, help="of its heads (authors: 1e-5)")
    run.add_argument("--loss", choices=("huber", "l2"), default="huber")
    run.add_argument("--ema", type=float, default=0.0)
    run.add_argument("--solver-grid", type=int, default=0, help="0: the one whose edges are sampled")
    run.add_argument("--checkpointing", action="store_true", help="recompute blocks in the backward pass")
    run.add_argument("--memory", choices=("auto", "off", "stream"), default="auto", help="auto: checkpointing, then "
                     "streaming of the weights, where it would not fit; stream: always")  # fmt: skip
    run.add_argument("--bf16", action="store_true", help="bf16 autocast; the LoRA stays fp32")
    run.add_argument("--adapter-dtype", choices=("fp32", "bf16"), default="fp32", help="bf16: a rounded LoRA on the "
                     "device, its fp32 values and the optimizer in main memory")  # fmt: skip
    run.add_argument("--seed", type=int, default=0)


def _add_matching(parser: argparse.ArgumentParser) -> None:
    match = parser.add_argument_group("matching stage")
    match.add_argument("--stage", choices=("consistency", "matching", "both"), default="consistency",
                       help="matching continues from --start; both runs a consistency stage before it")  # fmt: skip
    match.add_argument("--start", type=Path, help="LoRA to continue from, with the same rank, targets and phases")
    match.add_argument("--matching-cfg", type=float, default=6.0, help="guidance, a little above the teacher's own")
    match.add_argument("--matching-walk", choices=("path", "phase"), default="path",
                       help="where the bank's teacher begins: at pure noise, or where the last phase begins, which is "
                       "several times cheaper and less good")  # fmt: skip
    match.add_argument("--matching-steps", type=int, default=450, help="updates of the student")
    match.add_argument("--matching-renoised", type=int, default=0, metavar="STEPS",
                       help="with --phases 1: for a LoRA that is sampled as LCM in so many steps")  # fmt: skip
    match.add_argument("--bank", type=Path, help="folder of its (noise, text) pairs; default: beside --out")
    match.add_argument("--new-bank", action="store_true", help="make the pairs again")


def _add_progress(parser: argparse.ArgumentParser) -> None:
    keep = parser.add_argument_group("progress")
    keep.add_argument("--state", type=Path, help="checkpoint file: resumed from if it exists; written during the "
                      "run, at its end and when it is interrupted")  # fmt: skip
    keep.add_argument("--save-every", type=int, default=250, help="steps between checkpoints; 0 for the end only")
    # Not --log: torchrun takes that for an abbreviation of its own options.
    keep.add_argument("--csv", type=Path, help="loss, gradient norm and learning rate of every step")
    keep.add_argument("--single", action="store_true", help="one process, without Accelerate")


def check(options: argparse.Namespace) -> None:
    """Refuse invalid options before anything is loaded, and create missing folders."""
    if sum(given is not None for given in (options.images, options.latents, options.prompts)) != 1:
        sys.exit("Give one of --images, --latents and --prompts.")
    if options.alpha is not None and not 0 < options.alpha < math.inf:
        refuse(f"--alpha is {options.alpha:g}.", "a finite number above 0.", "Leave it out to use the rank.")
    for path in (options.model, options.latents, options.prompts, options.vae, options.start, *(options.clip or [])):
        if path is not None and not path.is_file():
            refuse(f"{path} does not exist or is not a file.", "a file.", "Correct the name.")
    if options.stage == "matching" and options.start is None:
        refuse("--stage matching has no LoRA to start from.", "a --start.", "Give one, or take --stage both.")
    if options.images is not None and not options.images.is_dir():
        refuse(f"{options.images} does not exist or is not a folder.", "a folder of images.", "Correct the name.")
    for path in (options.out, options.state, options.cache):
        if path is not None and path.exists() and not path.is_file():
            refuse(f"{path} is not a file.", "the name of a file that can be written.", "Give another name.")
    for path in (options.out, options.state, options.csv, options.cache):
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                refuse(f"{path.parent} cannot be made ({reason(error)}).", "a folder.", "Give another name.")


class StopRequest:
    """Ctrl-C and SIGTERM end the run after the current step, so that its checkpoint is complete; a second one at once.

    Several processes agree on the step: a signal to one stops all.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers, self.received, self.between_steps = workers, False, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        self.received = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def check(self) -> None:
        received = torch.tensor([float(self.received)])
        if self.workers.count > 1:
            self.workers.average([received])
        if float(received) > 0:
            self.between_steps = True
            raise KeyboardInterrupt


def make_config(options: argparse.Namespace, pack: Pack) -> Any:
    """The training settings, checked like those of the node."""
    config = pack("pcm_core.distill").DistillConfig(
        phases=options.phases, steps=options.steps, batch=options.batch, accumulate=options.accumulate, lr=options.lr,
        warmup=usual_warmup(options.steps) if options.warmup is None else options.warmup,
        loss=options.loss, cfg=tuple(options.cfg), caption_dropout=options.caption_dropout,
        ema=options.ema, adversarial=options.adversarial,
        adversarial_span=tuple(options.adversarial_span), adversarial_lr=options.adversarial_lr,
        autocast=torch.bfloat16 if options.bf16 else None,
        seed=options.seed,
    )  # fmt: skip
    return pack("nodes.training.job").with_matching_grid(config, options.solver_grid)


def load_model(path: Path, pack: Pack) -> Any:
    try:
        return pack("nodes.host.loaders").load_model(path)
    except Exception as error:  # the host's loader may raise anything for a file that is not a model
        refuse(
            f"{path} cannot be loaded ({reason(error)}).",
            "a diffusion model that ComfyUI's UNETLoader loads.",
            "Give another --model.",
        )


def make_job(options: argparse.Namespace, pack: Pack, config: Any, cached: dict[str, Any] | None = None) -> Any:
    """Load the model and the cached data, and check both as the node does."""
    training, cached = pack("nodes.training.job"), cached or read_cache(cache_path(options))
    model, latents = load_model(options.model, pack), cached["latents"]
    if latents is None:
        states = pack("nodes.training.states")
        latents = states.placeholders(model, cached["texts"], states.Size(options.size, options.size, options.length))
    matching = None
    if options.stage != "consistency":
        usual, more = pack("pcm_core.distill").matching_after, {"walk": options.matching_walk}
        if options.matching_renoised:
            more |= {"renoised": options.matching_renoised, "regression": 0.0}
        matching = usual(config, steps=options.matching_steps, cfg=options.matching_cfg, **more)
    return training.Job.checked(
        model=model,
        latents=latents,
        texts=cached["texts"],
        negative=cached["negative"],
        config=config,
        rank=options.rank,
        alpha=options.alpha,
        targets=tuple(part.strip() for part in options.targets.split(",") if part.strip()),
        adapter_dtype=torch.bfloat16 if options.adapter_dtype == "bf16" else torch.float32,
        checkpointing=options.checkpointing,
        existing=options.start,
        stage=options.stage,
        matching=matching,
        bank=options.bank or options.out.with_suffix(".bank"),
        new_bank=options.new_bank,
        fit_memory=options.memory,
    )


def bank_bar(show: bool) -> Callable[[int, int], None]:
    """The progress bar of the bank."""
    bars: list[Any] = []

    def on_bank(done: int, of: int) -> None:
        if not bars:
            bars.append(bar(of, "bank", unit="pairs", show=show))
        bars[0].update(done - bars[0].n)
        if done == of:
            bars[0].close()

    return on_bank


def _due(step: int, job: Any, every: int) -> bool:
    """Whether a checkpoint is due after this step: at the end of a stage, or after every ``every`` steps."""
    return step in (job.steps, job.config.steps) or bool(every and step % every == 0)


def train(options: argparse.Namespace, pack: Pack, workers: Workers, job: Any) -> None:
    """Train with checkpoints, log and progress bar; the first process writes the files."""
    metadata = pack("nodes.training.job").metadata_for(job.model, job.config, job.existing, job.matching)
    processes = pack("pcm_core.distill").Processes(workers.rank, workers.count, workers.average)
    sessions: list[Any] = []

    def watch(session: Any) -> Callable[[Any], None]:
        sessions.append(session)
        if options.state is not None and options.state.exists():
            session.resume(read_state(options.state))
        first = session.step_number
        log = StepLog(options.csv if workers.first else None, done=first)
        session.on_bank = bank_bar(workers.first)
        shown = bar(job.steps, "distill", done=first, unit="steps", show=workers.first, delay=0)

        def after_step(report: Any) -> None:
            if workers.first:
                log(report)
                shown.set_postfix_str(f"loss {report.loss:.5f}", refresh=False)
                shown.update()
                if options.state and _due(report.step, job, options.save_every):
                    save_state(session.state(), options.state)
            if report.step < job.steps:
                stop.check()

        return after_step

    stop = StopRequest(workers)
    try:
        outcome = pack("nodes.training.session").run(
            job, metadata, watch=watch, processes=processes if workers.count > 1 else None, rescue=workers.first
        )
    except KeyboardInterrupt:
        if options.state and workers.first and stop.between_steps:
            save_state(sessions[0].state(), options.state)
            sys.exit(f"\nInterrupted at step {sessions[0].step_number}; the same command continues from there.")
        sys.exit("\nInterrupted.")
    if workers.first:
        written = pack("nodes.training.lora_file").write_or_rescue(options.out, outcome.lora)
        held = "" if written == options.out else f"; {options.out.name} is open in another program and stays as it was"
        print(f"wrote {written}{held}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    check(options)
    workers = Workers.start(options.single, on_cpu=not torch.cuda.is_available(), patient=options.latents is None)
    pack = load_pack(options.comfyui)
    errors = pack("pcm_core.errors")
    try:
        config = make_config(options, pack)  # before images are encoded, which can take hours
        if options.images is not None:
            if workers.first:
                encode_images(options, pack("nodes.host.loaders"))
            workers.wait()
        if options.prompts is not None:
            if workers.first:
                draw_latents(options, pack, lambda cached: make_job(options, pack, config, cached))
            workers.wait()
        train(options, pack, workers, make_job(options, pack, config))
    except errors.PCMError as error:
        sys.exit(str(error))
