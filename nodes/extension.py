"""The extension: which nodes there are, and what is registered beside them."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class PhasedConsistencyExtension(ComfyExtension):
    """Phased Consistency for ComfyUI."""

    async def on_load(self) -> None:
        from .dropdowns import register
        from .host.routes import add_routes

        register()
        add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .compare import PCMCompare
        from .distill import PCMDistillLora, PCMSaveLora
        from .guider import PCMGuider
        from .load_lora import PCMLoraLoader
        from .phase_plot import PCMPhasePlot
        from .sampler import PCMSampler, SamplerPCM
        from .save_image import PCMSaveImage
        from .scheduler import PCMPhaseScheduler
        from .settings import PCMSettings
        from .video_sampler import PCMVideoSampler

        return [
            PCMCompare,
            PCMDistillLora,
            PCMGuider,
            PCMLoraLoader,
            PCMPhasePlot,
            PCMPhaseScheduler,
            PCMSampler,
            PCMSaveImage,
            PCMSaveLora,
            PCMSettings,
            PCMVideoSampler,
            SamplerPCM,
        ]
