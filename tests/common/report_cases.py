"""What the viewer of a report is handed, read as its script reads it."""

import base64
import gzip
import json
import re

import numpy as np

__all__ = ["layer", "payload", "units_of"]


def payload(html):
    """The viewer's data in a page."""
    data = json.loads(re.search(r'<script type="application/json" id="viewer-data">(.*?)</script>', html)[1])
    return data | json.loads(gzip.decompress(base64.b64decode(data["told"])))


def layer(data, packed, kind="u1"):
    """A layer by index: columns, rows of a picture; right, anterior, superior of a scan."""
    values = np.frombuffer(gzip.decompress(base64.b64decode(packed)), dtype=np.dtype(kind).newbyteorder("<"))
    return values.reshape(data["shape"], order="F")


def units_of(data, number=0):
    """The units' numbers by index; 0 where there is none."""
    return layer(data, data["units"][number], "u4" if data["wide"] else "u2")
