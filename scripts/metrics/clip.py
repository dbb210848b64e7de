"""CLIP models and the scores computed from their embeddings: CLIP score, HPS, PickScore, LAION's aesthetic score.

A CLIP model is a folder in the Hugging Face layout or, as for HPS, one file of OpenCLIP weights, which are renamed for
transformers' model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .networks import fingerprint, read_weights
from .report import MissingError

_TEXTS = 256  # texts in a batch
# OpenAI's values, which OpenCLIP's ViT-H-14 also uses.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HEAD_WIDTH = {1280: 80, 1408: 88, 1664: 104}  # of the image towers of ViT-H, g and bigG; of all others 64


class Clip:
    """A CLIP model and its embeddings, not normalized.

    Raises:
        MissingError: if transformers is not installed or the model does not load.
    """

    def __init__(self, source: str, device: str, *, name: str = "clip", download: bool = False,
                 tokenizer: str | None = None) -> None:  # fmt: skip
        """
        Args:
            source: a folder in the Hugging Face layout, a model name there (with ``download``), or an OpenCLIP file.
            name: name of the feature cache.
            tokenizer: a folder whose tokenizer is used if ``source`` is a file.
        """
        try:
            import transformers
        except ImportError as error:
            raise MissingError("it needs transformers: pip install transformers") from error
        path = Path(source)
        options: dict[str, Any] = {"local_files_only": not download}
        folder = tokenizer if path.is_file() else source
        if folder is None:
            raise MissingError(f"{path} brings no tokenizer; give --clip FOLDER too, whose tokenizer reads its prompts")
        try:
            self.tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(folder, **options)
            if path.is_file():
                self.model: Any = from_open_clip(read_weights(path), self.tokenizer.eos_token_id)
                self.processor: Any = _processor(transformers, self.model.config.vision_config.image_size)
            else:
                self.model = transformers.CLIPModel.from_pretrained(source, **options)
                self.processor = transformers.CLIPImageProcessor.from_pretrained(source, **options)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise MissingError(f"{source} does not load ({reason}); give --clip FOLDER, or --download") from error
        self.name, self.device = name, device
        self.whole = path.is_file()  # HPS pads the image to a square, CLIP crops it
        self.fingerprint = fingerprint(path) if path.exists() else f"{source:0<16.16}".replace("/", "-")
        self.model.to(device).eval()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings [B, D] of uint8 [B, 3, H, W]."""
        if self.whole:
            images = _square(images)
        pixels = self.processor(list(images), return_tensors="pt")["pixel_values"].to(self.device)
        return _features(self.model.get_image_features(pixel_values=pixels)).float().cpu()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [N, D]; texts that are too long are truncated, as usual for CLIP scores."""
        limit = self.model.config.text_config.max_position_embeddings
        rows: list[Tensor] = []
        for start in range(0, len(texts), _TEXTS):
            part = list(texts[start : start + _TEXTS])
            tokens = self.tokenizer(part, padding=True, truncation=True, max_length=limit, return_tensors="pt")
            rows.append(_features(self.model.get_text_features(**tokens.to(self.device))).float().cpu())
        return torch.cat(rows)

    @property
    def scale(self) -> float:
        """The factor by which CLIP multiplies cosines in training, near 100."""
        return float(self.model.logit_scale.detach().exp())


def _features(found: Any) -> Tensor:
    """The projected features: transformers 5 wraps them in an output object, earlier versions do not."""
    return getattr(found, "pooler_output", found)


def _square(images: Tensor) -> Tensor:
    """Pad [B, 3, H, W] with black to a square of the longer side."""
    height, width = images.shape[-2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return torch.nn.functional.pad(images, (left, side - width - left, top, side - height - top))


def unit(rows: Tensor) -> Tensor:
    """Rows scaled to length 1."""
    return torch.nn.functional.normalize(rows, dim=-1)


def _processor(transformers: Any, size: int) -> Any:
    """OpenCLIP's preprocessing of a square image: bicubic resize, then OpenAI's mean and standard deviation."""
    return transformers.CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, image_mean=_MEAN, image_std=_STD
    )


def from_open_clip(weights: dict[str, Tensor], end: int) -> Any:
    """transformers' CLIPModel with the weights of an OpenCLIP ViT with GELU, such as HPS's ViT-H-14.

    Args:
        end: the end-of-text token; a text's embedding is read at its position.

    Raises:
        MissingError: if these are not such weights.
    """
    from transformers import CLIPConfig, CLIPModel

    try:
        renamed = _renamed(weights)
        shared = {"hidden_act": "gelu", "projection_dim": weights["text_projection"].shape[1]}
        patch, width = weights["visual.conv1.weight"], weights["text_projection"].shape[0]
        side = round((len(weights["visual.positional_embedding"]) - 1) ** 0.5)
        vision, text = _tower(weights, "visual.transformer."), _tower(weights, "transformer.")
        head = _HEAD_WIDTH.get(vision["hidden_size"], 64)
        vision |= {"patch_size": patch.shape[-1], "image_size": side * patch.shape[-1],
                   "num_attention_heads": max(vision["hidden_size"] // head, 1)}  # fmt: skip
        tokens = len(weights["token_embedding.weight"])
        text |= {"vocab_size": tokens, "max_position_embeddings": len(weights["positional_embedding"]),
                 "num_attention_heads": max(width // 64, 1), "eos_token_id": end}  # fmt: skip
        model = CLIPModel(CLIPConfig(text_config=text | shared, vision_config=vision | shared, **shared))
        buffers = {key: value for key, value in model.state_dict().items() if key.endswith("position_ids")}
        model.load_state_dict(renamed | buffers)
    except (KeyError, RuntimeError, IndexError) as error:
        raise MissingError(f"the file holds no weights of an OpenCLIP ViT ({error})") from error
    return model


def _tower(weights: dict[str, Tensor], prefix: str) -> dict[str, int]:
    layers = {int(found[1]) for key in weights if (found := re.match(rf"{re.escape(prefix)}resblocks\.(\d+)\.", key))}
    hidden = weights[f"{prefix}resblocks.0.mlp.c_fc.weight"]
    return {"num_hidden_layers": len(layers), "intermediate_size": hidden.shape[0], "hidden_size": hidden.shape[1]}


# Names of the parts of a tower in OpenCLIP and in transformers; the order matters: longer names first.
_NAMES = (
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
)
_BLOCK = (
    (".attn.out_proj.", ".self_attn.out_proj."), (".mlp.c_fc.", ".mlp.fc1."), (".mlp.c_proj.", ".mlp.fc2."),
    (".ln_1.", ".layer_norm1."), (".ln_2.", ".layer_norm2."),
)  # fmt: skip


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with transformers' names: fused attention is split in three, projections are transposed."""
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        value = value.float()
        if key == "logit_scale":
            found[key] = value
        elif key in ("text_projection", "visual.proj"):
            found["visual_projection.weight" if key == "visual.proj" else "text_projection.weight"] = (
                value.T.contiguous()
            )
        elif key != "attn_mask":
            name = next((new + key[len(old) :] for old, new in _NAMES if key.startswith(old)), key)
            for old, new in _BLOCK:
                name = name.replace(old, new)
            if ".attn.in_proj_" in name:
                where, kind = name.split(".attn.in_proj_")
                for part, letter in zip(value.chunk(3), "qkv", strict=True):
                    found[f"{where}.self_attn.{letter}_proj.{kind}"] = part.clone()
            else:
                found[name] = value
    return found


