"""What a verifier says of a picture some time after it was signed."""

import time
from datetime import UTC, datetime, timedelta

import numpy as np
from fakes.authority import issued
from fakes.made import MADE

from orchestrator.imaging.credentials import verify
from orchestrator.imaging.inspection import describe, read
from orchestrator.imaging.picture import encode


def test_picture_whose_certificate_ran_out_is_not_said_to_be_changed() -> None:
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)  # certificates count whole seconds
    key, root = issued(until=until)
    data = encode(np.zeros((64, 96, 3), np.uint8), MADE, "png", key)
    forged = data.replace(b"<xmp:CreatorTool>Remarque", b"<xmp:CreatorTool>Renoir..")
    while datetime.now(UTC) < until + timedelta(seconds=1):
        time.sleep(0.1)
    found = read(data, root)
    assert (found.credentials.state, found.is_broken) == ("expired", False)
    assert "unchanged, but the signer's certificate ran out" in describe(found)
    assert verify(forged, "image/png", root).state == "tampered"
