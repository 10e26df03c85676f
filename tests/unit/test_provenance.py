import json
import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.imaging.exif import description, exif_identity, to_exif
from orchestrator.imaging.provenance import (
    ALGORITHMIC_MEDIA,
    TRAINED_ALGORITHMIC_MEDIA,
    Provenance,
    StyleRecord,
    clean,
    identity,
    parameters,
    record,
)
from orchestrator.imaging.xmp import to_xmp, xmp_fields

MADE = Provenance(
    generation_id=456,
    prompt="portrait, sunset, oil paint",
    negative_prompt="blurry",
    seed=0,
    num_inference_steps=50,
    sampler="dpmpp_2m",
    guidance_scale=7.5,
    width_px=512,
    height_px=768,
    model_name="remarque-demo",
    model_sha256="6ce0161689" + "0" * 54,
    created=datetime(2026, 11, 22, 9, 30, tzinfo=UTC),
    software_version="0.1.0",
    styles=(StyleRecord(name="style-123", sha256="0f1e2d3c4b5a" + "0" * 52, weight=0.8),),
    artist_id=12,
    artist_name="김서연",
)


def read_as_a1111(text: str) -> dict[str, str]:
    """What the A1111 web UI and the tools beside it make of the text: the last line's pairs, prompts before it."""
    *lines, last = text.strip().split("\n")
    found = {"prompt": "", "negative_prompt": ""}
    section = "prompt"
    for line in lines:
        content = line.strip()
        if content.startswith("Negative prompt:"):
            section, content = "negative_prompt", content[16:].strip()
        found[section] += ("\n" if found[section] else "") + content
    for key, value in re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last):
        found[key] = json.loads(value) if value.startswith('"') and value.endswith('"') else value
    return found


# -- the text of the generation parameters ------------------------------------------------------------------------------


def test_parameters_are_written_in_the_form_a1111_writes() -> None:
    assert parameters(replace(MADE, styles=(), artist_id=None, artist_name=None)) == (
        "portrait, sunset, oil paint\n"
        "Negative prompt: blurry\n"
        "Steps: 50, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 0, Size: 512x768, Model hash: 6ce0161689, "
        "Model: remarque-demo, Model id: remarque-demo@6ce0161689, Generation id: 456, Version: Remarque 0.1.0"
    )


def test_a1111_reads_every_generation_parameter() -> None:
    found = read_as_a1111(parameters(replace(MADE, extra={"Schedule type": "karras", "Clip skip": 2})))
    assert found == {
        "prompt": "portrait, sunset, oil paint",
        "negative_prompt": "blurry",
        "Steps": "50",
        "Sampler": "DPM++ 2M",
        "CFG scale": "7.5",
        "Seed": "0",
        "Size": "512x768",
        "Model hash": "6ce0161689",
        "Model": "remarque-demo",
        "Lora hashes": "style-123: 0f1e2d3c4b5a",
        "Lora weights": "style-123: 0.8",
        "Artist id": "12",
        "Artist": "김서연",
        "Model id": "remarque-demo@6ce0161689+style-123@0f1e2d3c4b",
        "Generation id": "456",
        "Clip skip": "2",
        "Schedule type": "karras",
        "Version": "Remarque 0.1.0",
    }


@pytest.mark.parametrize(
    "prompt",
    [
        "바다, 노을, 유화",
        "first line\nsecond line",
        'a "quoted" word, key: value, back\\slash',
        "(sea:1.3), [boat], <lora:x:1>",
        "😀 emoji",
    ],
)
def test_prompts_come_back_as_they_were_written(prompt: str) -> None:
    found = read_as_a1111(parameters(replace(MADE, prompt=prompt, negative_prompt=prompt)))
    assert (found["prompt"], found["negative_prompt"]) == (prompt, prompt)


@pytest.mark.parametrize(
    "prompt", ["sea\nNegative prompt: everything", "Negative prompt: everything", "sea\nSteps: 1, Sampler: x, Seed: 9"]
)
def test_prompt_that_imitates_the_format_cannot_change_the_other_fields(prompt: str) -> None:
    found = read_as_a1111(parameters(replace(MADE, prompt=prompt, negative_prompt="blurry")))
    assert (found["negative_prompt"], found["Steps"], found["Seed"]) == ("blurry", "50", "0")


def test_values_with_separators_are_quoted() -> None:
    made = replace(MADE, artist_name='Kim, "the sea": 1\nx', extra={"Note": "a, b: c"})
    found = read_as_a1111(parameters(made))
    assert (found["Artist"], found["Note"], found["Version"]) == ('Kim, "the sea": 1\nx', "a, b: c", "Remarque 0.1.0")


