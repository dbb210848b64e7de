"""The cost of a distillation step, compared with a plain three-model loop like the authors'.

The plain loop holds student, teacher and target as three networks with LoRA layers as in peft, evaluates the teacher's
positive and negative text one after the other, and with the adversarial loss alternates: one iteration for the
discriminator, one for the generator, each with a full student pass. Both loops draw the same batches from the same
seed, so without the adversarial loss their loss curves must be equal. The networks have random weights: the demo
world's SD3 transformer and a narrow SD 1.5 UNet of the host (COMFYUI_PATH). Times are CPU times of single updates,
taken in turn so that both loops see the same load.

    python -m benchmarks.distill_cost [--updates 40] [--batch 4]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import markdown
from demo.distill import TABLE
from demo.mmdit import MMDiT
from demo.world import all_prompts, embed
from devtools.generate.host_nodes import load
from pcm_core import distill
from pcm_core.distill import objective

RANK = 16
TARGET = 1.2  # times the plain loop's updates per second


@dataclass(frozen=True)
class Kind:
    """A network with random weights and its training setup.

    Attributes:
        build: creates the network.
        call: ``(network, x, sigma [B], captions [B]) -> x0``.
        modules: name parts of the modules that get a LoRA.
        table: ascending sigmas.
        shape: shape of a latent.
    """

    build: Callable[[], nn.Module]
    call: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    modules: tuple[str, ...]
    table: Tensor
    flow: bool
    shape: tuple[int, ...]


def transformer() -> Kind:
    """The demo world's SD3 transformer: 2 blocks, 34 tokens."""
    context, pooled = embed([*all_prompts(), None])

    def call(model: nn.Module, x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
        return x - sigma[:, None, None, None] * model(x, 1000 * sigma, context[captions], pooled[captions])

    return Kind(MMDiT, call, ("attn", "mlp"), TABLE, True, (16, 8, 8))


def unet() -> Kind:
    """The host's SD 1.5 UNet with all its blocks, a tenth as wide."""
    load()
    import comfy.ldm.modules.diffusionmodules.openaimodel
    import comfy.model_sampling
    import comfy.ops

    make: Any = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel
    sampling: Any = comfy.model_sampling.ModelSamplingDiscrete()
    table: Tensor = sampling.sigmas
    context = torch.randn(21, 77, 64, generator=torch.Generator().manual_seed(4))

    def build() -> nn.Module:
        return make(
            image_size=32, in_channels=4, out_channels=4, model_channels=32, context_dim=64, num_heads=8,
            num_res_blocks=[2, 2, 2, 2], channel_mult=[1, 2, 4, 4], transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
            transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], transformer_depth_middle=1,
            use_spatial_transformer=True, legacy=False, operations=comfy.ops.disable_weight_init,
        )  # fmt: skip

    def call(model: nn.Module, x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
        def network(scaled: Tensor, level: Tensor) -> Tensor:
            timestep = (table[None] - level[:, None]).abs().argmin(1)
            return model(scaled, timestep.float(), context=context[captions])

        return distill.as_denoiser(network, "eps")(x, sigma)

    return Kind(build, call, ("transformer_blocks",), table, False, (4, 8, 8))


KINDS: dict[str, Callable[[], Kind]] = {"SD3 transformer": transformer, "SD 1.5 UNet": unet}


class Network:
    """A denoiser for numbered texts that counts its calls and samples."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.model = kind, random_model(kind)
        self.calls = self.samples = 0

    def __call__(self, x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
        self.calls, self.samples = self.calls + 1, self.samples + len(x)
        return self.kind.call(self.model, x, sigma, captions)


class LoraLinear(nn.Module):
    """A frozen linear layer and its LoRA, alpha equal to the rank, added as peft adds it."""

    def __init__(self, base: nn.Linear, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.base, self.scaling = base, 1.0
        self.down, self.up = nn.Parameter(down.detach().clone()), nn.Parameter(up.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        return result + nn.functional.linear(nn.functional.linear(x, self.down), self.up) * self.scaling


def with_lora(model: nn.Module, adapters: distill.Adapters | distill.LowRankSet) -> list[nn.Parameter]:
    """Add LoRA layers with the initial weights of ``adapters`` to a model; returns the trainable parameters."""
    trained: list[nn.Parameter] = []
    for name, pair in adapters.pairs.items():
        parent, _, own = name.rpartition(".")
        layer = LoraLinear(model.get_submodule(name), pair.down, pair.up)  # pyright: ignore[reportArgumentType]
        setattr(model.get_submodule(parent), own, layer)
        trained += [layer.down, layer.up]
    return trained


def new_adapters(kind: Kind, model: nn.Module) -> distill.Adapters:
    modules = {name: m for name, m in distill.adaptable(model, kind.modules).items() if isinstance(m, nn.Linear)}
    return distill.Adapters(modules, RANK, generator=torch.Generator().manual_seed(1))


def random_model(kind: Kind) -> nn.Module:
    torch.manual_seed(0)
    model = kind.build().eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(float(name.endswith("weight")))
    return model


def data(kind: Kind) -> distill.LatentSet:
    generator = torch.Generator().manual_seed(2)
    return distill.LatentSet([torch.randn(64, *kind.shape, generator=generator)], [i % 20 for i in range(64)])


def discriminator(network: Network) -> distill.Discriminator:
    found = list(distill.blocks(network.model))
    features = distill.BlockFeatures(network, found)
    with torch.no_grad():
        rows = torch.zeros(1, dtype=torch.int64)
        widths = [part.shape[-1] for part in features(torch.zeros(1, *network.kind.shape), torch.ones(1), rows)]
    return distill.Discriminator(features, distill.DiscriminatorHeads(widths, 32, torch.Generator().manual_seed(3)))


class Ours:
    """The library's trainer: one network."""

    def __init__(self, kind: Kind, config: distill.DistillConfig, attached: ExitStack) -> None:
        network = Network(kind)
        adapters = new_adapters(kind, network.model)
        self.networks = [network]
        critic = discriminator(network) if config.adversarial else None
        self.trainer = distill.Trainer(
            network, adapters, data(kind), kind.table, config, flow=kind.flow, discriminator=critic
        )  # fmt: skip
        attached.enter_context(adapters.attached())
        network.calls = network.samples = 0

    def update(self) -> float:
        """One update of the generator, and of the discriminator if there is one."""
        return self.trainer.step().loss

    def memory(self) -> dict[str, list[Tensor]]:
        trainer = self.trainer
        trained = list(trainer.adapters.student.parameters())
        return {
            "base weights": list(self.networks[0].model.parameters()),
            "LoRA": list(trained),
            "copy to fall back on": list(trainer._good),
            **training_memory(trainer, trainer.optimizer, trained),
        }


class Plain:
    """Three networks with the same draws, losses and learning rates, in the order of the authors' scripts."""

    def __init__(self, kind: Kind, config: distill.DistillConfig, attached: ExitStack) -> None:
        self.kind, self.config = kind, config
        self.networks = [Network(kind) for _ in range(3)]
        self.student, self.teacher, self.target = self.networks
        adapters = new_adapters(kind, self.student.model)
        critic = discriminator(self.teacher) if config.adversarial else None
        # Used for its draws and its discriminator only; its adapters are not attached.
        self.trainer = distill.Trainer(
            self.teacher, copy.deepcopy(adapters), data(kind), kind.table, config, flow=kind.flow, discriminator=critic
        )  # fmt: skip
        self.trained = with_lora(self.student.model, adapters)
        self.copied = with_lora(self.target.model, adapters)
        self.optimizer = torch.optim.AdamW(self.trained, lr=config.lr, betas=(0.9, 0.99), weight_decay=0)
        for network in self.networks:
            network.calls = network.samples = 0

    def update(self) -> float:
        if self.config.adversarial:
            self._discriminator(self._pair())
        batch, pair = self._pair()
        loss = total = distill.pseudo_huber(pair.error, self.config.huber_c)
        if self.config.adversarial:
            total = total + self.config.adversarial * distill.hinge_generator(self._scores(batch, pair.prediction, 1))
        self.optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(self.trainer.step_number)
        self.optimizer.step()
        self.trainer.step_number += 1
        with torch.no_grad():
            for theirs, mine in zip(self.copied, self.trained, strict=True):
                theirs.copy_(mine)
        return float(loss.detach())

    def memory(self) -> dict[str, list[Tensor]]:
        lora = {id(parameter) for parameter in (*self.trained, *self.copied)}
        every = [parameter for network in self.networks for parameter in network.model.parameters()]
        return {
            "base weights": [parameter for parameter in every if id(parameter) not in lora],
            "LoRA": [*self.trained, *self.copied],
            "copy to fall back on": [],
            **training_memory(self.trainer, self.optimizer, self.trained),
        }

    def _pair(self) -> tuple[Any, objective.PhasedPair]:
        batch = self.trainer._draw()
        null = torch.full_like(batch.captions, -1)

        def student(x: Tensor, sigma: Tensor) -> Tensor:
            return self.student(x, sigma, batch.captions)

        def teacher(x: Tensor, sigma: Tensor) -> Tensor:
            conditional = self.teacher(x, sigma, batch.captions)
            return distill.guided(conditional, self.teacher(x, sigma, null), batch.cfg.to(x))

        def target(x: Tensor, sigma: Tensor) -> Tensor:
            return self.target(x, sigma, batch.captions)

        grid = self.trainer.grid
        return batch, distill.phased_pair(
            student, teacher, target, batch.clean, batch.noise, batch.index, grid, flow=self.kind.flow
        )

    def _scores(self, batch: Any, x: Tensor, which: int) -> list[Tensor]:
        assert self.trainer.discriminator is not None
        edge = self.trainer.grid.edge[batch.index]
        noised = distill.renoise(x, edge, batch.level, batch.renoise[which], flow=self.kind.flow)
        return self.trainer.discriminator.heads(
            self.trainer.discriminator.features(noised, batch.level, batch.captions)
        )

    def _discriminator(self, drawn: tuple[Any, objective.PhasedPair]) -> None:
        batch, pair = drawn
        assert self.trainer.discriminator_optimizer is not None
        real, fake = self._scores(batch, pair.landing, 0), self._scores(batch, pair.prediction.detach(), 1)
        self.trainer.discriminator_optimizer.zero_grad()
        distill.hinge_discriminator(real, fake).backward()
        self.trainer.discriminator_optimizer.step()


def training_memory(
    trainer: distill.Trainer, optimizer: torch.optim.Optimizer, trained: Iterable[nn.Parameter]
) -> dict[str, list[Tensor]]:
    """Training memory without the base weights; the discriminator's part is the same for both loops."""
    parameters = [*trained, *(trainer.discriminator.heads.parameters() if trainer.discriminator else ())]
    optimizers = [optimizer, *([trainer.discriminator_optimizer] if trainer.discriminator_optimizer else [])]
    moments = [value for each in optimizers for entry in each.state.values() for value in entry.values()]
    return {
        "gradients": [parameter.grad for parameter in parameters if parameter.grad is not None],
        "optimizer": [value for value in moments if isinstance(value, Tensor)],
        "heads": list(trainer.discriminator.heads.parameters()) if trainer.discriminator else [],
    }


class KeptForBackward:
    """Peak memory of the tensors that autograd saves for backward, without parameters."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.now = self.peak = 0
        self._uses: Counter[int] = Counter()
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    @contextmanager
    def watching(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Saved(tensor, self), lambda saved: saved.tensor):
            yield

    def change(self, tensor: Tensor, by: int) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._parameters:
            return
        before = self._uses[storage.data_ptr()]
        self._uses[storage.data_ptr()] = after = before + by
        if (before == 0) != (after == 0):
            self.now += by * storage.nbytes()
            self.peak = max(self.peak, self.now)


class _Saved:
    def __init__(self, tensor: Tensor, ledger: KeptForBackward) -> None:
        self.tensor, self.ledger = tensor, ledger
        ledger.change(tensor, 1)

    def __del__(self) -> None:
        self.ledger.change(self.tensor, -1)


def megabytes(tensors: Iterable[Tensor]) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6


def parameter_megabytes(loop: Any) -> float:
    held: dict[str, list[Tensor]] = loop.memory()
    return megabytes(itertools.chain(held["base weights"], held["LoRA"], held["copy to fall back on"]))


def compare(title: str, kind: Kind, config: distill.DistillConfig, attached: ExitStack) -> None:
    loops: dict[str, Any] = {"trainer": Ours(kind, config, attached), "plain loop": Plain(kind, config, attached)}
    curves: dict[str, list[float]] = {name: [] for name in loops}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    kept: dict[str, KeptForBackward] = {}
    for step in range(config.steps):
        for name, loop in loops.items() if step % 2 else reversed(loops.items()):
            started = time.process_time()
            curves[name].append(loop.update())
            seconds[name].append(time.process_time() - started)
    calls = {name: sum(n.calls for n in loop.networks) / config.steps for name, loop in loops.items()}
    samples = {name: sum(n.samples for n in loop.networks) / config.steps for name, loop in loops.items()}
    for name, loop in loops.items():
        held = loop.memory()
        kept[name] = KeptForBackward([*held["base weights"], *held["LoRA"], *held["heads"]])
        with kept[name].watching():
            loop.update()
    memory = {name: {part: megabytes(held) for part, held in loop.memory().items()} for name, loop in loops.items()}
    rows = [
        ["model calls", *(f"{calls[name]:.1f}" for name in loops)],
        ["samples through the model", *(f"{samples[name]:.1f}" for name in loops)],
        ["CPU ms, median", *(f"{1e3 * statistics.median(seconds[name]):.1f}" for name in loops)],
        *([f"MB: {part}", *(f"{memory[name][part]:.2f}" for name in loops)] for part in memory["trainer"]),
        ["MB: kept for backward, peak", *(f"{kept[name].peak / 1e6:.2f}" for name in loops)],
    ]
    print(f"\n**{title}, adversarial {config.adversarial:g}, batch {config.batch}, {config.steps} updates**\n")
    print(markdown(["per update", *loops], rows))
    weights = [parameter_megabytes(loop) for loop in loops.values()]
    whole = [sum(memory[name].values()) + kept[name].peak / 1e6 for name in loops]
    speed = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    print(f"\nParameters {weights[0] / weights[1]:.0%} of the plain loop's, all of it {whole[0] / whole[1]:.0%}; "
          f"{speed:.2f} x its updates per second (median of the pairs).")  # fmt: skip
    if not config.adversarial:
        worst = max(abs(a - b) / b for a, b in zip(*curves.values(), strict=True))
        print(f"Largest relative difference of the loss curves: {worst:.1e}.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a distillation step.")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("The plain loop is the authors': three networks, peft's LoRA layers, the teacher's two texts one after the")
    print(
        "other, and with the adversarial loss an iteration each for discriminator and generator. Without that loss both"
    )
    print(f"send the same samples through the model. Target: {TARGET} x its updates per second.")
    for title, weight in itertools.product(KINDS, (0.0, 0.1)):
        config = distill.DistillConfig(
            phases=4, grid=40, steps=options.updates, batch=options.batch, lr=1e-3, warmup=4, cfg=(4.0, 6.0),
            adversarial=weight,
        )  # fmt: skip
        with ExitStack() as attached:
            compare(title, KINDS[title](), config, attached)


if __name__ == "__main__":
    main()
