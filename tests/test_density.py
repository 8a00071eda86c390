"""Code that can be read: how much happens in a line of the package."""

import ast
import io
import statistics
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "flwr_splitfc"
MOST_NODES_PER_LINE = 8.0

Function = ast.FunctionDef | ast.AsyncFunctionDef

# What stands on a line without making it a line of code.
LAYOUT = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}


def docstring_lines(tree: ast.Module) -> set[int]:
    """Lines of strings that stand as statements: docstrings, also those of constants."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if has_docstrings(node) else []:
            if is_string(statement):
                lines.update(range(statement.lineno, statement.end_lineno + 1))
    return lines


def has_docstrings(node: ast.AST) -> bool:
    return isinstance(node, ast.Module | ast.ClassDef | Function)


def is_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def code_lines(source: str, tree: ast.Module) -> set[int]:
    """Lines that hold code, without docstrings and comments."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - docstring_lines(tree)


def test_lines_hold_one_idea() -> None:
    """Syntax nodes per line of code, over the whole package; generated files are left out."""
    nodes, lines = 0, 0
    lengths: list[int] = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.stem.endswith("_pb2"):
            continue
        source = file.read_text()
        tree = ast.parse(source)
        nodes += sum(1 for _ in ast.walk(tree))
        lines += len(code_lines(source, tree))
        functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
        lengths += [node.end_lineno - node.lineno + 1 for node in functions]
    lengths.sort()
    assert nodes / lines <= MOST_NODES_PER_LINE, (
        f"{nodes / lines:.2f} syntax nodes per line of code, and at most "
        f"{MOST_NODES_PER_LINE} are wanted; functions have {statistics.median(lengths)} "
        f"lines in the median, {lengths[len(lengths) * 9 // 10]} at the 90th "
        f"percentile, {lengths[-1]} at most"
    )
