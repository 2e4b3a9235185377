"""``Access``: a handle's way to the memory of its registry, and to what follows that."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Final, TypeVar

from .errors import ReadContended
from .table import TableGone

if TYPE_CHECKING:
    from collections.abc import Callable

    from .attachment import Attachment

T = TypeVar("T")

#: How often one call attaches again. Once a growth or a new instance is all that it takes.
ATTACHMENTS: Final = 8


class Access(abc.ABC):
    """A registry's name, and the memory that bears it as far as this handle knows."""

    _name: str
    _view: Attachment

    @property
    def name(self) -> str:
        """The registry's name."""
        return self._name

    def refresh(self) -> None:
        """Attach to what bears the name now; nothing happens where that is the same still.

        For names that were removed behind the registry's back: a look-up meets all else itself.

        Raises:
            RegistryClosed: where nothing bears the name any more.
        """
        view = self._view
        if not view.is_named() or view.control.generation != view.identity[1]:
            self._attach_again(view)

    def _on_table(self, read: Callable[[Attachment], T]) -> T:
        """Return what ``read`` returns, attaching again where the table or its name is gone."""
        for _ in range(ATTACHMENTS):
            view = self._view
            try:
                if view.is_named():
                    return read(view)
            except TableGone:
                pass
            self._attach_again(view)
        raise ReadContended(ATTACHMENTS)

    @abc.abstractmethod
    def _attach_again(self, old: Attachment) -> None:
        """Put what follows ``old`` in its place, unless another thread did so.

        Raises:
            RegistryClosed: where nothing follows it.
        """

    def _attach_at_once(self, old: Attachment) -> None:
        """As ``_attach_again``, without waiting for what is being made."""
        self._attach_again(old)

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the registry. May be repeated."""
