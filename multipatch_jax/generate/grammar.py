"""Hold an answer to a JSON schema, a regex or a Lark grammar: which tokens may come next, by the library llguidance."""

import copy
import functools
import json
import re
from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import UInt32

from multipatch_jax.generate.sampling import pack_ids

Words = UInt32[np.ndarray, " words"]  # a set of ids, as `pack_ids` packs it
Grammar = dict[str, Any] | re.Pattern[str] | str  # a JSON schema, a regex, a Lark grammar
FORCED = 64  # tokens without an alternative at the beginning of a grammar are tried, so many at most
KEYWORDS = frozenset(
    "$ref allOf anyOf const enum oneOf type additionalProperties properties patternProperties propertyNames required "
    "minProperties maxProperties items prefixItems additionalItems minItems maxItems contains uniqueItems minLength "
    "maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf not if".split()
)


class Matcher:
    """Follows one answer through its grammar.

    Attributes:
      allowed: the tokens that may come next, as `Chunk.allowed`.
      complete: whether the answer fulfils the grammar, and no token may come but one that ends it.
    """

    def __init__(self, matcher: Any, model_ids: Words, eos_ids: Words, text_eos_ids: Words):
        """Begin an answer; for `Grammars`.

        Args:
          matcher: an `LLMatcher`, which is this answer's own.
          model_ids: those that the model and its tokenizer have.
          eos_ids: those that end an answer.
          text_eos_ids: those among them that are text too, so that a grammar may ask for one before the answer's end.

        Raises:
          ValueError: no token may come.
        """
        self._matcher, self._masks, self._length = matcher, (model_ids, eos_ids, text_eos_ids), 0
        self._look()

    def copy(self) -> "Matcher":
        """Return a matcher of another answer, which goes on from here."""
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    def accept(self, token_id: int) -> None:
        """Go on with the token that was chosen among those allowed, none that ends the answer.

        Raises:
          ValueError: the grammar cannot go on from here, or is too complex.
        """
        self._length += 1
        self._matcher.consume_token(token_id)
        self._look()

    def _look(self) -> None:
        """Find out what may come next."""
        model_ids, eos_ids, text_eos_ids = self._masks
        found = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: len(model_ids)]
        self.allowed = found & model_ids & ~text_eos_ids
        if self._matcher.is_accepting():
            self.allowed |= eos_ids
        self.complete = not np.any(self.allowed & ~eos_ids)
        may_end = self._matcher.is_accepting() and self._length > 0  # an answer has at least one token
        if self._matcher.is_error() or not (may_end or np.any(self.allowed)):
            reason = _reason(self._matcher.get_error())
            raise ValueError(
                f"grammar must allow a token in every place of an answer until its end, and allows none in place "
                f"{self._length}{reason and f' ({reason})'}: look for parts that exclude each other."
            )