def test_whole_guidance_has_no_decimals() -> None:
    assert read_as_a1111(parameters(replace(MADE, guidance_scale=7.0)))["CFG scale"] == "7"


@given(text=st.text(st.characters(exclude_categories=()), max_size=80))
def test_any_text_at_all_leaves_the_numbers_readable(text: str) -> None:
    made = replace(MADE, prompt=text, negative_prompt=text, artist_name=text, model_name=text)
    found = read_as_a1111(parameters(made))
    assert (found["Steps"], found["Seed"], found["Size"]) == ("50", "0", "512x768")
    assert xmp_fields(to_xmp(made))["Iptc4xmpExt:DigitalSourceType"] == TRAINED_ALGORITHMIC_MEDIA
    assert json.loads(json.dumps(record(made)).encode())["prompt"] == clean(text)
    assert to_exif(made).startswith(b"Exif")


# -- what it says -------------------------------------------------------------------------------------------------------


def test_mock_calls_itself_a_mock_and_claims_no_trained_model() -> None:
    mock = replace(MADE, mock=True)
    assert mock.digital_source_type == ALGORITHMIC_MEDIA
    assert MADE.digital_source_type == TRAINED_ALGORITHMIC_MEDIA
    assert identity(mock)["mock"] is True
    assert read_as_a1111(parameters(mock))["Mock"] == "true"
    assert "mock" in xmp_fields(to_xmp(mock))["xmp:CreatorTool"]


def test_model_id_names_the_base_model_and_each_style() -> None:
    second = StyleRecord(name="style-9", sha256="f" * 64, weight=0.2)
    both = replace(MADE, styles=(*MADE.styles, second))
    assert both.model_id == "remarque-demo@6ce0161689+style-123@0f1e2d3c4b+style-9@ffffffffff"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\r\nb\rc\td", "a\nb\nc\td"),
        ("bell\x07 escape\x1b[31m nul\x00", "bell  escape [31m nul "),
        ("lone \ud83d surrogate", "lone \ufffd surrogate"),
        ("\x85 \uffff", "   "),
        ("바다 😀", "바다 😀"),
    ],
)
def test_cleaning_takes_what_no_container_can_carry(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_description_is_one_line_and_short() -> None:
    long = replace(MADE, prompt="sea\n" * 1000)
    assert description(long).startswith("sea sea")
    assert len(description(long)) == 500


# -- XMP and EXIF -------------------------------------------------------------------------------------------------------


def test_xmp_is_well_formed_and_names_origin_and_artist() -> None:
    packet = to_xmp(replace(MADE, prompt="<b> & 바다 \x00", artist_name="Kim & <Lee>"))
    fields = xmp_fields(packet)
    assert ElementTree.fromstring(packet.decode()) is not None
    assert fields["Iptc4xmpExt:DigitalSourceType"] == TRAINED_ALGORITHMIC_MEDIA
    assert fields["dc:creator"] == "Kim & <Lee>"
    assert fields["Iptc4xmpExt:AIPromptInformation"].startswith("<b> & 바다")


def test_xmp_written_as_attributes_by_other_software_is_read() -> None:
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        ' e:DigitalSourceType="x" plain="y"/></rdf:RDF></x:xmpmeta>'
    )
    assert xmp_fields(packet.encode()) == {"Iptc4xmpExt:DigitalSourceType": "x", "plain": "y"}


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\xff\xfe<",
        b"<x",
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><x>&b;</x>',
    ],
)
def test_xmp_that_is_no_harmless_xml_gives_nothing(packet: bytes) -> None:
    assert xmp_fields(packet) == {}


def test_descriptions_inside_each_other_cost_no_more_than_their_bytes() -> None:
    rdf = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
    nested = "<r:Description>a" * 50_000 + "</r:Description>" * 50_000
    began_s = time.process_time()
    fields = xmp_fields(f'<r:RDF xmlns:r="{rdf}"><r:Description>{nested}</r:Description></r:RDF>'.encode())
    assert list(fields) == ["rdf:Description"]
    assert time.process_time() - began_s < 5  # 0.05 s here; a minute where each is read anew


@pytest.mark.parametrize("history", ["", "{", "[1]", "[" * 100_000])
def test_image_history_of_another_program_is_not_taken_for_ours(history: str) -> None:
    assert exif_identity({"ImageHistory": history}) == {}


def test_exif_is_the_same_bytes_for_the_same_picture() -> None:
    assert to_exif(MADE) == to_exif(replace(MADE))
    assert to_exif(MADE) != to_exif(replace(MADE, seed=1))
