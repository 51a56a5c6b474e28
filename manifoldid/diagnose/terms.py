"""Numbers and sums of terms as text."""


def number(value: float) -> str:
    """A coefficient, short."""
    return f"{value:.6g}"


def expression_of(terms: list[tuple[float, str]]) -> str:
    """A sum of terms: 2 x^2 - 1."""
    text = ""
    for coefficient, factor in terms:
        sign, size = ("-" if coefficient < 0 else "+"), abs(coefficient)
        body = number(size) if factor == "1" else factor if size == 1 else f"{number(size)} {factor}"
        text += (f" {sign} " if text else "-" if sign == "-" else "") + body
    return text or "0"
