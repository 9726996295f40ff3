"""The model card of an exported model folder: MODEL_CARD.md and model_card.html, from model.json alone.

Export writes both before model.json, which comes last. A card names the SHA-256 of the model.json that it was made
from; after a change of model.json (a recalibration, say) make it again with this verb.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastich import artifact as contract
from fastich import verb
from fastich.artifact import Artifact, load_artifact
from fastich.files import write_text
from fastich.report import card

MARKDOWN_FILE = "MODEL_CARD.md"
HTML_FILE = "model_card.html"


def write_card(folder: Path, document: Mapping[str, Any]) -> None:
    """Write both forms of the card of model.json's ``document`` into ``folder``, each whole or not at all."""
    plain = card.normalised(document)
    write_text(folder / MARKDOWN_FILE, card.to_markdown(plain))
    write_text(folder / HTML_FILE, card.to_html(plain))


def publish(folder: Path, artifact: Artifact) -> None:
    """Write the cards, then model.json, whose presence means "complete"."""
    write_card(folder, contract.to_document(artifact))
    contract.write_manifest(folder, artifact)


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = verb.parser("model_card", __doc__)
    made.add_argument("model", type=Path, metavar="MODEL_DIR", help="model folder that export/to_onnx.py wrote")
    folder: Path = made.parse_args(argv).model
    load_artifact(folder)  # a card of damaged files would be a lie
    write_card(folder, json.loads((folder / contract.MANIFEST).read_text(encoding="utf-8")))
    verb.say(f"model card: {folder / MARKDOWN_FILE}, {folder / HTML_FILE}")
    return 0


if __name__ == "__main__":
    verb.run(main)
