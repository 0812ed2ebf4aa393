"""Run a chat template: a Jinja program by someone else, in a sandbox, on plain data.

The sandbox hides Python from a template. Steps and sizes are bounded too, so that a damaged or hostile template ends in
an error. This is no guarantee, because a single filter can still take long: load templates that you trust.

Needs the library `jinja2` (the extra `text`), imported at first use.
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_CHARACTERS = 2**24  # of a rendered text, and of a value that a template makes by an operator
MAX_STEPS = 300_000  # passes of a template's loops
CALL_STEPS = 20  # a call counts as so many passes, because it takes as long
MAX_BITS = 2**16  # of an integer that a template makes
START, END = "\ufdd0", "\ufdd1"  # around what the assistant says: Unicode's noncharacters, which no text may hold
STEPS = "steps of this run"  # a variable that no template can name
Spans = list[tuple[int, int]]


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> Any:
    """Compile a template, with the filters, globals and tags that the reference gives it (transformers 5.23)."""
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.runtime
    import jinja2.sandbox
    import jinja2.visitor

    def count(context, steps):
        taken = context.resolve(STEPS)
        taken[0] += steps
        if taken[0] > MAX_STEPS:
            raise OverflowError(f"it takes more than {MAX_STEPS} steps")

    @jinja2.pass_context
    def counted(context, items):
        for item in items:
            count(context, 1)
            yield item

    def joined(values):
        texts = [str(value) for value in values]
        check_size(sum(map(len, texts)))
        return "".join(texts)

    class Bounds(jinja2.visitor.NodeTransformer):
        """Count the passes of `for`, and measure what `~` makes: the sandbox has no hooks for them."""

        def visit_For(self, node: Any) -> Any:
            self.generic_visit(node)
            node.iter = filtered(node.iter, "counted")
            return node

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            return filtered(jinja2.nodes.List(node.nodes, lineno=node.lineno), "joined")

    def filtered(node, name):
        return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "+", "**"])

        def _parse(self, source, name, filename):
            tree = Bounds().visit(super()._parse(source, name, filename))
            tree.set_environment(self)
            return tree

        def call(__self, __context, __obj, *args, **kwargs):
            count(__context, CALL_STEPS)
            if isinstance(__obj, jinja2.runtime.LoopContext):  # `loop(items)`, of a recursive loop
                args = (counted(__context, args[0]), *args[1:])
            return super().call(__context, __obj, *args, **kwargs)

        def call_binop(self, context, operator, left, right):
            """Compute left + right, left * right or left ** right, unless the result is too long."""
            _check_operation(operator, left, right)
            return super().call_binop(context, operator, left, right)

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` ... `{% endgeneration %}`: what stands between them is the assistant's."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's own form)

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller):
            return f"{START}{caller()}{END}"

    def refuse(message):
        raise jinja2.TemplateError(message)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
    environment.filters |= {
        "tojson": lambda value, **options: json.dumps(value, ensure_ascii=False, **options),
        "counted": counted,
        "joined": joined,
    }
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "tools": None,
        "documents": None,
    }
    return environment.from_string(template)


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """Raise an OverflowError if left + right, left * right or left ** right is too long."""
    if type(left) is type(right) is int:
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MAX_BITS:
            raise OverflowError(f"it makes an integer of {bits} bits, more than {MAX_BITS}")
        return
    sizes = [one if type(one) is int else len(one) if hasattr(one, "__len__") else 0 for one in (left, right)]
    check_size(sizes[0] * sizes[1] if operator == "*" else sum(sizes))  # a text or list, repeated or joined


def check_size(length: int) -> None:
    """Raise an OverflowError if a value of a template is too long."""
    if length > MAX_CHARACTERS:
        raise OverflowError(f"it makes a value of {length} characters, more than {MAX_CHARACTERS}")


def render(
    template: str, messages: Sequence[Mapping[str, Any]], special_tokens: Mapping[str, str], add_generation_prompt: bool
) -> tuple[str, Spans | None]:
    """Render messages as text, as the reference does (transformers 5.23).

    Args:
      template: Jinja source.
      messages: in JSON's types; see `messages.py`.
      special_tokens: variables of the template, such as "bos_token".
      add_generation_prompt: whether the text ends where the model's answer begins.

    Returns:
      (text, spans): the [start, end) of each `{% generation %}` block in the text, None if the template has none.

    Raises:
      ValueError: the template refuses the messages, is broken, takes more than MAX_STEPS, or makes a text of more than
        MAX_CHARACTERS.
    """
    variables = {"messages": list(messages), "add_generation_prompt": add_generation_prompt, **special_tokens}
    try:
        written = json.dumps(variables, ensure_ascii=False)
        variables = json.loads(written.replace(START, "\ufffd").replace(END, "\ufffd"))
        pieces, length = [], 0
        for piece in _compile(template).generate(**variables, **{STEPS: [0]}):
            length += len(piece)
            check_size(length)
            pieces.append(piece)
    except Exception as error:  # a program by someone else can raise anything, SyntaxError and MemoryError included
        reason = str(error)[:300] or type(error).__name__
        raise ValueError(f"The chat template must accept the messages of the chat, got its error: {reason}.") from error
    return _spans("".join(pieces), marked=bool(re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", template)))


def _spans(text: str, marked: bool) -> tuple[str, Spans | None]:
    """Take the marks of `{% generation %}` out of a text; return it and what they enclosed."""
    if not marked or START not in text:
        return text, [] if marked else None
    pieces, spans, length = [], [], 0
    for number, piece in enumerate(text.replace(END, START).split(START)):
        if number % 2:
            spans.append((length, length + len(piece)))
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces), spans
