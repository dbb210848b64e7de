"""The names ``pcm`` in the stock sampler and scheduler lists."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from test_sampler import close, pcm, stock

from pcm_core.profiles import profile_from_name
from phased_consistency.nodes import dropdowns
from phased_consistency.nodes import host as nodes_host
from phased_consistency.nodes.sampling import function as sampler_function


def options(host, node_id, name):
    return host.node(node_id).INPUT_TYPES()["required"][name]


def combo(host, node_id, name):
    """The choices of a combo input, in the V1 and the V3 spelling."""
    kind, *rest = options(host, node_id, name)
    return kind if isinstance(kind, list) else rest[0]["options"]


def test_stock_nodes_show_both(host):
    for node_id in ("KSampler", "KSamplerAdvanced"):
        assert "pcm" in combo(host, node_id, "scheduler")
        assert "pcm" in combo(host, node_id, "sampler_name")
    assert "pcm" in combo(host, "BasicScheduler", "scheduler")
    assert "pcm" in combo(host, "KSamplerSelect", "sampler_name")


def test_loading_the_pack_changes_nothing_else_of_the_host(host):
    """No attribute of a module or of a class is replaced; lists and dictionaries keep what they had, in its order."""
    added = {}
    for name, (before, after) in host.changed.items():
        if isinstance(before, (list, dict)):
            assert list(after)[: len(before)] == list(before), name
            assert isinstance(before, list) or all(after[key] is before[key] for key in before), name
            added[name] = set(list(after)[len(before) :])
        else:
            assert before is None, f"{name} was replaced"
            added[name] = "new"
    lists = ("SAMPLER_NAMES", "SCHEDULER_NAMES", "KSampler.SAMPLERS", "KSampler.SCHEDULERS", "SCHEDULER_HANDLERS")
    expected = {f"comfy.samplers.{name}": {"pcm"} for name in lists} | {"comfy.k_diffusion.sampling.sample_pcm": "new"}
    books = {name: added.pop(name) for name in list(added) if name.startswith("nodes.")}  # the host's own list of packs
    assert added == expected
    assert all("PCM" in node for node in books["nodes.NODE_CLASS_MAPPINGS"])
    assert books.keys() <= {f"nodes.{name}" for name in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS",
                                                         "EXTENSION_WEB_DIRS", "LOADED_MODULE_DIRS")}  # fmt: skip


@pytest.fixture
def smallcfg(zoo):
    """A model after Load PCM LoRA, as far as the samplers see."""
    profile = profile_from_name("pcm_sd15_smallcfg_4step_converted")
    return replace(zoo["eps"], model=nodes_host.attach_profile(zoo["eps"].model, profile))


def test_a_name_shows_on_its_node_what_the_lora_wants(host, smallcfg, monkeypatch, caplog):
    """faults.md 24: KSampler's own default of cfg 8 on a LoRA for cfg 1; the console alone said so."""
    shown = []
    monkeypatch.setattr(sampler_function, "show_on_node", shown.append)
    stock(host, smallcfg, steps=4, cfg=8.0, sampler="pcm", scheduler="pcm")
    stock(host, smallcfg, steps=6, cfg=1.0, sampler="pcm", scheduler="simple")
    stock(host, smallcfg, steps=4, cfg=1.0, sampler="pcm", scheduler="simple")
    assert ["cfg is 8" in shown[0], "6 steps, and PCM is made for exactly 4" in shown[1], shown[2]] == [True, True, ""]
    assert len([record for record in caplog.records if "PCM Sampler" in record.message]) == 2


@pytest.mark.parametrize(("start", "end", "leftover"), [(0, 2, "enable"), (0, 2, "disable"), (2, 10000, "disable")])
def test_a_part_of_a_schedule_is_no_mistake(host, smallcfg, monkeypatch, start, end, leftover):
    """faults.md 20: KSamplerAdvanced 0 to 2."""
    shown = []
    monkeypatch.setattr(sampler_function, "show_on_node", shown.append)
    host.call(
        "KSamplerAdvanced", model=smallcfg.model, positive=smallcfg.positive, negative=smallcfg.positive,
        latent_image=smallcfg.latent(), steps=4, cfg=1.0, sampler_name="pcm", scheduler="pcm", start_at_step=start,
        end_at_step=end, return_with_leftover_noise=leftover, add_noise="enable", noise_seed=1,
    )  # fmt: skip
    assert shown == [""]


