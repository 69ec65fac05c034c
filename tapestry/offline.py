"""Nobody phones home: importing this module silences the libraries that would.

transformers, datasets and huggingface_hub look for newer files or send statistics unless
`HF_HUB_OFFLINE` is set *before* their first import; the telemetry switch alone does not stop
them. Whoever wants a download from a hub sets `TAPESTRY_ALLOW_HUB=1` and says so by that.
"""

import os

if os.environ.get("TAPESTRY_ALLOW_HUB") != "1":
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")  # long work is shown by our own bars
