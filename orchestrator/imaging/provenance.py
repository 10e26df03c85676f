"""Where a picture comes from: one record, and the two forms of it that all metadata repeats, text and JSON."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

_SOURCE_TYPES: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/"
TRAINED_ALGORITHMIC_MEDIA: Final = _SOURCE_TYPES + "trainedAlgorithmicMedia"
ALGORITHMIC_MEDIA: Final = _SOURCE_TYPES + "algorithmicMedia"
COMPOSITE_TRAINED: Final = _SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"
COMPOSITE_SYNTHETIC: Final = _SOURCE_TYPES + "compositeSynthetic"
FORMAT: Final = "remarque-provenance/1"

# The names that A1111 and the tools that read its text know our samplers by.
_SAMPLER_TITLES: Final[Mapping[str, str]] = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "lms": "LMS",
    "pndm": "PLMS",
    "unipc": "UniPC",
    "lcm": "LCM",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleRecord:
    """One style that took part, its weights identified by ``sha256``."""

    name: str
    sha256: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Everything a picture says about its making; ``created`` carries its time zone, ``extra`` goes into every form.

    ``composite`` is a photograph of which a part was generated; its ``generation_id`` is the caller's name of it.
    """

    generation_id: int | str
    prompt: str
    negative_prompt: str
    seed: int
    num_inference_steps: int
    sampler: str
    guidance_scale: float
    width_px: int
    height_px: int
    model_name: str
    model_sha256: str
    created: datetime
    software_version: str
    styles: tuple[StyleRecord, ...] = ()
    artist_id: int | None = None
    artist_name: str | None = None
    mock: bool = False
    composite: bool = False
    extra: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def software(self) -> str:
        """What made the file; a mock says so wherever the name is shown."""
        return f"Remarque {self.software_version}" + (" (mock, no model ran)" if self.mock else "")

    @property
    def digital_source_type(self) -> str:
        """IPTC's term for the origin; a mock's placeholder is drawn by rules, no trained model took part."""
        if self.composite:
            return COMPOSITE_SYNTHETIC if self.mock else COMPOSITE_TRAINED
        return ALGORITHMIC_MEDIA if self.mock else TRAINED_ALGORITHMIC_MEDIA

    @property
    def model_id(self) -> str:
        """Base model and styles, each with ten digits of its digest: ``sd15@6ce0161689+style-123@0f1e2d3c4b``."""
        parts = ((self.model_name, self.model_sha256), *((style.name, style.sha256) for style in self.styles))
        return "+".join(f"{name}@{sha256[:10]}" for name, sha256 in parts)


def identity(provenance: Provenance) -> dict[str, object]:
    """Gives what fits every container as JSON: who, with what, how; the prompts stay in the text form."""
    return {
        "format": FORMAT,
        "generation_id": provenance.generation_id,
        "artist_id": provenance.artist_id,
        "artist_name": None if provenance.artist_name is None else clean(provenance.artist_name),
        "model_id": clean(provenance.model_id),
        "base_model": clean(provenance.model_name),
        "base_model_sha256": provenance.model_sha256,
        "styles": [
            {"name": clean(style.name), "sha256": style.sha256, "weight": style.weight} for style in provenance.styles
        ],
        "seed": provenance.seed,
        "num_inference_steps": provenance.num_inference_steps,
        "sampler": provenance.sampler,
        "guidance_scale": provenance.guidance_scale,
        "size": f"{provenance.width_px}x{provenance.height_px}",
        "created": provenance.created.isoformat(),
        "software": provenance.software,
        "digital_source_type": provenance.digital_source_type,
        "mock": provenance.mock,
        "extra": {clean(name): clean(value) if isinstance(value, str) else value for name, value in _extra(provenance)},
    }


def record(provenance: Provenance) -> dict[str, object]:
    """Gives the whole record as JSON, prompts included."""
    prompts = {"prompt": clean(provenance.prompt), "negative_prompt": clean(provenance.negative_prompt)}
    return identity(provenance) | prompts


def parameters(provenance: Provenance) -> str:
    """Gives the generation parameters as A1111 writes them: prompt, negative prompt, one line of ``Key: value``."""
    lines = [_unambiguous(provenance.prompt)]
    if provenance.negative_prompt:
        lines.append("Negative prompt: " + _unambiguous(provenance.negative_prompt))
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in _settings(provenance)))
    return "\n".join(lines)


def clean(text: str) -> str:
    """Gives ``text`` without what XML, EXIF or a terminal cannot carry: controls become spaces, lone surrogates U+FFFD.

    Newlines and tabs stay.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    sound = lines.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]", " ", sound)


def _settings(provenance: Provenance) -> Iterator[tuple[str, str]]:
    yield "Steps", str(provenance.num_inference_steps)
    yield "Sampler", _SAMPLER_TITLES.get(provenance.sampler, provenance.sampler)
    yield "CFG scale", _number(provenance.guidance_scale)
    yield "Seed", str(provenance.seed)
    yield "Size", f"{provenance.width_px}x{provenance.height_px}"
    yield "Model hash", provenance.model_sha256[:10]
    yield "Model", provenance.model_name
    if provenance.styles:
        yield "Lora hashes", ", ".join(f"{style.name}: {style.sha256[:12]}" for style in provenance.styles)
        yield "Lora weights", ", ".join(f"{style.name}: {_number(style.weight)}" for style in provenance.styles)
    if provenance.artist_id is not None:
        yield "Artist id", str(provenance.artist_id)
    if provenance.artist_name:
        yield "Artist", provenance.artist_name
    yield "Model id", provenance.model_id
    yield "Generation id", str(provenance.generation_id)
    if provenance.mock:
        yield "Mock", "true"
    for key, value in _extra(provenance):
        yield key, value if isinstance(value, str) else _number(value)
    yield "Version", provenance.software


def _extra(provenance: Provenance) -> list[tuple[str, str | int | float]]:
    """Gives the additional fields in the order of their names, so that the same picture has the same bytes."""
    return sorted(provenance.extra.items())


def _number(value: float) -> str:
    """Gives the shortest digits that read back as ``value``: 7.5, but 7 for 7.0."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _quoted(value: str) -> str:
    """Gives ``value`` in JSON's quotes where the separators of the line occur in it, as A1111 does."""
    flat = clean(value)
    return json.dumps(flat, ensure_ascii=False) if re.search(r'[,:\n"\\]', flat) else flat


def _unambiguous(prompt: str) -> str:
    """Gives a prompt no line of which opens the next section; the comma in front means nothing to the encoder."""
    return re.sub(r"(?m)^\s*(?=(?:Negative prompt|Steps):)", ", ", clean(prompt).strip())