@pytest.mark.parametrize("name", ["eps", "v", "sd3", "wan"])
def test_ksampler_by_name_is_the_pcm_sampler(host, zoo, name):
    tiny = zoo[name]
    (own, _) = pcm(host, tiny, steps=4, cfg="2")
    assert torch.equal(stock(host, tiny, steps=4, cfg=2.0, sampler="pcm", scheduler="pcm")["samples"], own["samples"])
    close(stock(host, tiny, steps=4, cfg=2.0, sampler="pcm", scheduler="simple"), own)


@pytest.mark.parametrize("steps", [1, 3, 4, 6, 16, 64, 65, 200])
def test_the_scheduler_serves_every_step_count(host, zoo, steps):
    for name in ("eps", "flux"):
        (sigmas,) = host.call("BasicScheduler", model=zoo[name].model, scheduler="pcm", steps=steps, denoise=1.0)
        assert len(sigmas) == steps + 1
        assert float(sigmas[0]) == float(zoo[name].model.get_model_object("model_sampling").sigma_max)
        assert (sigmas.diff() < 0).all()


def test_ksamplers_own_denoise_works(host, zoo):
    """It asks for steps / denoise steps and keeps the last ones: 4 steps at .05 are the tail of 80."""
    tiny = zoo["eps"]
    latent = tiny.latent(seed=1)
    for denoise in (0.5, 0.05):
        own = stock(host, tiny, steps=4, cfg=1.0, sampler="pcm", scheduler="pcm", denoise=denoise, latent=latent)
        close(own, stock(host, tiny, steps=4, cfg=1.0, denoise=denoise, latent=latent))


def test_refused_models_say_why_by_name_too(host, zoo):
    with pytest.raises(ValueError, match="CogVideoX"):
        stock(host, zoo["cogvideo"], steps=2, cfg=1.0, scheduler="pcm", sampler="euler")
    with pytest.raises(ValueError, match="CogVideoX"):
        stock(host, zoo["cogvideo"], steps=2, cfg=1.0, scheduler="simple", sampler="pcm")


