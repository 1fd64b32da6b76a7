"""Tasks by name. `replora.tasks.load.load_task` builds one; this file imports nothing heavy."""

from __future__ import annotations

from replora.config import COMMONSENSE_SETS

__all__ = ["TASKS"]

#: Name -> what it is.
TASKS: dict[str, str] = {
    "digits": "scikit-learn's handwritten digits 5 to 9, which vit-digits has never seen",
    "image-folder": "a person's own images, <root>/{train,val,test}/<class>/* or <root>/<class>/*",
    "video-folder": "a person's own clips, folders of frames or .npy files, laid out like image-folder",
    "commonsense": "commonsense reasoning: trained on commonsense_170k.json, tested on eight sets",
    **{
        f"commonsense-{name}": f"commonsense reasoning, tested on {folder} alone"
        for name, folder in COMMONSENSE_SETS.items()
    },
    "text-to-text": "source texts, with or without visual features, to target texts: {train,val,test}.jsonl",
}
