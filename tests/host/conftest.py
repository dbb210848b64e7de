"""Boots the real ComfyUI in this process, loads the pack through the host's own loader and runs prompts in it.

COMFYUI_PATH names the checkout (0.16.3 to 0.30.0). Without it every test here is skipped. PCM_DEVICE=cuda runs the host
on its GPU instead of the CPU.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from devtools.server import on_cpu

HERE = Path(__file__).resolve().parent
PACK = HERE.parent.parent
COMFYUI = os.environ.get("COMFYUI_PATH")
# The stock nodes that the tests compare with or send through.
EXTRAS = (
    "custom_sampler", "latent", "hunyuan", "sd3", "model_advanced", "differential_diffusion", "freelunch", "pag",
    "perpneg", "flux", "lt", "wan", "mask", "cfg", "advanced_samplers", "controlnet", "apg", "context_windows",
    "canny", "dataset", "train", "preview_any", "images", "post_processing", "model_merging", "lora_extract",
    "lora_debug",
)  # fmt: skip

if str(HERE) not in sys.path:
    sys.path.append(str(HERE))  # for ``import tiny``


def _prepare(comfyui: Path, base: Path) -> None:
    """Make ``import comfy`` work, with the settings of these tests: test modules import the pack by path."""
    if not (comfyui / "nodes.py").exists():
        pytest.exit(f"COMFYUI_PATH is {comfyui}, which holds no nodes.py", returncode=1)
    here = (PACK, comfyui)
    sys.path[:] = [str(comfyui), *(p for p in sys.path if p and Path(p).resolve() not in here), str(PACK)]
    import comfy.options  # parsing stays off: pytest's own arguments are none of the host's business

    comfy.options.enable_args_parsing(False)
    import comfy.cli_args

    comfy.cli_args.args.cpu = on_cpu()  # before comfy.model_management
    comfy.cli_args.args.force_fp32 = True  # what a CPU does anyway
    comfy.cli_args.args.use_pytorch_cross_attention = True
    comfy.cli_args.args.base_directory = str(base)
    comfy.cli_args.args.disable_api_nodes = True
    importlib.import_module("utils.extra_config")  # before nodes, which puts <host>/comfy and its utils.py first


_folder = tempfile.TemporaryDirectory(prefix="comfyui-base-")
BASE = Path(_folder.name)
if COMFYUI:
    _prepare(Path(COMFYUI).resolve(), BASE)


class WithoutHost(pytest.Module):
    """A test module that cannot even be imported without a ComfyUI."""

    def collect(self) -> Any:
        pytest.skip("COMFYUI_PATH is not set: host tests need a ComfyUI checkout", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module | None:
    if COMFYUI or HERE not in module_path.parents:
        return None
    return WithoutHost.from_parent(parent, path=module_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.host)


class FakeServer:
    """What the executor and ``ComfyAPI`` touch of the server."""

    client_id = last_node_id = last_prompt_id = routes = None

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.sockets_metadata: dict[str, Any] = {}
        self.node_replace_manager = self
        self.prompt_queue = self
        self.currently_running: dict[int, tuple[Any, ...]] = {}

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        self.events.append((event, data))

    def register(self, replacement: Any) -> None:
        """NodeReplaceManager.register."""


class Host:
    """The running host: its ``nodes`` module, its models folder, and ways to call nodes and prompts."""

    def __init__(self, nodes: ModuleType, server: FakeServer, base: Path, changed: dict[str, tuple[Any, Any]]) -> None:
        self.nodes, self.server, self.base = nodes, server, base
        self.changed = changed  # of the host by loading the pack: name to before and after

    def node(self, node_id: str) -> Any:
        return self.nodes.NODE_CLASS_MAPPINGS[node_id]

    def call(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        """Execute one node directly, as the executor does: inference mode, defaults filled in."""
        import torch

        cls = self.node(node_id)
        for name, (_, *options) in {**cls.INPUT_TYPES()["required"]}.items():
            if name not in inputs and options and "default" in options[0]:
                inputs[name] = options[0]["default"]
        with torch.inference_mode():
            if hasattr(cls, "define_schema"):
                return tuple(cls.execute(**inputs).args)
            return tuple(getattr(cls(), cls.FUNCTION)(**inputs))

    def pack(self, module: str) -> ModuleType:
        """A module of the pack as the host loaded it, e.g. ``nodes.host`` or ``pcm_core.errors``."""
        return importlib.import_module(f"phased_consistency.{module}")

    def run_prompt(self, prompt: dict[str, Any], beside: Any = None, executor: Any = None) -> Any:
        """Validate and execute an API prompt; returns the PromptExecutor with its history and messages.

        ``beside``: what a client sends along for the metadata of pictures; ``executor``: one that has its cache.
        """
        import execution

        prompt_id = str(uuid.uuid4())
        valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt(prompt_id, prompt, None))
        assert valid and not node_errors, (error, node_errors)
        extra = {} if beside is None else {"extra_pnginfo": beside}
        if executor is None:
            options: dict[str, Any] = {}
            if "cache_args" in inspect.signature(execution.PromptExecutor.__init__).parameters:
                options["cache_args"] = {"lru": 0, "ram": 0, "ram_inactive": 0}
            executor = execution.PromptExecutor(self.server, cache_type=execution.CacheType.CLASSIC, **options)
        self.server.currently_running = {0: (0, prompt_id, prompt, extra, outputs)}  # as PromptQueue.get
        try:
            executor.execute(prompt, prompt_id, extra, outputs)
        finally:
            self.server.currently_running = {}
        return executor


def _boot(comfyui: Path, base: Path) -> Host:
    nodes, server = importlib.import_module("nodes"), importlib.import_module("server")
    import torch

    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    assert Path(nodes.__file__).parent == comfyui, f"import nodes found {nodes.__file__}"
    fake = FakeServer()
    server.PromptServer.instance = fake
    return Host(nodes, fake, base, asyncio.run(_load(nodes, comfyui)))


async def _load(nodes: ModuleType, comfyui: Path) -> dict[str, tuple[Any, Any]]:
    await nodes.init_public_apis()
    for name in EXTRAS:
        path = comfyui / "comfy_extras" / f"nodes_{name}.py"
        if path.exists():
            assert await nodes.load_custom_node(str(path), module_parent="comfy_extras"), path
    core = set(nodes.NODE_CLASS_MAPPINGS)
    before = _everything(comfyui)
    assert await nodes.load_custom_node(str(PACK), core, module_parent="custom_nodes"), "the pack did not load"
    return _changes(before, _everything(comfyui))


def _everything(comfyui: Path) -> dict[str, Any]:
    """Every attribute of the host's modules and of their classes, and what its lists and dictionaries hold."""
    found: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if not Path(getattr(module, "__file__", None) or "/").is_relative_to(comfyui) or name.startswith(
            "custom_nodes"
        ):
            continue
        for attribute, value in vars(module).items():
            if attribute.startswith("__") or isinstance(value, ModuleType):
                continue
            where = f"{name}.{attribute}"
            found[where] = _copy(value)
            if isinstance(value, type) and value.__module__ == name:
                made = {"__dict__", "__weakref__", "__doc__", "__annotations__", "__static_attributes__"}
                found |= {f"{where}.{key}": _copy(item) for key, item in vars(value).items() if key not in made}
    return found


