"""Write the annotations of the first 20 training images with 1 to 8 objects and no crowd.

python experiments/dense/twenty.py DATA OUTPUT.json, DATA with annotations/instances_train2017.json.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path


def main(data: str, output: str) -> None:
    content = json.loads((Path(data) / "annotations" / "instances_train2017.json").read_bytes())
    objects = defaultdict(list)
    for entry in content["annotations"]:
        objects[entry["image_id"]].append(entry)
    chosen = [
        image
        for image in content["images"]
        if 1 <= len(objects[image["id"]]) <= 8 and not any(a["iscrowd"] for a in objects[image["id"]])
    ][:20]
    kept = [entry for image in chosen for entry in objects[image["id"]]]
    Path(output).write_text(json.dumps(content | {"images": chosen, "annotations": kept}))
    print(f"{len(chosen)} images, {len(kept)} objects")


main(*sys.argv[1:])
