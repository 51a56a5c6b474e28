"""How a field is written: grouped by blocks and by equal formulas, short enough to read."""

from torch import Tensor

from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.diagnose.formula_rows import lines_of_block, terms_of_block
from manifoldid.diagnose.labels import Labels
from manifoldid.diagnose.terms import expression_of, number

_LISTED = 6  # equations for coordinates that are written


def formula(field: Field, labels: Labels) -> str:
    """The velocity of a field in words: what d/dt of which coordinates is."""
    text = getattr(field, "text", None)
    if text is not None:
        return text
    if not isinstance(field, ClosedField):
        return "combination of closed forms"
    moved = field.moved_rows()
    equations: list[str] = []
    for block, (start, stop) in labels.spans.items():
        if bool(moved[start:stop].any()):
            terms = (
                terms_of_block(field, start, stop) if _by_rows(field, moved[start:stop], labels.shapes[block]) else None
            )
            lines = (
                None if terms is None else lines_of_block(terms, labels.of(block), stop - start, labels.shapes[block])
            )
            equations += lines or _equations(field, labels, (start + moved[start:stop].nonzero()[:, 0]).tolist())
    return ", ".join(equations[:_LISTED]) + (f", ... ({len(equations)} equations)" if len(equations) > _LISTED else "")


def _by_rows(field: ClosedField, moved: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the field mixes coordinates of the block, or scales a part of a matrix."""
    if not field.is_affine or not len(field.rows):
        return False
    return not field.is_diagonal or (len(shape) > 1 and not bool(moved.all()))


def _equations(field: ClosedField, labels: Labels, moved: list[int]) -> list[str]:
    """Equations for coordinates of one block, those that move alike in one."""
    return [
        f"{_derivative(labels.listed(members))} = {text}" for text, members in _groups(field, labels, moved).items()
    ]


def _derivative(where: str) -> str:
    return f"d({where})" if "," in where.split("[")[0] or "], " in where else f"d{where}"


def _groups(field: ClosedField, labels: Labels, moved: list[int]) -> dict[str, list[int]]:
    """Coordinates of one block by the text of their velocity."""
    groups: dict[str, list[int]] = {}
    if field.is_affine and not len(field.rows) and field.constant is not None:
        for i in moved:
            groups.setdefault(number(float(field.constant[i])), []).append(i)
        return groups
    block = labels.block_of(moved[0])
    for i in moved:
        terms = field.terms_of(i)
        own = all("{" not in factor.replace(f"{{{i}}}", "") for _, factor in terms)
        text = (
            expression_of([(c, factor.replace(f"{{{i}}}", labels.of(block))) for c, factor in terms]) if own else None
        )
        if text is None:
            text = expression_of([(c, _named(factor, labels)) for c, factor in terms])
        groups.setdefault(text, []).append(i)
    named: dict[str, list[int]] = {}
    for text, members in groups.items():  # one coordinate alone is called by its own name on both sides
        if len(members) == 1 and labels.shapes[block]:
            text = expression_of([(c, _named(factor, labels)) for c, factor in field.terms_of(members[0])])
        named.setdefault(text, []).extend(members)
    return named


def _named(factor: str, labels: Labels) -> str:
    pieces = factor.split("{")
    text = pieces[0]
    for piece in pieces[1:]:
        index, rest = piece.split("}", 1)
        text += labels.name(int(index)) + rest
    return text