class Aesthetics:
    """LAION's aesthetic predictor: linear layers without activations on the unit embedding of ViT-L/14.

    Reads both versions: the single layer, and the five layers of ``sac+logos+ava1-l14-linearMSE.pth``.

    Raises:
        MissingError: if the file is not such a predictor.
    """

    def __init__(self, path: Path) -> None:
        weights = read_weights(path)
        layers = [key.removesuffix("weight") for key in weights if key.endswith("weight") and weights[key].ndim == 2]
        layers.sort(key=lambda key: [int(digits) for digits in re.findall(r"\d+", key)])
        try:
            self.layers = [(weights[f"{layer}weight"].float(), weights[f"{layer}bias"].float()) for layer in layers]
        except KeyError:
            self.layers = []
        widths = [weight.shape for weight, _ in self.layers]
        if not widths or widths[-1][0] != 1 or any(one[0] != other[1] for one, other in pairwise(widths)):
            raise MissingError(f"{path} is not an aesthetic predictor")

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Ratings [N], about 1 to 10, of CLIP embeddings [N, D].

        Raises:
            MissingError: if the embeddings have another width, so come from another CLIP model.
        """
        wanted = self.layers[0][0].shape[1]
        if embeddings.shape[1] != wanted:
            raise MissingError(
                f"the predictor reads {wanted} numbers an image, and this CLIP gives {embeddings.shape[1]}"
            )
        rows = unit(embeddings)
        for weight, bias in self.layers:
            rows = torch.nn.functional.linear(rows, weight, bias)
        return rows[:, 0]
