"""XMP: the picture's origin in IPTC's words, the artist in Dublin Core's."""

from datetime import UTC
from typing import Final
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from orchestrator.imaging.exif import description
from orchestrator.imaging.provenance import Provenance, clean

_NAMESPACES: Final = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
}
_PREFIXES: Final = {uri: prefix for prefix, uri in _NAMESPACES.items()}


def to_xmp(provenance: Provenance) -> bytes:
    """Gives the packet in UTF-8; the same provenance gives the same bytes."""
    made = provenance.created.astimezone(UTC)
    simple = {
        "xmp:CreatorTool": provenance.software,
        "xmp:CreateDate": f"{made:%Y-%m-%dT%H:%M:%SZ}",
        "Iptc4xmpExt:DigitalSourceType": provenance.digital_source_type,
        "Iptc4xmpExt:AISystemUsed": provenance.model_name,
        "Iptc4xmpExt:AIPromptInformation": provenance.prompt,
    }
    fields = [f"<{name}>{escape(clean(value))}</{name}>" for name, value in simple.items() if value]
    if provenance.artist_name:
        artist = escape(clean(provenance.artist_name))
        fields.append(f"<dc:creator><rdf:Seq><rdf:li>{artist}</rdf:li></rdf:Seq></dc:creator>")
    caption = f'<rdf:li xml:lang="x-default">{escape(description(provenance))}</rdf:li>'
    fields.append(f"<dc:description><rdf:Alt>{caption}</rdf:Alt></dc:description>")
    declared = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in _NAMESPACES.items() if prefix != "rdf")
    packet = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<rdf:RDF xmlns:rdf="{_NAMESPACES["rdf"]}"><rdf:Description rdf:about="" {declared}>'
        f'{"".join(fields)}</rdf:Description></rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
    )
    return packet.encode()


def xmp_fields(packet: bytes) -> dict[str, str]:
    """Gives the packet's fields by prefixed name, lists joined by commas; nothing for what is not readable XML.

    A packet that declares entities is not read: they are what XML's bombs are made of, and XMP has none.
    """
    try:
        text = packet.decode().strip("\0 \n\ufeff")
        if "<!" in text:
            return {}
        root = ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError):
        return {}
    fields: dict[str, str] = {}
    rdf = f"{{{_NAMESPACES['rdf']}}}"
    # Only RDF's own descriptions: of 100 000 inside each other every one would be read as often as it is deep.
    for block in next(root.iter(f"{rdf}RDF"), root).findall(f"{rdf}Description"):
        for name, value in block.attrib.items():
            fields[_prefixed(name)] = value
        for element in block:
            fields[_prefixed(element.tag)] = ", ".join(part.strip() for part in element.itertext() if part.strip())
    fields.pop("rdf:about", None)
    return fields


def _prefixed(name: str) -> str:
    """Gives ``dc:creator`` for ``{http://purl.org/dc/elements/1.1/}creator``; foreign names stay as they are."""
    uri, _, local = name.removeprefix("{").rpartition("}")
    return f"{_PREFIXES[uri]}:{local}" if uri in _PREFIXES else name