class Grammars:
    """Compiles grammars for the tokens of one model."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: Collection[int]):
        """Note the model's tokens; nothing is made before the first grammar.

        Args:
          tokenizer: a `tokenizers.Tokenizer`.
          vocab_size: the language model's; it may have other ids than the tokenizer, which no grammar allows.
          eos_ids: ids that end an answer. A grammar allows all of them where its text may end.
        """
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._eos_ids = [one for one in eos_ids if one < vocab_size]
        self._compiled = functools.lru_cache(16)(self._compile)

    def matcher(self, grammar: Grammar) -> Matcher:
        """Return the matcher of a new answer.

        Args:
          grammar: as in `GenerationSettings`.

        Raises:
          ValueError: it is none of these, or has no text.
          ImportError: the extra `grammar` is not installed.
        """
        try:
            return self._compiled(_written(grammar)).copy()
        except _Refused as error:
            raise ValueError(f"grammar must be {_kind(grammar)}: {error}.") from None

    def _compile(self, text: str) -> Matcher:
        """Return the matcher of an answer that begins, from a grammar as llguidance writes it."""
        tokenizer, *masks = self._tokens
        compiled = _llguidance().LLMatcher(tokenizer, text, log_level=0)
        if compiled.is_error():
            raise _Refused(_reason(compiled.get_error()))
        beginning = Matcher(compiled, *masks)
        ahead = beginning.copy()
        for _ in range(FORCED):
            (ids,) = np.nonzero(np.unpackbits(ahead.allowed.view(np.uint8), bitorder="little"))
            if ahead.complete or len(ids) > 1:
                break
            ahead.accept(int(ids[0]))
        return beginning

    @functools.cached_property
    def _tokens(self) -> tuple[Any, Words, Words, Words]:
        """llguidance's tokenizer, and what `Matcher` needs beside it."""
        # llguidance wants one id that ends a text, and would take 0. It gets one of its own, which is no other token's:
        # a model's may be none, several, or text as well.
        own = type(self._tokenizer).from_str(self._tokenizer.to_str())
        own.no_padding()
        own.no_truncation()
        own.add_special_tokens(["<|end of the grammar|>"])
        end = own.token_to_id("<|end of the grammar|>")
        size = max(self._vocab_size, *own.get_vocab().values()) + 1
        tokenizer = _llguidance().LLTokenizer(own.to_str(), n_vocab=size, eos_token=end)
        ids = {*self._tokenizer.get_vocab().values(), *self._eos_ids}
        text_eos_ids = [one for one in self._eos_ids if not tokenizer.is_special_token(one)]
        model_ids, eos_ids, text_eos_ids = (
            pack_ids([one for one in some if one < self._vocab_size], self._vocab_size)
            for some in (ids, self._eos_ids, text_eos_ids)
        )
        return tokenizer, model_ids, eos_ids, text_eos_ids


class _Refused(ValueError):
    """Why llguidance does not take a grammar."""


def _llguidance() -> Any:
    """Import the library."""
    try:
        import llguidance
    except ImportError as error:
        raise ImportError(f'A grammar needs the extra "grammar" ({error}): install multipatch_jax[grammar].') from error
    return llguidance


def _written(grammar: Grammar) -> str:
    """Return a grammar as llguidance writes it."""
    library = _llguidance().LLMatcher
    try:
        if isinstance(grammar, re.Pattern):
            return library.grammar_from_regex(_regex(grammar))
        if isinstance(grammar, str):
            return library.grammar_from_lark(grammar)
        if grammar and not KEYWORDS & grammar.keys():
            raise ValueError("it has none of a schema's keywords, such as type, properties, enum or anyOf")
        schema = json.dumps(grammar, allow_nan=False)
        return library.grammar_from_json_schema(schema, defaults={"whitespace_pattern": " ?"})
    except (TypeError, ValueError, RecursionError) as error:
        raise _Refused(str(error).rstrip(".")) from None


def _regex(pattern: re.Pattern[str]) -> str:
    """Return a regex with its flags in front."""
    others = pattern.flags & ~(re.UNICODE | re.IGNORECASE | re.DOTALL)
    if others:
        raise ValueError(f"of a regex's flags I and S can be kept, and it has {re.RegexFlag(others)!r}")
    flags = "i" * bool(pattern.flags & re.IGNORECASE) + "s" * bool(pattern.flags & re.DOTALL)
    return f"(?{flags}){pattern.pattern}" if flags else pattern.pattern


def _kind(grammar: Grammar) -> str:
    """Describe what a grammar had to be, and what came."""
    if isinstance(grammar, re.Pattern):
        return f"a regex that llguidance takes, got {grammar.pattern!r:.60}"
    if isinstance(grammar, str):
        return f"a Lark grammar, as every str is (pass a regex as re.compile(...)), got {grammar!r:.60}"
    return f"a JSON schema that llguidance takes, got {grammar!r:.60}"


def _reason(message: str) -> str:
    """Return the line of llguidance's message that says what is wrong, or ""."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    found = next((line for line in lines if line.startswith("error: ")), lines[0] if lines else "")
    return "" if found.startswith("NoExtension") else found.removeprefix("error: ").rstrip(".")