class TestRegistration:
    @pytest.fixture
    def lists(self, host):
        """The host's lists, put back as they were."""
        import comfy.samplers as s

        saved = s.SAMPLER_NAMES, s.KSampler.SAMPLERS, s.SCHEDULER_NAMES, s.KSampler.SCHEDULERS
        copies = [list(names) for names in saved]
        handlers = dict(s.SCHEDULER_HANDLERS)
        yield s
        s.SAMPLER_NAMES, s.KSampler.SAMPLERS, s.SCHEDULER_NAMES, s.KSampler.SCHEDULERS = saved
        for names, copy in zip(saved, copies, strict=True):
            names[:] = copy
        s.SCHEDULER_HANDLERS.clear()
        s.SCHEDULER_HANDLERS.update(handlers)

    def test_twice_is_once_and_nothing_is_lost(self, host, lists):
        before = [list(lists.SAMPLER_NAMES), list(lists.SCHEDULER_NAMES), dict(lists.SCHEDULER_HANDLERS)]
        dropdowns.register()
        assert [list(lists.SAMPLER_NAMES), list(lists.SCHEDULER_NAMES), dict(lists.SCHEDULER_HANDLERS)] == before
        assert lists.SAMPLER_NAMES.count("pcm") == lists.SCHEDULER_NAMES.count("pcm") == 1

    def test_survives_a_reload_of_the_k_diffusion_module(self, host, zoo, lists):
        """RES4LYF reloads it after registering its own samplers."""
        import comfy.k_diffusion.sampling

        importlib.reload(comfy.k_diffusion.sampling)
        assert comfy.k_diffusion.sampling.sample_pcm is sampler_function.sample_phased
        stock(host, zoo["sd3"], steps=2, cfg=1.0, sampler="pcm", scheduler="pcm")

    def test_registers_in_both_lists_after_a_pack_has_rebound_them(self, host, zoo, lists):
        """Then a name in one list only would silently sample with euler and simple."""
        s = lists
        s.SCHEDULER_NAMES = [*(n for n in s.SCHEDULER_NAMES if n != "pcm"), "other"]
        s.KSampler.SCHEDULERS = [*s.SCHEDULER_NAMES]
        s.SAMPLER_NAMES = [n for n in s.SAMPLER_NAMES if n != "pcm"]
        s.KSampler.SAMPLERS = ["other", *s.SAMPLER_NAMES]
        dropdowns.register()
        for names in (s.SCHEDULER_NAMES, s.KSampler.SCHEDULERS, s.SAMPLER_NAMES, s.KSampler.SAMPLERS):
            assert names.count("pcm") == 1
        assert "other" in s.SCHEDULER_NAMES
        (own, _) = pcm(host, zoo["eps"], steps=4, cfg="1", spacing="trailing")
        named = stock(host, zoo["eps"], steps=4, cfg=1.0, sampler="pcm", scheduler="pcm")
        assert torch.equal(named["samples"], own["samples"])

    def test_a_later_pack_that_rebinds_the_lists_keeps_both_names(self, host, zoo, lists):
        """As RES4LYF does: new lists made of the old ones. Nodes then read the new lists."""
        s = lists
        s.SCHEDULER_NAMES = [*s.SCHEDULER_NAMES, "other"]
        s.KSampler.SCHEDULERS = [*s.KSampler.SCHEDULERS, "other"]
        s.SAMPLER_NAMES = s.KSampler.SAMPLERS = ["other", *s.KSampler.SAMPLERS]
        test_stock_nodes_show_both(host)
        named = stock(host, zoo["eps"], steps=4, cfg=1.0, sampler="pcm", scheduler="pcm")
        assert torch.equal(named["samples"], pcm(host, zoo["eps"], steps=4, cfg="1")[0]["samples"])

    @pytest.mark.parametrize("broken", [None, ("euler",), {"euler": 1}], ids=["none", "tuple", "dict"])
    def test_a_pack_that_breaks_the_lists_breaks_neither_us_nor_them(self, host, zoo, lists, broken, caplog):
        """It is said, what stands there stays, and our own nodes work."""
        owners = ((lists, "SAMPLER_NAMES"), (lists.KSampler, "SAMPLERS"), (lists, "SCHEDULER_NAMES"))
        before = [list(lists.KSampler.SCHEDULERS), *(getattr(*owner) for owner in owners)]
        try:
            for owner, name in owners:
                setattr(owner, name, broken)
            lists.KSampler.SCHEDULERS.append(None)  # a list that holds what is no name
            dropdowns.register()
            assert all(getattr(*owner) is broken for owner in owners)
            assert lists.KSampler.SCHEDULERS == [*before[0], None]
            assert sum("in the place of" in message for message in caplog.messages) == 3
            pcm(host, zoo["eps"], steps=2, cfg="1")
            with pytest.raises(ValueError, match='There is no sampler "eulr"'):
                nodes_host.stock_sampling(zoo["eps"].model, "eulr", "simple", 2, 1.0)
        finally:
            for (owner, name), value in zip(owners, before[1:], strict=True):
                setattr(owner, name, value)

    def test_handlers_that_are_gone_leave_no_name_without_one(self, host, lists, monkeypatch):
        monkeypatch.setattr(lists, "SCHEDULER_HANDLERS", None)
        monkeypatch.setattr(lists, "SCHEDULER_NAMES", ["simple"])
        dropdowns.register()
        assert lists.SCHEDULER_NAMES == ["simple"]

    def test_a_core_sampler_of_that_name_would_be_kept(self, host, lists, monkeypatch):
        import comfy.k_diffusion.sampling

        core = object()
        monkeypatch.setattr(comfy.k_diffusion.sampling, "sample_pcm", core)
        dropdowns.register()
        assert comfy.k_diffusion.sampling.sample_pcm is core
