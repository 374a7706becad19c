"""What the options of all commands share: forms of values, and refusals in the words that the user typed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from aether_emu.cli.app import Errors, Wrong
from aether_emu.config import Config
from aether_emu.errors import ConfigError, NeededError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from click.types import OptionHelpExtra

_TYPED = "aether_emu.typed"  # where a context keeps what was typed
_SETTINGS = "aether_emu.settings"  # and the parameters that it sets
_LONGEST = 1_000_000_000  # seconds; the host's timers overflow beyond
_T = TypeVar("_T")


class Form(click.ParamType[_T]):
    """What a value looks like: `read` gives what the text means, or ValueError; `allowed` says it in words.

    `name` stands for the value in help. `choices` gives what the shell offers to complete it.
    """

    def __init__(
        self,
        name: str,
        allowed: str,
        read: Callable[[str], _T],
        choices: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.name, self.allowed = name, allowed
        self._read, self._choices = read, choices

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """As the type's author wrote it."""
        return self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> _T:
        """The value meant by a text. Raises Wrong, with the option and the text as they were typed."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]  # a default
        try:
            return self._read(value)
        except ValueError:
            subject = value if param is None else _subject(param, value)
            raise Wrong(f"{subject} is not allowed: {self.allowed}", ctx) from None

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Those choices that begin so."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(choice) for choice in self._choices() if choice.startswith(incomplete)]


class _List(Form[str]):
    """Several of `choices` in one word, separated by commas."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Those choices that begin as the last of them does, behind the others."""
        before, comma, last = incomplete.rpartition(",")
        offered = super().shell_complete(ctx, param, last)
        for item in offered:
            item.value = before + comma + item.value
        return offered


class _Place(click.Path):
    """A path of the host, neither opened nor looked at: who uses it says what is wrong with it."""

    def __init__(self, name: str, completed_as: str) -> None:
        super().__init__(path_type=Path, readable=False)
        self.name, self._completed_as = name, completed_as

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path. Raises Wrong for none, which would be the working directory."""
        if value == "" and param is not None:
            raise Wrong(f"{_subject(param, value)} is not allowed: the name of a {self.name}", ctx)
        return super().convert(value, param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The shell knows what there is."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type=self._completed_as)]


FILE, DIRECTORY = _Place("file", "file"), _Place("directory", "dir")


def text(name: str, choices: Callable[[], Sequence[str]] = tuple) -> Form[str]:
    """Any text; who uses it refuses what is wrong."""
    return Form(name, "", str, choices)


def several(name: str, choices: Callable[[], Sequence[str]]) -> Form[str]:
    """Words separated by commas; who uses them refuses what is wrong."""
    return _List(name, "", str, choices)


def one_of(name: str, values: Sequence[str]) -> Form[str]:
    """One of a few words."""

    def read(written: str) -> str:
        if written not in values:
            raise ValueError(written)
        return written

    return Form(name, f"one of {', '.join(values)}", read, lambda: values)


def _plain(written: str) -> str:
    """A number without what only Python's own has: underscores, spaces around it, digits of other scripts."""
    if not written.isascii() or "_" in written or written != written.strip():
        raise ValueError(written)
    return written


def whole(low: int, high: int | None = None) -> Form[int]:
    """A whole number in decimal from `low` to `high`."""

    def read(written: str) -> int:
        number = int(_plain(written))
        if number < low or (high is not None and number > high):
            raise ValueError(written)
        return number

    return Form(
        "N",
        f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high}",
        read,
    )


def _seconds(written: str) -> float:
    number = float(_plain(written))
    if not (math.isfinite(number) and 0 < number <= _LONGEST):
        raise ValueError(written)
    return number


def hexadecimal(name: str = "HEX") -> Form[int]:
    """A hexadecimal number, with or without 0x."""

    def read(written: str) -> int:
        number = int(_plain(written), 16)
        if not 0 <= number < 1 << 64:
            raise ValueError(written)
        return number

    return Form(name, "a hexadecimal number of at most 64 bits", read)


HEX = hexadecimal()
SECONDS = Form("SECONDS", f"seconds, more than 0 and at most {_LONGEST:,}", _seconds)


class Option(click.Option):
    """An option that may say in words what holds when it is left out: `show_default`."""

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """As any option; the words stand without Click's parentheses."""
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        return extra


