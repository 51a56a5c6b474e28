"""The notebooks of examples/ as pages of the documentation, and their index: one picture and one sentence each.

A new notebook appears by itself, with the first sentence below its title. A better one may stand in SENTENCES.
"""

import base64
import json
import re
import shutil
from pathlib import Path

# Also the order of the index; notebooks that are not named here come last.
SENTENCES = {
    "pairwise_ensemble": "Eight networks, eight origins: what the mean and the deviation of an ensemble of preference models can say.",
    "choose_your_gauge": "Which group do I have? Three models, three answers, and what to do with each.",
    "is_it_identifiable": "A likelihood written at home: which combinations of its parameters do the data determine?",
    "leaderboard": "A ranking with error bars that do not depend on the anchor.",
    "item_response": "Difficulties and slopes of a test with missing answers: two seeds that agree, in the units of the textbook.",
    "reward_model_ensemble": "One shift per prompt: the disagreement of reward models before and after it is taken out.",
    "factor_rotation": "Bootstrapped factor loadings that swap and rotate from sample to sample, aligned.",
    "lora_gauge": "The product of two adapters is what counts: training that does not depend on how it is factored.",
    "swap_in_an_optimizer": "The same gauge under geoopt's optimisers and under torch's.",
    "write_your_own_manifold": "Ten lines for a gauge that nobody has named, and a kit that says whether they are right.",
}

_INDEX = """# Examples

Every notebook is executed by the tests; what you see is what they saved. To run one yourself:
`pip install ".[plot]" jupyter`, then open it in the folder `examples` of the repository.

"""


def write(source: Path, target: Path) -> None:
    """Copies the notebooks of `source` to `target` and writes `index.md` with their pictures there."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    order = list(SENTENCES)
    notebooks = sorted(
        source.glob("*.ipynb"),
        key=lambda path: (order.index(path.stem) if path.stem in order else len(order), path.stem),
    )
    entries = []
    for path in notebooks:
        shutil.copy(path, target)
        entries.append(_entry(path, target))
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *[path.stem for path in notebooks], "```", ""])
    (target / "index.md").write_text(_INDEX + "\n".join(entries) + "\n" + toctree, encoding="utf-8")


def _entry(path: Path, target: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    title, sentence = _opening(cells, path)
    lines = [f"## [{title}]({path.name})", "", SENTENCES.get(path.stem, sentence), ""]
    picture = next((_png(output) for cell in cells for output in cell.get("outputs", []) if _png(output)), None)
    if picture:
        name = f"{path.stem}.png"
        (target / name).write_bytes(base64.b64decode(picture))
        lines += [f"[![{title}]({name})]({path.name})", ""]
    return "\n".join(lines)


def _png(output: dict) -> str | None:
    return output.get("data", {}).get("image/png")


def _opening(cells: list[dict], path: Path) -> tuple[str, str]:
    """Title and first sentence of a notebook."""
    text = "".join(next((cell["source"] for cell in cells if cell["cell_type"] == "markdown"), ""))
    title, _, body = text.partition("\n")
    if not title.startswith("# "):
        raise ValueError(f"{path.name} must begin with a markdown cell whose first line is its title, '# ...'")
    return title[2:].strip(), re.split(r"(?<=[.?!])\s", " ".join(body.split()))[0]
