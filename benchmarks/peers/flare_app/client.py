"""A FLARE client that returns what it received plus a constant."""

import numpy as np
import nvflare.client as flare

_STEP = np.float32(1e-3)

flare.init()
while flare.is_running():
    received = flare.receive()
    if received is None:
        break
    echoed = {name: array + _STEP for name, array in received.params.items()}
    flare.send(flare.FLModel(params=echoed))
