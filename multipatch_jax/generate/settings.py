"""The settings of a generation, checked before any device work."""

import dataclasses
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from multipatch_jax.arguments import (
    LARGEST_INT,
    require_integer,
    require_number,
    require_positive,
    require_positive_or_none,
    require_type,
)
from multipatch_jax.generate.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """How one answer is generated.

    Attributes:
      max_new_tokens: most tokens of the answer.
      temperature: 0 takes the most likely token each time; else the logits are divided by it, and a token is drawn.
      top_k: draws among the `top_k` most likely tokens; None draws among all.
      top_p: draws among the most likely tokens whose probabilities add up to at least this, above 0 and at most 1; None
        draws among all.
      min_p: draws among tokens at least this many times as likely as the most likely one, from 0 to 1; None draws among
        all.
      repetition_penalty: above 1 makes tokens less likely that stand in the prompt or the answer; below 1, more likely.
      seed: of the draws. The same chat with the same seed and settings has the same answer.
      stop: texts that end the answer, which does not contain them; one text or several.
      should_stop: called with the text so far whenever it has grown; True ends the answer.
      skip_special_tokens: False keeps special tokens in the text, such as the tags that document models write, but for
        the one that ended the answer.
      grammar: what the answer must be: a dict is a JSON schema, a `re.Pattern` is a regex that matches the whole
        answer, and a str is a Lark grammar. Tokens that do not fit have no probability, before all other settings. An
        answer ends as soon as nothing can be added. One that `max_new_tokens`, `stop` or `should_stop` cuts short may
        lack its end. JSON has at most one space between two of its parts, or what the schema's own
        {"x-guidance": {"whitespace_pattern": ...}} says.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: str | Sequence[str] = ()
    should_stop: Callable[[str], bool] | None = None
    skip_special_tokens: bool = True
    grammar: dict[str, Any] | re.Pattern[str] | str | None = None

    def __post_init__(self):
        checked = {
            "max_new_tokens": require_positive("max_new_tokens", self.max_new_tokens, "tokens"),
            "top_k": require_positive_or_none("top_k", self.top_k, "tokens"),
            "seed": require_integer("seed", self.seed, 0, LARGEST_INT),
            "stop": _stops(self.stop),
        }
        require_number("temperature", self.temperature)
        _require_share("top_p", self.top_p, above=True)
        _require_share("min_p", self.min_p)
        require_number("repetition_penalty", self.repetition_penalty, above=True)
        if self.should_stop is not None and not callable(self.should_stop):
            raise ValueError(f"should_stop must be a function (text) -> bool or None, got {self.should_stop!r:.60}.")
        require_type("skip_special_tokens", self.skip_special_tokens, bool)
        _require_grammar(self.grammar)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def sampling(self) -> Sampling:
        """Return what `sample` reads of these settings, for one row: every field is a scalar array."""
        with np.errstate(over="ignore", under="ignore"):  # far outside of float32 they are its 0 and infinity
            return Sampling(
                temperature=np.asarray(self.temperature, np.float32),
                top_k=np.asarray(min(self.top_k or 0, LARGEST_INT), np.int32),
                top_p=np.asarray(1 if self.top_p is None else self.top_p, np.float32),
                min_p=np.asarray(self.min_p or 0, np.float32),
                repetition_penalty=np.asarray(self.repetition_penalty, np.float32),
                seed=np.asarray(self.seed, np.int32),
            )


SETTINGS = tuple(field.name for field in dataclasses.fields(GenerationSettings))
"""The names of the settings, which are keywords of `Generator.generate`."""


def settings_of_chats(number: int, given: Mapping[str, Any]) -> list[GenerationSettings]:
    """Return the settings of each of several chats.

    Args:
      number: of chats.
      given: values by the name of the setting; they hold for every chat. A `seed` or a `grammar` may be a list, one
        for each chat.

    Raises:
      ValueError: a setting is unknown or its value is not allowed, or the number of seeds or grammars is another.
    """
    unknown = sorted(set(given) - set(SETTINGS))
    if unknown:
        raise ValueError(f"Unknown setting {unknown[0]!r}: the settings are {', '.join(SETTINGS)}.")
    seeds = given.get("seed", 0)
    seeds = _of_each("seed", "an integer", seeds.tolist() if isinstance(seeds, np.ndarray) else seeds, number)
    grammars = _of_each("grammar", "one grammar", given.get("grammar"), number)
    return [
        GenerationSettings(**{**given, "seed": seed, "grammar": grammar})
        for seed, grammar in zip(seeds, grammars, strict=True)
    ]


def _of_each(name: str, one: str, value: Any, number: int) -> Sequence[Any]:
    """Return a value for each of several chats, or raise a ValueError."""
    values = value if isinstance(value, (list, tuple)) else [value] * number
    if len(values) != number:
        raise ValueError(f"{name} must be {one}, or a list with one for each of {number} chats, got {len(values)}.")
    return values


def _require_grammar(value: Any) -> None:
    """Raise a ValueError unless the value is of a kind that a grammar may have."""
    is_regex = isinstance(value, re.Pattern) and isinstance(value.pattern, str)
    if not (value is None or is_regex or isinstance(value, (dict, str))):
        raise ValueError(
            f"grammar must be a JSON schema (a dict), a regex (a re.Pattern of str), a Lark grammar (a str) or None, "
            f"got {value!r:.60}."
        )


def _require_share(name: str, value: Any, *, above: bool = False) -> None:
    """Raise a ValueError that names the setting unless it is None or a number from 0 to 1 (above 0, with `above`)."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if value is not None and not (is_number and value <= 1 and not value < 0 and not (above and value == 0)):
        expected = "above 0 and at most 1" if above else "from 0 to 1"
        raise ValueError(f"{name} must be None or a number {expected}, got {value!r:.60}.")


def _stops(stop: Any) -> tuple[str, ...]:
    """Return one text or several as a tuple, or raise a ValueError."""
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, Sequence) or not all(isinstance(one, str) and one for one in stops):
        raise ValueError(f"stop must be a text or a list of texts, none of them empty, got {stop!r:.60}.")
    return tuple(stops)