class WithOrWithout(Option):
    """An option whose value follows "=" if it has one: alone it means `bare`, and takes no word behind it."""

    def __init__(self, declarations: Sequence[str], *, bare: str, **settings: Any) -> None:
        super().__init__(declarations, **settings)
        self.bare = bare

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """As any option, with the value in brackets."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        name, _, value = record[0].partition(" ")
        return f"{name}[={value}]", record[1]


class Setting(click.Option):
    """An option that sets the parameter `key` of a `Config`, whose default is shown: `settings_given` has its
    value, the command gets none. A flag sets `sets`.
    """

    def __init__(
        self, declarations: Sequence[str], *, key: str, sets: object = True, **settings: Any
    ) -> None:
        super().__init__(declarations, expose_value=False, **settings)
        self.key, self._sets = key, sets

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """As any option, but its value is kept."""
        value, args = super().handle_parse_result(ctx, opts, args)
        assert self.name is not None, "it has a name"
        if ctx.get_parameter_source(self.name) is ParameterSource.COMMANDLINE:
            ctx.meta.setdefault(_SETTINGS, {})[self.key] = self._sets if self.is_flag else value
        return value, args

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """As any option, with the parameter's default."""
        extra = super().get_help_extra(ctx)
        if not self.is_flag:
            extra["default"] = next(row.default for row in Config.describe() if row.name == self.key)
        return extra


def settings_given() -> dict[str, object]:
    """What the `Setting`s of the command that runs were given, by the names of their parameters."""
    given: dict[str, object] = click.get_current_context().meta.get(_SETTINGS, {})
    return given


class Command(click.Command):
    """A command whose refusals name the option that was typed, not the parameter that it became."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As any command, but what was typed is kept."""
        args = self._with_bare_values(args)
        ctx.meta[_TYPED] = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # Click's parser does not say whose option it is
            raise

    def _with_bare_values(self, args: list[str]) -> list[str]:
        """The arguments, where each `WithOrWithout` among the options has a value."""
        options = {
            name: param
            for param in self.params
            if isinstance(param, click.Option)
            for name in (*param.opts, *param.secondary_opts)
        }
        given, at = list(args), 0
        while at < len(given) and given[at].startswith("-") and given[at] not in ("-", "--"):
            option = options.get(given[at])
            if isinstance(option, WithOrWithout):
                given[at] += f"={option.bare}"
            elif option is not None and not option.is_flag and not option.count:
                at += 1
            at += 1
        return given

    def typed_without(self, ctx: click.Context, left_out: Collection[str]) -> tuple[list[str], list[str]]:
        """What was typed but for these options (`--name`) and their values: the options, and what follows."""
        args, kept, at = list(ctx.meta[_TYPED]), list[str](), 0
        options = {name: param for param in self.params for name in param.opts}
        while at < len(args) and args[at].startswith("-") and args[at] not in ("-", "--"):
            name, equals, _value = args[at].partition("=")
            option = options.get(name)
            takes = isinstance(option, click.Option) and not (option.is_flag or option.count or equals)
            if name not in left_out:
                kept += args[at : at + 1 + takes]
            at += 1 + takes
        return kept, args[at:]

    def invoke(self, ctx: click.Context) -> Any:
        """As any command. Raises Wrong for a ConfigError."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            if Errors.traceback:
                raise
            raise self._worded(ctx, error) from error

    def _worded(self, ctx: click.Context, error: ConfigError) -> Wrong:
        """The error about the option that was typed, else about the file that says so."""
        typed, _, _ = self.make_parser(ctx).parse_args(list(ctx.meta[_TYPED]))
        meant = [param for param in self.get_params(ctx) if _is_about(error, param)]
        for param in meant:
            if param.name in typed:
                return Wrong(error.about(_subject(param, _word(typed[param.name], error.value))), ctx)
        keys = f"{ctx.find_root().info_name} config"
        for written in typed.get("settings") or ():
            if written.partition("=")[0] == error.name:
                return Wrong(error.about(f"--set {written}"), ctx, see=keys)
        if error.where:
            return Wrong(str(error), ctx, see=keys)
        if ctx.params.get("config") and (where := Config.where(ctx.params["config"], error.name)):
            return Wrong(str(error.at(where)), ctx, see=keys)
        for param in meant:
            value = None if isinstance(error, NeededError) else f"{error.value} (its default)"
            return Wrong(error.about(_subject(param, value)), ctx)
        return Wrong(
            str(error), ctx, see=keys if error.name in {row.name for row in Config.describe()} else None
        )


def _is_about(error: ConfigError, param: click.Parameter) -> bool:
    """Whether the option or argument becomes the parameter that the error is about."""
    return error.name in (param.name, getattr(param, "key", None)) or f"--{error.name}" in param.opts


def _word(typed: object, value: object) -> object:
    """What was typed for a parameter; of a repeated one, that which has the value in it."""
    if isinstance(typed, str):
        return typed
    words = list(typed) if isinstance(typed, Sequence) else []
    return next((word for word in words if str(value) in word), value)


def _subject(param: click.Parameter, value: object) -> str:
    """The parameter with a value as one would type it; a flag has none, nor has what is missing."""
    if isinstance(param, click.Option):
        name = max(param.opts, key=len)
        if param.is_flag:
            return name
    else:
        name = getattr(param.type, "name", "") if isinstance(param.type, Form) else param.human_readable_name
    return name if value is None else f"{name} {value or repr(value)}"


debug_option = click.option("--debug", is_flag=True, help="Show a traceback for an error.")