def _copy(value: Any) -> Any:
    """What a container holds now."""
    return value.copy() if type(value) in (dict, list, set) else value


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    modules = {name.rpartition(".")[0] for name in before}

    def same(old: Any, new: Any) -> bool:
        if isinstance(old, dict) and isinstance(new, dict):
            return old.keys() == new.keys() and all(old[key] is new[key] for key in old)
        if isinstance(old, set) and isinstance(new, set):
            return old == new
        if isinstance(old, list) and isinstance(new, list):
            return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))
        return old is new

    names = [name for name in {**before, **after} if name in before or name.rpartition(".")[0] in modules]
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if not same(*pair)}


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    assert COMFYUI is not None
    yield _boot(Path(COMFYUI).resolve(), BASE)


@pytest.fixture(scope="session")
def zoo(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tiny models by name, each made once: ``zoo["sd3"]`` is a ``tiny.Tiny``."""
    import tiny
    import tiny_image
    import tiny_video

    return tiny.Zoo(tmp_path_factory.mktemp("tiny"), tiny_image.FACTORIES | tiny_video.FACTORIES)


@pytest.fixture(scope="module", autouse=True)
def no_dead_models() -> None:
    """Forget models whose patcher is gone: for each the host collects garbage whenever it loads a model."""
    if (management := sys.modules.get("comfy.model_management")) is not None:
        entries = management.current_loaded_models
        entries[:] = [entry for entry in entries if entry.real_model is None or not entry.is_dead()]


@pytest.fixture
def distil(host: Host) -> Callable[..., Any]:
    """Run the node as the executor does: every input in a list, inside inference mode."""
    import torch
    from distilling import RANKS

    def run(given: Any, **settings: Any) -> Any:
        cls = host.node("PCMDistillLora")
        inputs = {name: options[0]["default"] for name, (_, *options) in cls.INPUT_TYPES()["required"].items()
                  if options and "default" in options[0]}  # fmt: skip
        inputs |= {"model": given.model, **RANKS, **settings}
        lists = {name: [value] for name, value in inputs.items() if name not in ("latents", "positive", "negative")}
        latents = settings.get("latents", [given.latent(2, seed=5), given.latent(1, seed=6)])
        lists |= {"latents": latents, "positive": settings.get("positive", [given.positive])}
        if "negative" not in settings or settings["negative"]:
            lists["negative"] = settings.get("negative", [given.negative])
        with torch.inference_mode():
            return cls.execute(**lists)

    return run


@pytest.fixture
def stand_ins(host: Host, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Put nodes for the ends of a prompt into the host: ``stand_ins(GiveModel=("MODEL", model))``, and ``Take``.

    Returns what the ``Take`` nodes of the prompts that follow are given, in their input ``value``.
    """
    taken: list[Any] = []

    def giver(kind: str, value: Any) -> type:
        class Give:
            RETURN_TYPES, FUNCTION, CATEGORY = (kind,), "give", "test"

            @classmethod
            def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
                return {"required": {}}

            def give(self) -> tuple[Any]:
                return (value,)

        return Give

    class Take:
        RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "take", "test", True

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
            return {"required": {"value": ("*",)}}

        def take(self, value: Any) -> dict[str, Any]:
            taken.append(value)
            return {}

    def add(**given: tuple[str, Any]) -> list[Any]:
        classes = {name: giver(*value) for name, value in given.items()}
        for name, cls in (classes | {"Take": Take}).items():
            monkeypatch.setitem(host.nodes.NODE_CLASS_MAPPINGS, name, cls)
        return taken

    return add


@pytest.fixture(scope="module")
def released_files(host: Host, zoo: Any) -> Path:
    """The host's base folder, with a tiny stand-in under the name of every file the workflows use."""
    import released

    return released.make_files(host, zoo)


@pytest.fixture(scope="module")
def text_nodes(host: Host, zoo: Any) -> Iterator[None]:
    """Nodes in place of the text encoders, for ``released.shrunk``."""
    import released

    own = released.text_nodes(zoo)
    host.nodes.NODE_CLASS_MAPPINGS.update(own)
    yield
    for name in own:
        del host.nodes.NODE_CLASS_MAPPINGS[name]
